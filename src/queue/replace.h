/*-------------------------------------------------------------------------
 *
 * src/queue/replace.h
 *	  Of flows with one replace_key, the last one wins: replace the one that waits.
 *
 * Private to src/queue/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_REPLACE_H
#define FEISHU_REPLACE_H

#include "queue/outbox.h"

/* In SQL: a row that is replaced by the next with its key; as the index has it. */
#define REPLACE_WAITS	"replaceable AND state OPERATOR(pg_catalog.=) 'q'"

/*
 * Write a row that is to be inserted over the one that waits with its replace_key;
 * returns the id of that; 0: there is none.
 */
extern int64 replace_waiting(const QueuedFlow *flow, Oid outbox, const Datum *values, const bool *nulls);

#endif							/* FEISHU_REPLACE_H */
