/*-------------------------------------------------------------------------
 *
 * src/dispatcher/maintain.c
 *	  The dispatcher's maintenance: flows that have expired are ended, old ones are
 *	  deleted, at each slow poll; those of a role that is gone fail.
 *
 * The first two are done some rows at a time, in steps with a pause between them, by an
 * index on the time that matters.  An old snapshot may keep the entries of any
 * number of rows that were done with in these indexes.  So each has a floor:
 * what is before it was seen.  What can still appear before it:
 *
 * - A row that its transaction committed late, or that somebody had locked and
 *	 then left as it was: its id is told, and who reads it says when it expires
 *	 (maintain_expect).
 * - One that was in flight and comes back to the queue: the floor does not pass
 *	 flights.
 * - What a superuser does by hand, a change of a clock, a flow cancelled by a
 *	 transaction that took longer than the retention, one whose handler waited for
 *	 so long: for these, the floors begin anew now and then.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "call/stats.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/flight.h"
#include "dispatcher/ordering.h"
#include "queue/notify.h"
#include "queue/on_end.h"
#include "queue/origin.h"
#include "queue/outbox.h"
#include "queue/record_text.h"

/* Rows deleted in a step. */
#define PURGE_ROWS			5000

/* Rows ended in a step: each is an update, and its ordering key may let another
 * one go. */
#define EXPIRE_ROWS			1000

/* Rows of a lane given up at once. */
#define FAIL_ROWS			5000

/* Rows that wait and expire up to this were seen. */
static TimestampTz expire_floor = DT_NOBEGIN;
static int64 expire_floor_id = 0;

/* Rows that finished before this were seen: what went well, what went wrong. */
static TimestampTz purge_floor = DT_NOBEGIN;
static TimestampTz purge_failed_floor = DT_NOBEGIN;


/* Forget what was seen. */
void
maintain_begin_anew(void)
{
	expire_floor = DT_NOBEGIN;
	purge_floor = DT_NOBEGIN;
	purge_failed_floor = DT_NOBEGIN;
}

/* A row that waits, and may have appeared late, expires then. */
void
maintain_expect(TimestampTz expires_at)
{
	if (expires_at <= expire_floor)
	{
		expire_floor = expires_at;
		expire_floor_id = PG_INT64_MIN;
	}
}

/*
 * Delete some old flows; true if there may be more.
 *
 * In these statements an array has the ids: for a join, a plan may well read the
 * whole table where there is nothing to do.
 */
#define PURGE_STATEMENT(ended) \
	SQL_STATEMENT("WITH purged AS (DELETE FROM feishu_internal.outbox WHERE id = ANY (ARRAY(SELECT id FROM feishu_internal.outbox" \
				  " WHERE finished_at >= $1 AND finished_at < $2 AND " ended " AND NOT " HANDLER_WAITS \
				  " ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED)) RETURNING finished_at)" \
				  " SELECT count(*), max(finished_at) FROM purged", \
				  3, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID)

/* Delete some of the rows that finished before; true if there may be more. */
static bool
purge(SqlStatement *statement, TimestampTz *floor, TimestampTz before)
{
	Datum		values[3] = {
		TimestampTzGetDatum(*floor),
		TimestampTzGetDatum(before),
		Int32GetDatum(PURGE_ROWS)
	};

	if (before <= *floor)
		return false;
	sql_run(statement, values, NULL, SPI_OK_SELECT, NULL);
	if (sql_int64(0, 1) < PURGE_ROWS)
	{
		*floor = before;
		return false;
	}
	*floor = DatumGetTimestampTz(sql_value(0, 2, NULL));
	return true;
}

/*
 * Delete some of the rows that ended long enough ago; true if there may be more.
 */
bool
maintain_purge(TimestampTz now)
{
	static SqlStatement went_well = PURGE_STATEMENT(OUTBOX_WENT_WELL);
	static SqlStatement went_wrong = PURGE_STATEMENT(OUTBOX_WENT_WRONG);
	bool		more;

	more = purge(&went_well, &purge_floor, now - (TimestampTz) feishu_guc_retention * USECS_PER_SEC);
	more |= purge(&went_wrong, &purge_failed_floor,
				  now - (TimestampTz) feishu_guc_retention_failed * USECS_PER_SEC);
	return more;
}

/*
 * Count those of the rows returned that failed without an attempt.  The columns are
 * that of the server, and the first of attempts, namespace and flow id.
 */
static void
count_unsent(uint64 num, int server_column, int column)
{
	for (uint64 row = 0; row < num; row++)
	{
		if (DatumGetInt32(sql_value(row, column, NULL)) == 0)
			stats_count_unsent(get_foreign_server_oid(TextDatumGetCString(sql_value(row, server_column, NULL)), true),
							   TextDatumGetCString(sql_value(row, column + 1, NULL)),
							   TextDatumGetCString(sql_value(row, column + 2, NULL)));
	}
}

/*
 * End flows that have expired, whatever they wait for, but for those that are
 * being sent; true if there may be more.
 */
bool
maintain_expire(TimestampTz now)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET state = 'f', next_at = NULL, finished_at = clock_timestamp(),"
		" sqlstate = $2, error = COALESCE(error || $3, $4),"
		" report = concat_ws(E'\\n', $4, error), hint = $10, " HANDLER_ON_END
		" WHERE id = ANY (ARRAY(SELECT id FROM feishu_internal.outbox WHERE state = 'q'"
		" AND expires_at < 'infinity' AND (expires_at, id) > ($5, $6) AND expires_at <= $1"
		" AND NOT id = ANY ((SELECT ids FROM feishu_internal.claim"
		" WHERE database = $7 AND system_identifier = $9)::bigint[])"
		" ORDER BY expires_at, id LIMIT $8 FOR UPDATE SKIP LOCKED))"
		" RETURNING id, expires_at, server, roleid, ordering_key, attempts, namespace, flow_id",
		10, TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID, OIDOID, INT4OID,
		INT8OID, TEXTOID);
	const char *error = record_expired_text();
	Datum		values[10] = {
		TimestampTzGetDatum(now),
		CStringGetTextDatum(unpack_sql_state(ERRCODE_FEISHU_TIMEOUT)),
		CStringGetTextDatum(psprintf(_("; %s"), error)),
		CStringGetTextDatum(error),
		TimestampTzGetDatum(expire_floor),
		Int64GetDatum(expire_floor_id),
		origin_database(),
		Int32GetDatum(EXPIRE_ROWS),
		origin_system(),
		CStringGetTextDatum(record_expired_hint())
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_UPDATE_RETURNING, NULL);
	OrderingKey *keys = palloc(Max(num, 1) * sizeof(OrderingKey));
	int			num_keys = 0;

	count_unsent(num, 3, 6);
	for (uint64 row = 0; row < num; row++)
	{
		int64		id = sql_int64(row, 1);
		TimestampTz expires_at = DatumGetTimestampTz(sql_value(row, 2, NULL));
		bool		no_key;
		Datum		key = sql_value(row, 5, &no_key);

		if (expires_at > expire_floor || (expires_at == expire_floor && id > expire_floor_id))
		{
			expire_floor = expires_at;
			expire_floor_id = id;
		}
		notify_ended(id);
		if (no_key)
			continue;
		keys[num_keys].server = TextDatumGetCString(sql_value(row, 3, NULL));
		keys[num_keys].roleid = DatumGetObjectId(sql_value(row, 4, NULL));
		keys[num_keys].key = TextDatumGetCString(key);
		keys[num_keys++].id = id;
	}
	ordering_find_successors(keys, num_keys);
	if (num == EXPIRE_ROWS)
		return true;
	/* all that have expired by now were ended, but for flights */
	expire_floor = Min(now, flight_first_expiry());
	expire_floor_id = expire_floor == now ? PG_INT64_MAX : PG_INT64_MIN;
	return false;
}


/* ---------- Lanes that have no role any more ---------- */

/*
 * Flows of a lane that are not under way fail.  For the index that has them, those
 * that may be sent at once and delayed ones are two kinds.
 */
#define FAIL_STATEMENT(kind) \
	SQL_STATEMENT("UPDATE feishu_internal.outbox SET state = 'f', next_at = NULL, finished_at = clock_timestamp()," \
				  " sqlstate = $3, error = COALESCE(error || $7, $4)," \
				  " report = concat_ws(E'\\n', $4, error), hint = NULL, " HANDLER_ON_END \
				  " WHERE id = ANY (ARRAY(SELECT id FROM feishu_internal.outbox" \
				  " WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at " kind \
				  " AND NOT id = ANY ((SELECT ids FROM feishu_internal.claim" \
				  " WHERE database = $6 AND system_identifier = $8)::bigint[])" \
				  " LIMIT $5 FOR UPDATE SKIP LOCKED))" \
				  " RETURNING server, attempts, namespace, flow_id", \
				  8, TEXTOID, OIDOID, TEXTOID, TEXTOID, INT4OID, OIDOID, TEXTOID, INT8OID)

/* Fail flows of a lane that can never be sent, some at a time. */
void
maintain_fail_lane(Lane *lane, const char *sqlstate, const char *error)
{
	static SqlStatement statements[] = {
		FAIL_STATEMENT("IS NULL"),
		FAIL_STATEMENT("IS NOT NULL")
	};
	Datum		values[8] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		CStringGetTextDatum(sqlstate),
		CStringGetTextDatum(error),
		Int32GetDatum(FAIL_ROWS),
		origin_database(),
		CStringGetTextDatum(psprintf(_("; %s"), error)),
		origin_system()
	};
	bool		more = false;

	for (int i = 0; i < (int) lengthof(statements); i++)
	{
		uint64		failed = sql_run(&statements[i], values, NULL, SPI_OK_UPDATE_RETURNING, NULL);

		count_unsent(failed, 1, 2);
		if (failed > 0)
			notify_ended_some();
		more |= failed >= FAIL_ROWS;
	}
	if (!more)
		lane_close(lane);
}
