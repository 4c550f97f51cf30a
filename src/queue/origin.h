/*-------------------------------------------------------------------------
 *
 * src/queue/origin.h
 *	  In which database of which cluster a row of the queue was queued.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ORIGIN_H
#define FEISHU_ORIGIN_H

/* The columns system_identifier and database of what is queued here. */
extern Datum origin_system(void);
extern Datum origin_database(void);
extern bool origin_is_ours(Datum system_identifier, Datum database);
extern bool origin_may_be_ours(Datum system_identifier, Datum database);
extern void origin_settle(void);

#endif							/* FEISHU_ORIGIN_H */
