/*-------------------------------------------------------------------------
 *
 * src/dispatcher/flight.h
 *	  Flows that are claimed, and how many there may be.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_FLIGHT_H
#define FEISHU_FLIGHT_H

#include "lib/ilist.h"

#include "app/limiter.h"
#include "dispatcher/decide.h"
#include "dispatcher/flight_memory.h"

struct Claim;
struct Lane;
struct Site;
struct Tier;

/*
 * Flights recorded or claimed at once.  Each has two memory contexts of the
 * default size; PostgreSQL keeps up to 100 such for the next ones (aset.c), and
 * has to ask malloc for more.
 */
#define FLIGHT_BATCH		96

/* How many flights a server, a role or a lane has. */
typedef struct FlightLoad
{
	int			in_flight;		/* those that have not ended */
	int			granted;		/* places that a claim under way may fill */
} FlightLoad;

/* How many there are in all. */
typedef struct FlightTotals
{
	FlightLoad	load;
	int			ended;			/* to be recorded */
	TimestampTz ended_since;	/* the first of them */
	int			stuck;			/* ended, and something about the row keeps the end
								 * from being written */
	TimestampTz stuck_until;	/* then it is tried again */
	bool		stuck_alone;	/* no other end could be written since */
	uint64		stuck_transaction;	/* the one that tried again last */
	bool		claims_durably; /* the next commit has to wait for the disk */
} FlightTotals;

/* From the transaction that claimed a row to the one that recorded its end. */
typedef struct Flight
{
	dlist_node	node;			/* in flights, ended or stuck */
	dlist_node	lane_node;		/* in the lane's flights, while in_lane */
	bool		in_lane;
	struct Lane *lane;
	struct Tier *tier;
	const struct Claim *claim;	/* that it was made in; NULL: it has begun */
	MemoryContext context;		/* of all below, the call included */
	int64		id;
	uint64		transaction;	/* that claimed it */
	bool		replaceable;	/* until this claim: see replace.c */
	bool		other_owner;	/* its server's is another since it was queued */
	bool		is_behind;		/* another one of its ordering key is in flight,
								 * whose end will find it */
	char	   *ordering_key;
	FlightFacts facts;
	FlightMemory memory;		/* flight_memory.c's */
	Oid			serverid;
	FlowCall   *call;			/* NULL: ended before it was called */
	TimestampTz started;
	TimestampTz ended;			/* if there was a call */
	FlightEnd	end;
	bool		recorded;		/* by the transaction under way */
} Flight;

extern void flight_init(void);
extern const FlightTotals *flight_totals(void);
extern void flight_clock_set_back(TimestampTz now);
extern void flight_report_activity(void);

/* flight_room.c: how many more there may be */
extern int	flight_room(void);
extern int	flight_site_room(const struct Site *site, int room);
extern int	flight_lane_room(const struct Lane *lane, int room, const struct Tier *top);

/* from the row to the call */
extern void flight_grant(struct Lane *lane, int change);
extern Flight *flight_make(const struct Claim *claim, uint64 row);
extern void flight_start(Flight *flight, FlowServer *server, LimiterPlace *place);
extern void flight_put_off(Flight *flight);
extern void flight_return(Flight *flight);
extern void flight_undo_since(int before);
extern FlightEnd flight_decide_unreadable(struct Lane *lane, int64 id, const ErrorData *error);

/* from the call to the record */
extern void flight_take_ended(void);
extern void flight_return_unsent(void);
extern Flight **flight_list_ended(int *num);
extern void flight_mark_recorded(Flight *flight);
extern void flight_leave_answer_out(Flight *flight, const char *why);
extern void flight_set_aside(Flight *flight);
extern void flight_note_written(bool any);
extern void flight_take_back_stuck(void);
extern void flight_forget_recorded(void);
extern void flight_undo_transaction(void);

/* who is under way */
extern int	flight_most_ids(void);
extern int	flight_ids(int64 *ids);
extern int	flight_ids_begun(int64 *ids);
extern int	flight_ids_of_lane(const struct Lane *lane, int64 min_id, int64 *ids);
extern TimestampTz flight_first_expiry(void);

#endif							/* FEISHU_FLIGHT_H */
