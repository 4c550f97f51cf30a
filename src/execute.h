/*-------------------------------------------------------------------------
 *
 * execute.h
 *	  Calls of SQL functions, which wait for the end.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/execute.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_EXECUTE_H
#define FEISHU_EXECUTE_H

#include "call.h"

/* The limits of a call: argument (or -1), server option, setting. */
extern FlowLimits execute_limits(const FlowServer *server, int timeout_ms);

/* Run one call (request as in flow_call_start) to its end. */
extern FlowCall *execute_call(MemoryContext context, FlowServer *server,
							  const FlowRequest *request, const FlowLimits *limits);

#endif							/* FEISHU_EXECUTE_H */
