/*-------------------------------------------------------------------------
 *
 * src/api/batch_end.c
 *	  How many calls of one statement end.
 *
 * Whatever ends a batch, nothing of it lives on.  Its calls are in memory of their own,
 * which goes when the executor leaves the partition or ends, with an error in the
 * function, when the (sub)transaction in which it ran is aborted, and at the exit of the
 * process.  When a query is left that may be gone on with later, as by FETCH, what is
 * under way is waited for first: nobody would drive it meanwhile, and it would hold
 * places among its app's calls.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "tcop/pquery.h"
#include "utils/memutils.h"

#include "api/batch_internal.h"
#include "base/compat.h"

static dlist_head batches = DLIST_STATIC_INIT(batches);
static ExecutorRun_hook_type prev_executor_run = NULL;


/* ---------- One batch ---------- */

/* Reset callback of a batch's memory, which goes for whatever reason. */
static void
batch_on_reset(void *arg)
{
	CallBatch  *batch = arg;

	dlist_delete(&batch->node);
	batch->context = NULL;
}

/* End all that is under way; does not throw */
void
batch_give_up(CallBatch *batch)
{
	if (batch->context != NULL)
		MemoryContextDelete(batch->context);
}

/* Reset callback of the owner. */
static void
batch_on_owner(void *arg)
{
	batch_give_up(arg);
}

/* The connections that so many calls at once needed are not for what follows. */
static void
batches_end_transaction(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &batches)
		batch_give_up(dlist_container(CallBatch, node, iter.cur));
	http_loop_expect(http_loop_get(), 0);
}

static void
batches_on_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		batches_end_transaction();
}

/* A subtransaction takes with it what it began; or leaves it to its parent. */
static void
batches_on_subxact(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	dlist_mutable_iter iter;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	dlist_foreach_modify(iter, &batches)
	{
		CallBatch  *batch = dlist_container(CallBatch, node, iter.cur);

		if (batch->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			batch->subid = parent;
		else if (batch->num_under_way > 0)
			batch_give_up(batch);
		else
			batch->subid = parent;	/* a cursor that was fetched from goes on */
	}
}

/* Give a new batch its memory, and see to it that it ends */
void
batch_enlist(CallBatch *batch)
{
	static bool registered = false;
	MemoryContextCallback *callback;

	(void) http_loop_get();		/* the callbacks need one, and must not throw */
	if (!registered)
	{
		RegisterXactCallback(batches_on_xact, NULL);
		RegisterSubXactCallback(batches_on_subxact, NULL);
		registered = true;
	}
	batch->context = AllocSetContextCreate(call_memory_parent(), "feishu_flow batch",
										   ALLOCSET_DEFAULT_SIZES);
	callback = MemoryContextAlloc(batch->context, sizeof(MemoryContextCallback));
	callback->func = batch_on_reset;
	callback->arg = batch;
	dlist_push_tail(&batches, &batch->node);
	MemoryContextRegisterResetCallback(batch->context, callback);
	batch->on_owner.func = batch_on_owner;
	batch->on_owner.arg = batch;
	MemoryContextRegisterResetCallback(batch->owner, &batch->on_owner);
}


/* ---------- The executor ---------- */

/* Is a batch one of a query with this memory? */
static bool
batch_is_of_query(const CallBatch *batch, MemoryContext query)
{
	for (MemoryContext context = batch->owner; context != NULL;
		 context = MemoryContextGetParent(context))
	{
		if (context == query)
			return true;
	}
	return false;
}

/* Wait until nothing of a query is under way. */
static void
batches_settle(MemoryContext query)
{
	dlist_iter	iter;

	dlist_foreach(iter, &batches)
	{
		CallBatch  *batch = dlist_container(CallBatch, node, iter.cur);

		if (!batch_is_of_query(batch, query))
			continue;
		batch_wait_all(batch);
		batch->is_settled = true;
	}
}

/* End what of a query is under way. */
static void
batches_end_query(MemoryContext query)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &batches)
	{
		CallBatch  *batch = dlist_container(CallBatch, node, iter.cur);

		if (batch_is_of_query(batch, query))
			batch_give_up(batch);
	}
}

/*
 * A query was run for so many rows (0: for all).  Can it be gone on with?  SPI does that
 * with those of portals only.
 */
static bool
query_may_go_on(const QueryDesc *query, uint64 count)
{
	bool		is_portal = ActivePortal != NULL && ActivePortal->queryDesc == query;

	return count > 0 && query->estate->es_processed >= count &&
		(is_portal || query->dest->mydest != DestSPI);
}

/* A query was run, and is left. */
static void
batches_leave_query(const QueryDesc *query, uint64 count)
{
	if (dlist_is_empty(&batches) || query->estate == NULL)
		return;
	if (query_may_go_on(query, count))
		batches_settle(query->estate->es_query_cxt);
	else
		batches_end_query(query->estate->es_query_cxt);
}

/* ExecutorRun_hook */
static void
batch_executor_run(FEISHU_EXECUTOR_RUN_PARAMETERS)
{
	if (prev_executor_run)
		prev_executor_run(FEISHU_EXECUTOR_RUN_ARGUMENTS);
	else
		standard_ExecutorRun(FEISHU_EXECUTOR_RUN_ARGUMENTS);
	batches_leave_query(queryDesc, count);
}

/* To be called once, from _PG_init. */
void
batch_install_hooks(void)
{
	prev_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = batch_executor_run;
}
