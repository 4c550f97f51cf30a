/*-------------------------------------------------------------------------
 *
 * src/handler/handler_end.c
 *	  A flow with a handler ends: number of its end, and who is notified.
 *
 * Each statement that ends rows of the outbox asks draw_end() for a number
 * (HANDLER_ON_END).  Numbers only grow, whoever ends a flow and whatever becomes of
 * its transaction: they are drawn as ids are (flow_id.c).  So handlers of a role can
 * be called in the order of the ends, and that costs rows without a handler nothing.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "base/sqlrun.h"
#include "queue/flow_id.h"
#include "queue/notify.h"
#include "queue/origin.h"

PG_FUNCTION_INFO_V1(feishu_draw_end);

/*
 * feishu_internal.draw_end(on_end, roleid, database, system_identifier): strict, so
 * NULL for a flow without a handler; also for one of another database, whose handler
 * is called there.
 */
Datum
feishu_draw_end(PG_FUNCTION_ARGS)
{
	int64		number;

	if (!origin_may_be_ours(PG_GETARG_DATUM(3), PG_GETARG_DATUM(2)))
		PG_RETURN_NULL();
	number = flow_id_draw(sql_lock_number(LAST_END_TABLE));
	notify_handler(PG_GETARG_OID(1), number);
	PG_RETURN_INT64(number);
}
