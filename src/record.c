/*-------------------------------------------------------------------------
 *
 * record.c
 *	  The dispatcher's writing: what became of flights, which lanes are held,
 *	  and what is too old.
 *
 * The ends of many flights are written by one UPDATE.  Those of flows that
 * others of their ordering key wait for also say who is next.
 *
 * Which end it is: an answer of the platform is final, unless it asks for
 * patience.  No answer, and a failure of the platform's own, are tried again
 * with the same key, so the platform starts the flow at most once.  If an
 * earlier attempt may have reached the platform and a later one is refused for
 * its key, or for what may be that, then the flow most likely ran and its
 * answer is lost: "unconfirmed".
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/record.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "guc.h"
#include "nls.h"
#include "origin.h"
#include "sqlrun.h"

/* Answers written by one statement: an array must stay well below 1 GB. */
#define RECORD_BYTES		(32 * 1024 * 1024)

/* Rows deleted or given up by one turn of the slow poll. */
#define MAINTENANCE_ROWS	5000


/* ---------- Deciding ---------- */

/* Full jitter: a random part of base * 2^(attempts - 1), at most the maximum. */
static TimestampTz
backoff_until(int attempts)
{
	double		ms = feishu_guc_retry_base_delay * pow(2.0, Min(attempts - 1, 30));

	ms = Min(ms, feishu_guc_retry_max_delay);
	ms *= pg_prng_double(&pg_global_prng_state);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), (int64) Max(ms, 1));
}

/* What went wrong, for the column error. */
static char *
describe(const FlowOutcome *outcome)
{
	StringInfoData text;
	const FlowResponse *response = outcome->response;

	initStringInfo(&text);
	if (outcome->for_token)
		appendStringInfoString(&text, _("could not obtain an access token: "));
	if (outcome->timeout_ms > 0)
		appendStringInfo(&text, _(outcome->reason), outcome->timeout_ms);
	else
		appendStringInfoString(&text, _(outcome->reason));
	if (outcome->http_status != 0)
		appendStringInfo(&text, _("; HTTP status %d"), outcome->http_status);
	if (outcome->error != NULL)
		appendStringInfo(&text, _("; %s"), outcome->error);
	if (response != NULL && response->inner_message != NULL)
		appendStringInfo(&text, _("; %s"), response->inner_message);
	else if (response != NULL && response->message != NULL)
		appendStringInfo(&text, _("; %s"), response->message);
	return text.data;
}

/* Try again later, or give up. */
static void
decide_retry(Flight *flight)
{
	TimestampTz next_at = backoff_until(flight->attempts);

	if (flight->attempts >= flight->max_attempts)
	{
		flight->state = 'f';
		flight->error = psprintf(_("%s; given up after %d attempts"),
								 flight->error, flight->attempts);
	}
	else if (next_at >= flight->expires_at)
	{
		flight->state = 'f';
		flight->error = psprintf(_("%s; given up because it expires"), flight->error);
	}
	else
	{
		flight->state = 'q';
		flight->next_at = next_at;
	}
}

void
record_decide(Flight *flight, const FlowOutcome *outcome)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);
	bool		before = flight->unanswered;

	flight->sqlstate = outcome->sqlstate;
	flight->response = outcome->response;
	flight->log_id = outcome->log_id;
	if (outcome->sqlstate != 0)
		flight->error = describe(outcome);

	switch (outcome->action)
	{
		case FLOW_SUCCEEDED:
			flight->attempts++;
			flight->state = 's';
			break;

		case FLOW_KEY_USED:
			flight->attempts++;
			flight->state = before || flight->own_key ? 'u' : 'f';
			break;

		case FLOW_FAIL:
			flight->attempts++;
			flight->state = before && outcome->sqlstate == ERRCODE_FEISHU_REFUSED ? 'u' : 'f';
			break;

		case FLOW_RETRY:
			flight->attempts++;
			flight->unanswered |= outcome->request_sent;
			decide_retry(flight);
			break;

		case FLOW_WAIT:
		case FLOW_STOP_APP:
		case FLOW_REFRESH_TOKEN:
			/* the app has to wait, not this flow to be punished */
			flight->state = 'q';
			flight->silent = true;
			break;
	}
	MemoryContextSwitchTo(old_context);
}

void
record_decide_error(Flight *flight, int sqlstate, const char *message)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = 'f';
	flight->sqlstate = sqlstate;
	flight->error = pstrdup(message);
	/* there may be memory later */
	if (sqlstate == ERRCODE_OUT_OF_MEMORY)
	{
		flight->attempts++;
		decide_retry(flight);
	}
	MemoryContextSwitchTo(old_context);
}

/* Why a flow that may not be sent any more has failed. */
static const char *
expired_text(void)
{
	return _("expired before it could be sent");
}

const char *
record_not_ours_text(void)
{
	return _("the database was copied while this flow was waiting; the original sends it");
}

/* What went wrong at the last attempt, if there was one, still matters. */
void
record_decide_expired(Flight *flight)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = 'f';
	flight->sqlstate = ERRCODE_FEISHU_TIMEOUT;
	flight->error = flight->last_error == NULL ? pstrdup(expired_text()) :
		psprintf("%s%s", flight->last_error, psprintf(_("; %s"), expired_text()));
	MemoryContextSwitchTo(old_context);
}

/*
 * A row that was queued in another database came here by replication: its role
 * is perhaps another one here, and the other database sends it.
 */
void
record_decide_not_ours(Flight *flight)
{
	flight->state = 'c';
	flight->error = MemoryContextStrdup(flight->context, record_not_ours_text());
}


/* ---------- Writing ---------- */

#define END_COLUMNS 13

/* One column of all ends, as arrays are built. */
typedef struct Column
{
	Oid			type;
	Datum	   *values;
	bool	   *nulls;
} Column;

static Datum
column_array(Column *column, int num)
{
	int16		length;
	bool		by_value;
	char		align;
	int			dims[1] = {num};
	int			lower[1] = {1};

	get_typlenbyvalalign(column->type, &length, &by_value, &align);
	return PointerGetDatum(construct_md_array(column->values, column->nulls, 1, dims, lower,
											  column->type, length, by_value, align));
}

static void
set_text(Column *column, int row, const char *text)
{
	column->nulls[row] = text == NULL;
	column->values[row] = text ? CStringGetTextDatum(text) : (Datum) 0;
}

/* Fill row of the columns from a flight. */
static void
fill_row(Column *columns, int row, const Flight *flight, TimestampTz now)
{
	const FlowResponse *response = flight->response;
	bool		finished = flight->state != 'q';
	TimestampTz at = finished ? now : flight->next_at;

	for (int i = 0; i < END_COLUMNS; i++)
		columns[i].nulls[row] = false;
	columns[0].values[row] = Int64GetDatum(flight->id);
	columns[1].values[row] = CharGetDatum(flight->state);
	columns[2].values[row] = Int32GetDatum(flight->attempts);
	columns[3].values[row] = BoolGetDatum(flight->unanswered);
	columns[4].values[row] = TimestampTzGetDatum(at);
	columns[4].nulls[row] = at == 0;
	columns[5].values[row] = Int64GetDatum(response ? response->code : 0);
	columns[5].nulls[row] = response == NULL || !response->has_code;
	set_text(&columns[6], row, response ? response->execution_id : NULL);
	set_text(&columns[7], row, response ? response->status : NULL);
	set_text(&columns[8], row, response ? response->inner_code : NULL);
	set_text(&columns[9], row, flight->log_id);
	set_text(&columns[10], row, flight->sqlstate ? unpack_sql_state(flight->sqlstate) : NULL);
	set_text(&columns[11], row, flight->error);
	columns[12].nulls[row] = response == NULL || response->body == NULL;
	columns[12].values[row] = columns[12].nulls[row] ? (Datum) 0 :
		JsonbPGetDatum(response->body);
}

/*
 * Who is next in the ordering keys of flights that have ended.  Not only if for
 * good: one that goes back to the queue may not be the first any more.
 */
static void
find_successors(Dispatch *dispatch, int num_ended)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT n.id, n.roleid, n.server, n.next_at"
		" FROM unnest($1, $2) AS k (server, ordering_key), LATERAL"
		" (SELECT o.id, o.roleid, o.server, o.next_at FROM feishu.outbox o"
		"  WHERE o.server = k.server AND o.ordering_key = k.ordering_key"
		"  AND o.state = 'q' ORDER BY o.id LIMIT 1) n",
		2, TEXTARRAYOID, TEXTARRAYOID);
	Column		columns[2] = {{.type = TEXTOID}, {.type = TEXTOID}};
	Datum		values[2];
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;
	int			num = 0;
	uint64		found;

	for (int i = 0; i < 2; i++)
	{
		columns[i].values = palloc(num_ended * sizeof(Datum));
		columns[i].nulls = palloc0(num_ended * sizeof(bool));
	}
	dlist_foreach(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flight->ordering_key == NULL || flight->is_behind)
			continue;
		set_text(&columns[0], num, flight->lane->server);
		set_text(&columns[1], num, flight->ordering_key);
		num++;
	}
	if (num == 0)
		return;

	for (int i = 0; i < 2; i++)
		values[i] = column_array(&columns[i], num);
	found = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL);
	for (uint64 row = 0; row < found; row++)
	{
		bool		is_null;
		Datum		next_at = sql_value(row, 4, &is_null);
		Lane	   *lane = discover_lane(dispatch,
										   TextDatumGetCString(sql_value(row, 3, NULL)),
										   DatumGetObjectId(sql_value(row, 2, NULL)));

		if (is_null || DatumGetTimestampTz(next_at) <= now)
			id_list_add(dispatch, &lane->ready, sql_int64(row, 1));
		else
			discover_expect_due(lane, DatumGetTimestampTz(next_at));
	}
}

/* Write the ends of all flights that have ended.  The flights stay. */
void
record_ended(Dispatch *dispatch)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu.outbox o SET state = e.state, attempts = e.attempts,"
		" unanswered = e.unanswered,"
		" next_at = CASE WHEN e.state = 'q' THEN e.at END,"
		" finished_at = CASE WHEN e.state <> 'q' THEN e.at END,"
		" code = e.code, execution_id = e.execution_id, flow_status = e.flow_status,"
		" flow_code = e.flow_code, log_id = e.log_id, sqlstate = e.sqlstate,"
		" error = e.error, response = e.response"
		" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
		" AS e (id, state, attempts, unanswered, at, code, execution_id, flow_status,"
		" flow_code, log_id, sqlstate, error, response)"
		" WHERE o.id = e.id AND o.state = 'q'",
		END_COLUMNS, INT8ARRAYOID, CHARARRAYOID, INT4ARRAYOID, BOOLARRAYOID,
		TIMESTAMPTZARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, JSONBARRAYOID);
	static const Oid types[END_COLUMNS] = {
		INT8OID, CHAROID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID
	};
	Column		columns[END_COLUMNS];
	Datum		values[END_COLUMNS];
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;
	int			num = 0;
	size_t		bytes = 0;

	for (int i = 0; i < END_COLUMNS; i++)
	{
		columns[i].type = types[i];
		columns[i].values = palloc(dispatch->num_ended * sizeof(Datum));
		columns[i].nulls = palloc(dispatch->num_ended * sizeof(bool));
	}
	dlist_foreach(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (!flight->silent)
		{
			fill_row(columns, num++, flight, now);
			if (flight->response != NULL && flight->response->body != NULL)
				bytes += VARSIZE(flight->response->body);
		}
		if (num > 0 && (bytes > RECORD_BYTES || !dlist_has_next(&dispatch->ended, iter.cur)))
		{
			for (int i = 0; i < END_COLUMNS; i++)
				values[i] = column_array(&columns[i], num);
			sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL);
			num = 0;
			bytes = 0;
		}
	}
	find_successors(dispatch, dispatch->num_ended);
}

/*
 * A row cannot be read: it fails, or is tried again later if it was memory that
 * was wanting.  The row is changed without being read.
 */
void
record_unreadable(Dispatch *dispatch, Lane *lane, int64 id, const ErrorData *error)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu.outbox SET attempts = attempts + $5,"
		" state = CASE WHEN $4 IS NULL OR attempts + 1 >= COALESCE(max_attempts, $6)"
		" THEN 'f' ELSE 'q' END::\"char\","
		" next_at = CASE WHEN attempts + 1 < COALESCE(max_attempts, $6) THEN $4 END,"
		" finished_at = CASE WHEN $4 IS NULL OR attempts + 1 >= COALESCE(max_attempts, $6)"
		" THEN now() END, sqlstate = $2, error = $3"
		" WHERE id = $1 AND state = 'q' RETURNING state = 'q'",
		6, INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT4OID, INT4OID);
	bool		again = error->sqlerrcode == ERRCODE_OUT_OF_MEMORY;
	TimestampTz next_at = backoff_until(1);
	Datum		values[6] = {
		Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
		CStringGetTextDatum(error->message),
		TimestampTzGetDatum(next_at),
		Int32GetDatum(again ? 1 : 0),
		Int32GetDatum(feishu_guc_max_attempts)
	};
	char		nulls[6] = {' ', ' ', ' ', again ? ' ' : 'n', ' ', ' '};

	if (sql_run(&statement, values, nulls, SPI_OK_UPDATE_RETURNING, NULL) == 0)
		return;
	if (DatumGetBool(sql_value(0, 1, NULL)))
		discover_expect_due(lane, next_at);
	else
	{
		/* others of its ordering key were passed over */
		discover_reopen(dispatch, id);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("feishu_flow could not read flow %lld: %s", (long long) id, error->message)));
	}
}

/* Write which lanes are held and why, where that has changed. */
void
record_holds(Dispatch *dispatch)
{
	static SqlStatement hold = SQL_STATEMENT(
		"INSERT INTO feishu.held_lane (server, roleid, reason, resume_at)"
		" VALUES ($1, $2, $3, $4) ON CONFLICT (server, roleid)"
		" DO UPDATE SET reason = EXCLUDED.reason, resume_at = EXCLUDED.resume_at",
		4, TEXTOID, OIDOID, TEXTOID, TIMESTAMPTZOID);
	static SqlStatement release = SQL_STATEMENT(
		"DELETE FROM feishu.held_lane WHERE server = $1 AND roleid = $2",
		2, TEXTOID, OIDOID);

	for (int i = 0; i < dispatch->num_lanes; i++)
	{
		Lane	   *lane = dispatch->lanes[i];
		Datum		values[4] = {
			CStringGetTextDatum(lane->server),
			ObjectIdGetDatum(lane->roleid),
			CStringGetTextDatum(lane->reason),
			TimestampTzGetDatum(lane->hold_until)
		};
		char		nulls[4] = {' ', ' ', ' ', TIMESTAMP_IS_NOEND(lane->hold_until) ? 'n' : ' '};

		if (strcmp(lane->reason, lane->told) == 0 &&
			(lane->reason[0] == '\0' || lane->hold_until == lane->told_until))
			continue;
		if (lane->reason[0] != '\0')
			sql_run(&hold, values, nulls, SPI_OK_INSERT, NULL);
		else
			sql_run(&release, values, NULL, SPI_OK_DELETE, NULL);
		strcpy(lane->told, lane->reason);
		lane->told_until = lane->hold_until;
	}
}


/* ---------- Maintenance ---------- */

/* Delete finished flows that are older than the retention; true if there may
 * be more. */
bool
record_purge(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu.outbox WHERE id IN (SELECT id FROM feishu.outbox"
		" WHERE finished_at < $1 ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
		2, TIMESTAMPTZOID, INT4OID);
	Datum		values[2] = {
		TimestampTzGetDatum(GetCurrentTimestamp() -
							(TimestampTz) feishu_guc_retention * USECS_PER_SEC),
		Int32GetDatum(MAINTENANCE_ROWS)
	};

	return sql_run(&statement, values, NULL, SPI_OK_DELETE, NULL) == MAINTENANCE_ROWS;
}

/*
 * Fail queued flows of a lane that are not under way.  For the index that has
 * them, those that may be sent at once and delayed ones are two kinds.
 */
#define FAIL_FLOWS(kind, which) \
	"UPDATE feishu.outbox SET state = 'f', next_at = NULL, finished_at = now()," \
	" sqlstate = $3, error = COALESCE(error || $7, $4)" \
	" WHERE id IN (SELECT id FROM feishu.outbox" \
	" WHERE server = $1 AND roleid = $2 AND state = 'q' AND next_at " kind which \
	" AND NOT id = ANY ((SELECT ids FROM feishu.claim " \
	" WHERE database = $6 AND system_identifier = $8)::bigint[])" \
	" LIMIT $5 FOR UPDATE SKIP LOCKED)"
#define FAIL_STATEMENT(kind, which) \
	SQL_STATEMENT(FAIL_FLOWS(kind, which), 8, TEXTOID, OIDOID, TEXTOID, TEXTOID, INT4OID, OIDOID, \
				  TEXTOID, INT8OID)
#define NUM_KINDS			2

/* Run such a statement; returns how many flows failed, and whether there may be
 * more. */
static uint64
fail_flows(SqlStatement *statements, const Lane *lane, const char *sqlstate,
		   const char *error, bool *more)
{
	Datum		values[8] = {
		CStringGetTextDatum(lane->server),
		ObjectIdGetDatum(lane->roleid),
		CStringGetTextDatum(sqlstate),
		CStringGetTextDatum(error),
		Int32GetDatum(MAINTENANCE_ROWS),
		origin_database(),
		CStringGetTextDatum(psprintf(_("; %s"), error)),
		origin_system()
	};
	uint64		failed = 0;

	*more = false;
	for (int i = 0; i < NUM_KINDS; i++)
	{
		uint64		num = sql_run(&statements[i], values, NULL, SPI_OK_UPDATE, NULL);

		failed += num;
		*more |= num >= MAINTENANCE_ROWS;
	}
	return failed;
}

/* Fail flows of a lane that can never be sent, some at a time. */
void
record_fail_lane(Dispatch *dispatch, Lane *lane, const char *sqlstate, const char *error)
{
	static SqlStatement statements[NUM_KINDS] = {
		FAIL_STATEMENT("IS NULL", ""),
		FAIL_STATEMENT("IS NOT NULL", "")
	};
	bool		more;

	/* flows of other roles may be next in their ordering keys */
	if (fail_flows(statements, lane, sqlstate, error, &more) > 0)
		discover_reopen(dispatch, 0);
	if (!more)
	{
		lane->more = false;
		lane->next_due = DT_NOEND;
		lane->ready.num = 0;
	}
}

/* Give up flows that have expired in lanes that are held or paused; those of
 * other lanes are found when they are claimed. */
void
record_expire_held(Dispatch *dispatch)
{
	static SqlStatement statements[NUM_KINDS] = {
		FAIL_STATEMENT("IS NULL", " AND expires_at < now()"),
		FAIL_STATEMENT("IS NOT NULL", " AND expires_at < now()")
	};

	for (int i = 0; i < dispatch->num_lanes; i++)
	{
		Lane	   *lane = dispatch->lanes[i];
		bool		more;

		if (lane->paused || lane->hold_until != 0)
			(void) fail_flows(statements, lane, unpack_sql_state(ERRCODE_FEISHU_TIMEOUT),
							  expired_text(), &more);
	}
}
