/*-------------------------------------------------------------------------
 *
 * outbox_row.h
 *	  A row of feishu_internal.outbox as it is made, and what those who make one
 *	  share.
 *
 * Private to src/queue/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/queue/outbox_row.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OUTBOX_ROW_H
#define FEISHU_OUTBOX_ROW_H

/* Columns of feishu_internal.outbox, in their order there. */
enum
{
	COLUMN_ID, COLUMN_ROLEID, COLUMN_DATABASE, COLUMN_SYSTEM_IDENTIFIER, COLUMN_ATTEMPTS, COLUMN_MAX_ATTEMPTS,
	COLUMN_SERVER_OWNER, COLUMN_STATE, COLUMN_IS_ASYNC, COLUMN_OWN_KEY, COLUMN_UNANSWERED, COLUMN_REPLACEABLE,
	COLUMN_CREATED_AT, COLUMN_RUN_AT, COLUMN_NEXT_AT, COLUMN_EXPIRES_AT, COLUMN_FINISHED_AT,
	COLUMN_SERVER, COLUMN_NAMESPACE, COLUMN_FLOW_ID, COLUMN_OPERATOR,
	COLUMN_PARAMS, COLUMN_IDEMPOTENT_KEY, COLUMN_LOOP_MASKS, COLUMN_ORDERING_KEY, COLUMN_REPLACE_KEY,
	COLUMN_CODE, COLUMN_EXECUTION_ID, COLUMN_FLOW_STATUS, COLUMN_FLOW_CODE,
	COLUMN_LOG_ID, COLUMN_SQLSTATE, COLUMN_ERROR, COLUMN_REPORT, COLUMN_HINT, COLUMN_RESPONSE,
	COLUMN_ON_END, COLUMN_END_NUMBER, COLUMN_HANDLER_STATE, COLUMN_HANDLER_ATTEMPTS,
	COLUMN_HANDLER_NEXT_AT, COLUMN_HANDLER_AT, COLUMN_HANDLER_ERROR,
	NUM_COLUMNS
};

/* These columns of a row, as arguments of a statement. */
extern void outbox_row_arguments(const Datum *values, const bool *nulls, const int *columns, int num,
								 Datum *arguments, char *flags);

/* Cancel a flow that waits in a copy of the database that it was queued in; as its owner. */
extern void outbox_cancel_copied(int64 id);

#endif							/* FEISHU_OUTBOX_ROW_H */
