/*-------------------------------------------------------------------------
 *
 * app_share.h
 *	  How roles share the tables of apps.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app_share.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_APP_SHARE_H
#define FEISHU_APP_SHARE_H

#include "port/atomics.h"

/* What an app that is not used lately loses to another one. */
typedef enum AppLoss
{
	APP_LOSS_LIMITS,
	APP_LOSS_TOKEN
} AppLoss;

/* Slots that a role may have without having to give up its own first. */
extern int	app_share_slots(int num_slots);

/*
 * Tell the log that an app was forgotten, unless it was told so lately: a
 * time in shared memory.  Not under a lock.  Does not throw.
 */
extern void app_share_log_eviction(pg_atomic_uint64 *logged_at, AppLoss loss);

#endif							/* FEISHU_APP_SHARE_H */
