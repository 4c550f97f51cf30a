/*-------------------------------------------------------------------------
 *
 * src/api/pause_server.c
 *	  SQL functions that stop and resume the dispatch to a server.
 *
 * A pause is a row, so that it survives a restart and a failover.  To resume a
 * server also forgets what the limiter holds against its apps: whoever says
 * "go on" has mended something that we cannot see.
 *
 * Flows that were queued when the server, or another one of its name, belonged to
 * another role are held (lane.c).  That they may be sent to the server as it is now
 * is not for its owner to say, who would get what others queued for somebody else.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "api/pause.h"
#include "app/limiter.h"
#include "app/server.h"
#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "queue/notify.h"

PG_FUNCTION_INFO_V1(feishu_pause_server);
PG_FUNCTION_INFO_V1(feishu_resume_server);

/* The server, which has to be one of ours, and the caller its owner. */
ForeignServer *
pause_find_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	if (server == NULL)
		server_report_unknown(name, false);
	server_check_wrapper(server->fdwid, server->servername);
	if (!feishu_server_ownercheck(server->serverid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, name);
	return server;
}

/* pause_server(name) */
Datum
feishu_pause_server(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"INSERT INTO feishu_internal.paused_server (server, paused_by, paused_at)"
		" VALUES ($1, $2, pg_catalog.now()) ON CONFLICT (server) DO NOTHING",
		2, TEXTOID, TEXTOID);
	ForeignServer *server = pause_find_server(NameStr(*PG_GETARG_NAME(0)));
	Datum		values[2] = {
		CStringGetTextDatum(server->servername),
		CStringGetTextDatum(GetUserNameFromId(GetUserId(), false))
	};

	sql_check_writable("pause_server()");
	(void) sql_run_as_owner(&statement, values, NULL, SPI_OK_INSERT, NULL);
	notify_control();
	PG_RETURN_VOID();
}

/* Forget the pauses of the apps in all user mappings of a server. */
static void
resume_apps(ForeignServer *server)
{
	Relation	mappings;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;
	AppKey		key_of_sandbox;

	if (server_sandbox_key(server, &key_of_sandbox))
	{
		limiter_resume(server->servername, &key_of_sandbox);
		return;
	}
	mappings = table_open(UserMappingRelationId, AccessShareLock);
	ScanKeyInit(&key, Anum_pg_user_mapping_umserver, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(server->serverid));
	scan = systable_beginscan(mappings, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Oid			userid = ((Form_pg_user_mapping) GETSTRUCT(tuple))->umuser;
		AppKey		key_of_app;

		if (server_app_key(server, userid, &key_of_app))
			limiter_resume(server->servername, &key_of_app);
	}
	systable_endscan(scan);
	table_close(mappings, AccessShareLock);
}

#define OF_ANOTHER_OWNER \
	" WHERE server OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'q'" \
	" AND server_owner OPERATOR(pg_catalog.<>) $2"

/* Flows that wait for the server of another owner are to be sent to this one.  Those
 * under way are left alone: the dispatcher would wait for this transaction. */
static void
adopt_flows(Datum server, Datum owner)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH adopted AS (UPDATE feishu_internal.outbox SET server_owner = $2" OF_ANOTHER_OWNER
		" AND NOT EXISTS (SELECT FROM feishu_internal.claim c"
		" WHERE id OPERATOR(pg_catalog.=) ANY (c.ids)) RETURNING id)"
		" SELECT pg_catalog.min(id) FROM adopted",
		2, TEXTOID, OIDOID);
	Datum		values[2] = {server, owner};
	bool		is_null;
	Datum		first;

	sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot());
	first = sql_value(0, 1, &is_null);
	if (!is_null)
		notify_locked_row(DatumGetInt64(first));
}

/* Do any flows wait for the server of another owner? */
static bool
others_wait(Datum server, Datum owner)
{
	static SqlStatement statement = SQL_STATEMENT(
		"(SELECT FROM feishu_internal.outbox" OF_ANOTHER_OWNER " AND next_at IS NULL LIMIT 1)"
		" UNION ALL"
		" (SELECT FROM feishu_internal.outbox" OF_ANOTHER_OWNER " AND next_at IS NOT NULL LIMIT 1)",
		2, TEXTOID, OIDOID);
	Datum		values[2] = {server, owner};

	return sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) > 0;
}

/*
 * resume_server(name)
 *
 * Whatever the transaction's snapshot says: who resumes does not know since when it is
 * paused, and is not told if there was nothing to resume.
 */
Datum
feishu_resume_server(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu_internal.paused_server WHERE server OPERATOR(pg_catalog.=) $1",
		1, TEXTOID);
	ForeignServer *server = pause_find_server(NameStr(*PG_GETARG_NAME(0)));
	Datum		values[1] = {CStringGetTextDatum(server->servername)};
	Datum		owner = ObjectIdGetDatum(server->owner);
	bool		may_adopt = superuser();
	bool		held;
	SqlCaller	caller;

	sql_check_writable("resume_server()");
	sql_begin_as_owner(&caller);
	sql_run(&statement, values, NULL, SPI_OK_DELETE, GetLatestSnapshot());
	if (may_adopt)
		adopt_flows(values[0], owner);
	held = !may_adopt && others_wait(values[0], owner);
	sql_end_as_owner(&caller);
	if (held)
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("flows for server \"%s\" that were queued when it belonged to another role are still held",
						server->servername),
				 errhint("Let a superuser run: SELECT feishu.resume_server(%s).",
						 quote_literal_cstr(server->servername))));
	resume_apps(server);
	notify_control();
	PG_RETURN_VOID();
}
