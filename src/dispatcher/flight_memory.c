/*-------------------------------------------------------------------------
 *
 * src/dispatcher/flight_memory.c
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
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/role_settings.h"
#include "base/sqlrun.h"
#include "dispatcher/claim.h"
#include "dispatcher/flight.h"

/* A row with more (not compressed, or as written) is read by itself, when there is
 * room. */
#define LARGE_ROW			65536

/* What is written of a row has at least a quarter of the row's bytes as jsonb. */
#define ROW_TO_WRITTEN		4

/* A request may be so much larger than when it was queued: it has a key. */
#define SPARE_SIZE			1024

/* A lane that found no room in memory is tried again so often. */
#define MEMORY_RETRY_MS		100

/* Lanes that wait for room, who came last is last. */
static dlist_head waiting = DLIST_STATIC_INIT(waiting);


/* A lane has its part in a claim. */
void
flight_memory_begin(Lane *lane)
{
	lane->memory.refused = false;
}

/* A lane does not wait for memory any more. */
void
flight_memory_leave(Lane *lane)
{
	if (lane->memory.waits)
		dlist_delete(&lane->memory.node);
	lane->memory.waits = false;
}

/* A lane has to wait for room in memory. */
static void
lane_wait_for_memory(Lane *lane)
{
	if (!lane->memory.waits)
		dlist_push_tail(&waiting, &lane->memory.node);
	lane->memory.waits = lane->memory.refused = true;
	lane_hold(lane,
			  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MEMORY_RETRY_MS), NULL);
}

/*
 * Whose turn it is to go beyond: of the lanes that wait the first one of the role
 * whose turn was longest ago; NULL: none waits.
 */
static Lane *
next_beyond(void)
{
	Lane	   *next = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &waiting)
	{
		Lane	   *lane = dlist_container(Lane, memory.node, iter.cur);

		if (budget_is_before(&lane->memory.share, next != NULL ? &next->memory.share : NULL, BUDGET_REQUEST))
			next = lane;
	}
	return next;
}

/* Take bytes for a flight, if there is room for them. */
static bool
take_memory(Flight *flight, int64 bytes)
{
	Lane	   *next;

	if (budget_take(&flight->memory.account, bytes))
		return true;
	next = next_beyond();
	if ((next != NULL && next != flight->lane) || !budget_go_beyond(&flight->memory.account))
		return false;
	budget_take_turn(&flight->lane->memory.share, BUDGET_REQUEST);
	return budget_take(&flight->memory.account, bytes);
}

/* Give all back, before it is freed. */
void
flight_memory_give_back(Flight *flight)
{
	bool		had_any = flight->memory.account.bytes > 0;
	Lane	   *next;

	budget_give_back(&flight->memory.account, flight->memory.account.bytes);
	if (had_any && (next = next_beyond()) != NULL)
		lane_look_again(next, GetCurrentTimestamp());
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
flight_memory_forget_request(Flight *flight)
{
	FlowRequest *request = &flight->memory.request;

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

	flight->memory.request.size = wire_request_size(&flight->memory.request, limit);
	flight->memory.too_large = flight->memory.request.size > limit;
}

/* Read the row's jsonb into the flight's context: the columns from one on. */
static void
read_jsonb(Flight *flight, uint64 row, int operator, int params, int masks)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->memory.request.operator_id = row_jsonb(row, operator);
	flight->memory.request.params = row_jsonb(row, params);
	flight->memory.request.loop_masks = row_jsonb(row, masks);
	MemoryContextSwitchTo(old_context);
}

/*
 * Read what is small of the request of a claimed row, in the current context, which is
 * the flight's; and see what is large.
 */
void
flight_memory_read_small(Flight *flight, uint64 row)
{
	FlowRequest *request = &flight->memory.request;

	request->namespace_name = TextDatumGetCString(sql_value(row, CLAIM_COLUMN(OUTBOX_NAMESPACE), NULL));
	request->flow_id = TextDatumGetCString(sql_value(row, CLAIM_COLUMN(OUTBOX_FLOW_ID), NULL));
	request->is_async = DatumGetBool(sql_value(row, CLAIM_COLUMN(OUTBOX_IS_ASYNC), NULL));
	request->idempotent_key = TextDatumGetCString(sql_value(row, CLAIM_COLUMN(OUTBOX_IDEMPOTENT_KEY), NULL));
	flight->memory.account.share = &flight->lane->memory.share;
	flight->memory.account.kind = BUDGET_REQUEST;
	flight->memory.raw = row_size(row, CLAIM_COLUMN(OUTBOX_OPERATOR)) + row_size(row, CLAIM_COLUMN(OUTBOX_PARAMS)) +
		row_size(row, CLAIM_COLUMN(OUTBOX_LOOP_MASKS));
	flight->memory.too_large = flight->memory.raw / ROW_TO_WRITTEN > request_limit(flight);
	flight->memory.is_large = flight->memory.raw >= LARGE_ROW;
	if (flight->memory.too_large || flight->memory.is_large)
		return;

	read_jsonb(flight, row, CLAIM_COLUMN(OUTBOX_OPERATOR), CLAIM_COLUMN(OUTBOX_PARAMS), CLAIM_COLUMN(OUTBOX_LOOP_MASKS));
	measure(flight);
	flight->memory.is_large = flight->memory.request.size >= LARGE_ROW;
	if (flight->memory.too_large || flight->memory.is_large)
		flight_memory_forget_request(flight);
	else
		budget_take_anyway(&flight->memory.account, flight->memory.raw + flight->memory.request.size);
}

/*
 * What a large row takes in memory: itself, and what is written of it, until that is
 * there.  How much that is shows when it is read, unless it was before.
 */
static int64
large_bytes(const Flight *flight)
{
	const Lane *lane = flight->lane;

	if (flight->memory.request.size > 0)
		return flight->memory.raw + flight->memory.request.size;
	return lane->memory.large_id == flight->id ? lane->memory.large_bytes : 2 * flight->memory.raw;
}

/* Read a large row, if there is room; false: not now. */
static bool
read_large(Flight *flight)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT operator, params, loop_masks FROM feishu_internal.outbox WHERE id = $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(flight->id)};
	Lane	   *lane = flight->lane;

	/* behind one that waits already it need not be looked at */
	if (lane->memory.refused || !take_memory(flight, large_bytes(flight)))
		return false;
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) != 1)
		elog(ERROR, "claimed row " INT64_FORMAT " is gone", flight->id);
	read_jsonb(flight, 0, 1, 2, 3);
	measure(flight);
	if (!flight->memory.too_large && flight->memory.raw + flight->memory.request.size <= flight->memory.account.bytes)
	{
		budget_give_back(&flight->memory.account,
						 flight->memory.account.bytes - flight->memory.raw - flight->memory.request.size);
		return true;
	}
	if (!flight->memory.too_large &&
		take_memory(flight,
					flight->memory.raw + flight->memory.request.size - flight->memory.account.bytes))
		return true;
	lane->memory.large_id = flight->id;
	lane->memory.large_bytes = flight->memory.raw + flight->memory.request.size;
	flight_memory_forget_request(flight);
	budget_give_back(&flight->memory.account, flight->memory.account.bytes);
	return flight->memory.too_large;
}

/* Has the bound been raised since we looked?  To fail is for good. */
static bool
limit_was_raised(const Flight *flight)
{
	int64		before = request_limit(flight);

	role_settings_read_again();
	return request_limit(flight) > before;
}

/*
 * Read what is large of a claimed row, if it is and there is room for it: no result of
 * SQL is needed any more.  True: the flight is not to be sent now.
 */
bool
flight_memory_read_large(Flight *flight)
{
	bool		waits = flight->memory.is_large && !flight->memory.too_large &&
		flight->memory.request.operator_id == NULL && !read_large(flight);

	if (waits)
		lane_wait_for_memory(flight->lane);
	return waits || (flight->memory.too_large && limit_was_raised(flight));
}

/* The request is written, and the jsonb that it was made of goes, if it is large. */
void
flight_memory_forget_large(Flight *flight)
{
	if (!flight->memory.is_large)
		return;
	flight_memory_forget_request(flight);
	budget_give_back(&flight->memory.account, flight->memory.raw);
}

/* The answer is in memory already. */
void
flight_memory_take_answer(Flight *flight, const FlowResponse *response)
{
	if (response != NULL && response->body != NULL)
		budget_take_anyway(&flight->memory.account, VARSIZE(response->body));
}
