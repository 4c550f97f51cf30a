/*-------------------------------------------------------------------------
 *
 * src/call/stats.c
 *	  Counters of flow calls, by database, server and flow.
 *
 * The counters are in shared memory, so there are none unless the library was
 * preloaded.  They begin at zero when the server starts (a restart after a
 * crash included): nothing is written to disk.  They count attempts, whatever
 * becomes of the transactions that made them.  An attempt that was cancelled
 * has no outcome and is not counted.
 *
 * The table is a hash of feishu_flow.track_flows entries.  When it is full, those with
 * the least weight make room, as in pg_stat_statements, or the oldest of several.  The
 * weight is the number of calls, less a little for each time that others made room, so
 * that what was called a lot long ago does not stay for good.  That is also how
 * entries of dropped servers and databases go; until then nobody sees them.
 *
 * The lock protects the table; to count, it is held shared, and the entry's spinlock
 * protects its counters.  To add, evict and reset it is held exclusively, and there is
 * no need of spinlocks.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
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
 * Names have up to 255 bytes in UTF-8 (wire_check_name).  In a few of the
 * other encodings that can be more; then the rest is cut off.
 */
#define STATS_NAME_SIZE			256

/* In percent: so many entries make room at once. */
#define STATS_EVICTED			5

/* What is left of the weight of an entry when others make room. */
#define STATS_WEIGHT_DECAY		0.99

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

/* What an entry is found by: no padding, and zeros behind the names. */
typedef struct StatsKey
{
	Oid			databaseid;
	Oid			serverid;
	char		namespace_name[STATS_NAME_SIZE];
	char		flow_id[STATS_NAME_SIZE];
} StatsKey;

typedef struct StatsEntry
{
	StatsKey	key;			/* must be first */
	TimestampTz since;
	slock_t		mutex;			/* of what follows */
	double		weight;			/* calls, less what was taken */
	StatsCounters counters;
} StatsEntry;

typedef struct StatsShared
{
	LWLock	   *lock;
	int64		evictions;
	StatsEntry *order[FLEXIBLE_ARRAY_MEMBER];	/* to sort in */
} StatsShared;

static StatsShared *shared = NULL;	/* NULL: not preloaded */
static HTAB *table = NULL;			/* NULL: nothing is counted */


/* ---------- Memory ---------- */

static Size
shared_size(void)
{
	return MAXALIGN(add_size(offsetof(StatsShared, order),
							 mul_size(feishu_guc_track_flows, sizeof(StatsEntry *))));
}

/* Ask for the memory that stats_startup_shmem takes. */
void
stats_request_shmem(void)
{
	RequestAddinShmemSpace(add_size(shared_size(),
									hash_estimate_size(feishu_guc_track_flows, sizeof(StatsEntry))));
	RequestNamedLWLockTranche(STATS_TRANCHE, 1);
}

/* Set the table up, or attach to it. */
void
stats_startup_shmem(void)
{
	HASHCTL		control = {.keysize = sizeof(StatsKey), .entrysize = sizeof(StatsEntry)};
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("feishu_flow statistics", shared_size(), &found);
	if (!found)
	{
		shared->lock = &GetNamedLWLockTranche(STATS_TRANCHE)->lock;
		shared->evictions = 0;
	}
	if (feishu_guc_track_flows > 0)
		table = feishu_shmem_hash("feishu_flow statistics of flows", feishu_guc_track_flows,
								  &control, HASH_ELEM | HASH_BLOBS);
	LWLockRelease(AddinShmemInitLock);
}


/* ---------- Entries ---------- */

static void
name_copy(char *copy, const char *name)
{
	int			len = strlen(name);

	memcpy(copy, name, len < STATS_NAME_SIZE ? len :
		   pg_mbcliplen(name, len, STATS_NAME_SIZE - 1));
}

static void
key_init(StatsKey *key, Oid serverid, const char *namespace_name, const char *flow_id)
{
	memset(key, 0, sizeof(StatsKey));
	key->databaseid = MyDatabaseId;
	key->serverid = serverid;
	name_copy(key->namespace_name, namespace_name);
	name_copy(key->flow_id, flow_id);
}

/* Those that make room first: the lightest, the oldest of several. */
static int
entry_compare(const void *a, const void *b)
{
	const StatsEntry *left = *(StatsEntry *const *) a;
	const StatsEntry *right = *(StatsEntry *const *) b;

	if (left->weight != right->weight)
		return left->weight < right->weight ? -1 : 1;
	return left->since < right->since ? -1 : left->since > right->since;
}

/* Make room in a full table.  The lock is held exclusively. */
static void
entries_evict(void)
{
	StatsEntry **all = shared->order;
	HASH_SEQ_STATUS status;
	StatsEntry *entry;
	int			count = 0;
	int			victims;

	hash_seq_init(&status, table);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		entry->weight *= STATS_WEIGHT_DECAY;
		all[count++] = entry;
	}
	qsort(all, count, sizeof(StatsEntry *), entry_compare);
	victims = Max(count * STATS_EVICTED / 100, 1);
	for (int i = 0; i < victims; i++)
		(void) hash_search(table, &all[i]->key, HASH_REMOVE, NULL);
	shared->evictions += victims;
}

/* The entry of a key, a new one if need be.  The lock is held exclusively. */
static StatsEntry *
entry_find_or_add(const StatsKey *key, TimestampTz now)
{
	StatsEntry *entry = hash_search(table, key, HASH_FIND, NULL);

	if (entry != NULL)
		return entry;
	if (hash_get_num_entries(table) >= feishu_guc_track_flows)
		entries_evict();
	/* there is memory for as many */
	entry = hash_search(table, key, HASH_ENTER, NULL);
	memset((char *) entry + sizeof(StatsKey), 0, sizeof(StatsEntry) - sizeof(StatsKey));
	entry->since = now;
	SpinLockInit(&entry->mutex);
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

	if (table == NULL)
		return NULL;
	key_init(&key, serverid, namespace_name, flow_id);

	LWLockAcquire(shared->lock, LW_SHARED);
	entry = hash_search(table, &key, HASH_FIND, NULL);
	if (entry == NULL)
	{
		TimestampTz now = GetCurrentTimestamp();

		LWLockRelease(shared->lock);
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
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
	LWLockRelease(shared->lock);
}

/*
 * Count one attempt to start a flow of the current database that has ended
 * so.  is_retry: another attempt of the same queued flow came before.
 * duration_us: how long it took, from flow_call_start to its end.
 *
 * The names are in the database encoding.  Does not throw, allocate or need a
 * transaction; takes well below a microsecond.  Does nothing when the library
 * was not preloaded.
 */
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

/*
 * Count a queued flow that failed without an attempt.  As stats_count_call, but
 * nothing is counted for a server that is invalid.
 */
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
	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("feishu_flow must be loaded via \"shared_preload_libraries\""),
				 errhint("Add it to shared_preload_libraries and restart the server.")));
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
	StatsEntry *entry;
	HASH_SEQ_STATUS status;
	long		room;

	LWLockAcquire(shared->lock, LW_SHARED);
	room = hash_get_num_entries(table);
	LWLockRelease(shared->lock);

	copies = palloc_extended(Max(room, 1) * sizeof(StatsEntry), MCXT_ALLOC_HUGE);
	*count = 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	hash_seq_init(&status, table);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->key.databaseid != MyDatabaseId)
			continue;
		if (*count == room)
		{
			hash_seq_term(&status);
			break;
		}
		SpinLockAcquire(&entry->mutex);
		memcpy(&copies[(*count)++], entry, sizeof(StatsEntry));
		SpinLockRelease(&entry->mutex);
	}
	LWLockRelease(shared->lock);
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
	values[i++] = CStringGetTextDatum(entry->key.namespace_name);
	values[i++] = CStringGetTextDatum(entry->key.flow_id);
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
	if (table == NULL)
		return (Datum) 0;

	copies = entries_copy(&count);
	for (int i = 0; i < count; i++)
	{
		ForeignServer *server = GetForeignServerExtended(copies[i].key.serverid,
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
	LWLockAcquire(shared->lock, LW_SHARED);
	evictions = shared->evictions;
	LWLockRelease(shared->lock);
	PG_RETURN_INT64(evictions);
}

/* stat_reset(): forget the counters of this database. */
Datum
feishu_stat_reset(PG_FUNCTION_ARGS)
{
	HASH_SEQ_STATUS status;
	StatsEntry *entry;

	check_preloaded();
	if (table == NULL)
		PG_RETURN_VOID();
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&status, table);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->key.databaseid == MyDatabaseId)
			(void) hash_search(table, &entry->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(shared->lock);
	PG_RETURN_VOID();
}
