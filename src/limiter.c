/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  What an app may do now: rate, concurrency, pauses, breaker.
 *
 * With shared_preload_libraries the limiter is in shared memory, so that all
 * backends and dispatchers of the cluster keep an app's limits together; else
 * each process has one of its own.  There is a slot for each app (AppKey) in
 * use; a slot with nothing under way makes room for another app when need be.
 *
 * What an app's state is, and what follows from it, is in gate.c.
 *
 * The lock protects which app has which slot; it is held shared to find one,
 * and exclusively to give one to another app, which only happens to a slot
 * without calls and turns.  So the slot of a place that is taken or has a
 * turn stays, and is found without the lock.  A slot's spinlock protects the
 * rest of it and is held for a few comparisons.  All of it is plain data.
 *
 * What a process holds is given back when its memory goes (call.c), and at the
 * latest by its exit.  After a crash all shared memory begins anew.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/limiter.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "gate.h"
#include "guc.h"
#include "limiter.h"
#include "nls.h"
#include "wakeup.h"

#define LIMITER_TRANCHE			"feishu_flow_limiter"

/* Apps that a process without the shared limiter remembers. */
#define LIMITER_LOCAL_APPS		16

typedef struct LimiterSlot
{
	slock_t		mutex;
	bool		recently_used;	/* spared once by slot_evict */
	AppGate		gate;
} LimiterSlot;

typedef struct Limiter
{
	LWLock	   *lock;			/* NULL: not shared */
	pg_atomic_uint32 ends;		/* of pauses that ended early */
	int			num_slots;
	int			num_used;		/* the first so many are in use */
	int			hand;			/* of slot_evict */
	AppKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* then the slots */
} Limiter;

/* What this process holds in a slot. */
typedef struct LimiterHeld
{
	int			places;
	int			turns;
} LimiterHeld;

static Limiter *limiter = NULL;
static LimiterSlot *slots = NULL;
static LimiterHeld *held = NULL;

static int	last_slot = 0;		/* found last: the first to look at */
static int	num_waiting = 0;	/* places of this process that wait */
static uint32 ends_seen = 0;	/* by limiter_pause_ended */


/* ---------- Memory ---------- */

static Size
limiter_size(int num_slots)
{
	Size		size = offsetof(Limiter, keys);

	size = add_size(size, mul_size(num_slots, sizeof(AppKey)));
	return add_size(MAXALIGN(size), mul_size(num_slots, sizeof(LimiterSlot)));
}

/* The slots, which follow the keys. */
static LimiterSlot *
limiter_slots(Limiter *memory)
{
	return (LimiterSlot *) ((char *) memory +
							MAXALIGN(offsetof(Limiter, keys) +
									 memory->num_slots * sizeof(AppKey)));
}

static void
limiter_init(Limiter *memory, LWLock *lock, int num_slots)
{
	memset(memory, 0, limiter_size(num_slots));
	memory->lock = lock;
	pg_atomic_init_u32(&memory->ends, 0);
	memory->num_slots = num_slots;
	for (int i = 0; i < num_slots; i++)
		SpinLockInit(&limiter_slots(memory)[i].mutex);
}

static void
limiter_attach(Limiter *memory)
{
	limiter = memory;
	slots = limiter_slots(memory);
}

void
limiter_request_shmem(void)
{
	RequestAddinShmemSpace(limiter_size(feishu_guc_max_apps));
	RequestNamedLWLockTranche(LIMITER_TRANCHE, 1);
}

void
limiter_startup_shmem(void)
{
	Limiter    *memory;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("feishu_flow limiter", limiter_size(feishu_guc_max_apps), &found);
	if (!found)
		limiter_init(memory, &GetNamedLWLockTranche(LIMITER_TRANCHE)->lock,
					 feishu_guc_max_apps);
	LWLockRelease(AddinShmemInitLock);
	limiter_attach(memory);
}

/* At the exit of a process: give back what it still holds. */
static void
limiter_on_exit(int code, Datum arg)
{
	for (int i = 0; i < limiter->num_slots; i++)
	{
		LimiterSlot *slot = &slots[i];

		if (held[i].places == 0 && held[i].turns == 0)
			continue;
		SpinLockAcquire(&slot->mutex);
		gate_forget_process(&slot->gate, MyProcPid, held[i].places, held[i].turns);
		SpinLockRelease(&slot->mutex);
		held[i].places = held[i].turns = 0;
		wakeup_broadcast();
	}
}

/* At the first use in a process. */
static void
limiter_ensure(void)
{
	if (held != NULL)
		return;
	if (limiter == NULL)
	{
		Limiter    *memory = MemoryContextAlloc(TopMemoryContext,
												limiter_size(LIMITER_LOCAL_APPS));

		limiter_init(memory, NULL, LIMITER_LOCAL_APPS);
		limiter_attach(memory);
	}
	held = MemoryContextAllocZero(TopMemoryContext,
								  limiter->num_slots * sizeof(LimiterHeld));
	on_shmem_exit(limiter_on_exit, (Datum) 0);
}

static inline void
limiter_lock(LWLockMode mode)
{
	if (limiter->lock != NULL)
		LWLockAcquire(limiter->lock, mode);
}

static inline void
limiter_unlock(void)
{
	if (limiter->lock != NULL)
		LWLockRelease(limiter->lock);
}


/* ---------- Slots ---------- */

/* The slot of a key, or -1.  The lock is held. */
static int
slot_find(const AppKey *key)
{
	if (last_slot < limiter->num_used &&
		memcmp(&limiter->keys[last_slot], key, sizeof(AppKey)) == 0)
		return last_slot;
	for (int i = 0; i < limiter->num_used; i++)
	{
		if (memcmp(&limiter->keys[i], key, sizeof(AppKey)) == 0)
			return last_slot = i;
	}
	return -1;
}

/*
 * Take a slot from an app that has nothing under way: one that was not used
 * since the hand came by last, and preferably one whose pauses need not be
 * remembered.  Returns -1 when all are busy.  The lock is held exclusively.
 */
static int
slot_evict(void)
{
	/* twice around to find one not used, once more to take any */
	for (int i = 0; i < 3 * limiter->num_used; i++)
	{
		int			candidate = limiter->hand;
		LimiterSlot *slot = &slots[candidate];
		bool		any = i >= 2 * limiter->num_used;
		bool		found = false;

		limiter->hand = (limiter->hand + 1) % limiter->num_used;
		SpinLockAcquire(&slot->mutex);
		if (slot->gate.in_flight == 0 && gate_turns(&slot->gate) == 0)
		{
			found = any || (!slot->recently_used && gate_is_open(&slot->gate));
			slot->recently_used = false;
			if (found)
				memset(&slot->gate, 0, sizeof(AppGate));
		}
		SpinLockRelease(&slot->mutex);
		if (found)
			return candidate;
	}
	return -1;
}

/*
 * The slot of a key, a new one if need be, or -1 when all are busy.  Takes the
 * lock, and leaves it held at least shared.
 */
static int
slot_find_or_add(const AppKey *key)
{
	int			n;

	limiter_lock(LW_SHARED);
	n = slot_find(key);
	if (n >= 0)
		return n;
	limiter_unlock();

	limiter_lock(LW_EXCLUSIVE);
	n = slot_find(key);
	if (n < 0)
	{
		n = limiter->num_used < limiter->num_slots ?
			limiter->num_used++ : slot_evict();
		if (n >= 0)
			limiter->keys[n] = *key;
	}
	return n;
}


/* ---------- Places ---------- */

/* Remember what this process holds, after a change of one of its places. */
static void
place_note(const LimiterPlace *before, const LimiterPlace *place)
{
	held[place->slot].places += place->taken - before->taken;
	held[place->slot].turns += place->has_turn - before->has_turn;
}

LimiterVerdict
limiter_acquire(const FlowServer *server, bool dispatching, LimiterPlace *place,
				TimestampTz *retry_at, LimiterPause *why)
{
	bool		has_limits = server->max_rate.requests > 0 || server->max_concurrency >= 0;
	LimiterVerdict verdict = LIMITER_GO;
	int			n;

	Assert(!place->taken);
	limiter_ensure();
	n = slot_find_or_add(&server->app_key);
	if (place->has_turn && place->slot != n)
	{
		/* the credentials have changed: that turn is one of another app */
		limiter_unlock();
		limiter_abandon(place);
		n = slot_find_or_add(&server->app_key);
	}
	if (n < 0)
	{
		/* max_apps are busy: this one is not limited */
		limiter_unlock();
		place->taken = true;
		place->slot = -1;
	}
	else
	{
		LimiterSlot *slot = &slots[n];
		LimiterPlace before = *place;

		SpinLockAcquire(&slot->mutex);
		slot->recently_used = true;
		if (!has_limits && !place->has_turn && gate_is_open(&slot->gate))
		{
			/* nearly always */
			gate_take(&slot->gate, place);
			SpinLockRelease(&slot->mutex);
		}
		else
		{
			TimestampTz now;

			SpinLockRelease(&slot->mutex);
			wakeup_look();
			now = GetCurrentTimestamp();
			SpinLockAcquire(&slot->mutex);
			verdict = gate_admit(&slot->gate, server, dispatching, place, now,
								 retry_at, why);
			SpinLockRelease(&slot->mutex);
		}
		place->slot = n;
		place_note(&before, place);
		limiter_unlock();
	}

	if ((verdict == LIMITER_WAIT) != place->waiting)
	{
		place->waiting = !place->waiting;
		num_waiting += place->waiting ? 1 : -1;
	}
	return verdict;
}

bool
limiter_is_stale(const LimiterPlace *place)
{
	return place->taken && !place->used && place->counted_at != 0 &&
		!place->is_probe && !place->is_trial &&
		rate_is_stale(place->counted_at, GetCurrentTimestamp());
}

bool
limiter_is_waiting(void)
{
	return num_waiting > 0;
}

bool
limiter_pause_ended(void)
{
	uint32		ends;

	limiter_ensure();
	ends = pg_atomic_read_u32(&limiter->ends);
	if (ends == ends_seen)
		return false;
	ends_seen = ends;
	return true;
}

/* Tell those who wait that a pause has ended early. */
static void
tell_pause_ended(void)
{
	pg_atomic_fetch_add_u32(&limiter->ends, 1);
	wakeup_broadcast();
}


/* ---------- Reports ---------- */

/* One line of the log for each change. */
static void
log_changes(const char *server_name, int changes, LimiterPause stop,
			const char *reason, double wait_s)
{
#define LOG_LINE(...) \
	ereport(LOG, (errmsg(__VA_ARGS__), errhidestmt(true), errhidecontext(true)))

	if (changes & GATE_OPENED)
		LOG_LINE("feishu_flow server \"%s\" does not answer, queued flows wait but for single probes: %s",
				 server_name, reason ? _(reason) : _("no reason given"));
	if (changes & GATE_CLOSED)
		LOG_LINE("feishu_flow server \"%s\" answers again", server_name);
	if (changes & GATE_PAUSED)
		LOG_LINE("feishu_flow server \"%s\": app is paused, %s: %s",
				 server_name, _(limiter_pause_text(stop)),
				 reason ? _(reason) : _("no reason given"));
	if (changes & GATE_RESUMED)
		LOG_LINE("feishu_flow server \"%s\": app is no longer paused", server_name);
	if (changes & GATE_RATE)
		LOG_LINE("feishu_flow server \"%s\" limits the rate of the app, calls wait for %g s",
				 server_name, wait_s);
}

/* The place is no more. */
static void
place_forget(LimiterPlace *place)
{
	if (place->waiting)
		num_waiting--;
	memset(place, 0, sizeof(LimiterPlace));
}

void
limiter_release(const FlowServer *server, LimiterPlace *place, LimiterReport report,
				double reset_seconds, const char *reason)
{
	bool		is_pinned = place->has_turn || (place->taken && place->slot >= 0);
	bool		wake = false;
	int			changes = 0;
	LimiterPause stop = LIMITER_RUNNING;
	double		wait_s = 0;
	int			n;

	if (report == LIMITER_REPORT_NOTHING)
	{
		limiter_abandon(place);
		return;
	}

	limiter_ensure();
	if (is_pinned)
		n = place->slot;
	else if (report > LIMITER_REPORT_REACHED)
		n = slot_find_or_add(&server->app_key);
	else
	{
		limiter_lock(LW_SHARED);
		n = slot_find(&server->app_key);
	}
	if (n >= 0)
	{
		LimiterSlot *slot = &slots[n];
		TimestampTz now = 0;
		LimiterPlace before = *place;

		/* that it works is no news, and needs no time */
		if (report != LIMITER_REPORT_ANSWERED)
			now = GetCurrentTimestamp();
		SpinLockAcquire(&slot->mutex);
		changes = gate_report(&slot->gate, place, report, reset_seconds, now,
							  limiter->lock != NULL);
		stop = slot->gate.stop;
		wait_s = (slot->gate.rate_until - now) / 1e6;
		if (is_pinned)
			wake = gate_give_back(&slot->gate, place);
		SpinLockRelease(&slot->mutex);
		if (is_pinned)
			place_note(&before, place);
	}
	if (!is_pinned)
		limiter_unlock();
	place_forget(place);

	if (changes & (GATE_CLOSED | GATE_RESUMED))
		tell_pause_ended();
	else if (wake)
		wakeup_broadcast();
	if (changes != 0)
		log_changes(server->name, changes, stop, reason, wait_s);
}

void
limiter_abandon(LimiterPlace *place)
{
	bool		wake = false;

	if (place->has_turn || (place->taken && place->slot >= 0))
	{
		LimiterSlot *slot = &slots[place->slot];
		LimiterPlace before = *place;

		SpinLockAcquire(&slot->mutex);
		(void) gate_report(&slot->gate, place, LIMITER_REPORT_NOTHING, -1, 0, false);
		wake = gate_give_back(&slot->gate, place);
		SpinLockRelease(&slot->mutex);
		place_note(&before, place);
	}
	place_forget(place);
	if (wake)
		wakeup_broadcast();
}


/* ---------- To look at, and to act on ---------- */

/* An app's slot, locked until slot_unlock; NULL when nothing is known of it. */
static LimiterSlot *
slot_lock(const AppKey *key)
{
	int			n;

	limiter_ensure();
	limiter_lock(LW_SHARED);
	n = slot_find(key);
	if (n < 0)
	{
		limiter_unlock();
		return NULL;
	}
	SpinLockAcquire(&slots[n].mutex);
	return &slots[n];
}

static void
slot_unlock(LimiterSlot *slot)
{
	SpinLockRelease(&slot->mutex);
	limiter_unlock();
}

bool
limiter_status(const AppKey *key, LimiterStatus *status)
{
	TimestampTz now = GetCurrentTimestamp();
	LimiterSlot *slot = slot_lock(key);

	memset(status, 0, sizeof(LimiterStatus));
	if (slot == NULL)
		return false;
	gate_status(&slot->gate, now, status);
	slot_unlock(slot);
	return true;
}

const char *
limiter_pause_text(LimiterPause pause)
{
	switch (pause)
	{
		case LIMITER_RUNNING:
			break;
		case LIMITER_MAX_RATE:
			return gettext_noop("max_rate");
		case LIMITER_MAX_CONCURRENCY:
			return gettext_noop("max_concurrency");
		case LIMITER_RATE:
			return gettext_noop("the platform limits the rate");
		case LIMITER_BREAKER:
			return gettext_noop("the platform does not answer");
		case LIMITER_CREDENTIALS:
			return gettext_noop("the credentials were refused");
		case LIMITER_QUOTA:
			return gettext_noop("the quota is used up");
	}
	return NULL;
}

void
limiter_resume(const char *server_name, const AppKey *key)
{
	LimiterSlot *slot = slot_lock(key);
	bool		was_paused = false;

	if (slot != NULL)
	{
		was_paused = gate_resume(&slot->gate);
		slot_unlock(slot);
	}
	tell_pause_ended();
	if (was_paused)
		ereport(LOG,
				(errmsg("feishu_flow server \"%s\": queued flows are sent again, somebody resumed it",
						server_name),
				 errhidestmt(true), errhidecontext(true)));
}
