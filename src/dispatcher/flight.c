/*-------------------------------------------------------------------------
 *
 * src/dispatcher/flight.c
 *	  The dispatcher's flights: flows that are claimed, from the row to the end; and
 *	  counters of them.
 *
 * A flight's memory context has all of it.  It goes when its end is recorded, or
 * the transaction that claimed it is rolled back.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/role_settings.h"
#include "base/sqlrun.h"
#include "call/stats.h"
#include "dispatcher/claim.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/flight.h"
#include "queue/origin.h"

/* The longest pause that an answer can ask for. */
#define PAUSE_MOST_S		300

/* Ends that could not be written are tried again so often. */
#define STUCK_RETRY_MS		5000

static MemoryContext flights_context;
static dlist_head flights = DLIST_STATIC_INIT(flights); /* under way, newest last */
static dlist_head ended = DLIST_STATIC_INIT(ended);
static dlist_head stuck = DLIST_STATIC_INIT(stuck);
static FlightTotals totals;


/* Once a process. */
void
flight_init(void)
{
	flights_context = AllocSetContextCreate(TopMemoryContext, "feishu_flow flights",
											ALLOCSET_DEFAULT_SIZES);
}

/* How many there are. */
const FlightTotals *
flight_totals(void)
{
	return &totals;
}

/* By the clock as it was, ends would be written late. */
void
flight_clock_set_back(TimestampTz now)
{
	totals.ended_since = Min(totals.ended_since, now);
}

/* Change how many flights a lane may have more, in the claim under way. */
void
flight_grant(Lane *lane, int change)
{
	lane->load.granted += change;
	lane->site->load.granted += change;
	lane->role->load.granted += change;
	totals.load.granted += change;
}

/* A lane has one flight more, or less. */
static void
count_flight(const Flight *flight, int change)
{
	Lane	   *lane = flight->lane;

	flight->tier->in_flight += change;
	lane->load.in_flight += change;
	lane->site->load.in_flight += change;
	lane->role->load.in_flight += change;
	totals.load.in_flight += change;
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

/* Make a flight of a row of the last result, which a claim has asked for. */
Flight *
flight_make(const Claim *claim, uint64 row)
{
	Lane	   *lane = claim->lane;
	Tier	   *tier = lane_tier(lane, DatumGetInt16(sql_value(row, CLAIM_COLUMN(OUTBOX_PRIORITY), NULL)));
	MemoryContext context = AllocSetContextCreate(flights_context, "feishu_flow flight",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Flight	   *flight = palloc0(sizeof(Flight));
	FlightFacts *facts = &flight->facts;
	bool		is_null;
	Datum		value;

	/* from here on flight_undo_since finds it, should something throw */
	flight->tier = tier;
	flight->lane = lane;
	flight->claim = claim;
	flight->context = context;
	flight->transaction = transaction_number();
	flight->id = sql_int64(row, CLAIM_COLUMN(OUTBOX_ID));
	dlist_push_tail(&flights, &flight->node);
	count_flight(flight, 1);

	flight->ordering_key = row_text(row, CLAIM_COLUMN(OUTBOX_ORDERING_KEY));
	/* one with a higher id was sent while this one was not in the queue */
	flight->is_behind = flight->ordering_key != NULL &&
		is_behind_another(lane, flight->ordering_key);
	dlist_push_tail(&lane->flights, &flight->lane_node);
	flight->in_lane = true;

	facts->attempts = DatumGetInt32(sql_value(row, CLAIM_COLUMN(OUTBOX_ATTEMPTS), NULL));
	value = sql_value(row, CLAIM_COLUMN(OUTBOX_MAX_ATTEMPTS), &is_null);
	facts->max_attempts = is_null ? feishu_guc_max_attempts : DatumGetInt32(value);
	facts->expires_at = DatumGetTimestampTz(sql_value(row, CLAIM_COLUMN(OUTBOX_EXPIRES_AT), NULL));
	facts->own_key = DatumGetBool(sql_value(row, CLAIM_COLUMN(OUTBOX_OWN_KEY), NULL));
	facts->unanswered = DatumGetBool(sql_value(row, CLAIM_COLUMN(OUTBOX_UNANSWERED), NULL));
	flight->replaceable = DatumGetBool(sql_value(row, CLAIM_COLUMN(OUTBOX_REPLACEABLE), NULL));
	facts->is_ours = origin_is_ours(sql_value(row, CLAIM_COLUMN(OUTBOX_SYSTEM_IDENTIFIER), NULL),
									sql_value(row, CLAIM_COLUMN(OUTBOX_DATABASE), NULL));
	facts->last_error = row_text(row, CLAIM_COLUMN(OUTBOX_ERROR));
	/* a copied row is not sent to anybody; else none of the lane is */
	flight->other_owner = facts->is_ours &&
		DatumGetObjectId(sql_value(row, CLAIM_COLUMN(OUTBOX_SERVER_OWNER), NULL)) != claim->server->owner;
	if (flight->is_behind)
		flight->end = decide_untried(facts);
	else if (!flight->other_owner)
		flight_memory_read_small(flight, row);
	MemoryContextSwitchTo(old_context);
	return flight;
}

/* What a decision depends on besides, of a flow of a lane, now. */
static DecideBy
decide_by(const Lane *lane)
{
	return (DecideBy) {
		.now = GetCurrentTimestamp(),
		.base_delay_ms = feishu_guc_retry_base_delay,
		.max_delay_ms = feishu_guc_retry_max_delay,
		.jitter = pg_prng_double(&pg_global_prng_state),
		.postponed = lane->postponed
	};
}

/* What becomes of it is decided: the text, and what its lane has to know. */
static void
set_end(Flight *flight, FlightEnd end, const FlowOutcome *outcome)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	end_text_fill(&end, &flight->facts, outcome);
	flight->end = end;
	MemoryContextSwitchTo(old_context);
	if (end.postponed)
		lane_note_postponed(flight->lane, flight->id,
							end.hold_until != 0 ? ERRCODE_INSUFFICIENT_RESOURCES : end.sqlstate,
							end.error);
}

/* What becomes of a row of a lane that cannot be read: there is no flight of it. */
FlightEnd
flight_decide_unreadable(Lane *lane, int64 id, const ErrorData *error)
{
	const FlightFacts facts = {0};
	DecideBy	by = decide_by(lane);
	FlightEnd	end = decide_error(&facts, error->sqlerrcode, &by);

	end.error = error->message;
	if (end.postponed)
		lane_note_postponed(lane, id, end.sqlstate, end.error);
	return end;
}

/* Count a flow that has failed without an attempt. */
static void
count_unsent(const Flight *flight, const FlowServer *server)
{
	if (flight->end.state == OUTBOX_FAILED && flight->end.attempts == 0)
		stats_count_unsent(server->serverid, flight->memory.request.namespace_name,
						   flight->memory.request.flow_id);
}

/* Take a flight from its lane: its row may be claimed again. */
static void
leave_lane(Flight *flight)
{
	if (flight->in_lane)
		dlist_delete(&flight->lane_node);
	flight->in_lane = false;
}

/* It is not under way any more. */
static void
leave_flights(Flight *flight)
{
	dlist_delete(&flight->node);
	count_flight(flight, -1);
}

static void
free_flight(Flight *flight)
{
	leave_lane(flight);
	flight_memory_give_back(flight);
	MemoryContextDelete(flight->context);
}

/* It has ended, in whatever way: keep it to be recorded. */
static void
end_flight(Flight *flight)
{
	const FlightEnd *end = &flight->end;

	leave_flights(flight);
	flight->claim = NULL;
	if (totals.ended++ == 0)
		totals.ended_since = GetCurrentTimestamp();
	dlist_push_tail(&ended, &flight->node);
	/* it waits again, and may have been stepped over as it was in flight */
	if (end->state == OUTBOX_QUEUED)
		maintain_expect(flight->facts.expires_at);
	if (end->silent)
	{
		leave_lane(flight);
		if (!flight->is_behind)
			tier_give_back(flight->tier, flight->id);
	}
}

/* It is not to be sent now: flight_return is to be called instead of flight_start. */
void
flight_put_off(Flight *flight)
{
	flight->end = decide_untried(&flight->facts);
}

/* It ends as if never begun. */
void
flight_return(Flight *flight)
{
	flight_put_off(flight);
	end_flight(flight);
}

/* What there is of it is not needed: it ends without a call. */
static void
end_unsent(Flight *flight, const FlowServer *server, LimiterPlace *place, FlightEnd end)
{
	set_end(flight, end, NULL);
	count_unsent(flight, server);
	limiter_abandon(place);
	flight_memory_forget_request(flight);
	flight_memory_give_back(flight);
	end_flight(flight);
}

/*
 * Make the call of a flight, with the place it was given.
 *
 * Errors are caught without a subtransaction: what runs here computes and
 * allocates, and looks up at most a conversion.
 */
void
flight_start(Flight *flight, FlowServer *server, LimiterPlace *place)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			roleid = flight->lane->key.roleid;
	FlowLimits	limits;
	FlightEnd	end;

	flight->claim = NULL;
	flight->facts.too_large = flight->memory.too_large;
	flight->facts.max_kilobytes = role_max_request_size(roleid);
	totals.claims_durably |= !flight->facts.own_key;
	if (decide_unsent(&flight->facts, GetCurrentTimestamp(), &end))
	{
		end_unsent(flight, server, place, end);
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
		limits.max_response = (size_t) role_max_response_size(roleid) * 1024;
		limits.share = &flight->lane->memory.share;
		flight->call = flow_call_start(flight->context, server_copy(server),
									   &flight->memory.request, &limits, place, flight);
		lane_note_prepared(flight->lane);
		flight_memory_forget_large(flight);
		MemoryContextSwitchTo(context);
	}
	PG_CATCH();
	{
		DecideBy	by = decide_by(flight->lane);
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			PG_RE_THROW();
		FlushErrorState();
		/* what there is of the call */
		MemoryContextDeleteChildren(flight->context);
		flight->call = NULL;
		end = decide_error(&flight->facts, error->sqlerrcode, &by);
		end.error = MemoryContextStrdup(flight->context, error->message);
		end_unsent(flight, server, place, end);
	}
	PG_END_TRY();
}


/* ---------- End ---------- */

/* How long the lane waits whose app has to, if the limiter has no room to know that. */
static int64
pause_ms(const FlowOutcome *outcome)
{
	return (int64) (Min(Max(outcome->reset_seconds, 1), PAUSE_MOST_S) * 1000);
}

/* Calls that have ended become ended flights, to be recorded. */
void
flight_take_ended(void)
{
	FlowCall   *call;

	while ((call = flow_calls_next_done()) != NULL)
	{
		Flight	   *flight = flow_call_owner(call);
		Lane	   *lane = flight->lane;
		const FlowOutcome *outcome = flow_call_outcome(call);
		const FlightEnd *end = &flight->end;
		DecideBy	by = decide_by(lane);
		TimestampTz hold_until;
		LimiterStatus status;

		flight->ended = by.now;
		set_end(flight, decide_outcome(&flight->facts, outcome, &by), outcome);
		flight_memory_take_answer(flight, outcome->response);
		if (!outcome->held_back)
		{
			/* what this process is short of says nothing of the peer */
			lane_note_answer(lane, outcome->http_status != 0 ||
							 outcome->trouble == HTTP_TROUBLE_LOCAL);
			stats_count_call(flight->serverid, flight->memory.request.namespace_name,
							 flight->memory.request.flow_id, outcome, end->attempts > 1,
							 GetCurrentTimestamp() - flight->started);
		}
		hold_until = end->hold_until;
		if (end->silent && !outcome->held_back && hold_until == 0 &&
			!limiter_status(&lane->app, lane->key.roleid, &status))
			hold_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause_ms(outcome));
		if (hold_until != 0)
			lane_hold(lane, hold_until, end->error);
		end_flight(flight);
	}
}

/* Flights of which nothing was sent yet end as if never begun. */
void
flight_return_unsent(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &flights)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flow_call_is_sent(flight->call))
			continue;
		flow_call_free(flight->call);
		flight->call = NULL;
		flight_return(flight);
	}
}

/* Those that have ended, so many, palloc'd. */
Flight **
flight_list_ended(int *num)
{
	Flight	  **list = palloc(Max(totals.ended, 1) * sizeof(Flight *));
	dlist_iter	iter;

	*num = 0;
	dlist_foreach(iter, &ended)
		list[(*num)++] = dlist_container(Flight, node, iter.cur);
	return list;
}

/*
 * The transaction under way records its end.  If it is to be tried again, its row is in
 * its tier from now on: until now, claims passed over it, whatever time it was.
 */
void
flight_mark_recorded(Flight *flight)
{
	flight->recorded = true;
	if (!flight->end.silent && flight->end.state == OUTBOX_QUEUED)
		tier_expect_due(flight->tier, flight->end.next_at);
}

/* What its end says of the answer cannot be stored. */
void
flight_leave_answer_out(Flight *flight, const char *why)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->end.response = NULL;
	flight->end.error = psprintf(_("the answer could not be stored: %s"), why);
	flight->end.report = NULL;
	MemoryContextSwitchTo(old_context);
}

/* Its end cannot be written, which holds up no other. */
void
flight_set_aside(Flight *flight)
{
	flight->recorded = false;
	dlist_delete(&flight->node);
	totals.ended--;
	dlist_push_tail(&stuck, &flight->node);
	totals.stuck++;
	if (flight->call != NULL)
		flow_call_set_aside(flight->call);
	totals.stuck_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STUCK_RETRY_MS);
}

/* Ends were to be written; was any? */
void
flight_note_written(bool any)
{
	if (any || totals.stuck > 0)
		totals.stuck_alone = !any;
}

/* Those that could not be written are to be tried again. */
void
flight_take_back_stuck(void)
{
	while (!dlist_is_empty(&stuck))
	{
		Flight	   *flight = dlist_container(Flight, node, dlist_pop_head_node(&stuck));

		dlist_push_tail(&ended, &flight->node);
		totals.ended++;
		if (flight->end.state == OUTBOX_QUEUED)
			maintain_expect(flight->facts.expires_at);
	}
	totals.stuck = 0;
	totals.stuck_transaction = transaction_number();
}

/* After a commit, forget the flights whose ends are recorded. */
void
flight_forget_recorded(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (!flight->recorded)
			continue;
		dlist_delete(&flight->node);
		totals.ended--;
		free_flight(flight);
	}
	totals.ended_since = GetCurrentTimestamp();
	totals.claims_durably = false;
}

/* It never was: its row is looked at again. */
static void
undo(Flight *flight)
{
	tier_give_back(flight->tier, flight->id);
	free_flight(flight);
}

/* Undo the newest flights, none of which has begun; so many were there before. */
void
flight_undo_since(int before)
{
	while (totals.load.in_flight > before)
	{
		Flight	   *flight = dlist_tail_element(Flight, node, &flights);

		leave_flights(flight);
		undo(flight);
	}
}

/* After an abort, undo the flights that were claimed in the transaction. */
void
flight_undo_transaction(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &flights)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flight->transaction != transaction_number())
			continue;
		leave_flights(flight);
		undo(flight);
	}
	/* those that have ended already, or whose ends are to be written again */
	dlist_foreach_modify(iter, &ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		flight->recorded = false;
		if (flight->transaction != transaction_number())
			continue;
		dlist_delete(&flight->node);
		totals.ended--;
		undo(flight);
	}
}


/* ---------- Who is under way ---------- */

/* How many ids there are at most. */
int
flight_most_ids(void)
{
	return totals.load.in_flight + totals.ended + totals.stuck;
}

/* The ids of a lane's flights above min_id; returns how many. */
int
flight_ids_of_lane(const Lane *lane, int64 min_id, int64 *ids)
{
	int			num = 0;
	dlist_iter	iter;

	dlist_foreach(iter, unconstify(dlist_head *, &lane->flights))
	{
		Flight	   *flight = dlist_container(Flight, lane_node, iter.cur);

		if (flight->id > min_id && !flight->recorded)
			ids[num++] = flight->id;
	}
	return num;
}

/* Those of all flights, that have ended, too; returns how many. */
int
flight_ids(int64 *ids)
{
	dlist_head *lists[] = {&flights, &ended, &stuck};
	int			num = 0;
	dlist_iter	iter;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (!flight->recorded)
				ids[num++] = flight->id;
		}
	}
	return num;
}

/*
 * Those of flights that this transaction has claimed for the first time, and that may not
 * be replaced any more; returns how many.
 */
int
flight_ids_begun(int64 *ids)
{
	dlist_head *lists[] = {&flights, &ended};
	int			num = 0;
	dlist_iter	iter;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
		{
			Flight	   *flight = dlist_container(Flight, node, iter.cur);

			if (flight->replaceable && !flight->end.silent &&
				flight->transaction == transaction_number())
				ids[num++] = flight->id;
		}
	}
	return num;
}

/* When the first flight that may come back to the queue expires; DT_NOEND: none. */
TimestampTz
flight_first_expiry(void)
{
	dlist_head *lists[2] = {&flights, &ended};
	TimestampTz first = DT_NOEND;
	dlist_iter	iter;

	for (int i = 0; i < (int) lengthof(lists); i++)
	{
		dlist_foreach(iter, lists[i])
			first = Min(first, dlist_container(Flight, node, iter.cur)->facts.expires_at);
	}
	return first;
}

/* Have pg_stat_activity show how many there are, but not at each flow. */
void
flight_report_activity(void)
{
	static int	shown = -1;
	int			num = totals.load.in_flight;
	char		text[64];

	if (num == shown || (shown > 0 && num > 0 &&
						 abs(num - shown) < feishu_guc_max_in_flight / 16))
		return;
	shown = num;
	snprintf(text, sizeof(text), "sending %d flows", num);
	pgstat_report_activity(num == 0 ? STATE_IDLE : STATE_RUNNING, num == 0 ? "idle" : text);
}
