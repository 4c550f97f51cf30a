/*-------------------------------------------------------------------------
 *
 * src/dispatcher/claim.h
 *	  A claim: places for lanes, and rows for the places.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_CLAIM_H
#define FEISHU_CLAIM_H

#include "nodes/pg_list.h"
#include "utils/snapshot.h"

#include "dispatcher/lane.h"

/* What rows are claimed by has all columns of the outbox, after the number of the lane. */
#define CLAIM_LANE			1
#define CLAIM_COLUMN(column) ((column) + 2)

/* The part of one lane in the claim under way. */
typedef struct Claim
{
	Lane	   *lane;
	FlowServer *server;			/* its secrets are wiped in the end */
	Snapshot	snapshot;		/* of its rows, and of all that is read for them */
	int64		last_id;		/* all with an id up to this were drawn before */
	int			granted;		/* flights that the lane may have more */
	LimiterPlace *places;		/* those that it has */
	int			num_places;
	int			in_flight;		/* of the lane, before */
	int			num_begun;		/* flights of it, by now */
	bool		other_owner;	/* some rows were queued when its server was another's */
	bool		is_open;
} Claim;

/* claim.c */
extern void claim_all(TimestampTz now, bool urgent);
extern void claim_abort(void);

/* claim_rows.c */
extern List *claim_rows(const Claim *claims, int num);
extern Datum claim_flying_ids(const Lane *lane, int64 min_id);

/* claim_ids.c */
extern void claim_recover(void);
extern void claim_write_ids(void);

#endif							/* FEISHU_CLAIM_H */
