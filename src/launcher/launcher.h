/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  A dispatcher in each database that has the extension; how to wake it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/launcher/launcher.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_H
#define FEISHU_LAUNCHER_H

/* Hooks of the postmaster. */
extern void launcher_request_shmem(void);
extern void launcher_startup_shmem(void);

/* Register the launcher and install its hooks; in the postmaster only. */
extern void launcher_register(void);

/* Are there launcher and dispatchers at all (was the library preloaded)? */
extern bool launcher_present(void);

/* Why nothing sends what is queued in a database. */
typedef enum DispatchProblem
{
	DISPATCH_NO_PROBLEM,		/* there is a dispatcher, or will be at once; on
								 * a standby it is the primary's */
	DISPATCH_NOT_PRELOADED,
	DISPATCH_OFF,
	DISPATCH_LIBRARY_OLD,		/* libcurl cannot be used, see HttpLibraryFault */
	DISPATCH_LIBRARY_TAKEN,
	DISPATCH_CLOSED,			/* a template, or without connections */
	DISPATCH_NO_WORKER,			/* PostgreSQL has no background worker free */
	DISPATCH_FAILS,				/* the dispatcher fails, and is started again */
	DISPATCH_LOCKED_OUT,		/* the dispatcher waits for a lock */
	DISPATCH_NO_HANDLERS,		/* PostgreSQL has no background worker for handlers;
								 * flows are sent */
	/* a table of the queue is not as the extension has made it */
	DISPATCH_TABLE_GONE,
	DISPATCH_TABLE_ROW_SECURITY,	/* forced */
	DISPATCH_TABLE_NOT_HEAP,
	DISPATCH_TABLE_UNLOGGED,
	DISPATCH_TABLE_DISTRIBUTED,
	DISPATCH_TABLE_TRIGGER,
	DISPATCH_TABLE_RULE
} DispatchProblem;

/* dispatch_problem.c: what it is in this database, and the table, if it is one's. */
extern DispatchProblem launcher_problem(const char **table);

/* dispatch_problem.c: the same in words, palloc'd; NULL for none. */
extern char *launcher_problem_text(bool translated);

/*
 * What the dispatcher of a database has to be told.  Kept in shared memory
 * until it asks, so nothing is lost while it is busy or not there yet.
 */
typedef struct DispatchNews
{
	int64		min_id;			/* rows with this id or above may be new;
								 * PG_INT64_MAX: none */
	bool		control;		/* pauses, servers, mappings or the extension
								 * itself may have changed */
	bool		tokens;			/* it is asked to refresh some, see token_ask.c */
	bool		handlers;		/* a role whose handler waits has no session for it, or
								 * may have none */
	bool		handlers_run;	/* handlers are called, of a role that has one */
} DispatchNews;

/* The empty news, to be added to. */
#define DISPATCH_NO_NEWS	((DispatchNews) {.min_id = PG_INT64_MAX})

/*
 * Tell the dispatcher of this database, at the end of a transaction: nothing
 * here throws.  Without a dispatcher the news wait for the next one; a
 * database that the launcher does not know becomes known by this.
 */
extern void launcher_tell(const DispatchNews *news);

/* Is there a dispatcher in this database, and does it work? */
extern bool launcher_has_dispatcher(void);


/* ---------- For the dispatcher ---------- */

/*
 * First of all, before it connects, with signals still blocked or not: take
 * the place in the shared array that main_arg names.  Returns the database to
 * connect to.  Ends the process when it is not wanted any more.
 *
 * The latch to be set is MyLatch.  The place is given back when the process
 * ends: exit code 0 has the launcher start another at once, if one is still
 * wanted; any other is a failure, and is followed by a growing pause.
 */
extern Oid	launcher_attach_dispatcher(int place);

/*
 * Take the news, once.  False: the process is to proc_exit(0) now, for a DDL
 * statement waits for that; after 300 ms it sends SIGTERM.  To be called
 * whenever the latch was set.  Does not throw.
 */
extern bool launcher_take_news(DispatchNews *news);

/* The dispatcher cannot work on its queue for now, or can again.  Does not throw. */
extern void launcher_set_failing(bool failing);

/* ... because somebody has locked the tables. */
extern void launcher_set_locked_out(bool locked_out);

/* There is no background worker for handlers that wait, or there is again. */
extern void launcher_set_no_handlers(bool no_handlers);

/*
 * OID of the extension in this database.  InvalidOid when there is none, or
 * another one than at the first call (dropped and created again): then the
 * caller must proc_exit(0), and the launcher starts another dispatcher if one
 * is wanted.  In a transaction.  To be called first after the start, and on
 * control news before anything else that needs the extension.  Does not trust
 * the system caches, which may lag behind the commit that woke us.
 */
extern Oid	launcher_find_extension(void);

#endif							/* FEISHU_LAUNCHER_H */
