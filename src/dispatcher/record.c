/*-------------------------------------------------------------------------
 *
 * record.c
 *	  The dispatcher's writing: what became of flights, and which rows cannot be
 *	  read.
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
 * src/dispatcher/record.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "call/report.h"
#include "dispatcher/dispatch.h"
#include "queue/notify.h"
#include "queue/on_end.h"
#include "queue/origin.h"
#include "queue/record_text.h"

/* Answers written by one statement, if they are several: it takes their size a few
 * times. */
#define RECORD_BYTES		(1024 * 1024)

/*
 * Rows of a lane that could not be prepared make one line of the log in so long,
 * and do not make it wait as long as a platform that is silent.
 */
#define POSTPONED_QUIET_MS	(60 * 1000)
#define POSTPONED_MOST		4


/*
 * A flow that the peer refuses to look at waits as if it had been tried so often, for
 * nothing counts these times.
 */
#define REFUSED_ATTEMPTS	4


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

/* Try again later, as after so many attempts, or give up. */
static void
decide_retry(Flight *flight, int attempts)
{
	TimestampTz next_at = backoff_until(attempts);

	if (flight->attempts >= flight->max_attempts)
	{
		flight->state = 'f';
		flight->error = psprintf(_("%s; given up after %d attempts"),
								 flight->error, flight->attempts);
		flight->report = psprintf("%s\n%s", flight->report,
								  psprintf(_("Given up after %d attempts."), flight->attempts));
	}
	else if (next_at >= flight->expires_at)
	{
		flight->state = 'f';
		flight->error = psprintf(_("%s; given up because it expires"), flight->error);
		flight->report = psprintf("%s\n%s", flight->report, _("Given up because it expires."));
	}
	else
	{
		flight->state = 'q';
		flight->next_at = next_at;
	}
}

/*
 * What went wrong with a lane's row is of the moment: when to look at it again.
 * One line in the log tells of all within a minute.
 */
static TimestampTz
postpone(Lane *lane, int64 id, int sqlstate, const char *message)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < lane->postponed_told ||
		now >= TimestampTzPlusMilliseconds(lane->postponed_told, POSTPONED_QUIET_MS))
	{
		lane->postponed_told = now;
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("feishu_flow could not prepare flow %lld, and tries again: %s",
						(long long) id, message)));
	}
	lane->postponed = Min(lane->postponed + 1, POSTPONED_MOST);
	return backoff_until(lane->postponed);
}

/*
 * This process is short of something that the call needs: nothing was sent, and
 * its flow goes back as if it was not tried.  The lane waits.
 */
static void
decide_local(Flight *flight)
{
	flight->state = 'q';
	flight->silent = true;
	flight->hold_until = postpone(flight->lane, flight->id, ERRCODE_INSUFFICIENT_RESOURCES,
								  flight->error);
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
	{
		flight->error = record_error(outcome);
		flight->report = record_report(outcome);
		flight->hint = report_hint(outcome);
	}

	if (outcome->trouble == HTTP_TROUBLE_LOCAL && !outcome->request_sent)
	{
		decide_local(flight);
		MemoryContextSwitchTo(old_context);
		return;
	}
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
			if (outcome->trouble == HTTP_TROUBLE_REFUSED)
			{
				/* the peer says that this was none */
				decide_retry(flight, Max(flight->attempts, REFUSED_ATTEMPTS));
				break;
			}
			flight->attempts++;
			flight->unanswered |= outcome->request_sent;
			decide_retry(flight, flight->attempts);
			break;

		case FLOW_WAIT:
		case FLOW_STOP_APP:
		case FLOW_REFRESH_TOKEN:
			/* the app has to wait, not this flow to be punished */
			flight->state = 'q';
			flight->silent = true;
			break;
	}
	if (flight->state == 'u')
		flight->hint = pstrdup(record_unconfirmed_hint());
	MemoryContextSwitchTo(old_context);
}

void
record_decide_error(Flight *flight, int sqlstate, const char *message)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = 'f';
	flight->sqlstate = sqlstate;
	flight->error = pstrdup(message);
	MemoryContextSwitchTo(old_context);
}

/*
 * Is what went wrong with a row damaged, or wrong, for good?  Anything else (no
 * memory, no descriptors, an I/O error, a deadlock) may be otherwise the next time.
 */
bool
record_is_lasting(int sqlstate)
{
	int			category = ERRCODE_TO_CATEGORY(sqlstate);

	return category == ERRCODE_DATA_EXCEPTION || category == ERRCODE_INTERNAL_ERROR ||
		category == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

/* It could not be sent now, for no fault of its own: no attempt is counted. */
void
record_decide_postponed(Flight *flight, int sqlstate, const char *message)
{
	flight->state = 'q';
	flight->sqlstate = sqlstate;
	flight->error = MemoryContextStrdup(flight->context, message);
	flight->next_at = postpone(flight->lane, flight->id, sqlstate, message);
}

/* What went wrong at the last attempt, if there was one, still matters. */
void
record_decide_expired(Flight *flight)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = 'f';
	flight->sqlstate = ERRCODE_FEISHU_TIMEOUT;
	flight->error = flight->last_error == NULL ? pstrdup(record_expired_text()) :
		psprintf("%s%s", flight->last_error, psprintf(_("; %s"), record_expired_text()));
	flight->report = psprintf("%s\n%s", record_expired_text(),
							  flight->last_error ? flight->last_error : "");
	flight->hint = pstrdup(record_expired_hint());
	MemoryContextSwitchTo(old_context);
}

/*
 * All attempts were made, the last of which ended with its dispatcher: it is not
 * sent again.
 */
void
record_decide_exhausted(Flight *flight)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = flight->unanswered ? 'u' : 'f';
	flight->sqlstate = ERRCODE_FEISHU_TIMEOUT;
	flight->error = psprintf(_("%s; given up after %d attempts"),
							 flight->last_error ? flight->last_error :
							 _("the dispatcher ended before an answer came"),
							 flight->attempts);
	flight->report = psprintf("%s\n%s", _("the dispatcher ended before an answer came"),
							  flight->error);
	if (flight->state == 'u')
		flight->hint = pstrdup(record_unconfirmed_hint());
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

/* Its row came by another way than enqueue_flow, or the bound was lowered since. */
void
record_decide_too_large(Flight *flight, int max_kilobytes)
{
	MemoryContext old_context = MemoryContextSwitchTo(flight->context);

	flight->state = 'f';
	flight->sqlstate = ERRCODE_INVALID_PARAMETER_VALUE;
	flight->error = psprintf(_("the request is too large to be sent: with all digits of its numbers it has more than %d kB, which is feishu_flow.max_request_size"),
							 max_kilobytes);
	MemoryContextSwitchTo(old_context);
}


/* ---------- Writing ---------- */

#define END_COLUMNS 15

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
	set_text(&columns[12], row, flight->report);
	set_text(&columns[13], row, flight->hint);
	columns[14].nulls[row] = response == NULL || response->body == NULL;
	columns[14].values[row] = columns[14].nulls[row] ? (Datum) 0 :
		JsonbPGetDatum(response->body);
}

/* Who is next in the ordering keys of flights that have ended. */
static void
find_successors(Dispatch *dispatch)
{
	OrderingKey *keys = palloc(Max(dispatch->num_ended, 1) * sizeof(OrderingKey));
	dlist_iter	iter;
	int			num = 0;

	dlist_foreach(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);

		if (flight->ordering_key == NULL || flight->is_behind || !flight->recorded)
			continue;
		keys[num].server = flight->lane->key.server;
		keys[num].roleid = flight->lane->key.roleid;
		keys[num].key = flight->ordering_key;
		keys[num++].id = flight->id;
	}
	ordering_find_successors(dispatch, keys, num);
}

#define WRITE_ENDS(ends) \
	"UPDATE feishu_internal.outbox o SET state = e.state, attempts = e.attempts," \
	" unanswered = e.unanswered," \
	" next_at = CASE WHEN e.state = 'q' THEN e.at END," \
	" finished_at = CASE WHEN e.state <> 'q' THEN e.at END," \
	" " HANDLER_ON_END_IF("e.state <> 'q'", "o.") "," \
	" code = e.code, execution_id = e.execution_id, flow_status = e.flow_status," \
	" flow_code = e.flow_code, log_id = e.log_id, sqlstate = e.sqlstate," \
	" error = e.error, report = e.report, hint = e.hint, response = e.response" \
	" FROM " ends \
	" AS e (id, state, attempts, unanswered, at, code, execution_id, flow_status," \
	" flow_code, log_id, sqlstate, error, report, hint, response)" \
	" WHERE o.id = e.id AND o.state = 'q'"

/*
 * Write the ends of flights by one statement; returns how many rows it changed.  One
 * alone may have a large answer, of which an array would have PostgreSQL make copies: in
 * it, in each step of the plan, and for the row that is to be looked at again should
 * another transaction have changed it.
 */
static uint64
write_ends(Flight **flights, int num)
{
	static SqlStatement many = SQL_STATEMENT(
		WRITE_ENDS("unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"),
		END_COLUMNS, INT8ARRAYOID, CHARARRAYOID, INT4ARRAYOID, BOOLARRAYOID,
		TIMESTAMPTZARRAYOID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, JSONBARRAYOID);
	static SqlStatement one = SQL_STATEMENT_OF_LARGE(
		WRITE_ENDS("(VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15))"),
		END_COLUMNS, INT8OID, CHAROID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID);
	static const Oid types[END_COLUMNS] = {
		INT8OID, CHAROID, INT4OID, BOOLOID, TIMESTAMPTZOID, INT8OID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID
	};
	Column		columns[END_COLUMNS];
	Datum		values[END_COLUMNS];
	char		nulls[END_COLUMNS];
	TimestampTz now = GetCurrentTimestamp();
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow ends",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	uint64		written;

	for (int i = 0; i < END_COLUMNS; i++)
	{
		columns[i].type = types[i];
		columns[i].values = palloc(num * sizeof(Datum));
		columns[i].nulls = palloc(num * sizeof(bool));
	}
	for (int row = 0; row < num; row++)
	{
		fill_row(columns, row, flights[row], now);
		if (flights[row]->state != 'q')
			notify_ended(flights[row]->id);
	}
	for (int i = 0; i < END_COLUMNS; i++)
	{
		values[i] = num == 1 ? columns[i].values[0] : column_array(&columns[i], num);
		nulls[i] = num == 1 && columns[i].nulls[0] ? 'n' : ' ';
	}
	MemoryContextSwitchTo(old_context);
	written = sql_run(num == 1 ? &one : &many, values, nulls, SPI_OK_UPDATE, NULL);
	/* the next ones may have large answers, too */
	MemoryContextDelete(context);
	return written;
}

/*
 * The end of a flight changed no row.  One that somebody has deleted, or ended by
 * hand, is no more; else something keeps us from writing.
 */
static void
explain_no_row(const Flight *flight)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.outbox WHERE id = $1 AND state = 'q'", 1, INT8OID);
	Datum		values[1] = {Int64GetDatum(flight->id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the end of flow %lld could not be written", (long long) flight->id),
				 errhint("Look for a trigger, a rule or row security on table feishu_internal.outbox.")));
	ereport(LOG,
			(errmsg("feishu_flow could not record the end of flow %lld: somebody has deleted or changed its row",
					(long long) flight->id)));
}

/* Write one end in a subtransaction; the error when it failed, or NULL. */
static ErrorData *
write_end_try(Flight *flight)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		if (write_ends(&flight, 1) == 0)
			explain_no_row(flight);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

/* Is this trouble of the server, and not of one row? */
static bool
is_of_server(int sqlstate)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_TRANSACTION_ROLLBACK:
			return true;
		default:
			return false;
	}
}

/*
 * All ends at once could not be written: write each by itself.  What cannot be
 * stored of an answer is left out.  An end that cannot be written for what is
 * about its row is set aside; other trouble is thrown.  Returns how many were
 * written.
 */
static int
write_singly(Dispatch *dispatch, Flight **flights, int num)
{
	ErrorData  *error = NULL;
	int			written = 0;

	for (int i = 0; i < num; i++)
	{
		Flight	   *flight = flights[i];
		ErrorData  *trouble = write_end_try(flight);

		if (trouble != NULL && record_is_lasting(trouble->sqlerrcode) && flight->response != NULL)
		{
			MemoryContext old_context = MemoryContextSwitchTo(flight->context);

			flight->response = NULL;
			flight->error = psprintf(_("the answer could not be stored: %s"), trouble->message);
			flight->report = NULL;
			MemoryContextSwitchTo(old_context);
			trouble = write_end_try(flight);
		}
		flight->recorded = trouble == NULL;
		if (trouble == NULL)
			written++;
		else if (is_of_server(trouble->sqlerrcode))
			ReThrowError(trouble);
		else
		{
			flight_set_aside(dispatch, flight);
			error = trouble;
		}
	}
	if (error != NULL)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("feishu_flow could not record the ends of some flows, and tries again: %s",
						error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->hint ? errhint("%s", error->hint) : 0));
	return written;
}

/* Write the ends of flights, all at once or each by itself; returns how many. */
static int
write_some(Dispatch *dispatch, Flight **flights, int num)
{
	if (num == 0)
		return 0;
	if (dispatch->record_singly)
		return write_singly(dispatch, flights, num);
	if (write_ends(flights, num) != (uint64) num)
	{
		dispatch->record_singly = true;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ends of flows could not be written"),
				 errhint("Look for a trigger, a rule or row security on table feishu_internal.outbox.")));
	}
	return num;
}

/* Write the ends of all flights that have ended.  They stay until the commit. */
void
record_ended(Dispatch *dispatch)
{
	Flight	  **flights = palloc(Max(dispatch->num_ended, 1) * sizeof(Flight *));
	dlist_mutable_iter iter;
	int			num = 0;
	size_t		bytes = 0;
	int			written = 0;

	dlist_foreach_modify(iter, &dispatch->ended)
	{
		Flight	   *flight = dlist_container(Flight, node, iter.cur);
		size_t		size = flight->response != NULL && flight->response->body != NULL ?
			VARSIZE(flight->response->body) : 0;

		flight->recorded = true;
		if (flight->silent)
			continue;
		if (bytes + size > RECORD_BYTES)
		{
			written += write_some(dispatch, flights, num);
			num = 0;
			bytes = 0;
		}
		flights[num++] = flight;
		bytes += size;
	}
	written += write_some(dispatch, flights, num);
	if (written > 0 || dispatch->num_stuck > 0)
		dispatch->stuck_alone = written == 0;
	find_successors(dispatch);
	dispatch->record_singly = false;
}

/*
 * A row cannot be read: it fails if that is for good, else it waits.  It is
 * changed without being read.
 */
void
record_unreadable(Dispatch *dispatch, Lane *lane, int64 id, const ErrorData *error)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET state = CASE WHEN $4 IS NULL THEN 'f' ELSE 'q' END::\"char\","
		" next_at = $4, finished_at = CASE WHEN $4 IS NULL THEN clock_timestamp() END,"
		" " HANDLER_ON_END_IF("$4 IS NULL", "") ","
		" sqlstate = $2, error = $3, report = NULL, hint = NULL"
		" WHERE id = $1 AND state = 'q'",
		4, INT8OID, TEXTOID, TEXTOID, TIMESTAMPTZOID);
	bool		is_lasting = record_is_lasting(error->sqlerrcode);
	TimestampTz next_at = is_lasting ? 0 : postpone(lane, id, error->sqlerrcode, error->message);
	Datum		values[4] = {
		Int64GetDatum(id),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
		CStringGetTextDatum(error->message),
		TimestampTzGetDatum(next_at)
	};
	char		nulls[4] = {' ', ' ', ' ', is_lasting ? 'n' : ' '};

	if (sql_run(&statement, values, nulls, SPI_OK_UPDATE, NULL) == 0)
		return;
	if (!is_lasting)
	{
		lane_expect_due(dispatch, lane, next_at);
		return;
	}
	/* others of its ordering key were passed over */
	discover_reopen(dispatch, id);
	notify_ended(id);
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("feishu_flow could not read flow %lld: %s", (long long) id, error->message)));
}
