/*-------------------------------------------------------------------------
 *
 * src/app/gate.h
 *	  The state of one app that its calls have to pass, see gate.c.
 *
 * Only limiter.c knows of it, and calls all of this under a spinlock.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_GATE_H
#define FEISHU_GATE_H

#include "app/breaker.h"
#include "app/limiter.h"
#include "app/rate.h"

/* State of one app.  Zeroed: nothing is known.  Plain data. */
typedef struct AppGate
{
	int			in_flight;
	uint32		turns_drawn;
	uint32		turns_over;		/* used or given up */
	RateHistory history;		/* of calls under a max_rate */
	int64		span;			/* how long these matter, in microseconds */
	/* of what is kept on disk, see limiter_keep.c */
	uint32		allowance;		/* requests that may go out until it is written */
	uint32		allowance_size; /* so many when it is written again, 0: not asked */
	uint32		keep_epoch;		/* counts how often that was done */
	TimestampTz rate_kept;		/* rate_until as it is there */

	TimestampTz rate_until;		/* 429, 0: none */
	TimestampTz rate_reported;	/* the last one */

	LimiterPause stop;			/* CREDENTIALS, QUOTA, or RUNNING */
	uint32		stop_epoch;		/* changes with it, see gate.c */
	TimestampTz tried_at;		/* the last time */

	Breakers	breakers;
} AppGate;

/* What a report changes: flags, besides those of breaker.h. */
#define GATE_PAUSED		0x0100
#define GATE_RESUMED	0x0200
#define GATE_RATE		0x0400

/* Calls that wait for max_rate or max_concurrency. */
static inline uint32
gate_turns(const AppGate *gate)
{
	return gate->turns_drawn - gate->turns_over;
}

/* Does nobody have a place or a turn? */
static inline bool
gate_is_idle(const AppGate *gate)
{
	return gate->in_flight == 0 && gate_turns(gate) == 0;
}

/* Is nobody held back, but by the limits of a server? */
static inline bool
gate_is_open(const AppGate *gate)
{
	return gate->stop == LIMITER_RUNNING && gate->rate_until == 0 && !gate->breakers.any_open;
}

extern bool gate_is_live(AppGate *gate, TimestampTz now);
extern bool gate_must_keep(const AppGate *gate, TimestampTz now);
extern void gate_take(AppGate *gate, LimiterPlace *place);
extern LimiterVerdict gate_admit(AppGate *gate, const FlowServer *server,
								 bool dispatching, bool keeps, LimiterPlace *place,
								 TimestampTz now, TimestampTz *retry_at,
								 LimiterPause *why, bool *unkept);
extern int	gate_report(AppGate *gate, Oid roleid, const LimiterPlace *place,
						LimiterReport report, double reset_seconds, TimestampTz now,
						bool may_break);
extern bool gate_give_back(AppGate *gate, LimiterPlace *place);
extern void gate_forget_process(AppGate *gate, int pid, int places, int turns);
extern bool gate_pause_is_unkept(AppGate *gate, TimestampTz now);
extern void gate_status(AppGate *gate, Oid roleid, TimestampTz now, LimiterStatus *status);
extern bool gate_resume(AppGate *gate);

#endif							/* FEISHU_GATE_H */
