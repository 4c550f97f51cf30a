/*-------------------------------------------------------------------------
 *
 * src/dispatcher/lane.c
 *	  The dispatcher's lanes: what is known of the flows of one server and one
 *	  role, and what holds them.
 *
 * A lane is made when a row of it is found, and is never forgotten.  Whoever
 * changes what a lane has to do, or when, does so by the functions here, which
 * tell the schedule.
 *
 * A lane is held while the limiter has no place for its app, or while its
 * server cannot be looked up (lane_server.c).
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/lane.h"

/* Rows of a lane that could not be prepared make one line of the log in so long. */
#define POSTPONED_QUIET_MS	(60 * 1000)

static MemoryContext context;
static HTAB *lane_table;
static HTAB *site_table;
static HTAB *role_table;
static Lane **lanes = NULL;
static int	num_lanes = 0;
static int	max_lanes = 0;

/* Any lane has several tiers. */
static bool any_tiers = false;

/* Those whose hold feishu_internal.held_lane does not have. */
static dlist_head untold = DLIST_STATIC_INIT(untold);

static HTAB *
make_table(const char *name, Size key_size, Size entry_size)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = key_size;
	control.entrysize = entry_size;
	control.hcxt = context;
	return hash_create(name, 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Once a process. */
void
lane_init(void)
{
	context = AllocSetContextCreate(TopMemoryContext, "feishu_flow lanes", ALLOCSET_DEFAULT_SIZES);
	lane_table = make_table("feishu_flow lanes", sizeof(LaneKey), sizeof(Lane));
	site_table = make_table("feishu_flow servers", NAMEDATALEN, sizeof(Site));
	role_table = make_table("feishu_flow roles", sizeof(Oid), sizeof(Role));
}

static Site *
site_get(const char *server)
{
	char		key[NAMEDATALEN] = {0};
	Site	   *site;
	bool		found;

	strlcpy(key, server, sizeof(key));
	site = hash_search(site_table, key, HASH_ENTER, &found);
	if (!found)
		memset((char *) site + sizeof(key), 0, sizeof(Site) - sizeof(key));
	return site;
}

/* The share of a role, whatever servers its lanes have. */
static Role *
role_get(Oid roleid)
{
	Role  *entry;
	bool		found;

	entry = hash_search(role_table, &roleid, HASH_ENTER, &found);
	if (!found)
		memset((char *) entry + sizeof(roleid), 0, sizeof(Role) - sizeof(roleid));
	return entry;
}

/* The lane of a server and role, made when there is none yet. */
Lane *
lane_get(const char *server, Oid roleid)
{
	LaneKey		key;
	Site	   *site;
	Role  *role;
	Lane	   *lane;
	bool		found;

	memset(&key, 0, sizeof(key));
	strlcpy(key.server, server, sizeof(key.server));
	key.roleid = roleid;
	lane = hash_search(lane_table, &key, HASH_FIND, NULL);
	if (lane != NULL)
		return lane;

	/* what may throw comes before the lane is there */
	if (num_lanes == max_lanes)
	{
		int			max = Max(16, max_lanes * 2);

		lanes = lanes ? repalloc(lanes, max * sizeof(Lane *)) :
			MemoryContextAlloc(context, max * sizeof(Lane *));
		max_lanes = max;
	}
	site = site_get(server);
	role = role_get(roleid);
	lane = hash_search(lane_table, &key, HASH_ENTER, &found);
	memset((char *) lane + sizeof(key), 0, sizeof(Lane) - sizeof(key));
	lane->site = site;
	lane->role = role;
	lane->memory.share.whole = &role->memory;
	lanes[num_lanes++] = lane;
	return lane;
}

/* All lanes, in the order in which they were found; and how many. */
Lane *const *
lane_all(void)
{
	return lanes;
}

int
lane_count(void)
{
	return num_lanes;
}


/* ---------- Its tiers ---------- */

/* The tier of a priority, made when there is none yet. */
Tier *
lane_tier(Lane *lane, int16 priority)
{
	Tier	   *tier;
	int			place = 0;

	while (place < lane->num_tiers && lane->tiers[place]->priority > priority)
		place++;
	if (place < lane->num_tiers && lane->tiers[place]->priority == priority)
		return lane->tiers[place];

	/* what may throw comes before the tier is there */
	if (lane->num_tiers == lane->max_tiers)
	{
		int			max = Max(1, lane->max_tiers * 2);

		lane->tiers = lane->tiers ? repalloc(lane->tiers, max * sizeof(Tier *)) :
			MemoryContextAlloc(context, max * sizeof(Tier *));
		lane->max_tiers = max;
	}
	tier = tier_make(context, lane, priority);
	memmove(lane->tiers + place + 1, lane->tiers + place, (lane->num_tiers - place) * sizeof(Tier *));
	lane->tiers[place] = tier;
	any_tiers |= lane->num_tiers++ > 0;
	schedule_lane(lane);
	return tier;
}

/* When there may be rows of it to claim, were it not held; DT_NOEND: when somebody tells. */
TimestampTz
lane_work_at(const Lane *lane)
{
	TimestampTz at = DT_NOEND;

	for (int i = 0; i < lane->num_tiers; i++)
		at = Min(at, tier_work_at(lane->tiers[i]));
	return at;
}

/* Its highest tier that may have rows now; NULL: none. */
Tier *
lane_top(const Lane *lane, TimestampTz now)
{
	for (int i = 0; i < lane->num_tiers; i++)
	{
		if (tier_work_at(lane->tiers[i]) <= now)
			return lane->tiers[i];
	}
	return NULL;
}

/* Has its highest tier with rows others below it that are being sent? */
bool
lane_is_urgent(const Lane *lane, TimestampTz now)
{
	const Tier *top = lane->num_tiers > 1 ? lane_top(lane, now) : NULL;

	if (top == NULL || lane->paused || lane->hold_until > now)
		return false;
	for (int i = lane->num_tiers - 1; lane->tiers[i] != top; i--)
	{
		if (lane->tiers[i]->in_flight > 0)
			return true;
	}
	return false;
}

/* Does anybody use priorities? */
bool
lane_any_tiers(void)
{
	return any_tiers;
}

/* How many rows there are to claim now at most; of what was not looked at, so many. */
int
lane_most_rows(const Lane *lane, int most, TimestampTz now)
{
	int			num = 0;

	for (int i = 0; i < lane->num_tiers; i++)
	{
		const Tier *tier = lane->tiers[i];

		if (tier->more || tier->next_due <= now)
			return most;
		num += Min(tier->ready.num, most - num);
	}
	return num;
}

/* All rows from an id on are to be looked at, and all delayed ones at a time. */
void
lane_reopen(Lane *lane, int64 min_id, TimestampTz next_due)
{
	for (int i = 0; i < lane->num_tiers; i++)
		tier_reopen(lane->tiers[i], min_id, next_due);
}

/* Likewise of all lanes. */
void
lane_reopen_all(int64 min_id, TimestampTz next_due)
{
	for (int i = 0; i < num_lanes; i++)
		lane_reopen(lanes[i], min_id, next_due);
}

/* There is nothing to look at. */
void
lane_close(Lane *lane)
{
	for (int i = 0; i < lane->num_tiers; i++)
		tier_close(lane->tiers[i]);
}


/* ---------- What holds it ---------- */

/* Have the change of a hold written, if feishu_internal.held_lane has something else. */
static void
lane_tell_hold(Lane *lane)
{
	bool		is_new;

	if (lane->reason == NULL || lane->told == NULL)
		is_new = lane->reason != lane->told;
	else
		is_new = strcmp(lane->reason, lane->told) != 0 || lane->hold_until != lane->told_until;
	if (is_new && !lane->is_untold)
		dlist_push_tail(&untold, &lane->untold_node);
	if (!is_new && lane->is_untold)
		dlist_delete(&lane->untold_node);
	lane->is_untold = is_new;
}

/* Hold a lane until then (0: no more), with a reason or NULL. */
void
lane_hold(Lane *lane, TimestampTz until, const char *reason)
{
	char	   *before = lane->reason;

	if (before == NULL || reason == NULL || strcmp(before, reason) != 0)
	{
		lane->reason = reason ? MemoryContextStrdup(context, reason) : NULL;
		if (before != NULL)
			pfree(before);
	}
	lane->hold_until = until;
	lane_tell_hold(lane);
	schedule_lane(lane);
}

/* Why its app is paused, as held_lane has it; NULL: it is not. */
static const char *
app_pause(Lane *lane)
{
	LimiterStatus status;

	if (!lane->app_is_known || !limiter_status(&lane->app, lane->key.roleid, &status))
		return NULL;
	return status.pause == LIMITER_CREDENTIALS ? "credentials" :
		status.pause == LIMITER_QUOTA ? "quota" : NULL;
}

/* Write which lanes are held and why, where that has changed.  In a transaction. */
void
lane_write_holds(void)
{
	static SqlStatement hold = SQL_STATEMENT(
		"INSERT INTO feishu_internal.held_lane AS h (server, roleid, reason, resume_at, pause, since)"
		" VALUES ($1, $2, $3, $4, $5, clock_timestamp()) ON CONFLICT (server, roleid)"
		" DO UPDATE SET reason = EXCLUDED.reason, resume_at = EXCLUDED.resume_at, pause = EXCLUDED.pause,"
		" since = CASE WHEN h.pause IS NOT DISTINCT FROM EXCLUDED.pause THEN h.since ELSE EXCLUDED.since END",
		5, TEXTOID, OIDOID, TEXTOID, TIMESTAMPTZOID, TEXTOID);
	static SqlStatement release = SQL_STATEMENT(
		"DELETE FROM feishu_internal.held_lane WHERE server = $1 AND roleid = $2",
		2, TEXTOID, OIDOID);
	dlist_iter	iter;

	dlist_foreach(iter, &untold)
	{
		Lane	   *lane = dlist_container(Lane, untold_node, iter.cur);
		const char *pause = app_pause(lane);
		Datum		values[5] = {
			CStringGetTextDatum(lane->key.server),
			ObjectIdGetDatum(lane->key.roleid),
			lane->reason ? CStringGetTextDatum(lane->reason) : (Datum) 0,
			TimestampTzGetDatum(lane->hold_until),
			pause ? CStringGetTextDatum(pause) : (Datum) 0
		};
		char		nulls[5] = {
			' ', ' ', ' ', TIMESTAMP_IS_NOEND(lane->hold_until) ? 'n' : ' ', pause ? ' ' : 'n'
		};

		if (lane->reason != NULL)
			sql_run(&hold, values, nulls, SPI_OK_INSERT, NULL);
		else
			sql_run(&release, values, NULL, SPI_OK_DELETE, NULL);
	}
}

/* That transaction has committed. */
void
lane_holds_written(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &untold)
	{
		Lane	   *lane = dlist_container(Lane, untold_node, iter.cur);
		char	   *told = lane->reason ? MemoryContextStrdup(context, lane->reason) : NULL;

		if (lane->told != NULL)
			pfree(lane->told);
		lane->told = told;
		lane->told_until = lane->hold_until;
		dlist_delete(&lane->untold_node);
		lane->is_untold = false;
	}
}

/* A lane that is held looks again if that is still so. */
void
lane_look_again(Lane *lane, TimestampTz now)
{
	/* if its time has come, it looks */
	if (lane->hold_until == 0 || lane->turn.is_due)
		return;
	lane->hold_until = now;
	schedule_lane(lane);
}

/* Servers or mappings may have changed: the limiter, or the lookup, will say if lanes
 * are still held. */
void
lane_look_again_all(void)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < num_lanes; i++)
	{
		lanes[i]->app_is_known = false;
		lane_look_again(lanes[i], now);
	}
}

/*
 * After a turn: lanes that wait for a place among their app's calls ask again,
 * since the end of another call, here or in another process, wakes us; all
 * that are held do when an app's pause was ended, by a call that went well or by
 * resume_server.
 */
void
lane_ask_again_all(void)
{
	bool		pause_ended;
	bool		place_freed;
	TimestampTz now;

	if (!limiter_is_waiting())
		return;
	pause_ended = limiter_pause_ended();
	place_freed = limiter_place_freed();
	if (!pause_ended && !place_freed)
		return;
	/* one time for all: who had a place last is to be the last to ask */
	now = GetCurrentTimestamp();
	for (int i = 0; i < num_lanes; i++)
	{
		Lane	   *lane = lanes[i];

		if (lane->place.waiting && (pause_ended || TIMESTAMP_IS_NOEND(lane->hold_until)))
			lane_look_again(lane, now);
	}
}

/* By pause_server, or resume_server. */
void
lane_set_paused(Lane *lane, bool paused)
{
	/* others need not wait for a turn that it will not use */
	if (paused)
	{
		limiter_abandon(&lane->place);
		flight_memory_leave(lane);
	}
	if (lane->paused == paused)
		return;
	lane->paused = paused;
	schedule_lane(lane);
}

/* The log tells why a lane is held, once. */
void
lane_log_hold(Lane *lane)
{
	if (lane->told != NULL && strcmp(lane->told, lane->reason) == 0)
		return;
	ereport(LOG,
			(errmsg("feishu_flow holds back flows for server \"%s\": %s",
					lane->key.server, lane->reason)));
	lane->logged = true;
}


/* ---------- Its app ---------- */

/* Ask the limiter for a place, in the lane's turn. */
LimiterVerdict
lane_get_place(Lane *lane, const FlowServer *server, LimiterPlace *place,
			   TimestampTz *retry_at, LimiterPause *why)
{
	LimiterVerdict verdict = limiter_acquire(server, true, &lane->place, retry_at, why);

	if (verdict == LIMITER_GO)
	{
		*place = lane->place;
		memset(&lane->place, 0, sizeof(lane->place));
	}
	return verdict;
}

/* The lane wants no place now: others need not wait for its turn. */
void
lane_leave_app(Lane *lane)
{
	limiter_abandon(&lane->place);
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

/* Its last attempt got an answer, or none. */
void
lane_note_answer(Lane *lane, bool came)
{
	lane->suspect = !came;
}

/* A call was made of a row. */
void
lane_note_prepared(Lane *lane)
{
	lane->postponed = 0;
}

/*
 * What went wrong with a row is of the moment.  One line in the log tells of all within
 * a minute.
 */
void
lane_note_postponed(Lane *lane, int64 id, int sqlstate, const char *message)
{
	TimestampTz now = GetCurrentTimestamp();

	lane->postponed++;
	if (now >= lane->postponed_told &&
		now < TimestampTzPlusMilliseconds(lane->postponed_told, POSTPONED_QUIET_MS))
		return;
	lane->postponed_told = now;
	ereport(LOG,
			(errcode(sqlstate),
			 errmsg("feishu_flow could not prepare flow %lld, and tries again: %s",
					(long long) id, message)));
}
