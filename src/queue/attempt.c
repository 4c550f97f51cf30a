/*-------------------------------------------------------------------------
 *
 * src/queue/attempt.c
 *	  Attempts of flows that went wrong: feishu_internal.attempt.
 *
 * A row is written by the transaction that writes the flow's, after it, so that this
 * one's lock keeps others away.  The column failures of the outbox is the number of the
 * last one.  It is null while nothing went wrong: then nothing has to be deleted here
 * when the flow is.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/rel.h"

#include "queue/attempt.h"
#include "queue/outbox.h"

PG_FUNCTION_INFO_V1(feishu_forget_attempts);

/* So many are kept of a flow: one that is tried for days does not fill the disk. */
#define ATTEMPTS_KEPT		100


/*
 * Of the flows of the last result, delete what is too many.  One by one: of a join, the
 * planner may think that it had better read the whole table.
 */
static void
trim(uint64 num)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu_internal.attempt WHERE flow OPERATOR(pg_catalog.=) $1"
		" AND attempt OPERATOR(pg_catalog.<=) $2",
		2, INT8OID, INT4OID);
	Datum	   *flows = palloc(Max(num, 1) * sizeof(Datum));
	int		   *numbers = palloc(Max(num, 1) * sizeof(int));
	int			num_long = 0;

	for (uint64 row = 0; row < num; row++)
	{
		int			number = DatumGetInt32(sql_value(row, 2, NULL));

		if (number <= ATTEMPTS_KEPT)
			continue;
		flows[num_long] = Int64GetDatum(sql_int64(row, 1));
		numbers[num_long++] = number;
	}
	for (int i = 0; i < num_long; i++)
	{
		Datum		values[2] = {flows[i], Int32GetDatum(numbers[i] - ATTEMPTS_KEPT)};

		sql_run(&statement, values, NULL, SPI_OK_DELETE, NULL);
	}
	pfree(flows);
	pfree(numbers);
}

/*
 * Run a statement that inserts attempts, and returns their flows and numbers; what is
 * too many of a flow goes.
 */
void
attempt_insert(SqlStatement *statement, Datum *values, const char *nulls)
{
	trim(sql_run(statement, values, nulls, SPI_OK_INSERT_RETURNING, NULL));
}

/*
 * Before a flow, whose row is locked, is given other params or another operator: keep
 * those that it has.
 *
 * The last attempt carried them, unless an attempt before was given others since: then,
 * or if there was none, the flow ended without one, and that gets a row of its own.
 */
void
attempt_keep_request(int64 flow)
{
	static SqlStatement last = SQL_STATEMENT(
		"UPDATE feishu_internal.attempt a SET repaired_at = pg_catalog.clock_timestamp(),"
		" params = o.params, operator = o.operator FROM feishu_internal.outbox o"
		" WHERE o.id OPERATOR(pg_catalog.=) $1 AND a.flow OPERATOR(pg_catalog.=) $1"
		" AND a.attempt OPERATOR(pg_catalog.=) o.failures AND a.repaired_at IS NULL",
		1, INT8OID);
	static SqlStatement none = SQL_STATEMENT(
		"INSERT INTO feishu_internal.attempt (flow, attempt, sqlstate, code, flow_code, log_id,"
		" error, hint, repaired_at, params, operator)"
		" SELECT id, " ATTEMPT_NEXT("") ", sqlstate, code, flow_code, log_id, error, hint,"
		" pg_catalog.clock_timestamp(), params, operator FROM feishu_internal.outbox"
		" WHERE id OPERATOR(pg_catalog.=) $1 RETURNING flow, attempt",
		1, INT8OID);
	static SqlStatement count = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET failures = " ATTEMPT_NEXT("")
		" WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(flow)};

	if (sql_run(&last, values, NULL, SPI_OK_UPDATE, NULL) > 0)
		return;
	attempt_insert(&none, values, NULL);
	sql_run(&count, values, NULL, SPI_OK_UPDATE, NULL);
}

/* After a row of the outbox was deleted that had attempts, or all were: they go, too. */
Datum
feishu_forget_attempts(PG_FUNCTION_ARGS)
{
	static SqlStatement of_flow = SQL_STATEMENT(
		"DELETE FROM feishu_internal.attempt WHERE flow OPERATOR(pg_catalog.=) $1", 1, INT8OID);
	static SqlStatement all = SQL_STATEMENT(
		"DELETE FROM feishu_internal.attempt", 0, InvalidOid);
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		RelationGetRelid(data->tg_relation) != sql_find_table("outbox"))
		elog(ERROR, "not called as a trigger of the outbox");
	if (TRIGGER_FIRED_FOR_ROW(data->tg_event))
	{
		bool		is_null;
		Datum		values[1] = {
			heap_getattr(data->tg_trigtuple, OUTBOX_ID + 1, RelationGetDescr(data->tg_relation), &is_null)
		};

		sql_run_as_owner(&of_flow, values, NULL, SPI_OK_DELETE, NULL);
	}
	else
		sql_run_as_owner(&all, NULL, NULL, SPI_OK_DELETE, NULL);
	return PointerGetDatum(NULL);
}
