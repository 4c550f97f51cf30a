/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  The dispatcher's reading of the queue: what to send next.
 *
 * Rows that may be sent at once are read by an index on (server, role, id),
 * each time from where the last claim of the lane ended.  So rows that were
 * sent, but that an old snapshot keeps in the index, are not stepped over again
 * and again, and the cost of a claim does not grow with the queue.  A row that
 * becomes visible below that point is found by discover.c, and is claimed by id.
 *
 * Of an ordering key of a lane only the row with the lowest id is claimed, and only if
 * none of the key is in flight (retry_flow may put back a lower one).  The
 * others are passed over, and found again by ordering.c when that one ends.  Any
 * number of rows may wait behind one, and of the rows before it any number may
 * be kept by an old snapshot: so which is first is asked once for each key, not
 * for each row, and not more than a page of rows is looked at in a transaction.
 *
 * To claim is to lock the row, and to write the ids of all flights into the
 * row of feishu_internal.claim, in one transaction.  After a crash that row says
 * which attempts got no answer.  SKIP LOCKED: a row that somebody is about to
 * cancel is left; should he not go through with it, change_flow.c tells its id.  So is
 * one that somebody replaces, of which replace.c tells.
 *
 * Pauses, servers, mappings and rows are read with one snapshot: a flow that was
 * queued after its server was paused or altered, or together with that, is not sent as
 * if that had not been.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/claim.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatch.h"
#include "queue/notify.h"
#include "queue/origin.h"

/* Due rows taken into memory at once. */
#define DUE_ROWS			256

/* Rows looked at in a transaction for some that may be claimed. */
#define PAGE_ROWS			2048


/* ids as a bigint[] in the current memory context. */
static Datum
ids_array(const int64 *ids, int num)
{
	Datum	   *values = palloc(Max(num, 1) * sizeof(Datum));

	for (int i = 0; i < num; i++)
		values[i] = Int64GetDatum(ids[i]);
	return PointerGetDatum(construct_array(values, num, INT8OID, 8, FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

/* The ids of all flights, ended ones that are not recorded included, as bigint[]. */
static Datum
all_ids_array(Dispatch *dispatch)
{
	dlist_head *lists[] = {
		&dispatch->claimed, &dispatch->flights, &dispatch->ended, &dispatch->stuck
	};
	int64	   *ids = palloc((dispatch->num_flights + dispatch->num_ended + dispatch->num_stuck + 1) *
							 sizeof(int64));
	int			num = 0;
	dlist_iter	iter;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (!flight->recorded)
				ids[num++] = flight->id;
		}
	}
	return ids_array(ids, num);
}


/* ---------- Start ---------- */

/* Where this database's row of feishu_internal.claim is. */
static ItemPointerData claim_row;

/* Throw that there is none. */
static void
report_no_claim(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("table feishu_internal.claim does not have one row")));
}

/*
 * Take over from the dispatcher before us, if there was one (origin.c).
 *
 * Rows that it had claimed: that attempt got no answer, as far as anybody
 * knows.
 */
void
claim_recover(Dispatch *dispatch)
{
	static SqlStatement recover = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET attempts = attempts + 1, unanswered = true"
		" WHERE state = 'q' AND id = ANY ((SELECT ids FROM feishu_internal.claim"
		" WHERE system_identifier = $1 AND database = $2)::bigint[])",
		2, INT8OID, OIDOID);
	static SqlStatement begin = SQL_STATEMENT(
		"UPDATE feishu_internal.claim SET ids = '{}' WHERE system_identifier = $1 AND database = $2"
		" RETURNING ctid",
		2, INT8OID, OIDOID);
	/* what held its lanes will be found again if it is still so */
	static SqlStatement forget_holds = SQL_STATEMENT(
		"DELETE FROM feishu_internal.held_lane", 0, InvalidOid);
	Datum		values[2] = {origin_system(), origin_database()};

	origin_settle();
	sql_run(&recover, values, NULL, SPI_OK_UPDATE, NULL);
	sql_run(&forget_holds, NULL, NULL, SPI_OK_DELETE, NULL);
	if (sql_run(&begin, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1)
		report_no_claim();
	claim_row = *(ItemPointer) DatumGetPointer(sql_value(0, 1, NULL));
}

/*
 * Flows that were claimed for the first time are not replaced any more (replace.c), but
 * for those that were given back at once.
 */
static void
close_replaceable(Dispatch *dispatch)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET replaceable = false WHERE id = ANY ($1)",
		1, INT8ARRAYOID);
	dlist_head *lists[] = {&dispatch->flights, &dispatch->ended};
	int64	   *ids = palloc((dispatch->num_flights + dispatch->num_ended + 1) * sizeof(int64));
	Datum		values[1];
	int			num = 0;
	dlist_iter	iter;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (flight->replaceable && !flight->silent && flight->turn == dispatch->turn)
				ids[num++] = flight->id;
		}
	}
	if (num == 0)
		return;
	values[0] = ids_array(ids, num);
	sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL);
}

/*
 * Write which rows are in flight.  The row is found by where it is: an old
 * snapshot may keep thousands of its former versions.  By now another may be
 * there, which came by replication.
 */
void
claim_write_ids(Dispatch *dispatch)
{
#define WRITE_IDS	"UPDATE feishu_internal.claim SET ids = $1 WHERE system_identifier = $2 AND database = $3"
	static SqlStatement statement = SQL_STATEMENT(
		WRITE_IDS " AND ctid = $4 RETURNING ctid",
		4, INT8ARRAYOID, INT8OID, OIDOID, TIDOID);
	/* VACUUM FULL may have moved it */
	static SqlStatement anywhere = SQL_STATEMENT(
		WRITE_IDS " RETURNING ctid",
		3, INT8ARRAYOID, INT8OID, OIDOID);
	Datum		values[4] = {
		all_ids_array(dispatch), origin_system(), origin_database(), PointerGetDatum(&claim_row)
	};

	close_replaceable(dispatch);
	if (sql_run(&statement, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1 &&
		sql_run(&anywhere, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1)
		report_no_claim();
	claim_row = *(ItemPointer) DatumGetPointer(sql_value(0, 1, NULL));
}


/* ---------- Delayed rows ---------- */

/*
 * Take delayed rows of a lane that are due into its list; those behind another
 * of their ordering key are left to that one's end.
 */
void
claim_look_at_due(Dispatch *dispatch, Lane *lane, TimestampTz now)
{
	static SqlStatement due = SQL_STATEMENT(
		"WITH page AS MATERIALIZED ("
		" SELECT id, next_at, server, roleid, ordering_key FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at IS NOT NULL"
		" AND (next_at, id) > ($3, $7) AND next_at <= $4 AND id <> ALL ($5)"
		" ORDER BY next_at, id LIMIT $6)"
		" SELECT o.id, o.next_at, "
		DISPATCH_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL", "$8")
		" FROM page o ORDER BY o.next_at, o.id",
		8, TEXTOID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8ARRAYOID, INT4OID, INT8OID,
		JSONBOID);
	static SqlStatement later = SQL_STATEMENT(
		"SELECT next_at FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at IS NOT NULL"
		" AND next_at > $3 ORDER BY next_at LIMIT 1",
		3, TEXTOID, OIDOID, TIMESTAMPTZOID);
	Datum		values[8] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		TimestampTzGetDatum(lane->due_floor),
		TimestampTzGetDatum(now),
		flight_ids_array(lane, PG_INT64_MIN),
		Int32GetDatum(DUE_ROWS),
		Int64GetDatum(lane->due_floor_id),
		ordering_floors(dispatch)
	};
	uint64		num;

	num = sql_run(&due, values, NULL, SPI_OK_SELECT, dispatch->snapshot);
	for (uint64 i = 0; i < num; i++)
	{
		/* any number of rows may share a time */
		lane->due_floor = DatumGetTimestampTz(sql_value(i, 2, NULL));
		lane->due_floor_id = sql_int64(i, 1);
		if (DatumGetBool(sql_value(i, 3, NULL)))
			lane_expect_row(dispatch, lane, lane->due_floor_id);
	}
	if (num == DUE_ROWS)
	{
		lane->next_due = now;
		return;
	}
	lane->due_floor = now;
	lane->due_floor_id = PG_INT64_MAX;
	values[2] = TimestampTzGetDatum(now);
	lane->next_due = DT_NOEND;
	if (sql_run(&later, values, NULL, SPI_OK_SELECT, dispatch->snapshot) > 0)
		lane->next_due = DatumGetTimestampTz(sql_value(0, 1, NULL));
	schedule_lane(dispatch, lane);
}


/* ---------- Rows ---------- */

/* As dispatch.h numbers them. */
#define CLAIM_COLUMNS(lane) \
	"SELECT " lane ", o.id, o.namespace, o.flow_id, o.operator, o.params," \
	" o.is_async, o.idempotent_key, o.loop_masks, o.ordering_key, o.attempts, o.max_attempts," \
	" o.expires_at, o.own_key, o.unanswered, o.database, o.error, o.system_identifier, o.server_owner, o.replaceable FROM feishu_internal.outbox o"

#define CLAIM_LOCK " FOR UPDATE OF o SKIP LOCKED"

/* Claim rows that are in the lane's list, by their ids. */
static void
claim_listed(Dispatch *dispatch, Lane *lane, int limit)
{
	static SqlStatement statement = SQL_STATEMENT(
		CLAIM_COLUMNS("1") " WHERE server = $1 AND roleid = $2 AND state = 'q'"
		" AND id = ANY ($3) AND id <> ALL ($4) AND "
		/* no more conditions, lest an index is thought of that has all keys */
		DISPATCH_IS_FIRST("FROM feishu_internal.outbox k WHERE k.id = ANY ($3)", "$6")
		/* it was replaced since it was listed, and is due later; then that is told */
		" AND COALESCE(o.next_at, '-infinity') <= $7"
		" ORDER BY id LIMIT $5" CLAIM_LOCK,
		7, TEXTOID, OIDOID, INT8ARRAYOID, INT8ARRAYOID, INT4OID, JSONBOID, TIMESTAMPTZOID);
	int			take = Min(lane->ready.num, limit);
	Datum		values[7] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		ids_array(lane->ready.ids, take),
		flight_ids_array(lane, PG_INT64_MIN),
		Int32GetDatum(take),
		ordering_floors(dispatch),
		TimestampTzGetDatum(GetCurrentTimestamp())
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, dispatch->snapshot);

	for (uint64 row = 0; row < num; row++)
		flight_make(dispatch, lane, row);
	lane->ready.num -= take;
	memmove(lane->ready.ids, lane->ready.ids + take, lane->ready.num * sizeof(int64));
	schedule_lane(dispatch, lane);
}

/*
 * Rows above the lane's cursor were looked at, the last one's id is last.  If
 * these were all, those that are behind others of their key included, nothing
 * is left below last_value, which was read before the snapshot was taken: a row with a
 * lower id that commits later is told by its id.
 */
static void
move_cursor(Lane *lane, bool all, int64 last, int64 last_value)
{
	if (all)
	{
		lane->more = false;
		lane->cursor = Max(lane->cursor, last_value);
	}
	else
		lane->cursor = last;
}

/* An array of so many values of a type, none of which is null. */
static Datum
value_array(Datum *values, int num, Oid type)
{
	if (type == TEXTOID)
		return PointerGetDatum(construct_array(values, num, type, -1, false, TYPALIGN_INT));
	if (type == INT8OID)
		return PointerGetDatum(construct_array(values, num, type, 8, FLOAT8PASSBYVAL,
											   TYPALIGN_DOUBLE));
	return PointerGetDatum(construct_array(values, num, type, 4, true, TYPALIGN_INT));
}

/*
 * Claim rows above the cursors of lanes, so many of each as it has places left.
 * Rows with an ordering key of which it is not known if they are first go to
 * their lane's list instead.
 */
static void
claim_next(Dispatch *dispatch, Lane **lanes, const int *limits, int num_lanes)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT r.* FROM unnest($1, $2, $3, $4) WITH ORDINALITY"
		" AS l (server, roleid, cursor, places, lane), LATERAL ("
		CLAIM_COLUMNS("l.lane")
		" WHERE o.server = l.server AND o.roleid = l.roleid AND o.state = 'q'"
		" AND o.next_at IS NULL AND o.id > l.cursor AND o.id <> ALL ($5)"
		" ORDER BY o.id LIMIT l.places" CLAIM_LOCK ") r",
		5, TEXTARRAYOID, OIDARRAYOID, INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID);
	Datum	   *columns[4];
	Datum		values[5];
	Datum	   *ids;
	int			num_ids = 0;
	uint64		num;
	uint64		row = 0;

	for (int i = 0; i < 4; i++)
		columns[i] = palloc(num_lanes * sizeof(Datum));
	ids = palloc((dispatch->num_flights + dispatch->num_ended + dispatch->num_stuck + 1) *
				 sizeof(Datum));
	for (int i = 0; i < num_lanes; i++)
	{
		dlist_iter	iter;

		columns[0][i] = CStringGetTextDatum(lanes[i]->key.server);
		columns[1][i] = ObjectIdGetDatum(lanes[i]->key.roleid);
		columns[2][i] = Int64GetDatum(lanes[i]->cursor);
		columns[3][i] = Int32GetDatum(limits[i]);
		dlist_foreach(iter, &lanes[i]->flights)
		{
			Flight	   *flight = dlist_container(Flight, lane_node, iter.cur);

			if (flight->id > lanes[i]->cursor && !flight->recorded)
				ids[num_ids++] = Int64GetDatum(flight->id);
		}
	}
	values[0] = value_array(columns[0], num_lanes, TEXTOID);
	values[1] = value_array(columns[1], num_lanes, OIDOID);
	values[2] = value_array(columns[2], num_lanes, INT8OID);
	values[3] = value_array(columns[3], num_lanes, INT4OID);
	values[4] = value_array(ids, num_ids, INT8OID);

	num = sql_run(&statement, values, NULL, SPI_OK_SELECT, dispatch->snapshot);
	/* a nested loop: in the order of lanes, and of ids */
	for (int i = 0; i < num_lanes; i++)
	{
		Lane	   *lane = lanes[i];
		int64		last = 0;
		int			seen = 0;

		for (; row < num && sql_int64(row, CLAIM_LANE) == i + 1; row++, seen++)
		{
			bool		no_key;

			last = sql_int64(row, CLAIM_ID);
			(void) sql_value(row, CLAIM_ORDERING_KEY, &no_key);
			if (no_key)
				flight_make(dispatch, lane, row);
			else
			{
				lane_expect_row(dispatch, lane, last);
				lane->keyed = true;
			}
		}
		move_cursor(lane, seen < limits[i], last, dispatch->claim_last_id);
		schedule_lane(dispatch, lane);
	}
	if (row < num)
		elog(ERROR, "claimed rows came in another order");
}

/*
 * List up to limit rows above the lane's cursor that may be claimed; looks at a
 * page, which grows while it has too few of them.
 */
static void
list_next(Dispatch *dispatch, Lane *lane, int limit)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH page AS MATERIALIZED ("
		" SELECT id, server, roleid, ordering_key FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND state = 'q'"
		" AND next_at IS NULL AND id > $3 AND id <> ALL ($4) ORDER BY id LIMIT $5)"
		" SELECT o.id, o.ordering_key IS NULL, "
		DISPATCH_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL", "$6")
		" FROM page o ORDER BY o.id",
		6, TEXTOID, OIDOID, INT8OID, INT8ARRAYOID, INT4OID, JSONBOID);
	int			page_rows = Max(lane->page_rows, limit);
	Datum		values[6] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		Int64GetDatum(lane->cursor),
		flight_ids_array(lane, lane->cursor),
		Int32GetDatum(page_rows),
		ordering_floors(dispatch)
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, dispatch->snapshot);
	int64		last = 0;
	int			listed = 0;
	uint64		row;

	lane->keyed = false;
	for (row = 0; row < num && listed < limit; row++)
	{
		last = sql_int64(row, 1);
		if (!DatumGetBool(sql_value(row, 2, NULL)))
			lane->keyed = true;
		if (!DatumGetBool(sql_value(row, 3, NULL)))
			continue;
		lane_expect_row(dispatch, lane, last);
		listed++;
	}
	move_cursor(lane, row == num && num < (uint64) page_rows, last, dispatch->claim_last_id);
	lane->page_rows = listed < limit ? Min(page_rows * 2, PAGE_ROWS) : 0;
	schedule_lane(dispatch, lane);
}

/* How many places of a lane have no flight yet, of which it had so many before? */
static int
places_left(const Lane *lane, int before)
{
	return lane->num_places - (lane->in_flight - before);
}

/* Claim rows of one lane; with listed_only, those above the cursor are left alone. */
static void
claim_lane(Dispatch *dispatch, Lane *lane, int limit, bool listed_only)
{
	int			until = lane->in_flight + limit;

	if (lane->ready.num > 0)
		claim_listed(dispatch, lane, limit);
	limit = until - lane->in_flight;
	if (limit <= 0 || !lane->more || listed_only)
		return;
	if (lane->keyed)
		list_next(dispatch, lane, limit);
	else
		claim_next(dispatch, &lane, &limit, 1);
	/* what has an ordering key, too */
	limit = until - lane->in_flight;
	if (lane->ready.num > 0 && limit > 0)
		claim_listed(dispatch, lane, limit);
}

/*
 * Claim rows of lanes: of those that have nothing but rows above their cursors by
 * one statement, of others one by one.
 */
static void
claim_lanes(Dispatch *dispatch, Lane **lanes, int num)
{
	Lane	  **plain = palloc(num * sizeof(Lane *));
	int		   *limits = palloc(num * sizeof(int));
	int		   *until = palloc(num * sizeof(int));
	int			num_plain = 0;

	for (int i = 0; i < num; i++)
	{
		Lane	   *lane = lanes[i];

		if (lane->ready.num > 0 || lane->keyed)
			claim_lane(dispatch, lane, lane->num_places, false);
		else if (lane->more)
		{
			limits[num_plain] = lane->num_places;
			until[num_plain] = lane->in_flight + lane->num_places;
			plain[num_plain++] = lane;
		}
	}
	if (num_plain == 0)
		return;
	claim_next(dispatch, plain, limits, num_plain);
	for (int i = 0; i < num_plain; i++)
	{
		int			left = until[i] - plain[i]->in_flight;

		/* what has an ordering key, too */
		if (plain[i]->ready.num > 0 && left > 0)
			claim_listed(dispatch, plain[i], left);
	}
}


/* ---------- Rows that cannot be read ---------- */

/*
 * Claim in a subtransaction; false and the error when it failed, and then nothing
 * was claimed.  With listed_only, rows of one lane above its cursor are left alone,
 * and one row is enough.
 */
static bool
claim_try(Dispatch *dispatch, Lane **lanes, int num, bool listed_only, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			before = dispatch->num_flights;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		if (listed_only)
			claim_lane(dispatch, lanes[0], 1, true);
		else
			claim_lanes(dispatch, lanes, num);
		flight_read_large(dispatch);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY((*error)->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(*error);
		while (dispatch->num_flights > before)
			flight_undo(dispatch, dlist_tail_element(Flight, node, &dispatch->claimed));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/* Claim rows of a lane one by one: of those that cannot be read, each by itself. */
static void
claim_singly(Dispatch *dispatch, Lane *lane)
{
	int			before = lane->in_flight;
	ErrorData  *error;

	if (lane->ready.num < lane->num_places && lane->more)
		list_next(dispatch, lane, lane->num_places - lane->ready.num);
	for (int tries = Min(places_left(lane, before), lane->ready.num); tries > 0; tries--)
	{
		int64		id = lane->ready.ids[0];

		if (claim_try(dispatch, &lane, 1, true, &error))
			continue;
		/* it was put back at the end, or is first still */
		lane_forget_row(dispatch, lane, id);
		record_unreadable(dispatch, lane, id, error);
	}
}

void
claim_rows(Dispatch *dispatch, Lane **lanes, int num)
{
	ErrorData  *error;

	if (claim_try(dispatch, lanes, num, false, &error))
		return;
	for (int i = 0; i < num; i++)
	{
		if (!claim_try(dispatch, &lanes[i], 1, false, &error))
			claim_singly(dispatch, lanes[i]);
	}
}
