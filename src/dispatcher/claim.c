/*-------------------------------------------------------------------------
 *
 * src/dispatcher/claim.c
 *	  A claim: lanes whose turn it is get places, and rows for them, which begin as
 *	  flights.
 *
 * Rows of many lanes are claimed by one statement, each at most what its turn
 * allows.  First each lane gets places of the limiter, then as many rows; places
 * without a row are given back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "app/limiter.h"
#include "dispatcher/claim.h"
#include "dispatcher/discover.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/page.h"
#include "dispatcher/pauses.h"

/* Rows claimed at once, and so lanes. */
#define CLAIM_ROWS			FLIGHT_BATCH

/* Answers that have come meanwhile wait for the end of the transaction. */
#define CLAIM_MS			50

/* The claim under way. */
static Claim claims[CLAIM_ROWS];
static int	num_claims = 0;


/* ---------- Places ---------- */

/* Lanes that wait for a place of the same app are not each asked about in vain. */
#define MEMO_APPS			8

typedef struct FullApp
{
	const Lane *lane;			/* who was told to wait, first of all that wait */
	TimestampTz retry_at;
	LimiterPause why;
} FullApp;

static FullApp full_apps[MEMO_APPS];
static int	num_full_apps;
static uint64 full_apps_transaction;	/* in which they were */

/* That another lane of the app, with the same limits, was told in this transaction
 * to wait; or NULL. */
static FullApp *
find_full_app(const Lane *lane)
{
	if (full_apps_transaction != transaction_number())
		num_full_apps = 0;
	full_apps_transaction = transaction_number();
	for (int i = 0; i < num_full_apps; i++)
	{
		const Lane *other = full_apps[i].lane;

		if (other->site == lane->site && memcmp(&other->app, &lane->app, sizeof(AppKey)) == 0)
			return &full_apps[i];
	}
	return NULL;
}

/* Is it for sure that a lane would be told the same? */
static bool
waits_like(const Lane *lane, const FullApp *full)
{
	if (!lane->place.waiting || !lane->app_is_known)
		return false;
	/* a turn is given back at a pause, once */
	if (full->why == LIMITER_BREAKER)
		return !lane->place.has_turn;
	return limiter_is_before(&full->lane->place, &lane->place);
}

/* Hold a lane whose app has no place: there is no reason if it does not matter to users. */
static void
hold_for_place(Lane *lane, TimestampTz retry_at, LimiterPause why)
{
	lane_hold(lane, retry_at, why == LIMITER_MAX_RATE || why == LIMITER_MAX_CONCURRENCY ? NULL :
			  limiter_pause_text(why));
}

static void
note_full_app(const Lane *lane, TimestampTz retry_at, LimiterPause why)
{
	FullApp    *full = find_full_app(lane);

	if (full == NULL && num_full_apps < MEMO_APPS)
		full = &full_apps[num_full_apps++];
	else if (full != NULL && limiter_is_before(&full->lane->place, &lane->place))
		return;
	if (full != NULL)
		*full = (FullApp) {lane, retry_at, why};
}

/* Get places of the limiter for a lane; the lane is held when there are none. */
static void
take_places(Claim *claim)
{
	Lane	   *lane = claim->lane;

	claim->places = palloc0(claim->granted * sizeof(LimiterPlace));
	while (claim->num_places < claim->granted)
	{
		TimestampTz retry_at;
		LimiterPause why;

		if (lane_get_place(lane, claim->server, &claim->places[claim->num_places],
						   &retry_at, &why) == LIMITER_WAIT)
		{
			hold_for_place(lane, retry_at, why);
			if (why == LIMITER_MAX_RATE || why == LIMITER_MAX_CONCURRENCY ||
				why == LIMITER_BREAKER)
				note_full_app(lane, retry_at, why);
			return;
		}
		claim->num_places++;
		schedule_note_served(lane);
	}
}


/* ---------- Claims ---------- */

/* The part of a lane is over: give back what was not used.  Does not throw. */
static void
close_claim(Claim *claim)
{
	if (!claim->is_open)
		return;
	claim->is_open = false;
	for (int i = 0; i < claim->num_places; i++)
		limiter_abandon(&claim->places[i]);
	flight_grant(claim->lane, -claim->granted);
	/* what it has to do now may be nothing, or later */
	schedule_lane(claim->lane);
}

/*
 * Get a lane what it takes: its server, which is found already or is to be looked up
 * (NULL), and places.  False: the lane is held.
 */
static bool
prepare(Claim *claim, TimestampTz now)
{
	Lane	   *lane = claim->lane;
	const FullApp *full = find_full_app(lane);

	flight_memory_begin(lane);
	if (full != NULL && waits_like(lane, full))
	{
		hold_for_place(lane, full->retry_at, full->why);
		return false;
	}
	if (lane->hold_until != 0)
		lane_hold(lane, 0, NULL);
	if (claim->server == NULL)
		claim->server = lane_server_lookup(lane, claim->snapshot);
	if (claim->server == NULL)
	{
		lane_leave_app(lane);
		return false;
	}
	lane_note_app(lane, &claim->server->app_key);

	/* not more than can be claimed: millions may be due */
	for (int i = 0; i < lane->num_tiers; i++)
	{
		Tier	   *tier = lane->tiers[i];

		if (tier->next_due <= now && tier->ready.num < claim->granted)
			page_list_due(claim, tier, now);
	}
	take_places(claim);
	return claim->num_places > 0;
}

/* Open a claim for the lanes whose turn it is; returns how many of them can go on. */
static int
open_claims(TimestampTz now, bool urgent, Snapshot snapshot, int64 last_id)
{
	Lane	   *lanes[CLAIM_ROWS];
	FlowServer *servers[CLAIM_ROWS];
	int			num = 0;

	num_claims = schedule_choose(now, urgent, lanes, CLAIM_ROWS);
	for (int i = 0; i < num_claims; i++)
		claims[i] = (Claim) {
			.lane = lanes[i], .snapshot = snapshot, .last_id = last_id,
			.granted = lanes[i]->load.granted, .in_flight = lanes[i]->load.in_flight,
			.is_open = true
		};
	lane_server_lookup_all(lanes, servers, num_claims, snapshot);
	for (int i = 0; i < num_claims; i++)
	{
		Claim		claim;

		claims[i].server = servers[i];
		if (!prepare(&claims[i], now))
		{
			if (claims[i].server != NULL)
				server_forget_secrets(claims[i].server);
			flight_memory_leave(lanes[i]);
			close_claim(&claims[i]);
			continue;
		}
		claim = claims[i];
		claims[i].is_open = false;
		claims[num++] = claim;
	}
	return num;
}

static Claim *
claim_of(const Flight *flight)
{
	return &claims[flight->claim - claims];
}

/* Begin the flights that were claimed, each with a place of its lane. */
static void
begin_flights(List *flights)
{
	ListCell   *cell;

	/* none overtakes one that is held */
	foreach(cell, flights)
	{
		const Flight *flight = lfirst(cell);

		claim_of(flight)->other_owner |= flight->other_owner;
	}
	foreach(cell, flights)
	{
		Flight	   *flight = lfirst(cell);
		Claim	   *claim = claim_of(flight);
		LimiterPlace *place = &claim->places[claim->num_begun++];

		if (flight->end.silent || claim->other_owner)
			flight_return(flight);
		else
			flight_start(flight, claim->server, place);
	}
}

/* The rows of a lane were claimed: is it to be held? */
static void
end_claim(Claim *claim)
{
	Lane	   *lane = claim->lane;
	bool		waits = claim->num_begun == claim->num_places && claim->num_places < claim->granted;

	if (claim->num_begun > 0 && !claim->other_owner)
		lane_log_open(lane);
	if (!lane->memory.refused || claim->other_owner)
		flight_memory_leave(lane);
	if (claim->other_owner)
		lane_server_hold(lane);
	/* the limiter's word holds while there may be more to send */
	else if (!waits && !lane->memory.waits && lane->hold_until != 0)
		lane_hold(lane, 0, NULL);
	/* with nothing more to send, there is nothing to wait for */
	if (claim->num_begun < claim->num_places || claim->other_owner)
		lane_leave_app(lane);
	close_claim(claim);
	server_forget_secrets(claim->server);
}

/* One claim; false when there is nobody whose turn it is. */
static bool
claim_once(TimestampTz now, bool urgent)
{
	int64		last_id;
	Snapshot	snapshot;
	int			num;

	if (schedule_num_due() == 0)
		return false;
	last_id = discover_last_id();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	pauses_read(snapshot);
	num = open_claims(now, urgent, snapshot, last_id);
	if (num > 0)
		begin_flights(claim_rows(claims, num));
	for (int i = 0; i < num; i++)
		end_claim(&claims[i]);
	UnregisterSnapshot(snapshot);
	return num_claims > 0;
}

/* Claim rows of all lanes in turn, or of those that are urgent, and make calls of them. */
void
claim_all(TimestampTz now, bool urgent)
{
	TimestampTz until = TimestampTzPlusMilliseconds(now, CLAIM_MS);

	schedule_advance(now);
	while (claim_once(now, urgent) && GetCurrentTimestamp() < until)
		;
}

/* After an error, before the abort: give back what a claim under way has. */
void
claim_abort(void)
{
	for (int i = 0; i < num_claims; i++)
		close_claim(&claims[i]);
	num_claims = 0;
}
