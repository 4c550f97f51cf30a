/*-------------------------------------------------------------------------
 *
 * pass.h
 *	  Reading of the queue past rows of paused flows.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/pass.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PASS_H
#define FEISHU_PASS_H

#include "dispatcher/claim.h"

extern void pass_next(const Claim *claim, Tier *tier, int limit);
extern bool pass_due(const Claim *claim, Tier *tier, TimestampTz now, int limit);

#endif							/* FEISHU_PASS_H */
