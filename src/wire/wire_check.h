/*-------------------------------------------------------------------------
 *
 * wire_check.h
 *	  Arguments of execute_flow and enqueue_flow to a checked FlowRequest.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/wire_check.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIRE_CHECK_H
#define FEISHU_WIRE_CHECK_H

#include "wire/wire.h"

/* An argument or template as a jsonb; JSON null is as good as NULL. */
extern Jsonb *request_json(Jsonb *json);

/* An operator, or NULL, as it goes to the platform: with an integer as _id, and an
 * e-mail address without blanks at its end. */
extern Jsonb *request_operator(Jsonb *operator_id);

/* The server's operator (JSON text) likewise. */
extern Jsonb *request_default_operator(const char *json);

/* Read an integer by its value: "5.00" is 5.  False if it is none, or too large. */
extern bool request_integer(const char *text, int64 *value);

/*
 * What sort of JSON it is that should be of another sort, as a sentence; and a hint:
 * that it was encoded twice, if it was, else the one given.  To be translated.
 */
extern const char *request_sort(Jsonb *json);
extern const char *request_sort_hint(Jsonb *json, const char *hint);

/* Check what names a flow; throws 22023 naming the argument. */
extern void request_check_flow(const char *namespace_name, const char *flow_id);

/* Check every member; throws 22023 naming the argument. */
extern void request_check(FlowRequest *request);

/* NULL when the object can be an operator, else what is wrong with it. */
extern const char *request_check_operator(Jsonb *operator_id);

#endif							/* FEISHU_WIRE_CHECK_H */
