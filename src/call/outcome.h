/*-------------------------------------------------------------------------
 *
 * src/call/outcome.h
 *	  What the limiter learns from the outcome of a call, and the other way
 *	  round.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OUTCOME_H
#define FEISHU_OUTCOME_H

#include "app/limiter.h"
#include "call/call.h"

extern LimiterReport outcome_report(const FlowOutcome *outcome, TokenProtocol protocol);
extern void outcome_hold_back(FlowOutcome *outcome, LimiterPause why,
							  TimestampTz retry_at);
extern void outcome_give_up_on_platform(FlowOutcome *outcome);
extern void outcome_of_trouble(FlowOutcome *outcome, const FlowServer *server,
							   const FlowLimits *limits, const HttpResult *result);
extern void outcome_take_result(FlowOutcome *outcome, const HttpResult *result);
extern void outcome_check_clock(FlowCheck *check, const HttpResult *result);

#endif							/* FEISHU_OUTCOME_H */
