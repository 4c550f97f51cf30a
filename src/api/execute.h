/*-------------------------------------------------------------------------
 *
 * src/api/execute.h
 *	  Calls of SQL functions, which wait for the end.
 *
 * Private to src/api/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_EXECUTE_H
#define FEISHU_EXECUTE_H

#include "fmgr.h"
#include "utils/jsonb.h"

#include "call/call.h"

/*
 * The owner of each call of a session: so it is known whose has ended, whoever was
 * waiting.
 */
typedef struct CallWaiter
{
	bool		has_ended;
} CallWaiter;

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
extern void call_scope_run(CallScopeWork work, void *arg);
extern MemoryContext call_memory_parent(void);
extern uint32 call_wait_event(void);
extern void execute_take_ended(void);

/* Arguments that execute_flow and execute_flows share, from the first on. */
#define EXECUTE_NUM_ARGUMENTS	9

/* What they are, checked. */
typedef struct ExecuteArguments
{
	FlowServer *server;			/* as the current role may use it now */
	FlowRequest *request;
	int			timeout_ms;		/* or -1 */
} ExecuteArguments;

extern void execute_read_arguments(FunctionCallInfo fcinfo, ExecuteArguments *arguments);
extern Jsonb *execute_answer(const FlowOutcome *outcome);
extern FlowLimits execute_limits(const FlowServer *server, int timeout_ms);
extern FlowCall *execute_call(const CallScope *scope, FlowServer *server,
							  const FlowRequest *request, const FlowLimits *limits,
							  FlowCall **started);

#endif							/* FEISHU_EXECUTE_H */
