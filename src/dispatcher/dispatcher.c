/*-------------------------------------------------------------------------
 *
 * dispatcher.c
 *	  The background worker that sends the queued flows of one database.
 *
 * A continuous pipeline, one turn of it being:
 *
 *	  transaction:  write the ends of flights (record.c)
 *					claim rows for the places that are free (schedule.c, claim.c)
 *					and make a call of each (flight.c)
 *	  no transaction:  move all calls forward and wait (call.c), until some
 *					have ended, there is news, or something is due
 *
 * The calls are made inside the transaction, where their server can be looked
 * up and text converted, but nothing is sent before it has committed
 * (http_loop_defer): a flow on the wire is always one that feishu_internal.claim names,
 * on disk at the latest when its request has gone out (transaction_flush_claims), and on a
 * synchronous standby before.
 *
 * There is one dispatcher in a database; a session lock proves it.
 *
 * What wakes it: news by its latch (notify.c tells after a commit), the end
 * of a pause or of a lane's delay by its own clock, and what nobody told of by
 * a slow poll.  A transaction that fails is rolled back and tried again; the calls
 * that are under way go on meanwhile.  Should the process end all the same, the
 * launcher starts another, which takes over the claimed rows.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/dispatcher.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "app/limiter.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/role_settings.h"
#include "base/steady.h"
#include "base/worker_settings.h"
#include "dispatcher/dispatch.h"
#include "handler/handler.h"
#include "http/http.h"
#include "launcher/launcher.h"

PGDLLEXPORT void feishu_dispatcher_main(Datum main_arg);

/*
 * Ends are written when there are so many, or the first has waited so long, or
 * nothing else is under way.  Rows are claimed when there is room for so many
 * (or for as many as are under way), or the last claim was so long ago.
 */
#define BATCH_ROWS			DISPATCH_BATCH
#define BATCH_DELAY_MS		10

/*
 * Told to end, the dispatcher waits for answers so long, and has so long to write
 * them: that takes some ms, unless the disk is slow or somebody has locked the
 * tables.  A fast shutdown is to take less than a second.
 */
#define DRAIN_MS			400
#define FINISH_MS			800

/* After so many rows found new at once, all lanes are looked for, but not more
 * often than this. */
#define DISCOVER_DELAY_MS	1000

/* What there is much of is done some at a time, so often: old flows are deleted,
 * expired ones ended, ids looked at. */
#define PURGE_DELAY_MS		100
#define EXPIRE_DELAY_MS		100
#define SWEEP_DELAY_MS		20

/* After a transaction that failed, the next one: doubled each time, up to this. */
#define FAILURE_DELAY_MS	50
#define FAILURE_MOST_MS		5000

/* While somebody has locked the tables they are tried so often, less and less. */
#define LOCKED_DELAY_MS		10
#define LOCKED_MOST_MS		500

/* That is told when it has lasted so long. */
#define LOCKED_TOLD_MS		1000

/* What is as large goes back to the system as soon as it is freed. */
#define LARGE_MEMORY		(256 * 1024)

static Dispatch dispatch;


/* ---------- The loop ---------- */

/* What there is to do at the next transaction. */
typedef struct Work
{
	bool		control;		/* pauses or servers may have changed */
	bool		tokens;			/* some are to be refreshed */
	TimestampTz handlers_at;	/* sessions for handlers are seen to; DT_NOEND: not */
	bool		handlers;		/* there is news of them */
	bool		discover_all;
	TimestampTz discover_at;	/* ... then; DT_NOEND: not */
	int64		min_id;			/* rows from here on may be new */
	TimestampTz poll_at;		/* the slow poll */
	TimestampTz purge_at;		/* old flows are deleted; DT_NOEND: not */
	TimestampTz expire_at;		/* expired flows are ended; likewise */
	TimestampTz sweep_at;		/* ids are looked at; likewise */
	TimestampTz claimed_at;		/* when rows were claimed last */
	TimestampTz now;			/* when the turn began */
	int			failures;		/* transactions that failed, in a row */
	int			locked_out;		/* times that the tables were locked, in a row */
	SteadyTime	locked_since;
	TimestampTz retry_at;		/* with either: not before */
} Work;

/*
 * Take answers that come in time, first of all those that have come already.
 * No flow is sent any more.
 */
static void
drain(int ms, uint32 wait_event)
{
	int			num_ended;
	int			left_ms;

	HOLD_INTERRUPTS();
	flow_calls_send_no_more();
	flight_give_back_unsent(&dispatch);
	do
	{
		num_ended = dispatch.num_ended;
		flow_calls_turn(0, wait_event);
		flight_take_ended(&dispatch);
	} while (dispatch.num_ended > num_ended);

	while (dispatch.num_flights > 0 && (left_ms = shutdown_left_ms(ms)) > 0)
	{
		flow_calls_turn(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), left_ms), wait_event);
		flight_take_ended(&dispatch);
	}
	ProcDiePending = false;
	RESUME_INTERRUPTS();
}

/* Begin a transaction, within some ms if somebody has locked the tables. */
static bool
begin_within(int ms, uint32 wait_event)
{
	while (!transaction_begin())
	{
		if (ms <= 0)
			return false;
		(void) WaitLatch(NULL, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, LOCKED_DELAY_MS, wait_event);
		ms -= LOCKED_DELAY_MS;
	}
	return true;
}

/*
 * Told to end: record what has ended and, if there is time to wait, what ends
 * soon, so that no answer is lost.  Not at any price: somebody may have locked
 * the tables.
 */
static void
finish_and_exit(int drain_ms, uint32 wait_event)
{
	drain(drain_ms, wait_event);
	flight_take_back_stuck(&dispatch);
	if (dispatch.num_ended > 0 && begin_within(shutdown_left_ms(FINISH_MS), wait_event))
	{
		enable_timeout_after(STATEMENT_TIMEOUT, FINISH_MS);
		record_ended(&dispatch);
		claim_write_ids(&dispatch);
		transaction_end(&dispatch, true);
	}
	proc_exit(0);
}

/* Take news from shared memory into our own; false: we are to end. */
static bool
take_news(Work *work)
{
	DispatchNews news;
	bool		go_on = launcher_take_news(&news);

	work->min_id = Min(work->min_id, news.min_id);
	work->control |= news.control;
	work->tokens |= news.tokens;
	work->handlers |= news.handlers;
	if (news.handlers_run)
		work->handlers_at = Min(work->handlers_at, handler_look_again(GetCurrentTimestamp()));
	return go_on;
}

/* Is a transaction worth while now? */
static bool
has_work(const Work *work, TimestampTz now)
{
	if (work->failures > 0 || work->locked_out > 0)
		return work->retry_at <= now;
	if (dispatch.num_stuck > 0 && dispatch.stuck_until <= now)
		return true;
	if (work->control || work->tokens || work->discover_all || work->min_id != PG_INT64_MAX ||
		work->poll_at <= now || work->discover_at <= now || work->purge_at <= now ||
		work->expire_at <= now || work->sweep_at <= now || work->handlers || work->handlers_at <= now)
		return true;
	if (dispatch.num_ended >= BATCH_ROWS || (dispatch.num_ended > 0 && flow_calls_are_full()) ||
		(dispatch.num_ended > 0 &&
		 (dispatch.num_flights == 0 ||
		  now >= TimestampTzPlusMilliseconds(dispatch.ended_since, BATCH_DELAY_MS))))
		return true;
	return schedule_next(&dispatch, now, work->claimed_at) <= now;
}

/* When has_work may become true, or something else be to do, without anything
 * happening. */
static TimestampTz
next_work(const Work *work)
{
	TimestampTz at = Min(work->poll_at, Min(work->discover_at, work->purge_at));

	at = Min(at, Min(work->expire_at, Min(work->sweep_at, work->handlers_at)));
	if (ConfigReloadPending || shutdown_is_told())
		return 0;
	if (work->failures > 0 || work->locked_out > 0)
		return work->retry_at;
	if (work->control || work->tokens || work->handlers || work->discover_all ||
		work->min_id != PG_INT64_MAX)
		return 0;
	if (dispatch.num_ended > 0 && flow_calls_are_full())
		return 0;
	if (dispatch.num_ended > 0)
		at = Min(at, TimestampTzPlusMilliseconds(dispatch.ended_since, BATCH_DELAY_MS));
	if (dispatch.num_stuck > 0)
		at = Min(at, dispatch.stuck_until);
	return Min(at, schedule_next(&dispatch, work->now, work->claimed_at));
}

/* Once a minute: what nobody tells of, what is too old. */
static void
slow_poll(Work *work, TimestampTz now)
{
	if (sweep_poll(&dispatch, now))
	{
		work->discover_all = true;
		maintain_begin_anew();
	}
	work->control = true;
	work->expire_at = work->purge_at = work->sweep_at = now;
	work->handlers = true;
	work->poll_at = TimestampTzPlusMilliseconds(now, feishu_guc_poll_interval);
}

/* Servers or mappings may have changed: look at all lanes again. */
static void
reopen_lanes(void)
{
	TimestampTz now = GetCurrentTimestamp();

	/* the limiter, or the lookup, will say if it is still so */
	for (int i = 0; i < dispatch.num_lanes; i++)
	{
		dispatch.lanes[i]->app_is_known = false;
		lane_look_again(&dispatch, dispatch.lanes[i], now);
	}
}

/* When the next step of something is to be done. */
static TimestampTz
next_step(bool more, TimestampTz now, int delay_ms)
{
	return more ? TimestampTzPlusMilliseconds(now, delay_ms) : DT_NOEND;
}

/* Tell of the first failure in a row. */
static void
log_failure(const ErrorData *error)
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
work_failed(Work *work, TimestampTz now)
{
	int			delay_ms = Min(FAILURE_DELAY_MS << Min(work->failures, 10), FAILURE_MOST_MS);

	work->failures++;
	work->retry_at = TimestampTzPlusMilliseconds(now, delay_ms);
	launcher_set_failing(true);
}

/*
 * Somebody has locked the tables: try again after a while.  The requests under way
 * go on; nothing waits for him who has them.
 */
static void
work_locked_out(Work *work, TimestampTz now)
{
	int			delay_ms = Min(LOCKED_DELAY_MS << Min(work->locked_out, 10), LOCKED_MOST_MS);

	if (work->locked_out++ == 0)
		work->locked_since = steady_now();
	work->retry_at = TimestampTzPlusMilliseconds(now, delay_ms);
	if (steady_left_ms(steady_after_ms(work->locked_since, LOCKED_TOLD_MS)) == 0)
		launcher_set_locked_out(true);
	handler_give_way(work->locked_since);
}

/* The tables are ours again. */
static void
work_let_in(Work *work)
{
	if (work->locked_out > 0)
		launcher_set_locked_out(false);
	work->locked_out = 0;
}

/* One transaction; it may throw. */
static void
do_work(Work *work, TimestampTz now)
{
	int			before = dispatch.num_flights;
	int			num_lanes = dispatch.num_lanes;
	int			num_ended;
	bool		record_only;

	if (dispatch.num_stuck > 0 && dispatch.stuck_until <= now)
		flight_take_back_stuck(&dispatch);
	num_ended = dispatch.num_ended;
	record_only = work->failures > 0 && num_ended > 0;
	if (!transaction_begin())
	{
		work_locked_out(work, now);
		return;
	}
	work_let_in(work);
	if (work->min_id != PG_INT64_MAX)
		ordering_tell(work->min_id);
	if (num_ended > 0)
		record_ended(&dispatch);
	if (!record_only)
	{
		if (work->tokens)
			tokens_refresh_asked();
		work->tokens = false;
		if (work->poll_at <= now)
			slow_poll(work, now);
		if (work->expire_at <= now)
			work->expire_at = next_step(maintain_expire(&dispatch, now), now, EXPIRE_DELAY_MS);
		if (work->purge_at <= now)
			work->purge_at = next_step(maintain_purge(now), now, PURGE_DELAY_MS);
		if (work->discover_all || work->discover_at <= now)
		{
			discover_all(&dispatch, work->discover_all);
			work->discover_all = false;
			work->discover_at = DT_NOEND;
		}
		if (work->min_id != PG_INT64_MAX)
		{
			if (discover_from(&dispatch, work->min_id))
			{
				work->discover_at = Min(work->discover_at,
										TimestampTzPlusMilliseconds(now, DISCOVER_DELAY_MS));
				work->sweep_at = Min(work->sweep_at, next_step(true, now, SWEEP_DELAY_MS));
			}
			work->min_id = PG_INT64_MAX;
		}
		if (work->handlers || work->handlers_at <= now)
			work->handlers_at = handler_supply(now, work->handlers);
		work->handlers = false;
		if (work->sweep_at <= now)
			work->sweep_at = next_step(sweep_step(&dispatch), now, SWEEP_DELAY_MS);
		/* new lanes may be paused, whoever found them */
		if (work->control || dispatch.num_lanes > num_lanes)
			discover_read_pauses(&dispatch);
		if (work->control)
			reopen_lanes();
		work->control = false;

		/* the room of the ended ones is free, their ids are not in flight any more */
		work->claimed_at = GetCurrentTimestamp();
		role_settings_read(work->claimed_at);
		if (!shutdown_is_told())
			schedule_claim_all(&dispatch, work->claimed_at);
		lane_write_holds(&dispatch);
	}
	if (num_ended > 0 || dispatch.num_flights != before || dispatch.num_ended > 0)
		claim_write_ids(&dispatch);
	transaction_end(&dispatch, num_ended > 0 || dispatch.claim_durably ||
					(dispatch.num_flights > 0 && transaction_standby_waits()));
	dispatch.claim_durably = false;
	flight_forget_recorded(&dispatch);
	if (!record_only)
		lane_holds_told(&dispatch);

	if (!record_only && work->failures > 0)
	{
		work->failures = 0;
		ereport(LOG, (errmsg("feishu_flow dispatcher works on the queue again")));
	}
	launcher_set_failing(work->failures > 0 || dispatch.num_stuck > 0);
}

/*
 * One transaction.  If it fails, nothing has happened: what was claimed is given
 * up, for nothing of it was sent, and what has ended is kept to be recorded later,
 * alone, before anything else is done.
 */
static void
try_work(Work *work, TimestampTz now)
{
	Work		before = *work;

	dispatch.turn++;
	PG_TRY();
	{
		do_work(work, now);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* what it holds of the limiter is in memory that goes with it */
		schedule_abort(&dispatch);
		MemoryContextSwitchTo(dispatch.scratch);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(dispatch.scratch);
		if (transaction_committed())
			flight_forget_recorded(&dispatch);
		else
			flight_undo_turn(&dispatch);
		/* what keeps one end from being written may not concern the others */
		dispatch.record_singly |= record_is_lasting(error->sqlerrcode) || before.failures > 0;
		if (!transaction_committed())
			*work = before;
		/* of what was looked at nothing is known */
		sweep_begin_anew();
		maintain_begin_anew();
		work->discover_all = true;
		work_failed(work, now);
		if (work->failures == 1)
			log_failure(error);
		pgstat_report_stat(true);
		MemoryContextReset(dispatch.scratch);
	}
	PG_END_TRY();
}

/*
 * After a turn: lanes that wait for a place among their app's calls ask again,
 * since the end of another call, here or in another process, wakes us; all
 * that are held do when an app's pause was ended, by a call that went well or by
 * resume_server.
 */
static void
ask_again(void)
{
	bool		pause_ended;
	bool		place_freed;
	TimestampTz now;

	if (!limiter_is_waiting())
		return;
	pause_ended = limiter_pause_ended();
	place_freed = limiter_place_freed();
	if (!pause_ended && !place_freed)
		return;
	/* one time for all: who had a place last is to be the last to ask */
	now = GetCurrentTimestamp();
	for (int i = 0; i < dispatch.num_lanes; i++)
	{
		Lane	   *lane = dispatch.lanes[i];

		if (lane->place.waiting && (pause_ended || TIMESTAMP_IS_NOEND(lane->hold_until)))
			lane_look_again(&dispatch, lane, now);
	}
}

/*
 * The time.  If the clock was set back, what was to be done soon, by the clock as
 * it was, would be done late by as much: do it now.  What tables say stays.
 */
static TimestampTz
read_clock(Work *work)
{
	static TimestampTz last = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now < last - USECS_PER_SEC)
	{
		sweep_begin_anew();
		work->poll_at = now;
		work->retry_at = Min(work->retry_at, now);
		work->claimed_at = Min(work->claimed_at, now);
		dispatch.ended_since = Min(dispatch.ended_since, now);
	}
	last = now;
	return now;
}

/* As many connections to a host as may be wanted: each flight may have a token
 * request. */
static void
allow_connections(void)
{
	static int	allowed = 0;
	int			wanted = 2 * feishu_guc_max_in_flight;

	if (wanted == allowed)
		return;
	http_loop_set_host_connections(http_loop_get(), wanted);
	http_loop_share_memory(http_loop_get(), feishu_guc_max_in_flight);
	allowed = wanted;
}

/*
 * Have what it takes to make calls.  A process that is short of descriptors or
 * memory when it begins waits until there are some.
 */
static void
prepare_http(Work *work, uint32 wait_event)
{
	volatile long delay_ms = FAILURE_DELAY_MS;
	volatile bool ready = false;

	while (!ready)
	{
		PG_TRY();
		{
			/* calls are made inside the transaction that claims their rows */
			http_loop_defer(http_loop_get());
			ready = true;
		}
		PG_CATCH();
		{
			ErrorData  *error;

			MemoryContextSwitchTo(dispatch.scratch);
			error = CopyErrorData();
			if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_INSUFFICIENT_RESOURCES &&
				http_library_fault() == HTTP_LIBRARY_FIT)
				PG_RE_THROW();
			FlushErrorState();
			if (delay_ms == FAILURE_DELAY_MS)
				log_failure(error);
			launcher_set_failing(true);
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, delay_ms,
							 wait_event);
			ResetLatch(MyLatch);
			delay_ms = Min(2 * delay_ms, FAILURE_MOST_MS);
			MemoryContextReset(dispatch.scratch);
		}
		PG_END_TRY();
		if (shutdown_is_told() || !take_news(work))
			proc_exit(0);
	}
	launcher_set_failing(false);
}

/* See what the last dispatcher has left. */
static void
recover(Work *work, uint32 wait_event)
{
	while (!begin_within(LOCKED_TOLD_MS, wait_event))
	{
		if (!take_news(work))
			proc_exit(0);
		launcher_set_locked_out(true);
		CHECK_FOR_INTERRUPTS();
	}
	launcher_set_locked_out(false);
	claim_recover(&dispatch);
	transaction_end(&dispatch, true);
}

void
feishu_dispatcher_main(Datum main_arg)
{
	Work		work = {
		.min_id = PG_INT64_MAX, .discover_at = DT_NOEND, .purge_at = DT_NOEND,
		.expire_at = DT_NOEND, .sweep_at = DT_NOEND, .handlers_at = DT_NOEND
	};
	uint32		wait_event;
	Oid			database;

	database = launcher_attach_dispatcher(DatumGetInt32(main_arg));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	worker_settings_apply();
	role_settings_note_configured();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	role_settings_note_configured();
	pgstat_report_activity(STATE_IDLE, "idle");

	/* or malloc would keep the place of the largest answers there were */
#ifdef M_MMAP_THRESHOLD
	(void) mallopt(M_MMAP_THRESHOLD, LARGE_MEMORY);
#endif
	schedule_init(&dispatch);

	if (!transaction_lock_database())
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another feishu_flow dispatcher works in this database")));

	wait_event = feishu_wait_event_new("FeishuFlowDispatch");
	recover(&work, wait_event);
	shutdown_init();
	work.discover_all = true;
	work.control = true;
	work.handlers = true;
	work.poll_at = GetCurrentTimestamp();

	prepare_http(&work, wait_event);

	for (;;)
	{
		TimestampTz now;

		/* a shutdown is nothing to log as FATAL */
		if (shutdown_is_told())
			finish_and_exit(DRAIN_MS, wait_event);
		/* a cancel is for a transaction, and there is none */
		HOLD_CANCEL_INTERRUPTS();
		CHECK_FOR_INTERRUPTS();
		RESUME_CANCEL_INTERRUPTS();
		QueryCancelPending = false;
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			role_settings_note_configured();
			work.poll_at = Min(work.poll_at,
							   TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   feishu_guc_poll_interval));
		}
		allow_connections();
		if (!take_news(&work))
			finish_and_exit(0, wait_event);
		flight_take_ended(&dispatch);
		work.now = now = read_clock(&work);
		if (has_work(&work, now))
		{
			shutdown_begin_work();
			try_work(&work, now);
			shutdown_end_work();

			/*
			 * Whoever told us something meanwhile has set the latch, which a wait
			 * in the transaction may have reset.  Told to end, what was claimed is
			 * not sent: if the commit waited for a standby, it has given that up,
			 * and the standby need not have the claims.
			 */
			if (shutdown_is_told())
				finish_and_exit(DRAIN_MS, wait_event);
			if (!take_news(&work))
				finish_and_exit(0, wait_event);
			transaction_flush_claims();
			flight_report_activity(&dispatch);
		}

		/*
		 * A turn after each transaction, or calls would stand still while one
		 * is always due.
		 */
		HOLD_INTERRUPTS();
		flow_calls_turn(next_work(&work), wait_event);
		RESUME_INTERRUPTS();
		ask_again();
		MemoryContextReset(dispatch.scratch);
	}
}
