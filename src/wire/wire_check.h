/*-------------------------------------------------------------------------
 *
 * src/wire/wire_check.h
 *	  Arguments of execute_flow and enqueue_flow to a checked FlowRequest.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIRE_CHECK_H
#define FEISHU_WIRE_CHECK_H

#include "wire/wire.h"

extern Jsonb *request_json(Jsonb *json);
extern Jsonb *request_operator(Jsonb *operator_id);
extern Jsonb *request_default_operator(const char *json);
extern bool request_integer(const char *text, int64 *value);

/*
 * What sort of JSON it is that should be of another sort, as a sentence; and a hint:
 * that it was encoded twice, if it was, else the one given.  To be translated.
 */
extern const char *request_sort(Jsonb *json);
extern const char *request_sort_hint(Jsonb *json, const char *hint);
extern void request_check_flow(const char *namespace_name, const char *flow_id);
extern void request_check(FlowRequest *request);
extern const char *request_check_operator(Jsonb *operator_id, bool of_option);

#endif							/* FEISHU_WIRE_CHECK_H */
