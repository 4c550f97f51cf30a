/*-------------------------------------------------------------------------
 *
 * src/queue/flow_id.c
 *	  Ids of flows: draw the next one, look at the last.
 *
 * A sequence would do, but for two things: who draws from it changes what
 * lastval() says, by which people learn the id of a row of theirs; and a member
 * of pg_write_all_data may set it back.  So the last id is the one column of
 * the one row of a table, and to draw is to raise it where it stands, outside
 * of transactions, as nextval() does with the row of a sequence.
 *
 * Each draw is logged before its page can be written, and before the row that
 * has the id is.  So a flow that is committed has its id logged, and after a
 * crash, a failover or a recovery ids go on above it.  What a crash takes back
 * is ids that no committed flow has: no xid is assigned here for the sake of an
 * id alone.
 *
 * No snapshot is asked which version of the row is the live one.  All that are
 * on the page are raised, above the highest of them.  So an UPDATE by hand can
 * raise the ids, at once, and not lower them; and a draw works in the
 * transaction that has created the extension.  What rewrites or vacuums the
 * table finds the number right in whatever it keeps: it copies rows when nobody
 * draws (a draw locks the table until the end of the transaction), and freezing
 * and pruning leave a row's values alone, under the page's lock.
 *
 * That lock on the table also tells the dispatcher who may have ids whose rows
 * are still to appear (sweep.c).  A savepoint that is rolled back releases it,
 * if it has taken it, with the rows.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/nls.h"
#include "queue/flow_id.h"

PG_FUNCTION_INFO_V1(feishu_leave_out_row);

/* The page that has the row. */
#define ID_BLOCK	0


/* The id in a row, or in what is left of one; NULL if there is none. */
static int64 *
page_id(Page page, OffsetNumber offset)
{
	ItemId		item = PageGetItemId(page, offset);
	HeapTupleHeader tuple;

	if (!ItemIdIsNormal(item))
		return NULL;
	tuple = (HeapTupleHeader) PageGetItem(page, item);
	if ((tuple->t_infomask & HEAP_HASNULL) != 0 ||
		ItemIdGetLength(item) < tuple->t_hoff + sizeof(int64))
		return NULL;
	return (int64 *) ((char *) tuple + tuple->t_hoff);
}

/* The highest id on a page; false if there is none. */
static bool
page_last_id(Page page, int64 *last)
{
	OffsetNumber max_offset = PageGetMaxOffsetNumber(page);
	bool		found = false;

	for (OffsetNumber offset = FirstOffsetNumber; offset <= max_offset; offset++)
	{
		int64	   *id = page_id(page, offset);

		if (id != NULL && (!found || *id > *last))
		{
			*last = *id;
			found = true;
		}
	}
	return found;
}

/* Throw that no id can be drawn, and why. */
static void
report_no_id(Relation table, const char *problem)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
												  RelationGetRelationName(table));

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not assign an id to a flow"),
			 errdetail_internal("%s", _(problem)),
			 errhint("Let a superuser set the id after which to continue: TRUNCATE %s; INSERT INTO %s VALUES (...).",
					 name, name)));
}

/* Pin and lock the page; InvalidBuffer if there is none. */
static Buffer
lock_page(Relation table, int mode)
{
	TupleDesc	tupdesc = RelationGetDescr(table);
	Buffer		buffer;

	if (table->rd_tableam != GetHeapamTableAmRoutine() || tupdesc->natts != 1 ||
		TupleDescAttr(tupdesc, 0)->atttypid != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not assign an id to a flow"),
				 errdetail("Table \"%s\" was altered.", RelationGetRelationName(table))));
	if (RelationGetNumberOfBlocks(table) <= ID_BLOCK)
		return InvalidBuffer;
	buffer = ReadBuffer(table, ID_BLOCK);
	LockBuffer(buffer, mode);
	return buffer;
}

/*
 * Draw the next id.  The table is locked, see sql_lock_number, and stays so until the end
 * of the transaction.
 */
int64
flow_id_draw(Oid relid)
{
	Relation	table = table_open(relid, NoLock);
	Buffer		buffer = lock_page(table, BUFFER_LOCK_EXCLUSIVE);
	GenericXLogState *state;
	Page		page;
	int64		id = 0;
	const char *problem = NULL;

	if (!BufferIsValid(buffer) || !page_last_id(BufferGetPage(buffer), &id))
		problem = gettext_noop("The row with the last id was deleted.");
	else if (id == PG_INT64_MAX)
		problem = gettext_noop("The last id is the highest possible one.");
	if (problem != NULL)
	{
		if (BufferIsValid(buffer))
			UnlockReleaseBuffer(buffer);
		report_no_id(table, problem);
	}
	id++;

	state = GenericXLogStart(table);
	page = GenericXLogRegisterBuffer(state, buffer, 0);
	for (OffsetNumber offset = FirstOffsetNumber; offset <= PageGetMaxOffsetNumber(page); offset++)
	{
		int64	   *place = page_id(page, offset);

		if (place != NULL)
			*place = id;
	}
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
	table_close(table, NoLock);
	return id;
}

/*
 * The last id drawn; 0 when none was, and when the row was deleted: what has
 * been queued is sent all the same.
 */
int64
flow_id_last(Oid relid)
{
	Relation	table = table_open(relid, AccessShareLock);
	Buffer		buffer = lock_page(table, BUFFER_LOCK_SHARE);
	int64		id = 0;

	if (BufferIsValid(buffer))
	{
		(void) page_last_id(BufferGetPage(buffer), &id);
		UnlockReleaseBuffer(buffer);
	}
	table_close(table, AccessShareLock);
	return id;
}

/*
 * The trigger of the table: leave a row out.  It fires for what logical
 * replication brings, which has its publisher's last id: each server draws its
 * own.
 */
Datum
feishu_leave_out_row(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "not called as a trigger");
	return PointerGetDatum(NULL);
}
