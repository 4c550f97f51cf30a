/*-------------------------------------------------------------------------
 *
 * src/app/rate.c
 *	  When the next request keeps to a max_rate.
 *
 * "50/s" means: in whatever second one looks, at most 50 requests go out.  A
 * token bucket does not keep that: full, it lets 50 go at once and as many
 * again while it fills up, and the platform refuses the latter.  So requests
 * are counted by twentieths of the window, and one goes out if the last twenty
 * and the one that has just begun have room.  That is strict wherever the
 * platform's own window begins, lets a burst of the whole number go at
 * once, and costs at most a twentieth of the rate, which also makes up for
 * requests that are on their way for longer than others.
 *
 * A burst of 1000/min in one second would trip the limit per second that the
 * platform has beside it (1000/min and 50/s, PLATFORM.md).  So of a rate per
 * minute or hour, at most three times the average goes out in any second.
 *
 * A rate that is small and no whole number, such as 0.5/s, is kept by the time
 * between two requests.
 *
 * Servers of one app may have different rates, so each request is counted in
 * the windows of all units.
 *
 * All of this is called under a spinlock: no loop here is longer than a
 * window, and nothing throws.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>


#include "app/rate.h"

#define RATE_SIZE		(RATE_PARTS + 1)

/*
 * Of a rate per minute or hour, so many times the average may go out in a
 * second: 50 of 1000/min.  But no fewer than the platform's lowest limit per
 * second.
 */
#define RATE_BURST_FACTOR	3
#define RATE_BURST_LEAST	5

/* From here on, what is behind the decimal point does not matter. */
#define RATE_FRACTION_MATTERS	10

/*
 * Parts of a rate that may go out before what is kept is written again: of a
 * rate per minute or hour a tenth of its window, of one per second so many
 * seconds, for there at most a second is lost after a crash anyway.
 */
#define RATE_ALLOWANCE_PART		10
#define RATE_ALLOWANCE_SECONDS	30
#define RATE_ALLOWANCE_MOST		1000000

static const int64 unit_us[] = {
	[RATE_SECOND] = USECS_PER_SEC,
	[RATE_MINUTE] = USECS_PER_MINUTE,
	[RATE_HOUR] = USECS_PER_HOUR
};

static inline int64
part_us(RateUnit unit)
{
	return unit_us[unit] / RATE_PARTS;
}

static inline RateUnit
rate_unit(const FlowRate *rate)
{
	return rate->window_ms <= 1000 ? RATE_SECOND :
		rate->window_ms <= 60 * 1000 ? RATE_MINUTE : RATE_HOUR;
}

/* Is it kept by the time between two requests? */
static inline bool
rate_is_fraction(const FlowRate *rate)
{
	return rate->requests < RATE_FRACTION_MATTERS &&
		rate->requests != (uint32) rate->requests;
}

/* Move a window on to the part that has begun. */
static void
window_advance(RateWindow *window, int64 part)
{
	if (part < window->newest - RATE_SIZE || part >= window->newest + RATE_SIZE)
	{
		/* long ago, or the clock was set back */
		memset(window, 0, sizeof(RateWindow));
		window->newest = part;
	}
	while (window->newest < part)
	{
		uint32	   *count = &window->counts[++window->newest % RATE_SIZE];

		window->total -= *count;
		*count = 0;
	}
}

/* When so many more requests fit into a window of at most limit. */
static TimestampTz
window_ready_at(RateWindow *window, RateUnit unit, uint32 limit, uint32 wanted,
				TimestampTz now)
{
	int64		whole = (wanted - 1) / limit;	/* windows filled by some of them */
	TimestampTz ready_at = now;
	int64		excess;

	window_advance(window, now / part_us(unit));
	excess = (int64) window->total + (wanted - whole * limit) - limit;
	for (int64 part = window->newest - RATE_PARTS; excess > 0 && part <= window->newest; part++)
	{
		excess -= window->counts[part % RATE_SIZE];
		ready_at = (part + RATE_SIZE) * part_us(unit);
	}
	return ready_at + whole * RATE_SIZE * part_us(unit);
}

/*
 * When "wanted" more requests keep to the rate, which must not be unlimited:
 * at once (now, or earlier), or so late.
 */
TimestampTz
rate_ready_at(RateHistory *history, const FlowRate *rate, uint32 wanted, TimestampTz now)
{
	RateUnit	unit = rate_unit(rate);
	uint32		limit = (uint32) rate->requests;
	TimestampTz ready_at;

	if (rate_is_fraction(rate))
	{
		double		between = unit_us[unit] / rate->requests;

		/* the clock may have been set back */
		ready_at = Min(history->last, now) + (TimestampTz) between;
		return Max(ready_at, now) + (TimestampTz) (between * (wanted - 1));
	}

	ready_at = window_ready_at(&history->windows[unit], unit, limit, wanted, now);
	if (unit != RATE_SECOND)
	{
		double		burst = rate->requests * RATE_BURST_FACTOR * USECS_PER_SEC / unit_us[unit];
		TimestampTz burst_at;

		burst = Max(ceil(burst), RATE_BURST_LEAST);
		burst_at = window_ready_at(&history->windows[RATE_SECOND], RATE_SECOND,
								   (uint32) burst, wanted, now);
		ready_at = Max(ready_at, burst_at);
	}
	return ready_at;
}

/*
 * Was a request counted so long ago that the windows do not tell of it if it
 * goes out only now?
 */
bool
rate_is_stale(TimestampTz counted_at, TimestampTz now)
{
	return now - counted_at > part_us(RATE_SECOND);
}

/* So many may have gone out, at the latest now. */
void
rate_count_many(RateHistory *history, uint32 requests, TimestampTz now)
{
	history->last = now;
	for (RateUnit unit = RATE_SECOND; unit <= RATE_HOUR; unit++)
	{
		RateWindow *window = &history->windows[unit];

		window_advance(window, now / part_us(unit));
		window->counts[window->newest % RATE_SIZE] += requests;
		window->total += requests;
	}
}

/* A request is to go out. */
void
rate_count(RateHistory *history, TimestampTz now)
{
	rate_count_many(history, 1, now);
}

/*
 * A request did not go out after all.  counted_at: when it was counted; last: history->last
 * before that.
 */
void
rate_uncount(RateHistory *history, TimestampTz counted_at, TimestampTz last)
{
	if (history->last == counted_at)
		history->last = last;
	for (RateUnit unit = RATE_SECOND; unit <= RATE_HOUR; unit++)
	{
		RateWindow *window = &history->windows[unit];
		int64		part = counted_at / part_us(unit);
		uint32	   *count = &window->counts[part % RATE_SIZE];

		/* if the part is still looked at */
		if (part > window->newest - RATE_SIZE && part <= window->newest && *count > 0)
		{
			(*count)--;
			window->total--;
		}
	}
}

/* What was kept may come from the middle of a change: make it agree with itself. */
void
rate_repair(RateHistory *history)
{
	for (RateUnit unit = RATE_SECOND; unit <= RATE_HOUR; unit++)
	{
		RateWindow *window = &history->windows[unit];

		window->total = 0;
		for (int i = 0; i < RATE_SIZE; i++)
			window->total += window->counts[i];
	}
}

/* For so long after a request it matters for the rate, in microseconds. */
int64
rate_span(const FlowRate *rate)
{
	RateUnit	unit = rate_unit(rate);

	if (rate_is_fraction(rate))
		return (int64) (unit_us[unit] / rate->requests);
	return RATE_SIZE * part_us(unit);
}

/*
 * So many requests may go out before what is kept of the app must be written
 * again: few enough that it does not matter much if they are counted twice.
 */
uint32
rate_allowance(const FlowRate *rate)
{
	double		requests = rate_unit(rate) == RATE_SECOND ?
		rate->requests * RATE_ALLOWANCE_SECONDS : rate->requests / RATE_ALLOWANCE_PART;

	return (uint32) Min(Max(requests, 1), RATE_ALLOWANCE_MOST);
}
