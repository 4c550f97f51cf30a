/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher.c
 *	  A dispatcher in each database that has the extension.
 *
 * The launcher is one background worker for the whole cluster, connected to no
 * database.  It sleeps until somebody wakes it or something is due, then goes
 * over all slots (launcher_slots.c) and does for each what its state asks for:
 * look into the database, start a dispatcher, have one stopped, free the slot.
 * Each pass looks at the state alone, whatever it was woken for, so no event
 * can be missed, and a launcher that is started again finds its way by the
 * slots.
 *
 * Of databases without a slot it remembers, in its own memory, that they were
 * looked into: a dispatcher ends at once where the extension is absent.  That is done
 * once, for one database after the other.  From then on CREATE EXTENSION tells
 * (launcher_ddl.c).
 *
 * All that is due is due by a steady clock: one that is set back would keep a
 * worker away.  CREATE EXTENSION ends the pause after a failure.
 *
 * A worker is over when its slot of PostgreSQL is free again, not when it
 * detached, so that the next one finds room.  Workers started by an earlier
 * launcher are only known by their attachment.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/steady.h"
#include "base/worker_settings.h"
#include "launcher/launcher_internal.h"

#define LIBRARY_NAME			"feishu_flow"

/* Seconds until the postmaster starts the launcher again. */
#define LAUNCHER_RESTART		5

/*
 * A dispatcher that failed within the first minute is started again after 1 s,
 * then 2, 4, ... up to a minute; one that lived longer, at once.  So is one
 * that ended well, but for one that does so all the time.
 */
#define QUICK_FAILURE_MS		(60 * 1000)
#define QUICK_END_MS			1000
#define MAX_PAUSE_MS			(60 * 1000)

/* After PostgreSQL had no room for another worker, try again. */
#define NO_ROOM_PAUSE_MS		5000

/* One that looks for the extension and takes longer does not keep the others waiting. */
#define PROBER_PATIENCE_MS		1000

/* A worker of an earlier launcher that has not attached by then never will. */
#define ATTACH_PATIENCE_MS		10000

/* A worker that was asked to end is told to after this. */
#define STOP_PATIENCE_MS		1000

/* What the launcher remembers of a database. */
typedef struct Database
{
	Oid			oid;			/* hash key */
	NameData	name;
	bool		open;			/* may be connected to, and is no template */
	bool		probed;			/* has no extension, unless a slot says so */
	bool		seen;			/* in the last look at pg_database */
} Database;

/* What it remembers of a slot. */
typedef struct Course
{
	Oid			database;		/* another one: all of this is out of date */
	NameData	name;
	bool		worker;			/* was started; we have not seen its end */
	bool		probes;			/* it was started to see if the extension is there */
	BackgroundWorkerHandle *handle; /* NULL: by an earlier launcher */
	bool		announced;		/* we logged that it started */
	SteadyTime	started_at;
	SteadyTime	stop_by;		/* then it is told to; 0: not asked to end */
	int			failures;		/* quick ones in a row */
	SteadyTime	retry_at;
	uint32		creations;		/* of the extension, when we saw to it last */
	bool		missed;			/* not in the last look at pg_database */
} Course;

static HTAB *databases;
static Course *courses;			/* one for each slot */

/* The pass under way. */
static SteadyTime now;
static SteadyTime next_pass;	/* something is due then */
static SteadyTime next_look;	/* at pg_database */
static int	num_probers;		/* young ones */

/* PostgreSQL had no room for a worker. */
static bool no_room = false;
static SteadyTime no_room_until;	/* ask again then, or at the end of one */
static SteadyTime no_room_over;	/* not to be called over before this */

/* There was no slot for a database since the last look at pg_database. */
static bool no_slot = false;
static bool no_slot_logged = false;

PGDLLEXPORT void feishu_launcher_main(Datum main_arg);


/* Register the launcher and install its hooks; in the postmaster only. */
void
launcher_register(void)
{
	BackgroundWorker worker;

	/* pg_upgrade wants nobody but itself to write. */
	if (IsBinaryUpgrade)
		return;

	memset(&worker, 0, sizeof(worker));
	strlcpy(worker.bgw_name, "feishu_flow launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "feishu_flow launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	/* not on a standby before its promotion: it could not write what it sent */
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = LAUNCHER_RESTART;
	strlcpy(worker.bgw_library_name, LIBRARY_NAME, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "feishu_launcher_main",
			sizeof(worker.bgw_function_name));
	RegisterBackgroundWorker(&worker);
	launcher_install_hooks();
}

/* Something is due at this time. */
static void
wake_at(SteadyTime time)
{
	next_pass = Min(next_pass, time);
}


/* ---------- Databases ---------- */

/* Read pg_database. */
static void
databases_read(void)
{
	HASH_SEQ_STATUS status;
	Database   *database;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	hash_seq_init(&status, databases);
	while ((database = hash_seq_search(&status)) != NULL)
		database->seen = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		bool		found;

		database = hash_search(databases, &form->oid, HASH_ENTER, &found);
		if (!found)
			database->probed = false;
		database->name = form->datname;
		database->open = form->datallowconn && !form->datistemplate &&
			form->datconnlimit != DATCONNLIMIT_INVALID_DB;
		database->seen = true;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();

	hash_seq_init(&status, databases);
	while ((database = hash_seq_search(&status)) != NULL)
	{
		if (!database->seen)
			(void) hash_search(databases, &database->oid, HASH_REMOVE, NULL);
	}
	next_look = steady_after_ms(now, feishu_guc_poll_interval);
}

/* Nothing that we remember of what databases do not have holds any more. */
static void
databases_forget_probes(void)
{
	HASH_SEQ_STATUS status;
	Database   *database;

	hash_seq_init(&status, databases);
	while ((database = hash_seq_search(&status)) != NULL)
		database->probed = false;
}


/* ---------- Workers ---------- */

/* Say, once, that PostgreSQL has no room for a worker. */
static void
no_room_log(const char *name)
{
	no_room_until = no_room_over = steady_after_ms(now, NO_ROOM_PAUSE_MS);
	wake_at(no_room_until);
	if (no_room)
		return;
	no_room = true;
	slots_set_no_room(true);
	ereport(LOG,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("feishu_flow has no background worker for database \"%s\", and maybe others",
					name),
			 errdetail("Queued flows wait there until one is free."),
			 errhint("Increase max_worker_processes, currently %d: each database that has the extension needs one.",
					 max_worker_processes)));
}

/* Start a worker for a slot, if there is room. */
static void
worker_start(int place, Course *course, bool probes)
{
	BackgroundWorker worker;
	uint32		generation;
	MemoryContext context;
	bool		registered;

	if (no_room && now < no_room_until)
	{
		wake_at(no_room_until);
		return;
	}
	if (!slots_start_worker(place, &generation))
		return;

	memset(&worker, 0, sizeof(worker));
	strlcpy(worker.bgw_type, "feishu_flow dispatcher", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "feishu_flow dispatcher %s", NameStr(course->name));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION |
		BGWORKER_INTERRUPTIBLE;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, LIBRARY_NAME, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "feishu_dispatcher_main",
			sizeof(worker.bgw_function_name));
	worker.bgw_main_arg = Int32GetDatum(place);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	context = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &course->handle);
	MemoryContextSwitchTo(context);
	if (!registered)
	{
		course->handle = NULL;
		slots_forget_worker(place, generation);
		no_room_log(NameStr(course->name));
		return;
	}
	course->worker = true;
	course->probes = probes;
	course->announced = false;
	course->started_at = now;
	course->stop_by = 0;
	if (probes)
	{
		num_probers++;
		wake_at(steady_after_ms(now, PROBER_PATIENCE_MS));
	}
}

/* Has the worker that we know of ended? */
static bool
worker_is_over(int place, Course *course, const SlotView *view)
{
	if (course->handle != NULL)
	{
		pid_t		pid;

		if (GetBackgroundWorkerPid(course->handle, &pid) != BGWH_STOPPED)
			return false;
		pfree(course->handle);
		course->handle = NULL;
		slots_forget_worker(place, view->generation);
		return true;
	}
	if (view->worker && view->pid == 0)
	{
		SteadyTime	patience = steady_after_ms(course->started_at, ATTACH_PATIENCE_MS);

		if (now < patience)
			wake_at(patience);
		else
			slots_forget_worker(place, view->generation);
		return now >= patience;
	}
	return !view->worker;
}

/* A worker's end: how it came, and when there may be another. */
static void
worker_ended(Course *course, const SlotView *view, const Database *database)
{
	int64		lived_ms = (now - course->started_at) / 1000;
	const char *reason;

	if (view->extension == EXTENSION_ABSENT)
		reason = "The extension is gone.";
	else if (!view->stop)
		reason = "Another one will be started.";
	else if (!feishu_guc_dispatch)
		reason = "feishu_flow.dispatch is off.";
	else if (database != NULL && !database->open)
		reason = "The database does not allow connections, or is a template.";
	else
		reason = "A statement needs the database for itself.";

	if (view->stop || view->extension == EXTENSION_ABSENT ||
		(view->ended_well && lived_ms >= QUICK_END_MS) ||
		lived_ms >= QUICK_FAILURE_MS)
	{
		course->failures = 0;
		course->retry_at = 0;
	}
	else
	{
		int			pause_ms = Min(MAX_PAUSE_MS, 1000 << Min(course->failures, 6));

		course->failures++;
		course->retry_at = steady_after_ms(now, pause_ms);
	}

	if (course->announced)
		ereport(LOG,
				(errmsg("feishu_flow dispatcher for database \"%s\" stopped",
						NameStr(course->name)),
				 errdetail_internal("%s", reason)));
	course->worker = false;
	course->announced = false;
	/* it made room for another: again for all who wait for that */
	if (no_room)
		no_room_until = next_pass = now;
}

/* A slot has a worker: does it do as it should? */
static void
worker_supervise(int place, Course *course, const SlotView *view, bool wanted)
{
	if (view->extension == EXTENSION_PRESENT && view->pid != 0 && !course->announced)
	{
		course->announced = true;
		ereport(LOG,
				(errmsg("feishu_flow dispatcher for database \"%s\" started",
						NameStr(course->name))));
	}
	if (course->probes && view->extension == EXTENSION_UNKNOWN)
	{
		SteadyTime	patience = steady_after_ms(course->started_at, PROBER_PATIENCE_MS);

		if (now < patience)
		{
			num_probers++;
			wake_at(patience);
		}
	}
	if (wanted)
		return;

	if (course->stop_by != 0 && now >= course->stop_by)
	{
		slots_terminate_worker(place);
		course->stop_by = 0;
	}
	if (course->stop_by == 0)
	{
		slots_stop_worker(place);
		course->stop_by = steady_after_ms(now, STOP_PATIENCE_MS);
	}
	wake_at(course->stop_by);
}


/* ---------- The pass over all slots ---------- */

/* Get to know a slot that has another database than when we looked last. */
static void
course_begin(Course *course, const SlotView *view)
{
	if (course->handle != NULL)
		pfree(course->handle);
	memset(course, 0, sizeof(Course));
	course->database = view->database;
	course->worker = view->worker;
	course->started_at = now;
	course->announced = view->extension == EXTENSION_PRESENT && view->pid != 0;
}

/* Do for a slot what its state asks for. */
static void
slot_review(int place)
{
	Course	   *course = &courses[place];
	Database   *database;
	SlotView	view;
	bool		wanted;

	if (!slots_view(place, &view))
		return;
	if (course->database != view.database)
		course_begin(course, &view);

	database = hash_search(databases, &view.database, HASH_FIND, NULL);
	wanted = database != NULL && database->open && feishu_guc_dispatch && !view.held;
	/* a worker keeps the name that it was started with */
	if (database != NULL &&
		(!course->worker || NameStr(course->name)[0] == '\0'))
		course->name = database->name;

	if (course->worker)
	{
		if (!worker_is_over(place, course, &view))
		{
			worker_supervise(place, course, &view, wanted);
			return;
		}
		/* what it left behind, for it may have ended just now */
		(void) slots_view(place, &view);
		worker_ended(course, &view, database);
		if (database != NULL)
			course->name = database->name;
	}

	if (database == NULL)
	{
		/* It may be newer than our last look. */
		if (!course->missed)
			next_look = next_pass = now;
		else if (slots_remove(place, true))
			course->database = InvalidOid;
		course->missed = true;
		return;
	}
	course->missed = false;

	/* what failed before, failed with another one, or without it */
	if (course->creations != view.creations)
	{
		course->creations = view.creations;
		course->failures = 0;
		course->retry_at = 0;
	}
	if (view.extension != EXTENSION_UNKNOWN)
		database->probed = true;
	if (view.held)
		return;

	if (view.extension == EXTENSION_ABSENT ||
		(view.extension == EXTENSION_UNKNOWN && (database->probed || !wanted)))
	{
		if (slots_remove(place, false))
			course->database = InvalidOid;
		return;
	}
	if (!wanted)
		return;
	if (now < course->retry_at)
		wake_at(course->retry_at);
	else if (view.extension == EXTENSION_PRESENT)
		worker_start(place, course, false);
	else if (num_probers == 0)
		worker_start(place, course, true);
}

/* Look into the databases that nothing is known of. */
static void
databases_probe(void)
{
	HASH_SEQ_STATUS status;
	Database   *database;

	hash_seq_init(&status, databases);
	while ((database = hash_seq_search(&status)) != NULL)
	{
		int			place;

		if (database->probed || !database->open)
			continue;
		place = num_probers == 0 ? slots_add(database->oid) : -1;
		if (place < 0)
		{
			hash_seq_term(&status);
			break;
		}
		slot_review(place);
		if (no_room && now < no_room_until)
		{
			hash_seq_term(&status);
			break;
		}
	}
}

/* Look at everything once, and do what is to be done. */
static void
launcher_pass(void)
{
	bool		overflowed;
	bool		may_start;

	now = steady_now();
	if (slots_take_changes(&overflowed) || now >= next_look)
	{
		databases_read();
		/* those that found no slot are not known by the others */
		if (no_slot)
			databases_forget_probes();
		no_slot = false;
	}
	if (overflowed && !no_slot_logged)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("feishu_flow has no room for more than %d databases", slots_count()),
				 errhint("Increase max_worker_processes, currently %d.",
						 max_worker_processes)));
	no_slot |= overflowed;
	no_slot_logged |= overflowed;

	next_pass = next_look;
	num_probers = 0;
	may_start = now >= no_room_until;
	for (int place = 0; place < slots_count(); place++)
		slot_review(place);
	if (feishu_guc_dispatch)
		databases_probe();
	wake_at(next_look);

	/* all that wanted a worker got one, and there is nobody left to ask */
	if (no_room && now < no_room_over)
		wake_at(no_room_over);
	else if (no_room && may_start && now >= no_room_until && num_probers == 0)
	{
		no_room = false;
		slots_set_no_room(false);
		ereport(LOG,
				(errmsg("feishu_flow has background workers for all its databases again")));
	}
}

void
feishu_launcher_main(Datum main_arg)
{
	uint32		wait_event;
	HASHCTL		control;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	slots_attach_launcher();
	slots_set_no_room(false);
	worker_settings_apply();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	wait_event = feishu_wait_event_new("FeishuFlowLauncherMain");
	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(Database);
	databases = hash_create("feishu_flow databases", 64, &control, HASH_ELEM | HASH_BLOBS);
	courses = MemoryContextAllocZero(TopMemoryContext, slots_count() * sizeof(Course));

	while (!ShutdownRequestPending)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			/* the interval may be another */
			next_look = 0;
		}
		launcher_pass();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 steady_left_ms(next_pass),
						 wait_event);
		ResetLatch(MyLatch);
	}

	/* 0 would keep the postmaster from starting another, were it not its end */
	proc_exit(1);
}
