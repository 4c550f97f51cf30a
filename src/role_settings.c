/*-------------------------------------------------------------------------
 *
 * role_settings.c
 *	  Limits that are set for a role or a database, in the dispatcher.
 *
 * A flow that is sent at once has the settings of its session, among them what
 * ALTER ROLE and ALTER DATABASE have set.  A queued one is sent by a process that
 * has no role of its own and lives for long: it looks into the catalog, where
 * nobody tells of a change, once a second while it has something to do.
 *
 * Which of several settings holds is as in a session.  But max_response_size is
 * everybody's to set, and the memory is not: for a role it counts where it is lower
 * than what the database or the configuration says.  max_request_size is set by
 * administrators alone.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/role_settings.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "role_settings.h"
#include "sqlrun.h"

/* The catalog is read so often. */
#define READ_MS				1000

#define REQUEST_NAME		"feishu_flow.max_request_size"
#define RESPONSE_NAME		"feishu_flow.max_response_size"

typedef enum LimitKind
{
	LIMIT_REQUEST,
	LIMIT_RESPONSE,
	LIMIT_KINDS
} LimitKind;

typedef struct RoleLimit
{
	LimitKind	kind;
	bool		of_database;	/* of this database alone */
	Oid			roleid;			/* InvalidOid: all roles */
	int			kilobytes;
} RoleLimit;

static RoleLimit *role_limits = NULL;
static int	num_role_limits = 0;
static TimestampTz read_at = 0;

/* What the configuration says, and the value of the setting when that was noted. */
static int	configured[LIMIT_KINDS];
static int	noted[LIMIT_KINDS];


/*
 * Once connected, the process has the database's value as its own, which hides a
 * change of the configuration: then what that said at the start holds.
 */
void
role_settings_note_configured(void)
{
	const int	now[LIMIT_KINDS] = {feishu_guc_max_request_size, feishu_guc_max_response_size};
	static int	calls = 0;

	for (int i = 0; i < LIMIT_KINDS; i++)
	{
		if (calls != 1 && now[i] != noted[i])
			configured[i] = now[i];
		noted[i] = now[i];
	}
	calls = Min(calls + 1, 2);
}

void
role_settings_read_again(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT pg_catalog.lower(pg_catalog.split_part(c, '=', 1)), s.setdatabase <> 0, s.setrole,"
		" pg_catalog.split_part(c, '=', 2)"
		" FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c"
		" WHERE s.setdatabase IN (0, $1) AND pg_catalog.lower(pg_catalog.split_part(c, '=', 1)) IN"
		" ('" REQUEST_NAME "', '" RESPONSE_NAME "')",
		1, OIDOID);
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};
	RoleLimit  *found;
	int			num_found = 0;
	uint64		num;

	num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	found = num == 0 ? NULL : MemoryContextAlloc(TopMemoryContext, num * sizeof(RoleLimit));
	for (uint64 row = 0; row < num; row++)
	{
		RoleLimit  *limit = &found[num_found];
		char	   *name = TextDatumGetCString(sql_value(row, 1, NULL));
		char	   *value = TextDatumGetCString(sql_value(row, 4, NULL));

		limit->kind = strcmp(name, REQUEST_NAME) == 0 ? LIMIT_REQUEST : LIMIT_RESPONSE;
		limit->of_database = DatumGetBool(sql_value(row, 2, NULL));
		limit->roleid = DatumGetObjectId(sql_value(row, 3, NULL));
		if (parse_int(value, &limit->kilobytes, GUC_UNIT_KB, NULL) && limit->kilobytes > 0)
			num_found++;
	}
	if (role_limits != NULL)
		pfree(role_limits);
	role_limits = found;
	num_role_limits = num_found;
}

void
role_settings_read(TimestampTz now)
{
	if (now >= read_at && now < TimestampTzPlusMilliseconds(read_at, READ_MS))
		return;
	role_settings_read_again();
	read_at = now;
}

/* What is set for a role (or for all), for this database rather than for all. */
static bool
find_limit(LimitKind kind, Oid roleid, int *kilobytes)
{
	bool		found = false;

	for (int i = 0; i < num_role_limits; i++)
	{
		const RoleLimit *limit = &role_limits[i];

		if (limit->kind != kind || limit->roleid != roleid || (found && !limit->of_database))
			continue;
		*kilobytes = limit->kilobytes;
		found = true;
	}
	return found;
}

int
role_max_request_size(Oid roleid)
{
	int			kilobytes;

	if (find_limit(LIMIT_REQUEST, roleid, &kilobytes) ||
		find_limit(LIMIT_REQUEST, InvalidOid, &kilobytes))
		return Min(kilobytes, MAX_REQUEST_SIZE_LIMIT);
	return configured[LIMIT_REQUEST];
}

int
role_max_response_size(Oid roleid)
{
	int			kilobytes;
	int			most = configured[LIMIT_RESPONSE];

	if (find_limit(LIMIT_RESPONSE, InvalidOid, &kilobytes))
		most = Min(kilobytes, MAX_RESPONSE_SIZE_LIMIT);
	if (find_limit(LIMIT_RESPONSE, roleid, &kilobytes))
		most = Min(kilobytes, most);
	return most;
}
