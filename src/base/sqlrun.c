/*-------------------------------------------------------------------------
 *
 * src/base/sqlrun.c
 *	  SQL on the extension's own tables: saved plans, run as their owner.
 *
 * Plans are kept for the life of the process.  PostgreSQL plans them anew when
 * the tables change, also when the extension was dropped and created again.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/sinval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/nls.h"
#include "base/sqlrun.h"

const char *const queue_tables[QUEUE_TABLES] = {
	"outbox", "claim", "paused_server", "paused_flow", "held_lane", LAST_ID_TABLE,
	LAST_END_TABLE, "attempt"
};

/*
 * The columns of one row of a result, the row that was looked at last: to find a column
 * after ones of variable length, all before it are walked over.
 */
static struct
{
	const SPITupleTable *result;	/* whose row it is; NULL: of none */
	uint64		row;
	Datum	   *values;
	bool	   *nulls;
} apart;

/* Throw that the tables are not there. */
static void
report_not_installed(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("extension \"%s\" is not installed in this database", "feishu_flow"),
			 errhint("CREATE EXTENSION feishu_flow.")));
}

/* Has a table of ours a trigger that the extension did not make? */
bool
sql_has_triggers(Relation table)
{
	TriggerDesc *triggers = table->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (get_func_namespace(triggers->triggers[i].tgfoid) != RelationGetNamespace(table))
			return true;
	}
	return false;
}

/* A table of ours, or InvalidOid. */
Oid
sql_find_table(const char *name)
{
	Oid			schema = get_namespace_oid(QUEUE_SCHEMA, true);

	return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
}

/* The queue's table and that of its last id.  Throws 42704 without them. */
void
sql_find_outbox(Oid *outbox, Oid *last_id)
{
	Oid			schema = get_namespace_oid(QUEUE_SCHEMA, true);

	if (!OidIsValid(schema))
		report_not_installed();
	*outbox = get_relname_relid("outbox", schema);
	*last_id = get_relname_relid(LAST_ID_TABLE, schema);
	if (!OidIsValid(*outbox) || !OidIsValid(*last_id))
		report_not_installed();
}

/*
 * Lock and find the table of a number that is to be drawn (flow_id.c).
 *
 * A DROP EXTENSION may be under way: that is waited for, and then the table is looked
 * for again, as the lock was waited for if anything has changed.
 */
Oid
sql_lock_number(const char *name)
{
	uint64		messages;
	Oid			found = InvalidOid;

	for (;;)
	{
		Oid			table;

		messages = SharedInvalidMessageCounter;
		table = sql_find_table(name);
		if (!OidIsValid(table))
			report_not_installed();
		if (table == found)
			return table;
		if (OidIsValid(found))
			UnlockRelationOid(found, RowExclusiveLock);
		found = table;
		LockRelationOid(found, RowExclusiveLock);
		if (messages == SharedInvalidMessageCounter)
			return found;
	}
}

/* sql_find_outbox; the table of the last id is locked then, until the end of the transaction. */
void
sql_lock_outbox(Oid *outbox, Oid *last_id)
{
	*last_id = sql_lock_number(LAST_ID_TABLE);
	*outbox = sql_find_table("outbox");
	if (!OidIsValid(*outbox))
		report_not_installed();
}

/*
 * Throw 25006 unless the transaction may write, as PostgreSQL does it; command is
 * what cannot be executed then.
 */
void
sql_check_writable(const char *command)
{
	if (!XactReadOnly)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
			 errmsg("cannot execute %s in a read-only transaction", command),
			 RecoveryInProgress() ?
			 errhint("This server is a standby: the queue is written to on the primary. feishu.execute_flow works here, too.") :
			 errhint("Begin the transaction with READ WRITE, or set default_transaction_read_only to off. feishu.execute_flow works in a read-only transaction, too.")));
}

/* The owner of the tables. */
static Oid
find_owner(void)
{
	Oid			outbox;
	Oid			last_id;
	HeapTuple	tuple;
	Oid			owner;

	sql_find_outbox(&outbox, &last_id);
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(outbox));
	if (!HeapTupleIsValid(tuple))
		report_not_installed();
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * From here to sql_end_as_owner, SPI is connected and the current user is the owner of the
 * tables, in a security-restricted context.  An error in between needs no
 * care: the transaction's abort undoes both.  They nest: a trigger on our
 * tables may call our functions, and each has to find back to its own caller.
 */
void
sql_begin_as_owner(SqlCaller *caller)
{
	Oid			owner = find_owner();

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	GetUserIdAndSecContext(&caller->userid, &caller->sec_context);
	SetUserIdAndSecContext(owner, caller->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

void
sql_end_as_owner(const SqlCaller *caller)
{
	SetUserIdAndSecContext(caller->userid, caller->sec_context);
	SPI_finish();
}

/*
 * Run a statement; returns the number of rows.  Throws unless its result is
 * the expected SPI_OK_*.  The result of the statement before is gone.  With a snapshot it sees that
 * one, and what this transaction did.
 * nulls as for SPI_execute_plan.
 */
uint64
sql_run(SqlStatement *statement, Datum *values, const char *nulls,
		int expected, Snapshot snapshot)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare_cursor(statement->text, statement->num_arguments,
											  statement->types, statement->options);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", statement->text,
				 SPI_result_code_string(SPI_result));
		statement->plan = plan;
	}
	/* the former result would stay until SPI_finish; the next may have its address */
	apart.result = NULL;
	SPI_freetuptable(SPI_tuptable);
	SPI_tuptable = NULL;
	if (snapshot != NULL)
		result = SPI_execute_snapshot(statement->plan, values, nulls, snapshot,
									  InvalidSnapshot, false, false, 0);
	else
		result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result != expected)
		elog(ERROR, "\"%s\" gave %s", statement->text, SPI_result_code_string(result));
	return SPI_processed;
}

/* The columns of a row of the last result, in memory that goes with the result. */
static void
take_row_apart(uint64 row)
{
	if (apart.result != SPI_tuptable)
	{
		int			num = SPI_tuptable->tupdesc->natts;

		apart.result = NULL;
		apart.values = MemoryContextAlloc(SPI_tuptable->tuptabcxt, num * sizeof(Datum));
		apart.nulls = MemoryContextAlloc(SPI_tuptable->tuptabcxt, num * sizeof(bool));
		apart.result = SPI_tuptable;
	}
	heap_deform_tuple(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, apart.values, apart.nulls);
	apart.row = row;
}

/* sql_run by itself, as the owner: no more than the number of rows is left of the result. */
uint64
sql_run_as_owner(SqlStatement *statement, Datum *values, const char *nulls,
				 int expected, Snapshot snapshot)
{
	SqlCaller	caller;
	uint64		num;

	sql_begin_as_owner(&caller);
	num = sql_run(statement, values, nulls, expected, snapshot);
	sql_end_as_owner(&caller);
	return num;
}

/* Column (from 1) of a row (from 0) of the last result. */
Datum
sql_value(uint64 row, int column, bool *is_null)
{
	Assert(row < SPI_tuptable->numvals && column >= 1 && column <= SPI_tuptable->tupdesc->natts);
	if (apart.result != SPI_tuptable || apart.row != row)
		take_row_apart(row);
	if (is_null != NULL)
		*is_null = apart.nulls[column - 1];
	else if (apart.nulls[column - 1])
		elog(ERROR, "unexpected null in column %d", column);
	return apart.values[column - 1];
}

int64
sql_int64(uint64 row, int column)
{
	return DatumGetInt64(sql_value(row, column, NULL));
}
