/*-------------------------------------------------------------------------
 *
 * src/queue/pushdown.h
 *	  Warn of flows that Citus queues a shard at a time.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PUSHDOWN_H
#define FEISHU_PUSHDOWN_H

extern void pushdown_warn(void);

#endif							/* FEISHU_PUSHDOWN_H */
