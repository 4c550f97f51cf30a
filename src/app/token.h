/*-------------------------------------------------------------------------
 *
 * src/app/token.h
 *	  Cache of tenant access tokens, with one fetch at a time for each app.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TOKEN_H
#define FEISHU_TOKEN_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "utils/palloc.h"

#include "app/server.h"
#include "http/http.h"

#define TOKEN_FAILURE_BODY_SIZE	1024

/* Time for a token request that nobody waits for. */
#define TOKEN_REFRESH_MS		(10 * 1000)

/* A token request takes well below a second: after this, another may try. */
#define TOKEN_TAKEOVER_MS		3000

/* How a fetch failed, shared with those who waited for it: the platform's
 * refusal as it came, or the transport's trouble. */
typedef struct TokenFailure
{
	HttpOutcome outcome;
	HttpTrouble trouble;
	int			http_status;
	HttpCause	cause;			/* NONE with an answer */
	int			body_len;
	char		body[TOKEN_FAILURE_BODY_SIZE];
} TokenFailure;

/* What a caller gets from the cache. */
typedef enum TokenState
{
	TOKEN_READY,				/* lease->token is good */
	TOKEN_READY_REFRESH,		/* good, but old: the caller has the duty to
								 * fetch another, see TOKEN_FETCH */
	TOKEN_FETCH,				/* the caller has the duty to fetch one, and to
								 * end it by token_cache_store, _fail or
								 * _abandon */
	TOKEN_WAIT,					/* somebody else fetches: try again when the
								 * latch is set or lease->retry_at has come */
	TOKEN_FAILED				/* the fetch that the caller waited for failed:
								 * see the TokenFailure */
} TokenState;

/* What becomes of a token that was refused. */
typedef enum TokenRefused
{
	TOKEN_EVICTED,				/* another one is to be had */
	TOKEN_REFUSED_OFTEN,		/* it is kept: it was accepted lately, and has been
								 * replaced often */
	TOKEN_REFUSED_AGAIN			/* it is kept: it has just been had in place of a
								 * refused one */
} TokenRefused;

/* Who asks to have a token refreshed: plain data, and no secret. */
typedef struct TokenAsked
{
	AppKey		key;			/* of the token */
	Oid			database;
	Oid			serverid;
	Oid			userid;			/* whose credentials */
} TokenAsked;

/* One caller's business with the cache. */
typedef struct TokenLease
{
	AppKey		key;
	Oid			payer;			/* of FlowServer */
	uint64		generation;		/* of the token handed out */
	bool		unproven;		/* it stands for a refused one, see
								 * token_cache_prove */
	uint64		flight;			/* fetch that we do or wait for, 0: none */
	bool		fetching;		/* we have the duty to fetch: a lease that has
								 * it must not be moved or freed */
	bool		asked_in_vain;	/* with TOKEN_READY_REFRESH: a dispatcher was
								 * asked to and did not */
	dlist_node	node;			/* in the list of duties, with fetching */
	TimestampTz retry_at;		/* with TOKEN_WAIT */
	MemoryContext context;		/* of the token */
	char	   *token;			/* "": none */
	int			room;			/* bytes that token points to; 0: a constant */
} TokenLease;

extern void token_lease_init(TokenLease *lease, const AppKey *key, Oid payer,
							 MemoryContext context);
extern void token_lease_take(TokenLease *lease, const TokenLease *from);
extern void token_lease_pass_duty(TokenLease *from, TokenLease *to);
extern void token_lease_wipe(TokenLease *lease);
extern TokenState token_cache_acquire(TokenLease *lease, TimestampTz deadline,
									  TokenFailure *failure);
extern void token_cache_bypass(TokenLease *lease);
extern void token_cache_store(TokenLease *lease, const char *token, int expires_in,
							  TimestampTz requested_at);
extern void token_cache_fail(TokenLease *lease, const TokenFailure *failure);
extern void token_cache_abandon(TokenLease *lease);
extern bool token_cache_is_shared(void);
extern TokenRefused token_cache_evict(TokenLease *lease);
extern void token_cache_prove(TokenLease *lease);

/* token_ask.c */
extern void token_ask_dispatcher(TokenLease *lease, const TokenAsked *asked);
extern int	token_asks_of_database(TokenAsked *asked, int max);

/*
 * token_ask.c: it will do that, and has the duty from then on, if it is to be done still; or
 * it cannot.
 */
extern bool token_ask_accept(TokenLease *lease);
extern void token_ask_refuse(const AppKey *key);

#endif							/* FEISHU_TOKEN_H */
