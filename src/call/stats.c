/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Counters of flow calls, by database, server and flow.
 *
 * The counters are in shared memory, so there are none unless the library was
 * preloaded.  They begin at zero when the server starts (a restart after a
 * crash included): nothing is written to disk.  They count attempts, whatever
 * becomes of the transactions that made them.  An attempt that was cancelled
 * has no outcome and is not counted.
 *
 * The table has a fixed number of entries, feishu_flow.track_flows, found by
 * a hash of their names.  When it is full, an entry with few calls makes room.
 * To keep that cheap with any number of entries, a hand goes around the table:
 * of the next so many, it takes the one with the least weight, or the oldest
 * one of several.  The weight is the number of calls, less a little for each
 * time the hand has passed, so that what was called a lot long ago does not
 * stay for good.  That is also how entries of dropped servers and databases
 * go; until then nobody sees them.
 *
 * The lock protects the table and the entries' identities; to count, it is
 * held shared, and the entry's spinlock protects its counters.  To add,
 * evict and reset it is held exclusively, and there is no need of spinlocks.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/stats.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "call/stats.h"

PG_FUNCTION_INFO_V1(feishu_stat_flows);
PG_FUNCTION_INFO_V1(feishu_stat_evictions);
PG_FUNCTION_INFO_V1(feishu_stat_reset);

#define STATS_TRANCHE			"feishu_flow_stats"

/*
 * Names have up to 255 bytes in UTF-8 (wire_check_segment).  In a few of the
 * other encodings that can be more; then the rest is cut off.
 */
#define STATS_NAME_SIZE			256

/* Entries that are looked at to find one that makes room. */
#define STATS_EVICT_SCAN		64

/* What is left of the weight of an entry that was passed over. */
#define STATS_WEIGHT_DECAY		0.99

/* No entry: end of a chain. */
#define STATS_NONE				(-1)

/* How an attempt ended; one column of the view each, in this order. */
typedef enum StatsEnd
{
	STATS_SUCCESS,
	STATS_REFUSED,
	STATS_CREDENTIALS,
	STATS_PERMISSION,
	STATS_NOT_FOUND,
	STATS_KEY_USED,
	STATS_RATE_LIMITED,
	STATS_PLATFORM,
	STATS_BAD_ANSWER,
	STATS_NO_CONNECTION,
	STATS_TIMEOUT,
	STATS_NUM_ENDS
} StatsEnd;

/* Of stat_flows. */
#define STATS_NUM_COLUMNS		(4 + STATS_NUM_ENDS + 8)

typedef struct StatsCounters
{
	int64		calls;
	int64		ends[STATS_NUM_ENDS];
	int64		retries;
	int64		unsent;			/* flows that failed without a call */
	/* times in ms */
	double		total_time;
	double		min_time;
	double		max_time;
	double		mean_time;
	double		sum_var_time;	/* of squared distances from the mean */
} StatsCounters;

typedef struct StatsEntry
{
	/* the identity */
	Oid			databaseid;		/* invalid: the entry is free */
	Oid			serverid;
	uint32		hash;
	int			namespace_len;
	int			flow_id_len;
	char		namespace_name[STATS_NAME_SIZE];
	char		flow_id[STATS_NAME_SIZE];
	TimestampTz since;
	int			next;			/* in the bucket's chain, or the free list */
	/* the counters */
	slock_t		mutex;
	double		weight;			/* calls, less what the hand took */
	StatsCounters counters;
} StatsEntry;

typedef struct StatsTable
{
	LWLock	   *lock;
	int			num_entries;
	int			num_buckets;	/* a power of 2 */
	int			num_used;		/* the first so many have been in use */
	int			free;			/* first of those that are no longer */
	int			hand;			/* where to look for one to evict */
	int64		evictions;
	int			buckets[FLEXIBLE_ARRAY_MEMBER]; /* then the entries */
} StatsTable;

/* What an entry is found by; points to the caller's strings. */
typedef struct StatsKey
{
	Oid			serverid;
	uint32		hash;
	int			namespace_len;
	int			flow_id_len;
	const char *namespace_name;
	const char *flow_id;
} StatsKey;

static StatsTable *table = NULL;	/* NULL: not preloaded */
static StatsEntry *entries = NULL;


/* ---------- Memory ---------- */

static int
table_buckets(void)
{
	return pg_nextpower2_32(Max(feishu_guc_track_flows, 1));
}

/* Where the entries begin. */
static Size
table_entries_offset(void)
{
	return MAXALIGN(add_size(offsetof(StatsTable, buckets),
							 mul_size(table_buckets(), sizeof(int))));
}

static Size
table_size(void)
{
	return add_size(table_entries_offset(),
					mul_size(feishu_guc_track_flows, sizeof(StatsEntry)));
}

void
stats_request_shmem(void)
{
	RequestAddinShmemSpace(table_size());
	RequestNamedLWLockTranche(STATS_TRANCHE, 1);
}

void
stats_startup_shmem(void)
{
	StatsTable *memory;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("feishu_flow statistics", table_size(), &found);
	if (!found)
	{
		memset(memory, 0, table_size());
		memory->lock = &GetNamedLWLockTranche(STATS_TRANCHE)->lock;
		memory->num_entries = feishu_guc_track_flows;
		memory->num_buckets = table_buckets();
		memory->free = STATS_NONE;
		for (int i = 0; i < memory->num_buckets; i++)
			memory->buckets[i] = STATS_NONE;
	}
	LWLockRelease(AddinShmemInitLock);
	table = memory;
	entries = (StatsEntry *) ((char *) memory + table_entries_offset());
}


/* ---------- Entries ---------- */

static int
name_length(const char *name)
{
	int			len = strlen(name);

	return len < STATS_NAME_SIZE ? len : pg_mbcliplen(name, len, STATS_NAME_SIZE - 1);
}

static void
key_init(StatsKey *key, Oid serverid, const char *namespace_name, const char *flow_id)
{
	uint32		hash;

	key->serverid = serverid;
	key->namespace_name = namespace_name;
	key->namespace_len = name_length(namespace_name);
	key->flow_id = flow_id;
	key->flow_id_len = name_length(flow_id);
	hash = hash_combine(murmurhash32(MyDatabaseId), murmurhash32(serverid));
	hash = hash_combine(hash, hash_bytes((const unsigned char *) namespace_name,
										 key->namespace_len));
	key->hash = hash_combine(hash, hash_bytes((const unsigned char *) flow_id,
											  key->flow_id_len));
}

static inline int *
bucket_of(uint32 hash)
{
	return &table->buckets[hash & (table->num_buckets - 1)];
}

/* The entry of a key in this database, or NULL.  The lock is held. */
static StatsEntry *
entry_find(const StatsKey *key)
{
	for (int i = *bucket_of(key->hash); i != STATS_NONE; i = entries[i].next)
	{
		StatsEntry *entry = &entries[i];

		if (entry->hash == key->hash &&
			entry->databaseid == MyDatabaseId &&
			entry->serverid == key->serverid &&
			entry->namespace_len == key->namespace_len &&
			entry->flow_id_len == key->flow_id_len &&
			memcmp(entry->namespace_name, key->namespace_name, key->namespace_len) == 0 &&
			memcmp(entry->flow_id, key->flow_id, key->flow_id_len) == 0)
			return entry;
	}
	return NULL;
}

/* Take an entry out of the table.  The lock is held exclusively. */
static void
entry_remove(StatsEntry *entry)
{
	int			number = entry - entries;
	int		   *link = bucket_of(entry->hash);

	while (*link != number)
		link = &entries[*link].next;
	*link = entry->next;
	entry->databaseid = InvalidOid;
	entry->next = table->free;
	table->free = number;
}

/*
 * Make room: remove the lightest of the entries that come next, the oldest
 * one of several.  All are in use.  The lock is held exclusively.
 */
static void
entry_evict(void)
{
	int			scan = Min(table->num_entries, STATS_EVICT_SCAN);
	StatsEntry *victim = NULL;
	double		least = 0;

	for (int i = 0; i < scan; i++)
	{
		StatsEntry *entry = &entries[table->hand];

		if (victim == NULL || entry->weight < least ||
			(entry->weight == least && entry->since < victim->since))
		{
			victim = entry;
			least = entry->weight;
		}
		entry->weight *= STATS_WEIGHT_DECAY;
		table->hand = (table->hand + 1) % table->num_entries;
	}
	entry_remove(victim);
	table->evictions++;
}

/* The entry of a key, a new one if need be.  The lock is held exclusively. */
static StatsEntry *
entry_find_or_add(const StatsKey *key, TimestampTz now)
{
	StatsEntry *entry = entry_find(key);
	int		   *bucket = bucket_of(key->hash);

	if (entry != NULL)
		return entry;

	if (table->free == STATS_NONE && table->num_used == table->num_entries)
		entry_evict();
	if (table->free != STATS_NONE)
	{
		entry = &entries[table->free];
		table->free = entry->next;
	}
	else
		entry = &entries[table->num_used++];

	memset(entry, 0, sizeof(StatsEntry));
	entry->databaseid = MyDatabaseId;
	entry->serverid = key->serverid;
	entry->hash = key->hash;
	entry->namespace_len = key->namespace_len;
	entry->flow_id_len = key->flow_id_len;
	memcpy(entry->namespace_name, key->namespace_name, key->namespace_len);
	memcpy(entry->flow_id, key->flow_id, key->flow_id_len);
	entry->since = now;
	SpinLockInit(&entry->mutex);
	entry->next = *bucket;
	*bucket = entry - entries;
	return entry;
}


/* ---------- Counting ---------- */

/*
 * A flow that was accepted is a success, even if its answer cannot be jsonb
 * of this database: so it is in the queue, too.
 */
static StatsEnd
end_of_outcome(const FlowOutcome *outcome)
{
	if (outcome->action == FLOW_SUCCEEDED)
		return STATS_SUCCESS;
	switch (outcome->sqlstate)
	{
		case ERRCODE_FEISHU_REFUSED:
			return STATS_REFUSED;
		case ERRCODE_FEISHU_CREDENTIALS:
			return STATS_CREDENTIALS;
		case ERRCODE_FEISHU_PERMISSION:
			return STATS_PERMISSION;
		case ERRCODE_FEISHU_NOT_FOUND:
			return STATS_NOT_FOUND;
		case ERRCODE_FEISHU_KEY_USED:
			return STATS_KEY_USED;
		case ERRCODE_FEISHU_RATE_LIMIT:
			return STATS_RATE_LIMITED;
		case ERRCODE_FEISHU_BAD_ANSWER:
			return STATS_BAD_ANSWER;
		case ERRCODE_FEISHU_NO_CONNECTION:
			return STATS_NO_CONNECTION;
		case ERRCODE_FEISHU_TIMEOUT:
			return STATS_TIMEOUT;
		default:
			Assert(outcome->sqlstate == ERRCODE_FEISHU_PLATFORM);
			return STATS_PLATFORM;
	}
}

/* Add a time, by Welford's method.  calls includes it already. */
static void
counters_add_time(StatsCounters *counters, double ms)
{
	double		old_mean = counters->mean_time;

	counters->total_time += ms;
	if (counters->calls == 1 || ms < counters->min_time)
		counters->min_time = ms;
	if (ms > counters->max_time)
		counters->max_time = ms;
	counters->mean_time += (ms - old_mean) / counters->calls;
	counters->sum_var_time += (ms - old_mean) * (ms - counters->mean_time);
}

/*
 * The entry of a flow, locked; NULL if nothing is counted.  To be released by
 * entry_release.
 */
static StatsEntry *
entry_lock(Oid serverid, const char *namespace_name, const char *flow_id)
{
	StatsKey	key;
	StatsEntry *entry;

	if (table == NULL || table->num_entries == 0)
		return NULL;
	key_init(&key, serverid, namespace_name, flow_id);

	LWLockAcquire(table->lock, LW_SHARED);
	entry = entry_find(&key);
	if (entry == NULL)
	{
		TimestampTz now = GetCurrentTimestamp();

		LWLockRelease(table->lock);
		LWLockAcquire(table->lock, LW_EXCLUSIVE);
		entry = entry_find_or_add(&key, now);
	}

	SpinLockAcquire(&entry->mutex);
	entry->weight += 1;
	return entry;
}

static void
entry_release(StatsEntry *entry)
{
	SpinLockRelease(&entry->mutex);
	LWLockRelease(table->lock);
}

void
stats_count_call(Oid serverid, const char *namespace_name, const char *flow_id,
				 const FlowOutcome *outcome, bool is_retry, int64 duration_us)
{
	StatsEnd	end = end_of_outcome(outcome);
	StatsEntry *entry = entry_lock(serverid, namespace_name, flow_id);

	if (entry == NULL)
		return;
	entry->counters.calls++;
	entry->counters.ends[end]++;
	entry->counters.retries += is_retry;
	counters_add_time(&entry->counters, Max(duration_us, 0) / 1000.0);
	entry_release(entry);
}

void
stats_count_unsent(Oid serverid, const char *namespace_name, const char *flow_id)
{
	StatsEntry *entry;

	/* of a server that there is no more, nobody sees them */
	if (!OidIsValid(serverid))
		return;
	entry = entry_lock(serverid, namespace_name, flow_id);
	if (entry == NULL)
		return;
	entry->counters.unsent++;
	entry_release(entry);
}


/* ---------- SQL functions ---------- */

/* Throw when there are no statistics. */
static void
check_preloaded(void)
{
	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("feishu_flow must be loaded via \"shared_preload_libraries\"")));
}

/*
 * Copy the entries of this database: nothing that may take time or throw, such
 * as the look at the catalogs to come, is to happen under the lock.  Those
 * that are added meanwhile are left out.
 */
static StatsEntry *
entries_copy(int *count)
{
	StatsEntry *copies;
	int			room = 0;

	LWLockAcquire(table->lock, LW_SHARED);
	for (int i = 0; i < table->num_used; i++)
		room += entries[i].databaseid == MyDatabaseId;
	LWLockRelease(table->lock);

	copies = palloc_extended(Max(room, 1) * sizeof(StatsEntry), MCXT_ALLOC_HUGE);
	*count = 0;
	LWLockAcquire(table->lock, LW_SHARED);
	for (int i = 0; i < table->num_used && *count < room; i++)
	{
		StatsEntry *entry = &entries[i];

		if (entry->databaseid != MyDatabaseId)
			continue;
		SpinLockAcquire(&entry->mutex);
		memcpy(&copies[(*count)++], entry, sizeof(StatsEntry));
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(table->lock);
	return copies;
}

/* Put one entry in the result, with the name of its server. */
static void
put_entry(ReturnSetInfo *result, const StatsEntry *entry, const char *server_name)
{
	const StatsCounters *counters = &entry->counters;
	Datum		values[STATS_NUM_COLUMNS];
	bool		nulls[STATS_NUM_COLUMNS] = {false};
	NameData	server;
	int			i = 0;

	namestrcpy(&server, server_name);
	values[i++] = NameGetDatum(&server);
	values[i++] = PointerGetDatum(cstring_to_text_with_len(entry->namespace_name,
														   entry->namespace_len));
	values[i++] = PointerGetDatum(cstring_to_text_with_len(entry->flow_id,
														   entry->flow_id_len));
	values[i++] = Int64GetDatum(counters->calls);
	for (int end = 0; end < STATS_NUM_ENDS; end++)
		values[i++] = Int64GetDatum(counters->ends[end]);
	values[i++] = Int64GetDatum(counters->retries);
	values[i++] = Int64GetDatum(counters->unsent);
	values[i++] = Float8GetDatum(counters->total_time);
	values[i++] = Float8GetDatum(counters->min_time);
	values[i++] = Float8GetDatum(counters->max_time);
	values[i++] = Float8GetDatum(counters->mean_time);
	/* population standard deviation, as in pg_stat_statements */
	values[i++] = Float8GetDatum(sqrt(Max(counters->sum_var_time, 0) / Max(counters->calls, 1)));
	values[i++] = TimestampTzGetDatum(entry->since);
	Assert(i == STATS_NUM_COLUMNS);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * stat_flows(): the counters of this database's flows, on servers that exist.
 * Roles without the rights of pg_read_all_stats see those on servers that they
 * have USAGE on.
 */
Datum
feishu_stat_flows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		sees_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	StatsEntry *copies;
	int			count;

	check_preloaded();
	InitMaterializedSRF(fcinfo, 0);

	copies = entries_copy(&count);
	for (int i = 0; i < count; i++)
	{
		ForeignServer *server = GetForeignServerExtended(copies[i].serverid,
														 FSV_MISSING_OK);

		CHECK_FOR_INTERRUPTS();
		if (server == NULL)
			continue;
		if (sees_all ||
			feishu_server_aclcheck(server->serverid, GetUserId()) == ACLCHECK_OK)
			put_entry(result, &copies[i], server->servername);
	}
	pfree(copies);
	return (Datum) 0;
}

/* stat_evictions(): entries of all databases that made room for others. */
Datum
feishu_stat_evictions(PG_FUNCTION_ARGS)
{
	int64		evictions;

	check_preloaded();
	LWLockAcquire(table->lock, LW_SHARED);
	evictions = table->evictions;
	LWLockRelease(table->lock);
	PG_RETURN_INT64(evictions);
}

/* stat_reset(): forget the counters of this database. */
Datum
feishu_stat_reset(PG_FUNCTION_ARGS)
{
	check_preloaded();
	LWLockAcquire(table->lock, LW_EXCLUSIVE);
	for (int i = 0; i < table->num_used; i++)
	{
		if (entries[i].databaseid == MyDatabaseId)
			entry_remove(&entries[i]);
	}
	LWLockRelease(table->lock);
	PG_RETURN_VOID();
}
