/*-------------------------------------------------------------------------
 *
 * src/dispatcher/lane.h
 *	  The flows of one server and one role.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LANE_H
#define FEISHU_LANE_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"

#include "app/limiter.h"
#include "app/server.h"
#include "dispatcher/flight.h"
#include "dispatcher/pauses.h"
#include "dispatcher/schedule.h"
#include "dispatcher/share.h"
#include "dispatcher/tier.h"

/* A server: its lanes take turns, and so do servers. */
typedef struct Site
{
	char		name[NAMEDATALEN];	/* hash key */
	SiteTurn	turn;			/* schedule.c's */
	FlightLoad	load;			/* flight.c's */
	PausedFlows paused;			/* pauses.c's */
} Site;

/* A role, whatever servers its flows are for. */
typedef struct Role
{
	Oid			roleid;			/* hash key */
	FlightLoad	load;			/* flight.c's */
	BudgetShare memory;			/* budget.c's */
} Role;

typedef struct LaneKey
{
	char		server[NAMEDATALEN];	/* padded with zeros */
	Oid			roleid;
} LaneKey;

/*
 * A lane: these share credentials and so an app.  Each of its last parts belongs to
 * another file.
 */
typedef struct Lane
{
	LaneKey		key;			/* hash key */
	Site	   *site;
	Role	   *role;
	/* what there is to do */
	Tier	  **tiers;			/* of its priorities, the highest first */
	int			num_tiers;
	int			max_tiers;
	LaneShare	share;			/* share.c's */
	/* what holds it */
	bool		suspect;		/* its last attempt got no answer */
	int			postponed;		/* rows that could not be prepared now, in a row */
	TimestampTz postponed_told; /* when the log had a line of that */
	LimiterPlace place;			/* its turn, while the app has no place */
	bool		paused;			/* by pause_server */
	TimestampTz hold_until;		/* 0: not held */
	char	   *reason;			/* why held, NULL when not worth telling */
	char	   *told;			/* reason that feishu_internal.held_lane has, or NULL */
	TimestampTz told_until;
	bool		is_untold;		/* in the list of those whose hold has changed */
	dlist_node	untold_node;
	AppKey		app;			/* as looked up last */
	bool		app_is_known;	/* no mapping has changed since */
	bool		logged;			/* the log says that it is held, or that an app
								 * that is no longer its own is paused */
	/* of others */
	LaneTurn	turn;			/* schedule.c's */
	FlightLoad	load;			/* flight.c's */
	dlist_head	flights;		/* flight.c's: all whose ends are not committed */
	LaneMemory	memory;			/* flight_memory.c's */
} Lane;

extern void lane_init(void);
extern Lane *lane_get(const char *server, Oid roleid);
extern Lane *const *lane_all(void);
extern int	lane_count(void);

/* what there is to do */
extern Tier *lane_tier(Lane *lane, int16 priority);
extern TimestampTz lane_work_at(const Lane *lane);
extern Tier *lane_top(const Lane *lane, TimestampTz now);
extern bool lane_is_urgent(const Lane *lane, TimestampTz now);
extern bool lane_any_tiers(void);
extern int	lane_most_rows(const Lane *lane, int most, TimestampTz now);
extern void lane_reopen(Lane *lane, int64 min_id, TimestampTz next_due);
extern void lane_reopen_all(int64 min_id, TimestampTz next_due);
extern void lane_close(Lane *lane);

/* what holds it */
extern void lane_hold(Lane *lane, TimestampTz until, const char *reason);
extern void lane_log_hold(Lane *lane);
extern void lane_log_open(Lane *lane);
extern void lane_write_holds(void);
extern void lane_holds_written(void);
extern void lane_set_paused(Lane *lane, bool paused);
extern void lane_look_again(Lane *lane, TimestampTz now);
extern void lane_look_again_all(void);
extern void lane_ask_again_all(void);
extern LimiterVerdict lane_get_place(Lane *lane, const FlowServer *server, LimiterPlace *place,
									 TimestampTz *retry_at, LimiterPause *why);
extern void lane_leave_app(Lane *lane);
extern void lane_note_app(Lane *lane, const AppKey *app);
extern void lane_note_answer(Lane *lane, bool came);
extern void lane_note_prepared(Lane *lane);
extern void lane_note_postponed(Lane *lane, int64 id, int sqlstate, const char *message);

#endif							/* FEISHU_LANE_H */
