/*-------------------------------------------------------------------------
 *
 * park.c
 *	  Rows of paused flows, out of the way.
 *
 * A row of a paused flow that was met is parked: its next_at becomes infinity, which no
 * other row has.  So it is not in the index of what is to be sent, where it would be
 * stepped over again and again, and is the last of what is to be sent later.  It
 * still is the first of its ordering key, expires, and may be cancelled or replaced.
 *
 * What a claim has locked is parked by it; what was passed over (page.c), some rows
 * at a time, with pauses.  Nothing depends on that: a row that somebody has locked meanwhile
 * stays where it is, below the cursor of its tier.
 *
 * Who resumes a flow only deletes its row of paused_flow.  Which parked rows are of
 * flows that are not paused any more is found here, by an index on parked rows by their flows;
 * they go back in the order of their ids, some at a time, to be sent at once, for they were due when
 * they were parked.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/park.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/claim.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/park.h"
#include "dispatcher/pauses.h"

/* Rows parked, or put back, in a step. */
#define PARK_ROWS			200

/* A flow that was resumed, with rows that are parked. */
typedef struct ResumedFlow
{
	char	   *server;
	char	   *namespace_name;
	char	   *flow_id;
	int64		after;			/* rows with an id up to this were put back */
} ResumedFlow;

static List *resumed = NIL;
static MemoryContext context = NULL;	/* of the list */
static bool look_for_resumed = true;
static bool some_passed = false;	/* a tier may have rows to park */


/* ---------- Parking ---------- */

/* Park rows that this transaction has locked. */
void
park_rows(const int64 *ids, int num)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET next_at = 'infinity' WHERE id = ANY ($1) AND state = 'q'",
		1, INT8ARRAYOID);
	Datum		values[1];

	if (num == 0)
		return;
	values[0] = array_of_ids(ids, num);
	sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL);
}

/* Rows of a tier above this id were passed over. */
void
park_expect(Tier *tier, int64 after)
{
	tier->park.after = tier->park.rows ? Min(tier->park.after, after) : after;
	tier->park.rows = some_passed = true;
}

/* Likewise delayed ones that were due, after this time, and of this time after this id. */
void
park_expect_due(Tier *tier, TimestampTz after, int64 after_id)
{
	TierPark   *park = &tier->park;

	if (!park->due || after < park->due_after ||
		(after == park->due_after && after_id < park->due_after_id))
	{
		park->due_after = after;
		park->due_after_id = after_id;
	}
	park->due = some_passed = true;
}

/*
 * Park those of some rows that nobody has locked, nor changed meanwhile.  Their locks, and
 * what went wrong, go with a subtransaction.
 */
typedef struct ParkSome
{
	Tier	   *tier;
	int64	   *ids;
	int			num;
} ParkSome;

static void
park_some(void *arg)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET next_at = 'infinity' WHERE id = ANY (ARRAY("
		"SELECT o.id FROM feishu_internal.outbox o WHERE o.id = ANY ($1) AND o.state = 'q'"
		" AND o.id <> ALL ($2) AND " PAUSES_HAVE("o", "$3")
		" AND COALESCE(o.next_at, '-infinity') <= $4 FOR UPDATE SKIP LOCKED))",
		4, INT8ARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TIMESTAMPTZOID);
	ParkSome   *some = arg;
	const Lane *lane = some->tier->lane;
	Datum		values[4] = {
		array_of_ids(some->ids, some->num),
		claim_flying_ids(lane, PG_INT64_MIN),
		pauses_flows(lane),
		TimestampTzGetDatum(GetCurrentTimestamp())
	};

	if (some->num > 0)
		sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL);
}

/* The ids of those rows of the last result that are to be parked, which their third
 * column says. */
static ParkSome
read_some(Tier *tier, uint64 num)
{
	ParkSome	some = {tier, palloc(Max(num, 1) * sizeof(int64)), 0};

	for (uint64 row = 0; row < num; row++)
	{
		if (DatumGetBool(sql_value(row, 3, NULL)))
			some.ids[some.num++] = sql_int64(row, 1);
	}
	return some;
}

/* Rows that cannot be parked, whyever, are passed over as they are. */
static void
park_try(ParkSome some)
{
	ErrorData  *error;

	if (!transaction_try(park_some, &some, &error))
		ereport(DEBUG1,
				(errmsg_internal("feishu_flow could not park rows of a paused flow: %s", error->message)));
}

/* Park some of a tier that were passed over; false: there are no more. */
static bool
park_passed(Tier *tier)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT r.id, NULL::timestamptz, " PAUSES_HAVE("r", "$6") " FROM ("
		"SELECT id, namespace, flow_id FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND priority = $3 AND state = 'q' AND next_at IS NULL"
		" AND id > $4 AND id <= $5 ORDER BY id LIMIT $7) r ORDER BY r.id",
		7, TEXTOID, OIDOID, INT2OID, INT8OID, INT8OID, TEXTARRAYOID, INT4OID);
	const Lane *lane = tier->lane;
	Datum		values[7] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		Int16GetDatum(tier->priority),
		Int64GetDatum(tier->park.after),
		Int64GetDatum(tier->cursor),
		pauses_flows(lane),
		Int32GetDatum(PARK_ROWS)
	};
	uint64		num;

	if (!tier->park.rows)
		return false;
	num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	tier->park.rows = num == PARK_ROWS;
	if (num > 0)
		tier->park.after = sql_int64(num - 1, 1);
	park_try(read_some(tier, num));
	return tier->park.rows;
}

/* Likewise delayed ones. */
static bool
park_due(Tier *tier)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT r.id, r.next_at, " PAUSES_HAVE("r", "$7") " FROM ("
		"SELECT id, next_at, namespace, flow_id FROM feishu_internal.outbox"
		" WHERE server = $1 AND roleid = $2 AND priority = $3 AND state = 'q' AND next_at IS NOT NULL"
		" AND (next_at, id) > ($4, $5) AND next_at <= $6 ORDER BY next_at, id LIMIT $8) r ORDER BY r.next_at, r.id",
		8, TEXTOID, OIDOID, INT2OID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, TEXTARRAYOID, INT4OID);
	const Lane *lane = tier->lane;
	Datum		values[8] = {
		CStringGetTextDatum(lane->key.server),
		ObjectIdGetDatum(lane->key.roleid),
		Int16GetDatum(tier->priority),
		TimestampTzGetDatum(tier->park.due_after),
		Int64GetDatum(tier->park.due_after_id),
		TimestampTzGetDatum(tier->due_floor),
		pauses_flows(lane),
		Int32GetDatum(PARK_ROWS)
	};
	uint64		num;

	if (!tier->park.due)
		return false;
	num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	tier->park.due = num == PARK_ROWS;
	if (num > 0)
	{
		tier->park.due_after = DatumGetTimestampTz(sql_value(num - 1, 2, NULL));
		tier->park.due_after_id = sql_int64(num - 1, 1);
	}
	park_try(read_some(tier, num));
	return tier->park.due;
}

/* Park some of the rows of the first tier that has any; false: none has. */
static bool
park_next(void)
{
	for (int i = 0; i < lane_count(); i++)
	{
		Lane	   *lane = lane_all()[i];

		for (int j = 0; j < lane->num_tiers; j++)
		{
			Tier	   *tier = lane->tiers[j];

			if (!pauses_any(lane))
				tier->park = (TierPark) {0};
			if (tier->park.rows || tier->park.due)
			{
				(void) park_passed(tier);
				(void) park_due(tier);
				return true;
			}
		}
	}
	return false;
}


/* ---------- Putting back ---------- */

/* Flows may have been resumed, or rows of them been left. */
void
park_look_for_resumed(void)
{
	look_for_resumed = true;
}

/* List the flows that have parked rows, and are not paused. */
static void
list_resumed(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH RECURSIVE parked AS ("
		" (SELECT server, namespace COLLATE \"C\" AS namespace, flow_id COLLATE \"C\" AS flow_id FROM feishu_internal.outbox"
		"  WHERE state = 'q' AND next_at = 'infinity'"
		"  ORDER BY server, namespace COLLATE \"C\", flow_id COLLATE \"C\" LIMIT 1)"
		" UNION ALL"
		" SELECT n.server, n.namespace, n.flow_id FROM parked p, LATERAL"
		" (SELECT o.server, o.namespace COLLATE \"C\" AS namespace, o.flow_id COLLATE \"C\" AS flow_id FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at = 'infinity'"
		"  AND (o.server, o.namespace COLLATE \"C\", o.flow_id COLLATE \"C\") > (p.server, p.namespace, p.flow_id)"
		"  ORDER BY o.server, o.namespace COLLATE \"C\", o.flow_id COLLATE \"C\" LIMIT 1) n)"
		" SELECT server, namespace, flow_id FROM parked",
		0, InvalidOid);
	uint64		num = sql_run(&statement, NULL, NULL, SPI_OK_SELECT, NULL);
	MemoryContext old_context;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "feishu_flow resumed flows", ALLOCSET_SMALL_SIZES);
	resumed = NIL;
	MemoryContextReset(context);
	old_context = MemoryContextSwitchTo(context);
	for (uint64 row = 0; row < num; row++)
	{
		ResumedFlow *flow = palloc(sizeof(ResumedFlow));

		flow->server = TextDatumGetCString(sql_value(row, 1, NULL));
		flow->namespace_name = TextDatumGetCString(sql_value(row, 2, NULL));
		flow->flow_id = TextDatumGetCString(sql_value(row, 3, NULL));
		flow->after = PG_INT64_MIN;
		if (!pauses_hold_flow(flow->server, flow->namespace_name, flow->flow_id))
			resumed = lappend(resumed, flow);
	}
	MemoryContextSwitchTo(old_context);
	look_for_resumed = false;
}

/* Put back some rows of a flow, or with limit 1 one. */
typedef struct PutBack
{
	ResumedFlow *flow;
	int			limit;
	uint64		num;			/* result: how many were */
} PutBack;

static void
put_back(void *arg)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET next_at = NULL WHERE id = ANY (ARRAY("
		"SELECT id FROM feishu_internal.outbox WHERE server = $1 AND namespace COLLATE \"C\" = $2"
		" AND flow_id COLLATE \"C\" = $3 AND state = 'q' AND next_at = 'infinity'"
		" AND id > $4 ORDER BY id LIMIT $5 FOR UPDATE SKIP LOCKED)) RETURNING id, server, roleid, priority",
		5, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT4OID);
	PutBack    *back = arg;
	ResumedFlow *flow = back->flow;
	Datum		values[5] = {
		CStringGetTextDatum(flow->server),
		CStringGetTextDatum(flow->namespace_name),
		CStringGetTextDatum(flow->flow_id),
		Int64GetDatum(flow->after),
		Int32GetDatum(back->limit)
	};
	int64		last = flow->after;

	back->num = sql_run(&statement, values, NULL, SPI_OK_UPDATE_RETURNING, NULL);
	for (uint64 row = 0; row < back->num; row++)
	{
		int64		id = sql_int64(row, 1);
		Lane	   *lane = lane_get(TextDatumGetCString(sql_value(row, 2, NULL)),
									DatumGetObjectId(sql_value(row, 3, NULL)));

		tier_expect_from(lane_tier(lane, DatumGetInt16(sql_value(row, 4, NULL))), id);
		last = Max(last, id);
	}
	flow->after = last;
}

/* The flow's rows cannot be put back at once: try one, and pass over it if it is the
 * one that cannot. */
static bool
put_back_singly(ResumedFlow *flow)
{
	static SqlStatement first = SQL_STATEMENT(
		"SELECT id FROM feishu_internal.outbox WHERE server = $1 AND namespace COLLATE \"C\" = $2"
		" AND flow_id COLLATE \"C\" = $3 AND state = 'q' AND next_at = 'infinity'"
		" AND id > $4 ORDER BY id LIMIT 1",
		4, TEXTOID, TEXTOID, TEXTOID, INT8OID);
	Datum		values[4] = {
		CStringGetTextDatum(flow->server),
		CStringGetTextDatum(flow->namespace_name),
		CStringGetTextDatum(flow->flow_id),
		Int64GetDatum(flow->after)
	};
	PutBack		back = {flow, 1, 0};
	ErrorData  *error;
	int64		id;

	if (sql_run(&first, values, NULL, SPI_OK_SELECT, NULL) == 0)
		return false;
	id = sql_int64(0, 1);
	if (!transaction_try(put_back, &back, &error))
	{
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("feishu_flow could not resume flow %lld, and tries again: %s",
						(long long) id, error->message)));
		flow->after = id;
	}
	return true;
}

/* Put back some rows of the first flow that was resumed; false: there is none. */
static bool
put_back_next(void)
{
	PutBack		back;
	ErrorData  *error;
	bool		more;

	if (look_for_resumed)
		list_resumed();
	if (resumed == NIL)
		return false;
	back = (PutBack) {linitial(resumed), PARK_ROWS, 0};
	/* it may be paused again */
	if (pauses_hold_flow(back.flow->server, back.flow->namespace_name, back.flow->flow_id))
		more = false;
	else if (transaction_try(put_back, &back, &error))
		more = back.num == PARK_ROWS;
	else
		more = put_back_singly(back.flow);
	if (!more)
		resumed = list_delete_first(resumed);
	return true;
}


/* ---------- Steps ---------- */

/* Is there something to do, by now? */
bool
park_is_wanted(void)
{
	return look_for_resumed || resumed != NIL || some_passed;
}

/* Do some of it. */
void
park_step(void)
{
	if (!put_back_next())
		some_passed = park_next();
}

/* A transaction has failed: of what was done nothing is known. */
void
park_begin_anew(void)
{
	resumed = NIL;
	look_for_resumed = true;
	some_passed = false;
}
