/*-------------------------------------------------------------------------
 *
 * rate.c
 *	  Tests of src/rate.c: when the next request keeps to a max_rate.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/rate.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "app/rate.h"

#define PART	MS(50)			/* of a second's window */
#define MOST	40000			/* requests that are tried in one test */

static const FlowRate ten_a_second = {10, 1000};
static TimestampTz sent[MOST];

/* When a request may go, seen at some time. */
static TimestampTz
ready(RateHistory *history, FlowRate rate, uint32 wanted, TimestampTz now)
{
	return rate_ready_at(history, &rate, wanted, now) - now;
}

/* Send as fast as is allowed until some time; how many. */
static int
send_all(FlowRate rate, TimestampTz from, TimestampTz until)
{
	RateHistory history = {0};
	int			num = 0;

	for (TimestampTz now = from; num < MOST;)
	{
		TimestampTz at = rate_ready_at(&history, &rate, 1, now);

		now = Max(at, now);
		if (now >= until)
			break;
		rate_count(&history, now);
		sent[num++] = now;
	}
	return num;
}

/* The most of them in any window of this length, which ends before the next begins. */
static int
busiest(int num, int64 window)
{
	int			most = 0;

	for (int last = 0, first = 0; last < num; last++)
	{
		while (sent[last] - sent[first] >= window)
			first++;
		most = Max(most, last - first + 1);
	}
	return most;
}

static void
test_windows(void)
{
	static const struct
	{
		FlowRate	rate;
		int64		window;
		int			burst;		/* in a second */
		const char *name;
	}			cases[] = {
		{{1, 1000}, SECONDS(1), 1, "1/s"},
		{{10, 1000}, SECONDS(1), 10, "10/s"},
		{{10.5, 1000}, SECONDS(1), 10, "10.5/s"},
		{{50, 1000}, SECONDS(1), 50, "50/s"},
		{{20, 60000}, SECONDS(60), 5, "20/min"},
		{{90, 60000}, SECONDS(60), 5, "90/min"},
		{{110, 60000}, SECONDS(60), 6, "110/min"},
		{{1000, 60000}, SECONDS(60), 50, "1000/min"},
		{{500, 3600000}, SECONDS(3600), 5, "500/h"},
		{{12000, 3600000}, SECONDS(3600), 10, "12000/h"}
	};

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		int64		part = cases[i].window / RATE_PARTS;

		/* from within a part, and from its first and last moment on */
		for (int64 offset = 0; offset <= part; offset += Max(part / 2 - 1, 1))
		{
			int			num = send_all(cases[i].rate, EPOCH + offset,
									   EPOCH + offset + 3 * cases[i].window);

			is(busiest(num, cases[i].window), (int) cases[i].rate.requests,
			   named("%s: no window has more, and one has so many", cases[i].name));
			is(busiest(num, SECONDS(1)), cases[i].burst,
			   named("%s: so many go in one second", cases[i].name));
			at_most((int) cases[i].rate.requests * 3, num, named("%s: they fill the windows", cases[i].name));
		}
	}
}

static void
test_foretelling(void)
{
	RateHistory history = {0};
	TimestampTz now = EPOCH + MS(1);

	is(ready(&history, ten_a_second, 10, now), 0, "as many as the rate has go at once");
	is(ready(&history, ten_a_second, 11, now), 21 * PART, "one more waits for a window");
	is(ready(&history, ten_a_second, 20, now), 21 * PART, "... and as many again");
	is(ready(&history, ten_a_second, 21, now), 42 * PART, "... and the next for another");

	rate_count_many(&history, 5, now);
	is(ready(&history, ten_a_second, 5, now), 0, "half of them have gone: the rest goes at once");
	is(ready(&history, ten_a_second, 6, now), 21 * PART - MS(1), "... no more, until the window's end");
	now = EPOCH + 3 * PART;
	for (int i = 0; i < 5; i++)
		rate_count(&history, now);
	is(ready(&history, ten_a_second, 1, now), 18 * PART,
	   "all of them have gone: the next waits for the first to be over");
	is(ready(&history, ten_a_second, 5, now), 18 * PART, "... and four others with it");
	is(ready(&history, ten_a_second, 6, now), 21 * PART, "... but no more");
	is(ready(&history, ten_a_second, 11, now), (18 + 21) * PART,
	   "... more than the rate has wait for another window, too");
	is(ready(&history, ten_a_second, 1, EPOCH + 21 * PART - 1), 1, "the first are looked at to the end");
	is(ready(&history, ten_a_second, 5, EPOCH + 21 * PART), 0, "... and not longer");
	is(ready(&history, ten_a_second, 6, EPOCH + 21 * PART), 3 * PART, "... but the others are");
	is(ready(&history, ten_a_second, 10, EPOCH + 24 * PART), 0, "... until their own end");
}

static void
test_fractions(void)
{
	RateHistory history = {0};
	const FlowRate half = {0.5, 1000};
	const FlowRate nine = {9.5, 1000};
	const FlowRate minute = {2.5, 60000};

	at_most(ready(&history, half, 1, EPOCH), 0, "0.5/s: the first goes at once");
	rate_count(&history, EPOCH);
	is(ready(&history, half, 1, EPOCH), SECONDS(2), "... the next after two seconds");
	is(ready(&history, half, 2, EPOCH), SECONDS(4), "... another after four");
	is(ready(&history, half, 1, EPOCH + SECONDS(1.5)), SECONDS(0.5), "... counted from the first");
	is(ready(&history, half, 2, EPOCH + SECONDS(10)), SECONDS(2), "... or from now on");
	is(ready(&history, nine, 1, EPOCH), 105263, "9.5/s: by the time between two");
	is(ready(&history, minute, 1, EPOCH), SECONDS(24), "2.5/min: likewise");
	is(ready(&history, half, 1, EPOCH - SECONDS(100)), SECONDS(2), "a clock that was set back does not hold it up");
}

static void
test_uncounting(void)
{
	RateHistory history = {0};
	TimestampTz at = EPOCH + 5 * PART;

	rate_count_many(&history, 9, EPOCH);
	rate_count(&history, at);
	is(ready(&history, ten_a_second, 1, at), 16 * PART, "ten have gone");
	rate_uncount(&history, at, EPOCH);
	is(ready(&history, ten_a_second, 1, at), 0, "one that did not go after all is given back");
	is(ready(&history, ten_a_second, 2, at), 16 * PART, "... one alone");
	is(history.last, EPOCH, "... and the last one is that before it");
	rate_uncount(&history, at, EPOCH - SECONDS(9));
	is(history.last, EPOCH, "one that was not the last leaves that");
	is(ready(&history, ten_a_second, 2, at), 16 * PART, "none is given back that was not counted");
	is(history.windows[RATE_MINUTE].total, 8, "... but from the windows that have it, it is");
	is(history.windows[RATE_HOUR].total, 8, "... each of them");

	memset(&history, 0, sizeof(history));
	rate_count_many(&history, 10, EPOCH);
	is(ready(&history, ten_a_second, 1, EPOCH + 20 * PART), PART, "a window looks back by 20 parts");
	rate_uncount(&history, EPOCH, 0);
	is(ready(&history, ten_a_second, 1, EPOCH + 20 * PART), 0, "... and one from so long ago is given back");
	memset(&history, 0, sizeof(history));
	rate_count(&history, EPOCH);
	rate_count_many(&history, 10, EPOCH + 21 * PART);
	rate_uncount(&history, EPOCH, 0);
	is(ready(&history, ten_a_second, 1, EPOCH + 21 * PART), 21 * PART,
	   "... one from before that is not, from the part in its place");
	rate_uncount(&history, EPOCH + 42 * PART, 0);
	is(ready(&history, ten_a_second, 1, EPOCH + 21 * PART), 21 * PART,
	   "... nor is one from after a clock was set back");

	is(rate_is_stale(EPOCH, EPOCH + PART), 0, "a request that goes out within a part is in time");
	is(rate_is_stale(EPOCH, EPOCH + PART + 1), 1, "... later it is not");
}

static void
test_clock(void)
{
	RateHistory history = {0};

	rate_count_many(&history, 10, EPOCH);
	is(ready(&history, ten_a_second, 1, EPOCH - 20 * PART), 41 * PART,
	   "a clock that was set back a little: they count");
	is(ready(&history, ten_a_second, 1, EPOCH - 21 * PART), 42 * PART, "... by a window: likewise");
	is(ready(&history, ten_a_second, 1, EPOCH - SECONDS(3600)), 0, "... by more than a window: they do not");
	rate_count_many(&history, 10, EPOCH);
	is(ready(&history, ten_a_second, 1, EPOCH + SECONDS(4e9)), 0, "a clock that jumps far ahead is no work");
}

static void
test_kept(void)
{
	RateHistory history = {0};
	const FlowRate half = {0.5, 1000};
	const FlowRate hundred = {100, 60000};
	const FlowRate five = {5, 60000};
	const FlowRate endless = {1e9, 1000};

	rate_count_many(&history, 10, EPOCH);
	for (int i = RATE_SECOND; i <= RATE_HOUR; i++)
		history.windows[i].total = 1000 * i;
	rate_repair(&history);
	is(history.windows[RATE_SECOND].total, 10, "the sum of a window is made to agree with it");
	is(history.windows[RATE_HOUR].total, 10, "... of each");

	is(rate_span(&ten_a_second), 21 * PART, "what was sent matters for a window and a part");
	is(rate_span(&hundred), 21 * SECONDS(3), "... of its unit");
	is(rate_span(&half), SECONDS(2), "... or until the next may go");
	is(rate_allowance(&ten_a_second), 300, "of a rate per second, 30 seconds' worth may go out between two writes");
	is(rate_allowance(&hundred), 10, "... of one per minute a tenth");
	is(rate_allowance(&five), 1, "... but one at least");
	is(rate_allowance(&endless), 1000000, "... and a million at most");
}

void
test_rate(void)
{
	test_windows();
	test_foretelling();
	test_fractions();
	test_uncounting();
	test_clock();
	test_kept();
}
