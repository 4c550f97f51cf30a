/*-------------------------------------------------------------------------
 *
 * unit.h
 *	  What the programs share that test parts of src/ by themselves, with a time
 *	  of their own: see test/t/131_limits_by_the_clock.pl.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/unit.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_UNIT_H
#define FEISHU_UNIT_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* the C library's own: there is no library of PostgreSQL here */
#undef printf
#undef snprintf

#define SECONDS(n)	((int64) ((n) * 1000000.0))
#define MS(n)		((int64) (n) * 1000)

/* Begins a minute, and so a part of each window. */
#define EPOCH		((TimestampTz) 840000000 * USECS_PER_SEC)

/* A name put together, until the next one is. */
extern const char *named(const char *format, const char *what);

/* One assertion: a line for the test in Perl. */
static inline void
is(int64 got, int64 expected, const char *name)
{
	printf("%s - %s\n", got == expected ? "ok" : "not ok", name);
	if (got != expected)
		printf("# got " INT64_FORMAT ", expected " INT64_FORMAT "\n", got, expected);
	fflush(stdout);
}

static inline void
at_most(int64 got, int64 most, const char *name)
{
	printf("%s - %s\n", got <= most ? "ok" : "not ok", name);
	if (got > most)
		printf("# got " INT64_FORMAT ", at most " INT64_FORMAT "\n", got, most);
	fflush(stdout);
}

#endif							/* FEISHU_UNIT_H */
