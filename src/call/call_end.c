/*-------------------------------------------------------------------------
 *
 * src/call/call_end.c
 *	  How a flow call ends: its outcome, and what the limiter is told.
 *
 * Each way to end a call completes the outcome, gives the place back with a report
 * for the limiter, and puts the call on the list of those that have ended.  It
 * stays there, with all its memory, until flow_calls_next_done hands it out or the
 * memory is reset.  Nothing here starts a request or frees a call.
 *
 * What a peer sent is kept in the outcome as answer_mask_text leaves it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "app/token.h"
#include "app/token_fetch.h"
#include "base/guc.h"
#include "call/call_internal.h"
#include "call/outcome.h"

/*
 * A call that began to refresh the token, besides, waits for that at its end, but not
 * for longer.  A token request takes well below a second.
 */
#define CALL_LINGER_MS	1000

static dlist_head done = DLIST_STATIC_INIT(done);

/* Bytes of answers read, of calls that are not freed yet. */
static int64 held_bytes = 0;
#define HELD_MOST			(8 * 1024 * 1024)

/* Nothing of the call is under way any more. */
void
call_end(FlowCall *call)
{
	call->state = CALL_DONE;
	call_list(call, &done);
}

/* The call has ended; its outcome is complete. */
static void
call_finish(FlowCall *call, LimiterReport report)
{
	const FlowOutcome *outcome = &call->outcome;

	limiter_release(call->server, &call->place, report, outcome->reset_seconds,
					outcome->timeout_ms == 0 ? outcome->reason : "no answer in time");
	if (call->refresh == NULL)
		call_end(call);
	else
	{
		call->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CALL_LINGER_MS);
		call_wait(call, CALL_LINGERING);
	}
}

/* What of ours a peer may echo. */
MaskSecrets
call_secrets(const FlowCall *call)
{
	return (MaskSecrets)
	{
		{
			call->lease.token, call->server->fixed_token, call->server->app_secret
		}
	};
}

/* The outcome of an answer. */
static void
outcome_of_response(FlowCall *call, FlowResponse *response)
{
	FlowOutcome *outcome = &call->outcome;

	answer_break_phrases(response);
	outcome->response = response;
	if (response->body != NULL && call->limits.share != NULL)
	{
		call_forget_held(call);
		call->held = VARSIZE(response->body);
		held_bytes += call->held;
	}
	outcome->action = response->action;
	outcome->sqlstate = response->sqlstate;
	outcome->reason = response->reason;
	outcome->hint = response->hint;
	if (outcome->log_id == NULL)
		outcome->log_id = response->log_id;
}

/*
 * Did the caller give the platform less time than others do?  Anybody can have calls
 * end without an answer that way, which says nothing of the platform.
 */
static bool
was_hurried(const FlowCall *call, const HttpResult *result)
{
	const FlowServer *server = call->server;
	int			usual_ms;

	if (call->dispatching || result->outcome != HTTP_TIMEOUT)
		return false;
	if (result->connect_expired)
	{
		usual_ms = server->connect_timeout_ms >= 0 ?
			server->connect_timeout_ms : DEFAULT_CONNECT_TIMEOUT_MS;
		return call->limits.connect_timeout_ms < usual_ms;
	}
	usual_ms = server->timeout_ms >= 0 ? server->timeout_ms : DEFAULT_TIMEOUT_MS;

	/* of its time, it may have waited for a place or for its token */
	return call->limits.timeout_ms < usual_ms ||
		result->duration_us / 1000 < usual_ms / 2;
}

/*
 * End the call by what became of a transfer: its own, or (is_shared) another
 * one's token request.
 */
void
call_finish_transfer(FlowCall *call, const HttpResult *result, bool for_token,
					 bool is_shared, FlowResponse *response)
{
	FlowOutcome *outcome = &call->outcome;
	MaskSecrets secrets = call_secrets(call);
	LimiterReport report;

	outcome->for_token = for_token;
	outcome->url = for_token ? call->server->token_url : call->server->base_url;
	outcome_take_result(outcome, result);
	answer_mask_text(&secrets, outcome->location);
	answer_mask_text(&secrets, outcome->log_id);
	if (response != NULL)
		outcome_of_response(call, response);
	else
		outcome_of_trouble(outcome, call->server, &call->limits, result);

	/* what a session has a sandbox answer is not for the flows of others */
	if (call->check_only || (call->server->is_sandbox && !call->dispatching))
		report = LIMITER_REPORT_NOTHING;
	else
		report = outcome_report(outcome, call->server->protocol);

	/* what this process is short of says nothing of the platform */
	if (outcome->trouble == HTTP_TROUBLE_LOCAL)
		report = LIMITER_REPORT_NOTHING;

	if (report == LIMITER_REPORT_TROUBLE && was_hurried(call, result))
		report = LIMITER_REPORT_NOTHING;

	/*
	 * Whose trouble it was has reported it, and a peer that gives a request back is
	 * there: some do so whenever they end a connection.  But a probe has to tell its
	 * own.
	 */
	if ((is_shared || outcome->trouble == HTTP_TROUBLE_REFUSED) &&
		report == LIMITER_REPORT_TROUBLE && call->place.probe == LIMITER_NO_PROBE)
		report = LIMITER_REPORT_NOTHING;
	call_finish(call, report);
}

/* End the call because another one's token request failed. */
void
call_finish_shared_failure(FlowCall *call, const TokenFailure *failure)
{
	HttpResult	result = {0};
	FlowResponse *response = NULL;

	result.outcome = failure->outcome;
	result.trouble = failure->trouble;
	result.http_status = failure->http_status;
	result.reset_seconds = -1;
	result.cause = failure->cause;
	if (failure->outcome == HTTP_ANSWERED)
		response = token_failure_response(call->server, failure);
	call_finish_transfer(call, &result, true, true, response);
}

/* End the call because it has no place in time, or may not use it any more. */
void
call_finish_held_back(FlowCall *call)
{
	outcome_hold_back(&call->outcome, call->held_by, call->retry_at);
	call_finish(call, LIMITER_REPORT_NOTHING);
}

/* End the call because its time is up while another one fetches the token. */
void
call_finish_late(FlowCall *call)
{
	HttpResult	result = {0};

	result.outcome = HTTP_TIMEOUT;
	result.phase = gettext_noop("waiting for the token request of another session");
	result.reset_seconds = -1;
	call_finish_transfer(call, &result, true, true, NULL);
}

/*
 * End a dispatched or batched call because this process is short of something for its
 * next step: that is no reason to end all that it has under way.  To be called while
 * the error is handled; allocates nothing.  Other errors, and those of calls whose
 * session is told of them, are thrown again.  They may come up in what another call
 * waits for: so a batched one has ended by them all the same.
 */
void
call_finish_short(FlowCall *call)
{
	const HttpResult result = {
		.outcome = HTTP_NO_CONNECTION, .trouble = HTTP_TROUBLE_LOCAL
	};

	bool		is_short = ERRCODE_TO_CATEGORY(geterrcode()) == ERRCODE_INSUFFICIENT_RESOURCES;

	if (!call->batched && !(call->dispatching && is_short))
		PG_RE_THROW();
	if (is_short)
		FlushErrorState();
	token_cache_abandon(&call->lease);
	call->outcome.response = NULL;
	outcome_of_trouble(&call->outcome, call->server, &call->limits, &result);
	call_finish(call, LIMITER_REPORT_NOTHING);
	if (!is_short)
		PG_RE_THROW();
}

/*
 * A check's request has ended.  What the platform does not answer, or not in its
 * own words, says nothing of the app: this API may not be there.
 */
void
call_finish_check(FlowCall *call, const HttpResult *result)
{
	FlowCheck  *check = call->outcome.check;
	bool		is_fixed = call->server->protocol == TOKEN_FIXED;
	FlowResponse *response = NULL;
	MaskSecrets secrets = call_secrets(call);
	LimiterReport report;

	if (result->outcome == HTTP_ANSWERED)
		response = answer_read(&secrets, result);
	if (is_fixed && (response == NULL ||
					 (response->has_code && response->action == FLOW_REFRESH_TOKEN)))
	{
		call->outcome.check = NULL;
		call_finish_transfer(call, result, false, false, response);
		return;
	}
	if (is_fixed)
	{
		call->outcome.http_status = result->http_status;
		call->outcome.duration_us = result->duration_us;
		outcome_check_clock(check, result);
	}
	if (response != NULL && response->has_code)
	{
		answer_break_phrases(response);
		check->scopes = response;
		check->scopes_status = result->http_status;
	}
	if (response != NULL && response->has_code && result->http_status < 500)
		report = is_fixed && response->sqlstate != 0 ?
			LIMITER_REPORT_NOTHING : LIMITER_REPORT_REACHED;
	else
		report = is_fixed ? LIMITER_REPORT_NOTHING : LIMITER_REPORT_TOKEN;
	call_finish(call, report);
}

void
call_forget_held(FlowCall *call)
{
	held_bytes -= call->held;
	call->held = 0;
}

/* A call that has ended will not be freed soon: others do not wait for that. */
void
flow_call_set_aside(FlowCall *call)
{
	call_forget_held(call);
}

/*
 * Answers of so many bytes are in the memory of calls that have ended that no more
 * heavy ones are read before some of these calls are freed.  In a process whose calls
 * have shares of memory.
 */
bool
flow_calls_are_full(void)
{
	return held_bytes >= HELD_MOST;
}

/* Is there one for flow_calls_next_done? */
bool
call_any_done(void)
{
	return !dlist_is_empty(&done);
}

/* The next call that has ended and was not handed out, or NULL. */
FlowCall *
flow_calls_next_done(void)
{
	FlowCall   *call;

	if (dlist_is_empty(&done))
		return NULL;
	call = dlist_container(FlowCall, node, dlist_pop_head_node(&done));
	call->listed = false;
	return call;
}
