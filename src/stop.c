/*-------------------------------------------------------------------------
 *
 * stop.c
 *	  How a dispatcher is told to end while it must not.
 *
 * A worker that gets SIGTERM ends at its next CHECK_FOR_INTERRUPTS.  In the
 * middle of the transaction that records ends, all answers in it would be
 * lost: the flows ran, would be sent again, and be "unconfirmed".  So while
 * that transaction is open the signal is put off, though not for ever, since
 * somebody may have locked the tables.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/stop.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "dispatch.h"

/* A signal is put off for so many looks, so far apart, at most. */
#define LOOKS				4
#define LOOK_MS				150

static TimeoutId look_timeout;
static volatile sig_atomic_t put_off = false;
static volatile sig_atomic_t told = false;
static volatile sig_atomic_t looks = 0;

/* As die() does. */
static void
end_at_next_check(void)
{
	InterruptPending = true;
	ProcDiePending = true;
	SetLatch(MyLatch);
}

/* SIGTERM */
static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (put_off)
		told = true;
	else
		end_at_next_check();
	errno = save_errno;
}

/* Every LOOK_MS while the signal is put off. */
static void
on_look(void)
{
	if (told && ++looks >= LOOKS)
		end_at_next_check();
}

void
stop_init(void)
{
	look_timeout = RegisterTimeout(USER_TIMEOUT, on_look);
	pqsignal(SIGTERM, on_sigterm);
}

void
stop_put_off(void)
{
	looks = 0;
	put_off = true;
	enable_timeout_every(look_timeout,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_MS),
						 LOOK_MS);
}

void
stop_take_up(void)
{
	disable_timeout(look_timeout, false);
	put_off = false;
	if (told)
		end_at_next_check();
	told = false;
}
