/*-------------------------------------------------------------------------
 *
 * src/dispatcher/decide.c
 *	  What becomes of a flight: from what is known of it and the outcome of its call
 *	  to its end.
 *
 * An answer of the platform is final, unless it asks for patience.  No answer,
 * and a failure of the platform's own, are tried again with the same key, so the
 * platform starts the flow at most once.  If an earlier attempt may have reached
 * the platform and a later one is refused for its key, or for what may be that,
 * then the flow most likely ran and its answer is lost: "unconfirmed".
 *
 * These are functions of their arguments alone.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "dispatcher/decide.h"

/* Rows that could not be prepared do not make their lane wait as long as a platform
 * that is silent. */
#define POSTPONED_MOST		4

/*
 * A flow that the peer refuses to look at waits as if it had been tried so often, for
 * nothing counts these times.
 */
#define REFUSED_ATTEMPTS	4


/* Full jitter: a random part of base * 2^(attempts - 1), at most the maximum. */
static TimestampTz
backoff_until(int attempts, const DecideBy *by)
{
	double		ms = Min(by->base_delay_ms * pow(2.0, Min(attempts - 1, 30)), by->max_delay_ms);

	return by->now + (int64) Max(ms * by->jitter, 1) * 1000;
}

/* Likewise, for a row that could not be prepared. */
static TimestampTz
postponed_until(const DecideBy *by)
{
	return backoff_until(Min(by->postponed + 1, POSTPONED_MOST), by);
}

static FlightEnd
make_end(const FlightFacts *facts, OutboxState state, EndReason reason, int sqlstate)
{
	return (FlightEnd) {
		.state = state, .reason = reason, .sqlstate = sqlstate,
		.attempts = facts->attempts, .unanswered = facts->unanswered
	};
}

/*
 * Is a flight not to be sent at all?  A row that was queued in another database came
 * here by replication: its role is perhaps another one here, and the other database
 * sends it.  One that is too large came by another way than enqueue_flow, or the bound
 * was lowered since.
 */
bool
decide_unsent(const FlightFacts *facts, TimestampTz now, FlightEnd *end)
{
	if (!facts->is_ours)
		*end = make_end(facts, OUTBOX_CANCELLED, END_COPIED, 0);
	else if (facts->expires_at <= now)
		*end = make_end(facts, OUTBOX_FAILED, END_EXPIRED, ERRCODE_FEISHU_TIMEOUT);
	else if (facts->attempts >= facts->max_attempts)
		*end = make_end(facts, facts->unanswered ? OUTBOX_UNCONFIRMED : OUTBOX_FAILED,
						END_EXHAUSTED, ERRCODE_FEISHU_TIMEOUT);
	else if (facts->too_large)
		*end = make_end(facts, OUTBOX_FAILED, END_TOO_LARGE, ERRCODE_INVALID_PARAMETER_VALUE);
	else
		return false;
	return true;
}

/* It goes back to the queue as if it had not been claimed. */
FlightEnd
decide_untried(const FlightFacts *facts)
{
	FlightEnd	end = make_end(facts, OUTBOX_QUEUED, END_UNTRIED, 0);

	end.silent = true;
	return end;
}

/*
 * Is what went wrong with a row damaged, or wrong, for good?  Anything else (no
 * memory, no descriptors, an I/O error, a deadlock) may be otherwise the next time.
 */
bool
decide_is_lasting(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_DATA_EXCEPTION || category == ERRCODE_INTERNAL_ERROR ||
		category == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/* No call could be made of it: no attempt is counted. */
FlightEnd
decide_error(const FlightFacts *facts, int sqlstate, const DecideBy *by)
{
	FlightEnd	end = make_end(facts, OUTBOX_FAILED, END_BY_ERROR, sqlstate);

	if (!decide_is_lasting(sqlstate))
	{
		end.state = OUTBOX_QUEUED;
		end.postponed = true;
		end.next_at = postponed_until(by);
	}
	return end;
}

/* Try again later, as after so many attempts, or give up. */
static void
retry_or_give_up(FlightEnd *end, const FlightFacts *facts, int attempts, const DecideBy *by)
{
	TimestampTz next_at = backoff_until(attempts, by);

	end->state = OUTBOX_FAILED;
	if (end->attempts >= facts->max_attempts)
		end->reason = END_OF_ATTEMPTS;
	else if (next_at >= facts->expires_at)
		end->reason = END_OF_TIME;
	else
	{
		end->state = OUTBOX_QUEUED;
		end->next_at = next_at;
	}
}

/* The call has ended. */
FlightEnd
decide_outcome(const FlightFacts *facts, const FlowOutcome *outcome, const DecideBy *by)
{
	FlightEnd	end = make_end(facts, OUTBOX_QUEUED, END_BY_OUTCOME, outcome->sqlstate);
	bool		before = facts->unanswered;

	end.response = outcome->response;
	end.http_status = outcome->http_status;
	end.log_id = outcome->log_id;

	/* this process is short of something that the call needs */
	if (outcome->trouble == HTTP_TROUBLE_LOCAL && !outcome->request_sent)
	{
		end.silent = end.postponed = true;
		end.hold_until = postponed_until(by);
		return end;
	}
	switch (outcome->action)
	{
		case FLOW_SUCCEEDED:
			end.attempts++;
			end.state = OUTBOX_SUCCEEDED;
			break;

		case FLOW_KEY_USED:
			end.attempts++;
			end.state = before || facts->own_key ? OUTBOX_UNCONFIRMED : OUTBOX_FAILED;
			break;

		case FLOW_FAIL:
			end.attempts++;
			end.state = before && outcome->sqlstate == ERRCODE_FEISHU_REFUSED ?
				OUTBOX_UNCONFIRMED : OUTBOX_FAILED;
			break;

		case FLOW_RETRY:
			if (outcome->trouble == HTTP_TROUBLE_REFUSED)
			{
				/* the peer says that this was none */
				retry_or_give_up(&end, facts, Max(end.attempts, REFUSED_ATTEMPTS), by);
				break;
			}
			end.attempts++;
			end.unanswered |= outcome->request_sent;
			retry_or_give_up(&end, facts, end.attempts, by);
			break;

		case FLOW_WAIT:
		case FLOW_STOP_APP:
		case FLOW_REFRESH_TOKEN:
			/* the app has to wait, not this flow to be punished */
			end.silent = true;
			break;
	}
	end.went_wrong = end.attempts > facts->attempts && end.state != OUTBOX_SUCCEEDED;
	return end;
}
