/*-------------------------------------------------------------------------
 *
 * src/dispatcher/dispatcher_internal.h
 *	  What the files of src/dispatcher/ do for each other, but for lanes, flights and claims.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_DISPATCHER_INTERNAL_H
#define FEISHU_DISPATCHER_INTERNAL_H

#include "datatype/timestamp.h"
#include "utils/snapshot.h"

#include "dispatcher/lane.h"

/* lane_server.c */
extern void lane_server_lookup_all(Lane **lanes, FlowServer **servers, int num, Snapshot snapshot);
extern FlowServer *lane_server_lookup(Lane *lane, Snapshot snapshot);
extern void lane_server_hold(Lane *lane);

/* arrays.c */
extern Datum array_of(Datum *values, int num, Oid type);
extern Datum array_of_nullable(Datum *values, bool *nulls, int num, Oid type);
extern Datum array_of_ids(const int64 *ids, int num);

/* attempts.c */
extern void attempts_write(Flight **flights, int num);
extern void attempts_recover(void);

/* maintain.c */
extern bool maintain_expire(TimestampTz now);
extern bool maintain_purge(TimestampTz now);
extern void maintain_fail_lane(Lane *lane, const char *sqlstate, const char *error);
extern void maintain_expect(TimestampTz expires_at);
extern void maintain_begin_anew(void);

/* record.c */
extern void record_ended(void);
extern void record_one_by_one(void);
extern bool record_unreadable(int64 id, const FlightEnd *end);

/* shutdown.c */
extern void shutdown_init(void);
extern void shutdown_begin_work(void);
extern void shutdown_end_work(void);
extern bool shutdown_is_told(void);
extern int	shutdown_left_ms(int limit_ms);

/* sweep.c */
extern bool sweep_poll(TimestampTz now);
extern bool sweep_step(void);
extern void sweep_add(int64 min_id, int64 max_id);
extern void sweep_begin_anew(void);

/* tokens.c */
extern void tokens_refresh_asked(void);

/* transaction.c; the scratch memory is reset each turn, and current outside of what has its own */
extern MemoryContext transaction_scratch;
extern void transaction_init(void);
extern bool transaction_begin(void);
extern uint64 transaction_number(void);
extern bool transaction_try(void (*action) (void *arg), void *arg, ErrorData **error);
extern void transaction_end(bool durable);
extern bool transaction_committed(void);
extern bool transaction_standby_waits(void);
extern void transaction_flush_claims(void);
extern bool transaction_lock_database(void);

/* work.c; that somebody has locked the tables is told when it has lasted so long */
#define WORK_LOCKED_TOLD_MS	1000
extern bool work_take_notice(void);
extern bool work_is_due(void);
extern void work_do(void);
extern TimestampTz work_next(void);
extern void work_poll_within_interval(void);
extern void work_log_failure(const ErrorData *error);

#endif							/* FEISHU_DISPATCHER_INTERNAL_H */
