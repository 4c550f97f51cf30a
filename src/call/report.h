/*-------------------------------------------------------------------------
 *
 * src/call/report.h
 *	  What a user is told of the outcome of a call.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_REPORT_H
#define FEISHU_REPORT_H

#include "call/call.h"

/* All that an error has, and a row of execute_flows. */
typedef struct FlowReport
{
	int			sqlstate;
	char	   *message;
	char	   *detail;			/* or NULL */
	char	   *hint;			/* or NULL */
} FlowReport;

/* All palloc'ed. */
extern FlowReport report_failure(const FlowOutcome *outcome, const FlowRequest *request);
extern char *report_message(const FlowOutcome *outcome);
extern char *report_detail(const FlowOutcome *outcome);
extern char *report_hint(const FlowOutcome *outcome);

/* For the queue's columns error and report. */
extern char *report_sentence(const FlowOutcome *outcome);
extern char *report_lines(const FlowOutcome *outcome);

#endif							/* FEISHU_REPORT_H */
