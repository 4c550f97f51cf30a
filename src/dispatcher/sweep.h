/*-------------------------------------------------------------------------
 *
 * sweep.h
 *	  A second look at rows of which nobody was notified.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/sweep.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SWEEP_H
#define FEISHU_SWEEP_H

#include "datatype/timestamp.h"

extern bool sweep_poll(TimestampTz now);
extern bool sweep_step(void);
extern void sweep_add(int64 min_id, int64 max_id);
extern void sweep_begin_anew(void);

#endif							/* FEISHU_SWEEP_H */
