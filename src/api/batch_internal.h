/*-------------------------------------------------------------------------
 *
 * src/api/batch_internal.h
 *	  Many calls of one statement, for batch.c and batch_end.c and no other file.
 *
 * Private to src/api/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_BATCH_INTERNAL_H
#define FEISHU_BATCH_INTERNAL_H

#include "lib/ilist.h"
#include "portability/instr_time.h"

#include "api/batch.h"
#include "api/execute.h"

/* An app that a batch calls. */
typedef struct BatchApp
{
	dlist_node	node;
	AppKey		key;
	Oid			userid;
	int			under_way;
	int			troubles;		/* calls in a row without an answer */
	bool		given_up;		/* its other calls are not made */
} BatchApp;

typedef struct BatchRow
{
	CallWaiter	waiter;			/* must be first: owner of the call */
	dlist_node	node;			/* in rows of the batch */
	dlist_node	flying;			/* in under_way, while there is a call */
	MemoryContext context;		/* arguments and call; NULL when it is done */
	ExecuteArguments arguments;
	BatchApp   *app;
	FlowCall   *call;
	TimestampTz deadline;		/* of the call */
	instr_time	begun_at;
	HeapTupleHeader result;		/* when it is done */
} BatchRow;

struct CallBatch
{
	dlist_node	node;			/* in batches, while there is a context */
	MemoryContext owner;
	MemoryContext context;		/* of rows and calls; NULL: they were given up */
	TupleDesc	columns;
	SubTransactionId subid;		/* in which it ran last */
	dlist_head	apps;
	dlist_head	rows;			/* that were read and not returned yet */
	int			num_rows;
	BatchRow   *unbegun;		/* the last of them, if it was read only; or NULL */
	BatchRow   *begun;			/* whose call began last, while it is under way */
	dlist_head	under_way;
	int			num_under_way;
	int64		ahead_bytes;	/* of results */
	bool		at_end;			/* all rows are read */
	bool		is_settled;		/* nothing begins until what is there was returned */
	TimestampTz looked_at;
	MemoryContextCallback on_owner;
};

/* batch.c */
extern void batch_wait_all(CallBatch *batch);

/* batch_end.c */
extern void batch_enlist(CallBatch *batch);
extern void batch_give_up(CallBatch *batch);

#endif							/* FEISHU_BATCH_INTERNAL_H */
