/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher.h
 *	  A dispatcher in each database that has the extension; how to wake it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_H
#define FEISHU_LAUNCHER_H

/* Hooks of the postmaster. */
extern void launcher_request_shmem(void);
extern void launcher_startup_shmem(void);
extern void launcher_register(void);
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

/* dispatch_problem.c */
extern DispatchProblem launcher_problem(const char **table);
extern char *launcher_problem_text(bool translated);

/*
 * What the dispatcher of a database has to be told.  Kept in shared memory
 * until it asks, so nothing is lost while it is busy or not there yet.
 */
typedef struct DispatchNotice
{
	int64		min_id;			/* rows with this id or above may be new;
								 * PG_INT64_MAX: none */
	bool		control;		/* pauses, servers, mappings or the extension
								 * itself may have changed */
	bool		tokens;			/* it is asked to refresh some, see token_ask.c */
	bool		handlers;		/* a role whose handler waits has no session for it, or
								 * may have none */
	bool		handlers_run;	/* handlers are called, of a role that has one */
} DispatchNotice;

/* The empty notice, to be added to. */
#define DISPATCH_NO_NOTICE	((DispatchNotice) {.min_id = PG_INT64_MAX})

extern void launcher_notify(const DispatchNotice *notice);
extern bool launcher_has_dispatcher(void);


/* ---------- For the dispatcher ---------- */

extern Oid	launcher_attach_dispatcher(int place);
extern bool launcher_take_notice(DispatchNotice *notice);
extern void launcher_set_failing(bool failing);
extern void launcher_set_locked_out(bool locked_out);
extern void launcher_set_no_handlers(bool no_handlers);
extern Oid	launcher_find_extension(void);

#endif							/* FEISHU_LAUNCHER_H */
