/*-------------------------------------------------------------------------
 *
 * app_share.h
 *	  How roles share the tables of apps.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/app_share.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_APP_SHARE_H
#define FEISHU_APP_SHARE_H

#include "port/atomics.h"

/* What becomes of an app when there are more than there is room for. */
typedef enum AppLoss
{
	APP_LOSS_LIMITS,			/* it loses its limits to another one */
	APP_LOSS_TOKEN,				/* its token */
	APP_LOSS_NO_ROOM			/* there is no room for its limits: it waits */
} AppLoss;

/* Slots that a role may have without having to give up its own first. */
extern int	app_share_slots(int num_slots);

/* Slots that are left to roles with less than that. */
extern int	app_share_reserve(int num_slots);

/*
 * Tell the log of it, unless it was told so lately: a time in shared memory.  Not under a lock.  Does not throw.
 */
extern void app_share_log(pg_atomic_uint64 *logged_at, AppLoss loss);

#endif							/* FEISHU_APP_SHARE_H */
