/*-------------------------------------------------------------------------
 *
 * src/app/token_fetch.h
 *	  One token request as a transfer.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TOKEN_FETCH_H
#define FEISHU_TOKEN_FETCH_H

#include "app/server.h"
#include "app/token.h"
#include "http/http.h"
#include "wire/wire.h"

/*
 * What a transfer's owner points to: whoever drives the loop calls on_end for
 * each transfer that has ended.
 */
typedef struct TransferListener
{
	void		(*on_end) (struct TransferListener *self, HttpTransfer *transfer);
} TransferListener;

/*
 * Called at the end of a fetch; a NULL lease means that it failed.  A NULL result
 * means that its end could not be looked at, for the error that is being handled:
 * so it may be thrown again.
 */
typedef void (*FetchEnded) (void *arg, const TokenLease *lease, const HttpResult *result);
extern void token_fetch_start(MemoryContext parent, const FlowServer *server,
							  TokenLease *lease, TimestampTz deadline,
							  int connect_timeout_ms, FetchEnded ended, void *arg);

/* A refresh that is under way. */
typedef struct TokenFetch TokenFetch;
extern TokenFetch *token_refresh_start(MemoryContext parent, const FlowServer *server,
									   TokenLease *lease, int connect_timeout_ms,
									   FetchEnded ended, void *arg);
extern void token_refresh_give_up(TokenFetch *fetch);

/* Feishu's names of headers. */
#define FEISHU_HEADERS \
	((HttpHeaderNames) {.id = "x-tt-logid", .other_id = "x-request-id", .reset = "x-ogw-ratelimit-reset"})

extern FlowResponse *token_failure_response(const FlowServer *server,
											const TokenFailure *failure);

#endif							/* FEISHU_TOKEN_FETCH_H */
