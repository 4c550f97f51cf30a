/*-------------------------------------------------------------------------
 *
 * src/api/execute_flow.c
 *	  SQL functions that call the platform now: execute_flow; and out_params,
 *	  which reads an answer.
 *
 * All that a call has under way is in the memory of a CallScope, which is gone
 * when the function that made the call is left, in whatever way.  That memory
 * is not the caller's: a function, a cursor or an aborted transaction may keep
 * its own long after the call's end.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "api/arguments.h"
#include "api/execute.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "call/call.h"
#include "call/report.h"
#include "call/stats.h"

PG_FUNCTION_INFO_V1(feishu_execute_flow);
PG_FUNCTION_INFO_V1(feishu_out_params);

/* Positions of execute_flow's arguments behind those of arguments.h. */
#define ARG_SERVER			7
#define ARG_TIMEOUT			8
#define ARG_RAISE_ERROR		9

/* A call ends itself at its deadline; look so often if it is late. */
#define LATE_LOOK_MS		10

/* Parent of the memory of all scopes. */
static MemoryContext scopes = NULL;


/* ---------- Scopes ---------- */

/* At the exit of a process, which leaves no function in an orderly way. */
static void
scopes_on_exit(int code, Datum arg)
{
	MemoryContextSwitchTo(TopMemoryContext);
	MemoryContextDeleteChildren(scopes);
}

/*
 * The parent for memory of calls that outlive the function that makes them.  Who
 * makes it deletes it; the exit of the process does at the latest.
 */
MemoryContext
call_memory_parent(void)
{
	if (scopes == NULL)
	{
		scopes = AllocSetContextCreate(TopMemoryContext, "feishu_flow calls",
									   ALLOCSET_SMALL_SIZES);
		before_shmem_exit(scopes_on_exit, (Datum) 0);
	}
	return scopes;
}

/*
 * Do something that makes calls: they live as long as that.
 *
 * Run work, with the scope's memory as the current one.  What is to be left of it is to
 * be put into the memory of scope->caller, but for an error it throws.
 */
void
call_scope_run(CallScopeWork work, void *arg)
{
	CallScope	scope;

	scope.caller = CurrentMemoryContext;
	scope.context = AllocSetContextCreate(call_memory_parent(), "feishu_flow call scope",
										  ALLOCSET_DEFAULT_SIZES);
	PG_TRY();
	{
		MemoryContextSwitchTo(scope.context);
		work(&scope, arg);
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(scope.caller);
		MemoryContextDelete(scope.context);
	}
	PG_END_TRY();
}


/* ---------- Calls ---------- */

/* Shown in pg_stat_activity while a call is under way, on 17 and later. */
uint32
call_wait_event(void)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = feishu_wait_event_new("FeishuFlowCall");
	return wait_event;
}

/*
 * The timeout argument in ms.  Months count 30 days and days 24 hours, as in
 * EXTRACT(EPOCH).
 */
static int
interval_to_ms(const Interval *interval)
{
	double		ms;

	if (INTERVAL_NOT_FINITE(interval))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"timeout\" must be finite"),
				 errhint("Write it like interval '30 s'.")));
	ms = interval->time / 1000.0 +
		(interval->day + interval->month * (double) DAYS_PER_MONTH) * (SECS_PER_DAY * 1000.0);
	if (!(ms >= 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"timeout\" must be at least one millisecond"),
				 errdetail("It was read as the interval %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out,
															   IntervalPGetDatum(interval)))),
				 errhint("Write it like interval '30 s'; a number without a unit is seconds.")));
	return (int) Min(ms, INT_MAX);
}

/* The limits of a call: argument (or -1), server option, setting. */
FlowLimits
execute_limits(const FlowServer *server, int timeout_ms)
{
	FlowLimits	limits;

	if (timeout_ms < 0)
		timeout_ms = server->timeout_ms;
	if (timeout_ms < 0)
		timeout_ms = feishu_guc_timeout;
	limits.timeout_ms = timeout_ms;
	limits.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	limits.connect_timeout_ms = server->connect_timeout_ms >= 0 ?
		server->connect_timeout_ms : feishu_guc_connect_timeout;
	limits.max_response = (size_t) feishu_guc_max_response_size * 1024;
	limits.share = NULL;
	return limits;
}

/* Mark the owners of all calls of the session that have ended by now. */
void
execute_take_ended(void)
{
	FlowCall   *call;

	while ((call = flow_calls_next_done()) != NULL)
		((CallWaiter *) flow_call_owner(call))->has_ended = true;
}

/*
 * Run one call (request as in flow_call_start) to its end.  started, unless NULL, is
 * set to it while it is under way.
 */
FlowCall *
execute_call(const CallScope *scope, FlowServer *server, const FlowRequest *request,
			 const FlowLimits *limits, FlowCall **started)
{
	CallWaiter *waiter = MemoryContextAllocZero(scope->context, sizeof(CallWaiter));
	FlowCall   *call = flow_call_start(scope->context, server, request, limits, NULL, waiter);
	TimestampTz until = limits->deadline;

	if (started != NULL)
		*started = call;
	for (int turn = 0;; turn++)
	{
		/* others may be under way: the rows of an execute_flows further out */
		execute_take_ended();
		if (waiter->has_ended)
			return call;
		if (turn > 0 && GetCurrentTimestamp() >= until)
			until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LATE_LOOK_MS);
		flow_calls_turn(until, call_wait_event());
	}
}

/* A call that is interrupted, for the error. */
typedef struct InterruptedCall
{
	const char *flow;			/* its name */
	FlowCall   *call;			/* NULL: not yet begun */
	bool		has_answer;
} InterruptedCall;

static void
call_error_callback(void *arg)
{
	const InterruptedCall *context = arg;

	if (context->has_answer)
		errcontext("call of flow \"%s\", which the platform has answered", context->flow);
	else if (context->call != NULL && flow_call_is_sent(context->call))
		errcontext("call of flow \"%s\", which may have started", context->flow);
	else
		errcontext("call of flow \"%s\", which has not started", context->flow);
}

/* Run one start of a flow to its end, and count it. */
static const FlowOutcome *
call_run_flow(const CallScope *scope, FlowServer *server, const FlowRequest *request,
			  const FlowLimits *limits)
{
	const FlowOutcome *outcome;
	InterruptedCall context = {0};
	ErrorContextCallback callback;
	instr_time	start;
	instr_time	duration;

	context.flow = wire_for_client(psprintf("%s/%s", request->namespace_name,
											 request->flow_id));
	callback.callback = call_error_callback;
	callback.arg = &context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	INSTR_TIME_SET_CURRENT(start);
	outcome = flow_call_outcome(execute_call(scope, server, request, limits, &context.call));
	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, start);
	stats_count_call(server->serverid, request->namespace_name, request->flow_id,
					 outcome, false, INSTR_TIME_GET_MICROSEC(duration));
	/* what came while the answer was read is not for the next statement */
	context.has_answer = outcome->response != NULL && outcome->request_sent;
	if (!outcome->request_sent)
		context.call = NULL;
	CHECK_FOR_INTERRUPTS();
	error_context_stack = callback.previous;
	return outcome;
}

/*
 * The answer as jsonb in the current memory context, or NULL if there is none that says by
 * its code what became of the flow.  Without a code, there is no answer to give: a failure
 * must not look like a success to who reads it.  Of a token request's answer, which may
 * hold more than is good to show, only code and message.
 */
Jsonb *
execute_answer(const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;
	Jsonb	   *answer;

	if (response == NULL)
		return NULL;
	if (outcome->sqlstate != 0 &&
		(!response->has_code || (response->code == 0 && response->inner_code == NULL)))
		return NULL;
	if (outcome->for_token)
	{
		StringInfoData json;

		initStringInfo(&json);
		appendStringInfo(&json, "{\"code\": " INT64_FORMAT ", \"msg\": ", response->code);
		escape_json(&json, response->message ? response->message : "");
		appendStringInfoChar(&json, '}');
		return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
	}
	if (response->body == NULL)
		return NULL;
	answer = palloc(VARSIZE(response->body));
	memcpy(answer, response->body, VARSIZE(response->body));
	return answer;
}

/*
 * Read namespace ... loop_masks, server, timeout.  Throws, before anything is sent,
 * what is wrong with them; nothing is held then that wants cleaning up.
 */
void
execute_read_arguments(FunctionCallInfo fcinfo, ExecuteArguments *arguments)
{
	arguments->timeout_ms = PG_ARGISNULL(ARG_TIMEOUT) ? -1 :
		interval_to_ms(PG_GETARG_INTERVAL_P(ARG_TIMEOUT));
	arguments->server = server_lookup(PG_ARGISNULL(ARG_SERVER) ? NULL :
									  NameStr(*PG_GETARG_NAME(ARG_SERVER)),
									  GetUserId());
	arguments->request = arguments_read(fcinfo, arguments->server->operator_json);
}

/* What execute_flow is given, and what it gives. */
typedef struct ExecuteFlow
{
	FunctionCallInfo fcinfo;
	Jsonb	   *answer;
} ExecuteFlow;

/* execute_flow, in its scope. */
static void
execute_flow(const CallScope *scope, void *arg)
{
	ExecuteFlow *execute = arg;
	FunctionCallInfo fcinfo = execute->fcinfo;
	ExecuteArguments arguments;
	FlowLimits	limits;
	const FlowOutcome *outcome;
	bool		raise_error = PG_ARGISNULL(ARG_RAISE_ERROR) || PG_GETARG_BOOL(ARG_RAISE_ERROR);

	execute_read_arguments(fcinfo, &arguments);
	limits = execute_limits(arguments.server, arguments.timeout_ms);

	outcome = call_run_flow(scope, arguments.server, arguments.request, &limits);

	if (outcome->sqlstate == 0 || !raise_error)
	{
		MemoryContextSwitchTo(scope->caller);
		execute->answer = execute_answer(outcome);
		MemoryContextSwitchTo(scope->context);
	}
	if (outcome->sqlstate != 0 && execute->answer == NULL)
	{
		FlowReport	report = report_failure(outcome, arguments.request);

		ereport(ERROR,
				(errcode(report.sqlstate),
				 errmsg_internal("%s", wire_for_client(report.message)),
				 errdetail_internal("%s", wire_for_client(report.detail)),
				 report.hint ? errhint("%s", wire_for_client(report.hint)) : 0));
	}
}

/*
 * execute_flow(namespace, flow_id, operator, params, is_async, idempotent_key,
 * loop_masks, server, timeout, raise_error): call now, return the answer.
 */
Datum
feishu_execute_flow(PG_FUNCTION_ARGS)
{
	ExecuteFlow execute = {.fcinfo = fcinfo};

	call_scope_run(execute_flow, &execute);
	PG_RETURN_JSONB_P(execute.answer);
}

/* out_params(response): data.out_params as one object, NULL without any. */
Datum
feishu_out_params(PG_FUNCTION_ARGS)
{
	Jsonb	   *out_params = wire_out_params(PG_GETARG_JSONB_P(0));

	if (out_params == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(out_params);
}
