/*-------------------------------------------------------------------------
 *
 * src/app/limiter.h
 *	  What an app may do now: rate, concurrency, pauses, breaker.
 *
 * Who wants to call asks for a place, calls, and gives the place back with a
 * report of what became of it:
 *
 *		LimiterPlace place = {0};
 *
 *		if (limiter_acquire(server, true, &place, &retry_at, &why) == LIMITER_GO)
 *			call = flow_call_start(..., &place);	-- gives it back
 *		else
 *			... ask again, with this place, at retry_at or when the latch was
 *			    set; limiter_abandon(&place) when there is nothing to send
 *			    any more
 *
 * A dispatcher keeps one such place for each lane of flows: a place that has
 * to wait holds its turn among all who wait for the app.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LIMITER_H
#define FEISHU_LIMITER_H

#include "datatype/timestamp.h"

#include "app/server.h"

/* Why an app's calls are held back. */
typedef enum LimiterPause
{
	LIMITER_RUNNING,
	LIMITER_MAX_RATE,			/* by max_rate */
	LIMITER_MAX_CONCURRENCY,	/* by max_concurrency */
	LIMITER_RATE,				/* the platform said 429: wait its reset */
	LIMITER_BREAKER,			/* the platform does not answer: single probes */
	LIMITER_ROLE_BREAKER,		/* ... flows of this role */
	LIMITER_CREDENTIALS,		/* app_id, app_secret or token refused */
	LIMITER_QUOTA,				/* monthly quota used up */
	LIMITER_NO_ROOM				/* all slots are taken: its limits cannot be kept */
} LimiterPause;

/* What limiter_acquire says. */
typedef enum LimiterVerdict
{
	LIMITER_GO,					/* the place is taken */
	LIMITER_WAIT				/* ask again, not before *retry_at */
} LimiterVerdict;

/* How a call ended. */
typedef enum LimiterReport
{
	LIMITER_REPORT_NOTHING,		/* given up, or known already */
	LIMITER_REPORT_ANSWERED,	/* the platform works: closes the breaker, ends
								 * a pause */
	LIMITER_REPORT_TOKEN,		/* a token was granted: ends a pause of the
								 * credentials */
	LIMITER_REPORT_REFUSED,		/* the token was refused, and is to be replaced:
								 * closes the breaker */
	LIMITER_REPORT_REACHED,		/* and base_url answers: closes the breaker, too */
	LIMITER_REPORT_TROUBLE,		/* no answer, or a platform-side failure */
	LIMITER_REPORT_RATE,		/* 429: pause for reset_seconds */
	LIMITER_REPORT_CREDENTIALS,
	LIMITER_REPORT_QUOTA
} LimiterReport;

/* Is a call a probe of a breaker, and of which? */
typedef enum LimiterProbe
{
	LIMITER_NO_PROBE,
	LIMITER_PROBE_FOR_ALL,
	LIMITER_PROBE_FOR_ROLE
} LimiterProbe;

/*
 * One caller's place, or its turn to get one.  Zeroed: neither.  May be copied
 * if the original is zeroed.  Memory with a place in it must not go before
 * limiter_release or limiter_abandon.
 */
typedef struct LimiterPlace
{
	bool		taken;			/* GO */
	bool		waiting;		/* WAIT */
	bool		used;			/* set by who takes it when a request goes out;
								 * else it does not count for max_rate */
	/* the rest is the limiter's */
	bool		has_turn;		/* "turn" is one */
	bool		is_trial;		/* of an app that is paused */
	int			slot;			/* with a turn, or when taken; -1: none */
	Oid			roleid;			/* whose it is */
	LimiterProbe probe;
	uint32		turn;
	uint32		stop_epoch;		/* of the slot, when it was taken */
	uint64		open_epoch;
	TimestampTz counted_at;		/* by rate.c, 0: not */
	TimestampTz counted_after;	/* the last one before */
	uint32		keep_epoch;		/* of the slot, at that time */
} LimiterPlace;

/* A copy of an app's state, for views. */
typedef struct LimiterStatus
{
	LimiterPause pause;			/* never MAX_RATE, MAX_CONCURRENCY, NO_ROOM */
	TimestampTz resume_at;		/* end of the pause, or the next probe */
	int			in_flight;		/* calls that have a place */
	int			waiting;		/* for max_rate or max_concurrency */
} LimiterStatus;

extern LimiterVerdict limiter_acquire(const FlowServer *server, bool dispatching,
									  LimiterPlace *place, TimestampTz *retry_at,
									  LimiterPause *why);
extern void limiter_release(const FlowServer *server, LimiterPlace *place,
							LimiterReport report, double reset_seconds,
							const char *reason);
extern bool limiter_is_before(const LimiterPlace *place, const LimiterPlace *other);
extern bool limiter_is_stale(const LimiterPlace *place);
extern void limiter_abandon(LimiterPlace *place);
extern bool limiter_is_waiting(void);
extern bool limiter_pause_ended(void);
extern bool limiter_place_freed(void);
extern bool limiter_status(const AppKey *key, Oid roleid, LimiterStatus *status);
extern const char *limiter_pause_text(LimiterPause pause);
extern void limiter_resume(const char *server_name, const AppKey *key);

/* apps.c */
extern void apps_request_shmem(void);
extern void apps_startup_shmem(void);

#endif							/* FEISHU_LIMITER_H */
