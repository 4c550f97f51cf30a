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

#include "steady.h"

/*
 * For each statement that ends a row of the outbox: have its handler called, if it
 * has one.  An item of SET; the columns of the row are so qualified ("o." or "").
 */
#define HANDLER_ON_END		HANDLER_ON_END_IF("true", "")
#define HANDLER_ON_END_IF(condition, row) \
	"end_number = CASE WHEN " condition " THEN feishu_internal.draw_end(" row "on_end, " row "roleid, " \
	row "database, " row "system_identifier) END"

/* Likewise, where the row goes back to the queue: its handler is not called for that end. */
#define HANDLER_NOT_ENDED \
	"end_number = NULL, handler_state = NULL, handler_attempts = NULL, handler_next_at = NULL," \
	" handler_at = NULL, handler_error = NULL"

/* A handler that waits; a flow is kept meanwhile. */
#define HANDLER_WAITS		"(end_number IS NOT NULL AND handler_state IS NULL)"

/* handler_name.c: the function that a role means by on_end, as it is remembered.  Throws. */
extern char *handler_resolve(const char *on_end, Oid roleid);

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
