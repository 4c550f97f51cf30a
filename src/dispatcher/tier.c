/*-------------------------------------------------------------------------
 *
 * src/dispatcher/tier.c
 *	  The dispatcher's tiers: what there is to do of the flows of a lane with one
 *	  priority.
 *
 * Who changes what a tier has to do, or when, does so by the functions here, which
 * tell the schedule of its lane.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dispatcher/lane.h"

/* A new one, of a lane: all that it may have is to be looked at. */
Tier *
tier_make(MemoryContext context, Lane *lane, int16 priority)
{
	Tier	   *tier = MemoryContextAllocZero(context, sizeof(Tier));

	tier->context = context;
	tier->lane = lane;
	tier->priority = priority;
	tier->more = true;
	tier->due_floor = DT_NOBEGIN;
	tier->next_due = DT_NOEND;	/* who finds a delayed row says so */
	return tier;
}

/* When there may be rows to claim; DT_NOEND: not before somebody tells. */
TimestampTz
tier_work_at(const Tier *tier)
{
	return tier->more || tier->ready.num > 0 ? 0 : tier->next_due;
}

/* Add an id to the list, unless it is there; false without memory, with MCXT_ALLOC_NO_OOM. */
static bool
list_add(Tier *tier, int64 id, int flags)
{
	IdList	   *list = &tier->ready;

	for (int i = 0; i < list->num; i++)
	{
		if (list->ids[i] == id)
			return true;
	}
	if (list->num == list->max)
	{
		int			max = Max(16, list->max * 2);
		int64	   *ids = MemoryContextAllocExtended(tier->context, max * sizeof(int64), flags);

		if (ids == NULL)
			return false;
		if (list->ids != NULL)
		{
			memcpy(ids, list->ids, list->num * sizeof(int64));
			pfree(list->ids);
		}
		list->ids = ids;
		list->max = max;
	}
	list->ids[list->num++] = id;
	return true;
}

/* A row is to be looked at, by its id. */
void
tier_expect_row(Tier *tier, int64 id)
{
	(void) list_add(tier, id, 0);
	schedule_lane(tier->lane);
}

/* Likewise one that was claimed.  Does not throw. */
void
tier_give_back(Tier *tier, int64 id)
{
	if (list_add(tier, id, MCXT_ALLOC_NO_OOM))
		schedule_lane(tier->lane);
	else
		tier_reopen(tier, id, 0);
}

/* A row is not to be looked at any more. */
void
tier_forget_row(Tier *tier, int64 id)
{
	IdList	   *list = &tier->ready;

	for (int i = 0; i < list->num; i++)
	{
		if (list->ids[i] != id)
			continue;
		list->num--;
		memmove(list->ids + i, list->ids + i + 1, (list->num - i) * sizeof(int64));
		break;
	}
	schedule_lane(tier->lane);
}

/* Nor are the first rows of the list. */
void
tier_take_rows(Tier *tier, int num)
{
	IdList	   *list = &tier->ready;

	list->num -= num;
	memmove(list->ids, list->ids + num, list->num * sizeof(int64));
	schedule_lane(tier->lane);
}

/* A delayed row is to be looked at, at its time. */
void
tier_expect_due(Tier *tier, TimestampTz next_at)
{
	if (next_at <= tier->due_floor)
	{
		tier->due_floor = next_at;
		tier->due_floor_id = 0;
	}
	if (next_at < tier->next_due)
	{
		tier->next_due = next_at;
		schedule_lane(tier->lane);
	}
}

/* Delayed rows up to this time, and of this time up to this id, were seen. */
void
tier_saw_due(Tier *tier, TimestampTz next_at, int64 id)
{
	tier->due_floor = next_at;
	tier->due_floor_id = id;
}

/* When to look at delayed rows that were not seen; DT_NOEND: there are none. */
void
tier_look_at_due(Tier *tier, TimestampTz at)
{
	tier->next_due = at;
	schedule_lane(tier->lane);
}

/* There are rows above the cursor. */
void
tier_expect_more(Tier *tier)
{
	tier->more = true;
	schedule_lane(tier->lane);
}

/* There are rows from an id on. */
void
tier_expect_from(Tier *tier, int64 id)
{
	tier->cursor = Min(tier->cursor, id - 1);
	tier_expect_more(tier);
}

/*
 * Rows above the cursor were looked at, the last one's id is last.  If
 * these were all, those that are behind others of their key included, nothing
 * is left below last_id, which was read before the snapshot was taken: a row with a
 * lower id that commits later is told by its id.
 */
void
tier_saw_more(Tier *tier, bool all, int64 last, int64 last_id)
{
	tier->more = !all;
	tier->cursor = all ? Max(tier->cursor, last_id) : last;
	schedule_lane(tier->lane);
}

/* Did rows there have ordering keys, and how many are to be looked at next? */
void
tier_note_keys(Tier *tier, bool keyed, int page_rows)
{
	tier->keyed = keyed;
	tier->page_rows = page_rows;
}

/* All rows from an id on are to be looked at, and all delayed ones at a time. */
void
tier_reopen(Tier *tier, int64 min_id, TimestampTz next_due)
{
	tier->cursor = Min(tier->cursor, Max(min_id, 1) - 1);
	tier->more = true;
	tier->due_floor = DT_NOBEGIN;
	tier->next_due = next_due;
	schedule_lane(tier->lane);
}

/* There is nothing to look at. */
void
tier_close(Tier *tier)
{
	tier->more = false;
	tier->next_due = DT_NOEND;
	tier->ready.num = 0;
	schedule_lane(tier->lane);
}
