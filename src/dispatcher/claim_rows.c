/*-------------------------------------------------------------------------
 *
 * src/dispatcher/claim_rows.c
 *	  The dispatcher's reading of the queue: what to send next.
 *
 * Rows that may be sent at once are read by an index on (priority, role, server, id),
 * each time from where the last claim of the lane's tier ended.  So rows that were
 * sent, but that an old snapshot keeps in the index, are not stepped over again
 * and again, and the cost of a claim does not grow with the queue.  A row that
 * becomes visible below that point is found by discover.c, and is claimed by id.
 *
 * Places of a lane go to its highest priority, but for a share of lower ones (share.c);
 * what it cannot use, they do.
 *
 * Of an ordering key of a lane only the row with the lowest id is claimed, whatever the
 * priorities, and only if none of the key is in flight (retry_flow may put back a lower one).  The
 * others are passed over, and found again by ordering.c when that one ends.  Any
 * number of rows may wait behind one, and of the rows before it any number may
 * be kept by an old snapshot: so which is first is asked once for each key, not
 * for each row, and not more than a page of rows is looked at in a transaction.
 *
 * To claim is to lock the row, and to write the ids of all flights into the
 * row of feishu_internal.claim, in one transaction.  After a crash that row says
 * which attempts got no answer (claim_ids.c).  SKIP LOCKED: a row that somebody is about to
 * cancel is left; should he not go through with it, change_flow.c tells its id.
 *
 * Pauses, servers, mappings and rows are read with one snapshot: a flow that was
 * queued after its server was paused or altered, or together with that, is not sent as
 * if that had not been.
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
#include "dispatcher/claim.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/ordering.h"
#include "dispatcher/page.h"
#include "dispatcher/park.h"
#include "dispatcher/pauses.h"


/* The ids of a lane's flights above min_id, as bigint[]. */
Datum
claim_flying_ids(const Lane *lane, int64 min_id)
{
	int64	   *ids = palloc(Max(flight_most_ids(), 1) * sizeof(int64));

	return array_of_ids(ids, flight_ids_of_lane(lane, min_id, ids));
}


/* ---------- Rows ---------- */

#define CLAIM_COLUMNS(lane) "SELECT " lane ", o.* FROM feishu_internal.outbox o"

/*
 * A row that has changed since the snapshot was taken is locked, and looked at, as it is
 * now.  One that was replaced, and so has another key, is left: its server and its pause
 * are known as they were before.  Who replaced it tells its id.
 */
#define CLAIM_IF_KNOWN \
	" AND CASE WHEN o.replaceable THEN o.idempotent_key =" \
	" (SELECT s.idempotent_key FROM feishu_internal.outbox s WHERE s.id = o.id) ELSE true END"

#define CLAIM_LOCK " FOR UPDATE OF o SKIP LOCKED"

/* Rows of paused flows that the attempt under way has met; each is locked. */
static IdList met;

/* Is a row of the last result of a paused flow?  Then it is to be parked. */
static bool
meet_paused(const Claim *claim, uint64 row)
{
	Lane	   *lane = claim->lane;

	if (!pauses_any(lane) ||
		!pauses_hold(lane, sql_value(row, CLAIM_COLUMN(OUTBOX_NAMESPACE), NULL),
					 sql_value(row, CLAIM_COLUMN(OUTBOX_FLOW_ID), NULL)))
		return false;
	if (met.num == met.max)
	{
		met.max = Max(64, met.max * 2);
		met.ids = met.ids ? repalloc(met.ids, met.max * sizeof(int64)) : palloc(met.max * sizeof(int64));
	}
	met.ids[met.num++] = sql_int64(row, CLAIM_COLUMN(OUTBOX_ID));
	/* there may be many */
	lane_tier(lane, DatumGetInt16(sql_value(row, CLAIM_COLUMN(OUTBOX_PRIORITY), NULL)))->passing = true;
	return true;
}

/* How many rows may still be claimed for a lane? */
static int
places_left(const Claim *claim)
{
	return claim->num_places - (claim->lane->load.in_flight - claim->in_flight);
}

/* Claim the first rows that are in the tier's list, by their ids. */
static void
claim_by_id(const Claim *claim, Tier *tier, int num_ids, List **claimed)
{
	static SqlStatement statement = SQL_STATEMENT(
		CLAIM_COLUMNS("1") " WHERE server = $1 AND roleid = $2 AND state = 'q'"
		" AND id = ANY ($3) AND id <> ALL ($4) AND "
		/* no more conditions, lest an index is thought of that has all keys */
		ORDERING_IS_FIRST("FROM feishu_internal.outbox k WHERE k.id = ANY ($3)", "$6")
		/* it was replaced since it was listed, and is due later; then that is told */
		" AND COALESCE(o.next_at, '-infinity') <= $7"
		CLAIM_IF_KNOWN
		" ORDER BY id LIMIT $5" CLAIM_LOCK,
		7, TEXTOID, OIDOID, INT8ARRAYOID, INT8ARRAYOID, INT4OID, JSONBOID, TIMESTAMPTZOID);
	const Lane *lane = claim->lane;
	Datum		values[7] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		array_of_ids(tier->ready.ids, num_ids),
		claim_flying_ids(lane, PG_INT64_MIN),
		Int32GetDatum(num_ids),
		ordering_floors(),
		TimestampTzGetDatum(GetCurrentTimestamp())
	};
	uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, claim->snapshot);

	for (uint64 row = 0; row < num; row++)
	{
		if (!meet_paused(claim, row))
			*claimed = lappend(*claimed, flight_make(claim, row));
	}
	tier_take_rows(tier, num_ids);
}

/* Claim rows that are in the tier's list, so many at most. */
static void
claim_listed(const Claim *claim, Tier *tier, int most, List **claimed)
{
	int			num_ids = Min(tier->ready.num, most);

	if (num_ids > 0)
		claim_by_id(claim, tier, num_ids, claimed);
}

/* A tier, and how many rows of it are to be claimed at most. */
typedef struct Part
{
	const Claim *claim;
	Tier	   *tier;
	int			most;
	int			before;			/* flights of the lane, then */
	ShareRank	rank;
} Part;

static Part
begin_part(const Claim *claim, Tier *tier, int most)
{
	return (Part) {claim, tier, most, claim->lane->load.in_flight, share_rank(tier)};
}

/* How many may still be claimed? */
static int
part_left(const Part *part)
{
	return part->most - (part->claim->lane->load.in_flight - part->before);
}

static void
end_part(const Part *part)
{
	share_note(part->tier, part->rank, part->claim->lane->load.in_flight - part->before);
}

/*
 * Claim rows above the cursors of tiers, so many of each as it has places left.
 * Rows with an ordering key of which it is not known if they are first go to
 * their tier's list instead.
 */
static void
claim_next(const Part *parts, int num_parts, List **claimed)
{
	static SqlStatement statement = SQL_STATEMENT_PLANNED_ONCE(
		"SELECT r.* FROM unnest($1, $2, $6, $3, $4) WITH ORDINALITY"
		" AS l (server, roleid, priority, cursor, places, lane), LATERAL ("
		CLAIM_COLUMNS("l.lane")
		" WHERE o.server = l.server AND o.roleid = l.roleid AND o.priority = l.priority AND o.state = 'q'"
		" AND o.next_at IS NULL AND o.id > l.cursor AND o.id <> ALL ($5)"
		CLAIM_IF_KNOWN
		" ORDER BY o.id LIMIT l.places" CLAIM_LOCK ") r",
		6, TEXTARRAYOID, OIDARRAYOID, INT8ARRAYOID, INT4ARRAYOID, INT8ARRAYOID, INT2ARRAYOID);
	int		   *limits = palloc(num_parts * sizeof(int));
	int64	   *ids = palloc(Max(flight_most_ids(), 1) * sizeof(int64));
	Datum	   *columns[5];
	Datum		values[6];
	int			num_ids = 0;
	uint64		num;
	uint64		row = 0;

	for (int i = 0; i < (int) lengthof(columns); i++)
		columns[i] = palloc(num_parts * sizeof(Datum));
	for (int i = 0; i < num_parts; i++)
	{
		const Tier *tier = parts[i].tier;
		const Lane *lane = tier->lane;

		limits[i] = part_left(&parts[i]);
		columns[0][i] = CStringGetTextDatum(lane->key.server);
		columns[1][i] = ObjectIdGetDatum(lane->key.roleid);
		columns[2][i] = Int64GetDatum(tier->cursor);
		columns[3][i] = Int32GetDatum(limits[i]);
		columns[4][i] = Int16GetDatum(tier->priority);
		num_ids += flight_ids_of_lane(lane, tier->cursor, ids + num_ids);
	}
	values[0] = array_of(columns[0], num_parts, TEXTOID);
	values[1] = array_of(columns[1], num_parts, OIDOID);
	values[2] = array_of(columns[2], num_parts, INT8OID);
	values[3] = array_of(columns[3], num_parts, INT4OID);
	values[4] = array_of_ids(ids, num_ids);
	values[5] = array_of(columns[4], num_parts, INT2OID);

	num = sql_run(&statement, values, NULL, SPI_OK_SELECT, parts[0].claim->snapshot);
	/* a nested loop: in the order of tiers, and of ids */
	for (int i = 0; i < num_parts; i++)
	{
		const Claim *claim = parts[i].claim;
		Tier	   *tier = parts[i].tier;
		int64		last = 0;
		int			seen = 0;

		for (; row < num && sql_int64(row, CLAIM_LANE) == i + 1; row++, seen++)
		{
			bool		no_key;

			last = sql_int64(row, CLAIM_COLUMN(OUTBOX_ID));
			if (meet_paused(claim, row))
				continue;
			(void) sql_value(row, CLAIM_COLUMN(OUTBOX_ORDERING_KEY), &no_key);
			if (no_key)
				*claimed = lappend(*claimed, flight_make(claim, row));
			else
			{
				tier_expect_row(tier, last);
				tier_note_keys(tier, true, tier->page_rows);
			}
		}
		tier_saw_more(tier, seen < limits[i], last, claim->last_id);
	}
	if (row < num)
		elog(ERROR, "claimed rows came in another order");
}

/* Has it nothing but rows above its cursor, that are not known to have ordering keys, or
 * to be of paused flows? */
static bool
is_plain(const Tier *tier)
{
	return tier->ready.num == 0 && !tier->keyed && !tier->passing && tier->more;
}

/* Claim rows of a tier by itself. */
static void
claim_tier(const Claim *claim, Tier *tier, int most, List **claimed)
{
	Part		part = begin_part(claim, tier, most);

	claim_listed(claim, tier, part_left(&part), claimed);
	if (part_left(&part) > 0 && tier->more)
	{
		if (tier->passing || tier->keyed)
			page_list_next(claim, tier, part_left(&part));
		else
			claim_next(&part, 1, claimed);
		/* what has an ordering key, too */
		claim_listed(claim, tier, part_left(&part), claimed);
	}
	end_part(&part);
}

/*
 * Claim rows of lanes: of their highest tiers, of those that are plain by one
 * statement; of lower ones what is their share, and then what places are left for.
 */
static void
claim_lanes(const Claim *claims, int num, List **claimed)
{
	Part	   *plain = palloc(num * sizeof(Part));
	Tier	  **tops = palloc(num * sizeof(Tier *));
	int			num_plain = 0;

	for (int i = 0; i < num; i++)
	{
		const Claim *claim = &claims[i];
		bool		for_top = claim->lane->turn.for_top;
		int			places;
		Tier	   *lower = for_top ? NULL : share_lower(claim->lane, places_left(claim), &places);
		Tier	   *top;

		if (lower != NULL)
			claim_tier(claim, lower, places, claimed);
		top = tops[i] = lane_top(claim->lane, 0);
		if (top == NULL || places_left(claim) <= 0)
			continue;
		if (is_plain(top))
			plain[num_plain++] = begin_part(claim, top, places_left(claim));
		else
			claim_tier(claim, top, places_left(claim), claimed);
	}
	if (num_plain > 0)
		claim_next(plain, num_plain, claimed);
	for (int i = 0; i < num_plain; i++)
	{
		claim_listed(plain[i].claim, plain[i].tier, part_left(&plain[i]), claimed);
		end_part(&plain[i]);
	}

	for (int i = 0; i < num; i++)
	{
		const Lane *lane = claims[i].lane;

		for (int j = 0; j < lane->num_tiers && !lane->turn.for_top && places_left(&claims[i]) > 0; j++)
		{
			Tier	   *tier = lane->tiers[j];

			if (tier != tops[i] && tier_work_at(tier) == 0)
				claim_tier(&claims[i], tier, places_left(&claims[i]), claimed);
		}
	}
}


/* ---------- Rows that cannot be read ---------- */

/* Claim rows: of lanes, or of a tier of one lane one row that is in its list. */
typedef struct Attempt
{
	const Claim *claims;
	int			num;
	Tier	   *listed;			/* NULL: of lanes */
	List	  **claimed;
} Attempt;

static void
attempt(void *arg)
{
	Attempt    *claim = arg;
	int			before = list_length(*claim->claimed);
	ListCell   *cell;

	met = (IdList) {0};
	if (claim->listed != NULL)
		claim_by_id(claim->claims, claim->listed, 1, claim->claimed);
	else
		claim_lanes(claim->claims, claim->num, claim->claimed);
	for_each_from(cell, *claim->claimed, before)
	{
		Flight	   *flight = lfirst(cell);

		if (!flight->end.silent && flight_memory_read_large(flight))
			flight_put_off(flight);
	}
	park_rows(met.ids, met.num);
}

/* In a subtransaction; false and the error when it failed, and then nothing was claimed. */
static bool
claim_try(Attempt claim, ErrorData **error)
{
	int			num = list_length(*claim.claimed);
	int			before = flight_totals()->load.in_flight;

	if (transaction_try(attempt, &claim, error))
		return true;
	*claim.claimed = list_truncate(*claim.claimed, num);
	flight_undo_since(before);
	return false;
}

/* Claim rows of a tier one by one: of those that cannot be read, each by itself. */
static void
claim_singly(const Claim *claim, Tier *tier, List **claimed)
{
	ErrorData  *error;

	if (tier->ready.num < places_left(claim) && tier->more)
		page_list_next(claim, tier, places_left(claim) - tier->ready.num);
	for (int tries = Min(places_left(claim), tier->ready.num); tries > 0; tries--)
	{
		int64		id = tier->ready.ids[0];
		FlightEnd	end;

		if (claim_try((Attempt) {claim, 1, tier, claimed}, &error))
			continue;
		/* it was put back at the end, or is first still */
		tier_forget_row(tier, id);
		end = flight_decide_unreadable(claim->lane, id, error);
		if (!record_unreadable(id, &end))
			continue;
		if (end.state == OUTBOX_QUEUED)
			tier_expect_due(tier, end.next_at);
		else
			/* others of its ordering key were passed over */
			lane_reopen_all(id, 0);
	}
}

/* Claim rows for the places of lanes: flights, which have not begun. */
List *
claim_rows(const Claim *claims, int num)
{
	List	   *claimed = NIL;
	ErrorData  *error;

	if (claim_try((Attempt) {claims, num, NULL, &claimed}, &error))
		return claimed;
	for (int i = 0; i < num; i++)
	{
		const Lane *lane = claims[i].lane;

		if (claim_try((Attempt) {&claims[i], 1, NULL, &claimed}, &error))
			continue;
		for (int j = 0; j < lane->num_tiers && places_left(&claims[i]) > 0; j++)
			claim_singly(&claims[i], lane->tiers[j], &claimed);
	}
	return claimed;
}
