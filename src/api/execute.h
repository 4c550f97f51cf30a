/*-------------------------------------------------------------------------
 *
 * execute.h
 *	  Calls of SQL functions, which wait for the end.
 *
 * Private to src/api/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/api/execute.h
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

/* Do something that makes calls: they live as long as that. */
extern void call_scope_run(CallScopeWork work, void *arg);

/* The parent for memory of calls that outlive the function that makes them. */
extern MemoryContext call_memory_parent(void);

/* Shown in pg_stat_activity while a call is under way, on 17 and later. */
extern uint32 call_wait_event(void);

/* Mark the owners of all calls of the session that have ended by now. */
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

/* Read namespace ... */
extern void execute_read_arguments(FunctionCallInfo fcinfo, ExecuteArguments *arguments);

/* The answer as jsonb, or NULL if none says what became of the flow. */
extern Jsonb *execute_answer(const FlowOutcome *outcome);

/* The limits of a call: argument (or -1), server option, setting. */
extern FlowLimits execute_limits(const FlowServer *server, int timeout_ms);

/* Run one call (request as in flow_call_start) to its end. */
extern FlowCall *execute_call(const CallScope *scope, FlowServer *server,
							  const FlowRequest *request, const FlowLimits *limits,
							  FlowCall **started);

#endif							/* FEISHU_EXECUTE_H */
