/*-------------------------------------------------------------------------
 *
 * pause.c
 *	  SQL functions that stop and resume the dispatch to a server.
 *
 * A pause is a row, so that it survives a restart and a failover.  To resume a
 * server also forgets what the limiter holds against its apps: whoever says
 * "go on" has mended something that we cannot see.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/pause.c
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

#include "compat.h"
#include "limiter.h"
#include "news.h"
#include "nls.h"
#include "options.h"
#include "sqlrun.h"

PG_FUNCTION_INFO_V1(feishu_pause_server);
PG_FUNCTION_INFO_V1(feishu_resume_server);

/* The server, which has to be one of ours, and the caller its owner. */
static ForeignServer *
owned_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name)));
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
	ForeignServer *server = owned_server(NameStr(*PG_GETARG_NAME(0)));
	Datum		values[2] = {
		CStringGetTextDatum(server->servername),
		CStringGetTextDatum(GetUserNameFromId(GetUserId(), false))
	};
	SqlCaller	caller;

	sql_begin_as_owner(&caller);
	sql_run(&statement, values, NULL, SPI_OK_INSERT, NULL);
	sql_end_as_owner(&caller);
	news_tell_control();
	PG_RETURN_VOID();
}

/* Forget the pauses of the apps in all user mappings of a server. */
static void
resume_apps(ForeignServer *server)
{
	Relation	mappings = table_open(UserMappingRelationId, AccessShareLock);
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

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

/* resume_server(name) */
Datum
feishu_resume_server(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu_internal.paused_server WHERE server OPERATOR(pg_catalog.=) $1",
		1, TEXTOID);
	ForeignServer *server = owned_server(NameStr(*PG_GETARG_NAME(0)));
	Datum		values[1] = {CStringGetTextDatum(server->servername)};
	SqlCaller	caller;

	sql_begin_as_owner(&caller);
	sql_run(&statement, values, NULL, SPI_OK_DELETE, NULL);
	sql_end_as_owner(&caller);
	resume_apps(server);
	news_tell_control();
	PG_RETURN_VOID();
}
