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

/* These columns of a row, as arguments of a statement. */
extern void outbox_row_arguments(const Datum *values, const bool *nulls, const int *columns, int num,
								 Datum *arguments, char *flags);

/* Cancel a flow that waits in a copy of the database that it was queued in; as its owner. */
extern void outbox_cancel_copied(int64 id);

#endif							/* FEISHU_OUTBOX_ROW_H */
