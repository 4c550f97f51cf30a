/*-------------------------------------------------------------------------
 *
 * src/dispatcher/dispatcher.c
 *	  The background worker that sends the queued flows of one database.
 *
 * A continuous pipeline, one turn of it being:
 *
 *	  transaction:  write the ends of flights (record.c)
 *					claim rows for the places that are free (schedule.c, claim.c)
 *					and make a call of each (flight.c)
 *	  no transaction:  move all calls forward and wait (call.c), until some
 *					have ended (decide.c), we are notified, or something is due
 *
 * Vocabulary: a "lane" is the flows of one server and one role, which share
 * credentials and so an app.  A "flight" is a flow that is claimed: from the
 * transaction that claimed it to the one that recorded what became of it.
 *
 * The calls are made inside the transaction, where their server can be looked
 * up and text converted, but nothing is sent before it has committed
 * (http_loop_defer): a flow on the wire is always one that feishu_internal.claim names,
 * on disk at the latest when its request has gone out (transaction_flush_claims), and on a
 * synchronous standby before.
 *
 * There is one dispatcher in a database; a session lock proves it.  Should the process
 * end, the launcher starts another, which takes over the claimed rows.
 *
 * Copyright (c) 2026, feishu_flow contributors
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
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/role_settings.h"
#include "base/worker_settings.h"
#include "dispatcher/claim.h"
#include "dispatcher/dispatcher_internal.h"
#include "http/http.h"
#include "launcher/launcher.h"

PGDLLEXPORT void feishu_dispatcher_main(Datum main_arg);

/*
 * Told to end, the dispatcher waits for answers so long, and has so long to write
 * them: that takes some ms, unless the disk is slow or somebody has locked the
 * tables.  A fast shutdown is to take less than a second.
 */
#define DRAIN_MS			400
#define FINISH_MS			800

/* While somebody has locked the tables they are tried so often, when there is nothing
 * else to do. */
#define LOCKED_DELAY_MS		10

/* What it takes to make calls is waited for so long: doubled each time, up to this. */
#define HTTP_DELAY_MS		50
#define HTTP_MOST_MS		5000

/* What is as large goes back to the system as soon as it is freed. */
#define LARGE_MEMORY		(256 * 1024)

static uint32 wait_event;


/*
 * Take answers that come in time, first of all those that have come already.
 * No flow is sent any more.
 */
static void
drain(int ms)
{
	int			num_ended;
	int			left_ms;

	HOLD_INTERRUPTS();
	flow_calls_send_no_more();
	flight_return_unsent();
	do
	{
		num_ended = flight_totals()->ended;
		flow_calls_turn(0, wait_event);
		flight_take_ended();
	} while (flight_totals()->ended > num_ended);

	while (flight_totals()->load.in_flight > 0 && (left_ms = shutdown_left_ms(ms)) > 0)
	{
		flow_calls_turn(TimestampTzPlusMilliseconds(GetCurrentTimestamp(), left_ms), wait_event);
		flight_take_ended();
	}
	ProcDiePending = false;
	RESUME_INTERRUPTS();
}

/* Begin a transaction, within some ms if somebody has locked the tables. */
static bool
begin_within(int ms)
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
finish_and_exit(int drain_ms)
{
	drain(drain_ms);
	flight_take_back_stuck();
	record_one_by_one();
	if (flight_totals()->ended > 0 && begin_within(shutdown_left_ms(FINISH_MS)))
	{
		enable_timeout_after(STATEMENT_TIMEOUT, FINISH_MS);
		record_ended();
		claim_write_ids();
		transaction_end(true);
	}
	proc_exit(0);
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
prepare_http(void)
{
	volatile long delay_ms = HTTP_DELAY_MS;
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

			MemoryContextSwitchTo(transaction_scratch);
			error = CopyErrorData();
			if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_INSUFFICIENT_RESOURCES &&
				http_library_fault() == HTTP_LIBRARY_FIT)
				PG_RE_THROW();
			FlushErrorState();
			if (delay_ms == HTTP_DELAY_MS)
				work_log_failure(error);
			launcher_set_failing(true);
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, delay_ms,
							 wait_event);
			ResetLatch(MyLatch);
			delay_ms = Min(2 * delay_ms, HTTP_MOST_MS);
			MemoryContextReset(transaction_scratch);
		}
		PG_END_TRY();
		if (shutdown_is_told() || !work_take_notice())
			proc_exit(0);
	}
	launcher_set_failing(false);
}

/* See what the last dispatcher has left. */
static void
recover(void)
{
	while (!begin_within(WORK_LOCKED_TOLD_MS))
	{
		if (!work_take_notice())
			proc_exit(0);
		launcher_set_locked_out(true);
		CHECK_FOR_INTERRUPTS();
	}
	launcher_set_locked_out(false);
	claim_recover();
	transaction_end(true);
}

void
feishu_dispatcher_main(Datum main_arg)
{
	Oid			database = launcher_attach_dispatcher(DatumGetInt32(main_arg));
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
	transaction_init();
	lane_init();
	schedule_init();
	flight_init();

	if (!transaction_lock_database())
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("another feishu_flow dispatcher works in this database")));

	wait_event = feishu_wait_event_new("FeishuFlowDispatch");
	recover();
	shutdown_init();
	prepare_http();

	for (;;)
	{
		/* a shutdown is nothing to log as FATAL */
		if (shutdown_is_told())
			finish_and_exit(DRAIN_MS);
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
			work_poll_within_interval();
		}
		allow_connections();
		if (!work_take_notice())
			finish_and_exit(0);
		flight_take_ended();
		if (work_is_due())
		{
			shutdown_begin_work();
			work_do();
			shutdown_end_work();

			/*
			 * Whoever told us something meanwhile has set the latch, which a wait
			 * in the transaction may have reset.  Told to end, what was claimed is
			 * not sent: if the commit waited for a standby, it has given that up,
			 * and the standby need not have the claims.
			 */
			if (shutdown_is_told())
				finish_and_exit(DRAIN_MS);
			if (!work_take_notice())
				finish_and_exit(0);
			transaction_flush_claims();
			flight_report_activity();
		}

		/*
		 * A turn after each transaction, or calls would stand still while one
		 * is always due.
		 */
		HOLD_INTERRUPTS();
		flow_calls_turn(work_next(), wait_event);
		RESUME_INTERRUPTS();
		lane_ask_again_all();
		MemoryContextReset(transaction_scratch);
	}
}
