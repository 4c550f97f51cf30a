/*-------------------------------------------------------------------------
 *
 * src/api/batch.c
 *	  Many calls of one statement, whose results are asked for in turn.
 *
 * A batch has a list of rows in the order of the window.  The first is the one whose
 * result is asked for next; those behind it were read ahead: their calls are under way,
 * or were answered before their turn.  How many are under way is bounded by
 * feishu_flow.max_concurrent_calls, and how much was answered by BATCH_AHEAD_BYTES.
 *
 * A call begins when the one before it has been sent: one that waits for its token, or
 * for max_rate, keeps the others back.  So each waits as a call of execute_flow after
 * the other would, and its timeout does not run while it stands in line.
 *
 * A platform that does not answer has a breaker here, for the shared one holds back
 * dispatch alone: after BATCH_TROUBLES calls in a row without an answer none begins
 * until those under way have ended.  Unless one of them is answered, the rest is not
 * sent.
 *
 * How it ends is in batch_end.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "api/batch_internal.h"
#include "base/guc.h"
#include "base/nls.h"
#include "call/outcome.h"
#include "call/report.h"
#include "call/stats.h"

/* Answers ahead of their turn: beyond, no further call begins. */
#define BATCH_AHEAD_BYTES	(8 * 1024 * 1024)

/* What a row takes besides its result. */
#define BATCH_ROW_BYTES		256

/* Calls in a row without an answer that stop a batch, as with the breaker. */
#define BATCH_TROUBLES		5

/* When the results in turn are there, look so often at what else has come. */
#define BATCH_LOOK_MS		1

/* Calls end themselves at their deadlines; look so often if one is late. */
#define BATCH_LATE_MS		100

/* Columns of feishu.flow_result. */
enum
{
	RESULT_RESPONSE,
	RESULT_SQLSTATE,
	RESULT_ERROR,
	RESULT_DETAIL,
	RESULT_HINT,
	RESULT_COLUMNS
};


/* ---------- Results ---------- */

/*
 * The row is done: keep its result alone.  To be called in the row's memory; leaves
 * another as the current one.
 */
static void
row_finish(CallBatch *batch, BatchRow *row, Jsonb *response, const FlowReport *report)
{
	Datum		values[RESULT_COLUMNS] = {0};
	bool		nulls[RESULT_COLUMNS];
	HeapTuple	tuple;

	memset(nulls, true, sizeof(nulls));
#define SET_TEXT(column, text) \
	if ((text) != NULL) \
		values[column] = CStringGetTextDatum(text), nulls[column] = false

	if (response != NULL)
	{
		values[RESULT_RESPONSE] = JsonbPGetDatum(response);
		nulls[RESULT_RESPONSE] = false;
	}
	if (report != NULL)
	{
		SET_TEXT(RESULT_SQLSTATE, unpack_sql_state(report->sqlstate));
		SET_TEXT(RESULT_ERROR, report->message);
		SET_TEXT(RESULT_DETAIL, report->detail);
		SET_TEXT(RESULT_HINT, report->hint);
	}
	tuple = heap_form_tuple(batch->columns, values, nulls);
	row->result = MemoryContextAlloc(batch->context, tuple->t_len);
	memcpy(row->result, tuple->t_data, tuple->t_len);
	batch->ahead_bytes += tuple->t_len + BATCH_ROW_BYTES;
	MemoryContextSwitchTo(batch->context);
	MemoryContextDelete(row->context);
	row->context = NULL;
}

/* The row ends by an outcome, in its memory. */
static void
row_finish_outcome(CallBatch *batch, BatchRow *row, const FlowOutcome *outcome)
{
	FlowReport	report;

	if (outcome->sqlstate != 0)
		report = report_failure(outcome, row->arguments.request);
	row_finish(batch, row, execute_answer(outcome), outcome->sqlstate != 0 ? &report : NULL);
}

/* What an outcome says of the platform. */
static void
app_note_outcome(BatchApp *app, const FlowOutcome *outcome, TokenProtocol protocol)
{
	switch (outcome_report(outcome, protocol))
	{
		case LIMITER_REPORT_NOTHING:
			break;
		case LIMITER_REPORT_TROUBLE:
			/* neither is its fault */
			if (outcome->trouble == HTTP_TROUBLE_LOCAL || outcome->trouble == HTTP_TROUBLE_REFUSED)
				break;
			/* the others would have waited for the same token */
			app->troubles += outcome->for_token && outcome->sqlstate == ERRCODE_FEISHU_TIMEOUT ?
				BATCH_TROUBLES : 1;
			break;
		default:
			if (!outcome->held_back)
				app->troubles = 0;
			break;
	}
}

/* The row's call has ended. */
static void
row_take_outcome(CallBatch *batch, BatchRow *row)
{
	const FlowOutcome *outcome = flow_call_outcome(row->call);
	const ExecuteArguments *arguments = &row->arguments;
	MemoryContext old_context = MemoryContextSwitchTo(row->context);
	instr_time	duration;

	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, row->begun_at);
	dlist_delete(&row->flying);
	batch->num_under_way--;
	row->app->under_way--;
	if (batch->begun == row)
		batch->begun = NULL;

	app_note_outcome(row->app, outcome, arguments->server->protocol);
	stats_count_call(arguments->server->serverid, arguments->request->namespace_name,
					 arguments->request->flow_id, outcome, false,
					 INSTR_TIME_GET_MICROSEC(duration));
	row_finish_outcome(batch, row, outcome);
	MemoryContextSwitchTo(old_context);
}

/* Take what has ended by now. */
static void
batch_take_ended(CallBatch *batch)
{
	dlist_mutable_iter iter;

	execute_take_ended();
	dlist_foreach_modify(iter, &batch->under_way)
	{
		BatchRow   *row = dlist_container(BatchRow, flying, iter.cur);

		if (row->waiter.has_ended)
			row_take_outcome(batch, row);
	}
}


/* ---------- Beginnings ---------- */

/*
 * Do something with a row, in its memory.  Errors of some kinds are its result; true if
 * there was none.  They are caught without a subtransaction, so there may be nothing to clean
 * up where they are thrown.
 */
static bool
row_try(CallBatch *batch, BatchRow *row, void (*step) (CallBatch *batch, BatchRow *row, void *arg),
		void *arg, bool (*is_result) (const ErrorData *error))
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	ErrorData  *volatile caught = NULL;

	PG_TRY();
	{
		step(batch, row, arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(row->context);
		caught = CopyErrorData();
		if (!is_result(caught))
			PG_RE_THROW();
		FlushErrorState();
		InterruptHoldoffCount = holdoff;	/* the error has let them through */
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	if (caught != NULL)
	{
		FlowReport	report = {
			.sqlstate = caught->sqlerrcode, .message = caught->message,
			.detail = caught->detail, .hint = caught->hint
		};

		row_finish(batch, row, NULL, &report);
	}
	return caught == NULL;
}

/* Is it what we say of wrong arguments, or what a conversion does? */
static bool
is_about_arguments(const ErrorData *error)
{
	return (error->domain != NULL && strcmp(error->domain, TEXTDOMAIN) == 0 &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_OPERATOR_INTERVENTION) ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION;
}

/* Is this process, or its host, short of something? */
static bool
is_about_resources(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES;
}

/* See row_try. */
static void
row_check(CallBatch *batch, BatchRow *row, void *arg)
{
	execute_read_arguments(arg, &row->arguments);
}

/* See row_try. */
static void
row_start(CallBatch *batch, BatchRow *row, void *arg)
{
	const FlowLimits *limits = arg;

	row->call = flow_call_start(row->context, row->arguments.server, row->arguments.request,
								limits, NULL, row);
	flow_call_set_batched(row->call);
}

/* The app that a row calls. */
static BatchApp *
batch_find_app(CallBatch *batch, const FlowServer *server)
{
	dlist_iter	iter;
	BatchApp   *app;

	dlist_foreach(iter, &batch->apps)
	{
		app = dlist_container(BatchApp, node, iter.cur);
		if (app->userid == server->userid &&
			memcmp(&app->key, &server->app_key, sizeof(AppKey)) == 0)
			return app;
	}
	app = MemoryContextAllocZero(batch->context, sizeof(BatchApp));
	app->key = server->app_key;
	app->userid = server->userid;
	dlist_push_head(&batch->apps, &app->node);
	return app;
}

/* Read the next row; false: there is none.  It may be done by what it says. */
static bool
batch_read_row(CallBatch *batch, BatchSource source, void *arg)
{
	LOCAL_FCINFO(fcinfo, EXECUTE_NUM_ARGUMENTS);
	MemoryContext context = AllocSetContextCreate(batch->context, "feishu_flow row",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	BatchRow   *row;

	InitFunctionCallInfoData(*fcinfo, NULL, EXECUTE_NUM_ARGUMENTS, InvalidOid, NULL, NULL);
	if (!source(arg, fcinfo))
	{
		MemoryContextSwitchTo(old_context);
		MemoryContextDelete(context);
		batch->at_end = true;
		return false;
	}
	row = MemoryContextAllocZero(batch->context, sizeof(BatchRow));
	row->context = context;
	dlist_push_tail(&batch->rows, &row->node);
	batch->num_rows++;
	if (row_try(batch, row, row_check, fcinfo, is_about_arguments))
	{
		row->app = batch_find_app(batch, row->arguments.server);
		batch->unbegun = row;
	}
	MemoryContextSwitchTo(old_context);
	return true;
}

/* Does the platform not answer, as far as it is known by now? */
static bool
app_is_silent(BatchApp *app)
{
	LimiterStatus status;

	if (app->troubles == 0)
		return false;
	return app->troubles >= BATCH_TROUBLES ||
		(limiter_status(&app->key, app->userid, &status) &&
		 (status.pause == LIMITER_BREAKER || status.pause == LIMITER_ROLE_BREAKER));
}

/* Begin the call of the row that was read; false: it has to wait for others. */
static bool
batch_begin_row(CallBatch *batch)
{
	BatchRow   *row = batch->unbegun;
	BatchApp   *app = row->app;
	MemoryContext old_context;
	FlowLimits	limits;

	if (!app->given_up && app_is_silent(app))
	{
		if (app->under_way > 0)
			return false;
		app->given_up = true;
	}

	batch->unbegun = NULL;
	old_context = MemoryContextSwitchTo(row->context);
	if (app->given_up)
	{
		FlowOutcome outcome = {.url = row->arguments.server->base_url};

		outcome_give_up_on_platform(&outcome);
		row_finish_outcome(batch, row, &outcome);
		MemoryContextSwitchTo(old_context);
		return true;
	}
	http_loop_expect(http_loop_get(), feishu_guc_max_concurrent_calls);
	limits = execute_limits(row->arguments.server, row->arguments.timeout_ms);
	row->deadline = limits.deadline;
	INSTR_TIME_SET_CURRENT(row->begun_at);
	if (row_try(batch, row, row_start, &limits, is_about_resources))
	{
		dlist_push_tail(&batch->under_way, &row->flying);
		batch->num_under_way++;
		app->under_way++;
		batch->begun = row;
	}
	MemoryContextSwitchTo(old_context);
	return true;
}

static bool
row_is_done(const BatchRow *row)
{
	return row->result != NULL;
}

/* The row in turn, or NULL if it was not read yet. */
static BatchRow *
batch_first_row(CallBatch *batch)
{
	return dlist_is_empty(&batch->rows) ? NULL :
		dlist_head_element(BatchRow, node, &batch->rows);
}

/* May one more be read, and its call begin? */
static bool
batch_has_room(CallBatch *batch)
{
	int			most = feishu_guc_max_concurrent_calls;
	BatchRow   *first = batch_first_row(batch);

	if (batch->num_under_way >= most ||
		(batch->begun != NULL && flow_call_is_waiting(batch->begun->call)))
		return false;
	if (first != NULL && row_is_done(first))
	{
		/* the query may need no more: go no further ahead than need be */
		if (batch->num_rows >= most || batch->is_settled)
			return false;
	}
	else if (batch->ahead_bytes >= BATCH_AHEAD_BYTES && first != NULL)
		return false;
	return batch->num_under_way == 0 || http_loop_room(http_loop_get()) > 0;
}

/* Read and begin as much as may be. */
static void
batch_begin_more(CallBatch *batch, BatchSource source, void *arg)
{
	while (batch_has_room(batch))
	{
		CHECK_FOR_INTERRUPTS();
		if (batch->unbegun == NULL &&
			(batch->at_end || !batch_read_row(batch, source, arg)))
			return;
		batch->is_settled = false;
		if (batch->unbegun != NULL && !batch_begin_row(batch))
			return;
	}
}


/* ---------- Turns ---------- */

/* Error context callback: how many flows may have started of which nothing is known. */
static void
batch_error_context(void *arg)
{
	CallBatch  *batch = arg;
	dlist_iter	iter;
	int			num_sent = 0;

	if (batch->context == NULL)
		return;
	dlist_foreach(iter, &batch->under_way)
		num_sent += flow_call_is_sent(dlist_container(BatchRow, flying, iter.cur)->call);
	if (num_sent > 0)
		errcontext("flows of feishu.execute_flows that are under way, and may have started: %d", num_sent);
}

/* Wait for something to happen to a call, if there is any, until then at most. */
static void
batch_turn(CallBatch *batch, TimestampTz until)
{
	flow_calls_turn(until, call_wait_event());
	batch_take_ended(batch);
	batch->looked_at = GetCurrentTimestamp();
}

/* Wait for one of the calls under way to end, or to be sent. */
static void
batch_wait(CallBatch *batch)
{
	BatchRow   *oldest = dlist_head_element(BatchRow, flying, &batch->under_way);
	TimestampTz now = GetCurrentTimestamp();

	batch_turn(batch, oldest->deadline > now ? oldest->deadline :
			   TimestampTzPlusMilliseconds(now, BATCH_LATE_MS));
}

/* Wait until the row in turn is done. */
static BatchRow *
batch_run(CallBatch *batch, BatchSource source, void *arg)
{
	for (;;)
	{
		BatchRow   *row;

		batch_take_ended(batch);
		batch_begin_more(batch, source, arg);
		row = batch_first_row(batch);
		if (row == NULL)
			elog(ERROR, "no more rows in the partition");
		if (!row_is_done(row))
			batch_wait(batch);
		else
		{
			if (batch->num_under_way > 0 &&
				TimestampDifferenceExceeds(batch->looked_at, GetCurrentTimestamp(), BATCH_LOOK_MS))
				batch_turn(batch, GetCurrentTimestamp());
			return row;
		}
	}
}

/*
 * The result of the next row in turn, in the current memory context.  Reads ahead in
 * source.  When it throws, nothing of the batch is under way any more.
 */
Datum
batch_next(CallBatch *batch, BatchSource source, void *arg)
{
	MemoryContext old_context = CurrentMemoryContext;
	ErrorContextCallback error_context = {
		.previous = error_context_stack, .callback = batch_error_context, .arg = batch
	};
	BatchRow   *row = NULL;
	HeapTupleHeader result;
	Size		size;

	if (batch->context == NULL)
		elog(ERROR, "the calls of this query were given up");
	batch->subid = GetCurrentSubTransactionId();
	PG_TRY();
	{
		error_context_stack = &error_context;
		row = batch_run(batch, source, arg);
		error_context_stack = error_context.previous;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old_context);
		batch_give_up(batch);
		PG_RE_THROW();
	}
	PG_END_TRY();

	size = HeapTupleHeaderGetDatumLength(row->result);
	result = palloc(size);
	memcpy(result, row->result, size);
	dlist_delete(&row->node);
	batch->num_rows--;
	batch->ahead_bytes -= size + BATCH_ROW_BYTES;
	pfree(row->result);
	pfree(row);
	return HeapTupleHeaderGetDatum(result);
}

/* Wait until nothing is under way any more */
void
batch_wait_all(CallBatch *batch)
{
	ErrorContextCallback error_context = {
		.previous = error_context_stack, .callback = batch_error_context, .arg = batch
	};

	error_context_stack = &error_context;
	while (batch->num_under_way > 0)
		batch_wait(batch);
	error_context_stack = error_context.previous;
}

/*
 * A batch with nothing under way yet.  It is in the executor's memory "owner", by which
 * it is known to which query it belongs, and is over when that is reset.  rows are the
 * type of the results, and have to live as long.
 */
CallBatch *
batch_create(MemoryContext owner, TupleDesc rows)
{
	CallBatch  *batch = MemoryContextAllocZero(owner, sizeof(CallBatch));

	batch->owner = owner;
	batch->columns = rows;
	dlist_init(&batch->apps);
	dlist_init(&batch->rows);
	dlist_init(&batch->under_way);
	batch_enlist(batch);
	return batch;
}
