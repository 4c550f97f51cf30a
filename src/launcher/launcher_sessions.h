/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_sessions.h
 *	  Sessions of roles in which handlers are called: places, notices, ends.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_SESSIONS_H
#define FEISHU_LAUNCHER_SESSIONS_H

/* Hooks of the postmaster. */
extern void sessions_request_shmem(void);
extern void sessions_startup_shmem(void);


/* ---------- For those who end flows ---------- */

extern bool sessions_notify(Oid roleid, int64 min_number);
extern void sessions_notify_all(void);


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
extern bool sessions_view(int place, SessionView *view);
extern int	sessions_reserve(Oid roleid, uint32 *generation);
extern void sessions_free(int place, uint32 generation);
extern void sessions_ask_to_leave(int place);


/* ---------- For the session ---------- */

/* What a session was told. */
typedef struct SessionNotice
{
	bool		leave;			/* it is to end */
	int64		min_number;		/* PG_INT64_MAX: nothing */
} SessionNotice;

extern Oid	sessions_attach(int place, Oid *roleid);
extern void sessions_set_ready(void);

extern void sessions_take_notice(SessionNotice *notice);
extern void sessions_set_idle(bool idle);


/* ---------- For DDL ---------- */

/* Ask all sessions of a database to end; tell them to. */
extern void sessions_stop(Oid database);
extern void sessions_terminate(Oid database);
extern void sessions_terminate_locked(Oid database);
extern bool sessions_are_attached(Oid database);

#endif							/* FEISHU_LAUNCHER_SESSIONS_H */
