/*-------------------------------------------------------------------------
 *
 * src/app/apps_internal.h
 *	  The table of apps: what is known of each, for the files that act on it.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_APPS_INTERNAL_H
#define FEISHU_APPS_INTERNAL_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

#include "app/gate.h"
#include "app/limiter.h"
#include "app/token.h"
#include "wire/wire.h"

/* Whether the dispatcher of a database is asked to refresh a token. */
typedef enum TokenAskState
{
	TOKEN_ASK_NONE,
	TOKEN_ASK_PENDING,
	TOKEN_ASK_IN_VAIN			/* it cannot, so who sees the token due does */
} TokenAskState;

/* The token of an app.  Zeroed: there is none. */
typedef struct AppToken
{
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
	char		text[TOKEN_MAX_LENGTH];
} AppToken;

typedef struct App
{
	Oid			payer;			/* InvalidOid: several */
	TimestampTz last_used;		/* a hint for the choice of a victim */
	AppToken	token;
	slock_t		mutex;			/* of the gate */
	AppGate		gate;
} App;

/* What an app may lose to another one, or cannot have. */
typedef enum AppLoss
{
	APP_LOSS_LIMITS,
	APP_LOSS_TOKEN,
	APP_LOSS_NO_ROOM			/* there is no room for it at all */
} AppLoss;

#define APP_LOSSES	(APP_LOSS_NO_ROOM + 1)

typedef struct AppTable
{
	LWLock	   *lock;			/* NULL: not shared */
	int			num_slots;
	int			num_used;		/* the first so many are in use */
	pg_atomic_uint64 told_at[APP_LOSSES];	/* when the log was, last */
	/* token.c; under the lock */
	uint64		token_counter;	/* last generation or flight given out */
	int			longest_token;	/* that was stored, in bytes */
	/* limiter.c */
	pg_atomic_uint32 ends;		/* of pauses that ended early */
	pg_atomic_uint32 frees;		/* places given back for which somebody waits */
	/* limiter_keep.c */
	LWLock	   *file_lock;		/* who writes the file; nobody waits for it */
	bool		file_failed;	/* and that was told; under file_lock */
	pg_atomic_uint32 keep_asked;
	pg_atomic_uint32 keep_done;
	AppKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* then the apps */
} AppTable;

/* apps.c */
extern AppTable *app_table;
extern App *apps;
extern void app_table_ensure(void);
extern void app_table_lock(LWLockMode mode);
extern void app_table_unlock(void);
extern App *app_find(const AppKey *key);
extern App *app_find_or_add(const AppKey *key, Oid payer, LWLockMode mode);
extern App *app_append(const AppKey *key, Oid payer);

/* Is the table that of all processes? */
static inline bool
app_table_is_shared(void)
{
	return app_table != NULL && app_table->lock != NULL;
}

/* token.c; the lock is held */

static inline bool
token_is_good(const AppToken *token, TimestampTz now)
{
	return token->length > 0 && token->expires_at > now;
}

static inline bool
token_is_fetched(const AppToken *token, TimestampTz now)
{
	return token->flight != 0 && token->flight_deadline > now;
}

extern AppToken *token_find(const AppKey *key);
extern AppToken *token_of_flight(const TokenLease *lease);
extern void token_start_flight(AppToken *token, TokenLease *lease, TimestampTz deadline,
							   bool is_refresh);
extern void token_lease_drop_duty(TokenLease *lease);

/* limiter_keep.c */
extern void limiter_restore(void);
extern bool limiter_keep(bool must);

#endif							/* FEISHU_APPS_INTERNAL_H */
