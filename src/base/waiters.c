/*-------------------------------------------------------------------------
 *
 * src/base/waiters.c
 *	  Sessions that wait for the end of a flow, and how they are told of it.
 *
 * One slot for each process that can exist names the flow that it waits for.
 * Whoever has committed the ends of flows (notify.c) goes over the slots and wakes
 * those whose flow it is; that they look at everything again, as in wakeup.c,
 * would cost the more the more of them wait.  A count of who waits makes it cost
 * nothing when nobody does.
 *
 * No end is missed: who waits names its flow, then looks, with a full barrier in
 * between; who tells commits, then reads the slots, likewise.  So either the slot
 * is seen, or the end is.  An end that comes between the look and the sleep sets
 * the latch, which other waits within the look may reset: so it is noted in the
 * slot as well.
 *
 * A slot is written by its process, but for that note, and is cleared before the
 * process gives back its number, at an exit by FATAL, too.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"

#include "base/compat.h"
#include "base/waiters.h"

typedef struct WaiterSlot
{
	pg_atomic_uint64 id;		/* the flow, if there is a database */
	pg_atomic_uint32 database;	/* InvalidOid: it does not wait */
	pg_atomic_uint32 is_notified;	/* since the last look */
} WaiterSlot;

typedef struct Waiters
{
	pg_atomic_uint32 num_waiting;	/* slots with a database, at least */
	int			num_slots;
	WaiterSlot	slots[FLEXIBLE_ARRAY_MEMBER];
} Waiters;

static Waiters *waiters = NULL; /* NULL: not shared */
static WaiterSlot *my_slot = NULL;	/* NULL: not needed yet */

static Size
waiters_size(void)
{
	return add_size(offsetof(Waiters, slots), mul_size(MaxBackends, sizeof(WaiterSlot)));
}

/* Hooks of the postmaster; without them nobody is notified. */
void
waiters_request_shmem(void)
{
	RequestAddinShmemSpace(waiters_size());
}

void
waiters_startup_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	waiters = ShmemInitStruct("feishu_flow waiters", waiters_size(), &found);
	if (!found)
	{
		pg_atomic_init_u32(&waiters->num_waiting, 0);
		waiters->num_slots = MaxBackends;
		for (int i = 0; i < waiters->num_slots; i++)
		{
			pg_atomic_init_u64(&waiters->slots[i].id, 0);
			pg_atomic_init_u32(&waiters->slots[i].database, InvalidOid);
			pg_atomic_init_u32(&waiters->slots[i].is_notified, 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}


/* ---------- Who waits ---------- */

/* At the exit of a process, while its number is still its own. */
static void
waiters_on_exit(int code, Datum arg)
{
	waiters_leave();
}

/* Find the slot of this process, at the first use; false: there is none. */
static bool
have_slot(void)
{
	if (my_slot != NULL)
		return true;
	/* backends and workers come first among all processes */
	if (waiters == NULL || MyProc == NULL || MyProcNumber >= waiters->num_slots)
		return false;
	on_shmem_exit(waiters_on_exit, (Datum) 0);
	my_slot = &waiters->slots[MyProcNumber];
	return true;
}

/*
 * This process waits for the end of a flow of its database, until waiters_leave,
 * which is to be called on every way out.  To be called before each look at the
 * flow.
 */
void
waiters_look(int64 id)
{
	if (!have_slot())
		return;
	pg_atomic_write_u64(&my_slot->id, (uint64) id);
	if (pg_atomic_read_u32(&my_slot->database) == InvalidOid)
	{
		pg_atomic_fetch_add_u32(&waiters->num_waiting, 1);	/* a barrier, too */
		pg_atomic_write_u32(&my_slot->database, MyDatabaseId);
	}
	pg_atomic_exchange_u32(&my_slot->is_notified, 0);	/* a barrier before the look */
}

/* Was the process notified of something since its last look, so that it must not sleep? */
bool
waiters_is_notified(void)
{
	return my_slot != NULL && pg_atomic_read_u32(&my_slot->is_notified) != 0;
}

void
waiters_leave(void)
{
	if (my_slot == NULL || pg_atomic_read_u32(&my_slot->database) == InvalidOid)
		return;
	pg_atomic_write_u32(&my_slot->database, InvalidOid);
	pg_atomic_fetch_sub_u32(&waiters->num_waiting, 1);
}


/* ---------- Who tells ---------- */

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

/* Wake those who wait in this database; for one of the sorted ids, unless NULL. */
static void
wake(const int64 *ids, int num)
{
	for (int i = 0; i < waiters->num_slots; i++)
	{
		WaiterSlot *slot = &waiters->slots[i];
		int64		id;

		if (pg_atomic_read_u32(&slot->database) != MyDatabaseId)
			continue;
		pg_read_barrier();		/* it was written after the id */
		id = (int64) pg_atomic_read_u64(&slot->id);
		if (ids != NULL && bsearch(&id, ids, num, sizeof(int64), compare_ids) == NULL)
			continue;
		/* whoever has noted it before us sets the latch */
		if (pg_atomic_exchange_u32(&slot->is_notified, 1) == 0)
			SetLatch(&ProcGlobal->allProcs[i].procLatch);
	}
}

/* Does anybody wait?  Who begins to after this sees what was committed before. */
static bool
anybody_waits(void)
{
	if (waiters == NULL)
		return false;
	pg_memory_barrier();
	return pg_atomic_read_u32(&waiters->num_waiting) > 0;
}

/*
 * Flows of this database have ended.  After the commit, not under a lock.  Sorts
 * the ids.  Neither of these throws or allocates.
 */
void
waiters_notify(int64 *ids, int num)
{
	if (num == 0 || !anybody_waits())
		return;
	qsort(ids, num, sizeof(int64), compare_ids);
	wake(ids, num);
}

/* Any flows may have ended: all who wait in this database look. */
void
waiters_notify_all(void)
{
	if (anybody_waits())
		wake(NULL, 0);
}
