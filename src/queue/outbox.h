/*-------------------------------------------------------------------------
 *
 * src/queue/outbox.h
 *	  The queue's table: rows in, and what all who change rows need.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OUTBOX_H
#define FEISHU_OUTBOX_H

#include "datatype/timestamp.h"

#include "wire/wire.h"

/* What the column state says. */
typedef enum OutboxState
{
	OUTBOX_QUEUED = 'q',
	OUTBOX_SUCCEEDED = 's',
	OUTBOX_FAILED = 'f',
	OUTBOX_UNCONFIRMED = 'u',
	OUTBOX_CANCELLED = 'c'
} OutboxState;

/* Columns of feishu_internal.outbox, in their order there. */
typedef enum OutboxColumn
{
	OUTBOX_ID, OUTBOX_ROLEID, OUTBOX_DATABASE, OUTBOX_SYSTEM_IDENTIFIER, OUTBOX_ATTEMPTS, OUTBOX_SERVER_OWNER,
	OUTBOX_CREATED_AT, OUTBOX_RUN_AT, OUTBOX_EXPIRES_AT, OUTBOX_PRIORITY, OUTBOX_STATE, OUTBOX_IS_ASYNC,
	OUTBOX_OWN_KEY, OUTBOX_UNANSWERED, OUTBOX_REPLACEABLE,
	OUTBOX_SERVER, OUTBOX_NAMESPACE, OUTBOX_FLOW_ID, OUTBOX_IDEMPOTENT_KEY, OUTBOX_OPERATOR,
	OUTBOX_NEXT_AT, OUTBOX_FINISHED_AT, OUTBOX_END_NUMBER, OUTBOX_CODE, OUTBOX_HANDLER_NEXT_AT,
	OUTBOX_HANDLER_AT, OUTBOX_MAX_ATTEMPTS, OUTBOX_HANDLER_ATTEMPTS, OUTBOX_FAILURES, OUTBOX_HANDLER_STATE,
	OUTBOX_PARAMS, OUTBOX_LOOP_MASKS, OUTBOX_ORDERING_KEY, OUTBOX_REPLACE_KEY, OUTBOX_EXECUTION_ID,
	OUTBOX_FLOW_STATUS, OUTBOX_FLOW_CODE, OUTBOX_LOG_ID, OUTBOX_SQLSTATE, OUTBOX_ERROR, OUTBOX_REPORT,
	OUTBOX_HINT, OUTBOX_RESPONSE, OUTBOX_ON_END, OUTBOX_HANDLER_ERROR,
	OUTBOX_COLUMNS				/* how many */
} OutboxColumn;

/* A flow to be queued: a checked request and how to deliver it. */
typedef struct QueuedFlow
{
	Oid			roleid;			/* in whose name */
	const char *server;			/* name, or NULL: feishu_flow.server */
	Oid			server_owner;	/* set by the lookup of the server */
	FlowRequest request;		/* checked by request_check */
	TimestampTz run_at;			/* DT_NOBEGIN: at once */
	char	   *ordering_key;	/* or NULL */
	int			max_attempts;	/* or -1: the setting's at the time */
	TimestampTz expires_at;		/* DT_NOEND: never; DT_NOBEGIN: by
								 * feishu_flow.max_age */
	const char *on_end;			/* name of a handler, as given, or NULL */
	bool		on_end_needs_schema;	/* see on_end_resolve */
	char	   *replace_key;	/* or NULL; none with request.idempotent_key */
	int			priority;
} QueuedFlow;

/* In SQL: a row whose key is the user's and may not be queued again; as the index has it. */
#define OUTBOX_KEY_COUNTS \
	"NOT own_key AND state OPERATOR(pg_catalog.=) ANY ('{q,s,u}'::pg_catalog.\"char\"[])"

/* In SQL: a row that ended so; what went wrong has an index of its own. */
#define OUTBOX_WENT_WELL	"state OPERATOR(pg_catalog.=) ANY ('{s,c}'::pg_catalog.\"char\"[])"
#define OUTBOX_WENT_WRONG	"state OPERATOR(pg_catalog.=) ANY ('{f,u}'::pg_catalog.\"char\"[])"

#define OUTBOX_KEY_INDEX	"outbox_key_idx"

/* The lowest and the highest priority. */
#define OUTBOX_MIN_PRIORITY	(-100)
#define OUTBOX_MAX_PRIORITY	100

/* An expires_at that was given, even if it is -infinity. */
#define OUTBOX_GIVEN_EXPIRY(given) Max((given), DT_NOBEGIN + 1)

extern int64 outbox_enqueue(const QueuedFlow *flow);
extern int64 outbox_insert(const QueuedFlow *flow);
extern char *outbox_random_key(void);
extern TimestampTz outbox_expires_by_age(TimestampTz run_at);
extern void outbox_warn_without_dispatcher(void);
extern void outbox_report_no_flow(int64 id);

#endif							/* FEISHU_OUTBOX_H */
