/*-------------------------------------------------------------------------
 *
 * src/queue/on_end.h
 *	  What the end of a row owes its handler, in SQL; and which function is meant.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ON_END_H
#define FEISHU_ON_END_H

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

extern char *on_end_resolve(const char *on_end, Oid roleid, bool with_schema);

#endif							/* FEISHU_ON_END_H */
