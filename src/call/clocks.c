/*-------------------------------------------------------------------------
 *
 * clocks.c
 *	  Servers whose platform's clock and ours are apart, for feishu.problems.
 *
 * The header Date of an answer tells it.  Shared memory has an entry for each server
 * whose last look found the clocks apart; the next look that finds that they agree
 * takes it away.  If there are more such servers than entries, the one that was seen
 * last takes the place of the one that was not seen for longest.
 *
 * A process that found them to agree looks at that server again after CLOCKS_LOOK_MS;
 * else it looks at each answer.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/clocks.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "call/clocks.h"

PG_FUNCTION_INFO_V1(feishu_clocks_apart);

/* Servers that are remembered. */
#define CLOCKS_MOST			64

#define CLOCKS_LOOK_MS		(60 * 1000)

/* Servers that a process remembers to agree, by their number modulo this. */
#define CLOCKS_LOOKS		64

typedef struct ClockApart
{
	Oid			database;
	Oid			serverid;
	int64		behind_us;		/* our clock behind that of the platform */
	TimestampTz since;
	TimestampTz seen_at;
} ClockApart;

typedef struct ClockTable
{
	slock_t		mutex;
	int			num;
	ClockApart	clocks[CLOCKS_MOST];
} ClockTable;

typedef struct ClockLook
{
	Oid			serverid;
	TimestampTz agreed_at;
} ClockLook;

static ClockTable *clocks = NULL;	/* NULL: not preloaded */
static ClockLook looks[CLOCKS_LOOKS];

void
clocks_request_shmem(void)
{
	RequestAddinShmemSpace(sizeof(ClockTable));
}

void
clocks_startup_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	clocks = ShmemInitStruct("feishu_flow clocks", sizeof(ClockTable), &found);
	if (!found)
	{
		memset(clocks, 0, sizeof(ClockTable));
		SpinLockInit(&clocks->mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

/* The entry of a server, or NULL.  The spinlock is held. */
static ClockApart *
clock_find(Oid serverid)
{
	for (int i = 0; i < clocks->num; i++)
	{
		if (clocks->clocks[i].serverid == serverid && clocks->clocks[i].database == MyDatabaseId)
			return &clocks->clocks[i];
	}
	return NULL;
}

static void
clock_remember(Oid serverid, int64 behind_us, TimestampTz now)
{
	ClockApart *entry;

	SpinLockAcquire(&clocks->mutex);
	entry = clock_find(serverid);
	if (entry == NULL)
	{
		if (clocks->num < CLOCKS_MOST)
			entry = &clocks->clocks[clocks->num++];
		else
		{
			entry = &clocks->clocks[0];
			for (int i = 1; i < CLOCKS_MOST; i++)
			{
				if (clocks->clocks[i].seen_at < entry->seen_at)
					entry = &clocks->clocks[i];
			}
		}
		entry->database = MyDatabaseId;
		entry->serverid = serverid;
		entry->since = now;
	}
	entry->behind_us = behind_us;
	entry->seen_at = now;
	entry->since = Min(entry->since, now);	/* ours was set back */
	SpinLockRelease(&clocks->mutex);
}

static void
clock_forget(Oid serverid)
{
	ClockApart *entry;

	SpinLockAcquire(&clocks->mutex);
	entry = clock_find(serverid);
	if (entry != NULL)
		*entry = clocks->clocks[--clocks->num];
	SpinLockRelease(&clocks->mutex);
}

/*
 * The platform wrote the date between the beginning of the request and now, if the
 * clocks agree: what an answer took, or has waited here, is no difference.
 */
void
clocks_note(Oid serverid, const HttpResult *result)
{
	ClockLook  *look = &looks[serverid % CLOCKS_LOOKS];
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz began_at = now - result->duration_us;
	TimestampTz theirs;

	if (clocks == NULL || result->date[0] == '\0' ||
		(look->serverid == serverid && look->agreed_at <= now &&
		 !TimestampDifferenceExceeds(look->agreed_at, now, CLOCKS_LOOK_MS)) ||
		!http_read_date(result->date, &theirs))
		return;
	if (theirs - now > CLOCK_TOLERANCE_US)
		clock_remember(serverid, theirs - now, now);
	else if (began_at - theirs > CLOCK_TOLERANCE_US)
		clock_remember(serverid, theirs - began_at, now);
	else
	{
		look->serverid = serverid;
		look->agreed_at = now;
		clock_forget(serverid);
		return;
	}
	if (look->serverid == serverid)
		look->serverid = InvalidOid;
}

/* clocks_apart(): servers of this database. */
Datum
feishu_clocks_apart(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ClockTable	copy = {0};

	InitMaterializedSRF(fcinfo, 0);
	if (clocks == NULL)
		return (Datum) 0;
	SpinLockAcquire(&clocks->mutex);
	copy.num = clocks->num;
	memcpy(copy.clocks, clocks->clocks, sizeof(copy.clocks));
	SpinLockRelease(&clocks->mutex);
	for (int i = 0; i < copy.num; i++)
	{
		const ClockApart *entry = &copy.clocks[i];
		Datum		values[3] = {
			ObjectIdGetDatum(entry->serverid),
			Int64GetDatum(entry->behind_us / USECS_PER_SEC),
			TimestampTzGetDatum(entry->since)
		};
		bool		nulls[3] = {false};

		if (entry->database == MyDatabaseId)
			tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
