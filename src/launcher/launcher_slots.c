/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_slots.c
 *	  The shared array of databases that launcher, dispatchers, backends and
 *	  DDL statements meet in.
 *
 * A slot is a database that has the extension, or may have it, or in which a
 * DDL statement wants no worker.  It has at most one worker, the dispatcher, which
 * looks for the extension first; and besides it the sessions for handlers
 * (launcher_sessions.c).
 *
 * Whose a slot is: anybody may add one and hold one.  Only the launcher starts
 * workers and removes slots.  How a worker takes its slot and leaves it is in
 * launcher_workers.c.  No dead worker stays in a slot, and no dead statement holds
 * one: their ends are seen by callbacks, and a process that cannot run its
 * callbacks takes all shared memory with it.
 *
 * The lock protects everything but the notice and the latch to set, which are
 * under a spinlock of the slot, for they are written in each commit that
 * queued something.  The database is written under both, so either will do to
 * read it.  Nothing throws or waits under them.
 *
 * Processes are known by number, latches found from it: there are no pointers
 * in shared memory.  Setting the latch of one that ended meanwhile wakes
 * somebody else for nothing, which everybody must put up with anyway.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "base/compat.h"
#include "base/steady.h"
#include "launcher/launcher_sessions.h"
#include "launcher/launcher_slots.h"

#define LAUNCHER_TRANCHE		"feishu_flow_launcher"

/*
 * Room for databases that have the extension.  Each needs a worker, so that
 * more than there may be workers are of little use; but those that wait for
 * one, and those being looked into, need room as well.
 */
#define MIN_SLOTS				64
#define SLOTS_PER_WORKER		4

/*
 * A worker that is to end is asked first, then told, then left alone:
 * PostgreSQL waits another 5 s for it before it gives up.
 */
#define STOP_ASK_MS				300
#define STOP_GIVE_UP_MS			5000

LauncherShared *launcher_shared = NULL;


/* ---------- Memory ---------- */

static int
num_slots_wanted(void)
{
	return Max(MIN_SLOTS, max_worker_processes * SLOTS_PER_WORKER);
}

static Size
shared_size(void)
{
	return add_size(offsetof(LauncherShared, slots),
					mul_size(num_slots_wanted(), sizeof(DatabaseSlot)));
}

void
launcher_request_shmem(void)
{
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche(LAUNCHER_TRANCHE, 1);
}

void
launcher_startup_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	launcher_shared = ShmemInitStruct("feishu_flow launcher", shared_size(), &found);
	if (!found)
	{
		memset(launcher_shared, 0, shared_size());
		launcher_shared->lock = &GetNamedLWLockTranche(LAUNCHER_TRANCHE)->lock;
		ConditionVariableInit(&launcher_shared->detached);
		launcher_shared->launcher = INVALID_PROC_NUMBER;
		launcher_shared->num_slots = num_slots_wanted();
		for (int i = 0; i < launcher_shared->num_slots; i++)
		{
			SpinLockInit(&launcher_shared->slots[i].mutex);
			launcher_shared->slots[i].proc = INVALID_PROC_NUMBER;
			launcher_shared->slots[i].notice = DISPATCH_NO_NOTICE;
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Are there launcher and dispatchers at all (was the library preloaded)? */
bool
launcher_present(void)
{
	return launcher_shared != NULL && !IsBinaryUpgrade;
}

int
slots_count(void)
{
	return launcher_shared->num_slots;
}


/* ---------- Slots ---------- */

/* The slot of a database, or -1.  The lock is held. */
int
slots_place_find(Oid database)
{
	for (int i = 0; i < launcher_shared->num_slots; i++)
	{
		if (launcher_shared->slots[i].database == database)
			return i;
	}
	return -1;
}

/* The same, a new one if need be.  The lock is held exclusively. */
int
slots_place_find_or_add(Oid database)
{
	int			place = slots_place_find(database);
	DatabaseSlot *slot;

	if (place >= 0)
		return place;
	place = slots_place_find(InvalidOid);
	if (place < 0)
	{
		launcher_shared->overflowed = true;
		return -1;
	}
	slot = &launcher_shared->slots[place];
	Assert(!slot->worker && slot->holds == 0);
	slot->extension = EXTENSION_UNKNOWN;
	slot->extension_oid = InvalidOid;
	slot->ended_well = true;
	SpinLockAcquire(&slot->mutex);
	slot->database = database;
	slot->notice = DISPATCH_NO_NOTICE;
	SpinLockRelease(&slot->mutex);
	return place;
}

/* Have a slot for a database of which nothing is known yet; -1: no room. */
int
slots_add(Oid database)
{
	int			place;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	place = slots_place_find_or_add(database);
	LWLockRelease(launcher_shared->lock);
	return place;
}

/*
 * Have one for a database in which the extension was committed just now; or maybe
 * was, if its OID is given: one that is known already is not new.
 */
void
slots_add_known(Oid database, Oid extension)
{
	int			place;
	bool		is_new = true;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	place = slots_place_find_or_add(database);
	if (place >= 0)
	{
		DatabaseSlot *slot = &launcher_shared->slots[place];

		is_new = slot->extension != EXTENSION_PRESENT ||
			!OidIsValid(extension) || slot->extension_oid != extension;
		slot->extension = EXTENSION_PRESENT;
		slot->extension_oid = extension;
		if (is_new)
			slot->creations++;
	}
	LWLockRelease(launcher_shared->lock);
	/* even if it was thought to be there: a dispatcher may wait to be tried again */
	if (is_new)
		slots_wake_launcher(false);
}

/* The slot of a database at this moment, or -1. */
int
slots_find(Oid database)
{
	int			place;

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	place = slots_place_find(database);
	LWLockRelease(launcher_shared->lock);
	return place;
}

/* Copy a slot; false when it is free. */
bool
slots_view(int place, SlotView *view)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	view->database = slot->database;
	view->extension = slot->extension;
	view->worker = slot->worker;
	view->generation = slot->generation;
	view->pid = slot->pid;
	view->held = slot->holds > 0;
	view->ended_well = slot->ended_well;
	view->creations = slot->creations;
	SpinLockAcquire(&slot->mutex);
	view->stop = slot->stop;
	view->failing = slot->failing;
	view->locked_out = slot->locked_out;
	view->no_handlers = slot->no_handlers;
	SpinLockRelease(&slot->mutex);
	LWLockRelease(launcher_shared->lock);
	return OidIsValid(view->database);
}

/*
 * Free the slot of a database that is gone, or does not have the extension;
 * not when the extension was created, or somebody holds the slot, meanwhile.
 */
bool
slots_remove(int place, bool database_gone)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];
	bool		removed = false;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (!slot->worker && slot->holds == 0 &&
		(database_gone || slot->extension != EXTENSION_PRESENT))
	{
		SpinLockAcquire(&slot->mutex);
		slot->database = InvalidOid;
		SpinLockRelease(&slot->mutex);
		removed = true;
	}
	LWLockRelease(launcher_shared->lock);
	return removed;
}


/* ---------- DDL ---------- */

/*
 * From now on no worker attaches in this database, and those there are are
 * asked to end.  Returns what slots_release wants, -1: there was no room.
 */
int
slots_hold(Oid database)
{
	int			place;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	place = slots_place_find_or_add(database);
	if (place >= 0)
		launcher_shared->slots[place].holds++;
	LWLockRelease(launcher_shared->lock);
	if (place >= 0)
		slots_stop_worker(place);
	return place;
}

void
slots_release(int place)
{
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	Assert(launcher_shared->slots[place].holds > 0);
	launcher_shared->slots[place].holds--;
	LWLockRelease(launcher_shared->lock);
}

/* Wait until no worker is connected to the database of a slot we hold. */
void
slots_wait_until_free(int place)
{
	static uint32 wait_event = 0;
	SteadyTime	start = steady_now();
	int			wait_ms = STOP_ASK_MS;

	if (wait_event == 0)
		wait_event = feishu_wait_event_new("FeishuFlowStopWorker");
	ConditionVariablePrepareToSleep(&launcher_shared->detached);
	for (;;)
	{
		SlotView	view;
		long		left;

		(void) slots_view(place, &view);
		if (view.pid == 0 && !sessions_are_attached(view.database))
			break;
		left = steady_left_ms(steady_after_ms(start, wait_ms));
		if (left <= 0)
		{
			if (wait_ms == STOP_GIVE_UP_MS)
				break;
			slots_terminate_worker(place);
			wait_ms = STOP_GIVE_UP_MS;
			continue;
		}
		(void) ConditionVariableTimedSleep(&launcher_shared->detached, left, wait_event);
	}
	ConditionVariableCancelSleep();
}


/* ---------- The launcher ---------- */

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	launcher_shared->launcher = INVALID_PROC_NUMBER;
	LWLockRelease(launcher_shared->lock);
}

/* The launcher is there, and its latch is to be set from now on. */
void
slots_attach_launcher(void)
{
	on_shmem_exit(launcher_detach, 0);
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	launcher_shared->launcher = MyProcNumber;
	LWLockRelease(launcher_shared->lock);
}

void
slots_wake_launcher(bool databases_changed)
{
	ProcNumber	launcher;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	launcher_shared->databases_changed |= databases_changed;
	launcher = launcher_shared->launcher;
	LWLockRelease(launcher_shared->lock);
	slots_wake(launcher);
}

/* Has pg_database changed; was there no room for a database? */
bool
slots_take_changes(bool *overflowed)
{
	bool		changed;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	changed = launcher_shared->databases_changed;
	launcher_shared->databases_changed = false;
	*overflowed = launcher_shared->overflowed;
	launcher_shared->overflowed = false;
	LWLockRelease(launcher_shared->lock);
	return changed;
}

/* Had PostgreSQL no room for a worker that is still wanted? */
void
slots_set_no_room(bool no_room)
{
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	launcher_shared->no_room = no_room;
	LWLockRelease(launcher_shared->lock);
}

/* Could the launcher start a worker now, if it wanted one? */
bool
slots_may_start(void)
{
	bool		may;

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	may = !launcher_shared->no_room && launcher_shared->launcher != INVALID_PROC_NUMBER;
	LWLockRelease(launcher_shared->lock);
	return may;
}
