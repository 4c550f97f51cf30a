/*-------------------------------------------------------------------------
 *
 * request.h
 *	  Arguments of execute_flow and enqueue_flow to a checked FlowRequest.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/request.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_REQUEST_H
#define FEISHU_REQUEST_H

#include "fmgr.h"

#include "codec.h"

/*
 * The first seven arguments of both functions, in this order: namespace,
 * flow_id, operator, params, is_async, idempotent_key, loop_masks.
 * default_operator is the server's (JSON text) or NULL.
 *
 * The result lives in the current memory context and may point into detoasted
 * arguments.  Throws 22023, naming the argument, before anything is sent.
 */
extern FlowRequest *request_from_arguments(FunctionCallInfo fcinfo,
										   const char *default_operator);

/* Check every member; throws 22023 naming the argument. */
extern void request_check(FlowRequest *request);

/* NULL when the object can be an operator, else what is wrong with it. */
extern const char *request_check_operator(Jsonb *operator_id);

#endif							/* FEISHU_REQUEST_H */
