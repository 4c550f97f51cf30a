/*-------------------------------------------------------------------------
 *
 * src/dispatcher/discover.h
 *	  Which lanes there are, and which have rows.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_DISCOVER_H
#define FEISHU_DISCOVER_H

#include "utils/snapshot.h"

#include "dispatcher/lane.h"

/* All need a transaction. */
extern int64 discover_last_id(void);
extern void discover_all(bool from_start);
extern bool discover_from(int64 min_id);
extern void discover_between(int64 min_id, int64 max_id);
extern bool discover_lane_is_empty(const Lane *lane);

#endif							/* FEISHU_DISCOVER_H */
