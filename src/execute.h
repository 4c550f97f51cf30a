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

/*
 * The memory of the calls of one SQL function.  Whatever way the function is
 * left, it goes, and with it all that the calls have under way.
 */
typedef struct CallScope
{
	MemoryContext context;
	MemoryContext caller;		/* what was the current one; stays */
} CallScope;

typedef void (*CallScopeWork) (const CallScope *scope, void *arg);

/* Do something that makes calls: they live as long as that. */
extern void call_scope_run(CallScopeWork work, void *arg);

/* The limits of a call: argument (or -1), server option, setting. */
extern FlowLimits execute_limits(const FlowServer *server, int timeout_ms);

/*
 * Run one call (request as in flow_call_start) to its end.  started, unless NULL, is
 * set to it while it is under way.
 */
extern FlowCall *execute_call(const CallScope *scope, FlowServer *server,
							  const FlowRequest *request, const FlowLimits *limits,
							  FlowCall **started);

#endif							/* FEISHU_EXECUTE_H */
