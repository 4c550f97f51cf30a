/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Settings of feishu_flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/guc.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "guc.h"

char	   *feishu_guc_server = NULL;
int			feishu_guc_timeout = 30 * 1000;
int			feishu_guc_connect_timeout = 5 * 1000;
int			feishu_guc_max_response_size = 16 * 1024;
int			feishu_guc_max_apps = 128;

/* What the codec reads at most (wirejson.c), well below jsonb's own limit. */
#define MAX_RESPONSE_SIZE_LIMIT	(128 * 1024)

void
guc_define_settings(void)
{
	/*
	 * A setting of the postmaster can only be made while the postmaster loads
	 * the library.  Loaded later, it has no effect, but is to be seen.
	 */
	GucContext	postmaster_context = process_shared_preload_libraries_in_progress ?
		PGC_POSTMASTER : PGC_SIGHUP;

	DefineCustomStringVariable("feishu_flow.server",
							   "Sets the foreign server used by calls that name none.",
							   NULL,
							   &feishu_guc_server,
							   "feishu",
							   PGC_USERSET, 0,
							   NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.timeout",
							"Sets the maximum time of a flow call, access token included.",
							"A timeout argument or the server's timeout option overrides it.",
							&feishu_guc_timeout,
							30 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.connect_timeout",
							"Sets the maximum time to establish a connection to the platform.",
							"It covers name lookup, TCP and TLS. The server's connect_timeout option overrides it.",
							&feishu_guc_connect_timeout,
							5 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_response_size",
							"Sets the size beyond which an answer is refused.",
							NULL,
							&feishu_guc_max_response_size,
							16 * 1024, 1, MAX_RESPONSE_SIZE_LIMIT,
							PGC_USERSET, GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_apps",
							"Sets how many apps the shared cache of access tokens has room for.",
							"When more are in use, the least recently used one is forgotten.",
							&feishu_guc_max_apps,
							128, 1, 10000,
							postmaster_context, 0,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("feishu_flow");
}
