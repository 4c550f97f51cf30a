/*-------------------------------------------------------------------------
 *
 * src/api/arguments.h
 *	  SQL arguments that execute_flow and enqueue_flow share.
 *
 * Private to src/api/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ARGUMENTS_H
#define FEISHU_ARGUMENTS_H

#include "fmgr.h"

#include "wire/wire.h"

extern FlowRequest *arguments_read(FunctionCallInfo fcinfo, const char *default_operator);

#endif							/* FEISHU_ARGUMENTS_H */
