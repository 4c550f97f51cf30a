/*-------------------------------------------------------------------------
 *
 * lane.c
 *	  The dispatcher's lanes and flights: which rows to claim, calls made of
 *	  them, and their ends.
 *
 * Each lane may have three quarters of the room that the other lanes leave,
 * and always one flight, so that a server that hangs never holds up the others.
 * A lane is held while the limiter has no place for its app, or while its
 * server cannot be looked up: that may be mended, so nothing is failed for it.
 * A row that cannot be called at all is failed by itself.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/lane.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "guc.h"
#include "limiter.h"
#include "nls.h"
#include "stats.h"

/* Rows of a lane claimed at once. */
#define CLAIM_ROWS			DISPATCH_BATCH

/* A lane whose server cannot be looked up is tried again so often. */
#define LOOKUP_RETRY_MS		(60 * 1000)

/* A lane with large params that found no room is tried again so often. */
#define LARGE_RETRY_MS		100


/* ---------- Flights ---------- */

/* A flight has ended, in whatever way: keep it to be recorded. */
static void
flight_ended(Dispatch *dispatch, Flight *flight)
{
	dlist_delete(&flight->node);
	dispatch->num_flights--;
	dispatch->large_bytes -= flight->large_bytes;
	flight->lane->in_flight--;
	if (flight->silent)
	{
		if (!flight->is_behind)
			id_list_add(dispatch, &flight->lane->ready, flight->id);
	}
	else if (flight->state == 'q')
		flight->lane->next_due = Min(flight->lane->next_due, flight->next_at);
	if (dispatch->num_ended++ == 0)
		dispatch->ended_since = GetCurrentTimestamp();
	dlist_push_tail(&dispatch->ended, &flight->node);
}

/* Take the calls that have ended. */
void
lane_take_ended(Dispatch *dispatch)
{
	FlowCall   *call;

	while ((call = flow_calls_next_done()) != NULL)
	{
		Flight	   *flight = flow_call_owner(call);
		const FlowOutcome *outcome = flow_call_outcome(call);

		record_decide(flight, outcome);
		if (!outcome->held_back)
			stats_count_call(flight->serverid,
							 flight->request.namespace_name, flight->request.flow_id,
							 outcome, flight->attempts > 1,
							 GetCurrentTimestamp() - flight->started);
		flight_ended(dispatch, flight);
	}
}

/* Flights of which nothing was sent yet end as if never begun. */
void
lane_give_back_unsent(Dispatch *dispatch)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &dispatch->flights)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flow_call_is_sent(flight->call))
			continue;
		flow_call_free(flight->call);
		flight->call = NULL;
		flight->state = 'q';
		flight->silent = true;
		flight_ended(dispatch, flight);
	}
}

/* Forget the flights whose ends are recorded. */
void
lane_forget_ended(Dispatch *dispatch)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		dlist_delete(&flight->node);
		MemoryContextDelete(flight->context);
	}
	dispatch->num_ended = 0;
}

/*
 * Make the call of a flight, with the place it was given.  What is wrong with
 * the row itself ends it.
 *
 * Errors are caught without a subtransaction: what runs here computes and
 * allocates, and looks up at most a conversion.
 */
static void
flight_start(Dispatch *dispatch, Flight *flight, FlowServer *server, LimiterPlace *place)
{
	MemoryContext context = CurrentMemoryContext;
	FlowLimits	limits;

	if (!flight->is_ours)
	{
		limiter_abandon(place);
		record_decide_not_ours(flight);
		flight_ended(dispatch, flight);
		return;
	}
	if (flight->expires_at <= GetCurrentTimestamp())
	{
		limiter_abandon(place);
		record_decide_expired(flight);
		flight_ended(dispatch, flight);
		return;
	}

	PG_TRY();
	{
		MemoryContextSwitchTo(flight->context);
		flight->serverid = server->serverid;
		flight->started = GetCurrentTimestamp();
		limits.timeout_ms = server->timeout_ms >= 0 ? server->timeout_ms : feishu_guc_timeout;
		limits.deadline = TimestampTzPlusMilliseconds(flight->started, limits.timeout_ms);
		limits.connect_timeout_ms = server->connect_timeout_ms >= 0 ?
			server->connect_timeout_ms : feishu_guc_connect_timeout;
		limits.max_response = (size_t) feishu_guc_max_response_size * 1024;
		flight->call = flow_call_start(flight->context, server_copy(server),
									   &flight->request, &limits, place, flight);
		MemoryContextSwitchTo(context);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		/* an internal error: more memory was asked for than anything may have */
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			error->sqlerrcode != ERRCODE_OUT_OF_MEMORY &&
			error->sqlerrcode != ERRCODE_INTERNAL_ERROR)
			PG_RE_THROW();
		FlushErrorState();
		limiter_abandon(place);
		record_decide_error(flight, error->sqlerrcode, error->message);
		flight_ended(dispatch, flight);
	}
	PG_END_TRY();
}


/* ---------- Lanes ---------- */

/* Hold a lane, with a reason if it is worth telling. */
static void
lane_hold(Lane *lane, TimestampTz until, const char *reason)
{
	int			len = reason ? (int) strlen(reason) : 0;

	/* cut between characters: it becomes a column's text */
	len = pg_mbcliplen(reason, len, sizeof(lane->reason) - 1);
	memcpy(lane->reason, reason ? reason : "", len);
	lane->reason[len] = '\0';
	lane->hold_until = until;
}

/*
 * The lane's server and credentials, or NULL, with the lane held, when its role
 * may not or cannot use it: that may be mended, so nothing is failed for it.
 */
static FlowServer *
lane_lookup_server(Dispatch *dispatch, Lane *lane)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	FlowServer *server = NULL;

	if (GetUserNameFromId(lane->roleid, true) == NULL)
	{
		/* no other role will ever have its OID: this cannot be mended */
		record_fail_lane(dispatch, lane, "42704", _("the role that queued it was dropped"));
		lane_hold(lane, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000), NULL);
		return NULL;
	}

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		server = server_lookup(lane->server, lane->roleid);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		lane_hold(lane, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOKUP_RETRY_MS),
				  error->message);
		server = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (server != NULL)
		return server;
	if (discover_lane_is_empty(lane))
	{
		/* all are gone: there is nothing to hold, and nothing to tell */
		lane->more = false;
		lane->next_due = DT_NOEND;
		lane->ready.num = 0;
		lane_hold(lane, 0, NULL);
	}
	else if (strcmp(lane->told, lane->reason) != 0)
	{
		ereport(LOG,
				(errmsg("feishu_flow holds back flows for server \"%s\": %s",
						lane->server, lane->reason)));
		lane->logged = true;
	}
	return NULL;
}

/*
 * Note the app that flows of the lane are sent by.  The log does not tell of the
 * former one, if any, that it is no longer paused.
 */
static void
lane_note_app(Lane *lane, const AppKey *app)
{
	LimiterStatus status;

	if (memcmp(&lane->app, app, sizeof(AppKey)) == 0)
		return;
	if (limiter_status(&lane->app, &status) &&
		(status.pause == LIMITER_BREAKER || status.pause == LIMITER_CREDENTIALS ||
		 status.pause == LIMITER_QUOTA))
		lane->logged = true;
	lane->app = *app;
}

/* Flows of the lane are sent. */
static void
lane_log_open(Lane *lane)
{
	const char *role = lane->logged ? GetUserNameFromId(lane->roleid, true) : NULL;

	if (role != NULL)
		ereport(LOG,
				(errmsg("feishu_flow sends flows of role \"%s\" for server \"%s\" again",
						role, lane->server)));
	lane->logged = false;
}

/* May rows of this lane be claimed now? */
static bool
lane_is_open(const Lane *lane, TimestampTz now)
{
	return !lane->paused && lane->hold_until <= now &&
		(lane->more || lane->ready.num > 0 || lane->next_due <= now);
}

/* How many more flights may a lane have? */
int
lane_room(const Dispatch *dispatch, const Lane *lane)
{
	int			others = dispatch->num_flights - lane->in_flight;
	int			share = (feishu_guc_max_in_flight - others) * 3 / 4 - lane->in_flight;
	int			room = Min(share, feishu_guc_max_in_flight - dispatch->num_flights);

	/* however many servers hang: one flow of each lane is always under way */
	return lane->in_flight == 0 ? Max(room, 1) : Max(room, 0);
}

/* Claim rows of a lane and make calls of them; returns how many. */
static int
lane_claim(Dispatch *dispatch, Lane *lane, TimestampTz now)
{
	int			limit = lane_room(dispatch, lane);
	FlowServer *server;
	LimiterPlace *places;
	int			num_places = 0;
	int			granted;
	int			claimed;
	bool		no_room = false;
	dlist_mutable_iter iter;

	/* no more places than there may be rows: others may want them */
	if (!lane->more && lane->next_due > now)
		limit = Min(limit, lane->ready.num);
	limit = Min(limit, CLAIM_ROWS);
	if (limit <= 0)
		return 0;
	if (lane->hold_until != 0)
		lane_hold(lane, 0, NULL);
	server = lane_lookup_server(dispatch, lane);
	if (server == NULL)
	{
		limiter_abandon(&lane->place);
		return 0;
	}
	lane_note_app(lane, &server->app_key);

	/* not more than can be claimed: millions may be due */
	if (lane->next_due <= now && lane->ready.num < limit)
		claim_look_at_due(dispatch, lane, now);

	/* first a place for each, then as many rows */
	places = palloc0(limit * sizeof(LimiterPlace));
	while (num_places < limit)
	{
		TimestampTz retry_at;
		LimiterPause why;

		if (limiter_acquire(server, true, &lane->place, &retry_at, &why) == LIMITER_WAIT)
		{
			lane_hold(lane, retry_at,
					  why == LIMITER_MAX_RATE || why == LIMITER_MAX_CONCURRENCY ? NULL :
					  limiter_pause_text(why));
			break;
		}
		places[num_places++] = lane->place;
		memset(&lane->place, 0, sizeof(lane->place));
	}

	granted = num_places;
	claimed = granted > 0 ? claim_rows(dispatch, lane, granted) : 0;
	if (claimed > 0)
		lane_log_open(lane);
	num_places = 0;
	dlist_foreach_modify(iter, &dispatch->flights)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flight->lane != lane || flight->call != NULL || num_places >= claimed)
			continue;
		dispatch->claim_durably |= !flight->own_key;
		if (flight->silent)
		{
			/* another of its key is under way; or it is large, and there is no
			 * room for it now */
			bool		is_behind = flight->is_behind;

			limiter_abandon(&places[num_places++]);
			flight_ended(dispatch, flight);
			if (!is_behind)
			{
				lane_hold(lane, TimestampTzPlusMilliseconds(now, LARGE_RETRY_MS), NULL);
				no_room = true;
			}
		}
		else
			flight_start(dispatch, flight, server, &places[num_places++]);
	}
	for (int i = 0; i < limit; i++)
		limiter_abandon(&places[i]);
	/* with nothing more to send, there is nothing to wait for */
	if (claimed < granted)
	{
		limiter_abandon(&lane->place);
		if (!no_room)
			lane_hold(lane, 0, NULL);
	}
	server_forget_secrets(server);
	return claimed;
}

/* Claim rows of all lanes, beginning with another one each time. */
void
lane_claim_all(Dispatch *dispatch, TimestampTz now)
{
	static int	first = 0;

	for (int i = 0; i < dispatch->num_lanes; i++)
	{
		Lane	   *lane = dispatch->lanes[(first + i) % dispatch->num_lanes];

		if (lane_is_open(lane, now))
			lane_claim(dispatch, lane, now);
	}
	first++;
}
