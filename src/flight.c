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
 * What flights hold in memory is counted before it is there (budget.c): the row's
 * params, operator and masks as they are in the row and as they are written, and
 * then the answer.  What is large is read when there is room for it.  One flight at
 * a time may be beyond, of the lane that waits for longest, so that each gets its
 * turn, whatever its size.  A request that is larger than may be sent fails before
 * it is read, if its row tells, or written.
 *
 * A flight's memory context has all of it.  It goes when its end is recorded, or
 * the transaction that claimed it is rolled back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/flight.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "guc.h"
#include "http.h"
#include "limiter.h"
#include "origin.h"
#include "role_settings.h"
#include "sqlrun.h"
#include "stats.h"

/* A row with more (not compressed, or as written) is read by itself, when there is
 * room. */
#define LARGE_ROW			65536

/* What is written of a row has at least a quarter of the row's bytes as jsonb. */
#define ROW_TO_WRITTEN		4

/* A request may be so much larger than when it was queued: it has a key. */
#define SPARE_SIZE			1024

/* A lane that found no room in memory is tried again so often. */
#define MEMORY_RETRY_MS		100

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

	left = Min(left, role_room(lane->share, reserve, room));
	if (!reserve)
		left = Min(left, room - eighth(all));
	else if (left > 1)
		left = Max(Min(left, room - eighth(all)), 1);
	return Max(left, 0);
}


/* ---------- Memory ---------- */

void
flight_leave_memory(Dispatch *dispatch, Lane *lane)
{
	if (lane->wants_memory)
		dlist_delete(&lane->memory_node);
	lane->wants_memory = false;
}

/* A lane has to wait for room in memory. */
static void
lane_wait_for_memory(Dispatch *dispatch, Lane *lane)
{
	if (!lane->wants_memory)
		dlist_push_tail(&dispatch->want_memory, &lane->memory_node);
	lane->wants_memory = lane->memory_refused = true;
	lane_hold(dispatch, lane,
			  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MEMORY_RETRY_MS), NULL);
}

/* Take bytes for a flight, if there is room for them. */
static bool
take_memory(Dispatch *dispatch, Flight *flight, int64 bytes)
{
	bool		is_first = dlist_is_empty(&dispatch->want_memory) ||
		dlist_head_node(&dispatch->want_memory) == &flight->lane->memory_node;

	return budget_take(&flight->account, bytes) ||
		(is_first && budget_go_beyond(&flight->account) && budget_take(&flight->account, bytes));
}

/* Give all back, when it is freed. */
static void
give_memory_back(Dispatch *dispatch, Flight *flight)
{
	bool		had_any = flight->account.bytes > 0;

	budget_give_back(&flight->account, flight->account.bytes);
	if (had_any && !dlist_is_empty(&dispatch->want_memory))
		lane_look_again(dispatch,
						dlist_container(Lane, memory_node, dlist_head_node(&dispatch->want_memory)),
						GetCurrentTimestamp());
}

/* A jsonb column, copied to the current context, or NULL. */
static Jsonb *
row_jsonb(uint64 row, int column)
{
	bool		is_null;
	Datum		value = sql_value(row, column, &is_null);

	return is_null ? NULL : DatumGetJsonbPCopy(value);
}

/* The size of a column's value, without fetching it. */
static int64
row_size(uint64 row, int column)
{
	bool		is_null;
	Datum		value = sql_value(row, column, &is_null);

	return is_null ? 0 : (int64) toast_raw_datum_size(value);
}

/* The row's jsonb is not needed any more. */
static void
forget_jsonb(Flight *flight)
{
	FlowRequest *request = &flight->request;

	if (request->operator_id != NULL)
		pfree(request->operator_id);
	if (request->params != NULL)
		pfree(request->params);
	if (request->loop_masks != NULL)
		pfree(request->loop_masks);
	request->operator_id = request->params = request->loop_masks = NULL;
}

/* What a flight's request may have as it is written. */
static int64
request_limit(const Flight *flight)
{
	return (int64) role_max_request_size(flight->lane->key.roleid) * 1024 + SPARE_SIZE;
}

/* Look how large the request is, whose jsonb was read. */
static void
measure(Flight *flight)
{
	int64		limit = request_limit(flight);

	flight->request.size = codec_request_size(&flight->request, limit);
	flight->too_large = flight->request.size > limit;
}

/* Read the row's jsonb into the flight's context: the columns from one on. */
static void
read_jsonb(Flight *flight, uint64 row, int operator, int params, int masks)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->request.operator_id = row_jsonb(row, operator);
	flight->request.params = row_jsonb(row, params);
	flight->request.loop_masks = row_jsonb(row, masks);
	MemoryContextSwitchTo(old_context);
}

/* Read what is small of a claimed row, and see what is large. */
static void
read_small(Flight *flight, uint64 row)
{
	flight->account.share = &flight->lane->share->memory;
	flight->account.kind = BUDGET_REQUEST;
	flight->raw = row_size(row, CLAIM_OPERATOR) + row_size(row, CLAIM_PARAMS) +
		row_size(row, CLAIM_LOOP_MASKS);
	flight->too_large = flight->raw / ROW_TO_WRITTEN > request_limit(flight);
	flight->is_large = flight->raw >= LARGE_ROW;
	if (flight->too_large || flight->is_large)
		return;

	read_jsonb(flight, row, CLAIM_OPERATOR, CLAIM_PARAMS, CLAIM_LOOP_MASKS);
	measure(flight);
	flight->is_large = flight->request.size >= LARGE_ROW;
	if (flight->too_large || flight->is_large)
		forget_jsonb(flight);
	else
		budget_take_anyway(&flight->account, flight->raw + flight->request.size);
}

/*
 * What a large row takes in memory: itself, and what is written of it, until that is
 * there.  How much that is shows when it is read, unless it was before.
 */
static int64
large_bytes(const Flight *flight)
{
	const Lane *lane = flight->lane;

	if (flight->request.size > 0)
		return flight->raw + flight->request.size;
	return lane->large_id == flight->id ? lane->large_bytes : 2 * flight->raw;
}

/* Read a large row, if there is room; false: not now. */
static bool
read_large(Dispatch *dispatch, Flight *flight)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT operator, params, loop_masks FROM feishu_internal.outbox WHERE id = $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(flight->id)};
	Lane	   *lane = flight->lane;

	/* behind one that waits already it need not be looked at */
	if (lane->memory_refused || !take_memory(dispatch, flight, large_bytes(flight)))
		return false;
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) != 1)
		elog(ERROR, "claimed row " INT64_FORMAT " is gone", flight->id);
	read_jsonb(flight, 0, 1, 2, 3);
	measure(flight);
	if (!flight->too_large && flight->raw + flight->request.size <= flight->account.bytes)
	{
		budget_give_back(&flight->account,
						 flight->account.bytes - flight->raw - flight->request.size);
		return true;
	}
	if (!flight->too_large &&
		take_memory(dispatch, flight,
					flight->raw + flight->request.size - flight->account.bytes))
		return true;
	lane->large_id = flight->id;
	lane->large_bytes = flight->raw + flight->request.size;
	forget_jsonb(flight);
	budget_give_back(&flight->account, flight->account.bytes);
	return flight->too_large;
}

/* Has the bound been raised since we looked?  To fail is for good. */
static bool
limit_was_raised(const Flight *flight)
{
	int64		before = request_limit(flight);

	role_settings_read_again();
	return request_limit(flight) > before;
}

void
flight_read_large(Dispatch *dispatch)
{
	dlist_iter	iter;

	dlist_foreach(iter, &dispatch->claimed)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);
		bool		waits;

		if (flight->silent)
			continue;
		waits = flight->is_large && !flight->too_large && flight->request.operator_id == NULL &&
			!read_large(dispatch, flight);
		if (waits)
			lane_wait_for_memory(dispatch, flight->lane);
		if (waits || (flight->too_large && limit_was_raised(flight)))
		{
			flight->state = 'q';
			flight->silent = true;
		}
	}
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
	lane->share->in_flight++;

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
	flight->is_ours = origin_is_ours(sql_value(row, CLAIM_SYSTEM_IDENTIFIER, NULL),
									 sql_value(row, CLAIM_DATABASE, NULL));
	flight->last_error = row_text(row, CLAIM_ERROR);
	if (!flight->silent)
		read_small(flight, row);
	MemoryContextSwitchTo(old_context);
}

/* The request is written, and the jsonb that it was made of goes, if it is large. */
static void
forget_large(Flight *flight)
{
	if (!flight->is_large)
		return;
	forget_jsonb(flight);
	budget_give_back(&flight->account, flight->raw);
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
		limiter_abandon(place);
		forget_jsonb(flight);
		give_memory_back(dispatch, flight);
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
		limits.share = &flight->lane->share->memory;
		flight->call = flow_call_start(flight->context, server_copy(server),
									   &flight->request, &limits, place, flight);
		flight->lane->postponed = 0;
		forget_large(flight);
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
		forget_jsonb(flight);
		give_memory_back(dispatch, flight);
		if (record_is_lasting(error->sqlerrcode))
			record_decide_error(flight, error->sqlerrcode, error->message);
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
	flight->lane->share->in_flight--;
}

static void
flight_free(Dispatch *dispatch, Flight *flight)
{
	flight_leave_lane(flight);
	give_memory_back(dispatch, flight);
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

void
flight_take_ended(Dispatch *dispatch)
{
	FlowCall   *call;

	while ((call = flow_calls_next_done()) != NULL)
	{
		Flight	   *flight = flow_call_owner(call);
		const FlowOutcome *outcome = flow_call_outcome(call);

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
