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
 * Of an ordering key only the row with the lowest id is claimed, and only if
 * none of the key is in flight (retry_flow may put back a lower one).  The
 * others are passed over, and found again by record.c when that one ends.  Any
 * number of rows may wait behind one, and of the rows before it any number may
 * be kept by an old snapshot: so which is first is asked once for each key, not
 * for each row, and not more than a page of rows is looked at in a transaction.
 *
 * To claim is to lock the row, and to write the ids of all flights into the
 * row of feishu.claim, in one transaction.  After a crash that row says
 * which attempts got no answer.  SKIP LOCKED: a row that somebody is about to
 * cancel is left; should he not go through with it, change.c tells its id.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/claim.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "guc.h"
#include "nls.h"
#include "origin.h"
#include "sqlrun.h"

/* Due rows taken into memory at once. */
#define DUE_ROWS			256

/* Rows looked at in a transaction for some that may be claimed. */
#define PAGE_ROWS			2048

/* Larger params (not compressed) are read one by one, when they are sent. */
#define LARGE_PARAMS		65536

/* Bytes of such params in memory at once (as jsonb; each is held in a few
 * forms).  One of each lane is always let through. */
#define LARGE_BYTES			(32 * 1024 * 1024)


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

/*
 * The ids, if above min_id, of all flights, ended ones that are not recorded
 * included.
 */
static int64 *
flight_ids(Dispatch *dispatch, int64 min_id, int *num)
{
	dlist_head *lists[2] = {&dispatch->flights, &dispatch->ended};
	int64	   *ids = palloc((dispatch->num_flights + dispatch->num_ended + 1) * sizeof(int64));
	dlist_iter	iter;

	*num = 0;
	for (int i = 0; i < 2; i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (flight->id > min_id)
				ids[(*num)++] = flight->id;
		}
	}
	return ids;
}


/* ---------- Start ---------- */

/* Where this database's row of feishu.claim is. */
static ItemPointerData claim_row;

/* Throw that there is none. */
static void
report_no_claim(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("table feishu.claim does not have one row")));
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
		"UPDATE feishu.outbox SET attempts = attempts + 1, unanswered = true"
		" WHERE state = 'q' AND id = ANY ((SELECT ids FROM feishu.claim"
		" WHERE system_identifier = $1 AND database = $2)::bigint[])",
		2, INT8OID, OIDOID);
	static SqlStatement begin = SQL_STATEMENT(
		"UPDATE feishu.claim SET ids = '{}' WHERE system_identifier = $1 AND database = $2"
		" RETURNING ctid",
		2, INT8OID, OIDOID);
	/* what held its lanes will be found again if it is still so */
	static SqlStatement forget_holds = SQL_STATEMENT(
		"DELETE FROM feishu.held_lane", 0, InvalidOid);
	Datum		values[2] = {origin_system(), origin_database()};

	origin_settle();
	sql_run(&recover, values, NULL, SPI_OK_UPDATE, NULL);
	sql_run(&forget_holds, NULL, NULL, SPI_OK_DELETE, NULL);
	if (sql_run(&begin, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1)
		report_no_claim();
	claim_row = *(ItemPointer) DatumGetPointer(sql_value(0, 1, NULL));
}

/*
 * Write which rows are in flight.  The row is found by where it is: an old
 * snapshot may keep thousands of its former versions.  By now another may be
 * there, which came by replication.
 */
void
claim_write_ids(Dispatch *dispatch)
{
#define WRITE_IDS	"UPDATE feishu.claim SET ids = $1 WHERE system_identifier = $2 AND database = $3"
	static SqlStatement statement = SQL_STATEMENT(
		WRITE_IDS " AND ctid = $4 RETURNING ctid",
		4, INT8ARRAYOID, INT8OID, OIDOID, TIDOID);
	/* VACUUM FULL may have moved it */
	static SqlStatement anywhere = SQL_STATEMENT(
		WRITE_IDS " RETURNING ctid",
		3, INT8ARRAYOID, INT8OID, OIDOID);
	int			num;
	int64	   *ids = flight_ids(dispatch, PG_INT64_MIN, &num);
	Datum		values[4] = {
		ids_array(ids, num), origin_system(), origin_database(), PointerGetDatum(&claim_row)
	};

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
		" SELECT id, next_at, server, ordering_key FROM feishu.outbox"
		" WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at IS NOT NULL"
		" AND (next_at, id) > ($3, $7) AND next_at <= $4 AND id <> ALL ($5)"
		" ORDER BY next_at, id LIMIT $6)"
		" SELECT o.id, o.next_at, "
		DISPATCH_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL")
		" FROM page o ORDER BY o.next_at, o.id",
		7, TEXTOID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8ARRAYOID, INT4OID, INT8OID);
	static SqlStatement later = SQL_STATEMENT(
		"SELECT next_at FROM feishu.outbox"
		" WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at IS NOT NULL"
		" AND next_at > $3 ORDER BY next_at LIMIT 1",
		3, TEXTOID, OIDOID, TIMESTAMPTZOID);
	int			num_flights;
	int64	   *ids = flight_ids(dispatch, PG_INT64_MIN, &num_flights);
	Datum		values[7] = {
		CStringGetTextDatum(lane->server),
		ObjectIdGetDatum(lane->roleid),
		TimestampTzGetDatum(lane->due_floor),
		TimestampTzGetDatum(now),
		ids_array(ids, num_flights),
		Int32GetDatum(DUE_ROWS),
		Int64GetDatum(lane->due_floor_id)
	};
	uint64		num;

	num = sql_run(&due, values, NULL, SPI_OK_SELECT, NULL);
	for (uint64 i = 0; i < num; i++)
	{
		/* any number of rows may share a time */
		lane->due_floor = DatumGetTimestampTz(sql_value(i, 2, NULL));
		lane->due_floor_id = sql_int64(i, 1);
		if (DatumGetBool(sql_value(i, 3, NULL)))
			id_list_add(dispatch, &lane->ready, lane->due_floor_id);
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
	if (sql_run(&later, values, NULL, SPI_OK_SELECT, NULL) > 0)
		lane->next_due = DatumGetTimestampTz(sql_value(0, 1, NULL));
}


/* ---------- Rows ---------- */

#define CLAIM_COLUMNS \
	"SELECT id, namespace, flow_id, operator, params," \
	" is_async, idempotent_key, loop_masks, ordering_key, attempts, max_attempts," \
	" expires_at, own_key, unanswered, database, error, system_identifier FROM feishu.outbox o"

#define CLAIM_LOCK " FOR UPDATE OF o SKIP LOCKED"

/* A text column as a string in the current context, or NULL. */
static char *
row_text(uint64 row, int column)
{
	bool		is_null;
	Datum		value = sql_value(row, column, &is_null);

	return is_null ? NULL : TextDatumGetCString(value);
}

/* A jsonb column, copied to the current context, or NULL. */
static Jsonb *
row_jsonb(uint64 row, int column)
{
	bool		is_null;
	Datum		value = sql_value(row, column, &is_null);

	return is_null ? NULL : DatumGetJsonbPCopy(value);
}

/* Params that were too large to be read with the others. */
static Jsonb *
read_large_params(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT params FROM feishu.outbox WHERE id = $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) != 1)
		elog(ERROR, "claimed row " INT64_FORMAT " is gone", id);
	return row_jsonb(0, 1);
}

/* Make a flight of a row of the last result. */
static Flight *
make_flight(Dispatch *dispatch, Lane *lane, uint64 row)
{
	MemoryContext context = AllocSetContextCreate(dispatch->context, "feishu_flow flight",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Flight	   *flight = palloc0(sizeof(Flight));
	bool		is_null;
	Datum		value;

	flight->lane = lane;
	flight->context = context;
	flight->id = sql_int64(row, 1);
	flight->request.namespace_name = row_text(row, 2);
	flight->request.flow_id = row_text(row, 3);
	flight->request.operator_id = row_jsonb(row, 4);
	/* its size is known before it is fetched */
	value = sql_value(row, 5, &is_null);
	if (!is_null && toast_raw_datum_size(value) >= LARGE_PARAMS)
		flight->large_bytes = (int) toast_raw_datum_size(value);
	else if (!is_null)
		flight->request.params = DatumGetJsonbPCopy(value);
	flight->request.is_async = DatumGetBool(sql_value(row, 6, NULL));
	flight->request.idempotent_key = row_text(row, 7);
	flight->request.loop_masks = row_jsonb(row, 8);
	flight->ordering_key = row_text(row, 9);
	flight->attempts = DatumGetInt32(sql_value(row, 10, NULL));
	value = sql_value(row, 11, &is_null);
	flight->max_attempts = is_null ? feishu_guc_max_attempts : DatumGetInt32(value);
	flight->expires_at = DatumGetTimestampTz(sql_value(row, 12, NULL));
	flight->own_key = DatumGetBool(sql_value(row, 13, NULL));
	flight->unanswered = DatumGetBool(sql_value(row, 14, NULL));
	flight->is_ours = origin_is_ours(sql_value(row, 17, NULL), sql_value(row, 15, NULL));
	flight->last_error = row_text(row, 16);
	MemoryContextSwitchTo(old_context);
	return flight;
}

/* Is another flow of the same ordering key in flight? */
static bool
is_behind_another(Dispatch *dispatch, const Flight *flight)
{
	dlist_iter	iter;

	if (flight->ordering_key == NULL)
		return false;
	dlist_foreach(iter, &dispatch->flights)
	{
		Flight	   *other = dlist_container(Flight, node, iter.cur);

		if (other->ordering_key != NULL &&
			strcmp(other->ordering_key, flight->ordering_key) == 0 &&
			strcmp(other->lane->server, flight->lane->server) == 0)
			return true;
	}
	return false;
}

/*
 * May a flight read its large params now?  One of a lane may in any case: what
 * hangs on another server must not take the room of all.
 */
static bool
has_large_room(Dispatch *dispatch, const Flight *flight)
{
	dlist_iter	iter;

	if (dispatch->large_bytes + flight->large_bytes <= LARGE_BYTES)
		return true;
	dlist_foreach(iter, &dispatch->flights)
	{
		Flight	   *other = dlist_container(Flight, node, iter.cur);

		/* those of this claim come later, or have read theirs */
		if (other->lane == flight->lane && other->large_bytes > 0 &&
			other->request.params != NULL)
			return false;
	}
	return true;
}

/*
 * Make a flight of each row of the last result; returns how many.  What is
 * large and finds no room in memory goes back to wait for its turn.  Rows with
 * an ordering key of which it is not known if they are first go to the lane's
 * list instead.
 */
static int
make_flights(Dispatch *dispatch, Lane *lane, uint64 num, bool are_first)
{
	Flight	  **large = palloc(Max(num, 1) * sizeof(Flight *));
	int			num_large = 0;
	int			made = 0;

	for (uint64 row = 0; row < num; row++)
	{
		Flight	   *flight;
		bool		no_key;

		(void) sql_value(row, 9, &no_key);
		if (!no_key && !are_first)
		{
			id_list_add(dispatch, &lane->ready, sql_int64(row, 1));
			lane->keyed = true;
			continue;
		}
		flight = make_flight(dispatch, lane, row);

		/* one with a higher id was sent while this one was not in the queue */
		if (is_behind_another(dispatch, flight))
		{
			flight->is_behind = true;
			flight->silent = true;
			flight->state = 'q';
			flight->large_bytes = 0;
		}
		if (flight->large_bytes > 0)
			large[num_large++] = flight;
		dlist_push_tail(&dispatch->flights, &flight->node);
		dispatch->num_flights++;
		lane->in_flight++;
		made++;
	}

	/* now that the result is not needed any more */
	for (int i = 0; i < num_large; i++)
	{
		Flight	   *flight = large[i];
		MemoryContext old_context;

		if (!has_large_room(dispatch, flight))
		{
			flight->large_bytes = 0;
			flight->state = 'q';
			flight->silent = true;
			continue;
		}
		dispatch->large_bytes += flight->large_bytes;
		old_context = MemoryContextSwitchTo(flight->context);
		flight->request.params = read_large_params(flight->id);
		MemoryContextSwitchTo(old_context);
	}
	return made;
}

/* Claim rows that are in the lane's list, by their ids; returns how many. */
static int
claim_listed(Dispatch *dispatch, Lane *lane, int limit)
{
	static SqlStatement statement = SQL_STATEMENT(
		CLAIM_COLUMNS " WHERE server = $1 AND roleid = $2 AND state = 'q'"
		" AND id = ANY ($3) AND id <> ALL ($4) AND "
		/* no more conditions, lest an index is thought of that has all keys */
		DISPATCH_IS_FIRST("FROM feishu.outbox k WHERE k.id = ANY ($3)")
		" ORDER BY id LIMIT $5" CLAIM_LOCK,
		5, TEXTOID, OIDOID, INT8ARRAYOID, INT8ARRAYOID, INT4OID);
	int			take = Min(lane->ready.num, limit);
	int			num_flights;
	int64	   *ids = flight_ids(dispatch, PG_INT64_MIN, &num_flights);
	Datum		values[5] = {
		CStringGetTextDatum(lane->server),
		ObjectIdGetDatum(lane->roleid),
		ids_array(lane->ready.ids, take),
		ids_array(ids, num_flights),
		Int32GetDatum(take)
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	int			made = make_flights(dispatch, lane, num, true);

	lane->ready.num -= take;
	memmove(lane->ready.ids, lane->ready.ids + take, lane->ready.num * sizeof(int64));
	return made;
}

/* In SQL: so many rows of a lane above its cursor. */
#define CLAIM_ABOVE_CURSOR \
	" WHERE server = $1 AND roleid = $2 AND state = 'q'" \
	" AND next_at IS NULL AND id > $3 AND id <> ALL ($4) ORDER BY id LIMIT $5"

/* Run a statement with them. */
static uint64
read_above_cursor(Dispatch *dispatch, const Lane *lane, SqlStatement *statement, int limit)
{
	int			num_flights;
	int64	   *ids = flight_ids(dispatch, lane->cursor, &num_flights);
	Datum		values[5] = {
		CStringGetTextDatum(lane->server),
		ObjectIdGetDatum(lane->roleid),
		Int64GetDatum(lane->cursor),
		ids_array(ids, num_flights),
		Int32GetDatum(limit)
	};

	return sql_run(statement, values, NULL, SPI_OK_SELECT, NULL);
}

/*
 * Rows above the lane's cursor were looked at, the last one's id is last.  If
 * these were all, those that are behind others of their key included, nothing
 * is left below last_value, which was read before: a row with a lower id that
 * commits later is told by its id.
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

/* Claim rows above the cursor of a lane without ordering keys; returns how many. */
static int
claim_next(Dispatch *dispatch, Lane *lane, int limit)
{
	static SqlStatement statement = SQL_STATEMENT(
		CLAIM_COLUMNS CLAIM_ABOVE_CURSOR CLAIM_LOCK,
		5, TEXTOID, OIDOID, INT8OID, INT8ARRAYOID, INT4OID);
	int64		last_value = discover_last_id(dispatch);
	uint64		num = read_above_cursor(dispatch, lane, &statement, limit);
	int64		last = num > 0 ? sql_int64(num - 1, 1) : 0;
	int			made = make_flights(dispatch, lane, num, false);

	move_cursor(lane, num < (uint64) limit, last, last_value);
	return made;
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
		" SELECT id, server, ordering_key FROM feishu.outbox" CLAIM_ABOVE_CURSOR ")"
		" SELECT o.id, o.ordering_key IS NULL, "
		DISPATCH_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL")
		" FROM page o ORDER BY o.id",
		5, TEXTOID, OIDOID, INT8OID, INT8ARRAYOID, INT4OID);
	int64		last_value = discover_last_id(dispatch);
	int			page_rows = Max(lane->page_rows, limit);
	uint64		num = read_above_cursor(dispatch, lane, &statement, page_rows);
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
		id_list_add(dispatch, &lane->ready, last);
		listed++;
	}
	move_cursor(lane, row == num && num < (uint64) page_rows, last, last_value);
	lane->page_rows = listed < limit ? Min(page_rows * 2, PAGE_ROWS) : 0;
}


/* ---------- Rows that cannot be read ---------- */

/*
 * An error in the middle of a claim: what it made of rows so far, all flights
 * but the first so many, is undone.
 */
static void
forget_claimed(Dispatch *dispatch, Lane *lane, int num_before, int64 large_bytes)
{
	dlist_mutable_iter iter;
	int			num = 0;

	dispatch->large_bytes = large_bytes;
	dlist_foreach_modify(iter, &dispatch->flights)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (num++ < num_before)
			continue;
		id_list_add(dispatch, &lane->ready, flight->id);
		dlist_delete(&flight->node);
		dispatch->num_flights--;
		lane->in_flight--;
		MemoryContextDelete(flight->context);
	}
}

/*
 * Claim in a subtransaction: returns how many, or -1 and the error when a row
 * cannot be read.  With listed_only, rows above the cursor are left alone.
 */
static int
claim_try(Dispatch *dispatch, Lane *lane, int limit, bool listed_only, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int64		large_bytes = dispatch->large_bytes;
	int			num_before = dispatch->num_flights;
	volatile int claimed = 0;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		if (lane->ready.num > 0)
			claimed = claim_listed(dispatch, lane, limit);
		if (claimed < limit && lane->more && !listed_only)
		{
			if (lane->keyed)
				list_next(dispatch, lane, limit - claimed);
			else
				claimed += claim_next(dispatch, lane, limit - claimed);
			/* what has an ordering key, too */
			if (lane->ready.num > 0 && claimed < limit)
				claimed += claim_listed(dispatch, lane, limit - claimed);
		}
		ReleaseCurrentSubTransaction();
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
		forget_claimed(dispatch, lane, num_before, large_bytes);
		claimed = -1;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return claimed;
}

/*
 * Claim up to limit rows of a lane: they become flights, without a call yet.
 * Returns how many.  If one cannot be read (its file is damaged, memory runs
 * out), they are claimed one by one, and only that one fails.
 */
int
claim_rows(Dispatch *dispatch, Lane *lane, int limit)
{
	ErrorData  *error;
	int			claimed = claim_try(dispatch, lane, limit, false, &error);

	if (claimed >= 0)
		return claimed;

	if (lane->ready.num < limit && lane->more)
		list_next(dispatch, lane, limit - lane->ready.num);
	claimed = 0;
	for (int tries = Min(limit, lane->ready.num); tries > 0; tries--)
	{
		int64		id = lane->ready.ids[0];
		int			num = claim_try(dispatch, lane, 1, true, &error);

		if (num >= 0)
		{
			claimed += num;
			continue;
		}
		lane->ready.num--;
		memmove(lane->ready.ids, lane->ready.ids + 1, lane->ready.num * sizeof(int64));
		record_unreadable(dispatch, lane, id, error);
	}
	return claimed;
}
