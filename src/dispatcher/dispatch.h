/*-------------------------------------------------------------------------
 *
 * dispatch.h
 *	  What the files of the dispatcher share.
 *
 * Vocabulary: a "lane" is the flows of one server and one role, which share
 * credentials and so an app.  A "flight" is a flow that is claimed: from the
 * transaction that claimed it to the one that recorded what became of it.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/dispatch.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_DISPATCH_H
#define FEISHU_DISPATCH_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "utils/hsearch.h"

#include "app/limiter.h"
#include "app/options.h"
#include "base/budget.h"
#include "call/call.h"
#include "wire/wire.h"

/* A list of row ids in memory; ids is palloc'd or NULL. */
typedef struct IdList
{
	int64	   *ids;
	int			num;
	int			max;
} IdList;

/* A server as the schedule knows it: its lanes take turns, and so do servers. */
typedef struct Site
{
	char		name[NAMEDATALEN];	/* hash key */
	dlist_node	node;			/* in due_sites, while one of its lanes is due */
	dlist_head	due;			/* its lanes that are due, whose turn it is first */
	int			num_due;
	int			in_flight;
	int			granted;		/* places that a claim under way may fill */
} Site;

typedef struct LaneKey
{
	char		server[NAMEDATALEN];	/* padded with zeros */
	Oid			roleid;
} LaneKey;

/* What flights of a role have, whatever servers they are for. */
typedef struct RoleShare
{
	Oid			roleid;			/* hash key */
	BudgetShare memory;
	int			in_flight;
	int			granted;		/* places that a claim under way may fill */
} RoleShare;

/* Written by lane.c; its cursors by claim.c and discover.c, by its functions. */
typedef struct Lane
{
	LaneKey		key;			/* hash key */
	Site	   *site;
	int64		cursor;			/* rows at once with an id up to this were seen */
	bool		more;			/* there may be others above the cursor */
	bool		keyed;			/* those seen there last had ordering keys */
	int			page_rows;		/* how many to look at there then; 0: a batch */
	TimestampTz due_floor;		/* delayed rows before this were seen, and */
	int64		due_floor_id;	/* those of this time with an id up to this */
	TimestampTz next_due;		/* when to look at delayed rows; DT_NOEND */
	IdList		ready;			/* rows to claim by id: due ones, successors in
								 * an ordering key, those given back */
	dlist_head	flights;		/* all whose ends are not committed */
	int			in_flight;		/* those that have not ended */
	int			granted;		/* places that a claim under way may fill */
	LimiterPlace *places;		/* these, in a claim under way; else NULL */
	int			num_places;
	int			position;		/* in the claim under way */
	Oid			server_owner;	/* likewise: whose its server is */
	bool		owner_differs;	/* likewise: from that when a row was queued */
	uint64		turn;			/* of the transaction in which it had one last */
	BudgetShare share;			/* of memory, a part of its role's */
	RoleShare  *role;			/* what its role has */
	int64		large_id;		/* the row that found no room in memory last */
	int64		large_bytes;	/* what it takes, by its own size as written */
	bool		suspect;		/* its last attempt got no answer */
	int			postponed;		/* rows that could not be prepared now, in a row */
	TimestampTz postponed_told; /* when the log had a line of that */
	LimiterPlace place;			/* its turn, while the app has no place */
	uint64		served;			/* when it had a place last, by num_served */
	bool		paused;			/* by pause_server */
	TimestampTz hold_until;		/* 0: not held */
	char	   *reason;			/* why held, NULL when not worth telling */
	char	   *told;			/* reason that feishu_internal.held_lane has, or NULL */
	TimestampTz told_until;
	AppKey		app;			/* as looked up last */
	bool		app_is_known;	/* no mapping has changed since */
	bool		logged;			/* the log says that it is held, or that an app
								 * that is no longer its own is paused */
	/* schedule.c's */
	bool		is_due;			/* in its site's list */
	dlist_node	due_node;
	bool		is_timed;		/* in the heap of lanes that will be due */
	pairingheap_node timed_node;
	TimestampTz timed_at;
	bool		is_untold;		/* in the list of those whose hold has changed */
	dlist_node	untold_node;
	bool		memory_refused;	/* in the claim under way */
	bool		wants_memory;	/* in the list of those that wait for it */
	dlist_node	memory_node;
} Lane;

/* Written by flight.c, its end by record.c. */
typedef struct Flight
{
	dlist_node	node;			/* in claimed, flights, or ended */
	dlist_node	lane_node;		/* in the lane's flights, while in_lane */
	bool		in_lane;
	Lane	   *lane;
	MemoryContext context;		/* of all below, the call included */
	int64		id;
	FlowRequest request;
	BudgetAccount account;		/* of its memory: request, then answer */
	int64		raw;			/* of its row: as jsonb */
	bool		is_large;		/* the row's jsonb is read when there is room */
	bool		too_large;		/* to be sent at all */
	uint64		turn;			/* of the transaction that claimed it */
	Oid			serverid;
	FlowCall   *call;			/* NULL: ended before it was called */
	char	   *ordering_key;
	int			attempts;
	int			max_attempts;
	TimestampTz expires_at;
	bool		own_key;
	bool		unanswered;
	bool		replaceable;	/* until this claim: see replace.c */
	bool		is_ours;		/* queued in this database */
	char	   *last_error;		/* of the attempt before, or NULL */
	TimestampTz started;
	/* the end */
	bool		recorded;		/* by the transaction under way */
	char		state;			/* 'q': back to the queue */
	bool		silent;			/* nothing to write: as if it was not tried */
	bool		is_behind;		/* another one of its ordering key is in flight,
								 * whose end will find it */
	TimestampTz next_at;		/* with 'q'; 0: at once */
	TimestampTz hold_until;		/* its lane is to wait until then; 0: not */
	int			sqlstate;
	char	   *error;
	char	   *report;			/* see the table; NULL: error says it all */
	char	   *hint;			/* or NULL */
	FlowResponse *response;
	char	   *log_id;
} Flight;

/* Of this process: its lanes and flights. */
typedef struct Dispatch
{
	MemoryContext context;		/* for as long as the process */
	MemoryContext scratch;		/* reset each turn */
	/* lanes */
	HTAB	   *lane_table;
	HTAB	   *site_table;
	HTAB	   *share_table;	/* of roles */
	Lane	  **lanes;
	int			num_lanes;
	int			max_lanes;
	/* the schedule */
	dlist_head	due_sites;
	int			num_due;		/* lanes */
	TimestampTz advanced_to;	/* whose time has come up to then is due */
	pairingheap *timed;
	uint64		num_served;		/* counts places of the limiter */
	dlist_head	untold;
	dlist_head	want_memory;	/* lanes, who came last is last */
	/* flights */
	dlist_head	claimed;		/* made of rows, not begun */
	dlist_head	flights;		/* under way */
	int			num_flights;	/* of both */
	int			granted;		/* places that a claim under way may fill */
	uint64		turn;			/* counts transactions */
	bool		claim_durably;	/* the next commit has to wait for the disk */
	dlist_head	ended;			/* to be recorded */
	int			num_ended;
	TimestampTz ended_since;	/* the first of them */
	bool		record_singly;	/* one by one: all at once failed */
	dlist_head	stuck;			/* ended, and something about the row keeps the
								 * end from being written */
	int			num_stuck;
	TimestampTz stuck_until;	/* then it is tried again */
	bool		stuck_alone;	/* no other end could be written since */
	uint64		stuck_turn;		/* the transaction that tried again last */
	int64		last_id;		/* given out last, when we looked */
	/* a claim under way */
	Snapshot	snapshot;		/* of its rows, and of all that is read for them */
	int64		claim_last_id;	/* last_id from before the snapshot */
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
	" (SELECT p.id FROM feishu_internal.outbox p WHERE p.server = k.server AND p.roleid = k.roleid" \
	" AND p.ordering_key = k.ordering_key AND p.state = 'q'" \
	" AND p.id >= COALESCE((" floors " ->> (k.roleid || E'\\n' || k.ordering_key" \
	" || E'\\n' || k.server))::bigint, '-9223372036854775808'::bigint)" \
	" ORDER BY p.id LIMIT 1) f))"

/* lane.c: the lane of a server and role, made when there is none yet */
extern Lane *lane_get(Dispatch *dispatch, const char *server, Oid roleid);

/* lane.c: what is to be looked at: a row by its id (or not any more), a delayed
 * row at its time, all rows above the cursor */
extern void lane_expect_row(Dispatch *dispatch, Lane *lane, int64 id);
extern void lane_give_back(Dispatch *dispatch, Lane *lane, int64 id);	/* does not throw */
extern void lane_forget_row(Dispatch *dispatch, Lane *lane, int64 id);
extern void lane_expect_due(Dispatch *dispatch, Lane *lane, TimestampTz next_at);
extern void lane_expect_more(Dispatch *dispatch, Lane *lane);

/* lane.c: look from an id on again, and at all delayed rows at a time */
extern void lane_reopen(Dispatch *dispatch, Lane *lane, int64 min_id, TimestampTz next_due);

/* lane.c: there is nothing to look at */
extern void lane_close(Dispatch *dispatch, Lane *lane);

/* lane.c: hold a lane until then (0: no more), with a reason or NULL */
extern void lane_hold(Dispatch *dispatch, Lane *lane, TimestampTz until, const char *reason);

/* lane.c: write which lanes are held and why, where that has changed: as claim.c; and
 * after the commit, note that */
extern void lane_write_holds(Dispatch *dispatch);
extern void lane_holds_told(Dispatch *dispatch);

/* lane.c: pause_server, or resume_server */
extern void lane_set_paused(Dispatch *dispatch, Lane *lane, bool paused);

/* lane.c: a lane that is held looks again if that is still so */
extern void lane_look_again(Dispatch *dispatch, Lane *lane, TimestampTz now);

/* lane.c: the servers and credentials of lanes that may go, if all can be looked
 * up; else NULL */
extern void lane_lookup_servers(Dispatch *dispatch, Lane **lanes,
								FlowServer **servers, int num);

/* lane.c: the server and credentials, or NULL, with the lane held; as claim.c */
extern FlowServer *lane_lookup_server(Dispatch *dispatch, Lane *lane);

/* lane.c: hold a lane that has rows which were queued when its server was another's */
extern void lane_hold_for_owner(Dispatch *dispatch, Lane *lane);

/* lane.c: flows of the lane are sent, with these credentials */
extern void lane_note_app(Lane *lane, const AppKey *app);
extern void lane_log_open(Lane *lane);

/* schedule.c: what a lane has to do, or when, has changed */
extern void schedule_init(Dispatch *dispatch);
extern void schedule_lane(Dispatch *dispatch, Lane *lane);

/* schedule.c: when there may be rows to claim, for next to nothing;
 * claimed_at: when that was done last */
extern TimestampTz schedule_next(Dispatch *dispatch, TimestampTz now, TimestampTz claimed_at);

/* schedule.c: claim rows of all lanes in turn and make calls of them; as claim.c */
extern void schedule_claim_all(Dispatch *dispatch, TimestampTz now);

/* schedule.c: after an abort, give back what a claim under way had granted */
extern void schedule_abort(Dispatch *dispatch);

/* Columns of the rows that claim.c reads for flight.c. */
enum
{
	CLAIM_LANE = 1,				/* of lanes, from 1 on; only of several */
	CLAIM_ID, CLAIM_NAMESPACE, CLAIM_FLOW_ID, CLAIM_OPERATOR, CLAIM_PARAMS,
	CLAIM_IS_ASYNC, CLAIM_IDEMPOTENT_KEY, CLAIM_LOOP_MASKS, CLAIM_ORDERING_KEY,
	CLAIM_ATTEMPTS, CLAIM_MAX_ATTEMPTS, CLAIM_EXPIRES_AT, CLAIM_OWN_KEY,
	CLAIM_UNANSWERED, CLAIM_DATABASE, CLAIM_ERROR, CLAIM_SYSTEM_IDENTIFIER, CLAIM_SERVER_OWNER,
	CLAIM_REPLACEABLE
};

/* flight.c: make a flight of a row of the last result: it is in dispatch->claimed */
extern void flight_make(Dispatch *dispatch, Lane *lane, uint64 row);

/* flight_memory.c: read of a claimed row what is small; and read what is large of
 * those that were claimed, as far as there is room for it: no result of SQL is needed
 * any more */
extern void flight_read_small(Flight *flight, uint64 row);
extern void flight_read_large(Dispatch *dispatch);

/* flight_memory.c: what was read is not needed any more: if it is large; in any case;
 * and neither is anything else that the flight has */
extern void flight_forget_large(Flight *flight);
extern void flight_forget_jsonb(Flight *flight);
extern void flight_give_memory_back(Dispatch *dispatch, Flight *flight);

/* flight.c: make the call of a flight, with the place it was given */
extern void flight_start(Dispatch *dispatch, Flight *flight, FlowServer *server,
						 LimiterPlace *place);

/* flight.c: it has ended, in whatever way: keep it to be recorded */
extern void flight_end(Dispatch *dispatch, Flight *flight);

/* flight.c: it never was: give back what it holds, and have its row looked at */
extern void flight_undo(Dispatch *dispatch, Flight *flight);

/* flight.c: what pg_stat_activity shows */
extern void flight_report_activity(const Dispatch *dispatch);

/* flight.c: calls that have ended become ended flights, to be recorded */
extern void flight_take_ended(Dispatch *dispatch);

/* flight.c: flights of which nothing was sent yet end as if never begun */
extern void flight_give_back_unsent(Dispatch *dispatch);

/* flight.c: an end that cannot be written holds up no other; and try those again */
extern void flight_set_aside(Dispatch *dispatch, Flight *flight);
extern void flight_take_back_stuck(Dispatch *dispatch);

/* flight.c: after a commit, forget the flights whose ends are recorded; after an
 * abort, undo those that it claimed */
extern void flight_forget_recorded(Dispatch *dispatch);
extern void flight_undo_turn(Dispatch *dispatch);

/* flight_memory.c: a lane does not wait for memory any more */
extern void flight_leave_memory(Dispatch *dispatch, Lane *lane);

/* flight.c: how many more flights may there be; and with room for so many, how
 * many may a server, a lane have? */
extern int	flight_room(const Dispatch *dispatch);
extern int	flight_site_room(const Site *site, int room);
extern int	flight_lane_room(const Dispatch *dispatch, const Lane *lane, int room);

/* flight.c: the ids of a lane's flights above min_id, as bigint[] */
extern Datum flight_ids_array(Lane *lane, int64 min_id);

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
extern bool maintain_expire(Dispatch *dispatch, TimestampTz now);
extern bool maintain_purge(TimestampTz now);
extern void maintain_fail_lane(Dispatch *dispatch, Lane *lane, const char *sqlstate,
							   const char *error);

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
extern void claim_write_ids(Dispatch *dispatch);

/* claim.c: claim up to num_places rows of each lane: they are in dispatch->claimed */
extern void claim_rows(Dispatch *dispatch, Lane **lanes, int num);

/* record.c; likewise */
extern void record_ended(Dispatch *dispatch);
extern bool record_is_lasting(int sqlstate);
extern void record_unreadable(Dispatch *dispatch, Lane *lane, int64 id,
							  const ErrorData *error);

/* record.c: decide what becomes of a flight; no transaction needed */
extern void record_decide(Flight *flight, const FlowOutcome *outcome);
extern void record_decide_error(Flight *flight, int sqlstate, const char *message);
extern void record_decide_postponed(Flight *flight, int sqlstate, const char *message);
extern void record_decide_expired(Flight *flight);
extern void record_decide_exhausted(Flight *flight);
extern void record_decide_not_ours(Flight *flight);
extern void record_decide_too_large(Flight *flight, int max_kilobytes);

/* dispatch_tokens.c: refresh tokens for the sessions that asked; in a transaction */
extern void tokens_refresh_asked(void);

/* dispatch_transaction.c: begin one as the owner of the tables, with a snapshot and
 * the tables locked; false: somebody else has locked them, and there is none.  Exits
 * when the extension is gone. */
extern bool transaction_begin(void);

/* dispatch_transaction.c: do something in a subtransaction, with the memory context
 * as it is.  False and the error if that throws; a cancel or the like is thrown on. */
extern bool transaction_try(void (*action) (void *arg), void *arg, ErrorData **error);

/* dispatch_transaction.c: commit; durable: wait for the disk */
extern void transaction_end(Dispatch *dispatch, bool durable);
extern bool transaction_committed(void);

/* dispatch_transaction.c: do commits wait for a standby? */
extern bool transaction_standby_waits(void);

/* dispatch_transaction.c: send what waits, and see claims to disk meanwhile */
extern void transaction_flush_claims(void);

/* dispatch_transaction.c: prove that we are the only dispatcher of this database,
 * for our lifetime */
extern bool transaction_lock_database(void);

/*
 * shutdown.c: from shutdown_init on SIGTERM only tells us to end.  Told while a
 * transaction between begin_work and end_work takes too long, it ends us at the
 * next check of interrupts (ProcDiePending).
 */
extern void shutdown_init(void);
extern void shutdown_begin_work(void);
extern void shutdown_end_work(void);
extern bool shutdown_is_told(void);

/* shutdown.c: what is left of so many ms from when we were told by SIGTERM, or now */
extern int	shutdown_left_ms(int limit_ms);

#endif							/* FEISHU_DISPATCH_H */
