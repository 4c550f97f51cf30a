/*-------------------------------------------------------------------------
 *
 * src/dispatcher/attempts.c
 *	  The dispatcher's writing of which attempts went wrong.
 *
 * They are written where their flow's row is, in the same transaction or
 * subtransaction, from what that row has by then.  Where none went wrong nothing is
 * executed.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "queue/attempt.h"
#include "queue/origin.h"
#include "queue/record_text.h"
#include "wire/wire.h"

/* What a superuser has put there does not keep the end of a flow from being written. */
#define INSERT_ATTEMPTS(columns, query) \
	"INSERT INTO feishu_internal.attempt (flow, attempt, " columns ") " query \
	" ON CONFLICT DO NOTHING RETURNING flow, attempt"


/* Those of flights whose ends were written. */
void
attempts_write(Flight **flights, int num)
{
	static SqlStatement statement = SQL_STATEMENT(
		INSERT_ATTEMPTS(
			"started_at, duration, http_status, sqlstate, code, flow_code, log_id, error, hint",
			"SELECT o.id, o.failures, e.started, e.ended - e.started, NULLIF(e.http_status, 0),"
			" o.sqlstate, o.code, o.flow_code, o.log_id, o.error, o.hint"
			" FROM unnest($1, $2, $3, $4) AS e (id, started, ended, http_status), feishu_internal.outbox o"
			" WHERE o.id = e.id"),
		4, INT8ARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID);
	static const Oid types[4] = {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID};
	Datum	   *columns[4] = {NULL};
	Datum		values[4];
	int			row = 0;

	for (int i = 0; i < num; i++)
	{
		const Flight *flight = flights[i];

		if (!flight->end.went_wrong)
			continue;
		for (int column = 0; row == 0 && column < 4; column++)
			columns[column] = palloc(num * sizeof(Datum));
		columns[0][row] = Int64GetDatum(flight->id);
		columns[1][row] = TimestampTzGetDatum(flight->started);
		columns[2][row] = TimestampTzGetDatum(Max(flight->ended, flight->started));
		columns[3][row++] = Int32GetDatum(flight->end.http_status);
	}
	if (row == 0)
		return;
	for (int column = 0; column < 4; column++)
		values[column] = array_of(columns[column], row, types[column]);
	attempt_insert(&statement, values, NULL);
}

/*
 * Rows that a dispatcher before us had claimed: that attempt got no answer, as far as
 * anybody knows.
 */
void
attempts_recover(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH lost AS (UPDATE feishu_internal.outbox SET attempts = attempts + 1, unanswered = true,"
		" failures = " ATTEMPT_NEXT("")
		" WHERE state = 'q' AND id = ANY ((SELECT ids FROM feishu_internal.claim"
		" WHERE system_identifier = $1 AND database = $2)::bigint[]) RETURNING id, failures) "
		INSERT_ATTEMPTS("sqlstate, error", "SELECT id, failures, $3, $4 FROM lost"),
		4, INT8OID, OIDOID, TEXTOID, TEXTOID);
	Datum		values[4] = {
		origin_system(),
		origin_database(),
		CStringGetTextDatum(unpack_sql_state(ERRCODE_FEISHU_TIMEOUT)),
		CStringGetTextDatum(record_lost_text())
	};

	attempt_insert(&statement, values, NULL);
}
