/*-------------------------------------------------------------------------
 *
 * launcher_slots.c
 *	  The shared array of databases that launcher, dispatchers, backends and
 *	  DDL statements meet in.
 *
 * A slot is a database that has the extension, or may have it, or in which a
 * DDL statement wants no worker.  It has at most one worker: the prober, which
 * looks for the extension, or the dispatcher.
 *
 * Whose a slot is: anybody may add one and hold one.  Only the launcher starts
 * workers and removes slots.  A worker attaches before it connects to the
 * database, and is refused then if it is held or the launcher has given it up
 * (by then the generation is another one).  It detaches after it has left the
 * array of processes, so that a statement that waited for this finds the
 * database free.  As its end is seen by an exit callback, no dead worker stays
 * in a slot, and no dead statement holds one: a process that cannot run its
 * callbacks takes all shared memory with it.
 *
 * The lock protects everything but the news and the latch to set, which are
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
 * src/launcher_slots.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "launcher_internal.h"
#include "steady.h"

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

typedef struct DatabaseSlot
{
	/* under mutex */
	slock_t		mutex;
	ProcNumber	proc;			/* attached worker, or INVALID_PROC_NUMBER */
	bool		stop;			/* the worker is to end */
	bool		failing;		/* the dispatcher cannot work on its queue */
	DispatchNews news;
	/* under both */
	Oid			database;		/* InvalidOid: the slot is free */
	/* under the lock */
	ExtensionState extension;
	Oid			extension_oid;	/* if known */
	uint32		creations;		/* counts CREATE EXTENSION */
	int			holds;
	WorkerKind	worker;
	uint32		generation;
	pid_t		pid;
	bool		ended_well;
} DatabaseSlot;

typedef struct LauncherShared
{
	LWLock	   *lock;
	ConditionVariable detached; /* some worker has */
	ProcNumber	launcher;		/* or INVALID_PROC_NUMBER */
	bool		databases_changed;	/* pg_database, or a slot's state */
	bool		overflowed;		/* a slot was needed and there was none */
	bool		no_room;		/* a worker was needed and there was none */
	int			num_slots;
	DatabaseSlot slots[FLEXIBLE_ARRAY_MEMBER];
} LauncherShared;

static LauncherShared *shared = NULL;

/* The slot of this process' database, when known; may be out of date. */
static int	own_place = -1;


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
	shared = ShmemInitStruct("feishu_flow launcher", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		shared->lock = &GetNamedLWLockTranche(LAUNCHER_TRANCHE)->lock;
		ConditionVariableInit(&shared->detached);
		shared->launcher = INVALID_PROC_NUMBER;
		shared->num_slots = num_slots_wanted();
		for (int i = 0; i < shared->num_slots; i++)
		{
			SpinLockInit(&shared->slots[i].mutex);
			shared->slots[i].proc = INVALID_PROC_NUMBER;
			shared->slots[i].news = DISPATCH_NO_NEWS;
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

bool
launcher_present(void)
{
	return shared != NULL && !IsBinaryUpgrade;
}

int
slots_count(void)
{
	return shared->num_slots;
}

static void
wake(ProcNumber proc)
{
	if (proc != INVALID_PROC_NUMBER)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}


/* ---------- Slots ---------- */

/* The slot of a database, or -1.  The lock is held. */
static int
place_find(Oid database)
{
	for (int i = 0; i < shared->num_slots; i++)
	{
		if (shared->slots[i].database == database)
			return i;
	}
	return -1;
}

/* The same, a new one if need be.  The lock is held exclusively. */
static int
place_find_or_add(Oid database)
{
	int			place = place_find(database);
	DatabaseSlot *slot;

	if (place >= 0)
		return place;
	place = place_find(InvalidOid);
	if (place < 0)
	{
		shared->overflowed = true;
		return -1;
	}
	slot = &shared->slots[place];
	Assert(slot->worker == WORKER_NONE && slot->holds == 0);
	slot->extension = EXTENSION_UNKNOWN;
	slot->extension_oid = InvalidOid;
	slot->ended_well = true;
	SpinLockAcquire(&slot->mutex);
	slot->database = database;
	slot->news = DISPATCH_NO_NEWS;
	SpinLockRelease(&slot->mutex);
	return place;
}

/* Have a slot for a database of which nothing is known yet; -1: no room. */
int
slots_add(Oid database)
{
	int			place;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = place_find_or_add(database);
	LWLockRelease(shared->lock);
	return place;
}

/*
 * Have one for a database in which the extension was committed just now; or maybe
 * was, if its OID is given: one that is known already is no news.
 */
void
slots_add_known(Oid database, Oid extension)
{
	int			place;
	bool		is_news = true;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = place_find_or_add(database);
	if (place >= 0)
	{
		DatabaseSlot *slot = &shared->slots[place];

		is_news = slot->extension != EXTENSION_PRESENT ||
			!OidIsValid(extension) || slot->extension_oid != extension;
		slot->extension = EXTENSION_PRESENT;
		slot->extension_oid = extension;
		if (is_news)
			slot->creations++;
	}
	LWLockRelease(shared->lock);
	/* even if it was thought to be there: a dispatcher may wait to be tried again */
	if (is_news)
		slots_wake_launcher(false);
}

/* The slot of a database at this moment, or -1. */
int
slots_find(Oid database)
{
	int			place;

	LWLockAcquire(shared->lock, LW_SHARED);
	place = place_find(database);
	LWLockRelease(shared->lock);
	return place;
}

/* Copy a slot; false when it is free. */
bool
slots_view(int place, SlotView *view)
{
	DatabaseSlot *slot = &shared->slots[place];

	LWLockAcquire(shared->lock, LW_SHARED);
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
	SpinLockRelease(&slot->mutex);
	LWLockRelease(shared->lock);
	return OidIsValid(view->database);
}

/*
 * Free the slot of a database that is gone, or does not have the extension;
 * not when the extension was created, or somebody holds the slot, meanwhile.
 */
bool
slots_remove(int place, bool database_gone)
{
	DatabaseSlot *slot = &shared->slots[place];
	bool		removed = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->worker == WORKER_NONE && slot->holds == 0 &&
		(database_gone || slot->extension != EXTENSION_PRESENT))
	{
		SpinLockAcquire(&slot->mutex);
		slot->database = InvalidOid;
		SpinLockRelease(&slot->mutex);
		removed = true;
	}
	LWLockRelease(shared->lock);
	return removed;
}


/* ---------- News ---------- */

static bool
place_tell(int place, Oid database, const DispatchNews *news)
{
	DatabaseSlot *slot = &shared->slots[place];
	ProcNumber	proc = INVALID_PROC_NUMBER;
	bool		found;

	SpinLockAcquire(&slot->mutex);
	found = slot->database == database;
	if (found)
	{
		slot->news.min_id = Min(slot->news.min_id, news->min_id);
		slot->news.control |= news->control;
		proc = slot->proc;
	}
	SpinLockRelease(&slot->mutex);
	wake(proc);
	return found;
}

/* Tell the dispatcher of a database, if there is a slot. */
void
slots_tell_database(Oid database, const DispatchNews *news)
{
	int			place = slots_find(database);

	if (place >= 0)
		(void) place_tell(place, database, news);
}

void
launcher_tell(const DispatchNews *news)
{
	bool		known;

	if (!launcher_present() || !OidIsValid(MyDatabaseId))
		return;
	if (own_place >= 0 && place_tell(own_place, MyDatabaseId, news))
		return;

	/* Who queues has the extension: no need to look for it. */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	known = place_find(MyDatabaseId) >= 0;
	own_place = place_find_or_add(MyDatabaseId);
	if (own_place >= 0 && !known)
		shared->slots[own_place].extension = EXTENSION_PRESENT;
	LWLockRelease(shared->lock);
	if (own_place < 0)
		return;					/* the launcher looks again when it polls */
	(void) place_tell(own_place, MyDatabaseId, news);
	if (!known)
		slots_wake_launcher(false);
}

bool
launcher_take_news(DispatchNews *news)
{
	DatabaseSlot *slot = &shared->slots[own_place];
	bool		go_on;

	SpinLockAcquire(&slot->mutex);
	go_on = !slot->stop;
	*news = slot->news;
	slot->news = DISPATCH_NO_NEWS;
	SpinLockRelease(&slot->mutex);
	return go_on;
}

void
launcher_set_failing(bool failing)
{
	DatabaseSlot *slot = &shared->slots[own_place];

	SpinLockAcquire(&slot->mutex);
	slot->failing = failing;
	SpinLockRelease(&slot->mutex);
}


/* ---------- Workers ---------- */

/* A worker ends; by now it is not among the processes of the database. */
static void
worker_detach(int code, Datum arg)
{
	DatabaseSlot *slot = &shared->slots[DatumGetInt32(arg)];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->pid == MyProcPid)
	{
		slot->pid = 0;
		slot->worker = WORKER_NONE;
		slot->ended_well = code == 0;
		SpinLockAcquire(&slot->mutex);
		slot->proc = INVALID_PROC_NUMBER;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->detached);
	slots_wake_launcher(false);
}

Oid
slots_attach_worker(int place)
{
	DatabaseSlot *slot = &shared->slots[place];
	Oid			database = InvalidOid;
	uint32		generation;

	/* Registered before the connection's own callbacks, so it runs last. */
	on_shmem_exit(worker_detach, Int32GetDatum(place));
	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->worker != WORKER_NONE && slot->generation == generation)
	{
		slot->pid = MyProcPid;
		SpinLockAcquire(&slot->mutex);
		if (slot->holds > 0)
			slot->stop = true;
		if (!slot->stop)
		{
			slot->proc = MyProcNumber;
			database = slot->database;
		}
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(shared->lock);
	if (!OidIsValid(database))
		proc_exit(0);
	own_place = place;
	slots_wake_launcher(false);
	return database;
}

Oid
launcher_attach_dispatcher(int place)
{
	return slots_attach_worker(place);
}

/* OID of the extension in this database, as committed by now. */
Oid
slots_lookup_extension(void)
{
	Oid			extension = InvalidOid;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum(EXTENSION_NAME));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	UnregisterSnapshot(snapshot);
	return extension;
}

Oid
launcher_find_extension(void)
{
	static Oid	first = InvalidOid;
	DatabaseSlot *slot = &shared->slots[own_place];
	Oid			extension;
	uint32		creations;

	LWLockAcquire(shared->lock, LW_SHARED);
	creations = slot->creations;
	LWLockRelease(shared->lock);

	extension = slots_lookup_extension();

	/* unless it was created right after we looked */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (OidIsValid(extension))
	{
		slot->extension = EXTENSION_PRESENT;
		slot->extension_oid = extension;
	}
	else if (slot->creations == creations)
		slot->extension = EXTENSION_ABSENT;
	LWLockRelease(shared->lock);

	if (!OidIsValid(first))
		first = extension;
	return extension == first ? extension : InvalidOid;
}

/*
 * Note that a worker is being started; false when it must not.  It is to bring
 * the generation with it.
 */
bool
slots_start_worker(int place, WorkerKind kind, uint32 *generation)
{
	DatabaseSlot *slot = &shared->slots[place];
	bool		started = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->worker == WORKER_NONE && slot->holds == 0 && OidIsValid(slot->database))
	{
		slot->worker = kind;
		slot->pid = 0;
		slot->ended_well = false;
		*generation = ++slot->generation;
		SpinLockAcquire(&slot->mutex);
		slot->stop = false;
		slot->failing = false;
		SpinLockRelease(&slot->mutex);
		started = true;
	}
	LWLockRelease(shared->lock);
	return started;
}

/* A worker that did not attach is not waited for any longer. */
void
slots_forget_worker(int place, uint32 generation)
{
	DatabaseSlot *slot = &shared->slots[place];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->generation == generation && slot->pid == 0)
		slot->worker = WORKER_NONE;
	LWLockRelease(shared->lock);
}

/* Ask the worker to end. */
void
slots_stop_worker(int place)
{
	DatabaseSlot *slot = &shared->slots[place];
	ProcNumber	proc;

	SpinLockAcquire(&slot->mutex);
	slot->stop = true;
	proc = slot->proc;
	SpinLockRelease(&slot->mutex);
	wake(proc);
}

/* Tell it to. */
void
slots_terminate_worker(int place)
{
	DatabaseSlot *slot = &shared->slots[place];

	/* It cannot detach, and so its pid not be another's, while we look. */
	LWLockAcquire(shared->lock, LW_SHARED);
	if (slot->pid != 0)
		(void) kill(slot->pid, SIGTERM);
	LWLockRelease(shared->lock);
}


/* ---------- DDL ---------- */

/*
 * From now on no worker attaches in this database, and the one there is is
 * asked to end.  Returns what slots_release wants, -1: there was no room.
 */
int
slots_hold(Oid database)
{
	int			place;
	bool		busy = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	place = place_find_or_add(database);
	if (place >= 0)
	{
		shared->slots[place].holds++;
		busy = shared->slots[place].worker != WORKER_NONE;
	}
	LWLockRelease(shared->lock);
	if (busy)
		slots_stop_worker(place);
	return place;
}

void
slots_release(int place)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	Assert(shared->slots[place].holds > 0);
	shared->slots[place].holds--;
	LWLockRelease(shared->lock);
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
	ConditionVariablePrepareToSleep(&shared->detached);
	for (;;)
	{
		SlotView	view;
		long		left;

		(void) slots_view(place, &view);
		if (view.pid == 0)
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
		(void) ConditionVariableTimedSleep(&shared->detached, left, wait_event);
	}
	ConditionVariableCancelSleep();
}


/* ---------- The launcher ---------- */

static void
launcher_detach(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = INVALID_PROC_NUMBER;
	LWLockRelease(shared->lock);
}

/* The launcher is there, and its latch is to be set from now on. */
void
slots_attach_launcher(void)
{
	on_shmem_exit(launcher_detach, 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = MyProcNumber;
	LWLockRelease(shared->lock);
}

void
slots_wake_launcher(bool databases_changed)
{
	ProcNumber	launcher;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->databases_changed |= databases_changed;
	launcher = shared->launcher;
	LWLockRelease(shared->lock);
	wake(launcher);
}

/* Has pg_database changed; was there no room for a database? */
bool
slots_take_changes(bool *overflowed)
{
	bool		changed;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	changed = shared->databases_changed;
	shared->databases_changed = false;
	*overflowed = shared->overflowed;
	shared->overflowed = false;
	LWLockRelease(shared->lock);
	return changed;
}

/* Had PostgreSQL no room for a worker that is still wanted? */
void
slots_set_no_room(bool no_room)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->no_room = no_room;
	LWLockRelease(shared->lock);
}

/* Could the launcher start a worker now, if it wanted one? */
bool
slots_may_start(void)
{
	bool		may;

	LWLockAcquire(shared->lock, LW_SHARED);
	may = !shared->no_room && shared->launcher != INVALID_PROC_NUMBER;
	LWLockRelease(shared->lock);
	return may;
}
