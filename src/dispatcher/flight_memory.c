/*-------------------------------------------------------------------------
 *
 * flight_memory.c
 *	  The memory of the dispatcher's flights: reading their rows when there is room.
 *
 * What flights hold in memory is counted before it is there (budget.c): the row's
 * params, operator and masks as they are in the row and as they are written, and
 * then the answer.  What is large is read when there is room for it.  One flight at
 * a time may be beyond, each role's in turn, so that each gets its turn, whatever its
 * size.  A request that is larger than may be sent fails before
 * it is read, if its row tells, or written.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/flight_memory.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/role_settings.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatch.h"

/* A row with more (not compressed, or as written) is read by itself, when there is
 * room. */
#define LARGE_ROW			65536

/* What is written of a row has at least a quarter of the row's bytes as jsonb. */
#define ROW_TO_WRITTEN		4

/* A request may be so much larger than when it was queued: it has a key. */
#define SPARE_SIZE			1024

/* A lane that found no room in memory is tried again so often. */
#define MEMORY_RETRY_MS		100


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

/*
 * Whose turn it is to go beyond: of the lanes that wait the first one of the role
 * whose turn was longest ago; NULL: none waits.
 */
static Lane *
next_beyond(Dispatch *dispatch)
{
	Lane	   *next = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &dispatch->want_memory)
	{
		Lane	   *lane = dlist_container(Lane, memory_node, iter.cur);

		if (budget_is_before(&lane->share, next != NULL ? &next->share : NULL, BUDGET_REQUEST))
			next = lane;
	}
	return next;
}

/* Take bytes for a flight, if there is room for them. */
static bool
take_memory(Dispatch *dispatch, Flight *flight, int64 bytes)
{
	Lane	   *next;

	if (budget_take(&flight->account, bytes))
		return true;
	next = next_beyond(dispatch);
	if ((next != NULL && next != flight->lane) || !budget_go_beyond(&flight->account))
		return false;
	budget_take_turn(&flight->lane->share, BUDGET_REQUEST);
	return budget_take(&flight->account, bytes);
}

/* Give all back, when it is freed. */
void
flight_give_memory_back(Dispatch *dispatch, Flight *flight)
{
	bool		had_any = flight->account.bytes > 0;
	Lane	   *next;

	budget_give_back(&flight->account, flight->account.bytes);
	if (had_any && (next = next_beyond(dispatch)) != NULL)
		lane_look_again(dispatch, next, GetCurrentTimestamp());
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
void
flight_forget_jsonb(Flight *flight)
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

	flight->request.size = wire_request_size(&flight->request, limit);
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
void
flight_read_small(Flight *flight, uint64 row)
{
	flight->account.share = &flight->lane->share;
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
		flight_forget_jsonb(flight);
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
	flight_forget_jsonb(flight);
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


/* The request is written, and the jsonb that it was made of goes, if it is large. */
void
flight_forget_large(Flight *flight)
{
	if (!flight->is_large)
		return;
	flight_forget_jsonb(flight);
	budget_give_back(&flight->account, flight->raw);
}
