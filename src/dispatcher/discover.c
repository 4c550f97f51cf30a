/*-------------------------------------------------------------------------
 *
 * src/dispatcher/discover.c
 *	  The dispatcher's lanes: which there are, and which of them have rows.
 *
 * A lane is found when a row of it is, and is never forgotten.  Rows that may be
 * sent at once are read by claim_rows.c from where it ended last; a row that becomes
 * visible below that point (its transaction committed late, or it was put back)
 * is told with its id (notify.c), and is found here, to be claimed by id.
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
#include "dispatcher/discover.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/ordering.h"
#include "dispatcher/park.h"
#include "dispatcher/pauses.h"
#include "queue/flow_id.h"

/* Rows looked at for new lanes at each notification. */
#define DISCOVER_ROWS		256

/* Of a tier where rows of paused flows are passed over, so many are claimed by id. */
#define PASSING_ROWS		256

/* With so many in its list, a tier looks for others below its cursor itself. */
#define LISTED_ROWS			2048

/* Ids looked at for them at most, counted from the newest. */
#define DISCOVER_IDS		20000

/* Drawn last, when we looked. */
static int64 last_id = 0;


/* Look which id was drawn last. */
int64
discover_last_id(void)
{
	Oid			outbox;
	Oid			last_id_table;

	sql_find_outbox(&outbox, &last_id_table);
	last_id = flow_id_last(last_id_table);
	return last_id;
}

/* The tier of a row of the last result, of a lane. */
static Tier *
row_tier(uint64 row)
{
	return lane_tier(lane_get(TextDatumGetCString(sql_value(row, 1, NULL)),
							  DatumGetObjectId(sql_value(row, 2, NULL))),
					 DatumGetInt16(sql_value(row, 3, NULL)));
}

/* Find every tier that has rows which may be sent at once, from the beginning of
 * the index. */
static void
discover_ready(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH RECURSIVE ready AS ("
		" (SELECT priority, roleid, server FROM feishu_internal.outbox"
		"  WHERE state = 'q' AND next_at IS NULL ORDER BY priority, roleid, server LIMIT 1)"
		" UNION ALL"
		" SELECT n.priority, n.roleid, n.server FROM ready l, LATERAL"
		" (SELECT o.priority, o.roleid, o.server FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at IS NULL"
		"  AND (o.priority, o.roleid, o.server) > (l.priority, l.roleid, l.server)"
		"  ORDER BY o.priority, o.roleid, o.server LIMIT 1) n)"
		" SELECT server, roleid, priority FROM ready",
		0, InvalidOid);
	uint64		num = sql_run(&statement, NULL, NULL, SPI_OK_SELECT, NULL);

	for (uint64 row = 0; row < num; row++)
		tier_expect_more(row_tier(row));
}

static int
compare_tiers(const void *a, const void *b)
{
	const Tier *left = *(Tier *const *) a;
	const Tier *right = *(Tier *const *) b;
	const LaneKey *left_key = &left->lane->key;
	const LaneKey *right_key = &right->lane->key;

	if (left->priority != right->priority)
		return left->priority - right->priority;
	if (left_key->roleid != right_key->roleid)
		return left_key->roleid < right_key->roleid ? -1 : 1;
	return strcmp(left_key->server, right_key->server);
}

/* All tiers, in the order of the index, so many. */
static Tier **
list_tiers(int *num)
{
	Lane	   *const *lanes = lane_all();
	Tier	  **tiers;
	int			most = 0;

	for (int i = 0; i < lane_count(); i++)
		most += lanes[i]->num_tiers;
	tiers = palloc(Max(most, 1) * sizeof(Tier *));
	*num = 0;
	for (int i = 0; i < lane_count(); i++)
	{
		memcpy(tiers + *num, lanes[i]->tiers, lanes[i]->num_tiers * sizeof(Tier *));
		*num += lanes[i]->num_tiers;
	}
	qsort(tiers, *num, sizeof(Tier *), compare_tiers);
	return tiers;
}

/* Columns of gaps, as arrays: what is between two values of the last one. */
typedef struct Gaps
{
	Datum	   *columns[4];
	int			num;
} Gaps;

static void
add_gap(Gaps *gaps, Datum server, Datum roleid, Datum after, Datum before)
{
	Datum		values[4] = {server, roleid, after, before};

	for (int i = 0; i < (int) lengthof(values); i++)
		gaps->columns[i][gaps->num] = values[i];
	gaps->num++;
}

/* Room for what is between so many values. */
static Gaps
gaps_make(int num)
{
	Gaps		gaps = {.num = 0};

	for (int i = 0; i < (int) lengthof(gaps.columns); i++)
		gaps.columns[i] = palloc((2 * num + 1) * sizeof(Datum));
	return gaps;
}

static Datum
gaps_array(const Gaps *gaps, int column, Oid type)
{
	return array_of(gaps->columns[column], gaps->num, type);
}

/*
 * The same, but of known tiers only rows above their cursors are looked for: what
 * an old snapshot keeps of the rows that they had is not stepped over.  New ones
 * are looked for in the gaps before, between and behind the known ones.
 */
static void
discover_new(void)
{
	/* a bound on several columns at once would not end a scan at its upper end */
	static SqlStatement statement = SQL_STATEMENT(
		"WITH RECURSIVE priority (priority, roleid, server, before) AS ("
		" SELECT priority, NULL::oid, NULL::text COLLATE \"C\", before FROM unnest($1, $2) AS g (priority, before)"
		" UNION ALL"
		" SELECT n.priority::int4, n.roleid, n.server, p.before FROM priority p, LATERAL"
		" (SELECT o.priority, o.roleid, o.server FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at IS NULL AND o.priority > p.priority AND o.priority < p.before"
		"  ORDER BY o.priority, o.roleid, o.server LIMIT 1) n),"
		" role (priority, roleid, server, before) AS ("
		" (SELECT priority, roleid, NULL::text COLLATE \"C\", before"
		"  FROM unnest($3, $4, $5) AS g (priority, roleid, before)"
		"  UNION ALL SELECT priority, roleid, server, 4294967295::oid FROM priority WHERE roleid IS NOT NULL)"
		" UNION ALL"
		" SELECT r.priority, n.roleid, n.server, r.before FROM role r, LATERAL"
		" (SELECT o.roleid, o.server FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at IS NULL"
		"  AND o.priority = r.priority AND o.roleid > r.roleid AND o.roleid < r.before"
		"  ORDER BY o.roleid, o.server LIMIT 1) n),"
		" server (priority, roleid, name, before, is_new) AS ("
		" (SELECT priority, roleid, name COLLATE \"C\", before COLLATE \"C\", false"
		"  FROM unnest($6, $7, $8, $9) AS g (priority, roleid, name, before)"
		"  UNION ALL SELECT priority, roleid, server, $10 COLLATE \"C\", true FROM role WHERE server IS NOT NULL)"
		" UNION ALL"
		" SELECT s.priority, s.roleid, n.server, s.before, true FROM server s, LATERAL"
		" (SELECT o.server FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at IS NULL AND o.priority = s.priority AND o.roleid = s.roleid"
		"  AND o.server > s.name AND o.server < s.before"
		"  ORDER BY o.server LIMIT 1) n)"
		" SELECT name, roleid, priority::int2 FROM server WHERE is_new",
		10, INT4ARRAYOID, INT4ARRAYOID, INT4ARRAYOID, OIDARRAYOID, OIDARRAYOID,
		INT4ARRAYOID, OIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID);
	static SqlStatement above = SQL_STATEMENT(
		"SELECT l.n FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS l (server, roleid, priority, cursor, n), LATERAL"
		" (SELECT FROM feishu_internal.outbox o WHERE o.server = l.server AND o.roleid = l.roleid"
		"  AND o.priority = l.priority"
		"  AND o.state = 'q' AND o.next_at IS NULL AND o.id > l.cursor ORDER BY o.id LIMIT 1) r",
		4, TEXTARRAYOID, OIDARRAYOID, INT2ARRAYOID, INT8ARRAYOID);
	int			num;
	Tier	  **known = list_tiers(&num);
	Gaps		priorities = gaps_make(num);
	Gaps		roles = gaps_make(num);
	Gaps		servers = gaps_make(num);
	char		last[NAMEDATALEN];
	Datum		values[10];
	uint64		found;

	/* by its bytes, no name comes after this */
	memset(last, 0xff, sizeof(last) - 1);
	last[sizeof(last) - 1] = '\0';
	values[9] = CStringGetTextDatum(last);

	/* gaps between priorities, in each priority between roles, and in each of these
	 * between servers */
	for (int i = 0; i < num; i++)
	{
		const Tier *tier = known[i];
		const Tier *before = i > 0 ? known[i - 1] : NULL;
		const Tier *after = i < num - 1 ? known[i + 1] : NULL;
		bool		is_first = before == NULL || before->priority != tier->priority;
		bool		is_last = after == NULL || after->priority != tier->priority;
		bool		is_first_of_role = is_first || before->lane->key.roleid != tier->lane->key.roleid;
		bool		is_last_of_role = is_last || after->lane->key.roleid != tier->lane->key.roleid;
		Datum		priority = Int32GetDatum(tier->priority);
		Datum		roleid = ObjectIdGetDatum(tier->lane->key.roleid);
		Datum		server = CStringGetTextDatum(tier->lane->key.server);

		if (is_first)
		{
			add_gap(&priorities, (Datum) 0, (Datum) 0,
					Int32GetDatum(before == NULL ? PG_INT16_MIN - 1 : before->priority), priority);
			add_gap(&roles, priority, (Datum) 0, ObjectIdGetDatum(InvalidOid), roleid);
		}
		if (is_last_of_role)
			add_gap(&roles, priority, (Datum) 0, roleid,
					ObjectIdGetDatum(is_last ? OID_MAX : after->lane->key.roleid));
		if (is_first_of_role)
			add_gap(&servers, priority, roleid, CStringGetTextDatum(""), server);
		add_gap(&servers, priority, roleid, server,
				is_last_of_role ? values[9] : CStringGetTextDatum(after->lane->key.server));
	}
	add_gap(&priorities, (Datum) 0, (Datum) 0,
			Int32GetDatum(num == 0 ? PG_INT16_MIN - 1 : known[num - 1]->priority),
			Int32GetDatum(PG_INT16_MAX + 1));
	values[0] = gaps_array(&priorities, 2, INT4OID);
	values[1] = gaps_array(&priorities, 3, INT4OID);
	values[2] = gaps_array(&roles, 0, INT4OID);
	values[3] = gaps_array(&roles, 2, OIDOID);
	values[4] = gaps_array(&roles, 3, OIDOID);
	values[5] = gaps_array(&servers, 0, INT4OID);
	values[6] = gaps_array(&servers, 1, OIDOID);
	values[7] = gaps_array(&servers, 2, TEXTOID);
	values[8] = gaps_array(&servers, 3, TEXTOID);
	found = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	for (uint64 row = 0; row < found; row++)
		(void) row_tier(row);	/* a new one is open */

	servers.num = 0;
	for (int i = 0; i < num; i++)
		add_gap(&servers, CStringGetTextDatum(known[i]->lane->key.server),
				ObjectIdGetDatum(known[i]->lane->key.roleid),
				Int16GetDatum(known[i]->priority), Int64GetDatum(known[i]->cursor));
	values[0] = gaps_array(&servers, 0, TEXTOID);
	values[1] = gaps_array(&servers, 1, OIDOID);
	values[2] = gaps_array(&servers, 2, INT2OID);
	values[3] = gaps_array(&servers, 3, INT8OID);
	found = sql_run(&above, values, NULL, SPI_OK_SELECT, NULL);
	for (uint64 row = 0; row < found; row++)
		tier_expect_more(known[sql_int64(row, 1) - 1]);
}

/* Find every tier that has delayed rows, and when the first is due. */
static void
discover_delayed(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"WITH RECURSIVE delayed AS ("
		" (SELECT priority, roleid, server, next_at FROM feishu_internal.outbox"
		"  WHERE state = 'q' AND next_at IS NOT NULL"
		"  ORDER BY priority, roleid, server, next_at LIMIT 1)"
		" UNION ALL"
		" SELECT n.priority, n.roleid, n.server, n.next_at FROM delayed l, LATERAL"
		" (SELECT o.priority, o.roleid, o.server, o.next_at FROM feishu_internal.outbox o"
		"  WHERE o.state = 'q' AND o.next_at IS NOT NULL"
		"  AND (o.priority, o.roleid, o.server) > (l.priority, l.roleid, l.server)"
		"  ORDER BY o.priority, o.roleid, o.server, o.next_at LIMIT 1) n)"
		" SELECT server, roleid, priority, next_at FROM delayed",
		0, InvalidOid);
	uint64		num = sql_run(&statement, NULL, NULL, SPI_OK_SELECT, NULL);

	for (uint64 row = 0; row < num; row++)
		tier_expect_due(row_tier(row), DatumGetTimestampTz(sql_value(row, 4, NULL)));
}

/* A row that was put back, or committed late, has an id so low that lanes look for
 * it themselves: there may be delayed ones of new lanes, too. */
static bool look_at_delayed = false;

/*
 * Find every lane that has rows, and have it looked at; from_start: from the
 * beginning, for rows of which nobody told.
 */
void
discover_all(bool from_start)
{
	(void) discover_last_id();
	if (from_start)
	{
		/* discover_delayed will say which have delayed rows */
		lane_reopen_all(0, DT_NOEND);
		ordering_expect(PG_INT64_MIN);
	}
	if (from_start || lane_count() == 0)
		discover_ready();
	else
		discover_new();
	if (from_start || look_at_delayed)
		discover_delayed();
	look_at_delayed = false;
}

/*
 * In SQL: rows to look at, and whether they may be sent.  What is behind another
 * flow of its ordering key is left to that one's end.
 */
#define DISCOVER_PAGE(which) \
	"WITH page AS MATERIALIZED (" \
	" SELECT server, roleid, priority, id, next_at, ordering_key, expires_at, namespace, flow_id" \
	" FROM feishu_internal.outbox" \
	" WHERE state = 'q' AND id >= $1 AND " which ")" \
	" SELECT o.server, o.roleid, o.priority, o.id, o.next_at, " \
	ORDERING_IS_FIRST("FROM page k WHERE k.ordering_key IS NOT NULL", "$3") \
	", o.expires_at, o.namespace, o.flow_id FROM page o ORDER BY o.id"

/*
 * See a row of the last result that may be sent at once.  One above the cursor is found there,
 * but what is passed over does not hold it up.  One below is claimed by its id, or, if its
 * flow is paused, parked.
 */
static void
see_row(uint64 row, Tier *tier, int64 id)
{
	bool		is_held = pauses_hold(tier->lane, sql_value(row, 8, NULL), sql_value(row, 9, NULL));

	if (id > tier->cursor && (is_held || !tier->passing || tier->ready.num >= PASSING_ROWS))
		tier_expect_more(tier);
	else if (is_held)
		park_expect(tier, id - 1);
	else if (tier->ready.num >= LISTED_ROWS)
		tier_expect_from(tier, id);
	else if (DatumGetBool(sql_value(row, 6, NULL)))
		tier_expect_row(tier, id);
}

/* Look at the rows of the last result; returns the last one's id. */
static int64
see_page(uint64 num)
{
	int64		id = 0;

	for (uint64 i = 0; i < num; i++)
	{
		bool		is_null;
		Datum		next_at = sql_value(i, 5, &is_null);
		Tier	   *tier = row_tier(i);

		id = sql_int64(i, 4);
		maintain_expect(DatumGetTimestampTz(sql_value(i, 7, NULL)));
		if (is_null)
		{
			see_row(i, tier, id);
			continue;
		}
		tier_expect_due(tier, DatumGetTimestampTz(next_at));
		/* it is parked, and its flow was maybe resumed meanwhile */
		if (TIMESTAMP_IS_NOEND(DatumGetTimestampTz(next_at)))
			park_look_for_resumed();
	}
	return id;
}

/*
 * Look at rows from min_id on, of which somebody told us: find new lanes, and
 * rows that the cursors have passed already.  Returns true if there were too
 * many to see all: then new lanes are to be found by discover_all, and a sweep
 * sees the rest.
 *
 * An old id (a flow put back by retry_flow, a transaction that took long, a
 * prepared one, of which nothing is known) may have millions of finished rows
 * after it.  Then lanes look for themselves: their indexes have none of these.
 */
bool
discover_from(int64 min_id)
{
	static SqlStatement statement = SQL_STATEMENT(
		DISCOVER_PAGE("true ORDER BY id LIMIT $2"),
		3, INT8OID, INT4OID, JSONBOID);
	int64		max_cursor = 0;

	if (min_id < last_id - DISCOVER_IDS)
	{
		lane_reopen_all(min_id, 0);
		maintain_expect(DT_NOBEGIN);
		park_look_for_resumed();
		look_at_delayed = true;
		return true;
	}

	for (int i = 0; i < lane_count(); i++)
	{
		const Lane *lane = lane_all()[i];

		for (int j = 0; j < lane->num_tiers; j++)
			max_cursor = Max(max_cursor, lane->tiers[j]->cursor);
	}

	for (;;)
	{
		Datum		values[3] = {
			Int64GetDatum(min_id),
			Int32GetDatum(DISCOVER_ROWS),
			ordering_floors()
		};
		uint64		num = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
		int64		id = see_page(num);

		if (num < DISCOVER_ROWS)
			return false;
		min_id = id + 1;
		if (id >= max_cursor)
		{
			sweep_add(min_id, discover_last_id());
			return true;
		}
	}
}

/* The same with rows of these ids, which are not too many. */
void
discover_between(int64 min_id, int64 max_id)
{
	static SqlStatement statement = SQL_STATEMENT(
		DISCOVER_PAGE("id <= $2"),
		3, INT8OID, INT8OID, JSONBOID);
	Datum		values[3] = {
		Int64GetDatum(min_id),
		Int64GetDatum(max_id),
		ordering_floors()
	};

	(void) see_page(sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL));
}

/* Has a lane no flows of priorities that it had so far, to be sent now or later? */
bool
discover_lane_is_empty(const Lane *lane)
{
#define LANE_ROWS(when) \
	"(SELECT FROM unnest($3) AS t (priority), LATERAL" \
	" (SELECT FROM feishu_internal.outbox o WHERE o.server = $1 AND o.roleid = $2 AND o.priority = t.priority" \
	"  AND o.state = 'q' AND o." when " LIMIT 1) r)"
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT WHERE NOT EXISTS " LANE_ROWS("next_at IS NULL") " AND NOT EXISTS " LANE_ROWS("next_at IS NOT NULL"),
		3, TEXTOID, OIDOID, INT2ARRAYOID);
	Datum	   *priorities = palloc(Max(lane->num_tiers, 1) * sizeof(Datum));
	Datum		values[3];

	for (int i = 0; i < lane->num_tiers; i++)
		priorities[i] = Int16GetDatum(lane->tiers[i]->priority);
	values[0] = CStringGetTextDatum(lane->key.server);
	values[1] = ObjectIdGetDatum(lane->key.roleid);
	values[2] = array_of(priorities, lane->num_tiers, INT2OID);
	return sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0;
}
