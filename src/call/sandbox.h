/*-------------------------------------------------------------------------
 *
 * sandbox.h
 *	  Answers that are made up, of servers that are sandboxes.
 *
 * Private to src/call/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/sandbox.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SANDBOX_H
#define FEISHU_SANDBOX_H

#include "app/server.h"
#include "http/http.h"

/* What stands for the result of a transfer. */
extern void sandbox_answer(const FlowServer *server, size_t max_response, HttpResult *result);

#endif							/* FEISHU_SANDBOX_H */
