/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  What the limiter learns from the outcome of a call, and the other way
 *	  round.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/outcome.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OUTCOME_H
#define FEISHU_OUTCOME_H

#include "app/limiter.h"
#include "call/call.h"

/* What to report of a call that ended so. */
extern LimiterReport outcome_report(const FlowOutcome *outcome, TokenProtocol protocol);

/* The outcome of a call that the limiter holds back for longer than it can wait: LK429. */
extern void outcome_hold_back(FlowOutcome *outcome, LimiterPause why,
							  TimestampTz retry_at);

/* The outcome of a call that was not made, as those before it had no answer: LK503. */
extern void outcome_give_up_on_platform(FlowOutcome *outcome);

/* The outcome of a transfer that brought no usable HTTP response. */
extern void outcome_of_trouble(FlowOutcome *outcome, const FlowServer *server,
							   const FlowLimits *limits, const HttpResult *result);

/* What a transfer's result shows whatever became of it; text in the current context. */
extern void outcome_take_result(FlowOutcome *outcome, const HttpResult *result);

/* The platform's clock against ours, as far as an answer shows it. */
extern void outcome_check_clock(FlowCheck *check, const HttpResult *result);

#endif							/* FEISHU_OUTCOME_H */
