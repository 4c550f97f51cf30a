/*-------------------------------------------------------------------------
 *
 * src/base/role_settings.c
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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/role_settings.h"
#include "base/sqlrun.h"

/* The catalog is read so often. */
#define READ_MS				1000

/* The limits of a role whose settings are not read: an administrator's may be among them. */
#define UNREAD_KILOBYTES	64

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
 * Note what the configuration says: before the process connects, after it has, and after
 * each reload.  Once connected, the process has the database's value as its own, which
 * hides a change of the configuration: then what that said at the start holds.
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

/* Add a limit to those found, which grow one by one: there are few. */
static void
add_limit(LimitKind kind, const RoleLimit *of, int kilobytes)
{
	Size		size = (num_role_limits + 1) * sizeof(RoleLimit);

	role_limits = role_limits == NULL ? MemoryContextAlloc(TopMemoryContext, size) :
		repalloc(role_limits, size);
	role_limits[num_role_limits] = *of;
	role_limits[num_role_limits].kind = kind;
	role_limits[num_role_limits++].kilobytes = kilobytes;
}

/* Look for limits among settings, each "name=value". */
static void
find_limits(Datum settings, const RoleLimit *of)
{
	static const char *const names[LIMIT_KINDS] = {REQUEST_NAME "=", RESPONSE_NAME "="};
	Datum	   *elements;
	int			num;
	int			kilobytes;

	deconstruct_array(DatumGetArrayTypeP(settings), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  NULL, &num);
	for (int i = 0; i < num; i++)
	{
		char	   *setting = TextDatumGetCString(elements[i]);

		for (int kind = 0; kind < LIMIT_KINDS; kind++)
		{
			size_t		len = strlen(names[kind]);

			if (pg_strncasecmp(setting, names[kind], len) == 0 &&
				parse_int(setting + len, &kilobytes, GUC_UNIT_KB, NULL) && kilobytes > 0)
				add_limit(kind, of, kilobytes);
		}
		pfree(setting);
	}
}

void
role_settings_read_again(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT setdatabase <> 0, setrole, setconfig FROM pg_catalog.pg_db_role_setting"
		" WHERE setdatabase IN (0, $1) AND setconfig IS NOT NULL",
		1, OIDOID);
	Datum		values[1] = {ObjectIdGetDatum(MyDatabaseId)};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);

	if (role_limits != NULL)
		pfree(role_limits);
	role_limits = NULL;
	num_role_limits = 0;
	for (uint64 row = 0; row < num; row++)
	{
		RoleLimit	of = {
			.of_database = DatumGetBool(sql_value(row, 1, NULL)),
			.roleid = DatumGetObjectId(sql_value(row, 2, NULL))
		};
		Datum		settings = sql_value(row, 3, NULL);

		if (toast_raw_datum_size(settings) <= MAX_SETTINGS)
			find_limits(settings, &of);
		else
		{
			add_limit(LIMIT_REQUEST, &of, UNREAD_KILOBYTES);
			add_limit(LIMIT_RESPONSE, &of, UNREAD_KILOBYTES);
		}
	}
}

/*
 * See what is set for roles and databases: if that was not done in the last second,
 * or now.  In a transaction, between sql_begin_as_owner and sql_end_as_owner.
 */
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

/* What holds for queued flows of a role, in kB. */
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
