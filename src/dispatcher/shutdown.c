/*-------------------------------------------------------------------------
 *
 * src/dispatcher/shutdown.c
 *	  How a dispatcher is told to end.
 *
 * A worker that gets SIGTERM usually ends at its next CHECK_FOR_INTERRUPTS.
 * In the middle of the transaction that records ends, all answers in it would
 * be lost: the flows ran, would be sent again, and be "unconfirmed".  So the
 * dispatcher is only told, and ends where it likes to, which is between two
 * transactions.  But somebody may have locked the tables, or a standby may
 * not answer: a transaction that has taken PATIENCE_MS ends us at once when we
 * are told.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/timeout.h"

#include "dispatcher/dispatcher_internal.h"

#define PATIENCE_MS			800

static TimeoutId patience_timeout;
static volatile sig_atomic_t told = false;
static volatile sig_atomic_t impatient = false;	/* the transaction takes long */
static instr_time told_at;

/* As die() does. */
static void
end_at_next_check(void)
{
	if (!proc_exit_inprogress)
	{
		InterruptPending = true;
		ProcDiePending = true;
	}
}

/* SIGTERM */
static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (!told)
		INSTR_TIME_SET_CURRENT(told_at);
	told = true;
	if (impatient)
		end_at_next_check();
	SetLatch(MyLatch);
	errno = save_errno;
}

/* PATIENCE_MS are over.  (The latch is set by timeout.c.) */
static void
on_patience_over(void)
{
	impatient = true;
	if (told)
		end_at_next_check();
}

/* From now on SIGTERM only tells us to end. */
void
shutdown_init(void)
{
	patience_timeout = RegisterTimeout(USER_TIMEOUT, on_patience_over);
	pqsignal(SIGTERM, on_sigterm);
}

/* Were we told to? */
bool
shutdown_is_told(void)
{
	return told || ProcDiePending;
}

/* What is left of so many ms from when we were told by SIGTERM, or now. */
int
shutdown_left_ms(int limit_ms)
{
	instr_time	since;

	if (!told)
		return limit_ms;
	INSTR_TIME_SET_CURRENT(since);
	INSTR_TIME_SUBTRACT(since, told_at);
	return (int) Max(limit_ms - INSTR_TIME_GET_MILLISEC(since), 0);
}

/*
 * Between these two there is a transaction.  Told to end while it takes too long, we
 * end at the next check of interrupts.
 */
void
shutdown_begin_work(void)
{
	enable_timeout_after(patience_timeout, PATIENCE_MS);
}

void
shutdown_end_work(void)
{
	disable_timeout(patience_timeout, false);
	impatient = false;
}
