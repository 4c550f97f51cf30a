/*-------------------------------------------------------------------------
 *
 * token.c
 *	  Cache of tenant access tokens, with one fetch at a time for each app.
 *
 * With shared_preload_libraries the cache is in shared memory and serves all
 * backends of the cluster; else each process has a small one of its own.  The
 * cache never talks to the platform: it hands the duty to fetch to exactly one
 * caller, a "flight", and tells the others to wait.
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
 * The lock protects everything in TokenCache and is held only to copy.  All
 * of it is plain data.  A slot is found by its key each time, since it may be
 * given to another app between two calls.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/token.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/mman.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/pg_shmem.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/app_share.h"
#include "app/token_internal.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/wakeup.h"

#define TOKEN_TRANCHE			"feishu_flow_token"

/* Apps that a process without the shared cache remembers. */
#define TOKEN_LOCAL_APPS		16

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

TokenCache *token_cache = NULL;
TokenSlot *token_slots = NULL;

/* Leases of this process that have the duty to fetch. */
static dlist_head duties = DLIST_STATIC_INIT(duties);


/* ---------- Memory ---------- */

static Size
cache_size(int num_slots)
{
	Size		size = offsetof(TokenCache, keys);

	size = add_size(size, mul_size(num_slots, sizeof(AppKey)));
	return add_size(MAXALIGN(size), mul_size(num_slots, sizeof(TokenSlot)));
}

/* Where the slots are. */
static TokenSlot *
cache_slots(TokenCache *memory)
{
	Size		size = offsetof(TokenCache, keys) + memory->num_slots * sizeof(AppKey);

	return (TokenSlot *) ((char *) memory + MAXALIGN(size));
}

#ifdef MADV_DONTDUMP

/* Keep the pages of this size, in which the memory is, out of core dumps. */
static bool
keep_out_of_core(void *memory, Size size, Size page)
{
	uintptr_t	start = TYPEALIGN_DOWN(page, (uintptr_t) memory);
	uintptr_t	end = TYPEALIGN(page, (uintptr_t) memory + size);

	return madvise((void *) start, end - start, MADV_DONTDUMP) == 0;
}

#endif

/*
 * Tokens are no business of a core dump.  The pages may be huge; that is known only
 * from the failure to treat a part of one.  What else is in them is lost to it, too.
 */
static void
cache_keep_out_of_core(void *memory, Size size)
{
#ifdef MADV_DONTDUMP
	Size		huge_page = 0;
	int			flags;

	if (keep_out_of_core(memory, size, sysconf(_SC_PAGESIZE)))
		return;
	GetHugePageSize(&huge_page, &flags);
	if (huge_page == 0 || !keep_out_of_core(memory, size, huge_page))
		ereport(LOG,
				(errmsg("could not keep feishu_flow's access tokens out of core dumps: %m")));
#endif
}

void
token_request_shmem(void)
{
	RequestAddinShmemSpace(cache_size(feishu_guc_max_apps));
	RequestNamedLWLockTranche(TOKEN_TRANCHE, 1);
}

void
token_startup_shmem(void)
{
	TokenCache *memory;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("feishu_flow tokens", cache_size(feishu_guc_max_apps), &found);
	if (!found)
	{
		memset(memory, 0, cache_size(feishu_guc_max_apps));
		memory->lock = &GetNamedLWLockTranche(TOKEN_TRANCHE)->lock;
		pg_atomic_init_u64(&memory->eviction_logged_at, 0);
		memory->num_slots = feishu_guc_max_apps;
		cache_keep_out_of_core(memory, cache_size(feishu_guc_max_apps));
	}
	LWLockRelease(AddinShmemInitLock);
	token_cache = memory;
	token_slots = cache_slots(memory);
}

/* At the exit of a process: hand its duties on. */
static void
token_on_exit(int code, Datum arg)
{
	while (!dlist_is_empty(&duties))
		token_cache_abandon(dlist_head_element(TokenLease, node, &duties));
}

/* At the first use in a process: make the cache if there is no shared one. */
static void
cache_ensure(void)
{
	static bool ready = false;

	if (ready)
		return;
	if (token_cache == NULL)
	{
		TokenCache *memory = MemoryContextAllocZero(TopMemoryContext,
													cache_size(TOKEN_LOCAL_APPS));

		memory->num_slots = TOKEN_LOCAL_APPS;
		cache_keep_out_of_core(memory, cache_size(TOKEN_LOCAL_APPS));
		token_cache = memory;
		token_slots = cache_slots(memory);
	}
	on_shmem_exit(token_on_exit, (Datum) 0);
	ready = true;
}


/* ---------- Keys and slots ---------- */

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

void
token_lease_take(TokenLease *lease, const TokenLease *from)
{
	lease_make_room(lease, strlen(from->token));
	strcpy(lease->token, from->token);
	lease->generation = from->generation;
	lease->unproven = from->unproven;
}

/* The slot of a key, or NULL.  The lock is held. */
TokenSlot *
token_slot_find(const AppKey *key)
{
	for (int i = 0; i < token_cache->num_used; i++)
	{
		if (memcmp(&token_cache->keys[i], key, sizeof(AppKey)) == 0)
			return &token_slots[i];
	}
	return NULL;
}

/*
 * The least recently used slot without a token if there is one, else with one,
 * or -1 when fetches are under way in all.  With a payer, of its slots alone.
 */
static int
slot_find_victim(Oid payer, bool with_token, TimestampTz now)
{
	int			victim = -1;

	for (int i = 0; i < token_cache->num_used; i++)
	{
		if ((token_slots[i].flight != 0 && token_slots[i].flight_deadline > now) ||
			(OidIsValid(payer) && token_slots[i].payer != payer) ||
			(!with_token && token_slot_is_good(&token_slots[i], now)))
			continue;
		if (victim < 0 || token_slots[i].last_used < token_slots[victim].last_used)
			victim = i;
	}
	return victim;
}

/*
 * Whose slot makes room for an app of this payer.  Likewise.  Who has a share
 * takes no token of somebody else.
 */
static int
slot_choose_victim(Oid payer, TimestampTz now)
{
	int			victim = slot_find_victim(InvalidOid, false, now);
	int			count = 0;

	if (victim >= 0)
		return victim;
	for (int i = 0; i < token_cache->num_used; i++)
		count += token_slots[i].payer == payer;
	return slot_find_victim(count >= app_share_slots(token_cache->num_slots) ? payer : InvalidOid,
							true, now);
}

/*
 * The slot of a lease's app, a new one if need be: a free one, or one that
 * makes room, and then *evicted is set.  NULL when there is none.  The lock is
 * held exclusively.
 */
static TokenSlot *
slot_find_or_add(const TokenLease *lease, TimestampTz now, bool *evicted)
{
	TokenSlot  *slot = token_slot_find(&lease->key);
	int			victim;

	if (slot != NULL)
	{
		if (slot->payer != lease->payer)
			slot->payer = InvalidOid;
		return slot;
	}
	if (token_cache->num_used < token_cache->num_slots)
		victim = token_cache->num_used++;
	else
	{
		victim = slot_choose_victim(lease->payer, now);
		*evicted = victim >= 0;
	}
	if (victim < 0)
		return NULL;
	token_cache->keys[victim] = lease->key;
	memset(&token_slots[victim], 0, sizeof(TokenSlot));
	token_slots[victim].payer = lease->payer;
	token_slots[victim].last_used = now;
	return &token_slots[victim];
}

/* Hand the token of a slot to a caller, who has room.  The lock is held. */
static void
slot_hand_out(TokenSlot *slot, TokenLease *lease, TimestampTz now)
{
	Assert(slot->length < lease->room);
	memcpy(lease->token, slot->token, slot->length);
	lease->token[slot->length] = '\0';
	lease->generation = slot->generation;
	lease->unproven = slot->unproven;
	/* only a hint for the choice of a victim, so a shared lock will do */
	slot->last_used = now;
}

/* Give the duty to fetch to a caller.  The lock is held exclusively. */
void
token_slot_start_flight(TokenSlot *slot, TokenLease *lease, TimestampTz deadline, bool is_refresh)
{
	slot->flight = ++token_cache->counter;
	slot->flight_deadline = deadline;
	slot->flight_is_refresh = is_refresh;
	lease->asked_in_vain = slot->ask != TOKEN_ASK_NONE;
	lease->flight = slot->flight;
	lease_take_duty(lease);
}

/* The slot in which a caller's fetch is still the one under way, or NULL. */
TokenSlot *
token_slot_of_flight(TokenLease *lease)
{
	TokenSlot  *slot = token_slot_find(&lease->key);

	return slot != NULL && slot->flight == lease->flight ? slot : NULL;
}


/* ---------- The cache ---------- */

TokenState
token_cache_acquire(TokenLease *lease, TimestampTz deadline, TokenFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenState	state;
	TokenSlot  *slot;
	bool		evicted = false;

	cache_ensure();
	lease_make_room(lease, token_cache->longest);

	/* Nearly always: a token that is young enough. */
	token_cache_lock(LW_SHARED);
	slot = token_slot_find(&lease->key);
	if (slot != NULL && token_slot_is_good(slot, now) && slot->refresh_at > now &&
		slot->length < lease->room)
	{
		slot_hand_out(slot, lease, now);
		token_cache_unlock();
		return TOKEN_READY;
	}
	token_cache_unlock();

	token_cache_lock(LW_EXCLUSIVE);
	while (token_cache->longest >= lease->room)
	{
		int			longest = token_cache->longest;	/* of late */

		token_cache_unlock();
		lease_make_room(lease, longest);
		token_cache_lock(LW_EXCLUSIVE);
	}
	slot = slot_find_or_add(lease, now, &evicted);
	if (slot == NULL)
	{
		/* No room: the caller fetches for itself alone. */
		lease->flight = 0;
		lease_take_duty(lease);
		state = TOKEN_FETCH;
	}
	else
	{
		bool		in_flight = slot->flight != 0 && slot->flight_deadline > now;

		if (token_slot_is_good(slot, now))
		{
			slot_hand_out(slot, lease, now);
			state = TOKEN_READY;
			if (slot->refresh_at <= now && !in_flight && !token_slot_is_asked(slot, now))
			{
				token_slot_start_flight(slot, lease,
								  TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_MS), true);
				state = TOKEN_READY_REFRESH;
			}
		}
		else if (lease->flight != 0 && slot->failed_flight == lease->flight)
		{
			*failure = slot->failure;
			lease->flight = 0;
			state = TOKEN_FAILED;
		}
		else if (in_flight && !slot->flight_is_refresh)
		{
			lease->flight = slot->flight;
			lease->retry_at = slot->flight_deadline;
			state = TOKEN_WAIT;
		}
		else
		{
			/*
			 * Nobody waits for a refresh: whose it is may have all the time in
			 * the world.
			 */
			token_slot_start_flight(slot, lease,
							  Min(deadline, TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS)),
							  false);
			state = TOKEN_FETCH;
		}
	}
	token_cache_unlock();
	if (evicted && token_cache->lock != NULL)
		app_share_log(&token_cache->eviction_logged_at, APP_LOSS_TOKEN);
	return state;
}

void
token_cache_bypass(TokenLease *lease)
{
	cache_ensure();
	lease_take_duty(lease);		/* for itself alone: flight 0 */
}

void
token_cache_store(TokenLease *lease, const char *token, int expires_in,
				  TimestampTz requested_at)
{
	int			length = strlen(token);
	int			life = Min(expires_in, TOKEN_MAX_SECONDS);
	TokenSlot  *slot;

	Assert(lease->fetching && length <= TOKEN_MAX_LENGTH);
	lease_make_room(lease, length);
	token_lease_drop_duty(lease);
	strcpy(lease->token, token);

	token_cache_lock(LW_EXCLUSIVE);
	/* one that comes after another took over is welcome if there is none */
	slot = lease->flight != 0 ? token_slot_find(&lease->key) : NULL;
	if (slot != NULL && slot->flight != lease->flight && token_slot_is_good(slot, requested_at))
		slot = NULL;
	if (slot != NULL)
	{
		if (slot->flight == lease->flight)
			slot->flight = 0;
		slot->generation = ++token_cache->counter;
		slot->stored_at = GetCurrentTimestamp();
		slot->unproven = slot->refused;
		slot->refused = false;
		slot->ask = TOKEN_ASK_NONE;
		lease->generation = slot->generation;
		lease->unproven = slot->unproven;
		slot->length = length;
		token_cache->longest = Max(token_cache->longest, length);
		memcpy(slot->token, token, length);
		slot->expires_at = requested_at + (TimestampTz) life * USECS_PER_SEC;
		slot->refresh_at = slot->expires_at -
			(TimestampTz) Min(TOKEN_REFRESH_SECONDS * 1000, life * 1000 / 4) * 1000;
		slot->last_used = requested_at;
	}
	token_cache_unlock();
	wakeup_broadcast();
}

void
token_cache_fail(TokenLease *lease, const TokenFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenSlot  *slot;

	Assert(lease->fetching);
	token_lease_drop_duty(lease);

	token_cache_lock(LW_EXCLUSIVE);
	slot = lease->flight != 0 ? token_slot_of_flight(lease) : NULL;
	if (slot != NULL)
	{
		slot->flight = 0;
		if (failure != NULL)
		{
			slot->failed_flight = lease->flight;
			slot->failure = *failure;
		}
		slot->ask = TOKEN_ASK_NONE;
		slot->refresh_at = TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_PAUSE_MS);
	}
	token_cache_unlock();
	wakeup_broadcast();
}

void
token_cache_abandon(TokenLease *lease)
{
	TokenSlot  *slot;

	if (!lease->fetching)
		return;
	token_lease_drop_duty(lease);

	token_cache_lock(LW_EXCLUSIVE);
	slot = lease->flight != 0 ? token_slot_of_flight(lease) : NULL;
	if (slot != NULL)
		slot->flight = 0;
	token_cache_unlock();
	wakeup_broadcast();
}

bool
token_cache_is_shared(void)
{
	return token_cache != NULL && token_cache->lock != NULL;
}

/* What becomes of the token of a slot, which was refused? */
static TokenRefused
slot_take_refusal(TokenSlot *slot, TimestampTz now)
{
	const int64 later = TOKEN_REPLACE_LATER_MS * INT64CONST(1000);

	/* these times lie ahead only if the clock was set back */
	if (slot->stored_at > now)
		slot->stored_at = 0;
	if (slot->replaced_until > now + TOKEN_REPLACE_AT_ONCE * later)
		slot->replaced_until = 0;

	if (slot->unproven && now < TimestampTzPlusMilliseconds(slot->stored_at, TOKEN_REPLACE_MS))
		return TOKEN_REFUSED_AGAIN;
	if (slot->replaced_until > now + (TOKEN_REPLACE_AT_ONCE - 1) * later)
		return slot->unproven ? TOKEN_REFUSED_AGAIN : TOKEN_REFUSED_OFTEN;
	slot->replaced_until = Max(slot->replaced_until, now) + later;
	return TOKEN_EVICTED;
}

TokenRefused
token_cache_evict(TokenLease *lease)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenSlot  *slot;
	TokenRefused refused = TOKEN_EVICTED;

	token_cache_lock(LW_EXCLUSIVE);
	slot = token_slot_find(&lease->key);
	/* unless somebody has replaced it already */
	if (slot != NULL && slot->generation == lease->generation && slot->length > 0)
	{
		refused = slot_take_refusal(slot, now);
		if (refused == TOKEN_EVICTED)
		{
			explicit_bzero(slot->token, slot->length);
			slot->length = 0;
			slot->refused = true;
		}
	}
	token_cache_unlock();
	return refused;
}

void
token_cache_prove(TokenLease *lease)
{
	TokenSlot  *slot;

	if (!lease->unproven)
		return;
	lease->unproven = false;
	token_cache_lock(LW_EXCLUSIVE);
	slot = token_slot_find(&lease->key);
	if (slot != NULL && slot->generation == lease->generation)
		slot->unproven = false;
	token_cache_unlock();
}
