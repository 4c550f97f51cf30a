/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_slots.h
 *	  The slots' memory, for launcher_slots.c and launcher_workers.c and no other file.
 *
 * Private to src/launcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_SLOTS_H
#define FEISHU_LAUNCHER_SLOTS_H

#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/spin.h"

#include "base/compat.h"
#include "launcher/launcher_internal.h"

typedef struct DatabaseSlot
{
	/* under mutex */
	slock_t		mutex;
	ProcNumber	proc;			/* attached worker, or INVALID_PROC_NUMBER */
	bool		stop;			/* the worker is to end */
	bool		failing;		/* the dispatcher cannot work on its queue */
	bool		locked_out;		/* ... as somebody has locked it */
	bool		no_handlers;	/* it could not start a worker for handlers */
	DispatchNotice notice;
	/* under both */
	Oid			database;		/* InvalidOid: the slot is free */
	/* under the lock */
	ExtensionState extension;
	Oid			extension_oid;	/* if known */
	uint32		creations;		/* counts CREATE EXTENSION */
	int			holds;
	bool		worker;
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

/* launcher_slots.c; NULL when the library was not preloaded */
extern LauncherShared *launcher_shared;
extern int	slots_place_find(Oid database);
extern int	slots_place_find_or_add(Oid database);

/* Set the latch of a process, if there is one. */
static inline void
slots_wake(ProcNumber proc)
{
	if (proc != INVALID_PROC_NUMBER)
		SetLatch(&GetPGProcByNumber(proc)->procLatch);
}

#endif							/* FEISHU_LAUNCHER_SLOTS_H */
