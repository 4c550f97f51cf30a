/*-------------------------------------------------------------------------
 *
 * src/api/arguments.c
 *	  SQL arguments of execute_flow and enqueue_flow to a checked FlowRequest.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "api/arguments.h"
#include "wire/wire_check.h"

/* Positions of the arguments. */
#define ARG_NAMESPACE		0
#define ARG_FLOW_ID			1
#define ARG_OPERATOR		2
#define ARG_PARAMS			3
#define ARG_IS_ASYNC		4
#define ARG_IDEMPOTENT_KEY	5
#define ARG_LOOP_MASKS		6


/* A text argument as a string, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* A jsonb argument, or NULL. */
static Jsonb *
jsonb_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : request_json(PG_GETARG_JSONB_P(n));
}

/*
 * The first seven arguments of both functions, in this order: namespace,
 * flow_id, operator, params, is_async, idempotent_key, loop_masks.
 * default_operator is the server's (JSON text) or NULL.
 *
 * The result lives in the current memory context and may point into detoasted
 * arguments.  Throws 22023, naming the argument, before anything is sent.
 */
FlowRequest *
arguments_read(FunctionCallInfo fcinfo, const char *default_operator)
{
	FlowRequest *request = palloc0(sizeof(FlowRequest));

	request->namespace_name = text_argument(fcinfo, ARG_NAMESPACE);
	request->flow_id = text_argument(fcinfo, ARG_FLOW_ID);
	request->operator_id = request_operator(jsonb_argument(fcinfo, ARG_OPERATOR));
	if (request->operator_id == NULL)
		request->operator_id = request_default_operator(default_operator);
	request->params = jsonb_argument(fcinfo, ARG_PARAMS);
	request->is_async = !PG_ARGISNULL(ARG_IS_ASYNC) && PG_GETARG_BOOL(ARG_IS_ASYNC);
	request->idempotent_key = text_argument(fcinfo, ARG_IDEMPOTENT_KEY);
	request->loop_masks = jsonb_argument(fcinfo, ARG_LOOP_MASKS);
	request_check(request);
	return request;
}
