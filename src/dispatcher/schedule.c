/*-------------------------------------------------------------------------
 *
 * schedule.c
 *	  Whose turn it is: which lanes the dispatcher claims rows of, and how many.
 *
 * A lane is due when it may have rows to claim now, will be due at a time, or
 * waits for somebody to change it.  Servers with lanes that are due take turns,
 * and so do the lanes of a server: whose turn is over goes to the end.  So what a
 * turn costs depends on how much is claimed, not on how many lanes there are.
 * How many flows a lane may have under way is flight.c's to say.
 *
 * Rows of many lanes are claimed by one statement, each at most what its turn
 * allows.  First each lane gets places of the limiter, then as many rows; places
 * without a row are given back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/schedule.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "app/limiter.h"
#include "dispatcher/dispatch.h"

/* Rows claimed at once, and so lanes. */
#define CLAIM_ROWS			DISPATCH_BATCH

/* Answers that have come meanwhile wait for the end of the transaction. */
#define CLAIM_MS			50

/*
 * With much under way, rows are claimed when there is room for many, or after so
 * long; of a lane that has nothing under way, sooner, unless many lanes wait.
 */
#define BATCH_ROWS			DISPATCH_BATCH
#define BATCH_DELAY_MS		10
#define FIRST_DELAY_MS		2
#define FIRST_LANES			16


/* ---------- Who is due ---------- */

/*
 * Who is due first is the heap's greatest.  Of those that are due at one time, as
 * all are that wait for places of an app, who had a place last comes last.
 */
static int
compare_timed(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Lane *left = pairingheap_const_container(Lane, timed_node, a);
	const Lane *right = pairingheap_const_container(Lane, timed_node, b);

	if (left->timed_at != right->timed_at)
		return left->timed_at < right->timed_at ? 1 : -1;
	return left->served < right->served ? 1 : left->served > right->served ? -1 : 0;
}

void
schedule_init(Dispatch *dispatch)
{
	HASHCTL		control;

	dispatch->context = AllocSetContextCreate(TopMemoryContext, "feishu_flow dispatcher",
											  ALLOCSET_DEFAULT_SIZES);
	dispatch->scratch = AllocSetContextCreate(TopMemoryContext, "feishu_flow dispatcher turn",
											  ALLOCSET_DEFAULT_SIZES);
	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(LaneKey);
	control.entrysize = sizeof(Lane);
	control.hcxt = dispatch->context;
	dispatch->lane_table = hash_create("feishu_flow lanes", 64, &control,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	control.keysize = NAMEDATALEN;
	control.entrysize = sizeof(Site);
	dispatch->site_table = hash_create("feishu_flow servers", 64, &control,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(RoleShare);
	dispatch->share_table = hash_create("feishu_flow shares of memory", 64, &control,
										HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	dlist_init(&dispatch->due_sites);
	dlist_init(&dispatch->untold);
	dlist_init(&dispatch->want_memory);
	dlist_init(&dispatch->claimed);
	dlist_init(&dispatch->flights);
	dlist_init(&dispatch->ended);
	dlist_init(&dispatch->stuck);
	/* pairingheap_allocate takes the current context */
	MemoryContextSwitchTo(dispatch->context);
	dispatch->timed = pairingheap_allocate(compare_timed, NULL);
	MemoryContextSwitchTo(dispatch->scratch);
}

/* When a lane may have rows to claim; DT_NOEND: not before somebody changes it. */
static TimestampTz
lane_due_at(const Lane *lane)
{
	TimestampTz at = lane->more || lane->ready.num > 0 ? 0 : lane->next_due;

	return lane->paused ? DT_NOEND : Max(at, lane->hold_until);
}

/* Take a lane from where it is. */
static void
schedule_remove(Dispatch *dispatch, Lane *lane)
{
	Site	   *site = lane->site;

	if (lane->is_due)
	{
		dlist_delete(&lane->due_node);
		lane->is_due = false;
		dispatch->num_due--;
		if (--site->num_due == 0)
			dlist_delete(&site->node);
	}
	if (lane->is_timed)
	{
		pairingheap_remove(dispatch->timed, &lane->timed_node);
		lane->is_timed = false;
	}
}

/* A lane is due: its turn comes after all others. */
static void
schedule_push(Dispatch *dispatch, Lane *lane)
{
	Site	   *site = lane->site;

	dlist_push_tail(&site->due, &lane->due_node);
	lane->is_due = true;
	dispatch->num_due++;
	if (site->num_due++ == 0)
		dlist_push_tail(&dispatch->due_sites, &site->node);
}

void
schedule_lane(Dispatch *dispatch, Lane *lane)
{
	TimestampTz at = lane_due_at(lane);

	if (at == 0 || (lane->is_due && at <= dispatch->advanced_to))
	{
		/* it keeps its turn */
		if (!lane->is_due)
		{
			schedule_remove(dispatch, lane);
			schedule_push(dispatch, lane);
		}
		return;
	}
	if (lane->is_timed && lane->timed_at == at)
		return;
	schedule_remove(dispatch, lane);
	if (TIMESTAMP_IS_NOEND(at))
		return;
	lane->timed_at = at;
	pairingheap_add(dispatch->timed, &lane->timed_node);
	lane->is_timed = true;
}

/* Lanes whose time has come are due. */
static void
schedule_advance(Dispatch *dispatch, TimestampTz now)
{
	dispatch->advanced_to = now;
	while (!pairingheap_is_empty(dispatch->timed))
	{
		Lane	   *lane = pairingheap_container(Lane, timed_node, pairingheap_first(dispatch->timed));

		if (lane->timed_at > now)
			break;
		schedule_remove(dispatch, lane);
		schedule_push(dispatch, lane);
	}
}


/* ---------- Whose turn it is ---------- */

/* How many rows of a lane may be claimed, with room for so many in all. */
static int
lane_wants(const Dispatch *dispatch, const Lane *lane, int room, TimestampTz now)
{
	int			limit = flight_lane_room(dispatch, lane, room);

	/* no more places than there may be rows: others may want them */
	if (!lane->more && lane->next_due > now)
		limit = Min(limit, lane->ready.num);
	return Min(limit, CLAIM_ROWS);
}

TimestampTz
schedule_next(Dispatch *dispatch, TimestampTz now, TimestampTz claimed_at)
{
	TimestampTz next = DT_NOEND;
	int			room;
	dlist_iter	outer;

	schedule_advance(dispatch, now);
	if (!pairingheap_is_empty(dispatch->timed))
		next = pairingheap_container(Lane, timed_node, pairingheap_first(dispatch->timed))->timed_at;
	room = dispatch->num_due > 0 ? flight_room(dispatch) : 0;
	if (room == 0)
		return next;

	dlist_foreach(outer, &dispatch->due_sites)
	{
		Site	   *site = dlist_container(Site, node, outer.cur);
		dlist_iter	inner;

		if (flight_site_room(site, room) == 0)
			continue;
		dlist_foreach(inner, &site->due)
		{
			Lane	   *lane = dlist_container(Lane, due_node, inner.cur);

			if (lane_wants(dispatch, lane, room, now) == 0)
				continue;
			if (room >= Min(BATCH_ROWS, dispatch->num_flights))
				return 0;
			if (lane->in_flight == 0 && dispatch->num_due <= FIRST_LANES)
				return Min(next, TimestampTzPlusMilliseconds(claimed_at, FIRST_DELAY_MS));
			next = Min(next, TimestampTzPlusMilliseconds(claimed_at, BATCH_DELAY_MS));
			break;
		}
	}
	return next;
}

/* Change how many places a lane may fill in the claim under way. */
static void
lane_grant(Dispatch *dispatch, Lane *lane, int change)
{
	lane->granted += change;
	lane->site->granted += change;
	lane->role->granted += change;
	dispatch->granted += change;
}

/* A lane has had its turn: it and its server come after all others. */
static void
lane_end_turn(Dispatch *dispatch, Lane *lane)
{
	Site	   *site = lane->site;

	lane->turn = dispatch->turn;
	if (!lane->is_due)
		return;
	dlist_delete(&lane->due_node);
	dlist_push_tail(&site->due, &lane->due_node);
	dlist_delete(&site->node);
	dlist_push_tail(&dispatch->due_sites, &site->node);
}

/*
 * Choose lanes that have had no turn in this transaction, and grant each what it
 * may fill, CLAIM_ROWS in all at most.  Returns how many.
 */
static int
choose_lanes(Dispatch *dispatch, TimestampTz now, Lane **lanes)
{
	int			room = flight_room(dispatch);
	int			rows = Min(CLAIM_ROWS, room);
	int			each = Max(1, room / Max(1, dispatch->num_due));
	int			num = 0;
	dlist_iter	outer;

	dlist_foreach(outer, &dispatch->due_sites)
	{
		Site	   *site = dlist_container(Site, node, outer.cur);
		dlist_iter	inner;

		dlist_foreach(inner, &site->due)
		{
			Lane	   *lane = dlist_container(Lane, due_node, inner.cur);
			int			left = room - dispatch->granted;
			int			places;

			/* those behind it have had theirs, too */
			if (lane->turn == dispatch->turn || rows == 0 ||
				flight_site_room(site, left) == 0)
				break;
			places = Min(Min(lane_wants(dispatch, lane, left, now), each), rows);
			if (places == 0)
				continue;
			lane_grant(dispatch, lane, places);
			lanes[num++] = lane;
			rows -= places;
		}
		if (rows == 0)
			break;
	}
	for (int i = 0; i < num; i++)
		lane_end_turn(dispatch, lanes[i]);
	return num;
}


/* ---------- Claims ---------- */

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
static uint64 full_apps_turn;	/* the transaction in which they were */

/* That another lane of the app, with the same limits, was told in this transaction
 * to wait; or NULL. */
static FullApp *
find_full_app(const Dispatch *dispatch, const Lane *lane)
{
	if (full_apps_turn != dispatch->turn)
		num_full_apps = 0;
	full_apps_turn = dispatch->turn;
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

/* Why a lane has to wait: NULL if it does not matter to users. */
static const char *
waits_why(LimiterPause why)
{
	return why == LIMITER_MAX_RATE || why == LIMITER_MAX_CONCURRENCY ? NULL :
		limiter_pause_text(why);
}

static void
note_full_app(const Dispatch *dispatch, const Lane *lane, TimestampTz retry_at, LimiterPause why)
{
	FullApp    *full = find_full_app(dispatch, lane);

	if (full == NULL && num_full_apps < MEMO_APPS)
		full = &full_apps[num_full_apps++];
	else if (full != NULL && limiter_is_before(&full->lane->place, &lane->place))
		return;
	if (full != NULL)
		*full = (FullApp)
	{
		lane, retry_at, why
	};
}

/* Get places of the limiter for a lane; the lane is held when there are none. */
static void
lane_take_places(Dispatch *dispatch, Lane *lane, const FlowServer *server)
{
	lane->places = palloc0(lane->granted * sizeof(LimiterPlace));
	while (lane->num_places < lane->granted)
	{
		TimestampTz retry_at;
		LimiterPause why;

		if (limiter_acquire(server, true, &lane->place, &retry_at, &why) == LIMITER_WAIT)
		{
			lane_hold(dispatch, lane, retry_at, waits_why(why));
			if (why == LIMITER_MAX_RATE || why == LIMITER_MAX_CONCURRENCY ||
				why == LIMITER_BREAKER)
				note_full_app(dispatch, lane, retry_at, why);
			return;
		}
		lane->served = ++dispatch->num_served;
		lane->places[lane->num_places++] = lane->place;
		memset(&lane->place, 0, sizeof(lane->place));
	}
}

/* Prepare a lane for a claim: its server (NULL: to be looked up), or NULL when it
 * is held. */
static FlowServer *
lane_prepare(Dispatch *dispatch, Lane *lane, FlowServer *server, TimestampTz now)
{
	const FullApp *full = find_full_app(dispatch, lane);

	lane->memory_refused = false;
	if (full != NULL && waits_like(lane, full))
	{
		lane_hold(dispatch, lane, full->retry_at, waits_why(full->why));
		if (server != NULL)
			server_forget_secrets(server);
		return NULL;
	}
	if (lane->hold_until != 0)
		lane_hold(dispatch, lane, 0, NULL);
	if (server == NULL)
		server = lane_lookup_server(dispatch, lane);
	if (server == NULL)
	{
		limiter_abandon(&lane->place);
		return NULL;
	}
	lane_note_app(lane, &server->app_key);
	lane->server_owner = server->owner;
	lane->owner_differs = false;

	/* not more than can be claimed: millions may be due */
	if (lane->next_due <= now && lane->ready.num < lane->granted)
		claim_look_at_due(dispatch, lane, now);
	lane_take_places(dispatch, lane, server);
	return server;
}

/* The claim of a lane is over: give back what was not used.  Does not throw. */
static void
lane_finish(Dispatch *dispatch, Lane *lane)
{
	for (int i = 0; lane->places != NULL && i < lane->num_places; i++)
		limiter_abandon(&lane->places[i]);
	lane->places = NULL;
	lane->num_places = 0;
	lane_grant(dispatch, lane, -lane->granted);
	/* what it has to do now may be nothing, or later */
	schedule_lane(dispatch, lane);
}

/* Begin the flights that were claimed, each with a place of its lane. */
static void
begin_claimed(Dispatch *dispatch, Lane **lanes, FlowServer **servers, int num)
{
	int		   *claimed = palloc0(num * sizeof(int));
	dlist_mutable_iter iter;

	for (int i = 0; i < num; i++)
		lanes[i]->position = i;
	dlist_foreach_modify(iter, &dispatch->claimed)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);
		int			i = flight->lane->position;

		/* none overtakes one that is held */
		if (flight->lane->owner_differs)
		{
			flight->silent = true;
			flight->state = 'q';
		}
		dispatch->claim_durably |= !flight->own_key && !flight->silent;
		if (flight->silent)
			flight_end(dispatch, flight);
		else
			flight_start(dispatch, flight, servers[i], &lanes[i]->places[claimed[i]]);
		claimed[i]++;
	}
	for (int i = 0; i < num; i++)
	{
		Lane	   *lane = lanes[i];
		bool		waits = claimed[i] == lane->num_places && lane->num_places < lane->granted;

		if (claimed[i] > 0 && !lane->owner_differs)
			lane_log_open(lane);
		if (!lane->memory_refused || lane->owner_differs)
			flight_leave_memory(dispatch, lane);
		if (lane->owner_differs)
			lane_hold_for_owner(dispatch, lane);
		/* the limiter's word holds while there may be more to send */
		else if (!waits && !lane->wants_memory && lane->hold_until != 0)
			lane_hold(dispatch, lane, 0, NULL);
		/* with nothing more to send, there is nothing to wait for */
		if (claimed[i] < lane->num_places || lane->owner_differs)
			limiter_abandon(&lane->place);
		lane_finish(dispatch, lane);
		server_forget_secrets(servers[i]);
	}
}

/* One claim; false when there is nobody whose turn it is. */
static bool
claim_once(Dispatch *dispatch, TimestampTz now)
{
	Lane	   *lanes[CLAIM_ROWS];
	FlowServer *servers[CLAIM_ROWS];
	FlowServer *found[CLAIM_ROWS];
	int			chosen;
	int			num = 0;

	if (dispatch->num_due == 0)
		return false;
	dispatch->claim_last_id = discover_last_id(dispatch);
	dispatch->snapshot = RegisterSnapshot(GetLatestSnapshot());
	discover_read_pauses(dispatch);
	chosen = choose_lanes(dispatch, now, lanes);
	lane_lookup_servers(dispatch, lanes, found, chosen);
	for (int i = 0; i < chosen; i++)
	{
		FlowServer *server = lane_prepare(dispatch, lanes[i], found[i], now);

		if (server == NULL || lanes[i]->num_places == 0)
		{
			if (server != NULL)
				server_forget_secrets(server);
			flight_leave_memory(dispatch, lanes[i]);
			lane_finish(dispatch, lanes[i]);
			continue;
		}
		servers[num] = server;
		lanes[num++] = lanes[i];
	}
	if (num > 0)
	{
		claim_rows(dispatch, lanes, num);
		begin_claimed(dispatch, lanes, servers, num);
	}
	UnregisterSnapshot(dispatch->snapshot);
	dispatch->snapshot = NULL;
	return chosen > 0;
}

void
schedule_claim_all(Dispatch *dispatch, TimestampTz now)
{
	TimestampTz until = TimestampTzPlusMilliseconds(now, CLAIM_MS);

	schedule_advance(dispatch, now);
	while (claim_once(dispatch, now) && GetCurrentTimestamp() < until)
		;
}

void
schedule_abort(Dispatch *dispatch)
{
	/* the transaction's end releases it */
	dispatch->snapshot = NULL;
	if (dispatch->granted == 0)
		return;
	for (int i = 0; i < dispatch->num_lanes; i++)
	{
		if (dispatch->lanes[i]->granted > 0)
			lane_finish(dispatch, dispatch->lanes[i]);
	}
}
