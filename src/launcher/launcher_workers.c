/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_workers.c
 *	  The workers of the slots: started, attached, notified, stopped.
 *
 * The launcher notes in the slot that it starts a worker, and gives it the slot's
 * generation.  The worker attaches before it connects to the database, and is
 * refused then if the slot is held or the launcher has given it up (by then the
 * generation is another one).  It detaches after it has left the array of
 * processes, so that a statement that waited for this finds the database free.  As
 * its end is seen by an exit callback, no dead worker stays in a slot: a process
 * that cannot run its callbacks takes all shared memory with it.
 *
 * A notice is kept in the slot until the dispatcher takes it, whether or not there
 * is one.  Backends leave them in each commit that queued something, so for that
 * the slot's spinlock is enough; launcher_slots.c has the rules of the locks.
 *
 * Copyright (c) 2026, feishu_flow contributors
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
#include "storage/spin.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "launcher/launcher_sessions.h"
#include "launcher/launcher_slots.h"

/* The slot of this process' database, when known; may be out of date. */
static int	own_place = -1;


/* ---------- Notices ---------- */

static bool
place_notify(int place, Oid database, const DispatchNotice *notice)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];
	ProcNumber	proc = INVALID_PROC_NUMBER;
	bool		found;

	SpinLockAcquire(&slot->mutex);
	found = slot->database == database;
	if (found)
	{
		slot->notice.min_id = Min(slot->notice.min_id, notice->min_id);
		slot->notice.control |= notice->control;
		slot->notice.tokens |= notice->tokens;
		slot->notice.handlers |= notice->handlers;
		slot->notice.handlers_run |= notice->handlers_run;
		proc = slot->proc;
	}
	SpinLockRelease(&slot->mutex);
	slots_wake(proc);
	return found;
}

/* Tell the dispatcher of a database, if there is a slot. */
void
slots_notify_database(Oid database, const DispatchNotice *notice)
{
	int			place = slots_find(database);

	if (place >= 0)
		(void) place_notify(place, database, notice);
}

/*
 * Tell the dispatcher of this database, at the end of a transaction: nothing here
 * throws.  Without a dispatcher the notice waits for the next one; a database that the
 * launcher does not know becomes known by this.
 */
void
launcher_notify(const DispatchNotice *notice)
{
	bool		known;

	if (!launcher_present() || !OidIsValid(MyDatabaseId))
		return;
	if (own_place >= 0 && place_notify(own_place, MyDatabaseId, notice))
		return;

	/* Who queues has the extension: no need to look for it. */
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	known = slots_place_find(MyDatabaseId) >= 0;
	own_place = slots_place_find_or_add(MyDatabaseId);
	if (own_place >= 0 && !known)
		launcher_shared->slots[own_place].extension = EXTENSION_PRESENT;
	LWLockRelease(launcher_shared->lock);
	if (own_place < 0)
		return;					/* the launcher looks again when it polls */
	(void) place_notify(own_place, MyDatabaseId, notice);
	if (!known)
		slots_wake_launcher(false);
}

/* Is there a dispatcher in this database, and does it work? */
bool
launcher_has_dispatcher(void)
{
	SlotView	view;
	int			place;

	if (!launcher_present() || !OidIsValid(MyDatabaseId))
		return false;
	place = slots_find(MyDatabaseId);
	return place >= 0 && slots_view(place, &view) && view.database == MyDatabaseId &&
		view.worker && view.pid != 0 && !view.stop && !view.failing;
}

/*
 * Take the notice, once.  False: the process is to proc_exit(0) now, for a DDL statement
 * waits for that; after 300 ms it sends SIGTERM.  To be called whenever the latch was
 * set.  Does not throw.
 */
bool
launcher_take_notice(DispatchNotice *notice)
{
	DatabaseSlot *slot = &launcher_shared->slots[own_place];
	bool		go_on;

	SpinLockAcquire(&slot->mutex);
	go_on = !slot->stop;
	*notice = slot->notice;
	slot->notice = DISPATCH_NO_NOTICE;
	SpinLockRelease(&slot->mutex);
	return go_on;
}

/* The dispatcher cannot work on its queue for now, or can again.  Does not throw. */
void
launcher_set_failing(bool failing)
{
	DatabaseSlot *slot = &launcher_shared->slots[own_place];

	SpinLockAcquire(&slot->mutex);
	slot->failing = failing;
	SpinLockRelease(&slot->mutex);
}

/* ... because somebody has locked the tables. */
void
launcher_set_locked_out(bool locked_out)
{
	DatabaseSlot *slot = &launcher_shared->slots[own_place];

	SpinLockAcquire(&slot->mutex);
	slot->locked_out = locked_out;
	SpinLockRelease(&slot->mutex);
}

/* There is no background worker for handlers that wait, or there is again. */
void
launcher_set_no_handlers(bool no_handlers)
{
	DatabaseSlot *slot = &launcher_shared->slots[own_place];

	SpinLockAcquire(&slot->mutex);
	slot->no_handlers = no_handlers;
	SpinLockRelease(&slot->mutex);
}


/* ---------- Workers ---------- */

/* A worker ends; by now it is not among the processes of the database. */
static void
worker_detach(int code, Datum arg)
{
	DatabaseSlot *slot = &launcher_shared->slots[DatumGetInt32(arg)];

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (slot->pid == MyProcPid)
	{
		slot->pid = 0;
		slot->worker = false;
		slot->ended_well = code == 0;
		SpinLockAcquire(&slot->mutex);
		slot->proc = INVALID_PROC_NUMBER;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(launcher_shared->lock);
	ConditionVariableBroadcast(&launcher_shared->detached);
	slots_wake_launcher(false);
}

/*
 * First of all, before it connects, with signals still blocked or not: take the place in
 * the shared array that main_arg names.  Returns the database to connect to.  Ends the
 * process when it is not wanted any more.
 *
 * The latch to be set is MyLatch.  The place is given back when the process ends: exit
 * code 0 has the launcher start another at once, if one is still wanted; any other is a
 * failure, and is followed by a growing pause.
 */
Oid
launcher_attach_dispatcher(int place)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];
	Oid			database = InvalidOid;
	uint32		generation;

	/* Registered before the connection's own callbacks, so it runs last. */
	on_shmem_exit(worker_detach, Int32GetDatum(place));
	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (slot->worker && slot->generation == generation)
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
	LWLockRelease(launcher_shared->lock);
	if (!OidIsValid(database))
		proc_exit(0);
	own_place = place;
	slots_wake_launcher(false);
	return database;
}

/* In a transaction.  May throw.  OID of the extension in this database, as committed by now. */
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

/*
 * OID of the extension in this database.  InvalidOid when there is none, or another one
 * than at the first call (dropped and created again): then the caller must proc_exit(0),
 * and the launcher starts another dispatcher if one is wanted.  In a transaction.  To be
 * called first after the start, and on a notice of control before anything else that needs the
 * extension.  Does not trust the system caches, which may lag behind the commit that
 * woke us.
 */
Oid
launcher_find_extension(void)
{
	static Oid	first = InvalidOid;
	DatabaseSlot *slot = &launcher_shared->slots[own_place];
	Oid			extension;
	uint32		creations;
	bool		was_known;

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	creations = slot->creations;
	LWLockRelease(launcher_shared->lock);

	extension = slots_lookup_extension();

	/* unless it was created right after we looked */
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	was_known = slot->extension != EXTENSION_UNKNOWN;
	if (OidIsValid(extension))
	{
		slot->extension = EXTENSION_PRESENT;
		slot->extension_oid = extension;
	}
	else if (slot->creations == creations)
		slot->extension = EXTENSION_ABSENT;
	LWLockRelease(launcher_shared->lock);
	if (!was_known)
		slots_wake_launcher(false);

	if (!OidIsValid(first))
		first = extension;
	return extension == first ? extension : InvalidOid;
}

/*
 * Note that a worker is being started; false when it must not.  It is to bring
 * the generation with it.
 */
bool
slots_start_worker(int place, uint32 *generation)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];
	bool		started = false;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (!slot->worker && slot->holds == 0 && OidIsValid(slot->database))
	{
		slot->worker = true;
		slot->pid = 0;
		slot->ended_well = false;
		*generation = ++slot->generation;
		SpinLockAcquire(&slot->mutex);
		slot->stop = false;
		slot->failing = slot->locked_out = slot->no_handlers = false;
		SpinLockRelease(&slot->mutex);
		started = true;
	}
	LWLockRelease(launcher_shared->lock);
	return started;
}

/* A worker that did not attach is not waited for any longer. */
void
slots_forget_worker(int place, uint32 generation)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (slot->generation == generation && slot->pid == 0)
		slot->worker = false;
	LWLockRelease(launcher_shared->lock);
}

/* Ask the worker to end, and the sessions for handlers. */
void
slots_stop_worker(int place)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];
	Oid			database;
	ProcNumber	proc;

	SpinLockAcquire(&slot->mutex);
	slot->stop = true;
	database = slot->database;
	proc = slot->proc;
	SpinLockRelease(&slot->mutex);
	slots_wake(proc);
	sessions_stop(database);
}

/* Tell them to. */
void
slots_terminate_worker(int place)
{
	DatabaseSlot *slot = &launcher_shared->slots[place];

	/* It cannot detach, and so its pid not be another's, while we look. */
	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	if (slot->pid != 0)
		(void) kill(slot->pid, SIGTERM);
	sessions_terminate_locked(slot->database);
	LWLockRelease(launcher_shared->lock);
}
