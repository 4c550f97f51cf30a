/*-------------------------------------------------------------------------
 *
 * src/handler/retry_handler.c
 *	  feishu.retry_handler(): a handler that was given up is called again.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "handler/handler_internal.h"
#include "queue/notify.h"
#include "queue/origin.h"
#include "queue/outbox.h"

PG_FUNCTION_INFO_V1(feishu_retry_handler);

/*
 * retry_handler(id)
 *
 * One of another database, of which this is a copy, is this one's from now on.  It
 * keeps its place in the order of the ends.
 */
Datum
feishu_retry_handler(PG_FUNCTION_ARGS)
{
	static SqlStatement find = SQL_STATEMENT(
		"SELECT roleid, COALESCE(handler_state OPERATOR(pg_catalog.=) 'f', false)"
		" FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	static SqlStatement retry = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET handler_state = NULL, handler_attempts = NULL,"
		" handler_next_at = NULL, handler_error = NULL, database = $2, system_identifier = $3"
		" WHERE id OPERATOR(pg_catalog.=) $1 AND handler_state OPERATOR(pg_catalog.=) 'f'"
		" RETURNING roleid, end_number",
		3, INT8OID, OIDOID, INT8OID);
	int64		id = PG_GETARG_INT64(0);
	Datum		values[3] = {Int64GetDatum(id), origin_database(), origin_system()};
	Oid			userid = GetUserId();
	SqlCaller	caller;
	bool		given_up;
	bool		found;

	sql_check_writable("retry_handler()");
	sql_begin_as_owner(&caller);
	if (sql_run(&find, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) == 0 ||
		!feishu_role_may_act(userid, DatumGetObjectId(sql_value(0, 1, NULL))))
		outbox_report_no_flow(id);
	given_up = DatumGetBool(sql_value(0, 2, NULL));
	found = sql_run(&retry, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) > 0;
	if (found)
		notify_handler(DatumGetObjectId(sql_value(0, 1, NULL)), sql_int64(0, 2));
	sql_end_as_owner(&caller);
	/* the transaction's snapshot is older: "false" would say that it was not given up */
	if (given_up && !found && IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
	PG_RETURN_BOOL(found);
}
