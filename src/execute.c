/*-------------------------------------------------------------------------
 *
 * execute.c
 *	  SQL functions that call the platform now: execute_flow, check_server;
 *	  and out_params, which reads an answer.
 *
 * Each runs one call in a memory context of its own, below the caller's, so
 * that an error anywhere takes everything with it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/execute.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "call.h"
#include "compat.h"
#include "guc.h"
#include "request.h"
#include "stats.h"

PG_FUNCTION_INFO_V1(feishu_execute_flow);
PG_FUNCTION_INFO_V1(feishu_check_server);
PG_FUNCTION_INFO_V1(feishu_out_params);

/* Positions of execute_flow's arguments behind those of request.h. */
#define ARG_SERVER			7
#define ARG_TIMEOUT			8
#define ARG_RAISE_ERROR		9

/* A call ends itself at its deadline; look so often if it is late. */
#define LATE_LOOK_MS		10

/* Shown in pg_stat_activity while a call is under way, on 17 and later. */
static uint32
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
				 errhint("Write it like interval '30 s'.")));
	return (int) Min(ms, INT_MAX);
}

/* The limits of a call: argument (or -1), server option, setting. */
static FlowLimits
call_limits(const FlowServer *server, int timeout_ms)
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
	return limits;
}

/* Run one call to its end. */
static FlowCall *
call_run(MemoryContext context, FlowServer *server, const FlowRequest *request,
		 const FlowLimits *limits)
{
	FlowCall   *call = flow_call_start(context, server, request, limits, NULL, NULL);
	FlowCall   *ended;
	TimestampTz until = limits->deadline;

	while ((ended = flow_calls_next_done()) != call)
	{
		/* a call of an outer level of this backend cannot be under way */
		Assert(ended == NULL);
		flow_calls_turn(until, call_wait_event());
		if (GetCurrentTimestamp() >= until)
			until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LATE_LOOK_MS);
	}
	return call;
}

/* Run one start of a flow to its end, and count it. */
static const FlowOutcome *
call_run_flow(MemoryContext context, FlowServer *server, const FlowRequest *request,
			  const FlowLimits *limits)
{
	const FlowOutcome *outcome;
	instr_time	start;
	instr_time	duration;

	INSTR_TIME_SET_CURRENT(start);
	outcome = flow_call_outcome(call_run(context, server, request, limits));
	INSTR_TIME_SET_CURRENT(duration);
	INSTR_TIME_SUBTRACT(duration, start);
	stats_count_call(server->serverid, request->namespace_name, request->flow_id,
					 outcome, false, INSTR_TIME_GET_MICROSEC(duration));
	return outcome;
}

/* Second half of the primary message, in the user's language. */
static char *
outcome_message(const FlowOutcome *outcome)
{
	const char *reason = _(outcome->reason);

	if (outcome->timeout_ms > 0)
		reason = psprintf(reason, outcome->timeout_ms);
	if (outcome->for_token)
		return psprintf(_("could not obtain an access token: %s"), reason);
	return pstrdup(reason);
}

/* DETAIL: all that helps support to find the request; no secrets. */
static char *
outcome_detail(const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;
	StringInfoData detail;

	initStringInfo(&detail);
	if (outcome->held_back)
	{
		appendStringInfo(&detail, _("No request was sent to \"%s\"."), outcome->url);
		if (outcome->reset_seconds >= 0)
			appendStringInfo(&detail, _(" It could be sent after %.3f s."),
							 outcome->reset_seconds);
		return detail.data;
	}
	if (response == NULL)
	{
		if (outcome->phase != NULL)
			appendStringInfo(&detail, _("The request to \"%s\" ended while %s"),
							 outcome->url, _(outcome->phase));
		else
			appendStringInfo(&detail, _("The request to \"%s\" failed"), outcome->url);
		if (outcome->error != NULL)
			appendStringInfo(&detail, ": %s", outcome->error);
		appendStringInfoChar(&detail, '.');
		if (outcome->http_status != 0)
			appendStringInfo(&detail, _(" HTTP status %d."), outcome->http_status);
		if (outcome->log_id != NULL)
			appendStringInfo(&detail, _(" Log id %s."), outcome->log_id);
		return detail.data;
	}

	appendStringInfo(&detail, _("HTTP status %d"), outcome->http_status);
	if (response->has_code)
		appendStringInfo(&detail, _(", code %lld"), (long long) response->code);
	if (response->inner_code != NULL)
		appendStringInfo(&detail, _(", inner code %s"), response->inner_code);
	if (outcome->log_id != NULL)
		appendStringInfo(&detail, _(", log id %s"), outcome->log_id);
	if (response->execution_id != NULL)
		appendStringInfo(&detail, _(", execution id %s"), response->execution_id);
	if (outcome->reset_seconds >= 0)
		appendStringInfo(&detail, _(", to be tried again after %g s"), outcome->reset_seconds);
	if (outcome->location != NULL)
		appendStringInfo(&detail, _(", location %s"), outcome->location);
	if (response->excerpt[0] != '\0')
		appendStringInfo(&detail, _(", answer: %s"), response->excerpt);
	else if (response->message != NULL)
		appendStringInfo(&detail, _(", message: %s"), response->message);
	else
		appendStringInfoChar(&detail, '.');
	return detail.data;
}

/*
 * The answer as jsonb in the current memory context, or NULL.  Of a token
 * request's answer, which may hold more than is good to show, only code and
 * message.
 */
static Jsonb *
outcome_answer(const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;
	Jsonb	   *answer;

	if (response == NULL)
		return NULL;
	if (outcome->for_token && response->has_code)
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

/* HINT: what to do, and where the platform says more; or NULL. */
static char *
outcome_hint(const FlowOutcome *outcome)
{
	const char *helps = outcome->response ? outcome->response->helps : NULL;

	if (outcome->hint != NULL && helps != NULL)
		return psprintf(_("%s See %s"), _(outcome->hint), helps);
	if (helps != NULL)
		return psprintf(_("See %s"), helps);
	return outcome->hint ? pstrdup(_(outcome->hint)) : NULL;
}

/*
 * execute_flow(namespace, flow_id, operator, params, is_async, idempotent_key,
 * loop_masks, server, timeout, raise_error): call now, return the answer.
 */
Datum
feishu_execute_flow(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	FlowServer *server;
	FlowRequest *request;
	FlowLimits	limits;
	const FlowOutcome *outcome;
	int			timeout_ms = -1;
	bool		raise_error = PG_ARGISNULL(ARG_RAISE_ERROR) || PG_GETARG_BOOL(ARG_RAISE_ERROR);
	Jsonb	   *answer;

	context = AllocSetContextCreate(caller, "feishu_flow execute_flow",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	if (!PG_ARGISNULL(ARG_TIMEOUT))
		timeout_ms = interval_to_ms(PG_GETARG_INTERVAL_P(ARG_TIMEOUT));
	server = server_lookup(PG_ARGISNULL(ARG_SERVER) ? NULL :
								   NameStr(*PG_GETARG_NAME(ARG_SERVER)),
								   GetUserId());
	request = request_from_arguments(fcinfo, server->operator_json);
	limits = call_limits(server, timeout_ms);

	outcome = call_run_flow(context, server, request, &limits);

	MemoryContextSwitchTo(caller);
	answer = outcome_answer(outcome);
	if (outcome->sqlstate != 0 && (raise_error || answer == NULL))
	{
		int			sqlstate = outcome->sqlstate;
		char	   *message = psprintf(_("could not execute flow \"%s/%s\": %s"),
									   request->namespace_name, request->flow_id,
									   outcome_message(outcome));
		char	   *detail = outcome_detail(outcome);
		char	   *hint = outcome_hint(outcome);

		message = codec_for_client(message);
		detail = codec_for_client(detail);
		hint = hint ? codec_for_client(hint) : NULL;

		/* free all that the call holds before the error is on its way */
		MemoryContextDelete(context);
		ereport(ERROR,
				(errcode(sqlstate),
				 errmsg_internal("%s", message),
				 errdetail_internal("%s", detail),
				 hint ? errhint("%s", hint) : 0));
	}
	MemoryContextDelete(context);
	PG_RETURN_JSONB_P(answer);
}

/*
 * check_server(server): obtain a token and say what is wrong; one row
 * (token_ok, http_status, code, latency, message, hint).
 */
Datum
feishu_check_server(PG_FUNCTION_ARGS)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	TupleDesc	tupdesc;
	FlowServer *server;
	FlowLimits	limits;
	const FlowOutcome *outcome;
	Datum		values[6] = {0};
	bool		nulls[6] = {false};
	Interval   *latency;
	char	   *hint;
	HeapTuple	tuple;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	context = AllocSetContextCreate(caller, "feishu_flow check_server",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	server = server_lookup(PG_ARGISNULL(0) ? NULL : NameStr(*PG_GETARG_NAME(0)),
								   GetUserId());
	limits = call_limits(server, -1);
	outcome = flow_call_outcome(call_run(context, server, NULL, &limits));

	latency = palloc0(sizeof(Interval));
	latency->time = outcome->duration_us;
	hint = outcome->sqlstate != 0 ? outcome_hint(outcome) : NULL;

	values[0] = BoolGetDatum(outcome->sqlstate == 0);
	nulls[0] = outcome->sqlstate == 0 && server->protocol == TOKEN_FIXED;
	values[1] = Int32GetDatum(outcome->http_status);
	nulls[1] = outcome->http_status == 0;
	if (outcome->sqlstate == 0)
		nulls[2] = server->protocol == TOKEN_FIXED; /* else 0 */
	else if (outcome->response != NULL && outcome->response->has_code)
		values[2] = Int64GetDatum(outcome->response->code);
	else
		nulls[2] = true;
	values[3] = IntervalPGetDatum(latency);
	if (outcome->sqlstate != 0)
		values[4] = CStringGetTextDatum(psprintf("%s. %s",
												 outcome_message(outcome),
												 outcome_detail(outcome)));
	else if (server->protocol == TOKEN_FIXED)
		values[4] = CStringGetTextDatum(_("The platform answers. The user mapping's tenant_access_token is used as it is; only a call can tell whether the platform accepts it."));
	else
		values[4] = CStringGetTextDatum(_("An access token was obtained."));
	if (hint != NULL)
		values[5] = CStringGetTextDatum(hint);
	else
		nulls[5] = true;

	MemoryContextSwitchTo(caller);
	tuple = heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls);
	MemoryContextDelete(context);
	PG_RETURN_DATUM(HeapTupleGetDatum(tuple));
}

/* out_params(response): data.out_params as one object, NULL without any. */
Datum
feishu_out_params(PG_FUNCTION_ARGS)
{
	Jsonb	   *out_params = codec_out_params(PG_GETARG_JSONB_P(0));

	if (out_params == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(out_params);
}
