/*-------------------------------------------------------------------------
 *
 * page.h
 *	  Reading of the queue a page at a time.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/page.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PAGE_H
#define FEISHU_PAGE_H

#include "dispatcher/claim.h"

extern void page_list_next(const Claim *claim, Tier *tier, int limit);
extern void page_list_due(const Claim *claim, Tier *tier, TimestampTz now);

#endif							/* FEISHU_PAGE_H */
