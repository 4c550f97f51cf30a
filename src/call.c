/*-------------------------------------------------------------------------
 *
 * call.c
 *	  Flow calls as state machines on the process's HTTP loop.
 *
 *				 +-- CALL_WAITING <-+   somebody else fetches the token
 *				 v					|
 *	  start -> try_token ---------->+-> CALL_FETCHING   we do
 *				 | ^								|
 *	  have token | | token refused, for the		    | fetched
 *				 v | first time					    v
 *			   CALL_SENDING <-----------------------+
 *				 |
 *				 v
 *			   CALL_DONE
 *
 * Nothing here waits: a token request and the call itself are transfers on
 * one loop, and a call that waits for another process's token request is
 * looked at again each time the latch is set.  So one process can drive one
 * call or hundreds.
 *
 * A call's memory context owns all that it has under way.  Resetting it at any
 * moment gives the transfers up, hands the duty to fetch a token on, and wipes
 * the secrets.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "call.h"
#include "fetch.h"
#include "token.h"

typedef enum CallState
{
	CALL_WAITING,				/* for another one's token request; in waiting */
	CALL_FETCHING,				/* a token */
	CALL_SENDING,				/* the execute request */
	CALL_DONE					/* in done, until handed out */
} CallState;

struct FlowCall
{
	TransferListener listener;	/* must be first */
	MemoryContext context;
	void	   *owner;
	FlowServer *server;
	FlowLimits	limits;
	bool		check_only;		/* obtain a token, send nothing */
	char	   *url;
	StringInfoData body;
	CallState	state;
	bool		refreshed;		/* a refused token was replaced already */
	HttpTransfer *transfer;		/* with CALL_SENDING */
	FlowOutcome outcome;
	dlist_node	node;			/* in waiting or done */
	bool		listed;
	MemoryContextCallback callback;
	TokenLease	lease;			/* must be last: see flow_call_start */
};

static dlist_head waiting = DLIST_STATIC_INIT(waiting);
static dlist_head done = DLIST_STATIC_INIT(done);

static void call_on_end(TransferListener *listener, HttpTransfer *transfer);
static void call_try_token(FlowCall *call);


/* ---------- Ends ---------- */

/* Advice for a transfer that brought no answer. */
static const char *
transport_hint(const FlowServer *server, const HttpResult *result,
			   bool may_have_started)
{
	if (result->connect_expired)
		return gettext_noop("Check the server's base_url, token_url and proxy, or raise its connect_timeout option or feishu_flow.connect_timeout.");
	if (result->outcome == HTTP_TIMEOUT)
		return may_have_started ?
			gettext_noop("The flow may have started: try again only with the same idempotent_key. If it needs longer, raise the timeout argument, the server's timeout option or feishu_flow.timeout, or start it with is_async => true.") :
			gettext_noop("Raise the timeout argument, the server's timeout option or feishu_flow.timeout.");
	if (result->outcome == HTTP_TOO_LARGE)
		return may_have_started ?
			gettext_noop("The flow may have started: try again only with the same idempotent_key. Raise feishu_flow.max_response_size, or let the flow return less.") :
			gettext_noop("Check the server's token_url.");

	switch (result->trouble)
	{
		case HTTP_TROUBLE_DNS:
			return gettext_noop("Check the host name in the server's base_url and token_url, and the name service of the database host.");
		case HTTP_TROUBLE_PROXY:
			return gettext_noop("Check the server's proxy option.");
		case HTTP_TROUBLE_CONNECT:
			if (server->proxy != NULL)
				return gettext_noop("Check the server's proxy option, and whether the database host may connect to the proxy.");
			return gettext_noop("Check the server's base_url and token_url, and whether the database host may connect to them or needs the server's proxy option.");
		case HTTP_TROUBLE_CERTIFICATE:
			return gettext_noop("Check that base_url names the host as the certificate does, and that the certificate is current; set the server's ca_file option to the PEM file of a private CA.");
		case HTTP_TROUBLE_CA_FILE:
			return gettext_noop("Check that the server's ca_file option names a PEM file that the database server's operating-system user can read.");
		case HTTP_TROUBLE_TLS:
			return gettext_noop("Check that base_url leads to a server that speaks TLS 1.2 or later, and not to a proxy or an http port.");
		case HTTP_TROUBLE_LOCAL:
			return gettext_noop("The database host ran short of memory or file descriptors.");
		default:
			return may_have_started ?
				gettext_noop("The flow may have started: try again only with the same idempotent_key.") :
				gettext_noop("Try again later; if it goes on, check the server's base_url, token_url and proxy.");
	}
}

/* Put the call on a list, or on none. */
static void
call_list(FlowCall *call, dlist_head *list)
{
	if (call->listed)
		dlist_delete(&call->node);
	call->listed = list != NULL;
	if (list != NULL)
		dlist_push_tail(list, &call->node);
}

/* The call has ended; its outcome is complete. */
static void
call_finish(FlowCall *call)
{
	call->state = CALL_DONE;
	call_list(call, &done);
}

/* A beginning of a secret so long is hidden, too, where text was cut. */
#define SECRET_PREFIX_LENGTH	6

/*
 * How many bytes at text spell the secret, as it is, JSON-escaped or
 * percent-encoded; 0: they do not.  Text that ends within the secret counts
 * when enough of it is there.
 */
static size_t
match_secret(const char *text, const char *secret)
{
	const char *t = text;
	const char *s = secret;

	for (; *s != '\0'; s++)
	{
		unsigned int c;

		if (*t == '\0' || strcmp(t, "...") == 0)
			return s - secret >= SECRET_PREFIX_LENGTH ? t - text : 0;
		if (*t == *s && !(t[0] == '\\' && t[1] == '\\'))
			t++;
		else if (t[0] == '\\' && t[1] == *s)
			t += 2;
		else if (t[0] == '%' && sscanf(t + 1, "%2x", &c) == 1 && c == (unsigned char) *s)
			t += 3;
		else
			return 0;
	}
	return t - text;
}

/* Overwrite a secret in text of the peer. */
static void
mask_secret(char *text, const char *secret)
{
	if (text == NULL || secret == NULL || secret[0] == '\0')
		return;
	while (*text != '\0')
	{
		size_t		len = match_secret(text, secret);

		if (len > 0)
			memset(text, '*', len);
		text += Max(len, 1);
	}
}

/* Overwrite our secrets in text of the peer: it may echo what it was sent. */
static void
mask_secrets(FlowCall *call, char *text)
{
	mask_secret(text, call->lease.token);
	mask_secret(text, call->server->fixed_token);
	mask_secret(text, call->server->app_secret);
}

/* The outcome of an answer. */
static void
outcome_of_response(FlowCall *call, FlowResponse *response)
{
	FlowOutcome *outcome = &call->outcome;

	if (response->sqlstate != 0)
	{
		mask_secrets(call, response->excerpt);
		mask_secrets(call, response->message);
		mask_secrets(call, response->inner_message);
		mask_secrets(call, response->inner_code);
		mask_secrets(call, response->helps);
		mask_secrets(call, response->log_id);
	}

	outcome->response = response;
	outcome->action = response->action;
	outcome->sqlstate = response->sqlstate;
	outcome->reason = response->reason;
	outcome->hint = response->hint;
	if (outcome->log_id == NULL)
		outcome->log_id = response->log_id;
}

/* The outcome of a transfer that brought no usable HTTP response. */
static void
outcome_of_trouble(FlowCall *call, const HttpResult *result)
{
	FlowOutcome *outcome = &call->outcome;

	outcome->action = FLOW_RETRY;
	outcome->hint = transport_hint(call->server, result,
								   outcome->request_sent && !outcome->for_token);
	outcome->phase = result->phase;
	if (result->error[0] != '\0')
		outcome->error = codec_printable(result->error, strlen(result->error),
										 HTTP_ERROR_SIZE);
	switch (result->outcome)
	{
		case HTTP_TIMEOUT:
			outcome->sqlstate = ERRCODE_FEISHU_TIMEOUT;
			outcome->timeout_ms = result->connect_expired ?
				call->limits.connect_timeout_ms : call->limits.timeout_ms;
			outcome->reason = result->connect_expired ?
				gettext_noop("no connection within %d ms") :
				gettext_noop("no answer within %d ms");
			break;
		case HTTP_TOO_LARGE:
			outcome->sqlstate = ERRCODE_FEISHU_BAD_ANSWER;
			outcome->reason = gettext_noop("the answer is too large");
			break;
		case HTTP_BAD_ANSWER:
			outcome->sqlstate = ERRCODE_FEISHU_BAD_ANSWER;
			outcome->reason = gettext_noop("the answer was cut off or is not HTTP");
			break;
		default:
			outcome->sqlstate = ERRCODE_FEISHU_NO_CONNECTION;
			outcome->reason = result->trouble == HTTP_TROUBLE_RESET ?
				gettext_noop("the connection was lost before an answer came") :
				gettext_noop("could not connect");
			break;
	}
}

/* End the call by what became of a transfer. */
static void
call_finish_transfer(FlowCall *call, const HttpResult *result, bool for_token,
					 FlowResponse *response)
{
	FlowOutcome *outcome = &call->outcome;

	outcome->for_token = for_token;
	outcome->url = for_token ? call->server->token_url : call->server->base_url;
	outcome->http_status = result->http_status;
	outcome->reset_seconds = result->reset_seconds;
	if (result->location[0] != '\0')
		outcome->location = codec_printable(result->location, strlen(result->location),
											HTTP_HEADER_SIZE);
	outcome->duration_us = result->duration_us;
	if (result->log_id[0] != '\0')
		outcome->log_id = codec_printable(result->log_id, strlen(result->log_id),
										  HTTP_HEADER_SIZE);
	mask_secrets(call, outcome->location);
	mask_secrets(call, outcome->log_id);
	if (response != NULL)
		outcome_of_response(call, response);
	else
		outcome_of_trouble(call, result);
	mask_secrets(call, outcome->error);
	call_finish(call);
}

/* End the call because another one's token request failed. */
static void
call_finish_shared_failure(FlowCall *call, const TokenFailure *failure)
{
	HttpResult	result = {0};
	FlowResponse *response = NULL;

	result.outcome = failure->outcome;
	result.trouble = failure->trouble;
	result.http_status = failure->http_status;
	result.reset_seconds = -1;
	strlcpy(result.error, failure->error, sizeof(result.error));
	if (failure->outcome == HTTP_ANSWERED)
		response = token_failure_response(call->server, failure);
	call_finish_transfer(call, &result, true, response);
}

/* End the call because its time is up while another one fetches the token. */
static void
call_finish_late(FlowCall *call)
{
	HttpResult	result = {0};

	result.outcome = HTTP_TIMEOUT;
	result.phase = gettext_noop("waiting for the token request of another session");
	result.reset_seconds = -1;
	call_finish_transfer(call, &result, true, NULL);
}


/* ---------- Steps ---------- */

/* Send the execute request (or, to check a fixed token's server, a GET). */
static void
call_send(FlowCall *call, const char *token)
{
	HttpRequest request = {0};

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
	request.deadline = call->limits.deadline;
	request.connect_timeout_ms = call->limits.connect_timeout_ms;
	request.max_response = call->limits.max_response;
	call->transfer = http_transfer_start(http_loop_get(), call->context,
										 &request, &call->listener);
	call->state = CALL_SENDING;
}

/* End a check that went well. */
static void
call_finish_check(FlowCall *call, const HttpResult *result)
{
	call->outcome.action = FLOW_SUCCEEDED;
	call->outcome.http_status = result->http_status;
	call->outcome.duration_us = result->duration_us;
	call_finish(call);
}

/*
 * A token request of ours has ended.  The token is taken as it came and not
 * from the cache, where it need not be (no room, no lifetime).
 */
static void
call_on_token(void *arg, const TokenLease *lease, const HttpResult *result)
{
	FlowCall   *call = arg;
	MemoryContext old_context = MemoryContextSwitchTo(call->context);

	if (lease == NULL)
	{
		FlowResponse *response = NULL;

		if (result->outcome == HTTP_ANSWERED)
		{
			HttpAnswer	answer = http_answer(result);

			response = &codec_read_token_answer(call->server->protocol == TOKEN_OAUTH,
												&answer)->refusal;
		}
		call_finish_transfer(call, result, true, response);
	}
	else if (call->check_only)
		call_finish_check(call, result);
	else
	{
		call->lease.generation = lease->generation;
		strcpy(call->lease.token, lease->token);
		call_send(call, call->lease.token);
	}
	MemoryContextSwitchTo(old_context);
}

/*
 * If the token was refused, see that nobody uses it again, and return true if
 * the call should try with another: once.  The platform may well give the
 * same token again.
 */
static bool
call_replace_token(FlowCall *call, const FlowResponse *response)
{
	if (response->action != FLOW_REFRESH_TOKEN ||
		call->server->protocol == TOKEN_FIXED)
		return false;
	token_cache_evict(&call->lease);
	if (call->refreshed)
		return false;
	call->refreshed = true;
	return true;
}

/* The execute request has ended. */
static void
call_on_end(TransferListener *listener, HttpTransfer *transfer)
{
	FlowCall   *call = (FlowCall *) listener;
	const HttpResult *result = http_transfer_result(transfer);
	MemoryContext old_context = MemoryContextSwitchTo(call->context);
	FlowResponse *response = NULL;

	if (call->check_only && result->outcome == HTTP_ANSWERED)
		call_finish_check(call, result);
	else
	{
		if (result->outcome == HTTP_ANSWERED)
		{
			HttpAnswer	answer = http_answer(result);

			response = codec_read_answer(&answer);
		}
		if (response != NULL && call_replace_token(call, response))
			call_try_token(call);
		else
		{
			call->outcome.request_sent = result->request_sent;
			call_finish_transfer(call, result, false, response);
		}
	}
	http_transfer_free(transfer);
	MemoryContextSwitchTo(old_context);
}

/* Get a token, or arrange to, and send when there is one. */
static void
call_try_token(FlowCall *call)
{
	TokenFailure failure;
	TokenState	state;

	state = token_cache_acquire(&call->lease, call->limits.deadline, &failure);
	if (state == TOKEN_READY_REFRESH)
		token_fetch_start(TopMemoryContext, call->server, &call->lease,
						  TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													  TOKEN_REFRESH_MS),
						  call->limits.connect_timeout_ms, NULL, NULL);
	switch (state)
	{
		case TOKEN_READY:
		case TOKEN_READY_REFRESH:
			call_list(call, NULL);
			call_send(call, call->lease.token);
			break;
		case TOKEN_FETCH:
			call_list(call, NULL);
			call->state = CALL_FETCHING;
			token_fetch_start(call->context, call->server, &call->lease,
							  call->limits.deadline, call->limits.connect_timeout_ms,
							  call_on_token, call);
			break;
		case TOKEN_WAIT:
			call->state = CALL_WAITING;
			/* keep the place of one that waits already: see flow_calls_turn */
			if (!call->listed)
				call_list(call, &waiting);
			break;
		case TOKEN_FAILED:
			call_finish_shared_failure(call, &failure);
			break;
	}
}

/* Look again at a call that waits for another one's token request. */
static void
call_wait_again(FlowCall *call)
{
	MemoryContext old_context = MemoryContextSwitchTo(call->context);

	if (GetCurrentTimestamp() >= call->limits.deadline)
		call_finish_late(call);
	else
		call_try_token(call);
	MemoryContextSwitchTo(old_context);
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
	token_cache_abandon(&call->lease);
	token_lease_wipe(&call->lease);
	server_forget_secrets(call->server);
}

FlowCall *
flow_call_start(MemoryContext parent, FlowServer *server,
				const FlowRequest *request, const FlowLimits *limits, void *owner)
{
	MemoryContext context = AllocSetContextCreate(parent, "feishu_flow call",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	FlowCall   *call = palloc(sizeof(FlowCall));

	/* all but the room for the token, which is large and last */
	memset(call, 0, offsetof(FlowCall, lease));
	token_lease_init(&call->lease, &server->app_key);
	call->listener.on_end = call_on_end;
	call->context = context;
	call->owner = owner;
	call->server = server;
	call->limits = *limits;
	call->check_only = request == NULL;
	call->outcome.reset_seconds = -1;
	call->outcome.url = server->base_url;
	call->callback.func = call_on_reset;
	call->callback.arg = call;
	MemoryContextRegisterResetCallback(context, &call->callback);

	if (request != NULL)
	{
		call->url = codec_execute_url(server->base_url, request);
		initStringInfo(&call->body);
		codec_write_request(request, &call->body);
	}
	else
		call->url = server->base_url;

	if (server->protocol == TOKEN_FIXED)
		call_send(call, call->check_only ? NULL : server->fixed_token);
	else
	{
		if (call->check_only)
		{
			call->state = CALL_FETCHING;
			call->lease.fetching = true;	/* for itself alone: flight 0 */
			token_fetch_start(context, server, &call->lease, limits->deadline,
							  limits->connect_timeout_ms, call_on_token, call);
		}
		else
			call_try_token(call);
	}
	MemoryContextSwitchTo(old_context);
	return call;
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

void
flow_calls_turn(TimestampTz until, uint32 wait_event)
{
	HttpLoop   *loop = http_loop_get();
	HttpTransfer *transfer;
	dlist_mutable_iter iter;

	/*
	 * First ask to be woken, then look: so no end of a token request is
	 * missed.
	 */
	if (!dlist_is_empty(&waiting))
	{
		token_wait_begin();
		dlist_foreach_modify(iter, &waiting)
		{
			FlowCall   *call = dlist_container(FlowCall, node, iter.cur);

			call_wait_again(call);
			if (call->state == CALL_WAITING)
				until = Min(until, Min(call->limits.deadline, call->lease.retry_at));
		}
		if (dlist_is_empty(&waiting))
			token_wait_end();
	}
	if (!dlist_is_empty(&done))
		return;

	http_loop_turn(loop, until, wait_event);
	while ((transfer = http_loop_next_done(loop)) != NULL)
	{
		TransferListener *listener = http_transfer_owner(transfer);

		listener->on_end(listener, transfer);
	}
}

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
