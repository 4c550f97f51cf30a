/*-------------------------------------------------------------------------
 *
 * lane.c
 *	  The dispatcher's lanes: what is known of the flows of one server and one
 *	  role, and what holds them.
 *
 * A lane is made when a row of it is found, and is never forgotten.  Whoever
 * changes what a lane has to do, or when, does so by the functions here, which
 * tell the schedule.
 *
 * A lane is held while the limiter has no place for its app, or while its
 * server cannot be looked up: that may be mended, so nothing is failed for it.
 * A row's server is one that its owner had when the row was queued: a role may have
 * it dropped or renamed, and another make one of the same name, to be sent what
 * waits.  So a lane is held, too, when its server's owner is another than a row's.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/lane.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatch.h"

/* A lane whose server cannot be looked up, or has another owner, is tried again so
 * often. */
#define LOOKUP_RETRY_MS		(60 * 1000)

/* A lane whose role is gone has its flows failed so often, some at a time. */
#define FAIL_LANE_MS		1000


static Site *
site_get(Dispatch *dispatch, const char *server)
{
	char		key[NAMEDATALEN] = {0};
	Site	   *site;
	bool		found;

	strlcpy(key, server, sizeof(key));
	site = hash_search(dispatch->site_table, key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) site + sizeof(key), 0, sizeof(Site) - sizeof(key));
		dlist_init(&site->due);
	}
	return site;
}

/* The share of a role, whatever servers its lanes have. */
static RoleShare *
role_get(Dispatch *dispatch, Oid roleid)
{
	RoleShare  *entry;
	bool		found;

	entry = hash_search(dispatch->share_table, &roleid, HASH_ENTER, &found);
	if (!found)
		memset((char *) entry + sizeof(roleid), 0, sizeof(RoleShare) - sizeof(roleid));
	return entry;
}

Lane *
lane_get(Dispatch *dispatch, const char *server, Oid roleid)
{
	LaneKey		key;
	Site	   *site;
	RoleShare  *role;
	Lane	   *lane;
	bool		found;

	memset(&key, 0, sizeof(key));
	strlcpy(key.server, server, sizeof(key.server));
	key.roleid = roleid;
	lane = hash_search(dispatch->lane_table, &key, HASH_FIND, NULL);
	if (lane != NULL)
		return lane;

	/* what may throw comes before the lane is there */
	if (dispatch->num_lanes == dispatch->max_lanes)
	{
		int			max = Max(16, dispatch->max_lanes * 2);

		dispatch->lanes = dispatch->lanes ?
			repalloc(dispatch->lanes, max * sizeof(Lane *)) :
			MemoryContextAlloc(dispatch->context, max * sizeof(Lane *));
		dispatch->max_lanes = max;
	}
	site = site_get(dispatch, server);
	role = role_get(dispatch, roleid);
	lane = hash_search(dispatch->lane_table, &key, HASH_ENTER, &found);
	memset((char *) lane + sizeof(key), 0, sizeof(Lane) - sizeof(key));
	lane->site = site;
	lane->role = role;
	lane->share.whole = &role->memory;
	dlist_init(&lane->flights);
	lane->more = true;
	lane->due_floor = DT_NOBEGIN;
	lane->next_due = DT_NOEND;	/* who finds a delayed row says so */
	dispatch->lanes[dispatch->num_lanes++] = lane;
	schedule_lane(dispatch, lane);
	return lane;
}


/* ---------- What there is to do ---------- */

/* Add an id to a list, unless it is there; false without memory, with MCXT_ALLOC_NO_OOM. */
static bool
list_add(Dispatch *dispatch, IdList *list, int64 id, int flags)
{
	for (int i = 0; i < list->num; i++)
	{
		if (list->ids[i] == id)
			return true;
	}
	if (list->num == list->max)
	{
		int			max = Max(16, list->max * 2);
		int64	   *ids = MemoryContextAllocExtended(dispatch->context, max * sizeof(int64), flags);

		if (ids == NULL)
			return false;
		if (list->ids != NULL)
		{
			memcpy(ids, list->ids, list->num * sizeof(int64));
			pfree(list->ids);
		}
		list->ids = ids;
		list->max = max;
	}
	list->ids[list->num++] = id;
	return true;
}

void
lane_expect_row(Dispatch *dispatch, Lane *lane, int64 id)
{
	(void) list_add(dispatch, &lane->ready, id, 0);
	schedule_lane(dispatch, lane);
}

void
lane_give_back(Dispatch *dispatch, Lane *lane, int64 id)
{
	if (list_add(dispatch, &lane->ready, id, MCXT_ALLOC_NO_OOM))
		schedule_lane(dispatch, lane);
	else
		lane_reopen(dispatch, lane, id, 0);
}

void
lane_forget_row(Dispatch *dispatch, Lane *lane, int64 id)
{
	IdList	   *list = &lane->ready;

	for (int i = 0; i < list->num; i++)
	{
		if (list->ids[i] != id)
			continue;
		list->num--;
		memmove(list->ids + i, list->ids + i + 1, (list->num - i) * sizeof(int64));
		break;
	}
	schedule_lane(dispatch, lane);
}

void
lane_expect_due(Dispatch *dispatch, Lane *lane, TimestampTz next_at)
{
	if (next_at <= lane->due_floor)
	{
		lane->due_floor = next_at;
		lane->due_floor_id = 0;
	}
	if (next_at < lane->next_due)
	{
		lane->next_due = next_at;
		schedule_lane(dispatch, lane);
	}
}

void
lane_expect_more(Dispatch *dispatch, Lane *lane)
{
	lane->more = true;
	schedule_lane(dispatch, lane);
}

void
lane_reopen(Dispatch *dispatch, Lane *lane, int64 min_id, TimestampTz next_due)
{
	lane->cursor = Min(lane->cursor, Max(min_id, 1) - 1);
	lane->more = true;
	lane->due_floor = DT_NOBEGIN;
	lane->next_due = next_due;
	schedule_lane(dispatch, lane);
}

void
lane_close(Dispatch *dispatch, Lane *lane)
{
	lane->more = false;
	lane->next_due = DT_NOEND;
	lane->ready.num = 0;
	schedule_lane(dispatch, lane);
}


/* ---------- What holds it ---------- */

/* Have the change of a hold written, if feishu_internal.held_lane has something else. */
static void
lane_tell_hold(Dispatch *dispatch, Lane *lane)
{
	bool		is_news;

	if (lane->reason == NULL || lane->told == NULL)
		is_news = lane->reason != lane->told;
	else
		is_news = strcmp(lane->reason, lane->told) != 0 || lane->hold_until != lane->told_until;
	if (is_news && !lane->is_untold)
		dlist_push_tail(&dispatch->untold, &lane->untold_node);
	if (!is_news && lane->is_untold)
		dlist_delete(&lane->untold_node);
	lane->is_untold = is_news;
}

void
lane_hold(Dispatch *dispatch, Lane *lane, TimestampTz until, const char *reason)
{
	char	   *before = lane->reason;

	if (before == NULL || reason == NULL || strcmp(before, reason) != 0)
	{
		lane->reason = reason ? MemoryContextStrdup(dispatch->context, reason) : NULL;
		if (before != NULL)
			pfree(before);
	}
	lane->hold_until = until;
	lane_tell_hold(dispatch, lane);
	schedule_lane(dispatch, lane);
}

void
lane_write_holds(Dispatch *dispatch)
{
	static SqlStatement hold = SQL_STATEMENT(
		"INSERT INTO feishu_internal.held_lane (server, roleid, reason, resume_at)"
		" VALUES ($1, $2, $3, $4) ON CONFLICT (server, roleid)"
		" DO UPDATE SET reason = EXCLUDED.reason, resume_at = EXCLUDED.resume_at",
		4, TEXTOID, OIDOID, TEXTOID, TIMESTAMPTZOID);
	static SqlStatement release = SQL_STATEMENT(
		"DELETE FROM feishu_internal.held_lane WHERE server = $1 AND roleid = $2",
		2, TEXTOID, OIDOID);
	dlist_iter	iter;

	dlist_foreach(iter, &dispatch->untold)
	{
		Lane	   *lane = dlist_container(Lane, untold_node, iter.cur);
		Datum		values[4] = {
			CStringGetTextDatum(lane->key.server),
			ObjectIdGetDatum(lane->key.roleid),
			lane->reason ? CStringGetTextDatum(lane->reason) : (Datum) 0,
			TimestampTzGetDatum(lane->hold_until)
		};
		char		nulls[4] = {' ', ' ', ' ', TIMESTAMP_IS_NOEND(lane->hold_until) ? 'n' : ' '};

		if (lane->reason != NULL)
			sql_run(&hold, values, nulls, SPI_OK_INSERT, NULL);
		else
			sql_run(&release, values, NULL, SPI_OK_DELETE, NULL);
	}
}

void
lane_holds_told(Dispatch *dispatch)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &dispatch->untold)
	{
		Lane	   *lane = dlist_container(Lane, untold_node, iter.cur);
		char	   *told = lane->reason ? MemoryContextStrdup(dispatch->context, lane->reason) : NULL;

		if (lane->told != NULL)
			pfree(lane->told);
		lane->told = told;
		lane->told_until = lane->hold_until;
		dlist_delete(&lane->untold_node);
		lane->is_untold = false;
	}
}

void
lane_look_again(Dispatch *dispatch, Lane *lane, TimestampTz now)
{
	/* if its time has come, it looks */
	if (lane->hold_until == 0 || lane->is_due)
		return;
	lane->hold_until = now;
	schedule_lane(dispatch, lane);
}

void
lane_set_paused(Dispatch *dispatch, Lane *lane, bool paused)
{
	/* others need not wait for a turn that it will not use */
	if (paused)
	{
		limiter_abandon(&lane->place);
		flight_leave_memory(dispatch, lane);
	}
	if (lane->paused == paused)
		return;
	lane->paused = paused;
	schedule_lane(dispatch, lane);
}

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

void
lane_lookup_servers(Dispatch *dispatch, Lane **lanes, FlowServer **servers, int num)
{
	ErrorData  *error;

	memset(servers, 0, num * sizeof(FlowServer *));
	/* each will find its own */
	(void) lookup_try((Lookup) {lanes, servers, num, dispatch->snapshot, may_go}, &error);
}

/* The log tells why a lane is held, once. */
static void
lane_log_hold(Lane *lane)
{
	if (lane->told != NULL && strcmp(lane->told, lane->reason) == 0)
		return;
	ereport(LOG,
			(errmsg("feishu_flow holds back flows for server \"%s\": %s",
					lane->key.server, lane->reason)));
	lane->logged = true;
}

FlowServer *
lane_lookup_server(Dispatch *dispatch, Lane *lane)
{
	FlowServer *server = NULL;
	ErrorData  *error;

	if (GetUserNameFromId(lane->key.roleid, true) == NULL)
	{
		/* no other role will ever have its OID: this cannot be mended */
		maintain_fail_lane(dispatch, lane, "42704", _("the role that queued it was dropped"));
		lane_hold(dispatch, lane, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FAIL_LANE_MS),
				  NULL);
		return NULL;
	}
	if (!lookup_try((Lookup) {&lane, &server, 1, dispatch->snapshot, NULL}, &error))
		lane_hold(dispatch, lane,
				  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOKUP_RETRY_MS),
				  error->message);
	if (server != NULL)
		return server;
	if (discover_lane_is_empty(lane))
	{
		/* all are gone: there is nothing to hold, and nothing to tell */
		lane_close(dispatch, lane);
		lane_hold(dispatch, lane, 0, NULL);
	}
	else
		lane_log_hold(lane);
	return NULL;
}

void
lane_hold_for_owner(Dispatch *dispatch, Lane *lane)
{
	lane_hold(dispatch, lane,
			  TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOKUP_RETRY_MS),
			  psprintf(_("server \"%s\" belonged to another role when flows that wait were queued; a superuser can have them sent: SELECT feishu.resume_server(%s)"),
					   lane->key.server, quote_literal_cstr(lane->key.server)));
	lane_log_hold(lane);
}

/*
 * Note the app that flows of the lane are sent by.  The log does not tell of the
 * former one, if any, that it is no longer paused.
 */
void
lane_note_app(Lane *lane, const AppKey *app)
{
	LimiterStatus status;

	lane->app_is_known = true;
	if (memcmp(&lane->app, app, sizeof(AppKey)) == 0)
		return;
	if (limiter_status(&lane->app, lane->key.roleid, &status) &&
		(status.pause == LIMITER_BREAKER || status.pause == LIMITER_ROLE_BREAKER ||
		 status.pause == LIMITER_CREDENTIALS || status.pause == LIMITER_QUOTA))
		lane->logged = true;
	lane->app = *app;
}

void
lane_log_open(Lane *lane)
{
	const char *role = lane->logged ? GetUserNameFromId(lane->key.roleid, true) : NULL;

	if (role != NULL)
		ereport(LOG,
				(errmsg("feishu_flow sends flows of role \"%s\" for server \"%s\" again",
						role, lane->key.server)));
	lane->logged = false;
}
