/*-------------------------------------------------------------------------
 *
 * launcher_sessions.h
 *	  Sessions of roles in which handlers are called: places, news, ends.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/launcher/launcher_sessions.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_SESSIONS_H
#define FEISHU_LAUNCHER_SESSIONS_H

/* Hooks of the postmaster. */
extern void sessions_request_shmem(void);
extern void sessions_startup_shmem(void);


/* ---------- For those who end flows ---------- */

/*
 * Handlers of a role wait in this database, with this number or higher ones.  False if
 * the role has no session for them.  Neither of these throws.
 */
extern bool sessions_tell(Oid roleid, int64 min_number);

/* Handlers may wait: all sessions of this database look from the start. */
extern void sessions_tell_all(void);


/* ---------- For the dispatcher ---------- */

/* A copy of what is known of a place. */
typedef struct SessionView
{
	Oid			roleid;
	uint32		generation;
	int			pid;			/* 0: not attached, or over */
	bool		failed;			/* it ended before it could call a handler */
	bool		idle;			/* has no handler to call */
	bool		leaving;		/* it was asked to make room, or to end */
	int64		began_at;		/* SteadyTime of its start */
} SessionView;

extern int	sessions_count(void);

/* A place of this database; false: it is free, or another's. */
extern bool sessions_view(int place, SessionView *view);

/* Take a place for a role, or -1; the worker is to bring the generation. */
extern int	sessions_reserve(Oid roleid, uint32 *generation);

/* It is over, whatever it was: free it. */
extern void sessions_free(int place, uint32 generation);

/* Ask it to make room for another role. */
extern void sessions_ask_to_leave(int place);


/* ---------- For the session ---------- */

/* What a session was told. */
typedef struct SessionNews
{
	bool		leave;			/* it is to end */
	int64		min_number;		/* PG_INT64_MAX: nothing */
} SessionNews;

/*
 * First of all, before it connects: take the place that main_arg names.  Returns the
 * database and the role to connect to.  Ends the process when it is not wanted.
 */
extern Oid	sessions_attach(int place, Oid *roleid);

/* It is connected, and can call handlers. */
extern void sessions_set_ready(void);

/* Take the news, once. */
extern void sessions_take_news(SessionNews *news);
extern void sessions_set_idle(bool idle);


/* ---------- For DDL ---------- */

/* Ask all sessions of a database to end; tell them to. */
extern void sessions_stop(Oid database);
extern void sessions_terminate(Oid database);
extern void sessions_terminate_locked(Oid database);

/* Is one connected to a database? */
extern bool sessions_are_attached(Oid database);

#endif							/* FEISHU_LAUNCHER_SESSIONS_H */
