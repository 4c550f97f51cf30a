/*-------------------------------------------------------------------------
 *
 * src/call/call.c
 *	  Flow calls as state machines on the process's HTTP loop.
 *
 *				 +-- CALL_WAITING <-+   somebody else fetches the token
 *				 v					|
 *	  start -> try_token ---------->+-> CALL_FETCHING   we do
 *				 | ^								|
 *	  have token | |						        | fetched
 *				 v |								|
 *			 try_place <----------------------------+
 *				 | ^
 *				 | +--> CALL_LIMITED   no place among the app's calls
 *				 v
 *			   CALL_SENDING -> try_token once more, if the token was refused
 *				 |
 *				 +--> CALL_LINGERING   refreshes the token, besides
 *				 v			|
 *			   CALL_DONE <--+
 *
 * Nothing here waits: a token request and the call itself are transfers on
 * one loop, and a call that waits for another process's token request or for
 * a place is looked at again each time the latch is set.  So one process can
 * drive one call or hundreds.
 *
 * Who finds the token due has it refreshed.  A dispatcher does that itself, by a
 * request that outlives the call; a session asks it to (token_ask.c).  Where there
 * is none (a standby, feishu_flow.dispatch off), the request is part of the call,
 * whose end waits for it a little: it is not to be left to a session that may be
 * idle from then on, or gone.  Only a cache that is the session's own is nobody
 * else's loss: there the request lives on, and its answer is read when the session
 * calls again.
 *
 * A call of a sandbox begins with its end: see sandbox.c.
 *
 * A call's memory context owns all that it has under way.  Resetting it at any
 * moment gives the transfers up, hands the duty to fetch a token on, gives the
 * place back, and wipes the secrets.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/token.h"
#include "app/token_fetch.h"
#include "base/wakeup.h"
#include "call/call_internal.h"
#include "call/clocks.h"
#include "call/outcome.h"
#include "launcher/launcher.h"

static dlist_head waiting = DLIST_STATIC_INIT(waiting);
static bool send_no_more = false;	/* calls that are dispatched */

static void call_on_end(TransferListener *listener, HttpTransfer *transfer);
static void call_try_token(FlowCall *call);
static void call_try_place(FlowCall *call);


/* ---------- Steps ---------- */

/* Do a step in the call's memory.  It may end the call, but not free it. */
static void
call_step(FlowCall *call, void (*step) (FlowCall *call, const void *arg), const void *arg)
{
	MemoryContext old_context = MemoryContextSwitchTo(call->context);
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		step(call, arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old_context);
		call_finish_short(call);
		InterruptHoldoffCount = holdoff;	/* the error has let them through */
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
}

/* Wait until somebody else has done something, or call->retry_at */
void
call_wait(FlowCall *call, CallState state)
{
	call->state = state;
	/* keep the place of one that waits already: see flow_calls_turn */
	if (!call->listed)
		call_list(call, &waiting);
}

/* Send the execute request (or, to check, a GET). */
static void
call_send(FlowCall *call, const char *token)
{
	HttpRequest request = {0};

	call->place.used = true;
	request.url = call->url;
	request.bearer = token;
	if (!call->check_only)
	{
		request.content_type = "application/json; charset=utf-8";
		request.body = call->body.data;
		request.body_len = call->body.len;
	}
	request.proxy = call->server->proxy;
	request.ca_file = call->server->ca_file;
	request.headers = FEISHU_HEADERS;
	request.version = call->server->http_version;
	request.deadline = call->limits.deadline;
	request.connect_timeout_ms = call->limits.connect_timeout_ms;
	request.max_response = call->limits.max_response;
	request.share = call->limits.share;
	call->transfer = http_transfer_start(http_loop_get(), call->context,
										 &request, &call->listener);
	call->state = CALL_SENDING;
}

/* Take a place among the app's calls, and send when there is one. */
static void
call_try_place(FlowCall *call)
{
	/* while we waited for the token */
	if (limiter_is_stale(&call->place))
		limiter_abandon(&call->place);
	if (!call->place.taken)
	{
		TimestampTz try_at = call->state == CALL_LIMITED &&
			call->held_by == LIMITER_QUOTA ? call->retry_at : DT_NOEND;

		if (limiter_acquire(call->server, call->dispatching, &call->place,
							&call->retry_at, &call->held_by) == LIMITER_WAIT)
		{
			/*
			 * No room in time; or the quota is still used up, as somebody
			 * else found out while we waited to try it.
			 */
			if ((call->retry_at > call->limits.deadline && !TIMESTAMP_IS_NOEND(call->retry_at)) ||
				(call->held_by == LIMITER_QUOTA && call->retry_at > try_at))
				call_finish_held_back(call);
			else
				call_wait(call, CALL_LIMITED);
			return;
		}
	}
	call_list(call, NULL);
	call_send(call, call->server->protocol == TOKEN_FIXED ?
			  call->server->fixed_token : call->lease.token);
}

/* The token that is checked was had, or came from the user mapping. */
static void
call_begin_check(FlowCall *call)
{
	call->outcome.action = FLOW_SUCCEEDED;
	call->outcome.check = palloc0(sizeof(FlowCheck));
}

/* What became of a token request of ours: see FetchEnded. */
typedef struct FetchEnd
{
	const TokenLease *lease;
	const HttpResult *result;
} FetchEnd;

/*
 * A token request of ours has ended.  The token is taken as it came and not
 * from the cache, where it need not be (no room, no lifetime).
 */
static void
call_take_token(FlowCall *call, const void *arg)
{
	const FetchEnd *end = arg;
	const HttpResult *result = end->result;

	if (end->lease == NULL)
	{
		FlowResponse *response = NULL;

		if (result->outcome == HTTP_ANSWERED)
		{
			MaskSecrets secrets = call_secrets(call);

			response = wire_read_token_answer(call->server->protocol == TOKEN_OAUTH,
											  result->http_status, result->body,
											  result->body_len, &secrets);
		}
		call_finish_transfer(call, result, true, false, response);
		return;
	}
	token_lease_take(&call->lease, end->lease);
	if (!call->check_only)
	{
		call_try_place(call);
		return;
	}
	call_begin_check(call);
	call->outcome.http_status = result->http_status;
	call->outcome.duration_us = result->duration_us;
	outcome_check_clock(call->outcome.check, result);
	call_send(call, call->lease.token);
}

static void
call_on_token(void *arg, const TokenLease *lease, const HttpResult *result)
{
	FetchEnd	end = {.lease = lease, .result = result};

	if (result == NULL)
		call_finish_short(arg);
	else
		call_step(arg, call_take_token, &end);
}

/*
 * If the token was refused, see that nobody uses it again, and return true if
 * the call should try with another: once.  The platform may well give the
 * same token again; then it is a while until another is asked for.
 */
static bool
call_replace_token(FlowCall *call, const FlowResponse *response)
{
	if (response->action != FLOW_REFRESH_TOKEN ||
		call->server->protocol == TOKEN_FIXED || call->server->is_sandbox)
		return false;
	/* one that others had accepted may well be accepted at the next go */
	if (token_cache_evict(&call->lease) == TOKEN_REFUSED_AGAIN || call->refreshed)
		return false;
	call->refreshed = true;
	return true;
}

/* The request was one of the app's, and so is the next: it needs a place of its own. */
static void
call_renew_place(FlowCall *call)
{
	limiter_release(call->server, &call->place, LIMITER_REPORT_REFUSED, -1, NULL);
}

/* The execute request has ended. */
static void
call_take_answer(FlowCall *call, const void *arg)
{
	const HttpResult *result = arg;
	FlowResponse *response = NULL;
	MaskSecrets secrets = call_secrets(call);

	if (result->outcome == HTTP_ANSWERED && !call->server->is_sandbox)
		clocks_note(call->server->serverid, result);
	if (call->check_only)
	{
		call_finish_check(call, result);
		return;
	}
	call->outcome.request_sent = result->request_sent;
	if (result->outcome == HTTP_ANSWERED)
		response = call->dispatching || call->batched ?
			answer_read_or_fail(&secrets, result) : answer_read(&secrets, result);
	if (response != NULL && call_replace_token(call, response))
	{
		call->outcome.request_sent = false;
		call_renew_place(call);
		call_try_token(call);
		return;
	}
	if (response != NULL && response->has_code &&
		(response->action == FLOW_SUCCEEDED || response->action == FLOW_KEY_USED ||
		 response->action == FLOW_FAIL))
		token_cache_prove(&call->lease);
	call_finish_transfer(call, result, false, false, response);
}

/* The answer that there would be, without a token and a transfer. */
static void
call_answer_inside(FlowCall *call)
{
	HttpResult	result;

	Assert(!call->check_only);
	call->place.used = true;
	sandbox_answer(call->server, call->limits.max_response, &result);
	call_take_answer(call, &result);
}

static void
call_on_end(TransferListener *listener, HttpTransfer *transfer)
{
	call_step((FlowCall *) listener, call_take_answer, http_transfer_result(transfer));
	http_transfer_free(transfer);
}

/* The refresh has ended, in whatever way.  See FetchEnded. */
static void
call_on_refresh(void *arg, const TokenLease *lease, const HttpResult *result)
{
	FlowCall   *call = arg;

	call->refresh = NULL;
	if (call->state == CALL_LINGERING)
		call_end(call);
}

/* The token is due, and the call has the duty to see to it, or to have it seen to. */
static void
call_refresh_token(FlowCall *call)
{
	int			connect_timeout_ms = call->limits.connect_timeout_ms;

	if (call->dispatching || !token_cache_is_shared())
		(void) token_refresh_start(TopMemoryContext, call->server, &call->lease,
								   connect_timeout_ms, NULL, NULL);
	else if (!call->lease.asked_in_vain && launcher_has_dispatcher())
	{
		TokenAsked	asked = {
			.database = MyDatabaseId,
			.serverid = call->server->serverid,
			.userid = call->server->userid
		};
		DispatchNotice notice = DISPATCH_NO_NOTICE;

		token_ask_dispatcher(&call->lease, &asked);
		notice.tokens = true;
		launcher_notify(&notice);
	}
	else if (call->refresh == NULL)
		call->refresh = token_refresh_start(call->context, call->server, &call->lease,
											connect_timeout_ms, call_on_refresh, call);
	else
		token_cache_abandon(&call->lease);
}

/* Get a token, or arrange to, and send when there is one. */
static void
call_try_token(FlowCall *call)
{
	TokenFailure failure;
	TokenState	state;

	if (send_no_more && call->dispatching)
	{
		call_finish_held_back(call);
		return;
	}
	state = token_cache_acquire(&call->lease, call->limits.deadline, &failure);
	if (state == TOKEN_READY_REFRESH)
		call_refresh_token(call);
	switch (state)
	{
		case TOKEN_READY:
		case TOKEN_READY_REFRESH:
			call_try_place(call);
			break;
		case TOKEN_FETCH:
			call_list(call, NULL);
			call->state = CALL_FETCHING;
			token_fetch_start(call->context, call->server, &call->lease,
							  call->limits.deadline, call->limits.connect_timeout_ms,
							  call_on_token, call);
			break;
		case TOKEN_WAIT:
			call->retry_at = call->lease.retry_at;
			call_wait(call, CALL_WAITING);
			break;
		case TOKEN_FAILED:
			call_finish_shared_failure(call, &failure);
			break;
	}
}

/* From the beginning: token, place, request. */
static void
call_start_steps(FlowCall *call)
{
	if (call->server->protocol == TOKEN_FIXED)
		call_try_place(call);
	else
		call_try_token(call);
}

/*
 * Look again at a call that waits for another one's token request or for a
 * place.  In the latter case its token may have been replaced meanwhile.  Or at one
 * that waits for a refresh, and may have done so long enough.
 */
static void
call_look_again(FlowCall *call, const void *arg)
{
	if (call->state == CALL_LINGERING)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= call->retry_at || now >= call->limits.deadline)
		{
			TokenFetch *refresh = call->refresh;

			call->refresh = NULL;
			token_refresh_give_up(refresh);
			call_end(call);
		}
	}
	else if (GetCurrentTimestamp() < call->limits.deadline)
		call_start_steps(call);
	else if (call->state == CALL_LIMITED)
		call_finish_held_back(call);
	else
		call_finish_late(call);
}

/* ---------- Calls ---------- */

/*
 * Reset callback of the call's memory context.  The transfer and the fetch
 * have callbacks of their own.
 */
static void
call_on_reset(void *arg)
{
	FlowCall   *call = arg;

	call_list(call, NULL);
	call_forget_held(call);
	limiter_abandon(&call->place);
	token_cache_abandon(&call->lease);
	token_lease_wipe(&call->lease);
	server_forget_secrets(call->server);
}

/* The first steps of a new call. */
static void
call_begin(FlowCall *call, const FlowRequest *request)
{
	FlowServer *server = call->server;

	if (request != NULL)
	{
		call->url = wire_execute_url(server->base_url, request);
		initStringInfo(&call->body);
		wire_write_request(request, &call->body);
	}
	else
		call->url = wire_scopes_url(server->base_url);

	if (server->is_sandbox)
		call_answer_inside(call);
	else if (!call->check_only)
		call_start_steps(call);
	else if (server->protocol == TOKEN_FIXED)
	{
		call_begin_check(call);
		call_send(call, server->fixed_token);
	}
	else
	{
		call->state = CALL_FETCHING;
		token_cache_bypass(&call->lease);
		token_fetch_start(call->context, server, &call->lease, call->limits.deadline,
						  call->limits.connect_timeout_ms, call_on_token, call);
	}
}

/*
 * Requests are written and answers read, and converted to and from UTF-8, in a
 * transaction if the database's encoding is another: conversions are looked up
 * in the catalogs.  The dispatcher has none open while it waits.  Returns the
 * caller's memory context, for end_converting, or NULL without a transaction.
 */
static MemoryContext
begin_converting(void)
{
	MemoryContext context = CurrentMemoryContext;
	int			encoding = GetDatabaseEncoding();

	if (IsTransactionState() || encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return NULL;
	StartTransactionCommand();
	return context;
}

static void
end_converting(MemoryContext context)
{
	if (context == NULL)
		return;
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* Tell of the transfers that have ended, of those that are heavy to read one. */
static void
calls_take_ended(HttpLoop *loop)
{
	HttpTransfer *transfer;
	bool		heavy = false;

	while (!heavy && (transfer = http_loop_next_done(loop, &heavy)) != NULL)
	{
		TransferListener *listener = http_transfer_owner(transfer);
		MemoryContext context = begin_converting();

		listener->on_end(listener, transfer);
		end_converting(context);
	}
}

/* Take the answer to a refresh that came while the session was idle. */
static void
calls_catch_up(void)
{
	HttpLoop   *loop = http_loop_get();

	http_loop_catch_up(loop);
	calls_take_ended(loop);
}

/*
 * Start a call.  Its memory is a child of parent, and so is everything that
 * has to be given up with it.  server and request must outlive it; server's
 * secrets are wiped when it goes.  Needs a transaction.  When it throws, nothing
 * of the call is left, and the place is given back.
 *
 * place is one that the caller got from limiter_acquire; it passes to the call
 * (and is zeroed), and is given back when the call ends or goes.  With NULL the
 * call asks for one itself and waits for it as long as its deadline
 * allows; else it ends with LK429 and held_back.
 *
 * With a NULL request the call is a check: it obtains a token, past the cache
 * and the limiter, and asks what the app may do.  It succeeds when a token was
 * had (a fixed one: when the platform answers and does not refuse it).  A sandbox
 * has none.
 */
FlowCall *
flow_call_start(MemoryContext parent, FlowServer *server,
				const FlowRequest *request, const FlowLimits *limits,
				LimiterPlace *place, void *owner)
{
	MemoryContext context;
	MemoryContext old_context;
	FlowCall   *call;

	if (place == NULL && !token_cache_is_shared())
		calls_catch_up();
	context = AllocSetContextCreate(parent, "feishu_flow call", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	call = palloc0(sizeof(FlowCall));
	token_lease_init(&call->lease, &server->app_key, server->payer, context);
	call->listener.on_end = call_on_end;
	call->context = context;
	call->owner = owner;
	call->server = server;
	call->limits = *limits;
	call->check_only = request == NULL;
	call->dispatching = place != NULL;
	call->outcome.reset_seconds = -1;
	call->outcome.url = server->base_url;
	call->callback.func = call_on_reset;
	call->callback.arg = call;
	if (place != NULL)
	{
		call->place = *place;
		memset(place, 0, sizeof(LimiterPlace));
	}
	MemoryContextRegisterResetCallback(context, &call->callback);

	PG_TRY();
	{
		call_begin(call, request);
	}
	PG_CATCH();
	{
		/* its place is not to wait until the parent goes */
		MemoryContextSwitchTo(old_context);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
	return call;
}

/*
 * The call is one of many of its session, as those of a dispatcher are: when this
 * process is short of something for its next step, that ends this call alone.
 */
void
flow_call_set_batched(FlowCall *call)
{
	call->batched = true;
}

/* Has its request yet to be sent, for want of a token or of a place? */
bool
flow_call_is_waiting(const FlowCall *call)
{
	return call->state == CALL_WAITING || call->state == CALL_FETCHING ||
		call->state == CALL_LIMITED;
}

/*
 * From now on a call that got its place from its caller asks for no token, also
 * not for another one: it ends as held back.  For a process that is about to end.
 */
void
flow_calls_send_no_more(void)
{
	send_no_more = true;
}

/* May the platform have received the flow?  Also true of any call that has ended. */
bool
flow_call_is_sent(const FlowCall *call)
{
	return call->state == CALL_DONE || call->state == CALL_LINGERING ||
		(call->state == CALL_SENDING && http_transfer_is_sent(call->transfer));
}

const FlowOutcome *
flow_call_outcome(const FlowCall *call)
{
	return &call->outcome;
}

void *
flow_call_owner(const FlowCall *call)
{
	return call->owner;
}

void
flow_call_free(FlowCall *call)
{
	MemoryContextDelete(call->context);
}

/*
 * One turn for all calls of the process: returns when one has ended, the
 * latch was set, or at "until".  Handles interrupts.  Places of the process
 * that wait (limiter_acquire) have the latch set when to ask again is worth
 * while.
 */
void
flow_calls_turn(TimestampTz until, uint32 wait_event)
{
	HttpLoop   *loop = http_loop_get();
	dlist_mutable_iter iter;

	if (!dlist_is_empty(&waiting))
	{
		MemoryContext context = begin_converting();

		wakeup_look();
		dlist_foreach_modify(iter, &waiting)
		{
			FlowCall   *call = dlist_container(FlowCall, node, iter.cur);

			call_step(call, call_look_again, NULL);
			if (call->state == CALL_WAITING || call->state == CALL_LIMITED ||
				call->state == CALL_LINGERING)
				until = Min(until, Min(call->limits.deadline, call->retry_at));
		}
		end_converting(context);
	}
	if (call_any_done())
		return;

	/* nothing may come between this and the wait: see wakeup.c */
	if (!dlist_is_empty(&waiting) || limiter_is_waiting())
		wakeup_wait_begin();
	else
		wakeup_wait_end();
	http_loop_hold_heavy(loop, flow_calls_are_full());
	http_loop_turn(loop, until, wait_event);
	calls_take_ended(loop);
}
