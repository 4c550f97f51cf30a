/*-------------------------------------------------------------------------
 *
 * src/dispatcher/decide.h
 *	  What becomes of a flight.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_DECIDE_H
#define FEISHU_DECIDE_H

#include "datatype/timestamp.h"

#include "call/call.h"
#include "queue/outbox.h"

/* What is known of a flight before its end. */
typedef struct FlightFacts
{
	int			attempts;
	int			max_attempts;
	TimestampTz expires_at;
	bool		own_key;
	bool		unanswered;		/* an attempt before may have reached the platform */
	bool		is_ours;		/* queued in this database */
	bool		too_large;		/* to be sent at all */
	int			max_kilobytes;	/* which is more than this */
	char	   *last_error;		/* of the attempt before, or NULL */
} FlightFacts;

/* What else a decision depends on. */
typedef struct DecideBy
{
	TimestampTz now;
	int			base_delay_ms;	/* feishu_flow.retry_base_delay */
	int			max_delay_ms;	/* feishu_flow.retry_max_delay */
	double		jitter;			/* from 0 to 1 */
	int			postponed;		/* rows of its lane that were, in a row */
} DecideBy;

/* Why a flight ends so; its text tells. */
typedef enum EndReason
{
	END_BY_OUTCOME,				/* the outcome says it all */
	END_OF_ATTEMPTS,			/* likewise, and it is given up */
	END_OF_TIME,				/* likewise, for it expires */
	END_COPIED,					/* without being sent: the original of its row is */
	END_EXPIRED,
	END_EXHAUSTED,				/* all attempts were made, the last without a known end */
	END_TOO_LARGE,
	END_BY_ERROR,				/* it could not be made a call */
	END_UNTRIED					/* it was given back before it was sent */
} EndReason;

/* What becomes of a flight, as its row has it. */
typedef struct FlightEnd
{
	OutboxState state;
	EndReason	reason;
	bool		silent;			/* nothing to write: as if it was not tried */
	bool		postponed;		/* this process could not do it: the lane's row waits */
	int			attempts;
	bool		went_wrong;		/* an attempt that counts, and no success */
	bool		unanswered;
	TimestampTz next_at;		/* when back in the queue; 0: at once */
	TimestampTz hold_until;		/* its lane is to wait until then; 0: not */
	int			sqlstate;
	char	   *error;
	char	   *report;			/* see the table; NULL: error says it all */
	char	   *hint;			/* or NULL */
	FlowResponse *response;
	int			http_status;	/* 0: no answer */
	char	   *log_id;
} FlightEnd;

/* decide.c: all without text */
extern bool decide_unsent(const FlightFacts *facts, TimestampTz now, FlightEnd *end);
extern FlightEnd decide_untried(const FlightFacts *facts);
extern FlightEnd decide_error(const FlightFacts *facts, int sqlstate, const DecideBy *by);
extern FlightEnd decide_outcome(const FlightFacts *facts, const FlowOutcome *outcome,
								const DecideBy *by);
extern bool decide_is_lasting(int sqlstate);

/* end_text.c: the text, in the current memory context */
extern void end_text_fill(FlightEnd *end, const FlightFacts *facts, const FlowOutcome *outcome);

#endif							/* FEISHU_DECIDE_H */
