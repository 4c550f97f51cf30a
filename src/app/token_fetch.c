/*-------------------------------------------------------------------------
 *
 * src/app/token_fetch.c
 *	  One token request as a transfer.
 *
 * A fetch is asked for by a call that has to wait for it, or by one that
 * found its token good but old; the latter goes on beside the fetch.  Such a
 * refresh fails by itself when memory runs out, and no call for it: its duty is
 * handed on, and its memory freed.
 *
 * Whoever waits in another process shares a refusal, for asking again would
 * only be refused again, and a broken connection.  A timeout is not shared,
 * since others may have more time, nor what this process is short of; and neither
 * is an answer that makes no sense: the next one tries for itself.
 *
 * The request holds the app's secret and the answer the token: both are wiped
 * with the fetch (the answer by http_transfer.c).
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/token_fetch.h"
#include "base/nls.h"

/* A token answer is a token and a few words. */
#define FETCH_MAX_RESPONSE		(64 * 1024)

struct TokenFetch
{
	TransferListener listener;	/* must be first */
	MemoryContext context;
	bool		oauth;
	TokenLease	lease;
	TimestampTz requested_at;
	StringInfoData body;
	FetchEnded	ended;
	void	   *arg;
	MemoryContextCallback callback;
};

static void fetch_on_end(TransferListener *listener, HttpTransfer *transfer);
static void refresh_on_end(TransferListener *listener, HttpTransfer *transfer);

/* Reset callback of the fetch's memory context. */
static void
fetch_on_reset(void *arg)
{
	TokenFetch *fetch = arg;

	token_cache_abandon(&fetch->lease);
	token_lease_wipe(&fetch->lease);
	if (fetch->body.data != NULL)
		explicit_bzero(fetch->body.data, fetch->body.len);
}

/*
 * Begin a fetch in a new memory context.  The lease's duty passes to it at last:
 * if an error is thrown, the caller has it still.
 */
static TokenFetch *
fetch_start(MemoryContext context, const FlowServer *server, TokenLease *lease,
			TimestampTz deadline, int connect_timeout_ms)
{
	MemoryContext old_context = MemoryContextSwitchTo(context);
	TokenFetch *fetch = palloc0(sizeof(TokenFetch));
	HttpRequest request = {0};

	fetch->context = context;
	fetch->oauth = server->protocol == TOKEN_OAUTH;
	token_lease_init(&fetch->lease, &lease->key, lease->payer, context);
	fetch->callback.func = fetch_on_reset;
	fetch->callback.arg = fetch;
	MemoryContextRegisterResetCallback(context, &fetch->callback);

	initStringInfo(&fetch->body);
	wire_write_token_request(fetch->oauth, server->app_id, server->app_secret,
							  &fetch->body, &request.content_type);
	request.url = server->token_url;
	request.body = fetch->body.data;
	request.body_len = fetch->body.len;
	request.proxy = server->proxy;
	request.ca_file = server->ca_file;
	request.headers = FEISHU_HEADERS;
	request.version = server->http_version;
	request.deadline = deadline;
	request.connect_timeout_ms = connect_timeout_ms;
	request.max_response = FETCH_MAX_RESPONSE;
	request.resend_ok = true;	/* a second token does no harm */
	fetch->requested_at = GetCurrentTimestamp();
	(void) http_transfer_start(http_loop_get(), context, &request, fetch);
	token_lease_pass_duty(lease, &fetch->lease);
	MemoryContextSwitchTo(old_context);
	return fetch;
}

/*
 * Fetch a token and end the lease's duty by storing it, failing or giving up;
 * the latter also when the memory context is reset before the end.  lease is
 * copied; its own duty passes to the fetch, unless an error is thrown.
 */
void
token_fetch_start(MemoryContext parent, const FlowServer *server,
				  TokenLease *lease, TimestampTz deadline,
				  int connect_timeout_ms, FetchEnded ended, void *arg)
{
	MemoryContext context = AllocSetContextCreate(parent, "feishu_flow token request",
												  ALLOCSET_SMALL_SIZES);
	TokenFetch *fetch = fetch_start(context, server, lease, deadline, connect_timeout_ms);

	fetch->listener.on_end = fetch_on_end;
	fetch->ended = ended;
	fetch->arg = arg;
}

/*
 * To be called while an error is handled: a refresh for which there was no memory
 * is no error to the call that found it due.  Other errors are thrown again.
 */
static void
refresh_forgive(uint32 holdoff)
{
	if (geterrcode() != ERRCODE_OUT_OF_MEMORY)
		PG_RE_THROW();
	FlushErrorState();
	InterruptHoldoffCount = holdoff;	/* the error has let them through */
	ereport(LOG,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("feishu_flow could not refresh an access token: out of memory"),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * As token_fetch_start, for a token that is good still: nobody waits for the fetch.  It lives in
 * its memory as long as it needs; ended (or NULL) is to throw nothing, and may be
 * called twice.  When memory runs out there is none (NULL is returned), or it fails;
 * that is not thrown, and nobody tries again for a while.
 */
TokenFetch *
token_refresh_start(MemoryContext parent, const FlowServer *server, TokenLease *lease,
					int connect_timeout_ms, FetchEnded ended, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext volatile context = NULL;
	TokenFetch *volatile started = NULL;
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		TokenFetch *fetch;

		context = AllocSetContextCreate(parent, "feishu_flow token request",
										ALLOCSET_SMALL_SIZES);
		fetch = fetch_start(context, server, lease,
							TimestampTzPlusMilliseconds(GetCurrentTimestamp(), TOKEN_REFRESH_MS),
							connect_timeout_ms);
		fetch->listener.on_end = refresh_on_end;
		fetch->ended = ended;
		fetch->arg = arg;
		started = fetch;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (context != NULL)
			MemoryContextDelete(context);
		token_cache_fail(lease, NULL);
		refresh_forgive(holdoff);
	}
	PG_END_TRY();
	return started;
}

/* It has taken too long: nobody tries again for a while. */
void
token_refresh_give_up(TokenFetch *fetch)
{
	token_cache_fail(&fetch->lease, NULL);
	MemoryContextDelete(fetch->context);
}

/* Describe a failure; true when those who wait may share it. */
static bool
fetch_describe_failure(const HttpResult *result, const FlowResponse *refusal,
					   TokenFailure *failure)
{
	memset(failure, 0, sizeof(TokenFailure));
	failure->outcome = result->outcome;
	failure->trouble = result->trouble;
	failure->http_status = result->http_status;
	failure->cause = result->cause;
	if (refusal == NULL)
		return result->outcome == HTTP_NO_CONNECTION && result->trouble != HTTP_TROUBLE_LOCAL;
	failure->body_len = Min(result->body_len, TOKEN_FAILURE_BODY_SIZE);
	if (failure->body_len > 0)	/* there may be no body at all */
		memcpy(failure->body, result->body, failure->body_len);
	return refusal->has_code && refusal->code != 0 &&
		result->body_len <= TOKEN_FAILURE_BODY_SIZE;
}

/* What comes of a fetch whose transfer has ended: for the cache, and for who asked. */
static void
fetch_finish(TokenFetch *fetch, HttpTransfer *transfer)
{
	const HttpResult *result = http_transfer_result(transfer);
	MemoryContext old_context = MemoryContextSwitchTo(fetch->context);
	FlowResponse *response = NULL;

	if (result->outcome == HTTP_ANSWERED)
		/* nothing of its text is shown */
		response = wire_read_token_answer(fetch->oauth, result->http_status, result->body,
										  result->body_len, NULL);

	if (response != NULL && response->token != NULL)
	{
		token_cache_store(&fetch->lease, response->token, response->expires_in,
						  fetch->requested_at);
		MemoryContextSwitchTo(old_context);
		if (fetch->ended != NULL)
			fetch->ended(fetch->arg, &fetch->lease, result);
		explicit_bzero(response->token, strlen(response->token));
	}
	else
	{
		TokenFailure failure;
		bool		shared;

		shared = fetch_describe_failure(result, response, &failure);
		token_cache_fail(&fetch->lease, shared ? &failure : NULL);
		MemoryContextSwitchTo(old_context);
		if (fetch->ended != NULL)
			fetch->ended(fetch->arg, NULL, result);
	}
}

/* The transfer has ended.  The fetch is gone afterwards, but for an error. */
static void
fetch_on_end(TransferListener *listener, HttpTransfer *transfer)
{
	TokenFetch *fetch = (TokenFetch *) listener;
	MemoryContext caller = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		fetch_finish(fetch, transfer);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		/* else it came from who was told of the end already */
		if (!fetch->lease.fetching)
			PG_RE_THROW();
		token_cache_abandon(&fetch->lease);
		fetch->ended(fetch->arg, NULL, NULL);
		InterruptHoldoffCount = holdoff;	/* the error has let them through */
	}
	PG_END_TRY();
	MemoryContextDelete(fetch->context);
}

/* Likewise of a refresh, which nobody waits for; who asked for it is told once more of an error. */
static void
refresh_on_end(TransferListener *listener, HttpTransfer *transfer)
{
	TokenFetch *fetch = (TokenFetch *) listener;
	MemoryContext caller = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		fetch_finish(fetch, transfer);
		MemoryContextDelete(fetch->context);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (fetch->lease.fetching && geterrcode() == ERRCODE_OUT_OF_MEMORY)
			token_cache_fail(&fetch->lease, NULL);
		if (fetch->ended != NULL)
			fetch->ended(fetch->arg, NULL, NULL);
		MemoryContextDelete(fetch->context);
		refresh_forgive(holdoff);
	}
	PG_END_TRY();
}

/* The refusal in a failure that carries an answer. */
FlowResponse *
token_failure_response(const FlowServer *server, const TokenFailure *failure)
{
	const MaskSecrets secrets = {{server->app_secret, server->fixed_token}};

	return wire_read_token_answer(server->protocol == TOKEN_OAUTH, failure->http_status,
								  pnstrdup(failure->body, failure->body_len),
								  failure->body_len, &secrets);
}
