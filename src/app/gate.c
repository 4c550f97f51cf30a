/*-------------------------------------------------------------------------
 *
 * src/app/gate.c
 *	  The state of one app that its calls have to pass.
 *
 * Turns.  Who has to wait for max_rate or max_concurrency draws a number.  A
 * newcomer goes only if there is room for all who hold one and for itself;
 * who holds one goes as soon as there is any room when it asks.  So nobody is
 * overtaken for long, the dispatcher's thousand flows cannot starve a call
 * that waits, and it can be foretold when a newcomer's turn will come: a
 * synchronous call learns at once that its time does not suffice.  A turn is
 * no reservation: one that is given up or not used delays nobody for good.
 *
 * Pauses.  A 429 of the platform holds everybody back for as long as it says.
 * Refused credentials hold back dispatch; every ten minutes one flow is tried.
 * (Other credentials are another app, so a corrected user mapping works at
 * once.)  A quota that is used up holds back everybody; one flow is tried
 * every hour, and one synchronous call a second.  A platform that does not answer
 * gets single probes (breaker.c).
 * Answers to what was sent before a change of state come in for a while after
 * it, and say nothing about the new state: each change begins an epoch, and
 * most reports count only in the epoch in which their call went out.
 *
 * Shares.  Where several PostgreSQL servers send for one app, each keeps to its
 * share of the limits (feishu_flow.rate_share), for they do not know of each
 * other.  gate_admit alone reads the limits.
 *
 * A restart forgets what one trial finds out again: refused credentials, a used-up
 * quota, the breakers.  What was sent, and a pause that the platform asked for,
 * are kept (limiter_keep.c).
 *
 * Functions of the state and the time, and of the delays of guc.c: limiter.c
 * has the shared memory and the locks.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>


#include "app/gate.h"
#include "base/guc.h"

/* A 429 that does not say for how long, and the most that it can say. */
#define GATE_RATE_DEFAULT_MS	1000
#define GATE_RATE_LEAST_MS		50
#define GATE_RATE_MOST_MS		(5 * 60 * 1000)

/* 429s that follow each other so closely make one line of the log. */
#define GATE_RATE_QUIET_MS		(60 * 1000)

/*
 * Time between two trials of an app that is paused: by dispatch, and by a
 * synchronous call, whose caller may have repaired it.
 */
#define GATE_TRY_CREDENTIALS_MS	(10 * 60 * 1000)
#define GATE_TRY_QUOTA_MS		(60 * 60 * 1000)
#define GATE_TRY_QUOTA_NOW_MS	1000

/*
 * There is a free place, but others have a turn: they were woken when it
 * became free.  After so long, one who was not stuck would have taken it.
 */
#define GATE_COURTESY_MS		10


/* A pause is worth keeping, and a change of it, from here on. */
#define GATE_KEEP_MS			1000

/* A share that is so close to a whole number is one, but for its binary form. */
#define GATE_SHARE_EPSILON		1e-6


/* ---------- Places ---------- */

static inline TimestampTz
ms_after(TimestampTz time, int64 ms)
{
	return time + ms * 1000;
}

/* When the next trial of a paused app is due. */
static TimestampTz
gate_try_at(const AppGate *gate, bool dispatching)
{
	if (gate->stop == LIMITER_CREDENTIALS)
		return ms_after(gate->tried_at, GATE_TRY_CREDENTIALS_MS);
	return ms_after(gate->tried_at,
					dispatching ? GATE_TRY_QUOTA_MS : GATE_TRY_QUOTA_NOW_MS);
}

/* Times that lie too far ahead: the clock was set back. */
static void
gate_check_clock(AppGate *gate, TimestampTz now)
{
	if (gate->rate_until > ms_after(now, GATE_RATE_MOST_MS))
		gate->rate_until = 0;
	if (gate->tried_at > now)
		gate->tried_at = now;
	if (gate->history.last > now)
		gate->history.last = now;
	breakers_check_clock(&gate->breakers, now);
}

/* Is there something that must outlive shared memory? */
bool
gate_must_keep(const AppGate *gate, TimestampTz now)
{
	return gate->rate_until > now ||
		(gate->history.last != 0 && gate->history.last + gate->span > now);
}

/*
 * Would something of now be lost with this state?  What matters no more is due
 * for another trial anyway.
 */
bool
gate_is_live(AppGate *gate, TimestampTz now)
{
	gate_check_clock(gate, now);
	return gate_must_keep(gate, now) ||
		(gate->stop != LIMITER_RUNNING && gate_try_at(gate, true) > now) ||
		breakers_are_live(&gate->breakers, now);
}

/* Take a place without asking. */
void
gate_take(AppGate *gate, LimiterPlace *place)
{
	if (place->has_turn)
	{
		gate->turns_over++;
		place->has_turn = false;
	}
	gate->in_flight++;
	place->taken = true;
	place->stop_epoch = gate->stop_epoch;
	place->open_epoch = gate->breakers.epoch;
}

/* Give back what a place holds.  True if somebody waits for that. */
bool
gate_give_back(AppGate *gate, LimiterPlace *place)
{
	if (place->has_turn)
	{
		gate->turns_over++;
		place->has_turn = false;
	}
	if (!place->taken)
		return false;
	if (place->counted_at != 0 && !place->used)
	{
		rate_uncount(&gate->history, place->counted_at, place->counted_after);
		/* else it was written as one that was sent */
		if (place->keep_epoch == gate->keep_epoch)
			gate->allowance++;
	}
	gate->in_flight--;
	place->taken = false;
	return gate_turns(gate) > 0 || place->probe != LIMITER_NO_PROBE;
}

/*
 * May dispatch (or a synchronous call) go, but for the limits?  Else say why
 * not and when to ask again.
 */
static bool
gate_check_pauses(AppGate *gate, Oid roleid, bool dispatching, LimiterPlace *place,
				  TimestampTz now, TimestampTz *retry_at, LimiterPause *why)
{
	place->is_trial = false;
	place->probe = LIMITER_NO_PROBE;
	if (gate->stop == LIMITER_QUOTA || (gate->stop == LIMITER_CREDENTIALS && dispatching))
	{
		*why = gate->stop;
		*retry_at = gate_try_at(gate, dispatching);
		if (*retry_at > now)
			return false;
		place->is_trial = true;
	}
	if (dispatching && !breakers_admit(&gate->breakers, roleid, now, &place->probe, retry_at))
	{
		*why = gate->breakers.all.open ? LIMITER_BREAKER : LIMITER_ROLE_BREAKER;
		return false;
	}
	return true;
}

/* The app is used under a max_rate.  Its servers may have different ones. */
static void
gate_note_rate_used(AppGate *gate, const FlowRate *rate, TimestampTz now)
{
	int64		span = rate_span(rate);

	if (span > gate->span || gate->history.last + gate->span <= now)
		gate->span = span;
}

/* A request is to go out under a max_rate: count it. */
static void
gate_count(AppGate *gate, const FlowRate *rate, LimiterPlace *place, TimestampTz now)
{
	place->counted_at = now;
	place->counted_after = gate->history.last;
	place->keep_epoch = gate->keep_epoch;
	gate_note_rate_used(gate, rate, now);
	rate_count(&gate->history, now);
	if (gate->allowance > 0)
		gate->allowance--;
}

/* What this PostgreSQL server may have of a limit. */
static double
gate_share(double limit)
{
	double		share = limit * feishu_guc_rate_share;
	double		whole = rint(share);

	return whole >= 1 && fabs(share - whole) < GATE_SHARE_EPSILON ? whole : share;
}

/*
 * Decide on a place, and take it or draw a turn; as limiter_acquire.  keeps: what
 * goes out under a max_rate has to be kept.  If that alone stands in the way,
 * *unkept is set: to write it is worth asking again.
 */
LimiterVerdict
gate_admit(AppGate *gate, const FlowServer *server, bool dispatching, bool keeps,
		   LimiterPlace *place, TimestampTz now,
		   TimestampTz *retry_at, LimiterPause *why, bool *unkept)
{
	bool		has_rate = server->max_rate.requests > 0;
	FlowRate	max_rate = server->max_rate;
	int			max_concurrency = server->max_concurrency;
	uint32		ahead;			/* who goes first */
	TimestampTz ready_at = now;
	bool		full;

	max_rate.requests = gate_share(max_rate.requests);
	if (max_concurrency > 0)
		max_concurrency = Max((int) gate_share(max_concurrency), 1);

	gate_check_clock(gate, now);
	if (!gate_check_pauses(gate, server->userid, dispatching, place, now, retry_at, why))
	{
		(void) gate_give_back(gate, place); /* others need not wait for us */
		place->is_trial = false;
		return LIMITER_WAIT;
	}

	/* who holds a turn and is told to wait comes at about the right time */
	if (place->has_turn)
		ahead = Max((int32) (place->turn - gate->turns_over), 0);
	else
		ahead = gate_turns(gate);

	*why = LIMITER_RUNNING;
	if (has_rate)
	{
		ready_at = rate_ready_at(&gate->history, &max_rate,
								 place->has_turn ? 1 : ahead + 1, now);
		if (ready_at > now)
			*why = LIMITER_MAX_RATE;
	}
	if (gate->rate_until <= now)
		gate->rate_until = 0;
	else if (gate->rate_until > ready_at)
	{
		ready_at = gate->rate_until;
		*why = LIMITER_RATE;
	}
	full = max_concurrency >= 0 &&
		gate->in_flight + (place->has_turn ? 0 : (int64) ahead) >= max_concurrency;

	if (ready_at <= now && !full && has_rate && keeps && gate->allowance == 0)
	{
		gate_note_rate_used(gate, &max_rate, now);
		gate->allowance_size = rate_allowance(&max_rate);
		*unkept = true;
	}
	if (ready_at <= now && !full && !*unkept)
	{
		if (has_rate)
			gate_count(gate, &max_rate, place, now);
		if (place->is_trial)
			gate->tried_at = now;
		breakers_begin_probe(&gate->breakers, server->userid, place->probe);
		gate_take(gate, place);
		return LIMITER_GO;
	}

	if (ready_at > now)
	{
		/* others of our kind will go first then */
		if (*why == LIMITER_MAX_RATE)
			ready_at = rate_ready_at(&gate->history, &max_rate, ahead + 1, now);
		*retry_at = ready_at;
	}
	else if (*unkept)
	{
		/* somebody writes it just now */
		*why = LIMITER_MAX_RATE;
		*retry_at = ms_after(now, GATE_COURTESY_MS);
	}
	else
	{
		*why = LIMITER_MAX_CONCURRENCY;
		*retry_at = gate->in_flight >= max_concurrency ?
			DT_NOEND : ms_after(now, GATE_COURTESY_MS);
	}
	if (!place->has_turn && (has_rate || max_concurrency >= 0))
	{
		place->has_turn = true;
		place->turn = gate->turns_drawn++;
	}
	place->is_trial = false;
	place->probe = LIMITER_NO_PROBE;
	return LIMITER_WAIT;
}


/* ---------- Reports ---------- */

/* Pause the app, or let it go on.  Returns what changed. */
static int
gate_set_stop(AppGate *gate, LimiterPause stop, TimestampTz now)
{
	gate->tried_at = now;
	if (gate->stop == stop)
		return 0;
	gate->stop = stop;
	gate->stop_epoch++;
	return stop == LIMITER_RUNNING ? GATE_RESUMED : GATE_PAUSED;
}

/* Pause for a 429.  Likewise. */
static int
gate_note_rate(AppGate *gate, double reset_seconds, TimestampTz now)
{
	double		ms = reset_seconds < 0 ? GATE_RATE_DEFAULT_MS : reset_seconds * 1000;
	TimestampTz until;
	bool		is_new = gate->rate_reported > now ||
		ms_after(gate->rate_reported, GATE_RATE_QUIET_MS) < now;

	ms = Max(Min(ms, GATE_RATE_MOST_MS), GATE_RATE_LEAST_MS);
	until = ms_after(now, (int64) ms);
	gate->rate_until = Max(gate->rate_until, until);
	gate->rate_reported = now;
	return is_new ? GATE_RATE : 0;
}

/*
 * Take a report of a role's call in, before gate_give_back.  may_break: a breaker
 * may open.  Returns flags of what changed.
 */
int
gate_report(AppGate *gate, Oid roleid, const LimiterPlace *place, LimiterReport report,
			double reset_seconds, TimestampTz now, bool may_break)
{
	/* what was not sent in a place is about now */
	bool		same_stop = !place->taken || place->stop_epoch == gate->stop_epoch;
	uint64		epoch = place->taken ? place->open_epoch : PG_UINT64_MAX;
	LimiterProbe probe = place->taken ? place->probe : LIMITER_NO_PROBE;
	int			changes = 0;

	breakers_end_probe(&gate->breakers, roleid, probe, epoch);
	if ((report == LIMITER_REPORT_NOTHING || report == LIMITER_REPORT_REFUSED) &&
		place->taken && place->is_trial && same_stop)
		gate->tried_at = 0;		/* it was none */

	switch (report)
	{
		case LIMITER_REPORT_NOTHING:
			break;
		case LIMITER_REPORT_ANSWERED:
			changes = breakers_note_answer(&gate->breakers, roleid, false);
			if (same_stop)
				changes |= gate_set_stop(gate, LIMITER_RUNNING, now);
			break;
		case LIMITER_REPORT_TOKEN:
		case LIMITER_REPORT_REACHED:
			if (report == LIMITER_REPORT_REACHED)
				changes = breakers_note_answer(&gate->breakers, roleid, true);
			if (gate->stop == LIMITER_CREDENTIALS)
				changes |= gate_set_stop(gate, LIMITER_RUNNING, now);
			break;
		case LIMITER_REPORT_REFUSED:
			changes = breakers_note_answer(&gate->breakers, roleid, false);
			break;
		case LIMITER_REPORT_TROUBLE:
			if (may_break)
				changes = breakers_note_trouble(&gate->breakers, roleid, probe, epoch, now);
			break;
		case LIMITER_REPORT_RATE:
			changes = breakers_note_answer(&gate->breakers, roleid, false);
			changes |= gate_note_rate(gate, reset_seconds, now);
			break;
		case LIMITER_REPORT_CREDENTIALS:
		case LIMITER_REPORT_QUOTA:
			changes = breakers_note_answer(&gate->breakers, roleid, false);
			if (same_stop)
				changes |= gate_set_stop(gate, report == LIMITER_REPORT_QUOTA ?
										 LIMITER_QUOTA : LIMITER_CREDENTIALS, now);
			break;
	}
	return changes;
}


/* ---------- To look at, and to act on ---------- */

/* A process is gone that held so many places and turns. */
void
gate_forget_process(AppGate *gate, int pid, int places, int turns)
{
	gate->in_flight -= places;
	gate->turns_over += turns;
	breakers_forget_process(&gate->breakers, pid);
}

/*
 * A pause that the platform asked for has changed so much that it is to be
 * written; says so once.
 */
bool
gate_pause_is_unkept(AppGate *gate, TimestampTz now)
{
	bool		changed = gate->rate_until > ms_after(now, GATE_KEEP_MS) ?
		gate->rate_until > ms_after(gate->rate_kept, GATE_KEEP_MS) :
		gate->rate_until == 0 && gate->rate_kept > now;

	if (changed)
		gate->rate_kept = gate->rate_until;
	return changed;
}

/* As it is for a role. */
void
gate_status(AppGate *gate, Oid roleid, TimestampTz now, LimiterStatus *status)
{
	gate_check_clock(gate, now);
	status->in_flight = gate->in_flight;
	status->waiting = gate_turns(gate);
	if (gate->stop != LIMITER_RUNNING)
	{
		status->pause = gate->stop;
		status->resume_at = gate_try_at(gate, true);
	}
	else if (gate->rate_until > now)
	{
		status->pause = LIMITER_RATE;
		status->resume_at = gate->rate_until;
	}
	else if (breakers_hold(&gate->breakers, roleid, &status->resume_at))
		status->pause = gate->breakers.all.open ? LIMITER_BREAKER : LIMITER_ROLE_BREAKER;
	if (status->pause != LIMITER_RUNNING)
		status->resume_at = Max(status->resume_at, now);
}

/* Forget all pauses; true if there was one but for the rate. */
bool
gate_resume(AppGate *gate)
{
	bool		was_paused = breakers_resume(&gate->breakers) || gate->stop != LIMITER_RUNNING;

	gate->rate_until = 0;
	gate->stop = LIMITER_RUNNING;
	gate->stop_epoch++;
	return was_paused;
}
