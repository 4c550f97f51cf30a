/*-------------------------------------------------------------------------
 *
 * src/base/worker_settings.h
 *	  Settings of PostgreSQL that a background worker has as its own.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WORKER_SETTINGS_H
#define FEISHU_WORKER_SETTINGS_H

extern void worker_settings_apply(void);

#endif							/* FEISHU_WORKER_SETTINGS_H */
