/*-------------------------------------------------------------------------
 *
 * src/handler/handler_worker.c
 *	  A session of a role, in which its handlers are called.
 *
 * A background worker that connects as the role, so with its settings and with no right
 * beyond it.  It calls the handlers of flows of the role one after the other in the
 * order of the ends.  One that fails is called again with growing delays, and those
 * behind it wait, until it succeeds or is given up.
 *
 * Quick handlers share a transaction, each in a subtransaction of its own, for a commit
 * takes longer than they do.  Should that commit fail (a deferred constraint, a
 * serialization failure), nobody knows whose fault it is, and each is called again in a
 * transaction of its own.
 *
 * A handler may end the session, or the whole server.  The one that did is among the
 * first that the next session calls, as those before it in its transaction have been
 * rolled back: so for the first handlers of a session it is committed that they are
 * called before they are.
 *
 * Our own part of a transaction does not depend on the role's settings: it may write,
 * whatever default_transaction_read_only says.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "base/steady.h"
#include "handler/handler_internal.h"
#include "launcher/launcher_sessions.h"

PGDLLEXPORT void feishu_handler_main(Datum main_arg);

/* Without work the session ends after this. */
#define IDLE_MS			(60 * 1000)

/*
 * Handlers of one transaction: a process can have so many subtransactions without
 * others having to look them up on disk.
 */
#define BATCH_MOST		60

/* A transaction takes no more of them after this. */
#define BATCH_MS		5

/* A handler is quick if it takes no longer than that; after a slow one, so many that are
 * quick are called alone. */
#define QUICK_MS		2
#define QUICK_AGAIN		8

/* After an error that is not a handler's. */
#define FAILURE_MS		50
#define FAILURES_MOST	6

/* What a session knows. */
typedef struct Session
{
	Oid			roleid;
	Oid			outbox;			/* the table, for plans are of its extension */
	int64		above;			/* all with lower numbers were seen */
	int64		alone_until;	/* those up to this number are called alone */
	int			num_called;
	int			num_slow;		/* calls until they may share a transaction */
	int			num_in;			/* handlers in the transaction */
	int			failures;		/* in a row */
	TimestampTz next_at;		/* the first is not called before */
	MemoryContext context;		/* of a turn */
} Session;


/* ---------- Transactions ---------- */

/* Begin one, that may write; the memory context stays that of the turn. */
static void
begin(Session *session)
{
	Oid			table;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	handler_time_begin();
	XactReadOnly = false;
	/* the extension was dropped, and is perhaps another one, or the role */
	table = sql_find_table("outbox");
	if (!OidIsValid(session->outbox))
		session->outbox = table;
	if (!OidIsValid(table) || table != session->outbox ||
		!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(GetSessionUserId())))
		proc_exit(0);
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(session->context);
}

static void
commit(Session *session)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	handler_time_end();
	MemoryContextSwitchTo(session->context);
}

/* Throw away the transaction; the error that it ended with. */
static ErrorData *
give_up_transaction(Session *session)
{
	ErrorData  *error;

	MemoryContextSwitchTo(session->context);
	error = CopyErrorData();
	FlushErrorState();
	handler_time_end();
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(session->context);
	return error;
}

/* Is this trouble of several transactions with each other? */
static bool
is_conflict(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/* The handlers that were called last, in this order; if it is one alone, it has failed. */
static void
count_failure(Session *session, const Handler *handler, ErrorData *error)
{
	char	   *text = handler_error_text(error);

	begin(session);
	mark_failed(handler, text, is_conflict(error));
	commit(session);
}


/* ---------- Handlers ---------- */

/* May the next one be called in the same transaction? */
static bool
may_share(const Session *session, const Handler *next, SteadyTime began_at)
{
	return session->num_slow == 0 && next->number > session->alone_until &&
		!IsolationUsesXactSnapshot() && !handler_state_is_touched() && !ProcDiePending &&
		steady_left_ms(steady_after_ms(began_at, BATCH_MS)) > 0;
}

/* Commit that it is being called. */
static void
announce(Session *session, Handler *handler)
{
	mark_begun(handler);
	/* whatever commits of the role need not wait for */
	if (synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	commit(session);
	begin(session);
}

/* Call one, in the transaction; false: the transaction is to end with it. */
static bool
call_one(Session *session, const Handler *handler, bool is_first)
{
	SteadyTime	began_at = steady_now();
	ErrorData  *error = NULL;
	HandlerResult result = handler_call(handler, &error);

	session->num_called++;
	if (session->num_slow > 0)
		session->num_slow--;
	if (steady_left_ms(steady_after_ms(began_at, QUICK_MS)) == 0)
		session->num_slow = QUICK_AGAIN;
	if (result != HANDLER_FAILED)
		return true;
	/* who shares a transaction has its locks, too */
	if (!is_first && is_conflict(error))
		session->alone_until = handler->number;
	else
		mark_failed(handler, handler_error_text(error), is_conflict(error));
	return false;
}

/*
 * One transaction with handlers that are due; false if there are none.  It may throw;
 * handlers and num_in then tell which it was about.
 */
static bool
call_some(Session *session, Handler *handlers)
{
	SteadyTime	began_at = steady_now();
	int64		above = session->above;
	int			num;

	session->num_in = 0;
	session->next_at = DT_NOEND;
	begin(session);
	num = mark_read(session->roleid, session->above, handlers, BATCH_MOST);
	if (num == 0 || handlers[0].next_at > GetCurrentTimestamp())
	{
		if (num > 0)
			session->next_at = handlers[0].next_at;
		commit(session);
		return false;
	}
	sessions_set_idle(false);
	if (handlers[0].is_begun)
	{
		mark_failed(&handlers[0],
					_("the session ended while the handler was being called; a handler that goes on after feishu_flow.handler_timeout ends it"),
					false);
		commit(session);
		return true;
	}
	if (session->num_called < BATCH_MOST)
	{
		announce(session, &handlers[0]);
		num = 1;
	}
	for (int i = 0; i < num; i++)
	{
		if (i > 0 && (handlers[i].next_at > GetCurrentTimestamp() || handlers[i].is_begun ||
					  handlers[i - 1].number <= session->alone_until ||
					  !may_share(session, &handlers[i], began_at)))
			break;
		session->num_in = i + 1;
		if (!call_one(session, &handlers[i], i == 0))
			break;
		above = handlers[i].number;
	}
	handler_state_fire_deferred();
	commit(session);
	session->above = above;
	return true;
}

/* The same; errors of its commit are those of the handlers. */
static bool
work(Session *session)
{
	static Handler handlers[BATCH_MOST];
	volatile bool worked = true;

	PG_TRY();
	{
		worked = call_some(session, handlers);
		session->failures = 0;
	}
	PG_CATCH();
	{
		ErrorData  *error = give_up_transaction(session);

		if (session->num_in == 1)
			count_failure(session, &handlers[0], error);
		else if (session->num_in > 1)
			session->alone_until = handlers[session->num_in - 1].number;
		else
		{
			if (++session->failures >= FAILURES_MOST)
				ReThrowError(error);
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("feishu_flow could not look for handlers, and tries again: %s", error->message)));
			worked = false;
			session->next_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAILURE_MS << session->failures);
		}
	}
	PG_END_TRY();
	return worked;
}

/* Sleep until there is a notice, or the first handler is due, or to no purpose. */
static void
rest(Session *session, SteadyTime idle_until, uint32 wait_event)
{
	long		left = steady_left_ms(idle_until);

	sessions_set_idle(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	if (!TIMESTAMP_IS_NOEND(session->next_at))
		left = Min(left, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), session->next_at) + 1);
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left, wait_event);
}

/*
 * Settings that are not the role's to choose here: it is itself, whatever ALTER ROLE ...
 * SET role says, and any other client_encoding might not be convertible, which ends a
 * worker as it connects.
 */
static void
apply_settings(void)
{
	(void) set_config_option("exit_on_error", "off", PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET,
							 true, 0, false);
	(void) set_config_option("role", "none", PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET,
							 true, 0, false);
	(void) set_config_option("client_encoding", "SQL_ASCII", PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET,
							 true, 0, false);
}

void
feishu_handler_main(Datum main_arg)
{
	Session		session = {.alone_until = PG_INT64_MIN, .above = PG_INT64_MIN, .next_at = DT_NOEND};
	SteadyTime	idle_until;
	uint32		wait_event;
	Oid			database;

	database = sessions_attach(DatumGetInt32(main_arg), &session.roleid);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	apply_settings();
	BackgroundWorkerInitializeConnectionByOid(database, session.roleid, FEISHU_ROLE_WORKER);
	process_session_preload_libraries();
	sessions_set_ready();
	handler_state_watch();
	session.context = AllocSetContextCreate(TopMemoryContext, "feishu_flow handlers",
											ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(session.context);
	wait_event = feishu_wait_event_new("FeishuFlowHandler");
	idle_until = steady_after_ms(steady_now(), IDLE_MS);

	for (;;)
	{
		SessionNotice notice;

		ResetLatch(MyLatch);
		/* a shutdown is nothing to log as FATAL, and there is nothing to cancel */
		if (ProcDiePending)
			proc_exit(0);
		QueryCancelPending = false;
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		sessions_take_notice(&notice);
		if (notice.leave)
			proc_exit(0);
		if (notice.min_number != PG_INT64_MAX)
			session.above = Min(session.above, notice.min_number > PG_INT64_MIN ? notice.min_number - 1 : PG_INT64_MIN);
		if (work(&session))
		{
			idle_until = steady_after_ms(steady_now(), IDLE_MS);
			pgstat_report_stat(false);
		}
		else if (steady_left_ms(idle_until) == 0)
			proc_exit(0);
		else
		{
			pgstat_report_stat(true);
			rest(&session, idle_until, wait_event);
		}
		handler_state_clean();
		MemoryContextSwitchTo(session.context);
		MemoryContextReset(session.context);
	}
}
