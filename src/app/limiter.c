/*-------------------------------------------------------------------------
 *
 * src/app/limiter.c
 *	  What an app may do now: rate, concurrency, pauses, breaker.
 *
 * Each app in use has a gate in the table of apps (apps.c).  What its state is, and
 * what follows from it, is in gate.c.  What of it outlives shared memory, and how, is in
 * limiter_keep.c.  The app of a place that is taken or has a turn stays in its slot, and
 * is found without the table's lock.  A gate's spinlock is held for a few comparisons.
 *
 * Where there is no room for an app, its calls wait if its server has limits, and go
 * without a gate if it has not.
 *
 * What a process holds is given back when its memory goes (call.c), and at the
 * latest by its exit.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"
#include "base/nls.h"
#include "base/wakeup.h"

/*
 * A dispatcher writes what is kept no more often: what its lanes ask for
 * meanwhile is written at once, and answers are read in between.
 */
#define LIMITER_KEEP_MS			50

/*
 * Who finds no slot asks again so often: a dispatcher for each lane, and a
 * synchronous call.
 */
#define LIMITER_ROOM_MS			1000
#define LIMITER_ROOM_NOW_MS		100

/* What this process holds of an app. */
typedef struct LimiterHeld
{
	int			places;
	int			turns;
} LimiterHeld;

static LimiterHeld *held = NULL;	/* by slot */
static int	num_waiting = 0;	/* places of this process that wait */
static uint32 ends_seen = 0;	/* by limiter_pause_ended */
static uint32 frees_seen = 0;	/* by limiter_place_freed */


/* ---------- What a process holds ---------- */

/* Tell those who wait that a place was given back. */
static void
notify_free(void)
{
	pg_atomic_fetch_add_u32(&app_table->frees, 1);
	wakeup_broadcast();
}

/* At the exit of a process: give back what it still holds. */
static void
limiter_on_exit(int code, Datum arg)
{
	for (int i = 0; i < app_table->num_slots; i++)
	{
		if (held[i].places == 0 && held[i].turns == 0)
			continue;
		SpinLockAcquire(&apps[i].mutex);
		gate_forget_process(&apps[i].gate, MyProcPid, held[i].places, held[i].turns);
		SpinLockRelease(&apps[i].mutex);
		held[i].places = held[i].turns = 0;
		notify_free();
	}
}

/* At the first use in a process. */
static void
limiter_ensure(void)
{
	if (held != NULL)
		return;
	app_table_ensure();
	held = MemoryContextAllocZero(TopMemoryContext,
								  app_table->num_slots * sizeof(LimiterHeld));
	on_shmem_exit(limiter_on_exit, (Datum) 0);
}

/* Remember what this process holds, after a change of one of its places. */
static void
place_note(const LimiterPlace *before, const LimiterPlace *place)
{
	held[place->slot].places += place->taken - before->taken;
	held[place->slot].turns += place->has_turn - before->has_turn;
}


/* ---------- Places ---------- */

/* One attempt of limiter_acquire; *unkept: see gate_admit. */
static LimiterVerdict
place_ask(const FlowServer *server, bool dispatching, LimiterPlace *place,
		  TimestampTz *retry_at, LimiterPause *why, bool *unkept)
{
	bool		has_limits = server->max_rate.requests > 0 || server->max_concurrency >= 0;
	LimiterVerdict verdict = LIMITER_GO;
	TimestampTz now = GetCurrentTimestamp();
	App		   *app;

	app = app_find_or_add(&server->app_key, server->payer, LW_SHARED);
	if (place->has_turn && (app == NULL || place->slot != app - apps))
	{
		/* the credentials have changed: that turn is one of another app */
		app_table_unlock();
		limiter_abandon(place);
		app = app_find_or_add(&server->app_key, server->payer, LW_SHARED);
	}
	place->roleid = server->userid;
	if (app != NULL)
	{
		LimiterPlace before = *place;

		app->last_used = now;
		SpinLockAcquire(&app->mutex);
		if (!has_limits && !place->has_turn && gate_is_open(&app->gate))
		{
			/* nearly always */
			gate_take(&app->gate, place);
			SpinLockRelease(&app->mutex);
		}
		else
		{
			SpinLockRelease(&app->mutex);
			wakeup_look();
			now = GetCurrentTimestamp();
			SpinLockAcquire(&app->mutex);
			verdict = gate_admit(&app->gate, server, dispatching, app_table->lock != NULL,
								 place, now, retry_at, why, unkept);
			SpinLockRelease(&app->mutex);
		}
		place->slot = app - apps;
		place_note(&before, place);
	}
	else if (has_limits)
	{
		/* it cannot be known what its limits allow */
		*why = LIMITER_NO_ROOM;
		*retry_at = TimestampTzPlusMilliseconds(now, dispatching ? LIMITER_ROOM_MS : LIMITER_ROOM_NOW_MS);
		verdict = LIMITER_WAIT;
	}
	else
	{
		place->taken = true;
		place->slot = -1;
	}
	app_table_unlock();
	return verdict;
}

/* Have what stands in the way of a place written; is it worth asking again? */
static bool
place_keep(bool dispatching)
{
	static TimestampTz kept_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	bool		done;

	/* the clock may have been set back */
	if (dispatching && kept_at <= now &&
		!TimestampDifferenceExceeds(kept_at, now, LIMITER_KEEP_MS))
		return false;
	done = limiter_keep(false);
	kept_at = GetCurrentTimestamp();
	return done;
}

/*
 * Ask to make one call of the app now, within server's max_rate and
 * max_concurrency and the app's pauses.  Does not wait.
 *
 * With WAIT, *why tells why and *retry_at when to ask again; DT_NOEND: when the
 * latch was set, as another call has ended.  It is set as well when a pause ends
 * early, see limiter_pause_ended; both if the process waits by
 * flow_calls_turn.
 *
 * A dispatching caller is held back by everything.  A synchronous one is
 * not by a breaker nor by refused credentials, and by a used-up quota for a
 * second only: a person may try a repair.
 */
LimiterVerdict
limiter_acquire(const FlowServer *server, bool dispatching, LimiterPlace *place,
				TimestampTz *retry_at, LimiterPause *why)
{
	LimiterVerdict verdict;
	bool		unkept = false;

	Assert(!place->taken);
	limiter_ensure();
	verdict = place_ask(server, dispatching, place, retry_at, why, &unkept);
	if (unkept && place_keep(dispatching))
	{
		unkept = false;
		verdict = place_ask(server, dispatching, place, retry_at, why, &unkept);
	}

	if ((verdict == LIMITER_WAIT) != place->waiting)
	{
		place->waiting = !place->waiting;
		num_waiting += place->waiting ? 1 : -1;
	}
	return verdict;
}

/* Do both wait for a turn of one app, and does the first go before the other? */
bool
limiter_is_before(const LimiterPlace *place, const LimiterPlace *other)
{
	return place->has_turn && other->has_turn && place->slot == other->slot &&
		(int32) (place->turn - other->turn) < 0;
}

/*
 * The place was given for a request that was to go out at once, and has not:
 * for max_rate, another one must be had.
 */
bool
limiter_is_stale(const LimiterPlace *place)
{
	return place->taken && !place->used && place->counted_at != 0 &&
		place->probe == LIMITER_NO_PROBE && !place->is_trial &&
		rate_is_stale(place->counted_at, GetCurrentTimestamp());
}

/* Is any place of this process waiting? */
bool
limiter_is_waiting(void)
{
	return num_waiting > 0;
}

/* Has a counter changed since it was seen last?  A change that comes after this
 * look sets the latch. */
static bool
has_changed(pg_atomic_uint32 *counter, uint32 *seen)
{
	uint32		now;
	bool		changed;

	wakeup_look();
	now = pg_atomic_read_u32(counter);
	changed = now != *seen;
	*seen = now;
	return changed;
}

/*
 * Has a pause of any app ended early since the process asked last?  Then all
 * places that wait should ask again, whatever their retry_at.
 */
bool
limiter_pause_ended(void)
{
	limiter_ensure();
	return has_changed(&app_table->ends, &ends_seen);
}

/*
 * Has a place of any app been given back since, for which somebody waits?  Then
 * those who were told to wait for that should ask again.
 */
bool
limiter_place_freed(void)
{
	limiter_ensure();
	return has_changed(&app_table->frees, &frees_seen);
}

/* Tell those who wait that a pause has ended early. */
static void
notify_pause_ended(void)
{
	pg_atomic_fetch_add_u32(&app_table->ends, 1);
	wakeup_broadcast();
}


/* ---------- Reports ---------- */

/* One line of the log for each change. */
static void
log_changes(const FlowServer *server, int changes, LimiterPause stop,
			const char *reason, double wait_s)
{
	const char *server_name = server->name;

#define LOG_LINE(...) \
	ereport(LOG, (errmsg(__VA_ARGS__), errhidestmt(true), errhidecontext(true)))

	if (changes & BREAKER_OPENED)
		LOG_LINE("feishu_flow server \"%s\" does not answer, queued flows wait except for single probes: %s",
				 server_name, reason ? _(reason) : _("no reason given"));
	if (changes & BREAKER_ROLE_OPENED)
		LOG_LINE("feishu_flow server \"%s\" does not answer, queued flows of the role with OID %u wait except for single probes: %s",
				 server_name, server->userid, reason ? _(reason) : _("no reason given"));
	if (changes & BREAKER_CLOSED)
		LOG_LINE("feishu_flow server \"%s\" answers again", server_name);
	else if (changes & BREAKER_ROLE_CLOSED)
		LOG_LINE("feishu_flow server \"%s\" answers again, queued flows of the role with OID %u are sent",
				 server_name, server->userid);
	if (changes & GATE_PAUSED)
		LOG_LINE("feishu_flow server \"%s\": app is paused, %s: %s",
				 server_name, _(limiter_pause_text(stop)),
				 reason ? _(reason) : _("no reason given"));
	if (changes & GATE_RESUMED)
		LOG_LINE("feishu_flow server \"%s\": app is no longer paused", server_name);
	if (changes & GATE_RATE)
		LOG_LINE("feishu_flow server \"%s\" limits the rate of the app, calls wait for %g s",
				 server_name, wait_s);
}

/* The place is no more. */
static void
place_forget(LimiterPlace *place)
{
	if (place->waiting)
		num_waiting--;
	memset(place, 0, sizeof(LimiterPlace));
}

/*
 * The call has ended: give the place back, if there is one, and report.
 * reset_seconds: of LIMITER_REPORT_RATE, or -1.  Writes a line to the server
 * log when that changes the state of the app; reason (untranslated, or NULL)
 * goes into it.
 */
void
limiter_release(const FlowServer *server, LimiterPlace *place, LimiterReport report,
				double reset_seconds, const char *reason)
{
	bool		is_pinned = place->has_turn || (place->taken && place->slot >= 0);
	bool		wake = false;
	bool		unkept = false;
	int			changes = 0;
	LimiterPause stop = LIMITER_RUNNING;
	double		wait_s = 0;
	App		   *app;

	if (report == LIMITER_REPORT_NOTHING)
	{
		limiter_abandon(place);
		return;
	}

	limiter_ensure();
	if (is_pinned)
		app = &apps[place->slot];
	else if (report > LIMITER_REPORT_REACHED)
		app = app_find_or_add(&server->app_key, server->payer, LW_SHARED);
	else
	{
		app_table_lock(LW_SHARED);
		app = app_find(&server->app_key);
	}
	if (app != NULL)
	{
		TimestampTz now = 0;
		LimiterPlace before = *place;

		/* that it works changes nothing, and needs no time */
		if (report != LIMITER_REPORT_ANSWERED)
			now = GetCurrentTimestamp();
		SpinLockAcquire(&app->mutex);
		changes = gate_report(&app->gate, server->userid, place, report, reset_seconds, now,
							  app_table->lock != NULL);
		stop = app->gate.stop;
		wait_s = (app->gate.rate_until - now) / 1e6;
		if (report == LIMITER_REPORT_RATE)
			unkept = gate_pause_is_unkept(&app->gate, now);
		if (is_pinned)
			wake = gate_give_back(&app->gate, place);
		SpinLockRelease(&app->mutex);
		if (is_pinned)
			place_note(&before, place);
	}
	if (!is_pinned)
		app_table_unlock();
	place_forget(place);

	if (unkept)
		(void) limiter_keep(true);

	if (changes & (BREAKER_CLOSED | BREAKER_ROLE_CLOSED | BREAKER_PROBE_DUE | GATE_RESUMED))
		notify_pause_ended();
	else if (wake)
		notify_free();
	if (changes != 0)
		log_changes(server, changes, stop, reason, wait_s);
}

/* Give the place or the turn back, if there is one.  Does not throw. */
void
limiter_abandon(LimiterPlace *place)
{
	bool		wake = false;

	if (place->has_turn || (place->taken && place->slot >= 0))
	{
		App		   *app = &apps[place->slot];
		LimiterPlace before = *place;

		SpinLockAcquire(&app->mutex);
		(void) gate_report(&app->gate, place->roleid, place, LIMITER_REPORT_NOTHING, -1, 0, false);
		wake = gate_give_back(&app->gate, place);
		SpinLockRelease(&app->mutex);
		place_note(&before, place);
	}
	place_forget(place);
	if (wake)
		notify_free();
}


/* ---------- To look at, and to act on ---------- */

/* An app with its gate, locked until app_unlock; NULL when nothing is known of it. */
static App *
app_lock(const AppKey *key)
{
	App		   *app;

	limiter_ensure();
	app_table_lock(LW_SHARED);
	app = app_find(key);
	if (app != NULL)
		SpinLockAcquire(&app->mutex);
	else
		app_table_unlock();
	return app;
}

static void
app_unlock(App *app)
{
	SpinLockRelease(&app->mutex);
	app_table_unlock();
}

/* Copy the state of an app, for a role; false when nothing is known of it. */
bool
limiter_status(const AppKey *key, Oid roleid, LimiterStatus *status)
{
	TimestampTz now = GetCurrentTimestamp();
	App		   *app = app_lock(key);

	memset(status, 0, sizeof(LimiterStatus));
	if (app == NULL)
		return false;
	gate_status(&app->gate, roleid, now, status);
	app_unlock(app);
	return true;
}

/* A few words on a pause, for views; untranslated.  NULL when running. */
const char *
limiter_pause_text(LimiterPause pause)
{
	switch (pause)
	{
		case LIMITER_RUNNING:
			break;
		case LIMITER_MAX_RATE:
			return gettext_noop("max_rate");
		case LIMITER_MAX_CONCURRENCY:
			return gettext_noop("max_concurrency");
		case LIMITER_RATE:
			return gettext_noop("the platform limits the rate");
		case LIMITER_BREAKER:
		case LIMITER_ROLE_BREAKER:
			return gettext_noop("the platform does not answer");
		case LIMITER_CREDENTIALS:
			return gettext_noop("the credentials were refused");
		case LIMITER_QUOTA:
			return gettext_noop("the quota is used up");
		case LIMITER_NO_ROOM:
			return gettext_noop("more apps are busy than feishu_flow.max_apps has room for");
	}
	return NULL;
}

/* Forget all pauses of an app (resume_server), with a line in the log. */
void
limiter_resume(const char *server_name, const AppKey *key)
{
	TimestampTz now = GetCurrentTimestamp();
	App		   *app = app_lock(key);
	bool		was_paused = false;
	bool		unkept = false;

	if (app != NULL)
	{
		was_paused = gate_resume(&app->gate);
		unkept = gate_pause_is_unkept(&app->gate, now);
		app_unlock(app);
	}
	notify_pause_ended();
	if (unkept)
		(void) limiter_keep(true);
	if (was_paused)
		ereport(LOG,
				(errmsg("feishu_flow server \"%s\": queued flows are sent again, somebody resumed it",
						server_name),
				 errhidestmt(true), errhidecontext(true)));
}
