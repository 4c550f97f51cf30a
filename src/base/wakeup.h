/*-------------------------------------------------------------------------
 *
 * wakeup.h
 *	  How processes that wait for each other's doings are woken.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/base/wakeup.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WAKEUP_H
#define FEISHU_WAKEUP_H

/* Hooks of the postmaster; without them a process can only wait for itself. */
extern void wakeup_request_shmem(void);
extern void wakeup_startup_shmem(void);

/* To be called before looking at shared state that one may have to wait for. */
extern void wakeup_look(void);

/* To be called right before the process waits on its latch. */
extern void wakeup_wait_begin(void);

/* There is nothing to wait for any more. */
extern void wakeup_wait_end(void);

/* Something changed that others may wait for. */
extern void wakeup_broadcast(void);

#endif							/* FEISHU_WAKEUP_H */
