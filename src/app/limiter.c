/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  What an app may do now: rate, concurrency, pauses, breaker.
 *
 * With shared_preload_libraries the limiter is in shared memory, so that all
 * backends and dispatchers of the cluster keep an app's limits together; else
 * each process has one of its own.  There is a slot for each app (AppKey) in
 * use (limiter_slots.c).
 *
 * What an app's state is, and what follows from it, is in gate.c.  What of it
 * outlives shared memory, and how, is in limiter_keep.c.
 *
 * The lock protects which app has which slot; it is held shared to find one,
 * and exclusively to give one to another app, which only happens to a slot
 * without calls and turns.  So the slot of a place that is taken or has a
 * turn stays, and is found without the lock.  A slot's spinlock protects the
 * rest of it and is held for a few comparisons.  All of it is plain data.
 *
 * What a process holds is given back when its memory goes (call.c), and at the
 * latest by its exit.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/limiter.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "app/limiter_internal.h"
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

static int	num_waiting = 0;	/* places of this process that wait */
static uint32 ends_seen = 0;	/* by limiter_pause_ended */
static uint32 frees_seen = 0;	/* by limiter_place_freed */


/* ---------- Places ---------- */

/* Remember what this process holds, after a change of one of its places. */
static void
place_note(const LimiterPlace *before, const LimiterPlace *place)
{
	limiter_slot_hold(place->slot, place->taken - before->taken,
					  place->has_turn - before->has_turn);
}

/* One attempt of limiter_acquire; *unkept: see gate_admit. */
static LimiterVerdict
place_ask(const FlowServer *server, bool dispatching, LimiterPlace *place,
		  TimestampTz *retry_at, LimiterPause *why, bool *unkept)
{
	bool		has_limits = server->max_rate.requests > 0 || server->max_concurrency >= 0;
	LimiterVerdict verdict = LIMITER_GO;
	int			n;

	n = limiter_slot_find_or_add(server);
	if (place->has_turn && place->slot != n)
	{
		/* the credentials have changed: that turn is one of another app */
		limiter_unlock();
		limiter_abandon(place);
		n = limiter_slot_find_or_add(server);
	}
	place->roleid = server->userid;
	if (n < 0 && has_limits)
	{
		/* it cannot be known what its limits allow */
		*why = LIMITER_NO_ROOM;
		*retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												dispatching ? LIMITER_ROOM_MS : LIMITER_ROOM_NOW_MS);
		verdict = LIMITER_WAIT;
	}
	else if (n < 0)
	{
		place->taken = true;
		place->slot = -1;
	}
	else
	{
		LimiterSlot *slot = &limiter_slots[n];
		LimiterPlace before = *place;

		SpinLockAcquire(&slot->mutex);
		slot->recently_used = true;
		if (slot->payer != server->payer)
			slot->payer = InvalidOid;
		if (!has_limits && !place->has_turn && gate_is_open(&slot->gate))
		{
			/* nearly always */
			gate_take(&slot->gate, place);
			SpinLockRelease(&slot->mutex);
		}
		else
		{
			TimestampTz now;

			SpinLockRelease(&slot->mutex);
			wakeup_look();
			now = GetCurrentTimestamp();
			SpinLockAcquire(&slot->mutex);
			verdict = gate_admit(&slot->gate, server, dispatching, limiter->lock != NULL,
								 place, now, retry_at, why, unkept);
			SpinLockRelease(&slot->mutex);
		}
		place->slot = n;
		place_note(&before, place);
	}
	limiter_unlock();
	limiter_log_losses();
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

bool
limiter_is_before(const LimiterPlace *place, const LimiterPlace *other)
{
	return place->has_turn && other->has_turn && place->slot == other->slot &&
		(int32) (place->turn - other->turn) < 0;
}

bool
limiter_is_stale(const LimiterPlace *place)
{
	return place->taken && !place->used && place->counted_at != 0 &&
		place->probe == LIMITER_NO_PROBE && !place->is_trial &&
		rate_is_stale(place->counted_at, GetCurrentTimestamp());
}

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

bool
limiter_pause_ended(void)
{
	limiter_ensure();
	return has_changed(&limiter->ends, &ends_seen);
}

bool
limiter_place_freed(void)
{
	limiter_ensure();
	return has_changed(&limiter->frees, &frees_seen);
}

/* Tell those who wait that a pause has ended early. */
static void
tell_pause_ended(void)
{
	pg_atomic_fetch_add_u32(&limiter->ends, 1);
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
		LOG_LINE("feishu_flow server \"%s\" does not answer, queued flows wait but for single probes: %s",
				 server_name, reason ? _(reason) : _("no reason given"));
	if (changes & BREAKER_ROLE_OPENED)
		LOG_LINE("feishu_flow server \"%s\" does not answer, queued flows of the role with OID %u wait but for single probes: %s",
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
	int			n;

	if (report == LIMITER_REPORT_NOTHING)
	{
		limiter_abandon(place);
		return;
	}

	limiter_ensure();
	if (is_pinned)
		n = place->slot;
	else if (report > LIMITER_REPORT_REACHED)
		n = limiter_slot_find_or_add(server);
	else
	{
		limiter_lock(LW_SHARED);
		n = limiter_slot_find(&server->app_key);
	}
	if (n >= 0)
	{
		LimiterSlot *slot = &limiter_slots[n];
		TimestampTz now = 0;
		LimiterPlace before = *place;

		/* that it works is no news, and needs no time */
		if (report != LIMITER_REPORT_ANSWERED)
			now = GetCurrentTimestamp();
		SpinLockAcquire(&slot->mutex);
		changes = gate_report(&slot->gate, server->userid, place, report, reset_seconds, now,
							  limiter->lock != NULL);
		stop = slot->gate.stop;
		wait_s = (slot->gate.rate_until - now) / 1e6;
		if (report == LIMITER_REPORT_RATE)
			unkept = gate_pause_is_unkept(&slot->gate, now);
		if (is_pinned)
			wake = gate_give_back(&slot->gate, place);
		SpinLockRelease(&slot->mutex);
		if (is_pinned)
			place_note(&before, place);
	}
	if (!is_pinned)
	{
		limiter_unlock();
		limiter_log_losses();
	}
	place_forget(place);

	if (unkept)
		(void) limiter_keep(true);

	if (changes & (BREAKER_CLOSED | BREAKER_ROLE_CLOSED | BREAKER_PROBE_DUE | GATE_RESUMED))
		tell_pause_ended();
	else if (wake)
		limiter_tell_free();
	if (changes != 0)
		log_changes(server, changes, stop, reason, wait_s);
}

void
limiter_abandon(LimiterPlace *place)
{
	bool		wake = false;

	if (place->has_turn || (place->taken && place->slot >= 0))
	{
		LimiterSlot *slot = &limiter_slots[place->slot];
		LimiterPlace before = *place;

		SpinLockAcquire(&slot->mutex);
		(void) gate_report(&slot->gate, place->roleid, place, LIMITER_REPORT_NOTHING, -1, 0, false);
		wake = gate_give_back(&slot->gate, place);
		SpinLockRelease(&slot->mutex);
		place_note(&before, place);
	}
	place_forget(place);
	if (wake)
		limiter_tell_free();
}


/* ---------- To look at, and to act on ---------- */

/* An app's slot, locked until slot_unlock; NULL when nothing is known of it. */
static LimiterSlot *
slot_lock(const AppKey *key)
{
	int			n;

	limiter_ensure();
	limiter_lock(LW_SHARED);
	n = limiter_slot_find(key);
	if (n < 0)
	{
		limiter_unlock();
		return NULL;
	}
	SpinLockAcquire(&limiter_slots[n].mutex);
	return &limiter_slots[n];
}

static void
slot_unlock(LimiterSlot *slot)
{
	SpinLockRelease(&slot->mutex);
	limiter_unlock();
}

bool
limiter_status(const AppKey *key, Oid roleid, LimiterStatus *status)
{
	TimestampTz now = GetCurrentTimestamp();
	LimiterSlot *slot = slot_lock(key);

	memset(status, 0, sizeof(LimiterStatus));
	if (slot == NULL)
		return false;
	gate_status(&slot->gate, roleid, now, status);
	slot_unlock(slot);
	return true;
}

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

void
limiter_resume(const char *server_name, const AppKey *key)
{
	TimestampTz now = GetCurrentTimestamp();
	LimiterSlot *slot = slot_lock(key);
	bool		was_paused = false;
	bool		unkept = false;

	if (slot != NULL)
	{
		was_paused = gate_resume(&slot->gate);
		unkept = gate_pause_is_unkept(&slot->gate, now);
		slot_unlock(slot);
	}
	tell_pause_ended();
	if (unkept)
		(void) limiter_keep(true);
	if (was_paused)
		ereport(LOG,
				(errmsg("feishu_flow server \"%s\": queued flows are sent again, somebody resumed it",
						server_name),
				 errhidestmt(true), errhidecontext(true)));
}
