/*-------------------------------------------------------------------------
 *
 * pauses.h
 *	  What owners of servers have paused.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/pauses.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PAUSES_H
#define FEISHU_PAUSES_H

#include "utils/snapshot.h"

struct Lane;

/* In SQL: what a flow of a row is called here, and is it one of pauses_flows()? */
#define PAUSES_FLOW(row)	row ".namespace || E'\\n' || " row ".flow_id"
#define PAUSES_HAVE(row, flows) "(" PAUSES_FLOW(row) " = ANY (" flows "))"

/* Flows of a server that are paused, of a Site. */
typedef struct PausedFlows
{
	char	  **names;			/* sorted */
	int			num;
} PausedFlows;

extern void pauses_read(Snapshot snapshot);
extern bool pauses_any(const struct Lane *lane);
extern bool pauses_hold(const struct Lane *lane, Datum namespace_name, Datum flow_id);
extern bool pauses_hold_flow(const char *server, const char *namespace_name, const char *flow_id);
extern Datum pauses_flows(const struct Lane *lane);

#endif							/* FEISHU_PAUSES_H */
