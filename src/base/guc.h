/*-------------------------------------------------------------------------
 *
 * src/base/guc.h
 *	  Settings of feishu_flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_GUC_H
#define FEISHU_GUC_H

/* What a call has if nobody says otherwise. */
#define DEFAULT_TIMEOUT_MS			(30 * 1000)
#define DEFAULT_CONNECT_TIMEOUT_MS	(8 * 1000)

/* The most that feishu_flow.max_apps can be. */
#define MAX_APPS_LIMIT	10000

/* In kB: what the codec reads at most (wirejson.c), well below jsonb's own limit, and
 * what it writes (WIRE_MAX_REQUEST). */
#define MAX_RESPONSE_SIZE_LIMIT	(128 * 1024)
#define MAX_REQUEST_SIZE_LIMIT	(512 * 1024)

/* The least that feishu_flow.rate_share can be: more than nothing. */
#define MIN_RATE_SHARE			0.001

/* The most that feishu_flow.max_handlers can be. */
#define MAX_HANDLERS_LIMIT		256

extern char *feishu_guc_server;	/* server used when a call names none */
extern int	feishu_guc_timeout; /* ms, a whole call */
extern int	feishu_guc_connect_timeout; /* ms, name lookup + TCP + TLS */
extern int	feishu_guc_max_concurrent_calls;	/* of one execute_flows */
extern int	feishu_guc_max_connection_age;	/* ms, then it takes no more requests */
extern int	feishu_guc_max_response_size;	/* kB */
extern int	feishu_guc_max_request_size;	/* kB, as written */
extern int	feishu_guc_track_flows; /* entries of the statistics */
extern int	feishu_guc_max_handlers;	/* sessions of a database */
extern int	feishu_guc_handler_timeout; /* ms */
extern int	feishu_guc_handler_attempts;
extern int	feishu_guc_max_apps;	/* slots of the table of apps */
extern int	feishu_guc_retry_base_delay;	/* ms, after the first failure */
extern int	feishu_guc_retry_max_delay; /* ms */
extern double feishu_guc_rate_share;	/* of max_rate and max_concurrency */
extern bool feishu_guc_dispatch;	/* are queued flows to be sent? */
extern int	feishu_guc_poll_interval;	/* ms, between looks without a wake-up */

extern int	feishu_guc_max_in_flight;	/* requests of one dispatcher at once */
extern int	feishu_guc_max_attempts;
extern int	feishu_guc_max_age; /* s, from run_at until a flow is given up */
extern int	feishu_guc_retention;	/* s, that flows which went well are kept */
extern int	feishu_guc_retention_failed;	/* s, that others are */

extern void guc_define_settings(void);

#endif							/* FEISHU_GUC_H */
