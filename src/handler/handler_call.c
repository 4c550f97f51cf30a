/*-------------------------------------------------------------------------
 *
 * src/handler/handler_call.c
 *	  One call of a handler.
 *
 * The mark that it was called is written first, in the same subtransaction: so nobody
 * else can change the flow meanwhile, and what the handler does and the mark are
 * committed, or not, together.  Should the handler put its own flow back to the queue
 * (retry_flow), that takes the mark away again.
 *
 * The session is the role's own, so all that the handler can reach is the role's.  What
 * it does to settings, SET LOCAL and SET ROLE included, is undone after it.
 *
 * A handler that takes too long, the deferred triggers of its commit included, is
 * cancelled.  It may catch that, to clean up, so it has a grace, in which it is cancelled
 * again and again; then its session is ended.  (No statement_timeout holds here:
 * PostgreSQL sets it for statements of a client.)
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "tcop/dest.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "handler/handler_internal.h"

/*
 * One that takes too long is cancelled so often, at this distance, before its session is
 * ended: so the grace is a second.
 */
#define CANCELS			4
#define CANCEL_MS		250

/* Plans of so many functions are kept. */
#define MAX_PLANS		256

/* Bytes of an error that are remembered. */
#define ERROR_BYTES		2000

/* Two names, each of which may be quoted all over. */
#define MAX_FUNCTION	(4 * NAMEDATALEN + 8)

typedef struct CallPlan
{
	char		function[MAX_FUNCTION]; /* hash key */
	SPIPlanPtr	plan;
} CallPlan;

static HTAB *plans = NULL;
static SPIPlanPtr row_plan = NULL;

static TimeoutId call_timeout = MAX_TIMEOUTS;
static volatile sig_atomic_t num_cancels = 0;


/* ---------- Time ---------- */

/* The time is over.  (The latch is set by timeout.c.) */
static void
on_timeout(void)
{
	InterruptPending = true;
	if (++num_cancels <= CANCELS)
		QueryCancelPending = true;
	else if (!proc_exit_inprogress)
		ProcDiePending = true;
}

/* From now on there is handler_timeout for what is done in the transaction. */
void
handler_time_begin(void)
{
	if (call_timeout == MAX_TIMEOUTS)
		call_timeout = RegisterTimeout(USER_TIMEOUT, on_timeout);
	handler_time_end();
	num_cancels = 0;
	enable_timeout_every(call_timeout,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), feishu_guc_handler_timeout),
						 CANCEL_MS);
}

void
handler_time_end(void)
{
	if (call_timeout != MAX_TIMEOUTS)
		disable_timeout(call_timeout, false);
	if (num_cancels > 0)
		QueryCancelPending = false;
}

/* If the time is over, that is what an error was. */
static void
explain_time(ErrorData *error)
{
	if (num_cancels > 0 && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		error->message = psprintf(_("it took longer than feishu_flow.handler_timeout, which is %d ms"),
								  feishu_guc_handler_timeout);
}


/* ---------- The call ---------- */

/* The plan of a function's call, kept; SPI is connected. */
static SPIPlanPtr
plan_get(const char *function, Oid type)
{
	HASHCTL		ctl = {.keysize = MAX_FUNCTION, .entrysize = sizeof(CallPlan)};
	CallPlan   *entry;
	SPIPlanPtr	plan;

	if (plans == NULL)
		plans = hash_create("feishu_flow handlers", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	entry = hash_search(plans, function, HASH_FIND, NULL);
	if (entry != NULL)
		return entry->plan;
	plan = SPI_prepare(psprintf("SELECT %s($1)", function), 1, &type);
	if (plan == NULL)
		elog(ERROR, "could not prepare the call of %s: %s", function, SPI_result_code_string(SPI_result));
	if (hash_get_num_entries(plans) < MAX_PLANS)
	{
		SPI_keepplan(plan);
		entry = hash_search(plans, function, HASH_ENTER, NULL);
		entry->plan = plan;
	}
	return plan;
}

/* The row of a flow, as the current user sees it; false: there is none.  SPI is connected. */
static bool
read_row(int64 id, Datum *row)
{
	Datum		values[1] = {Int64GetDatum(id)};
	Oid			types[1] = {INT8OID};
	bool		is_null;

	if (row_plan == NULL)
	{
		row_plan = SPI_prepare("SELECT f FROM feishu.flows f WHERE f.id OPERATOR(pg_catalog.=) $1",
							   1, types);
		if (row_plan == NULL || SPI_keepplan(row_plan) != 0)
			elog(ERROR, "could not prepare the look at a flow: %s", SPI_result_code_string(SPI_result));
	}
	if (SPI_execute_plan(row_plan, values, NULL, false, 0) != SPI_OK_SELECT || SPI_processed == 0)
		return false;
	*row = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &is_null);
	return !is_null;
}

/* Run the plan of a call; what it returns, which may be any number of rows, is not kept. */
static void
run(SPIPlanPtr plan, Oid type, Datum row)
{
	SPIExecuteOptions options = {0};

	options.params = makeParamList(1);
	options.params->params[0] = (ParamExternData) {.value = row, .pflags = PARAM_FLAG_CONST, .ptype = type};
	options.dest = None_Receiver;
	(void) SPI_execute_plan_extended(plan, &options);
}

/* Mark and call; false if there is nothing to call.  It may throw. */
static bool
call(const Handler *handler)
{
	Datum		row;
	bool		is_seen;
	Oid			type;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	is_seen = read_row(handler->id, &row);
	if (!mark_succeeded(handler))
	{
		SPI_finish();
		return false;
	}
	if (!is_seen)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" does not see the flow in the view feishu.flows",
						GetUserNameFromId(GetUserId(), false))));
	type = SPI_gettypeid(SPI_tuptable->tupdesc, 1);
	run(plan_get(handler->function, type), type, row);
	SPI_finish();
	return true;
}

/* Call it, and mark that, in a subtransaction; the error if it fails. */
HandlerResult
handler_call(const Handler *handler, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile HandlerResult result = HANDLER_FAILED;
	int			settings;

	pgstat_report_activity(STATE_RUNNING,
						   psprintf("handler %s of flow %lld", handler->function, (long long) handler->id));
	BeginInternalSubTransaction(NULL);
	settings = NewGUCNestLevel();
	handler_time_begin();
	PG_TRY();
	{
		result = call(handler) ? HANDLER_DONE : HANDLER_GONE;
		AtEOXact_GUC(false, settings);
		MemoryContextSwitchTo(context);
		if (result == HANDLER_DONE)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		explain_time(*error);
		handler_time_begin();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		result = HANDLER_FAILED;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return result;
}

/* What is remembered of an error. */
char *
handler_error_text(ErrorData *error)
{
	StringInfoData text;
	int			length;

	explain_time(error);
	initStringInfo(&text);
	appendStringInfoString(&text, error->message != NULL ? error->message : "");
	if (error->detail != NULL)
		appendStringInfo(&text, "; %s", error->detail);
	if (error->context != NULL)
		appendStringInfo(&text, "; %s", error->context);
	length = pg_mbcliplen(text.data, text.len, ERROR_BYTES);
	text.data[length] = '\0';
	return text.data;
}
