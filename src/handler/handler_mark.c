/*-------------------------------------------------------------------------
 *
 * src/handler/handler_mark.c
 *	  The handlers' columns of the outbox: which wait, which were called.
 *
 * All is run as the tables' owner, with everything in its SQL qualified, for the
 * session is another role's, with that role's search_path.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "handler/handler_internal.h"
#include "queue/origin.h"

/* Rows given up at once. */
#define GIVE_UP_ROWS	5000

/* One that is tried again soon waits for so much less. */
#define SOON			50

/*
 * A handler that waits, by the id of its flow.  Not HANDLER_WAITS, lest the planner
 * takes the index of those that wait, of which it may think that it has no rows.
 */
#define THIS_ROW \
	" WHERE id OPERATOR(pg_catalog.=) $1 AND end_number OPERATOR(pg_catalog.=) $2" \
	" AND COALESCE(handler_state, 'w') OPERATOR(pg_catalog.=) 'w'"


/*
 * From here to mark_plan_end the planner reads an index in order.  Statistics of a
 * time when nothing waited would have it read and sort all that waits, for the first
 * few.  An error in between needs no care.
 */
int
mark_plan_begin(void)
{
	static const char *const off[] = {"enable_seqscan", "enable_bitmapscan", "enable_sort"};
	int			level = NewGUCNestLevel();

	for (int i = 0; i < (int) lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return level;
}

void
mark_plan_end(int level)
{
	AtEOXact_GUC(true, level);
}

/* Read those of a role with higher numbers, in order; returns how many. */
int
mark_read(Oid roleid, int64 above, Handler *handlers, int most)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT id, end_number, on_end, handler_attempts, handler_next_at FROM feishu_internal.outbox"
		" WHERE roleid OPERATOR(pg_catalog.=) $1 AND " HANDLER_WAITS
		" AND end_number OPERATOR(pg_catalog.>) $2"
		" AND database OPERATOR(pg_catalog.=) $4 AND system_identifier OPERATOR(pg_catalog.=) $5"
		" ORDER BY end_number USING OPERATOR(pg_catalog.<) LIMIT $3",
		5, OIDOID, INT8OID, INT4OID, OIDOID, INT8OID);
	Datum		values[5] = {
		ObjectIdGetDatum(roleid), Int64GetDatum(above), Int32GetDatum(most),
		origin_database(), origin_system()
	};
	MemoryContext context = CurrentMemoryContext;
	SqlCaller	caller;
	int			level;
	int			num;

	sql_begin_as_owner(&caller);
	level = mark_plan_begin();
	num = (int) sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	mark_plan_end(level);
	for (int i = 0; i < num; i++)
	{
		bool		is_null;
		Datum		value;

		handlers[i].id = sql_int64(i, 1);
		handlers[i].number = sql_int64(i, 2);
		handlers[i].function = MemoryContextStrdup(context, TextDatumGetCString(sql_value(i, 3, NULL)));
		value = sql_value(i, 4, &is_null);
		handlers[i].attempts = is_null ? 0 : DatumGetInt32(value);
		value = sql_value(i, 5, &is_null);
		handlers[i].next_at = is_null ? 0 : DatumGetTimestampTz(value);
		handlers[i].is_begun = !is_null && TIMESTAMP_IS_NOBEGIN(handlers[i].next_at);
	}
	sql_end_as_owner(&caller);
	return num;
}

/* The attempts, this one included. */
static int
attempts_with(const Handler *handler)
{
	return handler->attempts + (handler->is_begun ? 0 : 1);
}

/* Write the columns of a handler that waits; false if it does not any more. */
static bool
mark_write(const Handler *handler, const char *state, TimestampTz next_at, const char *error)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET handler_attempts = $3, handler_state = $4,"
		" handler_next_at = $5, handler_error = $6, handler_at = pg_catalog.clock_timestamp()" THIS_ROW,
		6, INT8OID, INT8OID, INT4OID, CHAROID, TIMESTAMPTZOID, TEXTOID);
	Datum		values[6] = {
		Int64GetDatum(handler->id),
		Int64GetDatum(handler->number),
		Int32GetDatum(attempts_with(handler)),
		CharGetDatum(state != NULL ? *state : 0),
		TimestampTzGetDatum(next_at),
		error != NULL ? CStringGetTextDatum(error) : (Datum) 0
	};
	char		nulls[6] = {
		' ', ' ', ' ', state != NULL ? ' ' : 'n', next_at != 0 ? ' ' : 'n', error != NULL ? ' ' : 'n'
	};

	return sql_run_as_owner(&statement, values, nulls, SPI_OK_UPDATE, NULL) > 0;
}

/* When a handler is called again: full jitter, as flows have it. */
static TimestampTz
next_attempt(const Handler *handler, bool soon)
{
	double		ms = feishu_guc_retry_base_delay * pow(2.0, Min(attempts_with(handler) - 1, 30));

	ms = Min(ms, feishu_guc_retry_max_delay);
	if (soon)
		ms /= SOON;
	ms *= pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) Max(ms, 1));
}

/* It has been called; false if its flow has gone back to the queue meanwhile. */
bool
mark_succeeded(const Handler *handler)
{
	return mark_write(handler, "s", 0, NULL);
}

/* It is being called: should that be the end of the session, this counts. */
void
mark_begun(Handler *handler)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET handler_attempts = $3, handler_next_at = '-infinity',"
		" handler_at = pg_catalog.clock_timestamp()" THIS_ROW,
		3, INT8OID, INT8OID, INT4OID);
	Datum		values[3] = {
		Int64GetDatum(handler->id), Int64GetDatum(handler->number), Int32GetDatum(attempts_with(handler))
	};

	(void) sql_run_as_owner(&statement, values, NULL, SPI_OK_UPDATE, NULL);
	handler->attempts = attempts_with(handler);
	handler->is_begun = true;
}

/* An attempt has failed; soon: it is tried again without much delay. */
void
mark_failed(const Handler *handler, const char *error, bool soon)
{
	if (attempts_with(handler) < feishu_guc_handler_attempts)
	{
		(void) mark_write(handler, NULL, next_attempt(handler, soon), error);
		return;
	}
	if (mark_write(handler, "f", 0, error))
		ereport(LOG,
				(errmsg("feishu_flow has given up handler %s of flow %lld after %d attempts: %s",
						handler->function, (long long) handler->id, attempts_with(handler), error)));
}

/* Lock it, unless somebody has; the dispatcher waits for nobody. */
bool
mark_lock(const Handler *handler)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.outbox" THIS_ROW " FOR UPDATE SKIP LOCKED",
		2, INT8OID, INT8OID);
	Datum		values[2] = {Int64GetDatum(handler->id), Int64GetDatum(handler->number)};

	return sql_run_as_owner(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0;
}

/* All of a role are given up. */
void
mark_given_up(Oid roleid, const char *error)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET handler_state = 'f', handler_next_at = NULL, handler_error = $2"
		" WHERE id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT id FROM feishu_internal.outbox"
		" WHERE roleid OPERATOR(pg_catalog.=) $1 AND " HANDLER_WAITS
		" AND database OPERATOR(pg_catalog.=) $4 AND system_identifier OPERATOR(pg_catalog.=) $5"
		" ORDER BY end_number USING OPERATOR(pg_catalog.<) LIMIT $3 FOR UPDATE SKIP LOCKED))",
		5, OIDOID, TEXTOID, INT4OID, OIDOID, INT8OID);
	Datum		values[5] = {
		ObjectIdGetDatum(roleid), CStringGetTextDatum(error), Int32GetDatum(GIVE_UP_ROWS),
		origin_database(), origin_system()
	};
	uint64		num;

	num = sql_run_as_owner(&statement, values, NULL, SPI_OK_UPDATE, NULL);
	if (num > 0)
		ereport(LOG,
				(errmsg("feishu_flow has given up %llu handlers of role %u: %s",
						(unsigned long long) num, roleid, error)));
}
