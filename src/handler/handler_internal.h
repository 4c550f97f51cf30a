/*-------------------------------------------------------------------------
 *
 * src/handler/handler_internal.h
 *	  Between the files of handler/.
 *
 * Private to src/handler/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HANDLER_INTERNAL_H
#define FEISHU_HANDLER_INTERNAL_H

#include "handler/handler.h"
#include "queue/on_end.h"

/* A handler that waits. */
typedef struct Handler
{
	int64		id;				/* of the flow */
	int64		number;			/* of its end */
	char	   *function;		/* qualified and quoted */
	int			attempts;		/* those begun */
	TimestampTz next_at;		/* 0: at once */
	bool		is_begun;		/* it is being called, or was by a session that has ended */
} Handler;

/*
 * handler_mark.c.  All of these need a transaction, and work as the tables' owner
 * whoever the current user is.
 */

/* handler_mark.c: have statements planned in between read indexes in order. */
extern int	mark_plan_begin(void);
extern void mark_plan_end(int level);
extern int	mark_read(Oid roleid, int64 above, Handler *handlers, int most);
extern bool mark_succeeded(const Handler *handler);
extern void mark_begun(Handler *handler);
extern void mark_failed(const Handler *handler, const char *error, bool soon);
extern bool mark_lock(const Handler *handler);
extern void mark_given_up(Oid roleid, const char *error);

/* What became of a call. */
typedef enum HandlerResult
{
	HANDLER_DONE,
	HANDLER_GONE,				/* there is nothing to call */
	HANDLER_FAILED
} HandlerResult;

/* handler_call.c */
extern HandlerResult handler_call(const Handler *handler, ErrorData **error);
extern char *handler_error_text(ErrorData *error);

/* handler_call.c: from here to there a transaction has handler_timeout; a handler begins anew. */
extern void handler_time_begin(void);
extern void handler_time_end(void);

/* handler_state.c */
extern void handler_state_watch(void);
extern bool handler_state_is_touched(void);
extern void handler_state_fire_deferred(void);
extern void handler_state_clean(void);

#endif							/* FEISHU_HANDLER_INTERNAL_H */
