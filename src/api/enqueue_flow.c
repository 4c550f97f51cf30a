/*-------------------------------------------------------------------------
 *
 * src/api/enqueue_flow.c
 *	  SQL function enqueue_flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "api/arguments.h"
#include "app/server.h"
#include "queue/outbox.h"
#include "queue/pushdown.h"

PG_FUNCTION_INFO_V1(feishu_enqueue_flow);

/* Positions of enqueue_flow's arguments behind those of arguments.h. */
#define ARG_SERVER			7
#define ARG_RUN_AT			8
#define ARG_ORDERING_KEY	9
#define ARG_MAX_ATTEMPTS	10
#define ARG_EXPIRES_AT		11
#define ARG_ON_END			12
#define ARG_REPLACE_KEY		13
#define ARG_PRIORITY		14


/*
 * enqueue_flow(namespace, flow_id, operator, params, is_async, idempotent_key,
 * loop_masks, server, run_at, ordering_key, max_attempts, expires_at, on_end,
 * replace_key, priority)
 */
Datum
feishu_enqueue_flow(PG_FUNCTION_ARGS)
{
	QueuedFlow	flow = {0};
	FlowServer *server;
	int64		id;

	server = server_lookup(PG_ARGISNULL(ARG_SERVER) ? NULL :
						   NameStr(*PG_GETARG_NAME(ARG_SERVER)),
						   GetUserId());
	flow.roleid = GetUserId();
	flow.server = server->name;
	flow.server_owner = server->owner;
	flow.request = *arguments_read(fcinfo, server->operator_json);
	server_forget_secrets(server);
	if (PG_ARGISNULL(4))
		flow.request.is_async = true;
	flow.run_at = PG_ARGISNULL(ARG_RUN_AT) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(ARG_RUN_AT);
	if (!PG_ARGISNULL(ARG_ORDERING_KEY))
		flow.ordering_key = text_to_cstring(PG_GETARG_TEXT_PP(ARG_ORDERING_KEY));
	flow.max_attempts = PG_ARGISNULL(ARG_MAX_ATTEMPTS) ? -1 : PG_GETARG_INT32(ARG_MAX_ATTEMPTS);
	if (!PG_ARGISNULL(ARG_MAX_ATTEMPTS) && flow.max_attempts < 1)
		flow.max_attempts = 0;	/* refused by check_delivery */
	flow.expires_at = PG_ARGISNULL(ARG_EXPIRES_AT) ? DT_NOBEGIN :
		OUTBOX_GIVEN_EXPIRY(PG_GETARG_TIMESTAMPTZ(ARG_EXPIRES_AT));
	if (!PG_ARGISNULL(ARG_ON_END))
		flow.on_end = text_to_cstring(PG_GETARG_TEXT_PP(ARG_ON_END));
	if (!PG_ARGISNULL(ARG_REPLACE_KEY))
		flow.replace_key = text_to_cstring(PG_GETARG_TEXT_PP(ARG_REPLACE_KEY));
	if (!PG_ARGISNULL(ARG_PRIORITY))
		flow.priority = PG_GETARG_INT32(ARG_PRIORITY);

	id = outbox_insert(&flow);
	pushdown_warn();
	PG_RETURN_INT64(id);
}
