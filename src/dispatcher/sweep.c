/*-------------------------------------------------------------------------
 *
 * src/dispatcher/sweep.c
 *	  The dispatcher's second look: rows of which nobody notified us.
 *
 * Whoever makes a row visible tells its id (notify.c), and a slow poll finds what
 * was not told.  It must not read the lanes' indexes from the start, where an
 * old snapshot may keep any number of rows that were sent.  So it looks at ids
 * that were drawn since the last one, by the table's primary key, each once.
 *
 * Which rows can still appear below the last id drawn?  Those of transactions
 * that are under way: to draw an id is to lock the table of the last one until
 * the end of the transaction, a prepared one included (flow_id.c).  So who holds
 * that lock is noted, and when it has ended, the poll after that looks again at all
 * ids that it can have drawn.
 *
 * Rows with ids that were not drawn, and rows that somebody locked by hand when
 * they were to be claimed, are found when all lanes are looked at from the start,
 * now and then.
 *
 * Ids are looked at some at a time, with pauses.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/sqlrun.h"
#include "dispatcher/discover.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/ordering.h"

/* Ids looked at in a step. */
#define SWEEP_IDS			5000

/* With more of them, lanes look for themselves. */
#define SWEEP_MOST_IDS		1000000

/* All lanes are looked at from the start so often. */
#define ANEW_S				3600

/* A transaction that has the lock on the table of the last id. */
typedef struct Drawer
{
	VirtualTransactionId vxid;
	int64		above;			/* all ids that it has are above this */
} Drawer;

/* Those that the last poll has seen, and the last id drawn by then. */
static Drawer *drawers = NULL;
static int	num_drawers = 0;
static int64 polled_id = PG_INT64_MIN;

/* Ids to look at; none if the first is above the last. */
static int64 next_id = 0;
static int64 last_id = -1;

/* When all lanes were looked at from the start; 0: they are to be. */
static TimestampTz begun_anew = 0;


/* At the next poll, all lanes are to be looked at from the start. */
void
sweep_begin_anew(void)
{
	begun_anew = 0;
}

/* Ids to look at. */
void
sweep_add(int64 min_id, int64 max_id)
{
	if (next_id > last_id)
	{
		next_id = min_id;
		last_id = max_id;
		return;
	}
	next_id = Min(next_id, min_id);
	last_id = Max(last_id, max_id);
}

static Drawer *
find_drawer(VirtualTransactionId vxid)
{
	for (int i = 0; i < num_drawers; i++)
	{
		if (VirtualTransactionIdEquals(drawers[i].vxid, vxid))
			return &drawers[i];
	}
	return NULL;
}

/*
 * Note who may have drawn ids up to now, the last of which was drawn before;
 * returns above which id rows may have appeared since the last time.
 */
static int64
note_drawers(void)
{
	Oid			outbox;
	Oid			table;
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	int			num;
	Drawer	   *now;
	int64		above = polled_id;

	sql_find_outbox(&outbox, &table);
	SET_LOCKTAG_RELATION(tag, MyDatabaseId, table);
	holders = GetLockConflicts(&tag, ShareLock, &num);
	now = MemoryContextAlloc(TopMemoryContext, Max(num, 1) * sizeof(Drawer));
	for (int i = 0; i < num; i++)
	{
		Drawer	   *before = find_drawer(holders[i]);

		/* the last poll did not see it: it had drawn none by then */
		now[i].vxid = holders[i];
		now[i].above = before != NULL ? before->above : polled_id;
		if (before != NULL)
			before->above = PG_INT64_MAX;
	}
	/* those that have ended */
	for (int i = 0; i < num_drawers; i++)
		above = Min(above, drawers[i].above);
	if (drawers != NULL)
		pfree(drawers);
	drawers = now;
	num_drawers = num;
	return above;
}

/*
 * The slow poll: note which ids to look at, of rows of which nobody told; or
 * return true if all lanes are to be looked at from the start.
 */
bool
sweep_poll(TimestampTz now)
{
	int64		drawn = discover_last_id();
	int64		above = note_drawers();

	polled_id = drawn;
	if (now < begun_anew || now - begun_anew >= ANEW_S * USECS_PER_SEC ||
		above == PG_INT64_MIN || drawn - above > SWEEP_MOST_IDS)
	{
		begun_anew = now;
		next_id = drawn + 1;
		last_id = drawn;
		return true;
	}
	if (above < drawn)
	{
		ordering_expect(above + 1);
		sweep_add(above + 1, drawn);
	}
	return false;
}

/* Look at some of the ids; true if there are more. */
bool
sweep_step(void)
{
	int64		max_id = Min(last_id, next_id + SWEEP_IDS - 1);

	if (next_id > last_id)
		return false;
	discover_between(next_id, max_id);
	next_id = max_id + 1;
	return next_id <= last_id;
}
