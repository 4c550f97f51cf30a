/*-------------------------------------------------------------------------
 *
 * src/dispatcher/flight_room.c
 *	  How many flights there may be.
 *
 * feishu_flow.max_in_flight bounds the flights of all lanes together, and so do
 * the descriptors that the process may open.  Within that bound
 *
 * - a server may have all but an eighth of what other servers leave, and a lane
 *	 three quarters of what other lanes leave, and each always one, if there is
 *	 room at all: so one that hangs leaves room for others;
 * - the last eighth is a reserve for lanes whose highest priority has no flight, and
 *	 whose last one got an answer: so many that hang do so, too, once they are known,
 *	 and a backlog of lower priority does for what is above it;
 * - a role may have three quarters of what other roles leave, with its lanes of the
 *	 reserve all but an eighth, and always one: so lanes that it makes without end,
 *	 each on a server of its own, leave room for other roles.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/guc.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/lane.h"
#include "http/http.h"

/* Of so much, what is left to others. */
static int
eighth(int room)
{
	return room >= 4 ? (room + 7) / 8 : room >= 2 ? 1 : 0;
}

static int
load_sum(const FlightLoad *load)
{
	return load->in_flight + load->granted;
}

/* How many more flights may there be? */
int
flight_room(void)
{
	const FlightTotals *totals = flight_totals();
	int			taken = load_sum(&totals->load);
	int			room = Min(feishu_guc_max_in_flight - taken - totals->stuck,
						   http_loop_room(http_loop_get()) - totals->load.granted);

	/* nothing can be written: one more is tried, now and then */
	if (totals->stuck_alone)
		room = totals->stuck_transaction != transaction_number() ? 0 : Min(room, 1 - taken);
	return Max(room, 0);
}

/* With room for so many, how many more may a server have? */
int
flight_site_room(const Site *site, int room)
{
	int			taken = load_sum(&site->load);
	int			left = room + taken;	/* by other servers */
	int			share = left >= 4 ? left - eighth(left) : left;

	/* one is always under way, of whatever server */
	return Min(room, Max(share - taken, taken == 0 ? 1 : 0));
}

/* How many more flights a role may have, of a lane that may use the reserve or not. */
static int
role_room(const Role *role, bool reserve, int room)
{
	int			taken = load_sum(&role->load);
	int			left = room + taken;	/* by other roles */
	int			one = taken == 0 || (reserve && taken < left - eighth(left)) ? 1 : 0;

	return Max(left * 3 / 4 - taken, one);
}

/* Likewise a lane, whose highest tier with rows is top, or NULL? */
int
flight_lane_room(const Lane *lane, int room, const Tier *top)
{
	int			taken = load_sum(&lane->load);
	int			all = load_sum(&flight_totals()->load) + room;
	int			share = (room + taken) * 3 / 4; /* of what other lanes leave */
	bool		is_first = taken == 0 ||
		(lane->load.granted == 0 && top != NULL && top->in_flight == 0);
	bool		reserve = is_first && !lane->suspect;
	int			left = Min(flight_site_room(lane->site, room),
						   Max(share - taken, is_first ? 1 : 0));

	left = Min(left, role_room(lane->role, reserve, room));
	if (!reserve)
		left = Min(left, room - eighth(all));
	else if (left > 1)
		left = Max(Min(left, room - eighth(all)), 1);
	return Max(left, 0);
}
