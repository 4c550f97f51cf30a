/*-------------------------------------------------------------------------
 *
 * src/app/limits_file.h
 *	  The file in which limits of apps outlive shared memory.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LIMITS_FILE_H
#define FEISHU_LIMITS_FILE_H

#include "app/rate.h"
#include "app/server.h"

#define LIMITS_FILE		"pg_stat/feishu_flow_limits"

/* What is kept of one app.  Plain data, without a secret. */
typedef struct LimitsRecord
{
	AppKey		key;
	Oid			payer;
	uint32		allowance;		/* requests that may have gone out since */
	int64		span;			/* of AppGate */
	TimestampTz rate_until;		/* likewise */
	RateHistory history;
} LimitsRecord;

extern int	limits_file_write(const LimitsRecord *records, int num_records);
extern int	limits_file_read(LimitsRecord **records);
extern void limits_file_remove(void);

#endif							/* FEISHU_LIMITS_FILE_H */
