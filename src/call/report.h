/*-------------------------------------------------------------------------
 *
 * report.h
 *	  What a user is told of the outcome of a call.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/report.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_REPORT_H
#define FEISHU_REPORT_H

#include "call/call.h"

/*
 * All in the user's language and the database encoding, palloc'd, without
 * secrets.
 */

/* All that an error has, and a row of execute_flows. */
typedef struct FlowReport
{
	int			sqlstate;
	char	   *message;
	char	   *detail;			/* or NULL */
	char	   *hint;			/* or NULL */
} FlowReport;

/* The whole report on a flow that did not succeed. */
extern FlowReport report_failure(const FlowOutcome *outcome, const FlowRequest *request);

/* Second half of the primary message. */
extern char *report_message(const FlowOutcome *outcome);

/* DETAIL: all that helps support to find the request. */
extern char *report_detail(const FlowOutcome *outcome);

/* HINT: what to do, and where the platform says more; or NULL. */
extern char *report_hint(const FlowOutcome *outcome);

#endif							/* FEISHU_REPORT_H */
