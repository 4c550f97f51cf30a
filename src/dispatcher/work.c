/*-------------------------------------------------------------------------
 *
 * src/dispatcher/work.c
 *	  What the dispatcher does in a transaction, and when there is something to do.
 *
 * What wakes it: a notification, by its latch (notify.c, after a commit), the end of a
 * pause or of a lane's delay by its own clock, and what nobody notified it of by
 * a slow poll.  A transaction that fails is rolled back and tried again; the calls
 * that are under way go on meanwhile.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/role_settings.h"
#include "base/steady.h"
#include "call/call.h"
#include "dispatcher/claim.h"
#include "dispatcher/discover.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/ordering.h"
#include "dispatcher/park.h"
#include "dispatcher/pauses.h"
#include "handler/handler.h"
#include "launcher/launcher.h"

/*
 * Ends are written when there is a batch of them, or the first has waited so long, or
 * nothing else is under way.
 */
#define BATCH_DELAY_MS		10

/* After so many rows found new at once, all lanes are looked for, but not more
 * often than this. */
#define DISCOVER_DELAY_MS	1000

/* What there is much of is done some at a time, so often: old flows are deleted,
 * expired ones ended, ids looked at, those of paused flows parked. */
#define PURGE_DELAY_MS		100
#define EXPIRE_DELAY_MS		100
#define SWEEP_DELAY_MS		20
#define PARK_DELAY_MS		10

/* After a transaction that failed, the next one: doubled each time, up to this. */
#define FAILURE_DELAY_MS	50
#define FAILURE_MOST_MS		5000

/* While somebody has locked the tables they are tried so often, less and less. */
#define LOCKED_DELAY_MS		10
#define LOCKED_MOST_MS		500

/* What there is to do at the next transaction. */
typedef struct Work
{
	bool		control;		/* pauses or servers may have changed */
	bool		tokens;			/* some are to be refreshed */
	TimestampTz handlers_at;	/* sessions for handlers are seen to; DT_NOEND: not */
	bool		handlers;		/* of which it was notified */
	bool		discover_all;
	TimestampTz discover_at;	/* ... then; DT_NOEND: not */
	int64		min_id;			/* rows from here on may be new */
	TimestampTz poll_at;		/* the slow poll */
	TimestampTz purge_at;		/* old flows are deleted; DT_NOEND: not */
	TimestampTz expire_at;		/* expired flows are ended; likewise */
	TimestampTz sweep_at;		/* ids are looked at; likewise */
	TimestampTz park_at;		/* rows of paused flows are parked; likewise */
	TimestampTz claimed_at;		/* when rows were claimed last */
	TimestampTz now;			/* when the turn began */
	bool		was_urgent;		/* the last transaction was */
	int			failures;		/* transactions that failed, in a row */
	int			locked_out;		/* times that the tables were locked, in a row */
	SteadyTime	locked_since;
	TimestampTz retry_at;		/* with either: not before */
} Work;

static Work work = {
	.discover_all = true, .control = true, .handlers = true, .min_id = PG_INT64_MAX,
	.discover_at = DT_NOEND, .purge_at = DT_NOEND, .expire_at = DT_NOEND, .sweep_at = DT_NOEND,
	.park_at = DT_NOEND, .handlers_at = DT_NOEND
};

/* Take from shared memory of what we were notified; false: we are to end. */
bool
work_take_notice(void)
{
	DispatchNotice notice;
	bool		go_on = launcher_take_notice(&notice);

	work.min_id = Min(work.min_id, notice.min_id);
	work.control |= notice.control;
	work.tokens |= notice.tokens;
	work.handlers |= notice.handlers;
	if (notice.handlers_run)
		work.handlers_at = Min(work.handlers_at, handler_look_again(GetCurrentTimestamp()));
	return go_on;
}

/*
 * The time.  If the clock was set back, what was to be done soon, by the clock as
 * it was, would be done late by as much: do it now.  What tables say stays.
 */
static TimestampTz
read_clock(void)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now < last - USECS_PER_SEC)
	{
		sweep_begin_anew();
		work.poll_at = now;
		work.retry_at = Min(work.retry_at, now);
		work.claimed_at = Min(work.claimed_at, now);
		flight_clock_set_back(now);
	}
	last = now;
	return now;
}

/* When a transaction is worth while, if nothing happens until then. */
static TimestampTz
due_at(void)
{
	const FlightTotals *flights = flight_totals();
	TimestampTz at = Min(work.poll_at, Min(work.discover_at, work.purge_at));

	if (work.failures > 0 || work.locked_out > 0)
		return work.retry_at;
	if (work.control || work.tokens || work.handlers || work.discover_all ||
		work.min_id != PG_INT64_MAX)
		return 0;
	if (flights->ended > 0 && (flights->ended >= FLIGHT_BATCH || flights->load.in_flight == 0 ||
							   flow_calls_are_full()))
		return 0;
	at = Min(at, Min(work.expire_at, Min(work.sweep_at, Min(work.park_at, work.handlers_at))));
	if (flights->ended > 0)
		at = Min(at, TimestampTzPlusMilliseconds(flights->ended_since, BATCH_DELAY_MS));
	if (flights->stuck > 0)
		at = Min(at, flights->stuck_until);
	return at <= work.now ? at : Min(at, schedule_next(work.now, work.claimed_at));
}

/* Is a transaction worth while now? */
bool
work_is_due(void)
{
	work.now = read_clock();
	return due_at() <= work.now;
}

/* When there may be something to do, without anything happening. */
TimestampTz
work_next(void)
{
	return ConfigReloadPending || shutdown_is_told() ? 0 : due_at();
}

/* Once a minute: what nobody notifies us of, what is too old. */
static void
slow_poll(TimestampTz now)
{
	if (sweep_poll(now))
	{
		work.discover_all = true;
		maintain_begin_anew();
	}
	work.control = true;
	work.expire_at = work.purge_at = work.sweep_at = now;
	work.handlers = true;
	work.poll_at = TimestampTzPlusMilliseconds(now, feishu_guc_poll_interval);
}

/* When the next step of something is to be done. */
static TimestampTz
next_step(bool more, TimestampTz now, int delay_ms)
{
	return more ? TimestampTzPlusMilliseconds(now, delay_ms) : DT_NOEND;
}

/* Tell of the first failure in a row. */
void
work_log_failure(const ErrorData *error)
{
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("feishu_flow dispatcher could not work on the queue, and tries again: %s",
					error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

/* A transaction has failed: the next one after a while. */
static void
work_failed(TimestampTz now)
{
	int			delay_ms = Min(FAILURE_DELAY_MS << Min(work.failures, 10), FAILURE_MOST_MS);

	work.failures++;
	work.retry_at = TimestampTzPlusMilliseconds(now, delay_ms);
	launcher_set_failing(true);
}

/*
 * Somebody has locked the tables: try again after a while.  The requests under way
 * go on; nothing waits for him who has them.
 */
static void
work_locked_out(TimestampTz now)
{
	int			delay_ms = Min(LOCKED_DELAY_MS << Min(work.locked_out, 10), LOCKED_MOST_MS);

	if (work.locked_out++ == 0)
		work.locked_since = steady_now();
	work.retry_at = TimestampTzPlusMilliseconds(now, delay_ms);
	if (steady_left_ms(steady_after_ms(work.locked_since, WORK_LOCKED_TOLD_MS)) == 0)
		launcher_set_locked_out(true);
	handler_give_way(work.locked_since);
}

/* The tables are ours again. */
static void
work_let_in(void)
{
	if (work.locked_out > 0)
		launcher_set_locked_out(false);
	work.locked_out = 0;
}

/* Look at the rows of which we were told. */
static void
see_news(TimestampTz now)
{
	if (work.min_id == PG_INT64_MAX)
		return;
	if (discover_from(work.min_id))
	{
		work.discover_at = Min(work.discover_at,
								TimestampTzPlusMilliseconds(now, DISCOVER_DELAY_MS));
		work.sweep_at = Min(work.sweep_at, next_step(true, now, SWEEP_DELAY_MS));
	}
	work.min_id = PG_INT64_MAX;
}

/*
 * Are there rows of a priority above those that are being sent?  They are claimed by a
 * transaction that does nothing else: it does not wait for the disk, and their requests
 * are not behind a batch of others.  The next one does the rest.
 */
static bool
see_urgent(TimestampTz now)
{
	if (work.was_urgent || work.failures > 0 || work.min_id == PG_INT64_MAX || flight_totals()->stuck > 0 ||
		work.control || work.discover_all || shutdown_is_told())
		return false;
	see_news(now);
	return schedule_any_urgent(now);
}

/* One transaction; it may throw. */
static void
do_work(TimestampTz now)
{
	const FlightTotals *flights = flight_totals();
	int			before = flights->load.in_flight;
	int			num_lanes = lane_count();
	int			num_ended;
	bool		record_only;
	bool		urgent;

	if (!transaction_begin())
	{
		work_locked_out(now);
		return;
	}
	work_let_in();
	if (flights->stuck > 0 && flights->stuck_until <= now)
	{
		flight_take_back_stuck();
		record_one_by_one();
	}
	num_ended = flights->ended;
	record_only = work.failures > 0 && num_ended > 0;
	if (work.min_id != PG_INT64_MAX)
		ordering_expect(work.min_id);
	urgent = lane_any_tiers() && see_urgent(now);
	work.was_urgent = urgent;
	if (urgent)
		num_ended = 0;
	if (num_ended > 0)
		record_ended();
	if (!record_only && !urgent)
	{
		if (work.tokens)
			tokens_refresh_asked();
		work.tokens = false;
		if (work.poll_at <= now)
			slow_poll(now);
		if (work.expire_at <= now)
			work.expire_at = next_step(maintain_expire(now), now, EXPIRE_DELAY_MS);
		if (work.purge_at <= now)
			work.purge_at = next_step(maintain_purge(now), now, PURGE_DELAY_MS);
		if (work.discover_all || work.discover_at <= now)
		{
			discover_all(work.discover_all);
			work.discover_all = false;
			work.discover_at = DT_NOEND;
		}
		see_news(now);
		if (work.handlers || work.handlers_at <= now)
			work.handlers_at = handler_supply(now, work.handlers);
		work.handlers = false;
		if (work.sweep_at <= now)
			work.sweep_at = next_step(sweep_step(), now, SWEEP_DELAY_MS);
		/* new lanes may be paused, whoever found them */
		if (work.control || lane_count() > num_lanes)
			pauses_read(NULL);
		if (work.control)
		{
			lane_look_again_all();
			park_look_for_resumed();
			work.park_at = now;
		}
		work.control = false;
		if (work.park_at <= now)
		{
			park_step();
			work.park_at = TimestampTzPlusMilliseconds(now, PARK_DELAY_MS);
		}
	}
	if (!record_only)
	{
		/* the room of the ended ones is free, their ids are not in flight any more */
		work.claimed_at = GetCurrentTimestamp();
		role_settings_read(work.claimed_at);
		if (!shutdown_is_told())
			claim_all(work.claimed_at, urgent);
		if (!park_is_wanted() || TIMESTAMP_IS_NOEND(work.park_at))
			work.park_at = next_step(park_is_wanted(), now, PARK_DELAY_MS);
		lane_write_holds();
	}
	if (num_ended > 0 || flights->load.in_flight != before || flights->ended > 0)
		claim_write_ids();
	transaction_end(num_ended > 0 || flights->claims_durably ||
					(flights->load.in_flight > 0 && transaction_standby_waits()));
	flight_forget_recorded();
	if (!record_only)
		lane_holds_written();

	if (!record_only && work.failures > 0)
	{
		work.failures = 0;
		ereport(LOG, (errmsg("feishu_flow dispatcher works on the queue again")));
	}
	launcher_set_failing(work.failures > 0 || flights->stuck > 0);
}

/*
 * One transaction.  If it fails, nothing has happened: what was claimed is given
 * up, for nothing of it was sent, and what has ended is kept to be recorded later,
 * alone, before anything else is done.
 */
void
work_do(void)
{
	TimestampTz now = work.now;
	const Work	before = work;

	PG_TRY();
	{
		do_work(now);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* what it holds of the limiter is in memory that goes with it */
		claim_abort();
		MemoryContextSwitchTo(transaction_scratch);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(transaction_scratch);
		if (transaction_committed())
			flight_forget_recorded();
		else
			flight_undo_transaction();
		if (decide_is_lasting(error->sqlerrcode) || before.failures > 0)
			record_one_by_one();
		if (!transaction_committed())
			work = before;
		/* of what was looked at nothing is known */
		sweep_begin_anew();
		maintain_begin_anew();
		park_begin_anew();
		work.discover_all = true;
		work_failed(now);
		if (work.failures == 1)
			work_log_failure(error);
		pgstat_report_stat(true);
		MemoryContextReset(transaction_scratch);
	}
	PG_END_TRY();
}

/* The slow poll may be due earlier than it was, by a setting that has changed. */
void
work_poll_within_interval(void)
{
	work.poll_at = Min(work.poll_at,
					   TimestampTzPlusMilliseconds(GetCurrentTimestamp(), feishu_guc_poll_interval));
}
