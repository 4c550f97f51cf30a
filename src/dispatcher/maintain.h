/*-------------------------------------------------------------------------
 *
 * maintain.h
 *	  Flows that have expired, and old ones.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/maintain.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_MAINTAIN_H
#define FEISHU_MAINTAIN_H

#include "datatype/timestamp.h"

#include "dispatcher/lane.h"

extern bool maintain_expire(TimestampTz now);
extern bool maintain_purge(TimestampTz now);
extern void maintain_fail_lane(Lane *lane, const char *sqlstate, const char *error);
extern void maintain_expect(TimestampTz expires_at);
extern void maintain_begin_anew(void);

#endif							/* FEISHU_MAINTAIN_H */
