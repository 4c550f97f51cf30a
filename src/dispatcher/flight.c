/*-------------------------------------------------------------------------
 *
 * flight.c
 *	  The dispatcher's flights: flows that are claimed, from the row to the end,
 *	  and how many there may be.
 *
 * feishu_flow.max_in_flight bounds the flights of all lanes together, and so do
 * the descriptors that the process may open.  Within that bound
 *
 * - a server may have all but an eighth of what other servers leave, and a lane
 *	 three quarters of what other lanes leave, and each always one, if there is
 *	 room at all: so one that hangs leaves room for others;
 * - the last eighth is a reserve for lanes that have no flight, and whose last one
 *	 got an answer: so many that hang do so, too, once they are known;
 * - a role may have three quarters of what other roles leave, with its lanes of the
 *	 reserve all but an eighth, and always one: so lanes that it makes without end,
 *	 each on a server of its own, leave room for other roles.
 *
 * A flight's memory context has all of it.  It goes when its end is recorded, or
 * the transaction that claimed it is rolled back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/flight.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/limiter.h"
#include "base/guc.h"
#include "base/role_settings.h"
#include "base/sqlrun.h"
#include "call/stats.h"
#include "dispatcher/dispatch.h"
#include "http/http.h"
#include "queue/origin.h"

/* The longest pause that an answer can ask for. */
#define PAUSE_MOST_S		300

/* Ends that could not be written are tried again so often. */
#define STUCK_RETRY_MS		5000


/* ---------- How many ---------- */

/* Of so much, what is left to others. */
static int
eighth(int room)
{
	return room >= 4 ? (room + 7) / 8 : room >= 2 ? 1 : 0;
}

int
flight_room(const Dispatch *dispatch)
{
	int			taken = dispatch->num_flights + dispatch->num_stuck + dispatch->granted;
	int			room = Min(feishu_guc_max_in_flight - taken,
						   http_loop_room(http_loop_get()) - dispatch->granted);

	/* nothing can be written: one more is tried, now and then */
	if (dispatch->stuck_alone)
		room = dispatch->stuck_turn != dispatch->turn ? 0 :
			Min(room, 1 - dispatch->num_flights - dispatch->granted);
	return Max(room, 0);
}

int
flight_site_room(const Site *site, int room)
{
	int			taken = site->in_flight + site->granted;
	int			left = room + taken;	/* by other servers */
	int			share = left >= 4 ? left - eighth(left) : left;

	/* one is always under way, of whatever server */
	return Min(room, Max(share - taken, taken == 0 ? 1 : 0));
}

/* How many more flights a role may have, of a lane that may use the reserve or not. */
static int
role_room(const RoleShare *role, bool reserve, int room)
{
	int			taken = role->in_flight + role->granted;
	int			left = room + taken;	/* by other roles */
	int			one = taken == 0 || (reserve && taken < left - eighth(left)) ? 1 : 0;

	return Max(left * 3 / 4 - taken, one);
}

int
flight_lane_room(const Dispatch *dispatch, const Lane *lane, int room)
{
	int			taken = lane->in_flight + lane->granted;
	int			all = dispatch->num_flights + dispatch->granted + room;
	int			share = (room + taken) * 3 / 4; /* of what other lanes leave */
	bool		reserve = taken == 0 && !lane->suspect;
	int			left = Min(flight_site_room(lane->site, room),
						   Max(share - taken, taken == 0 ? 1 : 0));

	left = Min(left, role_room(lane->role, reserve, room));
	if (!reserve)
		left = Min(left, room - eighth(all));
	else if (left > 1)
		left = Max(Min(left, room - eighth(all)), 1);
	return Max(left, 0);
}


/* ---------- Begin ---------- */

/* Is another flow of the same ordering key in flight? */
static bool
is_behind_another(Lane *lane, const char *ordering_key)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lane->flights)
	{
		Flight	   *other = dlist_container(Flight, lane_node, iter.cur);

		if (!other->recorded && other->ordering_key != NULL &&
			strcmp(other->ordering_key, ordering_key) == 0)
			return true;
	}
	return false;
}

/* A text column as a string in the current context, or NULL. */
static char *
row_text(uint64 row, int column)
{
	bool		is_null;
	Datum		value = sql_value(row, column, &is_null);

	return is_null ? NULL : TextDatumGetCString(value);
}

void
flight_make(Dispatch *dispatch, Lane *lane, uint64 row)
{
	MemoryContext context = AllocSetContextCreate(dispatch->context, "feishu_flow flight",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Flight	   *flight = palloc0(sizeof(Flight));
	bool		is_null;
	Datum		value;

	/* from here on flight_undo finds it, should something throw */
	flight->lane = lane;
	flight->context = context;
	flight->turn = dispatch->turn;
	flight->id = sql_int64(row, CLAIM_ID);
	dlist_push_tail(&dispatch->claimed, &flight->node);
	dispatch->num_flights++;
	lane->in_flight++;
	lane->site->in_flight++;
	lane->role->in_flight++;

	flight->ordering_key = row_text(row, CLAIM_ORDERING_KEY);
	/* one with a higher id was sent while this one was not in the queue */
	if (flight->ordering_key != NULL && is_behind_another(lane, flight->ordering_key))
	{
		flight->is_behind = true;
		flight->silent = true;
		flight->state = 'q';
	}
	dlist_push_tail(&lane->flights, &flight->lane_node);
	flight->in_lane = true;

	flight->request.namespace_name = row_text(row, CLAIM_NAMESPACE);
	flight->request.flow_id = row_text(row, CLAIM_FLOW_ID);
	flight->request.is_async = DatumGetBool(sql_value(row, CLAIM_IS_ASYNC, NULL));
	flight->request.idempotent_key = row_text(row, CLAIM_IDEMPOTENT_KEY);
	flight->attempts = DatumGetInt32(sql_value(row, CLAIM_ATTEMPTS, NULL));
	value = sql_value(row, CLAIM_MAX_ATTEMPTS, &is_null);
	flight->max_attempts = is_null ? feishu_guc_max_attempts : DatumGetInt32(value);
	flight->expires_at = DatumGetTimestampTz(sql_value(row, CLAIM_EXPIRES_AT, NULL));
	flight->own_key = DatumGetBool(sql_value(row, CLAIM_OWN_KEY, NULL));
	flight->unanswered = DatumGetBool(sql_value(row, CLAIM_UNANSWERED, NULL));
	flight->replaceable = DatumGetBool(sql_value(row, CLAIM_REPLACEABLE, NULL));
	flight->is_ours = origin_is_ours(sql_value(row, CLAIM_SYSTEM_IDENTIFIER, NULL),
									 sql_value(row, CLAIM_DATABASE, NULL));
	flight->last_error = row_text(row, CLAIM_ERROR);
	/* a copied row is not sent to anybody; else none of the lane is */
	lane->owner_differs |= flight->is_ours &&
		DatumGetObjectId(sql_value(row, CLAIM_SERVER_OWNER, NULL)) != lane->server_owner;
	if (!flight->silent && !lane->owner_differs)
		flight_read_small(flight, row);
	MemoryContextSwitchTo(old_context);
}

/* Count a flow that has failed without an attempt. */
static void
count_unsent(const Flight *flight, const FlowServer *server)
{
	if (flight->state == 'f' && flight->attempts == 0)
		stats_count_unsent(server->serverid, flight->request.namespace_name,
						   flight->request.flow_id);
}

/*
 * Errors are caught without a subtransaction: what runs here computes and
 * allocates, and looks up at most a conversion.
 */
void
flight_start(Dispatch *dispatch, Flight *flight, FlowServer *server, LimiterPlace *place)
{
	MemoryContext context = CurrentMemoryContext;
	FlowLimits	limits;

	dlist_delete(&flight->node);
	dlist_push_tail(&dispatch->flights, &flight->node);
	if (!flight->is_ours)
		record_decide_not_ours(flight);
	else if (flight->expires_at <= GetCurrentTimestamp())
		record_decide_expired(flight);
	else if (flight->attempts >= flight->max_attempts)
		record_decide_exhausted(flight);
	else if (flight->too_large)
		record_decide_too_large(flight, role_max_request_size(flight->lane->key.roleid));
	if (flight->state != '\0')
	{
		count_unsent(flight, server);
		limiter_abandon(place);
		flight_forget_jsonb(flight);
		flight_give_memory_back(dispatch, flight);
		flight_end(dispatch, flight);
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
		limits.max_response = (size_t) role_max_response_size(flight->lane->key.roleid) * 1024;
		limits.share = &flight->lane->share;
		flight->call = flow_call_start(flight->context, server_copy(server),
									   &flight->request, &limits, place, flight);
		flight->lane->postponed = 0;
		flight_forget_large(flight);
		MemoryContextSwitchTo(context);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
		limiter_abandon(place);
		/* what there is of the call, and what it was to be made of */
		MemoryContextDeleteChildren(flight->context);
		flight->call = NULL;
		flight_forget_jsonb(flight);
		flight_give_memory_back(dispatch, flight);
		if (record_is_lasting(error->sqlerrcode))
		{
			record_decide_error(flight, error->sqlerrcode, error->message);
			count_unsent(flight, server);
		}
		else
			record_decide_postponed(flight, error->sqlerrcode, error->message);
		flight_end(dispatch, flight);
	}
	PG_END_TRY();
}


/* ---------- End ---------- */

/* Take a flight from its lane: its row may be claimed again. */
static void
flight_leave_lane(Flight *flight)
{
	if (flight->in_lane)
		dlist_delete(&flight->lane_node);
	flight->in_lane = false;
}

/* It is not under way any more. */
static void
flight_uncount(Dispatch *dispatch, Flight *flight)
{
	dlist_delete(&flight->node);
	dispatch->num_flights--;
	flight->lane->in_flight--;
	flight->lane->site->in_flight--;
	flight->lane->role->in_flight--;
}

static void
flight_free(Dispatch *dispatch, Flight *flight)
{
	flight_leave_lane(flight);
	flight_give_memory_back(dispatch, flight);
	MemoryContextDelete(flight->context);
}

void
flight_end(Dispatch *dispatch, Flight *flight)
{
	flight_uncount(dispatch, flight);
	if (dispatch->num_ended++ == 0)
		dispatch->ended_since = GetCurrentTimestamp();
	dlist_push_tail(&dispatch->ended, &flight->node);
	/* it waits again, and may have been stepped over as it was in flight */
	if (flight->state == 'q')
		maintain_expect(flight->expires_at);
	if (flight->silent)
	{
		flight_leave_lane(flight);
		if (!flight->is_behind)
			lane_give_back(dispatch, flight->lane, flight->id);
	}
	else if (flight->state == 'q')
		lane_expect_due(dispatch, flight->lane, flight->next_at);
}

void
flight_undo(Dispatch *dispatch, Flight *flight)
{
	flight_uncount(dispatch, flight);
	lane_give_back(dispatch, flight->lane, flight->id);
	flight_free(dispatch, flight);
}

/* How long the lane waits whose app has to, if the limiter has no room to know that. */
static int64
pause_ms(const FlowOutcome *outcome)
{
	return (int64) (Min(Max(outcome->reset_seconds, 1), PAUSE_MOST_S) * 1000);
}

void
flight_take_ended(Dispatch *dispatch)
{
	FlowCall   *call;

	while ((call = flow_calls_next_done()) != NULL)
	{
		Flight	   *flight = flow_call_owner(call);
		const FlowOutcome *outcome = flow_call_outcome(call);
		LimiterStatus status;

		record_decide(flight, outcome);
		if (outcome->response != NULL && outcome->response->body != NULL)
			budget_take_anyway(&flight->account, VARSIZE(outcome->response->body));
		if (!outcome->held_back)
		{
			/* what this process is short of says nothing of the peer */
			flight->lane->suspect = outcome->http_status == 0 &&
				outcome->trouble != HTTP_TROUBLE_LOCAL;
			stats_count_call(flight->serverid,
							 flight->request.namespace_name, flight->request.flow_id,
							 outcome, flight->attempts > 1,
							 GetCurrentTimestamp() - flight->started);
		}
		if (flight->silent && !outcome->held_back && flight->hold_until == 0 &&
			!limiter_status(&flight->lane->app, flight->lane->key.roleid, &status))
			flight->hold_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms(outcome));
		if (flight->hold_until != 0)
			lane_hold(dispatch, flight->lane, flight->hold_until, flight->error);
		flight_end(dispatch, flight);
	}
}

void
flight_give_back_unsent(Dispatch *dispatch)
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
		flight_end(dispatch, flight);
	}
}

void
flight_set_aside(Dispatch *dispatch, Flight *flight)
{
	dlist_delete(&flight->node);
	dispatch->num_ended--;
	dlist_push_tail(&dispatch->stuck, &flight->node);
	dispatch->num_stuck++;
	if (flight->call != NULL)
		flow_call_set_aside(flight->call);
	dispatch->stuck_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STUCK_RETRY_MS);
}

void
flight_take_back_stuck(Dispatch *dispatch)
{
	while (!dlist_is_empty(&dispatch->stuck))
	{
		Flight	   *flight = dlist_container(Flight, node, dlist_pop_head_node(&dispatch->stuck));

		dlist_push_tail(&dispatch->ended, &flight->node);
		dispatch->num_ended++;
		if (flight->state == 'q')
			maintain_expect(flight->expires_at);
	}
	dispatch->num_stuck = 0;
	dispatch->stuck_turn = dispatch->turn;
	dispatch->record_singly = true;
}

void
flight_forget_recorded(Dispatch *dispatch)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (!flight->recorded)
			continue;
		dlist_delete(&flight->node);
		dispatch->num_ended--;
		flight_free(dispatch, flight);
	}
	dispatch->ended_since = GetCurrentTimestamp();
}

void
flight_undo_turn(Dispatch *dispatch)
{
	dlist_head *lists[2] = {&dispatch->claimed, &dispatch->flights};
	dlist_mutable_iter iter;

	for (int i = 0; i < 2; i++)
	{
		dlist_foreach_modify(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (flight->turn == dispatch->turn)
				flight_undo(dispatch, flight);
		}
	}
	/* those that have ended already, or whose ends are to be written again */
	dlist_foreach_modify(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		flight->recorded = false;
		if (flight->turn != dispatch->turn)
			continue;
		dlist_delete(&flight->node);
		dispatch->num_ended--;
		lane_give_back(dispatch, flight->lane, flight->id);
		flight_free(dispatch, flight);
	}
}

Datum
flight_ids_array(Lane *lane, int64 min_id)
{
	Datum	   *values;
	int			num = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &lane->flights)
		num++;
	values = palloc((num + 1) * sizeof(Datum));
	num = 0;
	dlist_foreach(iter, &lane->flights)
	{
		Flight	   *flight = dlist_container(Flight, lane_node, iter.cur);

		if (flight->id > min_id && !flight->recorded)
			values[num++] = Int64GetDatum(flight->id);
	}
	return PointerGetDatum(construct_array(values, num, INT8OID, 8, FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

void
flight_report_activity(const Dispatch *dispatch)
{
	static int	shown = -1;
	char		text[64];

	if (dispatch->num_flights == shown)
		return;
	/* not at each flow */
	if (shown > 0 && dispatch->num_flights > 0 &&
		abs(dispatch->num_flights - shown) < feishu_guc_max_in_flight / 16)
		return;
	shown = dispatch->num_flights;
	if (shown == 0)
		pgstat_report_activity(STATE_IDLE, "idle");
	else
	{
		snprintf(text, sizeof(text), "sending %d flows", shown);
		pgstat_report_activity(STATE_RUNNING, text);
	}
}
