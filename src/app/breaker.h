/*-------------------------------------------------------------------------
 *
 * src/app/breaker.h
 *	  What holds dispatch to a platform that does not answer, see breaker.c.
 *
 * Only gate.c knows of it, and calls all of this under a spinlock.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_BREAKER_H
#define FEISHU_BREAKER_H

#include "datatype/timestamp.h"

#include "app/limiter.h"

/* Roles of an app whose trouble is known. */
#define BREAKER_ROLES	8

typedef struct Breaker
{
	bool		open;
	uint64		epoch;			/* of the last change: see breaker.c */
	int			probe_pid;		/* who probes, 0: nobody */
	int			backoff_ms;
	TimestampTz probe_at;		/* not before */
} Breaker;

/* The trouble of one role. */
typedef struct RoleBreaker
{
	Oid			roleid;			/* InvalidOid: not in use */
	int			troubles;		/* calls in a row, by its own answers */
	int			unanswered;		/* of Breakers.unanswered */
	bool		is_own;			/* others were answered meanwhile */
	Breaker		breaker;
} RoleBreaker;

/* Of one app.  Zeroed: all are closed.  Plain data. */
typedef struct Breakers
{
	uint64		epoch;			/* changes with each of them */
	bool		is_calm;		/* nothing to do for an answer: no trouble is known */
	bool		any_open;
	int			unanswered;		/* calls since anybody had an answer */
	Oid			probed_by;		/* who probed for all last, and in vain */
	Breaker		all;
	RoleBreaker roles[BREAKER_ROLES];
} Breakers;

/* What a report changes: flags. */
#define BREAKER_OPENED			0x01	/* for all */
#define BREAKER_CLOSED			0x02
#define BREAKER_ROLE_OPENED		0x04	/* for the role */
#define BREAKER_ROLE_CLOSED		0x08
#define BREAKER_PROBE_DUE		0x10	/* some role may probe at once */

extern void breakers_check_clock(Breakers *breakers, TimestampTz now);
extern bool breakers_are_live(const Breakers *breakers, TimestampTz now);
extern bool breakers_admit(const Breakers *breakers, Oid roleid, TimestampTz now,
						   LimiterProbe *probe, TimestampTz *retry_at);

/* A probe goes out, or ends, whatever became of it. */
extern void breakers_begin_probe(Breakers *breakers, Oid roleid, LimiterProbe probe);
extern void breakers_end_probe(Breakers *breakers, Oid roleid, LimiterProbe probe, uint64 epoch);
extern int	breakers_note_trouble(Breakers *breakers, Oid roleid, LimiterProbe probe,
								  uint64 epoch, TimestampTz now);
extern int	breakers_note_answer(Breakers *breakers, Oid roleid, bool for_all);
extern bool breakers_hold(const Breakers *breakers, Oid roleid, TimestampTz *until);
extern void breakers_forget_process(Breakers *breakers, int pid);
extern bool breakers_resume(Breakers *breakers);

#endif							/* FEISHU_BREAKER_H */
