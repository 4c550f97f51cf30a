/*-------------------------------------------------------------------------
 *
 * src/queue/insert.c
 *	  Insert one row into a table at the cost of the row.
 *
 * An INSERT of one row through SPI spends twice as much on starting and ending
 * the executor as on the row, and an enqueue may come from a trigger for each
 * row of a large statement.  So what does not change from row to row is kept
 * for the life of the backend: which indexes there are, and their prepared
 * predicates.  A relcache callback throws it away when the table or one of its
 * indexes changes.
 *
 * Nothing kept refers to a relcache entry: the table and its indexes are
 * opened and closed for each row, which costs little when they are at hand.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/sqlrun.h"
#include "queue/outbox_internal.h"

/* The tables we insert into have few indexes. */
#define INSERT_MAX_INDEXES	16

/* What is kept of the table inserted into last. */
typedef struct InsertPlan
{
	Oid			relid;			/* InvalidOid: nothing is kept */
	bool		complete;		/* false: an error came while it was made */
	bool		usable;			/* false: leave it to the executor */
	int			num_indexes;
	Oid			indexes[INSERT_MAX_INDEXES];
	IndexInfo  *infos[INSERT_MAX_INDEXES];
	EState	   *estate;			/* for predicates */
	TupleTableSlot *slot;
} InsertPlan;

static InsertPlan plan;
static MemoryContext plan_context = NULL;
static bool plan_is_stale = true;

/* Relcache callback: InvalidOid means everything. */
static void
insert_on_change(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == plan.relid)
		plan_is_stale = true;
	for (int i = 0; i < plan.num_indexes; i++)
	{
		if (plan.indexes[i] == relid)
			plan_is_stale = true;
	}
}

/*
 * Can we do all that the executor would do?  Row security does not hold for the
 * owner, in whose name we insert, unless it is forced.
 */
static bool
is_plain_table(Relation table)
{
	TupleConstr *constraints = table->rd_att->constr;

	return table->rd_rel->relkind == RELKIND_RELATION &&
		table->rd_rel->relam == HEAP_TABLE_AM_OID &&
		!table->rd_rel->relispartition &&
		!sql_has_triggers(table) && table->rd_rules == NULL &&
		!table->rd_rel->relforcerowsecurity &&
		(constraints == NULL ||
		 (constraints->num_check == 0 && !constraints->has_generated_stored));
}

/* Does it have these columns, and no others? */
static bool
has_columns(Relation table, int num_columns, const Oid *types)
{
	TupleDesc	tupdesc = RelationGetDescr(table);

	if (tupdesc->natts != num_columns)
		return false;
	for (int i = 0; i < num_columns; i++)
	{
		/* one that was dropped has none */
		if (TupleDescAttr(tupdesc, i)->atttypid != types[i])
			return false;
	}
	return true;
}

/* Prepare for inserting into a table. */
static void
make_plan(Relation table, int num_columns, const Oid *types)
{
	MemoryContext old_context;
	List	   *index_list;
	ListCell   *cell;

	if (plan_context == NULL)
	{
		plan_context = AllocSetContextCreate(TopMemoryContext, "feishu_flow insert",
											 ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(insert_on_change, (Datum) 0);
	}
	memset(&plan, 0, sizeof(plan));
	plan_is_stale = false;
	MemoryContextReset(plan_context);
	old_context = MemoryContextSwitchTo(plan_context);

	plan.relid = RelationGetRelid(table);
	index_list = RelationGetIndexList(table);
	plan.usable = is_plain_table(table) && has_columns(table, num_columns, types) &&
		list_length(index_list) <= INSERT_MAX_INDEXES;
	plan.estate = CreateExecutorState();
	plan.slot = MakeSingleTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(table)),
										 &TTSOpsHeapTuple);
	foreach(cell, index_list)
	{
		Relation	index;
		IndexInfo  *info;

		if (!plan.usable)
			break;
		index = index_open(lfirst_oid(cell), RowExclusiveLock);
		info = BuildIndexInfo(index);

		/*
		 * Expressions, exclusion and deferred checks are the executor's; so are
		 * other kinds of index, which may keep things from row to row that do not
		 * outlive a statement.
		 */
		if (index->rd_rel->relam != BTREE_AM_OID || info->ii_Expressions != NIL || info->ii_ExclusionOps != NULL ||
			!index->rd_index->indimmediate || !info->ii_ReadyForInserts)
			plan.usable = false;
		if (info->ii_Predicate != NIL)
		{
			MemoryContext in_estate = MemoryContextSwitchTo(plan.estate->es_query_cxt);

			info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, plan.estate);
			MemoryContextSwitchTo(in_estate);
		}
		plan.indexes[plan.num_indexes] = lfirst_oid(cell);
		plan.infos[plan.num_indexes++] = info;
		index_close(index, NoLock);
	}
	plan.complete = true;
	MemoryContextSwitchTo(old_context);
}

/*
 * Insert a row of all columns, which have these types, into the table and its
 * indexes, as INSERT would.  Returns false, having done nothing, when the table
 * is another one than the caller thinks, or has something that only the
 * executor does right (triggers, check constraints, row security, ...): then use
 * SQL.  The caller has checked rights and NOT NULL.
 */
bool
insert_row(Oid relid, int num_columns, const Oid *types, Datum *values, bool *nulls)
{
	Relation	table = table_open(relid, RowExclusiveLock);
	ExprContext *econtext;
	HeapTuple	tuple;

	if (plan_is_stale || !plan.complete || plan.relid != relid)
	{
		make_plan(table, num_columns, types);
		/* what came in the meantime is for the next row to see to */
	}
	if (!plan.usable)
	{
		table_close(table, NoLock);
		return false;
	}

	tuple = heap_form_tuple(RelationGetDescr(table), values, nulls);
	heap_insert(table, tuple, GetCurrentCommandId(true), 0, NULL);

	econtext = GetPerTupleExprContext(plan.estate);
	ResetExprContext(econtext);
	ExecStoreHeapTuple(tuple, plan.slot, false);
	econtext->ecxt_scantuple = plan.slot;
	for (int i = 0; i < plan.num_indexes; i++)
	{
		IndexInfo  *info = plan.infos[i];
		Datum		index_values[INDEX_MAX_KEYS];
		bool		index_nulls[INDEX_MAX_KEYS];
		Relation	index;

		if (info->ii_PredicateState != NULL && !ExecQual(info->ii_PredicateState, econtext))
			continue;
		index = index_open(plan.indexes[i], RowExclusiveLock);
		FormIndexDatum(info, plan.slot, plan.estate, index_values, index_nulls);
		index_insert(index, index_values, index_nulls, &tuple->t_self, table,
					 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
		index_close(index, NoLock);
	}
	ExecClearTuple(plan.slot);
	ResetExprContext(econtext);
	heap_freetuple(tuple);
	table_close(table, NoLock);
	/* what follows in this statement sees the row, as after an INSERT by SPI */
	CommandCounterIncrement();
	return true;
}
