/*-------------------------------------------------------------------------
 *
 * src/feishu_flow.c
 *	  Module entry.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"

#include "api/batch.h"
#include "app/limiter.h"
#include "base/guc.h"
#include "base/waiters.h"
#include "base/wakeup.h"
#include "call/clocks.h"
#include "call/stats.h"
#include "http/http.h"
#include "launcher/launcher.h"
#include "launcher/launcher_sessions.h"
#include "trigger/role.h"

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
	wakeup_request_shmem();
	waiters_request_shmem();
	apps_request_shmem();
	launcher_request_shmem();
	sessions_request_shmem();
	stats_request_shmem();
	clocks_request_shmem();
}

/* Set up or attach to shared memory. */
static void
feishu_flow_shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	wakeup_startup_shmem();
	waiters_startup_shmem();
	apps_startup_shmem();
	launcher_startup_shmem();
	sessions_startup_shmem();
	stats_startup_shmem();
	clocks_startup_shmem();
}

void
_PG_init(void)
{
	guc_define_settings();
	http_library_load();
	role_install_hooks();
	batch_install_hooks();

	if (!process_shared_preload_libraries_in_progress)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = feishu_flow_shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = feishu_flow_shmem_startup;
	launcher_register();
}
