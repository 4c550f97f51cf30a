/*-------------------------------------------------------------------------
 *
 * src/dispatcher/flight_memory.h
 *	  The requests of flights, and what they and their lanes take of memory.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_FLIGHT_MEMORY_H
#define FEISHU_FLIGHT_MEMORY_H

#include "lib/ilist.h"

#include "base/budget.h"
#include "wire/wire.h"

struct Flight;
struct Lane;

/* Of a lane. */
typedef struct LaneMemory
{
	BudgetShare share;			/* a part of its role's */
	int64		large_id;		/* the row that found no room last */
	int64		large_bytes;	/* what it takes, by its own size as written */
	bool		refused;		/* room, in the claim under way */
	bool		waits;			/* in the list of those that wait for room */
	dlist_node	node;
} LaneMemory;

/* Of a flight. */
typedef struct FlightMemory
{
	FlowRequest request;
	BudgetAccount account;		/* the request, then the answer */
	int64		raw;			/* of its row: as jsonb */
	bool		is_large;		/* the row's jsonb is read when there is room */
	bool		too_large;		/* to be sent at all */
} FlightMemory;

extern void flight_memory_begin(struct Lane *lane);
extern void flight_memory_leave(struct Lane *lane);
extern void flight_memory_read_small(struct Flight *flight, uint64 row);
extern bool flight_memory_read_large(struct Flight *flight);
extern void flight_memory_forget_large(struct Flight *flight);
extern void flight_memory_forget_request(struct Flight *flight);
extern void flight_memory_take_answer(struct Flight *flight, const FlowResponse *response);
extern void flight_memory_give_back(struct Flight *flight);

#endif							/* FEISHU_FLIGHT_MEMORY_H */
