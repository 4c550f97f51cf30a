/*-------------------------------------------------------------------------
 *
 * src/dispatcher/tier.h
 *	  The flows of a lane with one priority: what there is to do.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TIER_H
#define FEISHU_TIER_H

#include "datatype/timestamp.h"

struct Lane;

/* A list of row ids in memory; ids is palloc'd or NULL. */
typedef struct IdList
{
	int64	   *ids;
	int			num;
	int			max;
} IdList;

/* Rows of paused flows that were passed over, and are to be parked. */
typedef struct TierPark
{
	bool		rows;			/* some between this id and the cursor */
	int64		after;
	bool		due;			/* some delayed ones between this and the floor */
	TimestampTz due_after;
	int64		due_after_id;
} TierPark;

typedef struct Tier
{
	struct Lane *lane;
	MemoryContext context;		/* of the list */
	int16		priority;
	bool		more;			/* there may be others above the cursor */
	bool		keyed;			/* those seen there last had ordering keys */
	int			page_rows;		/* how many to look at there then; 0: a batch */
	bool		passing;		/* some were of paused flows */
	int64		cursor;			/* rows at once with an id up to this were seen */
	TimestampTz due_floor;		/* delayed rows before this were seen, and */
	int64		due_floor_id;	/* those of this time with an id up to this */
	int			due_rows;		/* page.c's: how many to look at next */
	TierPark	park;			/* park.c's */
	TimestampTz next_due;		/* when to look at delayed rows; DT_NOEND */
	IdList		ready;			/* rows to claim by id: due ones, successors in
								 * an ordering key, those given back */
	int			in_flight;		/* flight.c's: flights that have not ended */
	uint64		shared;			/* share.c's: when it had a share last */
} Tier;

extern Tier *tier_make(MemoryContext context, struct Lane *lane, int16 priority);
extern TimestampTz tier_work_at(const Tier *tier);

extern void tier_expect_row(Tier *tier, int64 id);
extern void tier_give_back(Tier *tier, int64 id);
extern void tier_forget_row(Tier *tier, int64 id);
extern void tier_take_rows(Tier *tier, int num);
extern void tier_expect_due(Tier *tier, TimestampTz next_at);
extern void tier_saw_due(Tier *tier, TimestampTz next_at, int64 id);
extern void tier_look_at_due(Tier *tier, TimestampTz at);
extern void tier_expect_more(Tier *tier);
extern void tier_expect_from(Tier *tier, int64 id);
extern void tier_saw_more(Tier *tier, bool all, int64 last, int64 last_id);
extern void tier_note_keys(Tier *tier, bool keyed, int page_rows);
extern void tier_reopen(Tier *tier, int64 min_id, TimestampTz next_due);
extern void tier_close(Tier *tier);

#endif							/* FEISHU_TIER_H */
