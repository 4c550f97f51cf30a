/*-------------------------------------------------------------------------
 *
 * lane_server.h
 *	  The server and credentials of a lane.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/lane_server.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LANE_SERVER_H
#define FEISHU_LANE_SERVER_H

#include "utils/snapshot.h"

#include "dispatcher/lane.h"

extern void lane_server_lookup_all(Lane **lanes, FlowServer **servers, int num, Snapshot snapshot);
extern FlowServer *lane_server_lookup(Lane *lane, Snapshot snapshot);
extern void lane_server_hold(Lane *lane);

#endif							/* FEISHU_LANE_SERVER_H */
