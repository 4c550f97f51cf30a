/*-------------------------------------------------------------------------
 *
 * src/base/wakeup.h
 *	  How processes that wait for each other's doings are woken.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WAKEUP_H
#define FEISHU_WAKEUP_H

extern void wakeup_request_shmem(void);
extern void wakeup_startup_shmem(void);
extern void wakeup_look(void);
extern void wakeup_wait_begin(void);
extern void wakeup_wait_end(void);
extern void wakeup_broadcast(void);

#endif							/* FEISHU_WAKEUP_H */
