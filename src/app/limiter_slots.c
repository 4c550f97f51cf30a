/*-------------------------------------------------------------------------
 *
 * limiter_slots.c
 *	  The limiter's memory: which app has which slot.
 *
 * A slot with nothing under way makes room for another app when need be.  One
 * whose state matters no more is taken first, whoever had it.  One whose limits
 * are live is taken only for another app of the same payer, or from the payer
 * who has most of the slots, if these are more than a share (app_share.c).  The
 * last slots are a reserve for payers who have less than a share: so one whose calls
 * hang leaves room for others.  Where there is no room, the app's calls wait, as long
 * as its server has limits (limiter.c).
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/limiter_slots.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/app_share.h"
#include "app/limiter_internal.h"
#include "base/guc.h"
#include "base/wakeup.h"

#define LIMITER_TRANCHE			"feishu_flow_limiter"

/* Apps that a process without the shared limiter remembers. */
#define LIMITER_LOCAL_APPS		16

/* Payers are counted by their number modulo this, which tells most apart. */
#define PAYER_BUCKETS			1024

/* What this process holds in a slot. */
typedef struct LimiterHeld
{
	int			places;
	int			turns;
} LimiterHeld;

Limiter    *limiter = NULL;
LimiterSlot *limiter_slots = NULL;

static LimiterHeld *held = NULL;
static int	last_slot = 0;		/* found last: the first to look at */
static bool evicted = false;	/* an app was forgotten, and that not yet told */
static bool no_room = false;	/* likewise, there was no room for one */


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
slots_of(Limiter *memory)
{
	return (LimiterSlot *) ((char *) memory +
							MAXALIGN(offsetof(Limiter, keys) +
									 memory->num_slots * sizeof(AppKey)));
}

/* locks: of the shared limiter, or NULL. */
static void
limiter_init(Limiter *memory, LWLockPadded *locks, int num_slots)
{
	memset(memory, 0, limiter_size(num_slots));
	if (locks != NULL)
	{
		memory->lock = &locks[0].lock;
		memory->file_lock = &locks[1].lock;
	}
	pg_atomic_init_u32(&memory->ends, 0);
	pg_atomic_init_u32(&memory->frees, 0);
	pg_atomic_init_u64(&memory->loss_logged_at, 0);
	pg_atomic_init_u64(&memory->no_room_logged_at, 0);
	pg_atomic_init_u32(&memory->keep_asked, 0);
	pg_atomic_init_u32(&memory->keep_done, 0);
	memory->num_slots = num_slots;
	for (int i = 0; i < num_slots; i++)
		SpinLockInit(&slots_of(memory)[i].mutex);
}

static void
limiter_attach(Limiter *memory)
{
	limiter = memory;
	limiter_slots = slots_of(memory);
}

void
limiter_request_shmem(void)
{
	RequestAddinShmemSpace(limiter_size(feishu_guc_max_apps));
	RequestNamedLWLockTranche(LIMITER_TRANCHE, 2);
}

void
limiter_startup_shmem(void)
{
	Limiter    *memory;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("feishu_flow limiter", limiter_size(feishu_guc_max_apps), &found);
	if (!found)
		limiter_init(memory, GetNamedLWLockTranche(LIMITER_TRANCHE), feishu_guc_max_apps);
	LWLockRelease(AddinShmemInitLock);
	limiter_attach(memory);
	if (!found)
		limiter_restore();
}

/* Tell those who wait that a place was given back. */
void
limiter_tell_free(void)
{
	pg_atomic_fetch_add_u32(&limiter->frees, 1);
	wakeup_broadcast();
}

/* At the exit of a process: give back what it still holds. */
static void
limiter_on_exit(int code, Datum arg)
{
	for (int i = 0; i < limiter->num_slots; i++)
	{
		LimiterSlot *slot = &limiter_slots[i];

		if (held[i].places == 0 && held[i].turns == 0)
			continue;
		SpinLockAcquire(&slot->mutex);
		gate_forget_process(&slot->gate, MyProcPid, held[i].places, held[i].turns);
		SpinLockRelease(&slot->mutex);
		held[i].places = held[i].turns = 0;
		limiter_tell_free();
	}
}

/* At the first use in a process. */
void
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

/* Remember what this process holds in a slot: so much more, or less. */
void
limiter_slot_hold(int slot, int places, int turns)
{
	held[slot].places += places;
	held[slot].turns += turns;
}


/* ---------- Slots ---------- */

/* The slot of a key, or -1.  The lock is held. */
int
limiter_slot_find(const AppKey *key)
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

static int
payer_count_slots(Oid payer)
{
	int			count = 0;

	for (int i = 0; i < limiter->num_used; i++)
		count += limiter_slots[i].payer == payer;
	return count;
}

/* Who has most of the slots.  Almost: see PAYER_BUCKETS. */
static Oid
payer_with_most_slots(void)
{
	uint16		counts[PAYER_BUCKETS] = {0};
	Oid			most = InvalidOid;

	for (int i = 0; i < limiter->num_used; i++)
	{
		Oid			payer = limiter_slots[i].payer;

		if (!OidIsValid(payer))
			continue;
		counts[payer % PAYER_BUCKETS]++;
		if (!OidIsValid(most) ||
			counts[payer % PAYER_BUCKETS] > counts[most % PAYER_BUCKETS])
			most = payer;
	}
	return most;
}

/* Whose live limits make room for an app of this payer. */
static Oid
payer_of_victim(Oid payer)
{
	int			share = app_share_slots(limiter->num_slots);
	Oid			most;

	if (payer_count_slots(payer) >= share)
		return payer;
	most = payer_with_most_slots();
	return payer_count_slots(most) > share ? most : payer;
}

/* Slots that may be had without a loss. */
static int
count_free_slots(TimestampTz now)
{
	int			count = limiter->num_slots - limiter->num_used;

	for (int i = 0; i < limiter->num_used; i++)
	{
		LimiterSlot *slot = &limiter_slots[i];

		SpinLockAcquire(&slot->mutex);
		count += gate_is_idle(&slot->gate) && !gate_is_live(&slot->gate, now);
		SpinLockRelease(&slot->mutex);
	}
	return count;
}

/* May a payer have one of these?  Else they are left to others. */
static bool
payer_may_have_another(Oid payer, TimestampTz now)
{
	return payer_count_slots(payer) < app_share_slots(limiter->num_slots) ||
		count_free_slots(now) > app_share_reserve(limiter->num_slots);
}

/*
 * Take a slot from an app that has nothing under way, and has not been used
 * since the hand came by last if there is such a one: one of this payer, or (unless
 * only_his) one whose state matters no more.  Returns -1 when there is none.
 */
static int
slot_take(Oid payer, bool only_his, TimestampTz now)
{
	/* once around to find one not used, once more to take any */
	for (int i = 0; i < 2 * limiter->num_used; i++)
	{
		int			candidate = limiter->hand;
		LimiterSlot *slot = &limiter_slots[candidate];
		bool		is_his = OidIsValid(payer) && slot->payer == payer;
		bool		found = false;

		limiter->hand = (limiter->hand + 1) % limiter->num_used;
		SpinLockAcquire(&slot->mutex);
		if (gate_is_idle(&slot->gate) &&
			(is_his || (!only_his && !gate_is_live(&slot->gate, now))))
		{
			found = !slot->recently_used;
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

/* Take a slot for an app of this payer, or -1.  The lock is held exclusively. */
static int
slot_get(Oid payer)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		may_have = payer_may_have_another(payer, now);
	int			n = -1;

	if (may_have && limiter->num_used < limiter->num_slots)
		return limiter->num_used++;
	if (may_have)
		n = slot_take(InvalidOid, false, now);
	if (n < 0)
		n = slot_take(may_have ? payer_of_victim(payer) : payer, !may_have, now);
	evicted |= n >= 0;
	no_room |= n < 0;
	return n;
}

/*
 * The slot of a server's app, a new one if need be, or -1 when there is no room.
 * Takes the lock, and leaves it held at least shared.  After its release the
 * caller owes a call of limiter_log_losses.
 */
int
limiter_slot_find_or_add(const FlowServer *server)
{
	int			n;

	limiter_lock(LW_SHARED);
	n = limiter_slot_find(&server->app_key);
	if (n >= 0)
		return n;
	limiter_unlock();

	limiter_lock(LW_EXCLUSIVE);
	n = limiter_slot_find(&server->app_key);
	if (n < 0)
	{
		n = slot_get(server->payer);
		if (n >= 0)
		{
			limiter->keys[n] = server->app_key;
			limiter_slots[n].payer = server->payer;
		}
	}
	return n;
}

/* There may have been too little room: tell the log.  Not under a lock. */
void
limiter_log_losses(void)
{
	/* max_apps says nothing of the memory of one process */
	if (evicted && limiter->lock != NULL)
		app_share_log(&limiter->loss_logged_at, APP_LOSS_LIMITS);
	if (no_room && limiter->lock != NULL)
		app_share_log(&limiter->no_room_logged_at, APP_LOSS_NO_ROOM);
	evicted = no_room = false;
}
