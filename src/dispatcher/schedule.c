/*-------------------------------------------------------------------------
 *
 * src/dispatcher/schedule.c
 *	  Whose turn it is: which lanes the dispatcher claims rows of, and how many.
 *
 * A lane is due when it may have rows to claim now, will be due at a time, or
 * waits for somebody to change it.  Servers with lanes that are due take turns,
 * and so do the lanes of a server: whose turn is over goes to the end.  So what a
 * turn costs depends on how much is claimed, not on how many lanes there are.
 * How many flows a lane may have under way is flight_room.c's to say.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/lane.h"

/*
 * With much under way, rows are claimed when there is room for many, or after so
 * long;
 * of a lane whose highest priority has nothing under way, sooner, unless many lanes
 * wait.
 */
#define BATCH_DELAY_MS		10
#define FIRST_DELAY_MS		2
#define FIRST_LANES			16

static dlist_head due_sites = DLIST_STATIC_INIT(due_sites);
static int	num_due = 0;		/* lanes */
static TimestampTz advanced_to = 0;	/* whose time has come up to then is due */
static pairingheap *timed;		/* lanes that will be due */
static uint64 num_served = 0;	/* counts places of the limiter */


/* ---------- Who is due ---------- */

/*
 * Who is due first is the heap's greatest.  Of those that are due at one time, as
 * all are that wait for places of an app, who had a place last comes last.
 */
static int
compare_timed(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Lane *left = pairingheap_const_container(Lane, turn.timed_node, a);
	const Lane *right = pairingheap_const_container(Lane, turn.timed_node, b);

	if (left->turn.timed_at != right->turn.timed_at)
		return left->turn.timed_at < right->turn.timed_at ? 1 : -1;
	return left->turn.served < right->turn.served ? 1 : left->turn.served > right->turn.served ? -1 : 0;
}

/* Once a process. */
void
schedule_init(void)
{
	MemoryContext old_context = MemoryContextSwitchTo(TopMemoryContext);

	timed = pairingheap_allocate(compare_timed, NULL);
	MemoryContextSwitchTo(old_context);
}

/* When a lane may have rows to claim; DT_NOEND: not before somebody changes it. */
static TimestampTz
lane_due_at(const Lane *lane)
{
	return lane->paused ? DT_NOEND : Max(lane_work_at(lane), lane->hold_until);
}

/* Take a lane from where it is. */
static void
schedule_remove(Lane *lane)
{
	Site	   *site = lane->site;

	if (lane->turn.is_due)
	{
		dlist_delete(&lane->turn.due_node);
		lane->turn.is_due = false;
		num_due--;
		if (--site->turn.num_due == 0)
			dlist_delete(&site->turn.node);
	}
	if (lane->turn.is_timed)
	{
		pairingheap_remove(timed, &lane->turn.timed_node);
		lane->turn.is_timed = false;
	}
}

/* A lane is due: its turn comes after all others. */
static void
schedule_push(Lane *lane)
{
	Site	   *site = lane->site;

	dlist_push_tail(&site->turn.due, &lane->turn.due_node);
	lane->turn.is_due = true;
	num_due++;
	if (site->turn.num_due++ == 0)
		dlist_push_tail(&due_sites, &site->turn.node);
}

/* What a lane has to do, or when, has changed.  Does not throw. */
void
schedule_lane(Lane *lane)
{
	TimestampTz at = lane_due_at(lane);

	if (at == 0 || (lane->turn.is_due && at <= advanced_to))
	{
		/* it keeps its turn */
		if (!lane->turn.is_due)
		{
			schedule_remove(lane);
			schedule_push(lane);
		}
		return;
	}
	if (lane->turn.is_timed && lane->turn.timed_at == at)
		return;
	schedule_remove(lane);
	if (TIMESTAMP_IS_NOEND(at))
		return;
	lane->turn.timed_at = at;
	pairingheap_add(timed, &lane->turn.timed_node);
	lane->turn.is_timed = true;
}

/* Lanes whose time has come are due. */
void
schedule_advance(TimestampTz now)
{
	advanced_to = now;
	while (!pairingheap_is_empty(timed))
	{
		Lane	   *lane = pairingheap_container(Lane, turn.timed_node, pairingheap_first(timed));

		if (lane->turn.timed_at > now)
			break;
		schedule_remove(lane);
		schedule_push(lane);
	}
}

/* How many lanes are due. */
int
schedule_num_due(void)
{
	return num_due;
}


/* ---------- Whose turn it is ---------- */

/* How many rows of a lane may be claimed, with room for so many in all. */
static int
lane_wants(const Lane *lane, int room, TimestampTz now)
{
	/* no more places than there may be rows: others may want them */
	return lane_most_rows(lane, flight_lane_room(lane, room, lane_top(lane, now)), now);
}

/* May a lane that is urgent have rows claimed? */
bool
schedule_any_urgent(TimestampTz now)
{
	int			room;
	dlist_iter	outer;

	schedule_advance(now);
	room = flight_room();
	dlist_foreach(outer, &due_sites)
	{
		Site	   *site = dlist_container(Site, turn.node, outer.cur);
		dlist_iter	inner;

		dlist_foreach(inner, &site->turn.due)
		{
			const Lane *lane = dlist_container(Lane, turn.due_node, inner.cur);

			if (lane_is_urgent(lane, now) && lane_wants(lane, room, now) > 0)
				return true;
		}
	}
	return false;
}

/* When there may be rows to claim, for next to nothing; claimed_at: when that was done
 * last. */
TimestampTz
schedule_next(TimestampTz now, TimestampTz claimed_at)
{
	TimestampTz next = DT_NOEND;
	int			room;
	dlist_iter	outer;

	schedule_advance(now);
	if (!pairingheap_is_empty(timed))
		next = pairingheap_container(Lane, turn.timed_node, pairingheap_first(timed))->turn.timed_at;
	room = num_due > 0 ? flight_room() : 0;
	if (room == 0)
		return next;

	dlist_foreach(outer, &due_sites)
	{
		Site	   *site = dlist_container(Site, turn.node, outer.cur);
		dlist_iter	inner;

		if (flight_site_room(site, room) == 0)
			continue;
		dlist_foreach(inner, &site->turn.due)
		{
			Lane	   *lane = dlist_container(Lane, turn.due_node, inner.cur);
			const Tier *top = lane_top(lane, now);

			if (lane_wants(lane, room, now) == 0)
				continue;
			if (room >= Min(FLIGHT_BATCH, flight_totals()->load.in_flight))
				return 0;
			if ((top == NULL || top->in_flight == 0) && num_due <= FIRST_LANES)
				return Min(next, TimestampTzPlusMilliseconds(claimed_at, FIRST_DELAY_MS));
			next = Min(next, TimestampTzPlusMilliseconds(claimed_at, BATCH_DELAY_MS));
			break;
		}
	}
	return next;
}

/* A lane has had its turn: it and its server come after all others. */
static void
lane_end_turn(Lane *lane)
{
	Site	   *site = lane->site;

	lane->turn.last = transaction_number();
	if (!lane->turn.is_due)
		return;
	dlist_delete(&lane->turn.due_node);
	dlist_push_tail(&site->turn.due, &lane->turn.due_node);
	dlist_delete(&site->turn.node);
	dlist_push_tail(&due_sites, &site->turn.node);
}

/*
 * Choose lanes that have had no turn in this transaction, and grant each what it
 * may fill, so many in all at most; of those that are urgent, if it is said so, for their
 * highest tiers.  Returns how many.
 */
int
schedule_choose(TimestampTz now, bool urgent, Lane **lanes, int most)
{
	int			room = flight_room();
	int			rows = Min(most, room);
	int			each = Max(1, room / Max(1, num_due));
	int			num = 0;
	dlist_iter	outer;

	dlist_foreach(outer, &due_sites)
	{
		Site	   *site = dlist_container(Site, turn.node, outer.cur);
		dlist_iter	inner;

		dlist_foreach(inner, &site->turn.due)
		{
			Lane	   *lane = dlist_container(Lane, turn.due_node, inner.cur);
			int			left = room - flight_totals()->load.granted;
			int			places;

			/* those behind it have had theirs, too */
			if (lane->turn.last == transaction_number() || rows == 0 ||
				flight_site_room(site, left) == 0)
				break;
			places = Min(Min(lane_wants(lane, left, now), each), rows);
			if (places == 0 || (urgent && !lane_is_urgent(lane, now)))
				continue;
			/* by itself, the backlog below would have none: it is to take none from above */
			lane->turn.for_top = urgent || flight_lane_room(lane, left, NULL) == 0;
			flight_grant(lane, places);
			lanes[num++] = lane;
			rows -= places;
		}
		if (rows == 0)
			break;
	}
	for (int i = 0; i < num; i++)
		lane_end_turn(lanes[i]);
	return num;
}

/* A lane has got a place of its app. */
void
schedule_note_served(Lane *lane)
{
	lane->turn.served = ++num_served;
}
