/*-------------------------------------------------------------------------
 *
 * src/handler/handler.h
 *	  Functions of users that are called when their flows have ended.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HANDLER_H
#define FEISHU_HANDLER_H

#include "datatype/timestamp.h"

#include "base/steady.h"

/* handler_supply.c */
extern TimestampTz handler_supply(TimestampTz now, bool notice);
extern TimestampTz handler_look_again(TimestampTz now);
extern void handler_give_way(SteadyTime locked_since);

#endif							/* FEISHU_HANDLER_H */
