/*-------------------------------------------------------------------------
 *
 * handler.h
 *	  Functions of users that are called when their flows have ended.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/handler/handler.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HANDLER_H
#define FEISHU_HANDLER_H

#include "datatype/timestamp.h"

#include "base/steady.h"

/*
 * handler_supply.c: see to it that each role with a handler that is due has a session;
 * returns when to look again.  By the dispatcher, in a transaction, as the tables' owner;
 * with news if handlers of a role without one may wait.
 */
extern TimestampTz handler_supply(TimestampTz now, bool news);

/* handler_supply.c: when to look, while handlers are called. */
extern TimestampTz handler_look_again(TimestampTz now);

/* handler_supply.c: the tables have been locked since then, so sessions give way. */
extern void handler_give_way(SteadyTime locked_since);

#endif							/* FEISHU_HANDLER_H */
