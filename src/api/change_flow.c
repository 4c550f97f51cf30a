/*-------------------------------------------------------------------------
 *
 * src/api/change_flow.c
 *	  Changing queued and finished flows: cancel, retry, purge.
 *
 * The dispatcher locks a row to claim it and writes its id to feishu_internal.claim in
 * the same transaction.  Whoever wants to change a queued row locks it first
 * and then looks into feishu_internal.claim with a snapshot taken after that: so either
 * sees the other, and a flow that was reported as cancelled is never sent.
 *
 * Rights are checked here, before the table is written as its owner: see outbox.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "queue/attempt.h"
#include "queue/notify.h"
#include "queue/on_end.h"
#include "queue/origin.h"
#include "queue/outbox.h"
#include "queue/record_text.h"
#include "wire/wire_check.h"

PG_FUNCTION_INFO_V1(feishu_cancel_flow);
PG_FUNCTION_INFO_V1(feishu_retry_flow);
PG_FUNCTION_INFO_V1(feishu_purge_flows);


/*
 * The state of a row as it is now, whatever the transaction's snapshot says.
 * Throws when there is none or it belongs to a role that userid may not act as.
 */
static OutboxState
read_state(int64 id, Oid userid)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT state, roleid FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) == 0 ||
		!feishu_role_may_act(userid, DatumGetObjectId(sql_value(0, 2, NULL))))
		outbox_report_no_flow(id);
	return (OutboxState) DatumGetChar(sql_value(0, 1, NULL));
}

/*
 * Has the dispatcher claimed a row?  That of this database, or the one before an
 * upgrade: a dispatcher that a replicated row of feishu_internal.claim is of has other flows.
 */
static bool
is_claimed(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.claim c WHERE $1 OPERATOR(pg_catalog.=) ANY (c.ids)"
		" AND (c.system_identifier OPERATOR(pg_catalog.=) $2 AND c.database OPERATOR(pg_catalog.=) $3"
		" OR EXISTS (SELECT FROM feishu_internal.outbox o WHERE o.id OPERATOR(pg_catalog.=) $1"
		" AND o.system_identifier OPERATOR(pg_catalog.=) c.system_identifier"
		" AND o.database OPERATOR(pg_catalog.=) c.database))",
		3, INT8OID, INT8OID, OIDOID);
	Datum		values[3] = {
		Int64GetDatum(id),
		origin_system(),
		origin_database()
	};

	return sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) > 0;
}

/*
 * Lock a row; false if there is none any more.  Throws, as FOR UPDATE does of a
 * row that was changed, if the transaction's snapshot is older than the row:
 * "false" would tell the caller that it is past changing.
 *
 * The dispatcher would wait for a row that it has claimed, so whoever finds that
 * it has must give the lock back at once: hence the subtransaction in
 * change_flow.
 */
static bool
lock_flow(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1 FOR UPDATE",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0)
		return true;
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
	return false;
}

/* Is it that a key is queued once?  What a superuser put on the table may throw others. */
static bool
is_of_key(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		error->schema_name != NULL && strcmp(error->schema_name, QUEUE_SCHEMA) == 0 &&
		error->constraint_name != NULL && strcmp(error->constraint_name, OUTBOX_KEY_INDEX) == 0;
}

/* Throw that a flow cannot go back to the queue, for another has its key by now. */
static void
report_key_is_taken(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("flow %lld cannot be retried: its idempotent_key was queued again",
					(long long) id),
			 errhint("The other flow replaces this one. To start both, retry this one with a new key: feishu.retry_flow(%lld, new_key => true).",
					 (long long) id)));
}

/* States that a flow can be cancelled in, and those that it can be retried in. */
static bool
may_cancel(OutboxState state)
{
	return state == OUTBOX_QUEUED;
}

static bool
may_retry(OutboxState state)
{
	return state == OUTBOX_FAILED || state == OUTBOX_UNCONFIRMED || state == OUTBOX_CANCELLED;
}

/* What a flow is to carry from now on; NULL: what it has. */
typedef struct Repair
{
	Jsonb	   *params;
	Jsonb	   *operator_id;
	char	   *idempotent_key;
} Repair;

/* A column of the row read last as jsonb, or NULL. */
static Jsonb *
row_jsonb(int column)
{
	bool		is_null;
	Datum		value = sql_value(0, column, &is_null);

	return is_null ? NULL : DatumGetJsonbP(value);
}

/*
 * Before a row, which is locked, gets other params or another operator: check the
 * request that it will be, as enqueue_flow does, and keep those that it has.
 */
static void
prepare_repair(int64 id, const Repair *repair)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT namespace, flow_id, is_async, idempotent_key, loop_masks, operator, params"
		" FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};
	FlowRequest request = {0};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) == 0)
		return;
	request.namespace_name = TextDatumGetCString(sql_value(0, 1, NULL));
	request.flow_id = TextDatumGetCString(sql_value(0, 2, NULL));
	request.is_async = DatumGetBool(sql_value(0, 3, NULL));
	request.idempotent_key = repair->idempotent_key != NULL ? repair->idempotent_key :
		TextDatumGetCString(sql_value(0, 4, NULL));
	request.loop_masks = row_jsonb(5);
	request.operator_id = repair->operator_id != NULL ? repair->operator_id : row_jsonb(6);
	request.params = repair->params != NULL ? repair->params : row_jsonb(7);
	request_check(&request);
	attempt_keep_request(id);
}

/*
 * Change a row by a statement whose first argument is its id, if its state is one that
 * may be changed and it is not claimed; true if it was changed.  repair may be NULL.
 */
static bool
change_flow(int64 id, bool (*may_change) (OutboxState state), const Repair *repair,
			SqlStatement *statement, Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			userid = GetUserId();
	SqlCaller	caller;
	volatile bool changed = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		sql_begin_as_owner(&caller);
		if (may_change(read_state(id, userid)) && !is_claimed(id))
		{
			/* at commit, too: whoever waits for it in an ordering key may go */
			notify_locked_row(id);
			if (lock_flow(id) && may_change(read_state(id, userid)) && !is_claimed(id))
			{
				if (repair != NULL)
					prepare_repair(id, repair);
				sql_run(statement, values, nulls, SPI_OK_UPDATE, NULL);
				changed = true;
			}
		}
		sql_end_as_owner(&caller);
		MemoryContextSwitchTo(context);
		if (changed)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (is_of_key(error))
			report_key_is_taken(id);
		ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (changed)
		notify_ended(id);
	return changed;
}

/* Did the transaction, or anybody before it, cancel a flow that was not sent? */
static bool
is_cancelled(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.outbox WHERE id OPERATOR(pg_catalog.=) $1"
		" AND state OPERATOR(pg_catalog.=) 'c'",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

	return sql_run_as_owner(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0;
}

/*
 * cancel_flow(id)
 *
 * "cancelled" is to mean: never sent.  A flow that waits after an attempt which
 * may have reached the platform is not sent again either, but it is
 * unconfirmed, and the caller is told that it was too late.
 */
Datum
feishu_cancel_flow(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET next_at = NULL,"
		" finished_at = pg_catalog.clock_timestamp(),"
		" state = CASE WHEN unanswered THEN 'u' ELSE 'c' END::pg_catalog.\"char\","
		" error = CASE WHEN unanswered THEN"
		" COALESCE(error OPERATOR(pg_catalog.||) $3, $2) ELSE error END,"
		" hint = CASE WHEN unanswered THEN $4 ELSE hint END, " HANDLER_ON_END
		" WHERE id OPERATOR(pg_catalog.=) $1",
		4, INT8OID, TEXTOID, TEXTOID, TEXTOID);
	int64		id = PG_GETARG_INT64(0);
	const char *error = _("cancelled after it was sent");
	Datum		values[4] = {
		Int64GetDatum(id),
		CStringGetTextDatum(error),
		CStringGetTextDatum(psprintf(_("; %s"), error)),
		CStringGetTextDatum(record_unconfirmed_hint())
	};

	sql_check_writable("cancel_flow()");
	PG_RETURN_BOOL(change_flow(id, may_cancel, NULL, &statement, values, NULL) && is_cancelled(id));
}

/* retry_flow(id, new_key, params, operator) */
Datum
feishu_retry_flow(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT_PLANNED_ONCE(
		"UPDATE feishu_internal.outbox SET state = 'q', attempts = 0, replaceable = false, finished_at = NULL,"
		" next_at = NULL, run_at = $2, expires_at = $3, database = $5, system_identifier = $6,"
		" idempotent_key = COALESCE($4, idempotent_key),"
		" params = COALESCE($7, params), operator = COALESCE($8, operator),"
		" own_key = own_key OR $4 IS NOT NULL,"
		" unanswered = unanswered AND $4 IS NULL,"
		" code = NULL, execution_id = NULL, flow_status = NULL, flow_code = NULL,"
		" log_id = NULL, sqlstate = NULL, error = NULL, report = NULL, hint = NULL, response = NULL, " HANDLER_NOT_ENDED
		" WHERE id OPERATOR(pg_catalog.=) $1",
		8, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, OIDOID, INT8OID, JSONBOID, JSONBOID);
	int64		id = PG_GETARG_INT64(0);
	bool		new_key = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	Repair		repair = {
		.params = PG_ARGISNULL(2) ? NULL : request_json(PG_GETARG_JSONB_P(2)),
		.operator_id = PG_ARGISNULL(3) ? NULL : request_operator(request_json(PG_GETARG_JSONB_P(3))),
		.idempotent_key = new_key ? outbox_random_key() : NULL
	};
	bool		repaired = repair.params != NULL || repair.operator_id != NULL;
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[8] = {
		Int64GetDatum(id),
		TimestampTzGetDatum(now),
		TimestampTzGetDatum(outbox_expires_by_age(now)),
		new_key ? CStringGetTextDatum(repair.idempotent_key) : (Datum) 0,
		origin_database(),
		origin_system(),
		JsonbPGetDatum(repair.params),
		JsonbPGetDatum(repair.operator_id)
	};
	char		nulls[8] = {
		' ', ' ', ' ', new_key ? ' ' : 'n', ' ', ' ',
		repair.params != NULL ? ' ' : 'n', repair.operator_id != NULL ? ' ' : 'n'
	};
	bool		queued;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	sql_check_writable("retry_flow()");
	queued = change_flow(id, may_retry, repaired ? &repair : NULL, &statement, values, nulls);
	if (queued)
		outbox_warn_without_dispatcher();
	PG_RETURN_BOOL(queued);
}

/*
 * purge_flows(before)
 *
 * Whoever waits for one of them was told when it ended.
 */
Datum
feishu_purge_flows(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu_internal.outbox WHERE finished_at OPERATOR(pg_catalog.<) $1 AND NOT " HANDLER_WAITS
		" AND pg_catalog.pg_has_role($2, roleid, '" FEISHU_ROLE_MAY_ACT "')",
		2, TIMESTAMPTZOID, OIDOID);
	Datum		values[2] = {PG_GETARG_DATUM(0), ObjectIdGetDatum(GetUserId())};

	sql_check_writable("purge_flows()");
	PG_RETURN_INT64((int64) sql_run_as_owner(&statement, values, NULL, SPI_OK_DELETE, NULL));
}
