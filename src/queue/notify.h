/*-------------------------------------------------------------------------
 *
 * src/queue/notify.h
 *	  What a transaction has to tell the dispatcher, and those who wait, at its
 *	  end.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_NOTIFY_H
#define FEISHU_NOTIFY_H

/* All of these are to be called in a transaction, and do not throw but for want
 * of memory. */

extern void notify_row(int64 id);
extern void notify_locked_row(int64 id);

/*
 * At commit, wake those who wait for a flow of this database, because it has
 * ended; or all who wait, because some have.  Whoever writes the end of a flow,
 * the dispatcher included, is to call one of them in that transaction.
 */
extern void notify_ended(int64 id);
extern void notify_ended_some(void);
extern void notify_control(void);
extern void notify_handler(Oid roleid, int64 number);

#endif							/* FEISHU_NOTIFY_H */
