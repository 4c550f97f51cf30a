/*-------------------------------------------------------------------------
 *
 * src/api/wait_flow.c
 *	  wait_flow: waits for the end of a queued flow.
 *
 * Who waits is woken when the end has been recorded (waiters.c), and looks at the
 * row with a snapshot of its own each time.  On a standby nobody wakes it, nor does
 * who changes the table by hand: so it looks now and then in any case.
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
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "app/server.h"
#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "base/waiters.h"
#include "launcher/launcher.h"
#include "queue/outbox.h"
#include "wire/wire.h"

PG_FUNCTION_INFO_V1(feishu_wait_flow);

/* As the default of the argument. */
#define DEFAULT_TIMEOUT_S	30

/* Look at least so often. */
#define WAIT_LOOK_MS		2000


/* A flow's end, in the caller's memory context; while it has none, only the state. */
typedef struct FlowEnd
{
	OutboxState state;
	int			sqlstate;
	char	   *namespace_name;
	char	   *flow_id;
	char	   *error;
	char	   *report;			/* message, and on the next lines DETAIL */
	char	   *hint;
	Jsonb	   *response;
} FlowEnd;

/* A text of the row that was read, in a memory context; NULL when it is null. */
static char *
read_text(int column, MemoryContext context)
{
	bool		is_null;
	Datum		value = sql_value(0, column, &is_null);

	return is_null ? NULL : MemoryContextStrdup(context, TextDatumGetCString(value));
}

/*
 * Read a flow as it is now, whatever the transaction's snapshot says.  Throws
 * when the caller may not see it, or has queued it in this transaction.
 */
static void
read_end(int64 id, Oid userid, MemoryContext context, FlowEnd *end)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT state, roleid, sqlstate, error, response, xmin, namespace, flow_id, report, hint"
		" FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};
	SqlCaller	caller;
	bool		is_null;
	Datum		value;

	sql_begin_as_owner(&caller);
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) == 0 ||
		!has_privs_of_role(userid, DatumGetObjectId(sql_value(0, 2, NULL))))
	{
		/* our own uncommitted row is beyond the latest snapshot, too */
		outbox_report_no_flow(id);
	}
	memset(end, 0, sizeof(FlowEnd));
	end->state = DatumGetChar(sql_value(0, 1, NULL));
	if (end->state == OUTBOX_QUEUED)
	{
		/* what the last attempt got is not the end: nothing is copied */
		if (TransactionIdIsCurrentTransactionId(DatumGetTransactionId(sql_value(0, 6, NULL))))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("flow %lld was queued by this very transaction", (long long) id),
					 errdetail("It is sent after the transaction has committed."),
					 errhint("COMMIT first, then wait.")));
		sql_end_as_owner(&caller);
		return;
	}
	value = sql_value(0, 3, &is_null);
	if (!is_null)
	{
		char	   *code = TextDatumGetCString(value);

		if (strlen(code) == 5)
			end->sqlstate = MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]);
	}
	end->error = read_text(4, context);
	end->namespace_name = read_text(7, context);
	end->flow_id = read_text(8, context);
	end->report = read_text(9, context);
	end->hint = read_text(10, context);
	value = sql_value(0, 5, &is_null);
	if (!is_null)
	{
		Jsonb	   *response = DatumGetJsonbP(value);

		end->response = MemoryContextAlloc(context, VARSIZE(response));
		memcpy(end->response, response, VARSIZE(response));
	}
	sql_end_as_owner(&caller);
}

/* What a flow waits for, as dispatch_status has it; NULL: nothing known. */
static char *
read_hold(int64 id, MemoryContext context)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT CASE WHEN p.server IS NOT NULL THEN 'paused by ' OPERATOR(pg_catalog.||) p.paused_by"
		" WHEN f.server IS NOT NULL THEN 'flow paused by ' OPERATOR(pg_catalog.||) f.paused_by"
		" ELSE h.reason END"
		" FROM feishu_internal.outbox o"
		" LEFT JOIN feishu_internal.paused_server p ON p.server OPERATOR(pg_catalog.=) o.server"
		" LEFT JOIN feishu_internal.paused_flow f ON f.server OPERATOR(pg_catalog.=) o.server"
		" AND f.namespace OPERATOR(pg_catalog.=) o.namespace AND f.flow_id OPERATOR(pg_catalog.=) o.flow_id"
		" LEFT JOIN feishu_internal.held_lane h ON h.server OPERATOR(pg_catalog.=) o.server"
		" AND h.roleid OPERATOR(pg_catalog.=) o.roleid"
		" WHERE o.id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};
	SqlCaller	caller;
	char	   *hold = NULL;

	sql_begin_as_owner(&caller);
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) > 0)
	{
		bool		is_null;
		Datum		value = sql_value(0, 1, &is_null);

		if (!is_null)
			hold = MemoryContextStrdup(context, TextDatumGetCString(value));
	}
	sql_end_as_owner(&caller);
	return hold;
}

/* Throw that a flow has not ended yet. */
static void
report_timeout(int64 id)
{
	const char *table;
	DispatchProblem kind = launcher_problem(&table);
	const char *problem = kind != DISPATCH_NO_PROBLEM && kind != DISPATCH_NO_HANDLERS && table == NULL ?
		launcher_problem_text(true) : NULL;
	const char *hold = read_hold(id, CurrentMemoryContext);

	ereport(ERROR,
			(errcode(ERRCODE_FEISHU_TIMEOUT),
			 errmsg("flow %lld has not ended in time", (long long) id),
			 problem != NULL ?
			 errhint("It stays queued, and nothing sends it: %s.", problem) :
			 hold != NULL ?
			 errhint("It stays queued, and is held back: %s.", _(hold)) :
			 errhint("It stays queued; look at the views feishu.flows and feishu.dispatch_status.")));
}

/* Wait for the end of a flow; throws when it has not come by the deadline. */
static void
wait_for_end(int64 id, TimestampTz deadline, FlowEnd *end)
{
	static uint32 wait_event = 0;
	Oid			userid = GetUserId();

	if (wait_event == 0)
		wait_event = feishu_wait_event_new("FeishuFlowWait");

	for (;;)
	{
		long		left;

		/* first ask to be woken, then look: so no end is missed */
		waiters_look(id);
		read_end(id, userid, CurrentMemoryContext, end);
		if (end->state != OUTBOX_QUEUED)
			break;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0)
			report_timeout(id);
		if (!waiters_is_notified())
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Min(left, WAIT_LOOK_MS), wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
wait_error_callback(void *arg)
{
	errcontext("feishu.wait_flow() of flow %lld", (long long) *(const int64 *) arg);
}

/* Throw what execute_flow would have, of a flow that did not succeed. */
static void
report_end(const FlowEnd *end)
{
	char	   *name = psprintf("%s/%s", end->namespace_name, end->flow_id);
	char	   *reason = end->report ? end->report : end->error ? end->error : "";
	char	   *detail = end->report ? strchr(end->report, '\n') : NULL;
	char	   *message;

	if (detail != NULL)
		*detail++ = '\0';
	if (detail == NULL || detail[0] == '\0')
		detail = end->state == OUTBOX_FAILED ? NULL : end->error;
	if (end->state == OUTBOX_CANCELLED)
		message = psprintf(_("flow \"%s\" was cancelled"), name);
	else if (end->state == OUTBOX_UNCONFIRMED)
		message = psprintf(_("flow \"%s\" is unconfirmed: it most likely ran, but its answer was lost"), name);
	else
		message = psprintf(_("could not execute flow \"%s/%s\": %s"), end->namespace_name,
						   end->flow_id, reason);
	ereport(ERROR,
			(errcode(end->sqlstate != 0 ? end->sqlstate : ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg_internal("%s", wire_for_client(message)),
			 detail ? errdetail_internal("%s", wire_for_client(detail)) : 0,
			 end->hint ? errhint("%s", wire_for_client(end->hint)) : 0));
}

/* wait_flow(id, timeout) */
Datum
feishu_wait_flow(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	Interval	default_timeout = {.time = DEFAULT_TIMEOUT_S * USECS_PER_SEC};
	Interval   *timeout = PG_ARGISNULL(1) ? &default_timeout : PG_GETARG_INTERVAL_P(1);
	TimestampTz deadline;
	FlowEnd		end;
	ErrorContextCallback callback;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   IntervalPGetDatum(timeout)));
	callback.callback = wait_error_callback;
	callback.arg = &id;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		wait_for_end(id, deadline, &end);
	}
	PG_FINALLY();
	{
		waiters_leave();
	}
	PG_END_TRY();

	if (end.state != OUTBOX_SUCCEEDED)
		report_end(&end);
	error_context_stack = callback.previous;
	if (end.response == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(end.response);
}
