/*-------------------------------------------------------------------------
 *
 * src/handler/handler_supply.c
 *	  The dispatcher's part in handlers: which roles have a session.
 *
 * A session is notified by whoever ends a flow (launcher_sessions.c).  The dispatcher
 * only looks when a role that has none has handlers that wait, when a session ends, and
 * at each slow poll.  It starts sessions for roles in turn; where all that there may be
 * are taken, it asks some to leave: those without work, then those that are there for
 * longest.
 *
 * A role that can have no session has an attempt of its first handler counted, so that
 * this is seen, and ends.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "handler/handler_internal.h"
#include "launcher/launcher.h"
#include "launcher/launcher_sessions.h"
#include "queue/origin.h"

/* A session that works is not asked to leave before that. */
#define TENURE_MS			250

/* After PostgreSQL had no room for a session, try again. */
#define NO_ROOM_MS			5000

/* A session of an earlier dispatcher that has not attached by then never will. */
#define ATTACH_MS			10000

/*
 * A handler that runs has a lock on the tables.  When somebody waits for them (DROP
 * EXTENSION, say), sessions are asked to end, and told to.  That somebody does is seen
 * by looking so often while handlers run.
 */
#define LOOK_MS				300
#define LOCKED_ASK_MS		100
#define LOCKED_END_MS		400

/* A role with handlers that wait. */
typedef struct WaitingRole
{
	Oid			roleid;
	TimestampTz next_at;		/* of its first handler; 0: at once */
} WaitingRole;

/* Of the places' workers, if we have started them. */
static BackgroundWorkerHandle **handles = NULL;

/* The role whose session was started last. */
static Oid	last_role = InvalidOid;

static bool no_room = false;

/* Roles are looked at again then, if nobody tells before. */
static TimestampTz roles_at = DT_NOBEGIN;


/* ---------- Sessions that are over ---------- */

/* Was a worker started, and is it over, or never came to attach? */
static bool
place_is_over(int place, const SessionView *view)
{
	pid_t		pid;

	if (view->pid != 0)
		return false;
	if (view->failed)
		return true;
	if (handles[place] != NULL)
		return GetBackgroundWorkerPid(handles[place], &pid) == BGWH_STOPPED;
	return steady_left_ms(steady_after_ms(view->began_at, ATTACH_MS)) == 0;
}

/* An attempt to call a role's first handler has failed. */
static void
count_attempt(Oid roleid, const char *error)
{
	Handler		first;

	if (mark_read(roleid, PG_INT64_MIN, &first, 1) > 0 && mark_lock(&first))
		mark_failed(&first, error, false);
}

/* Free what is over; returns how many places of this database are taken. */
static int
places_review(void)
{
	int			num = 0;

	for (int i = 0; i < sessions_count(); i++)
	{
		SessionView view;

		if (!sessions_view(i, &view))
			continue;
		if (!place_is_over(i, &view))
		{
			num++;
			continue;
		}
		sessions_free(i, view.generation);
		if (view.failed)
			count_attempt(view.roleid, _("could not start a session for the role; the server log says why"));
	}
	return num;
}

static bool
has_session(Oid roleid)
{
	for (int i = 0; i < sessions_count(); i++)
	{
		SessionView view;

		if (sessions_view(i, &view) && view.roleid == roleid)
			return true;
	}
	return false;
}


/* ---------- Roles ---------- */

/* The roles with handlers that wait, those after the last one first. */
static int
roles_read(WaitingRole **roles)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH RECURSIVE waiting AS ("
		" (SELECT roleid FROM feishu_internal.outbox WHERE " HANDLER_WAITS
		"  ORDER BY roleid LIMIT 1)"
		" UNION ALL"
		" SELECT n.roleid FROM waiting w, LATERAL"
		" (SELECT o.roleid FROM feishu_internal.outbox o WHERE " HANDLER_WAITS
		"  AND o.roleid > w.roleid ORDER BY o.roleid LIMIT 1) n)"
		" SELECT w.roleid, f.handler_next_at FROM waiting w, LATERAL"
		" (SELECT o.handler_next_at FROM feishu_internal.outbox o WHERE o.roleid = w.roleid AND " HANDLER_WAITS
		"  AND o.database = $2 AND o.system_identifier = $3 ORDER BY o.end_number LIMIT 1) f"
		" ORDER BY w.roleid <= $1, w.roleid",
		3, OIDOID, OIDOID, INT8OID);
	Datum		values[3] = {ObjectIdGetDatum(last_role), origin_database(), origin_system()};
	MemoryContext context = CurrentMemoryContext;
	int			level = mark_plan_begin();
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);

	mark_plan_end(level);
	*roles = MemoryContextAlloc(context, Max(num, 1) * sizeof(WaitingRole));
	for (uint64 i = 0; i < num; i++)
	{
		bool		is_null;
		Datum		next_at = sql_value(i, 2, &is_null);

		(*roles)[i].roleid = DatumGetObjectId(sql_value(i, 1, NULL));
		(*roles)[i].next_at = is_null ? 0 : DatumGetTimestampTz(next_at);
	}
	return (int) num;
}

/* May a role have a session?  If not, its handlers are given up, or this is an attempt. */
static bool
role_may_connect(Oid roleid)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(roleid));
	bool		may_login;

	if (!HeapTupleIsValid(tuple))
	{
		mark_given_up(roleid, _("the role that queued the flow no longer exists"));
		return false;
	}
	may_login = !FEISHU_WORKERS_NEED_LOGIN || ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!may_login)
		count_attempt(roleid, _("the role is not permitted to log in"));
	else if (!feishu_may_connect(roleid))
		count_attempt(roleid, _("the role may not connect to the database"));
	else
		return true;
	return false;
}


/* ---------- Starting and leaving ---------- */

/* Start a session of a role; false: there is no room. */
static bool
session_start(Oid roleid)
{
	BackgroundWorker worker = {0};
	uint32		generation;
	int			place = sessions_reserve(roleid, &generation);
	MemoryContext context;
	bool		registered;

	if (place < 0)
		return false;
	snprintf(worker.bgw_type, BGW_MAXLEN, "feishu_flow handler");
	snprintf(worker.bgw_name, BGW_MAXLEN, "feishu_flow handler %s", get_database_name(MyDatabaseId));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION |
		BGWORKER_INTERRUPTIBLE;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "feishu_flow", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "feishu_handler_main", sizeof(worker.bgw_function_name));
	worker.bgw_main_arg = Int32GetDatum(place);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	if (handles[place] != NULL)
		pfree(handles[place]);
	handles[place] = NULL;
	context = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &handles[place]);
	MemoryContextSwitchTo(context);
	if (registered)
	{
		last_role = roleid;
		return true;
	}
	handles[place] = NULL;
	sessions_free(place, generation);
	return false;
}

/* Which of two sessions is to leave? */
static bool
leaves_rather(const SessionView *a, const SessionView *b)
{
	if (a->idle != b->idle)
		return a->idle;
	return a->began_at < b->began_at;
}

/* Have so many sessions leave, those that were asked before included. */
static void
ask_to_leave(int num)
{
	for (int i = 0; i < sessions_count(); i++)
	{
		SessionView view;

		if (sessions_view(i, &view) && view.leaving)
			num--;
	}
	for (; num > 0; num--)
	{
		SessionView best = {0};
		int			best_place = -1;

		for (int i = 0; i < sessions_count(); i++)
		{
			SessionView view;

			if (!sessions_view(i, &view) || view.leaving || view.pid == 0 ||
				(!view.idle && steady_left_ms(steady_after_ms(view.began_at, TENURE_MS)) > 0))
				continue;
			if (best_place >= 0 && !leaves_rather(&view, &best))
				continue;
			best = view;
			best_place = i;
		}
		if (best_place < 0)
			return;
		sessions_ask_to_leave(best_place);
	}
}

/* PostgreSQL has no room for a session, or has again. */
static void
set_no_room(bool now)
{
	if (now == no_room)
		return;
	no_room = now;
	launcher_set_no_handlers(now);
	if (now)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("feishu_flow has no background worker for handlers in database \"%s\"",
						get_database_name(MyDatabaseId)),
				 errdetail("Handlers wait there until one is free."),
				 errhint("Increase max_worker_processes, currently %d.", max_worker_processes)));
}

/* When to look, while handlers are called. */
TimestampTz
handler_look_again(TimestampTz now)
{
	return TimestampTzPlusMilliseconds(now, LOOK_MS);
}

/* Have a session for each role with handlers that are due; returns when to look again. */
static TimestampTz
roles_review(TimestampTz now, int num_taken)
{
	WaitingRole *roles;
	TimestampTz again = DT_NOEND;
	bool		full = false;
	int			num_roles = roles_read(&roles);
	int			num_unserved = 0;

	for (int i = 0; i < num_roles; i++)
	{
		Oid			roleid = roles[i].roleid;

		if (has_session(roleid))
			continue;
		if (roles[i].next_at > now)
			again = Min(again, roles[i].next_at);
		else if (!role_may_connect(roleid))
			/* the next attempt, or handler */
			again = Min(again, TimestampTzPlusMilliseconds(now, feishu_guc_retry_base_delay));
		else if (num_taken >= feishu_guc_max_handlers)
			num_unserved++;
		else if (!full && session_start(roleid))
			num_taken++;
		else
			full = true;
	}
	if (full)
		again = Min(again, TimestampTzPlusMilliseconds(now, NO_ROOM_MS));
	set_no_room(full);
	if (num_unserved > 0)
	{
		ask_to_leave(num_unserved);
		again = Min(again, TimestampTzPlusMilliseconds(now, TENURE_MS));
	}
	return again;
}

/*
 * See to it that each role with a handler that is due has a session; returns when to
 * look again.  By the dispatcher, in a transaction, as the tables' owner; with a notice if
 * handlers of a role without one may wait.
 *
 * Who waits is looked for if there is a notice, or it is time; an old snapshot may make that
 * slow.  Without, this is to look if the tables are wanted by somebody.
 */
TimestampTz
handler_supply(TimestampTz now, bool notice)
{
	TimestampTz again = DT_NOEND;

	if (handles == NULL)
		handles = MemoryContextAllocZero(TopMemoryContext,
										 sessions_count() * sizeof(BackgroundWorkerHandle *));
	if (notice || roles_at <= now)
		roles_at = roles_review(now, places_review());
	for (int i = 0; i < sessions_count(); i++)
	{
		SessionView view;

		if (!sessions_view(i, &view))
			continue;
		/* it may not come to attach */
		if (view.pid == 0)
			roles_at = Min(roles_at, TimestampTzPlusMilliseconds(now, NO_ROOM_MS));
		else if (!view.idle)
			again = Min(again, handler_look_again(now));
	}
	return Min(again, roles_at);
}

/* The tables have been locked since then, so sessions give way. */
void
handler_give_way(SteadyTime locked_since)
{
	if (steady_left_ms(steady_after_ms(locked_since, LOCKED_END_MS)) == 0)
		sessions_terminate(MyDatabaseId);
	else if (steady_left_ms(steady_after_ms(locked_since, LOCKED_ASK_MS)) == 0)
		sessions_stop(MyDatabaseId);
}
