/*-------------------------------------------------------------------------
 *
 * transaction.h
 *	  The dispatcher's transactions.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/transaction.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TRANSACTION_H
#define FEISHU_TRANSACTION_H

/* Reset each turn; the current memory context outside of what has its own. */
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

#endif							/* FEISHU_TRANSACTION_H */
