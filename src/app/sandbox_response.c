/*-------------------------------------------------------------------------
 *
 * src/app/sandbox_response.c
 *	  What a sandbox is to answer: the setting feishu_flow.sandbox_response.
 *
 * A session has it as it has any setting.  A queued flow is sent by a process that
 * has no role of its own: for it, what ALTER ROLE and ALTER DATABASE have set is
 * looked up with its server.  Either way it counts only if who set it is a superuser
 * or owns the server; a value that does not is as if it were not there, and hides none
 * that does.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "app/options.h"
#include "base/compat.h"
#include "base/role_settings.h"
#include "base/sandbox_setting.h"

/* May a role say what the server answers? */
static bool
may_answer(const FlowServer *server, Oid roleid)
{
	return OidIsValid(roleid) && feishu_server_ownercheck(server->serverid, roleid);
}

/* The value among settings, each "name=value"; NULL: there is none that can be used. */
static char *
find_value(Datum settings)
{
	static const char name[] = SANDBOX_SETTING "=";
	Datum	   *elements;
	int			num;
	int			http_status;
	const char *body;

	deconstruct_array(DatumGetArrayTypeP(settings), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  NULL, &num);
	for (int i = 0; i < num; i++)
	{
		char	   *setting = TextDatumGetCString(elements[i]);

		/* set where the library was not loaded, it was not looked at */
		if (pg_strncasecmp(setting, name, strlen(name)) == 0 &&
			sandbox_setting_split(setting + strlen(name), &http_status, &body))
			return setting + strlen(name);
		pfree(setting);
	}
	return NULL;
}

/*
 * What is set for a database and a role, either of which may be InvalidOid: for all.
 * The dispatcher reads it for each claim.
 */
static char *
read_value(Oid databaseid, Oid roleid)
{
	Relation	catalog = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *value = NULL;

	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(databaseid));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(roleid));
	scan = systable_beginscan(catalog, DbRoleSettingDatidRolidIndexId, true, NULL, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		is_null;
		Datum		settings = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
											RelationGetDescr(catalog), &is_null);

		if (!is_null && toast_raw_datum_size(settings) <= MAX_SETTINGS)
			value = find_value(settings);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return value;
}

/* Of what is set for a role, for databases and in the configuration, what counts. */
static char *
response_of(const FlowServer *server, Oid roleid)
{
	const struct
	{
		Oid			databaseid;
		Oid			roleid;
		Oid			owner;		/* who can have set it */
	}			places[] =
	{
		{MyDatabaseId, roleid, roleid},
		{InvalidOid, roleid, roleid},
		{MyDatabaseId, InvalidOid, sandbox_database_owner()},
		{InvalidOid, InvalidOid, BOOTSTRAP_SUPERUSERID}
	};
	const char *configured = sandbox_setting_configured();

	for (int i = 0; i < (int) lengthof(places); i++)
	{
		char	   *value = NULL;

		if (may_answer(server, places[i].owner))
			value = read_value(places[i].databaseid, places[i].roleid);
		if (value != NULL)
			return value[0] == '\0' ? NULL : value;
	}
	return configured != NULL ? pstrdup(configured) : NULL;
}

/* For a call of this session; NULL: the platform's own example. */
char *
sandbox_response_of_session(const FlowServer *server)
{
	if (!server->is_sandbox)
		return NULL;
	if (!may_answer(server, sandbox_setting_owner()))
		return response_of(server, GetSessionUserId());
	return feishu_guc_sandbox_response[0] == '\0' ? NULL : pstrdup(feishu_guc_sandbox_response);
}

/* For queued flows of the server's user, likewise. */
char *
sandbox_response_of_role(const FlowServer *server)
{
	return server->is_sandbox ? response_of(server, server->userid) : NULL;
}
