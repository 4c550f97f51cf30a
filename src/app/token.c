/*-------------------------------------------------------------------------
 *
 * src/app/token.c
 *	  Cache of tenant access tokens, with one fetch at a time for each app.
 *
 * The tokens are in the table of apps (apps.c).  The cache never talks to the platform:
 * it hands the duty to fetch to exactly one caller, a "flight", and tells the others to
 * wait.
 *
 * A token is good until it expires.  In the last part of its life one caller
 * is told to fetch another while everybody still uses the old one: the
 * platform issues a new token when less than 30 minutes are left, and both
 * stay valid (PLATFORM.md), so that no call ever waits for a token but the
 * first.  The caller may ask the dispatcher of its database (token_ask.c).
 *
 * A flight ends by a token, by a failure that those who waited share, or by
 * being given up, at the latest by the exit of its process.  After a few
 * seconds, should its request hang or its process be stuck, the next caller may
 * take over.  The end wakes all who wait (wakeup.c).
 *
 * A token that the platform refuses is replaced, and the next one may be refused,
 * too, or be the same.  Then it is kept for a while, and calls that use it meanwhile
 * get the platform's refusal: there is not a token request for each.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"
#include "base/wakeup.h"

/*
 * The platform gives a new token when less than 30 minutes are left, and the
 * same one before; the margin leaves room for clocks that disagree.  Shorter
 * lives (a token that was handed out late, private deployments) are refreshed
 * in their last quarter.
 */
#define TOKEN_REFRESH_SECONDS	(25 * 60)

/* No token lives longer (PLATFORM.md), whatever an answer claims. */
#define TOKEN_MAX_SECONDS		(2 * 60 * 60)

/* After a refresh failed while the token is still good, pause so long. */
#define TOKEN_REFRESH_PAUSE_MS	(30 * 1000)

/*
 * A token that was had in place of a refused one and has not been accepted since: if
 * it is refused, another is asked for not before this.  Others, which the platform
 * accepts now and then, are replaced so many times in a row at once, and once at each
 * such time later on.
 */
#define TOKEN_REPLACE_MS		500
#define TOKEN_REPLACE_AT_ONCE	8
#define TOKEN_REPLACE_LATER_MS	250

/* Leases of this process that have the duty to fetch. */
static dlist_head duties = DLIST_STATIC_INIT(duties);


/* ---------- Leases ---------- */

/* At the exit of a process: hand its duties on. */
static void
token_on_exit(int code, Datum arg)
{
	while (!dlist_is_empty(&duties))
		token_cache_abandon(dlist_head_element(TokenLease, node, &duties));
}

/* At the first use in a process. */
static void
cache_ensure(void)
{
	static bool ready = false;

	if (ready)
		return;
	app_table_ensure();
	on_shmem_exit(token_on_exit, (Datum) 0);
	ready = true;
}

/* A caller's business with the cache begins; a token is kept in that context. */
void
token_lease_init(TokenLease *lease, const AppKey *key, Oid payer, MemoryContext context)
{
	static char none[1] = "";

	memset(lease, 0, sizeof(TokenLease));
	lease->key = *key;
	lease->payer = payer;
	lease->context = context;
	lease->token = none;
}

/* Wipe the token. */
void
token_lease_wipe(TokenLease *lease)
{
	explicit_bzero(lease->token, lease->room);	/* a former, longer one, too */
}

/* The duty to fetch begins. */
static void
lease_take_duty(TokenLease *lease)
{
	if (!lease->fetching)
		dlist_push_tail(&duties, &lease->node);
	lease->fetching = true;
}

/* The duty to fetch ends. */
void
token_lease_drop_duty(TokenLease *lease)
{
	if (lease->fetching)
		dlist_delete(&lease->node);
	lease->fetching = false;
}

/* Give the duty to fetch to another lease, for the same app.  Does not throw. */
void
token_lease_pass_duty(TokenLease *from, TokenLease *to)
{
	Assert(from->fetching && !to->fetching);
	to->generation = from->generation;
	to->flight = from->flight;
	token_lease_drop_duty(from);
	lease_take_duty(to);
}

/* See to it that a token of so many bytes can be copied under a lock. */
static void
lease_make_room(TokenLease *lease, int length)
{
	char	   *token;

	if (length < lease->room)
		return;
	token = MemoryContextAlloc(lease->context, length + 1);
	strlcpy(token, lease->token, length + 1);
	token_lease_wipe(lease);
	if (lease->room > 0)
		pfree(lease->token);
	lease->token = token;
	lease->room = length + 1;
}

/* Take over the token that another lease has, for the same app. */
void
token_lease_take(TokenLease *lease, const TokenLease *from)
{
	lease_make_room(lease, strlen(from->token));
	strcpy(lease->token, from->token);
	lease->generation = from->generation;
	lease->unproven = from->unproven;
}


/* ---------- Tokens ---------- */

/* The token of an app, or NULL.  The lock is held, as for all of these. */
AppToken *
token_find(const AppKey *key)
{
	App		   *app = app_find(key);

	return app != NULL ? &app->token : NULL;
}

/* Hand the token of an app to a caller, who has room. */
static void
token_hand_out(App *app, TokenLease *lease, TimestampTz now)
{
	const AppToken *token = &app->token;

	Assert(token->length < lease->room);
	memcpy(lease->token, token->text, token->length);
	lease->token[token->length] = '\0';
	lease->generation = token->generation;
	lease->unproven = token->unproven;
	/* only a hint, so a shared lock will do */
	app->last_used = now;
}

/* Give the duty to fetch to a caller.  The lock is held exclusively. */
void
token_start_flight(AppToken *token, TokenLease *lease, TimestampTz deadline, bool is_refresh)
{
	token->flight = ++app_table->token_counter;
	token->flight_deadline = deadline;
	token->flight_is_refresh = is_refresh;
	lease->asked_in_vain = token->ask != TOKEN_ASK_NONE;
	lease->flight = token->flight;
	lease_take_duty(lease);
}

/* The token of which a caller's fetch is still the one under way, or NULL. */
AppToken *
token_of_flight(const TokenLease *lease)
{
	AppToken   *token = lease->flight != 0 ? token_find(&lease->key) : NULL;

	return token != NULL && token->flight == lease->flight ? token : NULL;
}

/* Is somebody asked to refresh it, and has he time still? */
static bool
token_is_asked_for(const AppToken *token, TimestampTz now)
{
	/* ask_until may lie far ahead if the clock was set back */
	return token->ask == TOKEN_ASK_PENDING && token->ask_until > now &&
		token->ask_until <= TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS);
}


/* ---------- The cache ---------- */

/* What a caller gets of an app, or has to do.  The lock is held exclusively. */
static TokenState
app_acquire_token(App *app, TokenLease *lease, TimestampTz deadline, TokenFailure *failure,
				  TimestampTz now)
{
	AppToken   *token = &app->token;
	bool		is_fetched = token_is_fetched(token, now);

	if (token_is_good(token, now))
	{
		token_hand_out(app, lease, now);
		if (token->refresh_at > now || is_fetched || token_is_asked_for(token, now))
			return TOKEN_READY;
		token_start_flight(token, lease,
						   TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_MS), true);
		return TOKEN_READY_REFRESH;
	}
	if (lease->flight != 0 && token->failed_flight == lease->flight)
	{
		*failure = token->failure;
		lease->flight = 0;
		return TOKEN_FAILED;
	}
	/* nobody waits for a refresh: whose it is may have all the time in the world */
	if (is_fetched && !token->flight_is_refresh)
	{
		lease->flight = token->flight;
		lease->retry_at = token->flight_deadline;
		return TOKEN_WAIT;
	}
	token_start_flight(token, lease,
					   Min(deadline, TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS)),
					   false);
	return TOKEN_FETCH;
}

/*
 * Get a token, or hear what is to be done for one.  deadline is that of the fetch that
 * the caller would do: after it, somebody else may take the duty over.  Does not wait;
 * call wakeup_look before, to be woken when any fetch ends.
 */
TokenState
token_cache_acquire(TokenLease *lease, TimestampTz deadline, TokenFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenState	state;
	App		   *app;
	bool		is_young;

	cache_ensure();
	lease_make_room(lease, app_table->longest_token);

	/* Nearly always: a token that is young enough. */
	app_table_lock(LW_SHARED);
	app = app_find(&lease->key);
	is_young = app != NULL && token_is_good(&app->token, now) && app->token.refresh_at > now &&
		app->token.length < lease->room;
	if (is_young)
		token_hand_out(app, lease, now);
	app_table_unlock();
	if (is_young)
		return TOKEN_READY;

	for (;;)
	{
		int			longest;

		app = app_find_or_add(&lease->key, lease->payer, LW_EXCLUSIVE);
		longest = app_table->longest_token; /* of late */
		if (longest < lease->room)
			break;
		app_table_unlock();
		lease_make_room(lease, longest);
	}
	if (app != NULL)
		state = app_acquire_token(app, lease, deadline, failure, now);
	else
	{
		/* No room: the caller fetches for itself alone. */
		lease->flight = 0;
		lease_take_duty(lease);
		state = TOKEN_FETCH;
	}
	app_table_unlock();
	return state;
}

/* The caller fetches a token for itself alone, whatever the cache holds. */
void
token_cache_bypass(TokenLease *lease)
{
	cache_ensure();
	lease_take_duty(lease);		/* for itself alone: flight 0 */
}

/* End of a fetch: a token that expires so many seconds after requested_at. */
void
token_cache_store(TokenLease *lease, const char *token, int expires_in,
				  TimestampTz requested_at)
{
	int			length = strlen(token);
	int			life = Min(expires_in, TOKEN_MAX_SECONDS);
	AppToken   *stored;

	Assert(lease->fetching && length <= TOKEN_MAX_LENGTH);
	lease_make_room(lease, length);
	token_lease_drop_duty(lease);
	strcpy(lease->token, token);

	app_table_lock(LW_EXCLUSIVE);
	/* one that comes after another took over is welcome if there is none */
	stored = lease->flight != 0 ? token_find(&lease->key) : NULL;
	if (stored != NULL && stored->flight != lease->flight && token_is_good(stored, requested_at))
		stored = NULL;
	if (stored != NULL)
	{
		if (stored->flight == lease->flight)
			stored->flight = 0;
		stored->generation = ++app_table->token_counter;
		stored->stored_at = GetCurrentTimestamp();
		stored->unproven = stored->refused;
		stored->refused = false;
		stored->ask = TOKEN_ASK_NONE;
		lease->generation = stored->generation;
		lease->unproven = stored->unproven;
		stored->length = length;
		app_table->longest_token = Max(app_table->longest_token, length);
		memcpy(stored->text, token, length);
		stored->expires_at = requested_at + (TimestampTz) life * USECS_PER_SEC;
		stored->refresh_at = stored->expires_at -
			(TimestampTz) Min(TOKEN_REFRESH_SECONDS * 1000, life * 1000 / 4) * 1000;
	}
	app_table_unlock();
	wakeup_broadcast();
}

/*
 * End of a fetch, which failed: everybody who waits for it fails the same way; with NULL,
 * somebody else should try.  One who has a token uses it for a while before the next fetch.
 */
void
token_cache_fail(TokenLease *lease, const TokenFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	AppToken   *token;

	Assert(lease->fetching);
	token_lease_drop_duty(lease);

	app_table_lock(LW_EXCLUSIVE);
	token = token_of_flight(lease);
	if (token != NULL)
	{
		token->flight = 0;
		if (failure != NULL)
		{
			token->failed_flight = lease->flight;
			token->failure = *failure;
		}
		token->ask = TOKEN_ASK_NONE;
		token->refresh_at = TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_PAUSE_MS);
	}
	app_table_unlock();
	wakeup_broadcast();
}

/* The fetch was given up: somebody else should try.  Does not throw. */
void
token_cache_abandon(TokenLease *lease)
{
	AppToken   *token;

	if (!lease->fetching)
		return;
	token_lease_drop_duty(lease);

	app_table_lock(LW_EXCLUSIVE);
	token = token_of_flight(lease);
	if (token != NULL)
		token->flight = 0;
	app_table_unlock();
	wakeup_broadcast();
}

/* Does the cache serve all processes? */
bool
token_cache_is_shared(void)
{
	return app_table_is_shared();
}

/* What becomes of a token that was refused? */
static TokenRefused
token_take_refusal(AppToken *token, TimestampTz now)
{
	const int64 later = TOKEN_REPLACE_LATER_MS * INT64CONST(1000);

	/* these times lie ahead only if the clock was set back */
	if (token->stored_at > now)
		token->stored_at = 0;
	if (token->replaced_until > now + TOKEN_REPLACE_AT_ONCE * later)
		token->replaced_until = 0;

	if (token->unproven && now < TimestampTzPlusMilliseconds(token->stored_at, TOKEN_REPLACE_MS))
		return TOKEN_REFUSED_AGAIN;
	if (token->replaced_until > now + (TOKEN_REPLACE_AT_ONCE - 1) * later)
		return token->unproven ? TOKEN_REFUSED_AGAIN : TOKEN_REFUSED_OFTEN;
	token->replaced_until = Max(token->replaced_until, now) + later;
	return TOKEN_EVICTED;
}

/*
 * The platform refused lease->token: see that nobody uses it again, unless it is to
 * be kept for a while.
 */
TokenRefused
token_cache_evict(TokenLease *lease)
{
	TimestampTz now = GetCurrentTimestamp();
	AppToken   *token;
	TokenRefused refused = TOKEN_EVICTED;

	app_table_lock(LW_EXCLUSIVE);
	token = token_find(&lease->key);
	/* unless somebody has replaced it already */
	if (token != NULL && token->generation == lease->generation && token->length > 0)
	{
		refused = token_take_refusal(token, now);
		if (refused == TOKEN_EVICTED)
		{
			explicit_bzero(token->text, token->length);
			token->length = 0;
			token->refused = true;
		}
	}
	app_table_unlock();
	return refused;
}

/* The platform accepted lease->token. */
void
token_cache_prove(TokenLease *lease)
{
	AppToken   *token;

	if (!lease->unproven)
		return;
	lease->unproven = false;
	app_table_lock(LW_EXCLUSIVE);
	token = token_find(&lease->key);
	if (token != NULL && token->generation == lease->generation)
		token->unproven = false;
	app_table_unlock();
}
