/*-------------------------------------------------------------------------
 *
 * pause_flow.c
 *	  SQL functions that stop and resume the dispatch of one flow, by its API name.
 *
 * A pause is a row, as that of a server is.  Which rows of the queue it means is for
 * the dispatcher to find out (park.c): there may be millions.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/api/pause_flow.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "api/pause.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "queue/notify.h"
#include "wire/wire_check.h"

/* Each claim, of whatever server, reads what is paused: so many may a role pause. */
#define PAUSE_MOST_FLOWS	200

PG_FUNCTION_INFO_V1(feishu_pause_flow);
PG_FUNCTION_INFO_V1(feishu_resume_flow);

/* The arguments, checked; the fourth value is the caller. */
static void
read_arguments(FunctionCallInfo fcinfo, Datum *values)
{
	ForeignServer *server = pause_find_server(NameStr(*PG_GETARG_NAME(0)));
	char	   *namespace_name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *flow_id = text_to_cstring(PG_GETARG_TEXT_PP(2));

	request_check_flow(namespace_name, flow_id);
	values[0] = CStringGetTextDatum(server->servername);
	values[1] = CStringGetTextDatum(namespace_name);
	values[2] = CStringGetTextDatum(flow_id);
	values[3] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
}

/* May a role pause this flow, too?  As the owner of the tables. */
static bool
has_room(Datum *values)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT pg_catalog.count(*) OPERATOR(pg_catalog.<) $5 OR pg_catalog.bool_or("
		"server OPERATOR(pg_catalog.=) $1 AND namespace OPERATOR(pg_catalog.=) $2"
		" AND flow_id OPERATOR(pg_catalog.=) $3) FROM feishu_internal.paused_flow"
		" WHERE paused_by OPERATOR(pg_catalog.=) $4",
		5, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID);
	Datum		arguments[5] = {
		values[0], values[1], values[2], values[3], Int64GetDatum(PAUSE_MOST_FLOWS)
	};

	sql_run(&statement, arguments, NULL, SPI_OK_SELECT, GetLatestSnapshot());
	return DatumGetBool(sql_value(0, 1, NULL));
}

/* pause_flow(server, namespace, flow_id) */
Datum
feishu_pause_flow(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"INSERT INTO feishu_internal.paused_flow (server, namespace, flow_id, paused_by, paused_at)"
		" VALUES ($1, $2, $3, $4, pg_catalog.now()) ON CONFLICT (server, namespace, flow_id) DO NOTHING",
		4, TEXTOID, TEXTOID, TEXTOID, TEXTOID);
	Datum		values[4];
	SqlCaller	caller;
	bool		may_all = superuser();

	read_arguments(fcinfo, values);
	sql_check_writable("pause_flow()");
	sql_begin_as_owner(&caller);
	if (!may_all && !has_room(values))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("role \"%s\" has paused %d flows, and cannot pause more",
						TextDatumGetCString(values[3]), PAUSE_MOST_FLOWS),
				 errhint("Resume some by feishu.resume_flow, or pause a whole server by feishu.pause_server.")));
	sql_run(&statement, values, NULL, SPI_OK_INSERT, NULL);
	sql_end_as_owner(&caller);
	notify_control();
	PG_RETURN_VOID();
}

/* resume_flow(server, namespace, flow_id), whatever the snapshot says, see resume_server */
Datum
feishu_resume_flow(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu_internal.paused_flow WHERE server OPERATOR(pg_catalog.=) $1"
		" AND namespace OPERATOR(pg_catalog.=) $2 AND flow_id OPERATOR(pg_catalog.=) $3",
		3, TEXTOID, TEXTOID, TEXTOID);
	Datum		values[4];
	SqlCaller	caller;

	read_arguments(fcinfo, values);
	sql_check_writable("resume_flow()");
	sql_begin_as_owner(&caller);
	sql_run(&statement, values, NULL, SPI_OK_DELETE, GetLatestSnapshot());
	sql_end_as_owner(&caller);
	notify_control();
	PG_RETURN_VOID();
}
