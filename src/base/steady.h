/*-------------------------------------------------------------------------
 *
 * src/base/steady.h
 *	  A clock that nobody sets.
 *
 * For what is due after a while, and is known to this process alone: by the
 * time of day it would come late when that is set back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_STEADY_H
#define FEISHU_STEADY_H

#include <limits.h>

#include "portability/instr_time.h"

/* Microseconds since some time in the past; 0 is past at all times. */
typedef int64 SteadyTime;

static inline SteadyTime
steady_now(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (SteadyTime) INSTR_TIME_GET_MICROSEC(now);
}

static inline SteadyTime
steady_after_ms(SteadyTime time, int64 ms)
{
	return time + ms * 1000;
}

/* Milliseconds from now on, rounded up; 0 when it is past. */
static inline long
steady_left_ms(SteadyTime time)
{
	SteadyTime	left = time - steady_now();

	return left > 0 ? (long) Min((left + 999) / 1000, INT_MAX) : 0;
}

#endif							/* FEISHU_STEADY_H */
