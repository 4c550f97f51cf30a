/*-------------------------------------------------------------------------
 *
 * src/dispatcher/schedule.h
 *	  Whose turn it is.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SCHEDULE_H
#define FEISHU_SCHEDULE_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"

struct Lane;

/* Where a lane is in the schedule. */
typedef struct LaneTurn
{
	bool		is_due;			/* in its site's list */
	dlist_node	due_node;
	bool		is_timed;		/* in the heap of lanes that will be due */
	pairingheap_node timed_node;
	TimestampTz timed_at;
	uint64		last;			/* the transaction in which it had a turn last */
	bool		for_top;		/* that one was for its highest tier alone */
	uint64		served;			/* when it had a place last, by num_served */
} LaneTurn;

/* Where a server is. */
typedef struct SiteTurn
{
	dlist_node	node;			/* in due_sites, while one of its lanes is due */
	dlist_head	due;			/* its lanes that are due, whose turn it is first */
	int			num_due;
} SiteTurn;

extern void schedule_init(void);
extern void schedule_lane(struct Lane *lane);
extern TimestampTz schedule_next(TimestampTz now, TimestampTz claimed_at);
extern void schedule_advance(TimestampTz now);
extern int	schedule_num_due(void);
extern bool schedule_any_urgent(TimestampTz now);
extern int	schedule_choose(TimestampTz now, bool urgent, struct Lane **lanes, int most);
extern void schedule_note_served(struct Lane *lane);

#endif							/* FEISHU_SCHEDULE_H */
