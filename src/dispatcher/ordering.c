/*-------------------------------------------------------------------------
 *
 * src/dispatcher/ordering.c
 *	  The dispatcher's ordering keys: who is next of a key, and where the rows of
 *	  a key begin.
 *
 * Of a key of a lane the row with the lowest id is sent first; the index on keys
 * has them in this order.  An old snapshot may keep the entries of any number
 * of rows that were sent before it, and each look for the first one would step
 * over them.  So of keys that had many ends, a floor is kept: no row of the key
 * with a lower id waits.  Rows with lower ids may appear later (retry_flow, a
 * transaction that commits late): their ids are told, and lower the floors.  A
 * floor that is too low costs time, and nothing else.
 *
 * The table is a cache: it has a bounded number of keys, and those that were not
 * used for long make room.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/lane.h"
#include "dispatcher/ordering.h"

/* Keys with a floor: so many sets of a few keys with the same hash. */
#define FLOOR_SETS			256
#define FLOOR_WAYS			4

/* The longest key, see wire_check_name, with its terminating zero. */
#define KEY_SIZE			256

/* A key that had fewer ends is not worth the trouble. */
#define FLOOR_MIN_ENDS		4

/*
 * Statements know of the floors as they were so long ago, or before so many ends
 * and twice as many as there are keys, if none was lowered.
 */
#define FLOOR_DELAY_MS		100
#define FLOOR_DELAY_ENDS	16

typedef struct KeyFloor
{
	char		server[NAMEDATALEN];	/* key, with roleid and key */
	Oid			roleid;			/* InvalidOid: an entry that is free */
	char		key[KEY_SIZE];
	int64		floor;
	uint32		ends;			/* since it is in the table */
	uint64		used;			/* when, by use_count */
} KeyFloor;

static KeyFloor *floors = NULL; /* FLOOR_SETS * FLOOR_WAYS */
static uint64 use_count = 0;
static int64 highest_floor = PG_INT64_MIN;	/* no floor is higher */

/* Those with many ends, as statements get them. */
static Jsonb *shown = NULL;
static MemoryContext shown_context = NULL;
static TimestampTz shown_at = 0;
static bool shown_is_stale = true;
static int	num_shown = 0;		/* keys */
static int	ends_since = 0;		/* since then */

/* The entry of a key; NULL if there is none, and none is to be made. */
static KeyFloor *
find_floor(const OrderingKey *key, bool make)
{
	uint32		hash;
	KeyFloor   *set;
	KeyFloor   *oldest;

	if (floors == NULL)
		floors = MemoryContextAllocZero(TopMemoryContext,
										FLOOR_SETS * FLOOR_WAYS * sizeof(KeyFloor));
	hash = DatumGetUInt32(hash_any((const unsigned char *) key->key, strlen(key->key)));
	hash = hash_combine(hash, DatumGetUInt32(hash_any((const unsigned char *) key->server,
													  strlen(key->server))));
	hash = hash_combine(hash, murmurhash32(key->roleid));
	set = floors + (hash % FLOOR_SETS) * FLOOR_WAYS;
	oldest = set;
	for (int i = 0; i < FLOOR_WAYS; i++)
	{
		if (set[i].roleid == key->roleid && strcmp(set[i].key, key->key) == 0 &&
			strcmp(set[i].server, key->server) == 0)
			return &set[i];
		if (set[i].used < oldest->used)
			oldest = &set[i];
	}
	if (!make)
		return NULL;
	memset(oldest, 0, sizeof(KeyFloor));
	strlcpy(oldest->server, key->server, NAMEDATALEN);
	oldest->roleid = key->roleid;
	strlcpy(oldest->key, key->key, KEY_SIZE);
	return oldest;
}

/* A key had an end, and no row of it that waits has a lower id than floor. */
static void
note_end(const OrderingKey *key, int64 floor)
{
	KeyFloor   *entry;

	/* longer than any that enqueue_flow takes */
	if (strlen(key->key) >= KEY_SIZE)
		return;
	entry = find_floor(key, true);
	entry->floor = floor;
	entry->ends++;
	entry->used = ++use_count;
	ends_since++;
	highest_floor = Max(highest_floor, floor);
}

/* Rows with this id, or with higher ones, may have appeared. */
void
ordering_expect(int64 min_id)
{
	if (min_id >= highest_floor)
		return;
	for (int i = 0; i < FLOOR_SETS * FLOOR_WAYS; i++)
		floors[i].floor = Min(floors[i].floor, min_id);
	highest_floor = min_id;
	shown_is_stale = true;
}

static void
push_string(JsonbInState *state, JsonbIteratorToken token, const char *text)
{
	JsonbValue	value = {.type = jbvString};

	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	feishu_jsonb_push(state, token, &value);
}

/* Floors of keys with many ends, for ORDERING_IS_FIRST. */
Datum
ordering_floors(void)
{
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext old_context;
	JsonbInState state = {0};

	if (!shown_is_stale && ends_since < FLOOR_DELAY_ENDS + 2 * num_shown && now >= shown_at &&
		now < TimestampTzPlusMilliseconds(shown_at, FLOOR_DELAY_MS))
		return JsonbPGetDatum(shown);

	if (shown_context == NULL)
		shown_context = AllocSetContextCreate(TopMemoryContext, "feishu_flow ordering keys",
											  ALLOCSET_SMALL_SIZES);
	shown_is_stale = true;
	num_shown = ends_since = 0;
	MemoryContextReset(shown_context);
	old_context = MemoryContextSwitchTo(shown_context);
	feishu_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; floors != NULL && i < FLOOR_SETS * FLOOR_WAYS; i++)
	{
		const KeyFloor *entry = &floors[i];

		if (entry->ends < FLOOR_MIN_ENDS)
			continue;
		num_shown++;
		push_string(&state, WJB_KEY, psprintf("%u\n%s\n%s", entry->roleid, entry->key, entry->server));
		push_string(&state, WJB_VALUE, psprintf(INT64_FORMAT, entry->floor));
	}
	feishu_jsonb_push(&state, WJB_END_OBJECT, NULL);
	shown = JsonbValueToJsonb(state.result);
	shown_at = now;
	shown_is_stale = false;
	MemoryContextSwitchTo(old_context);
	return JsonbPGetDatum(shown);
}

static int
compare_keys(const void *a, const void *b)
{
	const OrderingKey *left = a;
	const OrderingKey *right = b;
	int			order = strcmp(left->key, right->key);

	if (order == 0 && left->roleid != right->roleid)
		order = left->roleid < right->roleid ? -1 : 1;
	return order != 0 ? order : strcmp(left->server, right->server);
}

/* Sort the keys, and leave one of each; returns how many. */
static int
unique_keys(OrderingKey *keys, int num)
{
	int			last = 0;

	qsort(keys, num, sizeof(OrderingKey), compare_keys);
	for (int i = 1; i < num; i++)
	{
		if (compare_keys(&keys[last], &keys[i]) != 0)
			keys[++last] = keys[i];
		else
			keys[last].id = Max(keys[last].id, keys[i].id);
	}
	return Min(last + 1, num);
}

/*
 * Find who is next in these keys, of which rows have ended.  Not only if for
 * good: one that goes back to the queue may not be the first any more.  The
 * array is sorted.
 */
void
ordering_find_successors(OrderingKey *keys, int num)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT k.n, n.id, n.next_at, n.priority"
		" FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS k (server, roleid, ordering_key, floor, n)"
		" LEFT JOIN LATERAL (SELECT o.id, o.next_at, o.priority FROM feishu_internal.outbox o"
		"  WHERE o.server = k.server AND o.roleid = k.roleid"
		"  AND o.ordering_key = k.ordering_key AND o.id >= k.floor"
		"  AND o.state = 'q' ORDER BY o.id LIMIT 1) n ON true",
		4, TEXTARRAYOID, OIDARRAYOID, TEXTARRAYOID, INT8ARRAYOID);
	Datum	   *columns[4];
	Datum		values[4];
	TimestampTz now = GetCurrentTimestamp();
	uint64		found;

	if (num == 0)
		return;
	num = unique_keys(keys, num);
	for (int i = 0; i < (int) lengthof(columns); i++)
		columns[i] = palloc(num * sizeof(Datum));
	for (int i = 0; i < num; i++)
	{
		KeyFloor   *entry = find_floor(&keys[i], false);

		columns[0][i] = CStringGetTextDatum(keys[i].server);
		columns[1][i] = ObjectIdGetDatum(keys[i].roleid);
		columns[2][i] = CStringGetTextDatum(keys[i].key);
		columns[3][i] = Int64GetDatum(entry != NULL ? entry->floor : PG_INT64_MIN);
	}
	values[0] = array_of(columns[0], num, TEXTOID);
	values[1] = array_of(columns[1], num, OIDOID);
	values[2] = array_of(columns[2], num, TEXTOID);
	values[3] = array_of(columns[3], num, INT8OID);

	found = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	for (uint64 row = 0; row < found; row++)
	{
		const OrderingKey *key = &keys[sql_int64(row, 1) - 1];
		bool		none;
		bool		at_once;
		Datum		id = sql_value(row, 2, &none);
		Datum		next_at = sql_value(row, 3, &at_once);
		Tier	   *tier;

		note_end(key, none ? key->id : DatumGetInt64(id));
		if (none)
			continue;
		tier = lane_tier(lane_get(key->server, key->roleid), DatumGetInt16(sql_value(row, 4, NULL)));
		if (at_once || DatumGetTimestampTz(next_at) <= now)
			tier_expect_row(tier, DatumGetInt64(id));
		else
			tier_expect_due(tier, DatumGetTimestampTz(next_at));
	}
}
