/*-------------------------------------------------------------------------
 *
 * src/base/waiters.h
 *	  Sessions that wait for the end of a flow, and how they are told of it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WAITERS_H
#define FEISHU_WAITERS_H

/* Hooks of the postmaster; without them nobody is told. */
extern void waiters_request_shmem(void);
extern void waiters_startup_shmem(void);
extern void waiters_look(int64 id);
extern bool waiters_is_notified(void);
extern void waiters_leave(void);
extern void waiters_notify(int64 *ids, int num);
extern void waiters_notify_all(void);

#endif							/* FEISHU_WAITERS_H */
