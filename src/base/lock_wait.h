/*-------------------------------------------------------------------------
 *
 * lock_wait.h
 *	  Whose lock keeps a dispatcher from its queue.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/base/lock_wait.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LOCK_WAIT_H
#define FEISHU_LOCK_WAIT_H

/* Has a process waited for a lock for longer than a second? */
extern bool lock_wait_is_long(int pid);

/* Whose lock that is, in words; if it does not wait, whose lock is on the queue's tables. */
extern char *lock_wait_text(int pid, bool translated);

#endif							/* FEISHU_LOCK_WAIT_H */
