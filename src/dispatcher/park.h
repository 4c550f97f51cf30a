/*-------------------------------------------------------------------------
 *
 * park.h
 *	  Rows of paused flows, out of the way.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/park.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PARK_H
#define FEISHU_PARK_H

#include "dispatcher/tier.h"

extern void park_rows(const int64 *ids, int num);
extern void park_expect(Tier *tier, int64 after);
extern void park_expect_due(Tier *tier, TimestampTz after, int64 after_id);
extern void park_look_for_resumed(void);
extern bool park_is_wanted(void);
extern void park_step(void);
extern void park_begin_anew(void);

#endif							/* FEISHU_PARK_H */
