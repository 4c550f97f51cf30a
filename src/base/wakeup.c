/*-------------------------------------------------------------------------
 *
 * src/base/wakeup.c
 *	  How processes that wait for each other's doings are woken.
 *
 * A call may wait for a token (token.c) or for a place among its app's calls
 * (limiter.c), and a dispatcher for both on behalf of different calls.  So
 * there is one kind of wake-up for all of it, and who is woken looks at
 * everything again.  What is waited for is rare enough.
 *
 * A broadcast between the look and the sleep must not be lost, although much
 * may happen in between that waits on the same latch and resets it.
 * Therefore broadcasts are counted: a process notes the count when it looks,
 * asks to be woken as the last thing before it sleeps, and does not sleep if
 * the count has moved.
 *
 * These are not condition variables: a process can be prepared for one of
 * those at a time, PostgreSQL cancels that when it waits for something else in
 * between, and before 17 to cancel after a wake-up wakes the next one, so that
 * processes which look, go on waiting and prepare again would wake each other
 * without end.
 *
 * One flag for each process that can exist says that it wants to be woken.
 * Nothing has to be cleaned up when one dies: at worst, the next owner of its
 * place has its latch set once for nothing.
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

#include "base/wakeup.h"

typedef struct Wakeup
{
	pg_atomic_uint64 broadcasts;
	int			num_flags;		/* processes that can have a latch of theirs */
	pg_atomic_uint32 wanted[FLEXIBLE_ARRAY_MEMBER];
} Wakeup;

static Wakeup *wakeup = NULL;	/* NULL: not shared */

static bool looked = false;		/* since the last wait */
static uint64 looked_at;		/* count of broadcasts at the first look */

static Size
wakeup_size(void)
{
	return add_size(offsetof(Wakeup, wanted),
					mul_size(MaxBackends, sizeof(pg_atomic_uint32)));
}

/* Hooks of the postmaster; without them a process can only wait for itself. */
void
wakeup_request_shmem(void)
{
	RequestAddinShmemSpace(wakeup_size());
}

void
wakeup_startup_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	wakeup = ShmemInitStruct("feishu_flow wakeup", wakeup_size(), &found);
	if (!found)
	{
		pg_atomic_init_u64(&wakeup->broadcasts, 0);
		wakeup->num_flags = MaxBackends;
		for (int i = 0; i < wakeup->num_flags; i++)
			pg_atomic_init_u32(&wakeup->wanted[i], 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * The flag of this process, or NULL.  Backends and workers come first among
 * all processes.
 */
static pg_atomic_uint32 *
my_flag(void)
{
	ptrdiff_t	number;

	if (wakeup == NULL || MyProc == NULL)
		return NULL;
	number = MyProc - ProcGlobal->allProcs;
	return number < wakeup->num_flags ? &wakeup->wanted[number] : NULL;
}

/*
 * To be called before looking at shared state that one may have to wait for.
 * Cheap, and does no harm when there is nothing to wait for after all.
 */
void
wakeup_look(void)
{
	if (looked || wakeup == NULL)
		return;
	looked_at = pg_atomic_read_u64(&wakeup->broadcasts);
	looked = true;
	pg_memory_barrier();		/* read the count before what one looks at */
}

/*
 * To be called right before the process waits on its latch for what it did
 * not find: has the latch set at the next broadcast, or at once if there was
 * one since the first look after the last wait.
 */
void
wakeup_wait_begin(void)
{
	pg_atomic_uint32 *flag = my_flag();

	if (flag == NULL)
		return;
	pg_atomic_write_u32(flag, 1);
	pg_memory_barrier();		/* whoever broadcasts sees the flag, or we the count */
	if (looked && pg_atomic_read_u64(&wakeup->broadcasts) != looked_at)
		SetLatch(MyLatch);
	looked = false;
}

/* There is nothing to wait for any more. */
void
wakeup_wait_end(void)
{
	pg_atomic_uint32 *flag = my_flag();

	if (flag != NULL && pg_atomic_read_u32(flag) != 0)
		pg_atomic_write_u32(flag, 0);
	looked = false;
}

/*
 * Something changed that others may wait for.  Not under a lock.  Does not
 * throw.
 */
void
wakeup_broadcast(void)
{
	if (wakeup == NULL)
		return;
	pg_atomic_fetch_add_u64(&wakeup->broadcasts, 1);	/* a barrier, too */
	for (int i = 0; i < wakeup->num_flags; i++)
	{
		if (pg_atomic_read_u32(&wakeup->wanted[i]) != 0 &&
			pg_atomic_exchange_u32(&wakeup->wanted[i], 0) != 0)
			SetLatch(&ProcGlobal->allProcs[i].procLatch);
	}
}
