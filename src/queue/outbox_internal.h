/*-------------------------------------------------------------------------
 *
 * src/queue/outbox_internal.h
 *	  A row of feishu_internal.outbox as it is made, and what those who make one
 *	  share.
 *
 * Private to src/queue/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OUTBOX_INTERNAL_H
#define FEISHU_OUTBOX_INTERNAL_H

extern void outbox_row_arguments(const Datum *values, const bool *nulls, const int *columns, int num,
								 Datum *arguments, char *flags);
extern void outbox_cancel_copied(int64 id);

/* insert.c */
extern bool insert_row(Oid relid, int num_columns, const Oid *types,
					   Datum *values, bool *nulls);

#endif							/* FEISHU_OUTBOX_INTERNAL_H */
