/*-------------------------------------------------------------------------
 *
 * record.h
 *	  Writing the ends of flights.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/record.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_RECORD_H
#define FEISHU_RECORD_H

#include "dispatcher/decide.h"

extern void record_ended(void);
extern void record_one_by_one(void);
extern bool record_unreadable(int64 id, const FlightEnd *end);

#endif							/* FEISHU_RECORD_H */
