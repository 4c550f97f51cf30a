/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  What dispatcher.c, lane.c, discover.c, sweep.c, claim.c, ordering.c, record.c and
 *	  maintain.c share; for no other file.
 *
 * Vocabulary: a "lane" is the flows of one server and one role, which share
 * credentials and so an app.  A "flight" is a flow that is claimed: from the
 * transaction that claimed it to the one that recorded what became of it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatch.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_DISPATCH_H
#define FEISHU_DISPATCH_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"

#include "call.h"
#include "codec.h"
#include "limiter.h"
#include "options.h"

/* A list of row ids in memory; ids is palloc'd or NULL. */
typedef struct IdList
{
	int64	   *ids;
	int			num;
	int			max;
} IdList;

typedef struct Lane
{
	char		server[NAMEDATALEN];	/* key, with roleid */
	Oid			roleid;
	int64		cursor;			/* rows at once with an id up to this were seen */
	bool		more;			/* there may be others above the cursor */
	bool		keyed;			/* those seen there last had ordering keys */
	int			page_rows;		/* how many to look at there then; 0: a batch */
	TimestampTz due_floor;		/* delayed rows before this were seen, and */
	int64		due_floor_id;	/* those of this time with an id up to this */
	TimestampTz next_due;		/* when to look at delayed rows; DT_NOEND */
	IdList		ready;			/* rows to claim by id: due ones, successors in
								 * an ordering key, those given back */
	int			in_flight;
	LimiterPlace place;			/* its turn, while the app has no place */
	bool		paused;			/* by pause_server */
	TimestampTz hold_until;		/* 0: not held */
	char		reason[256];	/* why held, "" when not worth telling */
	char		told[256];		/* reason that feishu.held_lane has */
	TimestampTz told_until;
	AppKey		app;			/* as looked up last */
	bool		logged;			/* the log says that it is held, or that an app
								 * that is no longer its own is paused */
} Lane;

typedef struct Flight
{
	dlist_node	node;			/* in flights, or ended */
	Lane	   *lane;
	MemoryContext context;		/* of all below, the call included */
	int64		id;
	FlowRequest request;
	int			large_bytes;	/* of params that are not small */
	Oid			serverid;
	FlowCall   *call;			/* NULL: ended before it was called */
	char	   *ordering_key;
	int			attempts;
	int			max_attempts;
	TimestampTz expires_at;
	bool		own_key;
	bool		unanswered;
	bool		is_ours;		/* queued in this database */
	char	   *last_error;		/* of the attempt before, or NULL */
	TimestampTz started;
	/* the end */
	char		state;			/* 'q': back to the queue */
	bool		silent;			/* nothing to write: as if it was not tried */
	bool		is_behind;		/* another one of its ordering key is in flight,
								 * whose end will find it */
	TimestampTz next_at;		/* with 'q'; 0: at once */
	int			sqlstate;
	char	   *error;
	FlowResponse *response;
	char	   *log_id;
} Flight;

/* Of this process: its lanes and flights. */
typedef struct Dispatch
{
	MemoryContext context;		/* for as long as the process */
	MemoryContext scratch;		/* reset each turn */
	Lane	  **lanes;
	int			num_lanes;
	int			max_lanes;
	dlist_head	flights;		/* under way */
	int			num_flights;
	int64		large_bytes;	/* of their params that are not small */
	bool		claim_durably;	/* the next commit has to wait for the disk */
	dlist_head	ended;			/* to be recorded */
	int			num_ended;
	TimestampTz ended_since;	/* the first of them */
	int64		last_id;		/* given out last, when we looked */
} Dispatch;

/*
 * Flights recorded or claimed at once.  Each has two memory contexts of the
 * default size; PostgreSQL keeps up to 100 such for the next ones (aset.c), and
 * has to ask malloc for more.
 */
#define DISPATCH_BATCH		96

/*
 * In SQL: is row o first of its ordering key (of one server and role), or has none?
 * among: rows, of which it is one, as the end of a query of k; floors: a parameter
 * that is ordering_floors().  Which is first is asked once for each key of them,
 * and not before a row has a key.
 */
#define DISPATCH_IS_FIRST(among, floors) \
	"(o.ordering_key IS NULL OR o.id IN (SELECT f.id" \
	" FROM (SELECT DISTINCT k.server, k.roleid, k.ordering_key " among ") k, LATERAL" \
	" (SELECT p.id FROM feishu.outbox p WHERE p.server = k.server AND p.roleid = k.roleid" \
	" AND p.ordering_key = k.ordering_key AND p.state = 'q'" \
	" AND p.id >= COALESCE((" floors " ->> (k.roleid || E'\\n' || k.ordering_key" \
	" || E'\\n' || k.server))::bigint, '-9223372036854775808'::bigint)" \
	" ORDER BY p.id LIMIT 1) f))"

/* Add an id to a list that does not have it yet. */
extern void id_list_add(Dispatch *dispatch, IdList *list, int64 id);

/* discover.c: the lane of a server and role, made when there is none yet */
extern Lane *discover_lane(Dispatch *dispatch, const char *server, Oid roleid);

/* discover.c: a lane has a delayed row with this time */
extern void discover_expect_due(Lane *lane, TimestampTz next_at);

/* discover.c: have all lanes looked at from an id on, and for delayed rows */
extern void discover_reopen(Dispatch *dispatch, int64 min_id);

/* discover.c; all need a transaction and sql_begin_as_owner */
extern void discover_all(Dispatch *dispatch, bool from_start);
extern bool discover_from(Dispatch *dispatch, int64 min_id);
extern bool discover_lane_is_empty(const Lane *lane);
extern void discover_read_pauses(Dispatch *dispatch);

/* discover.c: look at the rows with these ids; likewise */
extern void discover_between(Dispatch *dispatch, int64 min_id, int64 max_id);

/* sweep.c; likewise.  sweep_poll is true if all lanes are to be looked at from
 * the start, sweep_step if there is more to look at. */
extern bool sweep_poll(Dispatch *dispatch, TimestampTz now);
extern bool sweep_step(Dispatch *dispatch);

/* sweep.c: have it look at ids from here on */
extern void sweep_add(int64 min_id, int64 max_id);

/* A row with an ordering key that has ended. */
typedef struct OrderingKey
{
	const char *server;
	Oid			roleid;
	const char *key;
	int64		id;
} OrderingKey;

/* ordering.c: find who is next; likewise */
extern void ordering_find_successors(Dispatch *dispatch, OrderingKey *keys, int num);

/* ordering.c: the lowest ids of keys, for DISPATCH_IS_FIRST */
extern Datum ordering_floors(Dispatch *dispatch);

/* ordering.c: rows with this id or higher ones may have appeared */
extern void ordering_tell(int64 min_id);

/* maintain.c; likewise.  True if there may be more. */
extern bool maintain_expire(Dispatch *dispatch, TimestampTz now, IdList *ended);
extern bool maintain_purge(TimestampTz now);

/* maintain.c: a row that waits, and may have appeared late, expires then */
extern void maintain_expect(TimestampTz expires_at);

/* sweep.c, maintain.c: forget what was seen, and look at all from the start */
extern void sweep_begin_anew(void);
extern void maintain_begin_anew(void);

/* discover.c: look which id was given out last; likewise */
extern int64 discover_last_id(Dispatch *dispatch);

/* claim.c; likewise */
extern void claim_recover(Dispatch *dispatch);
extern void claim_look_at_due(Dispatch *dispatch, Lane *lane, TimestampTz now);
extern int	claim_rows(Dispatch *dispatch, Lane *lane, int limit);
extern void claim_write_ids(Dispatch *dispatch);

/* lane.c: calls that have ended become ended flights, to be recorded */
extern void lane_take_ended(Dispatch *dispatch);

/* lane.c: flights of which nothing was sent yet end as if never begun */
extern void lane_give_back_unsent(Dispatch *dispatch);

/* lane.c: forget the flights whose ends are recorded */
extern void lane_forget_ended(Dispatch *dispatch);

/* lane.c: how many more flights may a lane have? */
extern int	lane_room(const Dispatch *dispatch, const Lane *lane);

/* lane.c: claim rows of all lanes and make calls of them; as claim.c */
extern void lane_claim_all(Dispatch *dispatch, TimestampTz now);

/* record.c; likewise */
extern void record_ended(Dispatch *dispatch);
extern void record_holds(Dispatch *dispatch);
extern void record_unreadable(Dispatch *dispatch, Lane *lane, int64 id,
							  const ErrorData *error);
extern void record_fail_lane(Dispatch *dispatch, Lane *lane, const char *sqlstate,
							 const char *error);

/* record.c: decide what becomes of a flight; no transaction needed */
extern void record_decide(Flight *flight, const FlowOutcome *outcome);
extern void record_decide_error(Flight *flight, int sqlstate, const char *message);
extern void record_decide_expired(Flight *flight);
extern void record_decide_not_ours(Flight *flight);

/* Why a flow that may not be sent any more has failed. */
extern const char *record_expired_text(void);

/* Why a flow that was queued in another database is cancelled. */
extern const char *record_not_ours_text(void);

/*
 * stop.c: from stop_init on SIGTERM only tells us to end.  Told while a
 * transaction between begin_work and end_work takes too long, it ends us at the
 * next check of interrupts (ProcDiePending).
 */
extern void stop_init(void);
extern void stop_begin_work(void);
extern void stop_end_work(void);
extern bool stop_is_told(void);

/* stop.c: what is left of so many ms from when we were told by SIGTERM, or now */
extern int	stop_left_ms(int limit_ms);

#endif							/* FEISHU_DISPATCH_H */
