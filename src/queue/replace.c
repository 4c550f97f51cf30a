/*-------------------------------------------------------------------------
 *
 * src/queue/replace.c
 *	  Of flows with one replace_key, the last one wins: replace the one that waits.
 *
 * A row with a replace_key is replaceable until the dispatcher claims it for the first
 * time: in the transaction that claims it, which has the row locked, the dispatcher
 * unsets that (claim.c).  A unique index has the replaceable rows that wait, so
 * there is one of a key at most, and who queues a key waits for whoever queues,
 * replaces, cancels or claims it.
 *
 * A row that is under way must not be locked here until the end of a transaction: the
 * dispatcher writes its end, and would wait.  An UPDATE that finds that a row has
 * changed locks its last version before it looks whether that is still meant.  So
 * the version that was found is locked first, as it is or not at all; if it is
 * not the last one any more, the key is looked for again.
 *
 * The row gets a new idempotent key with its new values: the claim of a row may be lost
 * in a crash, and then the platform may know the key that it had.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "queue/notify.h"
#include "queue/origin.h"
#include "queue/outbox_internal.h"
#include "queue/replace.h"

/* The row that waits with a key. */
typedef struct WaitingRow
{
	int64		id;
	ItemPointerData version;
	Datum		system_identifier;
	Datum		database;
} WaitingRow;


/* Find it, as a snapshot has it; false: there is none. */
static bool
find_waiting(const QueuedFlow *flow, Snapshot snapshot, WaitingRow *row)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT id, ctid, system_identifier, database FROM feishu_internal.outbox"
		" WHERE server OPERATOR(pg_catalog.=) $1 AND roleid OPERATOR(pg_catalog.=) $2"
		" AND replace_key OPERATOR(pg_catalog.=) $3 AND " REPLACE_WAITS,
		3, TEXTOID, OIDOID, TEXTOID);
	Datum		values[3] = {
		CStringGetTextDatum(flow->server),
		ObjectIdGetDatum(flow->roleid),
		CStringGetTextDatum(flow->replace_key)
	};
	SqlCaller	caller;
	bool		found;

	sql_begin_as_owner(&caller);
	found = sql_run(&statement, values, NULL, SPI_OK_SELECT, snapshot) > 0;
	if (found)
	{
		row->id = sql_int64(0, 1);
		row->version = *(ItemPointer) DatumGetPointer(sql_value(0, 2, NULL));
		row->system_identifier = sql_value(0, 3, NULL);
		row->database = sql_value(0, 4, NULL);
	}
	sql_end_as_owner(&caller);
	return found;
}

/*
 * Lock this version of a row until the end of the transaction, when whoever changes it
 * has ended; false, and nothing is locked, if another is the last one then.  The
 * snapshot, which sees it, keeps its place from being taken by another row.
 */
static bool
lock_version(Oid outbox, ItemPointer version, Snapshot snapshot)
{
	Relation	table = table_open(outbox, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(table, version, snapshot, slot, GetCurrentCommandId(false),
							  LockTupleNoKeyExclusive, LockWaitBlock, 0, &failure);
	ExecDropSingleTupleTableSlot(slot);
	table_close(table, NoLock);
	return result == TM_Ok;
}

/* Write the values over a row that is locked. */
static void
write_over(int64 id, const Datum *values, const bool *nulls)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET database = $2, system_identifier = $3, max_attempts = $4,"
		" server_owner = $5, is_async = $6, run_at = $7, next_at = $8, expires_at = $9, namespace = $10,"
		" flow_id = $11, operator = $12, params = $13, idempotent_key = $14, loop_masks = $15,"
		" ordering_key = $16, on_end = $17, priority = $18,"
		" code = NULL, execution_id = NULL, flow_status = NULL, flow_code = NULL,"
		" log_id = NULL, sqlstate = NULL, error = NULL, report = NULL, hint = NULL, response = NULL"
		" WHERE id OPERATOR(pg_catalog.=) $1",
		18, INT8OID, OIDOID, INT8OID, INT4OID, OIDOID, BOOLOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID,
		INT2OID);
	/* all but those of the key and the place */
	static const int columns[] = {
		OUTBOX_DATABASE, OUTBOX_SYSTEM_IDENTIFIER, OUTBOX_MAX_ATTEMPTS,
		OUTBOX_SERVER_OWNER, OUTBOX_IS_ASYNC, OUTBOX_RUN_AT, OUTBOX_NEXT_AT, OUTBOX_EXPIRES_AT, OUTBOX_NAMESPACE,
		OUTBOX_FLOW_ID, OUTBOX_OPERATOR, OUTBOX_PARAMS, OUTBOX_IDEMPOTENT_KEY, OUTBOX_LOOP_MASKS,
		OUTBOX_ORDERING_KEY, OUTBOX_ON_END, OUTBOX_PRIORITY
	};
	Datum		arguments[1 + lengthof(columns)];
	char		flags[1 + lengthof(columns)];
	SqlCaller	caller;
	uint64		written;

	arguments[0] = Int64GetDatum(id);
	flags[0] = ' ';
	outbox_row_arguments(values, nulls, columns, lengthof(columns), arguments + 1, flags + 1);
	sql_begin_as_owner(&caller);
	written = sql_run(&statement, arguments, flags, SPI_OK_UPDATE, NULL);
	sql_end_as_owner(&caller);
	/* the transaction's snapshot is older than the row */
	if (written == 0 && IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
}

/*
 * Whoever is asked for a flow of another database, which its dispatcher has not looked
 * at yet, cancels it, as that will: see origin.c.  If the transaction does not see it, the
 * caller's insert is told.
 */
int64
replace_waiting(const QueuedFlow *flow, Oid outbox, const Datum *values, const bool *nulls)
{
	for (;;)
	{
		Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
		WaitingRow	row;
		bool		found = find_waiting(flow, snapshot, &row);
		bool		locked = false;

		if (found)
		{
			/* while it is locked, the dispatcher passes it over */
			notify_locked_row(row.id);
			locked = lock_version(outbox, &row.version, snapshot);
		}
		UnregisterSnapshot(snapshot);
		if (!found)
			return 0;
		if (locked && origin_may_be_ours(row.system_identifier, row.database))
		{
			write_over(row.id, values, nulls);
			return row.id;
		}
		if (locked)
		{
			SqlCaller	caller;

			sql_begin_as_owner(&caller);
			outbox_cancel_copied(row.id);
			sql_end_as_owner(&caller);
			return 0;
		}
		CHECK_FOR_INTERRUPTS();
	}
}
