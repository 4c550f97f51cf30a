/*-------------------------------------------------------------------------
 *
 * src/base/lock_wait.h
 *	  Whose lock keeps a dispatcher from its queue.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LOCK_WAIT_H
#define FEISHU_LOCK_WAIT_H

extern bool lock_wait_is_long(int pid);
extern char *lock_wait_text(int pid, bool translated);

#endif							/* FEISHU_LOCK_WAIT_H */
