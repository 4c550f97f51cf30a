/*-------------------------------------------------------------------------
 *
 * src/call/call.h
 *	  Flow calls as state machines on the process's HTTP loop.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_CALL_H
#define FEISHU_CALL_H

#include "app/limiter.h"
#include "app/server.h"
#include "http/http.h"
#include "wire/wire.h"

typedef struct FlowCall FlowCall;

/*
 * What a check that obtained a token learnt besides, as far as it did: the
 * platform need not know of these things.
 */
typedef struct FlowCheck
{
	FlowResponse *scopes;		/* the answer that lists what the app may do;
								 * NULL when there is none of use */
	int			scopes_status;	/* its HTTP status */
	bool		has_clock;
	int64		clock_behind_us;	/* our clock behind that of the platform, in
									 * whole seconds; negative: ahead */
} FlowCheck;

/*
 * How a call ended.  Text is in the database encoding; reason, hint and phase
 * are static and untranslated.
 */
typedef struct FlowOutcome
{
	FlowAction	action;
	int			sqlstate;		/* 0: all went well */
	const char *reason;			/* second half of the primary message */
	const char *hint;			/* or NULL */
	bool		for_token;		/* it was a token request that ended so */
	bool		request_sent;	/* the platform may have got the execute request */
	bool		too_large;		/* the answer was longer than max_response */
	int			http_status;	/* 0: no answer */
	bool		held_back;		/* by the limiter: no request was made */
	double		reset_seconds;	/* of a rate limit, -1: not said */
	FlowResponse *response;		/* the answer, or NULL */
	char	   *log_id;			/* or NULL */
	char	   *cause;			/* why there was no answer, or NULL */
	HttpTrouble trouble;		/* why there was no answer */
	const char *phase;			/* what it was doing, or NULL */
	char	   *location;		/* where a redirect leads, or NULL */
	int			timeout_ms;		/* the limit that was reached, with LK504 and
								 * no answer */
	const char *url;			/* base_url or token_url */
	int64		duration_us;	/* of the last transfer */
	FlowCheck  *check;			/* what a check found besides; or NULL */
} FlowOutcome;

/* How the time of a call is limited. */
typedef struct FlowLimits
{
	TimestampTz deadline;
	int			timeout_ms;		/* that led to the deadline, for messages */
	int			connect_timeout_ms;
	size_t		max_response;	/* bytes */
	BudgetShare *share;			/* of memory for the answer; NULL: none to share */
} FlowLimits;

extern FlowCall *flow_call_start(MemoryContext parent, FlowServer *server,
								 const FlowRequest *request,
								 const FlowLimits *limits, LimiterPlace *place,
								 void *owner);
extern const FlowOutcome *flow_call_outcome(const FlowCall *call);
extern void *flow_call_owner(const FlowCall *call);
extern void flow_call_free(FlowCall *call);
extern void flow_calls_turn(TimestampTz until, uint32 wait_event);
extern bool flow_calls_are_full(void);
extern void flow_call_set_aside(FlowCall *call);
extern FlowCall *flow_calls_next_done(void);
extern void flow_call_set_batched(FlowCall *call);
extern bool flow_call_is_waiting(const FlowCall *call);
extern void flow_calls_send_no_more(void);
extern bool flow_call_is_sent(const FlowCall *call);

#endif							/* FEISHU_CALL_H */
