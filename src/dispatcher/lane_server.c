/*-------------------------------------------------------------------------
 *
 * src/dispatcher/lane_server.c
 *	  The server and credentials of a lane.
 *
 * While they cannot be looked up, the lane is held: that may be mended, so nothing is
 * failed for it.
 * A row's server is one that its owner had when the row was queued: a role may have
 * it dropped or renamed, and another make one of the same name, to be sent what
 * waits.  So a lane is held, too, when its server's owner is another than a row's.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "dispatcher/discover.h"
#include "dispatcher/dispatcher_internal.h"

/* A lane whose server cannot be looked up, or has another owner, is tried again so
 * often. */
#define LOOKUP_RETRY_MS		(60 * 1000)

/* A lane whose role is gone has its flows failed so often, some at a time. */
#define FAIL_LANE_MS		1000


/* Does a lane's role exist, and need it not wait for a place? */
static bool
may_go(const Lane *lane)
{
	return !lane->place.waiting && GetUserNameFromId(lane->key.roleid, true) != NULL;
}

/* Servers to look up: of those lanes that are wanted, if it is said which. */
typedef struct Lookup
{
	Lane	  **lanes;
	FlowServer **servers;
	int			num;
	Snapshot	snapshot;
	bool		(*is_wanted) (const Lane *lane);
} Lookup;

static void
lookup_all(void *arg)
{
	Lookup	   *lookup = arg;

	for (int i = 0; i < lookup->num; i++)
	{
		LaneKey    *key = &lookup->lanes[i]->key;

		if (lookup->is_wanted == NULL || lookup->is_wanted(lookup->lanes[i]))
			lookup->servers[i] = server_lookup_at(key->server, key->roleid, lookup->snapshot);
	}
}

/* False and the error when one cannot be looked up: then none is set. */
static bool
lookup_try(Lookup lookup, ErrorData **error)
{
	if (transaction_try(lookup_all, &lookup, error))
		return true;
	for (int i = 0; i < lookup.num; i++)
	{
		if (lookup.servers[i] != NULL)
			server_forget_secrets(lookup.servers[i]);
		lookup.servers[i] = NULL;
	}
	return false;
}

/* Those of lanes that may go, if all can be looked up; else NULL. */
void
lane_server_lookup_all(Lane **lanes, FlowServer **servers, int num, Snapshot snapshot)
{
	ErrorData  *error;

	memset(servers, 0, num * sizeof(FlowServer *));
	/* each will find its own */
	(void) lookup_try((Lookup) {lanes, servers, num, snapshot, may_go}, &error);
}

/* The server and credentials of a lane, or NULL, with the lane held. */
FlowServer *
lane_server_lookup(Lane *lane, Snapshot snapshot)
{
	FlowServer *server = NULL;
	ErrorData  *error;

	if (GetUserNameFromId(lane->key.roleid, true) == NULL)
	{
		/* no other role will ever have its OID: this cannot be mended */
		maintain_fail_lane(lane, "42704", _("the role that queued it was dropped"));
		lane_hold(lane, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAIL_LANE_MS),
				  NULL);
		return NULL;
	}
	if (!lookup_try((Lookup) {&lane, &server, 1, snapshot, NULL}, &error))
		lane_hold(lane,
				  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOKUP_RETRY_MS),
				  error->message);
	if (server != NULL)
		return server;
	if (discover_lane_is_empty(lane))
	{
		/* all are gone: there is nothing to hold, and nothing to tell */
		lane_close(lane);
		lane_hold(lane, 0, NULL);
	}
	else
		lane_log_hold(lane);
	return NULL;
}

/* Hold a lane that has rows which were queued when its server was another's. */
void
lane_server_hold(Lane *lane)
{
	lane_hold(lane,
			  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOKUP_RETRY_MS),
			  psprintf(_("server \"%s\" belonged to another role when its waiting flows were queued; a superuser can have them sent: SELECT feishu.resume_server(%s)"),
					   lane->key.server, quote_literal_cstr(lane->key.server)));
	lane_log_hold(lane);
}
