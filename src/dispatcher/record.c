/*-------------------------------------------------------------------------
 *
 * src/dispatcher/record.c
 *	  The dispatcher's writing: what became of flights, and of rows that cannot be
 *	  read.
 *
 * The ends of many flights are written by one UPDATE.  Those of flows that
 * others of their ordering key wait for also say who is next.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/lane.h"
#include "dispatcher/ordering.h"
#include "queue/attempt.h"
#include "queue/notify.h"
#include "queue/on_end.h"

/* Answers written by one statement, if they are several: it takes their size a few
 * times. */
#define RECORD_BYTES		(1024 * 1024)

/* All at once failed: the next ones are written one by one. */
static bool one_by_one = false;

/* Columns of an end, as WRITE_ENDS has them. */
enum
{
	END_ID, END_STATE, END_ATTEMPTS, END_UNANSWERED, END_AT, END_CODE, END_EXECUTION_ID,
	END_FLOW_STATUS, END_FLOW_CODE, END_LOG_ID, END_SQLSTATE, END_ERROR, END_REPORT, END_HINT,
	END_RESPONSE, END_WENT_WRONG,
	END_COLUMNS
};

/* The values of one end. */
typedef struct EndRow
{
	Datum		values[END_COLUMNS];
	bool		nulls[END_COLUMNS];
} EndRow;

static void
set_value(EndRow *row, int column, Datum value, bool is_null)
{
	row->values[column] = value;
	row->nulls[column] = is_null;
}

static void
set_text(EndRow *row, int column, const char *text)
{
	set_value(row, column, text ? CStringGetTextDatum(text) : (Datum) 0, text == NULL);
}

static void
fill_row(EndRow *row, const Flight *flight, TimestampTz now)
{
	const FlightEnd *end = &flight->end;
	const FlowResponse *response = end->response;
	TimestampTz at = end->state != OUTBOX_QUEUED ? now : end->next_at;
	bool		has_code = response != NULL && response->has_code;
	bool		has_body = response != NULL && response->body != NULL;

	set_value(row, END_ID, Int64GetDatum(flight->id), false);
	set_value(row, END_STATE, CharGetDatum(end->state), false);
	set_value(row, END_ATTEMPTS, Int32GetDatum(end->attempts), false);
	set_value(row, END_UNANSWERED, BoolGetDatum(end->unanswered), false);
	set_value(row, END_AT, TimestampTzGetDatum(at), at == 0);
	set_value(row, END_CODE, Int64GetDatum(has_code ? response->code : 0), !has_code);
	set_text(row, END_EXECUTION_ID, response ? response->execution_id : NULL);
	set_text(row, END_FLOW_STATUS, response ? response->status : NULL);
	set_text(row, END_FLOW_CODE, response ? response->inner_code : NULL);
	set_text(row, END_LOG_ID, end->log_id);
	set_text(row, END_SQLSTATE, end->sqlstate ? unpack_sql_state(end->sqlstate) : NULL);
	set_text(row, END_ERROR, end->error);
	set_text(row, END_REPORT, end->report);
	set_text(row, END_HINT, end->hint);
	set_value(row, END_RESPONSE, has_body ? JsonbPGetDatum(response->body) : (Datum) 0, !has_body);
	set_value(row, END_WENT_WRONG, BoolGetDatum(end->went_wrong), false);
}

/* One column of all ends, as an array. */
static Datum
column_array(const EndRow *rows, int num, int column, Oid type)
{
	Datum	   *values = palloc(num * sizeof(Datum));
	bool	   *nulls = palloc(num * sizeof(bool));

	for (int i = 0; i < num; i++)
	{
		values[i] = rows[i].values[column];
		nulls[i] = rows[i].nulls[column];
	}
	return array_of_nullable(values, nulls, num, type);
}

/* Who is next in the ordering keys of flights that have ended. */
static void
find_successors(Flight **flights, int num)
{
	OrderingKey *keys = palloc(Max(num, 1) * sizeof(OrderingKey));
	int			num_keys = 0;

	for (int i = 0; i < num; i++)
	{
		const Flight *flight = flights[i];

		if (flight->ordering_key != NULL && !flight->is_behind && flight->recorded)
			keys[num_keys++] = (OrderingKey) {
				flight->lane->key.server, flight->lane->key.roleid, flight->ordering_key, flight->id
			};
	}
	ordering_find_successors(keys, num_keys);
}

#define WRITE_ENDS(ends) \
	"UPDATE feishu_internal.outbox o SET state = e.state, attempts = e.attempts," \
	" unanswered = e.unanswered," \
	" next_at = CASE WHEN e.state = 'q' THEN e.at END," \
	" finished_at = CASE WHEN e.state <> 'q' THEN e.at END," \
	" " HANDLER_ON_END_IF("e.state <> 'q'", "o.") "," \
	" code = e.code, execution_id = e.execution_id, flow_status = e.flow_status," \
	" flow_code = e.flow_code, log_id = e.log_id, sqlstate = e.sqlstate," \
	" error = e.error, report = e.report, hint = e.hint, response = e.response," \
	" failures = CASE WHEN e.went_wrong THEN " ATTEMPT_NEXT("o.") " ELSE o.failures END" \
	" FROM " ends \
	" AS e (id, state, attempts, unanswered, at, code, execution_id, flow_status," \
	" flow_code, log_id, sqlstate, error, report, hint, response, went_wrong)" \
	" WHERE o.id = e.id AND o.state = 'q'"

/*
 * Write the ends of flights by one statement; returns how many rows it changed.  One
 * alone may have a large answer, of which an array would have PostgreSQL make copies: in
 * it, in each step of the plan, and for the row that is to be looked at again should
 * another transaction have changed it.
 */
static uint64
write_ends(Flight **flights, int num)
{
	static SqlStatement many = SQL_STATEMENT(
		WRITE_ENDS("unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"),
		END_COLUMNS, INT8ARRAYOID, CHARARRAYOID, INT4ARRAYOID, BOOLARRAYOID,
		TIMESTAMPTZARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, JSONBARRAYOID,
		BOOLARRAYOID);
	static SqlStatement one = SQL_STATEMENT_PLANNED_ONCE(
		WRITE_ENDS("(VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16))"),
		END_COLUMNS, INT8OID, CHAROID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, BOOLOID);
	Datum		values[END_COLUMNS];
	char		nulls[END_COLUMNS];
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow ends",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	EndRow	   *rows = palloc(num * sizeof(EndRow));
	uint64		written;

	for (int i = 0; i < num; i++)
	{
		fill_row(&rows[i], flights[i], now);
		if (flights[i]->end.state != OUTBOX_QUEUED)
			notify_ended(flights[i]->id);
	}
	for (int i = 0; i < END_COLUMNS; i++)
	{
		values[i] = num == 1 ? rows[0].values[i] : column_array(rows, num, i, one.types[i]);
		nulls[i] = num == 1 && rows[0].nulls[i] ? 'n' : ' ';
	}
	MemoryContextSwitchTo(old_context);
	written = sql_run(num == 1 ? &one : &many, values, nulls, SPI_OK_UPDATE, NULL);
	/* the next ones may have large answers, too */
	MemoryContextDelete(context);
	if (written == (uint64) num)
		attempts_write(flights, num);
	return written;
}

/*
 * The end of a flight changed no row.  One that somebody has deleted, or ended by
 * hand, is no more; else something keeps us from writing.
 */
static void
explain_no_row(const Flight *flight)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.outbox WHERE id = $1 AND state = 'q'", 1, INT8OID);
	Datum		values[1] = {Int64GetDatum(flight->id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the end of flow %lld could not be written", (long long) flight->id),
				 errhint("Look for a trigger, a rule or row security on table feishu_internal.outbox.")));
	ereport(LOG,
			(errmsg("feishu_flow could not record the end of flow %lld: somebody has deleted or changed its row",
					(long long) flight->id)));
}

static void
write_end(void *arg)
{
	Flight	   *flight = arg;

	if (write_ends(&flight, 1) == 0)
		explain_no_row(flight);
}

/* Write one end in a subtransaction; the error when it failed, or NULL. */
static ErrorData *
write_end_try(Flight *flight)
{
	ErrorData  *error = NULL;

	return transaction_try(write_end, flight, &error) ? NULL : error;
}

/* Is this trouble of the server, and not of one row? */
static bool
is_of_server(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_TRANSACTION_ROLLBACK:
			return true;
		default:
			return false;
	}
}

/*
 * All ends at once could not be written: write each by itself.  What cannot be
 * stored of an answer is left out.  An end that cannot be written for what is
 * about its row is set aside; other trouble is thrown.  Returns how many were
 * written.
 */
static int
write_singly(Flight **flights, int num)
{
	ErrorData  *error = NULL;
	int			written = 0;

	for (int i = 0; i < num; i++)
	{
		Flight	   *flight = flights[i];
		ErrorData  *trouble = write_end_try(flight);

		if (trouble != NULL && decide_is_lasting(trouble->sqlerrcode) && flight->end.response != NULL)
		{
			flight_leave_answer_out(flight, trouble->message);
			trouble = write_end_try(flight);
		}
		if (trouble == NULL)
			written++;
		else if (is_of_server(trouble->sqlerrcode))
			ReThrowError(trouble);
		else
		{
			flight_set_aside(flight);
			error = trouble;
		}
	}
	if (error != NULL)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("feishu_flow could not record the ends of some flows, and tries again: %s",
						error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->hint ? errhint("%s", error->hint) : 0));
	return written;
}

/* Write the ends of flights, all at once or each by itself; returns how many. */
static int
write_some(Flight **flights, int num)
{
	if (num == 0)
		return 0;
	if (one_by_one)
		return write_singly(flights, num);
	if (write_ends(flights, num) != (uint64) num)
	{
		one_by_one = true;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ends of flows could not be written"),
				 errhint("Look for a trigger, a rule or row security on table feishu_internal.outbox.")));
	}
	return num;
}

/* Write the ends of all flights that have ended.  They stay until the commit. */
void
record_ended(void)
{
	int			num_ended;
	Flight	  **flights = flight_list_ended(&num_ended);
	Flight	  **some = palloc(Max(num_ended, 1) * sizeof(Flight *));
	int			num = 0;
	size_t		bytes = 0;
	int			written = 0;

	for (int i = 0; i < num_ended; i++)
	{
		const FlowResponse *response = flights[i]->end.response;
		size_t		size = response != NULL && response->body != NULL ? VARSIZE(response->body) : 0;

		flight_mark_recorded(flights[i]);
		if (flights[i]->end.silent)
			continue;
		if (bytes + size > RECORD_BYTES)
		{
			written += write_some(some, num);
			num = 0;
			bytes = 0;
		}
		some[num++] = flights[i];
		bytes += size;
	}
	written += write_some(some, num);
	flight_note_written(written > 0);
	find_successors(flights, num_ended);
	one_by_one = false;
}

/* What keeps one end from being written may not concern the others. */
void
record_one_by_one(void)
{
	one_by_one = true;
}

/*
 * A row cannot be read, and ends so, or waits.  It is changed without being read; false:
 * it is not there any more.
 */
bool
record_unreadable(int64 id, const FlightEnd *end)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET state = $5, next_at = $4,"
		" finished_at = CASE WHEN $4 IS NULL THEN clock_timestamp() END,"
		" " HANDLER_ON_END_IF("$4 IS NULL", "") ","
		" sqlstate = $2, error = $3, report = NULL, hint = NULL"
		" WHERE id = $1 AND state = 'q'",
		5, INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, CHAROID);
	bool		waits = end->state == OUTBOX_QUEUED;
	Datum		values[5] = {
		Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(end->sqlstate)),
		CStringGetTextDatum(end->error),
		TimestampTzGetDatum(end->next_at),
		CharGetDatum(end->state)
	};
	char		nulls[5] = {' ', ' ', ' ', waits ? ' ' : 'n', ' '};

	if (sql_run(&statement, values, nulls, SPI_OK_UPDATE, NULL) == 0)
		return false;
	if (!waits)
	{
		notify_ended(id);
		ereport(LOG,
				(errcode(end->sqlstate),
				 errmsg("feishu_flow could not read flow %lld: %s", (long long) id, end->error)));
	}
	return true;
}
