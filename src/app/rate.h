/*-------------------------------------------------------------------------
 *
 * rate.h
 *	  When the next request keeps to a max_rate.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/rate.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_RATE_H
#define FEISHU_RATE_H

#include "datatype/timestamp.h"

#include "app/server.h"

/* A window is looked at in so many parts, and the one that has just begun. */
#define RATE_PARTS		20

/* How many requests each of the last parts of a window's length had. */
typedef struct RateWindow
{
	int64		newest;			/* number of the newest part since the epoch */
	uint32		total;			/* sum of counts */
	uint32		counts[RATE_PARTS + 1]; /* of part n at n modulo the size */
} RateWindow;

/* The units that a max_rate can have. */
typedef enum RateUnit
{
	RATE_SECOND,
	RATE_MINUTE,
	RATE_HOUR
} RateUnit;

/* What was sent lately.  Zeroed: nothing.  Plain data. */
typedef struct RateHistory
{
	TimestampTz last;			/* the last request */
	RateWindow	windows[RATE_HOUR + 1];
} RateHistory;

/* When so many more requests keep to the rate. */
extern TimestampTz rate_ready_at(RateHistory *history, const FlowRate *rate,
								 uint32 wanted, TimestampTz now);

/* Was a request counted too long ago to go out only now? */
extern bool rate_is_stale(TimestampTz counted_at, TimestampTz now);

/* A request is to go out. */
extern void rate_count(RateHistory *history, TimestampTz now);

/* So many may have gone out, at the latest now. */
extern void rate_count_many(RateHistory *history, uint32 requests, TimestampTz now);

/* It did not go out after all. */
extern void rate_uncount(RateHistory *history, TimestampTz counted_at, TimestampTz last);

/* What was kept may come from the middle of a change: make it agree with itself. */
extern void rate_repair(RateHistory *history);

/* For so long after a request it matters for the rate, in microseconds. */
extern int64 rate_span(const FlowRate *rate);

/* So many requests may go out before what is kept must be written again. */
extern uint32 rate_allowance(const FlowRate *rate);

#endif							/* FEISHU_RATE_H */
