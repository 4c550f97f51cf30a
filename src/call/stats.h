/*-------------------------------------------------------------------------
 *
 * src/call/stats.h
 *	  Counters of flow calls, by database, server and flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_STATS_H
#define FEISHU_STATS_H

#include "call/call.h"

extern void stats_request_shmem(void);
extern void stats_startup_shmem(void);
extern void stats_count_call(Oid serverid, const char *namespace_name,
							 const char *flow_id, const FlowOutcome *outcome,
							 bool is_retry, int64 duration_us);
extern void stats_count_unsent(Oid serverid, const char *namespace_name,
							   const char *flow_id);

#endif							/* FEISHU_STATS_H */
