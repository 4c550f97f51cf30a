/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_sessions.c
 *	  The sessions of roles in which handlers are called, in shared memory.
 *
 * A session is a background worker of one role in one database.  The dispatcher takes
 * a place for it and starts it; no role has two in a database.  It attaches before it
 * connects, and is refused then if a DDL statement holds the database's slot.  It
 * detaches after it has left the array of processes, so that a statement that waited
 * for this finds the database free.
 *
 * Who ends a flow sets the latch of the role's session directly.  What a session was
 * told is kept in its place until it asks, so that nothing is lost while it is busy,
 * or is still to attach.
 *
 * A session that ends before it could call a handler leaves its place taken, as failed:
 * the dispatcher counts that as an attempt, and frees the place.
 *
 * The launcher's lock protects everything but what is told, which is under a spinlock
 * of the place.  Nothing throws or waits under them.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "base/compat.h"
#include "base/steady.h"
#include "launcher/launcher_sessions.h"
#include "launcher/launcher_slots.h"

/* Other databases' dispatchers have seen to what came to nothing by then. */
#define ABANDONED_MS	(60 * 1000)

typedef struct Place
{
	/* under mutex */
	slock_t		mutex;
	ProcNumber	proc;			/* attached, or INVALID_PROC_NUMBER */
	bool		stop;			/* it is to end */
	bool		leave;			/* ... for another role */
	bool		idle;
	int64		min_number;		/* notice */
	/* under the lock */
	Oid			database;		/* InvalidOid: the place is free */
	Oid			roleid;
	uint32		generation;
	pid_t		pid;
	bool		ready;
	bool		failed;
	SteadyTime	began_at;
} Place;

typedef struct SessionsShared
{
	int			num_places;
	Place		places[FLEXIBLE_ARRAY_MEMBER];
} SessionsShared;

static SessionsShared *shared = NULL;

/* Of this process. */
static Place *own = NULL;


/* ---------- Memory ---------- */

static Size
shared_size(void)
{
	return add_size(offsetof(SessionsShared, places),
					mul_size(Max(max_worker_processes, 1), sizeof(Place)));
}

void
sessions_request_shmem(void)
{
	RequestAddinShmemSpace(shared_size());
}

void
sessions_startup_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("feishu_flow sessions", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		shared->num_places = Max(max_worker_processes, 1);
		for (int i = 0; i < shared->num_places; i++)
		{
			SpinLockInit(&shared->places[i].mutex);
			shared->places[i].proc = INVALID_PROC_NUMBER;
			shared->places[i].min_number = PG_INT64_MAX;
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

int
sessions_count(void)
{
	return shared->num_places;
}


/* ---------- Notices ---------- */

/* Tell a place.  The lock is held. */
static void
place_notify(Place *place, int64 min_number)
{
	ProcNumber	proc;

	SpinLockAcquire(&place->mutex);
	place->min_number = Min(place->min_number, min_number);
	proc = place->proc;
	SpinLockRelease(&place->mutex);
	slots_wake(proc);
}

/*
 * Handlers of a role wait in this database, with this number or higher ones.  False if
 * the role has no session for them.  Does not throw.
 */
bool
sessions_notify(Oid roleid, int64 min_number)
{
	bool		found = false;

	if (!launcher_present())
		return true;
	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	for (int i = 0; i < shared->num_places && !found; i++)
	{
		Place	   *place = &shared->places[i];

		found = place->database == MyDatabaseId && place->roleid == roleid && !place->failed;
		if (found)
			place_notify(place, min_number);
	}
	LWLockRelease(launcher_shared->lock);
	return found;
}

/* Handlers may wait: all sessions of this database look from the start. */
void
sessions_notify_all(void)
{
	if (!launcher_present())
		return;
	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	for (int i = 0; i < shared->num_places; i++)
	{
		if (shared->places[i].database == MyDatabaseId)
			place_notify(&shared->places[i], PG_INT64_MIN);
	}
	LWLockRelease(launcher_shared->lock);
}

/* Have the dispatcher of a database look whose handlers wait. */
static void
notify_dispatcher(Oid database)
{
	DispatchNotice notice = DISPATCH_NO_NOTICE;

	notice.handlers = true;
	slots_notify_database(database, &notice);
}


/* ---------- The dispatcher ---------- */

/* A place of this database; false: it is free, or another's. */
bool
sessions_view(int number, SessionView *view)
{
	Place	   *place = &shared->places[number];
	bool		ours;

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	ours = place->database == MyDatabaseId;
	view->roleid = place->roleid;
	view->generation = place->generation;
	view->pid = place->pid;
	view->failed = place->failed;
	view->began_at = place->began_at;
	SpinLockAcquire(&place->mutex);
	view->idle = place->idle;
	view->leaving = place->stop || place->leave;
	SpinLockRelease(&place->mutex);
	LWLockRelease(launcher_shared->lock);
	return ours;
}

/* Is nobody there, nor to come, and nobody to see to it, as its database was dropped? */
static bool
place_is_abandoned(const Place *place)
{
	return place->pid == 0 && place->database != MyDatabaseId &&
		(place->failed || steady_left_ms(steady_after_ms(place->began_at, ABANDONED_MS)) == 0);
}

/* A place that can be taken, or -1.  The lock is held. */
static int
place_find_free(void)
{
	for (int i = 0; i < shared->num_places; i++)
	{
		if (!OidIsValid(shared->places[i].database))
			return i;
	}
	for (int i = 0; i < shared->num_places; i++)
	{
		if (place_is_abandoned(&shared->places[i]))
			return i;
	}
	return -1;
}

/* Take a place for a role, or -1; the worker is to bring the generation. */
int
sessions_reserve(Oid roleid, uint32 *generation)
{
	int			number;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	number = place_find_free();
	if (number >= 0)
	{
		Place	   *place = &shared->places[number];

		place->database = MyDatabaseId;
		place->roleid = roleid;
		place->pid = 0;
		place->ready = place->failed = false;
		place->began_at = steady_now();
		*generation = ++place->generation;
		SpinLockAcquire(&place->mutex);
		place->stop = place->leave = place->idle = false;
		place->min_number = PG_INT64_MAX;
		SpinLockRelease(&place->mutex);
	}
	LWLockRelease(launcher_shared->lock);
	return number;
}

/* It is over, whatever it was: free it. */
void
sessions_free(int number, uint32 generation)
{
	Place	   *place = &shared->places[number];

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (place->generation == generation && place->pid == 0)
	{
		place->generation++;
		place->database = InvalidOid;
	}
	LWLockRelease(launcher_shared->lock);
}

/* Ask it to make room for another role. */
void
sessions_ask_to_leave(int number)
{
	Place	   *place = &shared->places[number];
	ProcNumber	proc;

	SpinLockAcquire(&place->mutex);
	place->leave = true;
	proc = place->proc;
	SpinLockRelease(&place->mutex);
	slots_wake(proc);
}


/* ---------- The session ---------- */

/* A session ends; by now it is not among the processes of the database. */
static void
session_detach(int code, Datum arg)
{
	Oid			database;

	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	database = own->database;
	own->pid = 0;
	SpinLockAcquire(&own->mutex);
	own->proc = INVALID_PROC_NUMBER;
	own->failed = !own->ready && !own->stop;
	SpinLockRelease(&own->mutex);
	if (!own->failed)
		own->database = InvalidOid;
	LWLockRelease(launcher_shared->lock);
	ConditionVariableBroadcast(&launcher_shared->detached);
	/* what it was told, and did not look at */
	notify_dispatcher(database);
}

/*
 * First of all, before it connects: take the place that main_arg names.  Returns the
 * database and the role to connect to.  Ends the process when it is not wanted.
 */
Oid
sessions_attach(int number, Oid *roleid)
{
	Place	   *place = &shared->places[number];
	Oid			database = InvalidOid;
	uint32		generation;

	memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	if (OidIsValid(place->database) && place->generation == generation)
	{
		int			slot = slots_place_find(place->database);
		bool		held = slot < 0 || launcher_shared->slots[slot].holds > 0;

		SpinLockAcquire(&place->mutex);
		if (!held && !place->stop)
		{
			place->proc = MyProcNumber;
			database = place->database;
		}
		SpinLockRelease(&place->mutex);
		*roleid = place->roleid;
		if (OidIsValid(database))
		{
			place->pid = MyProcPid;
			own = place;
		}
		else
			place->database = InvalidOid;
	}
	LWLockRelease(launcher_shared->lock);
	if (own == NULL)
		proc_exit(0);

	/* Registered before the connection's own callbacks, so it runs last. */
	on_shmem_exit(session_detach, 0);
	return database;
}

/* It is connected, and can call handlers. */
void
sessions_set_ready(void)
{
	LWLockAcquire(launcher_shared->lock, LW_EXCLUSIVE);
	own->ready = true;
	LWLockRelease(launcher_shared->lock);
}

void
sessions_take_notice(SessionNotice *notice)
{
	SpinLockAcquire(&own->mutex);
	notice->leave = own->stop || own->leave;
	notice->min_number = own->min_number;
	own->min_number = PG_INT64_MAX;
	SpinLockRelease(&own->mutex);
}

void
sessions_set_idle(bool idle)
{
	SpinLockAcquire(&own->mutex);
	own->idle = idle;
	SpinLockRelease(&own->mutex);
}


/* ---------- DDL ---------- */

void
sessions_stop(Oid database)
{
	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	for (int i = 0; i < shared->num_places; i++)
	{
		Place	   *place = &shared->places[i];
		ProcNumber	proc;

		if (!OidIsValid(database) || place->database != database)
			continue;
		SpinLockAcquire(&place->mutex);
		place->stop = true;
		proc = place->proc;
		SpinLockRelease(&place->mutex);
		slots_wake(proc);
	}
	LWLockRelease(launcher_shared->lock);
}

/* The lock is held: no session can detach, and so its pid not be another's. */
void
sessions_terminate_locked(Oid database)
{
	for (int i = 0; i < shared->num_places; i++)
	{
		if (OidIsValid(database) && shared->places[i].database == database &&
			shared->places[i].pid != 0)
			(void) kill(shared->places[i].pid, SIGTERM);
	}
}

void
sessions_terminate(Oid database)
{
	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	sessions_terminate_locked(database);
	LWLockRelease(launcher_shared->lock);
}

/* Is one connected to a database? */
bool
sessions_are_attached(Oid database)
{
	bool		found = false;

	LWLockAcquire(launcher_shared->lock, LW_SHARED);
	for (int i = 0; i < shared->num_places && !found; i++)
		found = shared->places[i].database == database && shared->places[i].pid != 0;
	LWLockRelease(launcher_shared->lock);
	return found;
}
