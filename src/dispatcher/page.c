/*-------------------------------------------------------------------------
 *
 * page.c
 *	  Reading of the queue a page at a time.
 *
 * Delayed rows, rows with ordering keys, and rows of a lane with paused flows are not
 * claimed as they come: a page is looked at, without locking any, and those that may be
 * sent go to their tier's list.  Any number of others may be before them, so pages grow
 * while there is nothing in them, up to what a transaction can look at while answers
 * wait.
 *
 * Rows of paused flows that were passed over are below the tier's cursor then, and park.c
 * takes them from the index, by and by.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/page.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/ordering.h"
#include "dispatcher/page.h"
#include "dispatcher/park.h"
#include "dispatcher/pauses.h"

/* Rows looked at in a transaction, of all lanes; but so many of each with paused flows. */
#define PAGE_ROWS			8192
#define PAUSED_LANE_ROWS	256

/*
 * In SQL: rows that are not paused among the first of some, and whether each is first of
 * its ordering key; the last one, too, if there are as many as were asked for.
 */
#define PAGE(columns, rows, order, limit, flows, floors) \
	"WITH page AS MATERIALIZED (SELECT * FROM (" \
	" SELECT r.*, " PAUSES_HAVE("r", flows) " AS is_paused, row_number() OVER () AS n" \
	" FROM (SELECT " columns ", server, roleid, ordering_key, namespace, flow_id FROM feishu_internal.outbox" \
	" WHERE " rows " ORDER BY " order " LIMIT " limit ") r) p" \
	" WHERE NOT is_paused OR n = " limit ")" \
	" SELECT o.id, o.n, o.is_paused, o.ordering_key IS NULL, NOT o.is_paused AND " \
	ORDERING_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL AND NOT k.is_paused", floors)

/* Due rows taken into memory at once. */
#define DUE_ROWS			256

/* Rows that this transaction may look at. */
static int	rows_left;
static uint64 rows_left_in = 0;

/* A page of a lane has so many, if it should have at least limit. */
static int
page_size(const Lane *lane, int wanted, int limit)
{
	if (rows_left_in != transaction_number())
		rows_left = PAGE_ROWS;
	rows_left_in = transaction_number();
	return Max(Min(wanted, rows_left), pauses_any(lane) ? Max(limit, PAUSED_LANE_ROWS) : limit);
}

/* The size of the next one, after so many of a page were taken. */
static int
next_size(int size, int taken, int limit)
{
	rows_left -= Min(rows_left, size);
	return taken < limit ? Min(size * 2, PAGE_ROWS) : 0;
}

/* List up to limit rows above the tier's cursor that may be claimed. */
void
page_list_next(const Claim *claim, Tier *tier, int limit)
{
	static SqlStatement statement = SQL_STATEMENT(
		PAGE("id", "server = $1 AND roleid = $2 AND priority = $7 AND state = 'q'"
			 " AND next_at IS NULL AND id > $3 AND id <> ALL ($4)", "id", "$5", "$8", "$6")
		" FROM page o ORDER BY o.id",
		8, TEXTOID, OIDOID, INT8OID, INT8ARRAYOID, INT4OID, JSONBOID, INT2OID, TEXTARRAYOID);
	const Lane *lane = claim->lane;
	int			size = page_size(lane, tier->page_rows, limit);
	Datum		values[8] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		Int64GetDatum(tier->cursor),
		claim_flying_ids(lane, tier->cursor),
		Int32GetDatum(size),
		ordering_floors(),
		Int16GetDatum(tier->priority),
		pauses_flows(lane)
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, claim->snapshot);
	int64		after = tier->cursor;
	int64		last = 0;
	int64		seen = 0;
	int			others = 0;
	int			listed = 0;
	bool		keyed = false;
	bool		all;

	for (uint64 row = 0; row < num && listed < limit; row++)
	{
		last = sql_int64(row, 1);
		seen = sql_int64(row, 2);
		if (DatumGetBool(sql_value(row, 3, NULL)))
			break;				/* the last of the page */
		others++;
		keyed |= !DatumGetBool(sql_value(row, 4, NULL));
		if (!DatumGetBool(sql_value(row, 5, NULL)))
			continue;
		tier_expect_row(tier, last);
		listed++;
	}
	all = listed < limit && seen < size;
	/* behind the last one of others there may be some, too */
	if (pauses_any(lane) && (all || seen > others))
		park_expect(tier, after);
	tier->passing = !all && seen > others;
	tier_note_keys(tier, keyed, next_size(size, listed, limit));
	if (all)
		tier->page_rows = 0;
	tier_saw_more(tier, all, last, claim->last_id);
}

/* Take delayed rows of a tier that are due into its list; false: these were all. */
static bool
list_due(const Claim *claim, Tier *tier, TimestampTz now)
{
	static SqlStatement statement = SQL_STATEMENT(
		PAGE("id, next_at", "server = $1 AND roleid = $2 AND priority = $9 AND state = 'q'"
			 " AND next_at IS NOT NULL AND (next_at, id) > ($3, $7) AND next_at <= $4 AND id <> ALL ($5)",
			 "next_at, id", "$6", "$10", "$8")
		", o.next_at FROM page o ORDER BY o.next_at, o.id",
		10, TEXTOID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8ARRAYOID, INT4OID, INT8OID,
		JSONBOID, INT2OID, TEXTARRAYOID);
	const Lane *lane = claim->lane;
	int			size = page_size(lane, tier->due_rows, DUE_ROWS);
	Datum		values[10] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		TimestampTzGetDatum(tier->due_floor),
		TimestampTzGetDatum(now),
		claim_flying_ids(lane, PG_INT64_MIN),
		Int32GetDatum(size),
		Int64GetDatum(tier->due_floor_id),
		ordering_floors(),
		Int16GetDatum(tier->priority),
		pauses_flows(lane)
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, claim->snapshot);
	TimestampTz floor = tier->due_floor;
	int64		floor_id = tier->due_floor_id;
	int64		seen = 0;
	int			taken = 0;
	bool		all;

	for (uint64 row = 0; row < num && taken < DUE_ROWS; row++)
	{
		int64		id = sql_int64(row, 1);

		seen = sql_int64(row, 2);
		tier_saw_due(tier, DatumGetTimestampTz(sql_value(row, 6, NULL)), id);
		if (DatumGetBool(sql_value(row, 3, NULL)))
			break;
		taken++;
		if (DatumGetBool(sql_value(row, 5, NULL)))
			tier_expect_row(tier, id);
	}
	all = taken < DUE_ROWS && seen < size;
	if (pauses_any(lane) && (all || seen > taken))
		park_expect_due(tier, floor, floor_id);
	tier->due_rows = next_size(size, taken, DUE_ROWS);
	return !all;
}

/* Take delayed rows of a tier that are due into its list, and say when others will be. */
void
page_list_due(const Claim *claim, Tier *tier, TimestampTz now)
{
	static SqlStatement later = SQL_STATEMENT(
		"SELECT next_at FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND priority = $4 AND state = 'q' AND next_at IS NOT NULL"
		" AND next_at > $3 ORDER BY next_at LIMIT 1",
		4, TEXTOID, OIDOID, TIMESTAMPTZOID, INT2OID);
	const Lane *lane = claim->lane;
	Datum		values[4] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		TimestampTzGetDatum(now),
		Int16GetDatum(tier->priority)
	};
	uint64		num;

	if (list_due(claim, tier, now))
	{
		tier_look_at_due(tier, now);
		return;
	}
	tier_saw_due(tier, now, PG_INT64_MAX);
	num = sql_run(&later, values, NULL, SPI_OK_SELECT, claim->snapshot);
	tier_look_at_due(tier, num > 0 ? DatumGetTimestampTz(sql_value(0, 1, NULL)) : DT_NOEND);
}
