/*-------------------------------------------------------------------------
 *
 * src/base/guc.c
 *	  Settings of feishu_flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "base/guc.h"
#include "base/sandbox_setting.h"

char	   *feishu_guc_server = NULL;
int			feishu_guc_timeout = DEFAULT_TIMEOUT_MS;
int			feishu_guc_connect_timeout = DEFAULT_CONNECT_TIMEOUT_MS;
int			feishu_guc_max_concurrent_calls = 32;
int			feishu_guc_max_connection_age = 5 * 60 * 1000;
int			feishu_guc_max_response_size = 16 * 1024;
int			feishu_guc_max_request_size = 16 * 1024;
int			feishu_guc_max_apps = 128;
int			feishu_guc_retry_base_delay = 1000;
int			feishu_guc_retry_max_delay = 5 * 60 * 1000;
bool		feishu_guc_dispatch = true;
int			feishu_guc_poll_interval = 60 * 1000;
int			feishu_guc_max_in_flight = 256;
int			feishu_guc_max_attempts = 20;
int			feishu_guc_max_age = 24 * 60 * 60;
int			feishu_guc_retention = 7 * 24 * 60 * 60;
int			feishu_guc_retention_failed = 30 * 24 * 60 * 60;
int			feishu_guc_track_flows = 1000;
int			feishu_guc_max_handlers = 2;
int			feishu_guc_handler_timeout = 60 * 1000;
int			feishu_guc_handler_attempts = 10;
double		feishu_guc_rate_share = 1.0;

/* To be called once, from _PG_init. */
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

	DefineCustomStringVariable(SANDBOX_SETTING,
							   "Sets the answer of servers that are sandboxes.",
							   "It is the body of an answer, or an HTTP status and what follows it. It counts if who set it is a superuser or owns the server.",
							   &feishu_guc_sandbox_response,
							   "",
							   PGC_USERSET, 0,
							   sandbox_setting_check, sandbox_setting_assign, NULL);

	DefineCustomIntVariable("feishu_flow.timeout",
							"Sets the maximum time of a flow call, access token included.",
							"A timeout argument or the server's timeout option overrides it.",
							&feishu_guc_timeout,
							DEFAULT_TIMEOUT_MS, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.connect_timeout",
							"Sets the maximum time to establish a connection to the platform.",
							"It covers name lookup, TCP and TLS. The server's connect_timeout option overrides it.",
							&feishu_guc_connect_timeout,
							DEFAULT_CONNECT_TIMEOUT_MS, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_concurrent_calls",
							"Sets how many calls of one feishu.execute_flows may be under way at once.",
							"The server's max_rate and max_concurrency options hold, too.",
							&feishu_guc_max_concurrent_calls,
							32, 1, 256,
							PGC_USERSET, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_connection_age",
							"Sets the age from which a connection to the platform takes no new requests.",
							"The name of the platform is then resolved again, as its address may have changed.",
							&feishu_guc_max_connection_age,
							5 * 60 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_response_size",
							"Sets the size beyond which an answer is refused.",
							NULL,
							&feishu_guc_max_response_size,
							16 * 1024, 1, MAX_RESPONSE_SIZE_LIMIT,
							PGC_USERSET, GUC_UNIT_KB,
							NULL, NULL, NULL);

	/* not for everybody: a queued request is in memory of the dispatcher */
	DefineCustomIntVariable("feishu_flow.max_request_size",
							"Sets the size beyond which a request is refused.",
							"The size is that of the request as it is sent, with all digits of numbers. It is checked when a flow is queued and when it is sent.",
							&feishu_guc_max_request_size,
							16 * 1024, 1, MAX_REQUEST_SIZE_LIMIT,
							PGC_SUSET, GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_apps",
							"Sets the number of apps in the shared cache of access tokens and in the limiter.",
							"When more are in use, the one used least recently is forgotten.",
							&feishu_guc_max_apps,
							128, 1, MAX_APPS_LIMIT,
							postmaster_context, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.track_flows",
							"Sets the number of flows for which statistics are kept.",
							"When more are called, those called least are dropped. Zero turns the statistics off.",
							&feishu_guc_track_flows,
							1000, 0, 100000,
							postmaster_context, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_in_flight",
							"Sets how many queued flows of a database may be under way at once.",
							"It holds for all servers and roles together. With 1, a flow that hangs holds up all others until its timeout.",
							&feishu_guc_max_in_flight,
							256, 1, 4096,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_attempts",
							"Sets how often a queued flow is tried before it is given up.",
							"Attempts during which the dispatcher ends count, too. A max_attempts argument of enqueue_flow overrides it.",
							&feishu_guc_max_attempts,
							20, 1, INT_MAX,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_age",
							"Sets the time after run_at after which a queued flow fails.",
							"An expires_at argument of enqueue_flow overrides it.",
							&feishu_guc_max_age,
							24 * 60 * 60, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.retention",
							"Sets how long flows that succeeded or were cancelled are kept.",
							NULL,
							&feishu_guc_retention,
							7 * 24 * 60 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.retention_failed",
							"Sets how long flows that failed or are unconfirmed are kept.",
							NULL,
							&feishu_guc_retention_failed,
							30 * 24 * 60 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomBoolVariable("feishu_flow.dispatch",
							 "Sends queued flows.",
							 "When off, no dispatcher runs, and flows wait in the queue.",
							 &feishu_guc_dispatch,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.poll_interval",
							"Sets the interval at which launcher and dispatchers look for work of which they were not notified.",
							NULL,
							&feishu_guc_poll_interval,
							60 * 1000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.retry_base_delay",
							"Sets the longest delay after a first failure.",
							"It doubles with each further failure.",
							&feishu_guc_retry_base_delay,
							1000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.retry_max_delay",
							"Sets the longest delay between two attempts.",
							NULL,
							&feishu_guc_retry_max_delay,
							5 * 60 * 1000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.max_handlers",
							"Sets how many handlers of a database may be called at once.",
							"Each is called in a background worker, which stays for a minute without work. Handlers of one role are called one after the other.",
							&feishu_guc_max_handlers,
							2, 1, MAX_HANDLERS_LIMIT,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.handler_timeout",
							"Sets the maximum time of a handler.",
							"One that takes longer is rolled back, and called again later.",
							&feishu_guc_handler_timeout,
							60 * 1000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("feishu_flow.handler_attempts",
							"Sets how often a handler that fails is called before it is given up.",
							NULL,
							&feishu_guc_handler_attempts,
							10, 1, INT_MAX,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomRealVariable("feishu_flow.rate_share",
							 "Sets this PostgreSQL server's share of each max_rate and max_concurrency.",
							 "For clusters in which several PostgreSQL servers send for one app. At least one call may be under way.",
							 &feishu_guc_rate_share,
							 1.0, MIN_RATE_SHARE, 1.0,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	MarkGUCPrefixReserved("feishu_flow");
}
