/*-------------------------------------------------------------------------
 *
 * token_internal.h
 *	  The cache's memory, for token.c and token_ask.c and no other file.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/token_internal.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TOKEN_INTERNAL_H
#define FEISHU_TOKEN_INTERNAL_H

#include "port/atomics.h"
#include "storage/lwlock.h"

#include "app/token.h"

/* Whether the dispatcher of a database is asked to refresh a token. */
typedef enum TokenAskState
{
	TOKEN_ASK_NONE,
	TOKEN_ASK_PENDING,
	TOKEN_ASK_IN_VAIN			/* it cannot, so who sees the token due does */
} TokenAskState;

typedef struct TokenSlot
{
	TimestampTz last_used;
	Oid			payer;			/* InvalidOid: several; see app_share.c */
	/* the token */
	uint64		generation;		/* changes with each token stored */
	int			length;			/* 0: none */
	TimestampTz stored_at;
	TimestampTz expires_at;
	TimestampTz refresh_at;
	/* the fetch under way */
	uint64		flight;			/* its number, 0: none */
	TimestampTz flight_deadline;
	bool		flight_is_refresh;	/* nobody waits for it */
	/* who is asked to refresh the token, see token_ask.c */
	TokenAskState ask;
	TimestampTz ask_until;		/* with TOKEN_ASK_PENDING */
	TokenAsked	asked;
	/* refusals of the platform */
	bool		refused;		/* the token that there was; the next is unproven */
	bool		unproven;		/* had in place of a refused one, and not accepted
								 * since */
	TimestampTz replaced_until; /* moves on with each replacement */
	/* the last fetch that failed */
	uint64		failed_flight;
	TokenFailure failure;
	char		token[TOKEN_MAX_LENGTH];
} TokenSlot;

typedef struct TokenCache
{
	LWLock	   *lock;			/* NULL: not shared */
	uint64		counter;		/* last generation or flight given out */
	int			longest;		/* token that was stored, in bytes */
	pg_atomic_uint64 eviction_logged_at;
	int			num_slots;
	int			num_used;		/* the first so many are in use */
	AppKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* then the slots */
} TokenCache;

extern TokenCache *token_cache;
extern TokenSlot *token_slots;

static inline void
token_cache_lock(LWLockMode mode)
{
	if (token_cache->lock != NULL)
		LWLockAcquire(token_cache->lock, mode);
}

static inline void
token_cache_unlock(void)
{
	if (token_cache->lock != NULL)
		LWLockRelease(token_cache->lock);
}

/* The rest needs the lock. */

static inline bool
token_slot_is_good(const TokenSlot *slot, TimestampTz now)
{
	return slot->length > 0 && slot->expires_at > now;
}

/* Is somebody asked, and has he time still? */
static inline bool
token_slot_is_asked(const TokenSlot *slot, TimestampTz now)
{
	/* ask_until may lie far ahead if the clock was set back */
	return slot->ask == TOKEN_ASK_PENDING && slot->ask_until > now &&
		slot->ask_until <= TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS);
}

extern TokenSlot *token_slot_find(const AppKey *key);
extern TokenSlot *token_slot_of_flight(TokenLease *lease);
extern void token_slot_start_flight(TokenSlot *slot, TokenLease *lease,
									TimestampTz deadline, bool is_refresh);
extern void token_lease_drop_duty(TokenLease *lease);

#endif							/* FEISHU_TOKEN_INTERNAL_H */
