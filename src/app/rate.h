/*-------------------------------------------------------------------------
 *
 * src/app/rate.h
 *	  When the next request keeps to a max_rate.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
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

extern TimestampTz rate_ready_at(RateHistory *history, const FlowRate *rate,
								 uint32 wanted, TimestampTz now);
extern bool rate_is_stale(TimestampTz counted_at, TimestampTz now);
extern void rate_count(RateHistory *history, TimestampTz now);
extern void rate_count_many(RateHistory *history, uint32 requests, TimestampTz now);
extern void rate_uncount(RateHistory *history, TimestampTz counted_at, TimestampTz last);
extern void rate_repair(RateHistory *history);
extern int64 rate_span(const FlowRate *rate);
extern uint32 rate_allowance(const FlowRate *rate);

#endif							/* FEISHU_RATE_H */
