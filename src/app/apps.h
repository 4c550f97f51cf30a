/*-------------------------------------------------------------------------
 *
 * apps.h
 *	  Hooks of the postmaster for the table of apps.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/apps.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_APPS_H
#define FEISHU_APPS_H

extern void apps_request_shmem(void);
extern void apps_startup_shmem(void);

#endif							/* FEISHU_APPS_H */
