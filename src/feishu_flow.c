/*-------------------------------------------------------------------------
 *
 * feishu_flow.c
 *	  Module entry.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/feishu_flow.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"

#include "guc.h"
#include "token.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/* Reserve shared memory. */
static void
feishu_flow_shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	token_request_shmem();
}

/* Set up or attach to shared memory. */
static void
feishu_flow_shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	token_startup_shmem();
}

void
_PG_init(void)
{
	guc_define_settings();

	if (!process_shared_preload_libraries_in_progress)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = feishu_flow_shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = feishu_flow_shmem_startup;
}
