/*-------------------------------------------------------------------------
 *
 * work.h
 *	  What the dispatcher does in a transaction.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/work.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WORK_H
#define FEISHU_WORK_H

#include "datatype/timestamp.h"

/* That somebody has locked the tables is told when it has lasted so long. */
#define WORK_LOCKED_TOLD_MS	1000

extern bool work_take_news(void);
extern bool work_is_due(void);
extern void work_do(void);
extern TimestampTz work_next(void);
extern void work_poll_within_interval(void);
extern void work_log_failure(const ErrorData *error);

#endif							/* FEISHU_WORK_H */
