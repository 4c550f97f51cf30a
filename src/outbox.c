/*-------------------------------------------------------------------------
 *
 * outbox.c
 *	  The queue's table, from the side of those who use it: enqueue, cancel,
 *	  retry, wait, purge.
 *
 * An enqueue is an insert in the caller's transaction (insert.c).  What it means for the
 * dispatcher ("look at ids from here on") is noted in this backend and told by
 * one transaction callback at the end of the transaction, registered once per
 * backend.  Telling too much does no harm: a row that was rolled back is not
 * seen.  Telling too little is what must never happen.  COMMIT PREPARED, which
 * runs no callback of ours, is seen by launcher_ddl.c; what nobody saw is left to
 * the dispatcher's slow poll.
 *
 * The tables belong to the extension's owner and are granted to nobody.  The
 * functions here work on them as that owner, in a security-restricted context,
 * with everything in their SQL qualified, after they have checked the rights
 * of the caller themselves.
 *
 * The dispatcher locks a row to claim it and writes its id to feishu.claim in
 * the same transaction.  Whoever wants to change a queued row locks it first
 * and then looks into feishu.claim with a snapshot taken after that: so either
 * sees the other, and a flow that was reported as cancelled is never sent.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/outbox.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/sequence.h"
#include "common/int.h"
#include "tcop/utility.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "guc.h"
#include "insert.h"
#include "launcher.h"
#include "limiter.h"
#include "nls.h"
#include "options.h"
#include "outbox.h"
#include "request.h"
#include "sqlrun.h"
#include "wakeup.h"

PG_FUNCTION_INFO_V1(feishu_enqueue_flow);
PG_FUNCTION_INFO_V1(feishu_cancel_flow);
PG_FUNCTION_INFO_V1(feishu_retry_flow);
PG_FUNCTION_INFO_V1(feishu_wait_flow);
PG_FUNCTION_INFO_V1(feishu_purge_flows);

/* Positions of enqueue_flow's arguments behind those of request.h. */
#define ARG_SERVER			7
#define ARG_RUN_AT			8
#define ARG_ORDERING_KEY	9
#define ARG_MAX_ATTEMPTS	10
#define ARG_EXPIRES_AT		11

#define UUID_TEXT_LENGTH	36

/* While waiting for a flow, look at least so often: on a standby nobody wakes
 * us, nor does COMMIT PREPARED. */
#define WAIT_LOOK_MS		2000


/* ---------- Telling the dispatcher ---------- */

/* What this transaction has to tell, when it commits and when it does not. */
static DispatchNews at_commit = {.min_id = PG_INT64_MAX};
static DispatchNews at_abort = {.min_id = PG_INT64_MAX};
static bool control_at_commit = false;
static bool wake_at_commit = false; /* those who wait for flows */
static bool callback_registered = false;

static bool
news_is_empty(const DispatchNews *news)
{
	return news->min_id == PG_INT64_MAX && !news->control;
}

static void
news_clear(DispatchNews *news)
{
	*news = DISPATCH_NO_NEWS;
}

/* Transaction callback; does not throw. */
static void
outbox_at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (!news_is_empty(&at_commit))
				launcher_tell(&at_commit);
			if (wake_at_commit)
				wakeup_broadcast();
			break;
		case XACT_EVENT_ABORT:
			if (!news_is_empty(&at_abort))
				launcher_tell(&at_abort);
			control_at_commit = false;
			break;
		case XACT_EVENT_PREPARE:
			control_at_commit = false;
			break;
		default:
			return;
	}
	news_clear(&at_commit);
	news_clear(&at_abort);
	wake_at_commit = false;
}

/*
 * Changes in catalogs are told later than rows: after the invalidation
 * messages, or the dispatcher would look at what it has cached.
 */
static void
outbox_after_locks(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	if (control_at_commit && phase == RESOURCE_RELEASE_AFTER_LOCKS && is_commit && is_top_level)
	{
		DispatchNews news = DISPATCH_NO_NEWS;

		control_at_commit = false;
		news.control = true;
		launcher_tell(&news);
	}
}

static void
outbox_register_callback(void)
{
	if (!callback_registered)
	{
		RegisterXactCallback(outbox_at_transaction_end, NULL);
		RegisterResourceReleaseCallback(outbox_after_locks, NULL);
		callback_registered = true;
	}
}

/* At commit, have the dispatcher look at rows from id on. */
static void
outbox_tell_row(int64 id)
{
	outbox_register_callback();
	at_commit.min_id = Min(at_commit.min_id, id);
}

void
outbox_tell_control(void)
{
	outbox_register_callback();
	control_at_commit = true;
}

/* Say once a session that nobody will send what is queued. */
static void
warn_without_dispatcher(void)
{
	static bool warned = false;

	if (warned || launcher_present())
		return;
	warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("flows are queued, but nothing will send them"),
			 errdetail("feishu_flow is not in shared_preload_libraries, so that there is no dispatcher."),
			 errhint("Add it to shared_preload_libraries and restart the server; what is queued by then will be sent.")));
}


/* ---------- Enqueue ---------- */

/* A random UUID (version 4) as text. */
static char *
random_key(void)
{
	Datum		uuid = DirectFunctionCall1(gen_random_uuid, (Datum) 0);

	return DatumGetCString(DirectFunctionCall1(uuid_out, uuid));
}

static void
check_delivery(const QueuedFlow *flow, TimestampTz now)
{
	if (flow->ordering_key != NULL)
	{
		const char *problem = codec_check_key(flow->ordering_key);

		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("argument \"%s\" %s", "ordering_key", _(problem)),
					 errhint("Leave it null, or give flows that must not overtake each other the same value.")));
	}
	if (flow->max_attempts == 0 || flow->max_attempts < -1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be positive", "max_attempts")));
	if (TIMESTAMP_IS_NOEND(flow->run_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be infinity", "run_at")));
	if (!TIMESTAMP_IS_NOBEGIN(flow->expires_at) &&
		flow->expires_at <= Max(flow->run_at, now))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be later than run_at and now", "expires_at")));
}

/* When a flow expires that is to be sent at a time and says nothing of it. */
static TimestampTz
expires_by_age(TimestampTz run_at)
{
	TimestampTz expires_at;

	if (pg_add_s64_overflow(run_at, (int64) feishu_guc_max_age * USECS_PER_SEC, &expires_at) ||
		!IS_VALID_TIMESTAMP(expires_at))
		return DT_NOEND;
	return expires_at;
}

/* Columns of feishu.outbox, in their order there. */
enum
{
	COLUMN_ID, COLUMN_ROLEID, COLUMN_DATABASE, COLUMN_ATTEMPTS, COLUMN_MAX_ATTEMPTS, COLUMN_STATE,
	COLUMN_IS_ASYNC, COLUMN_OWN_KEY, COLUMN_UNANSWERED, COLUMN_CREATED_AT,
	COLUMN_RUN_AT, COLUMN_NEXT_AT, COLUMN_EXPIRES_AT, COLUMN_FINISHED_AT,
	COLUMN_SERVER, COLUMN_NAMESPACE, COLUMN_FLOW_ID, COLUMN_OPERATOR,
	COLUMN_PARAMS, COLUMN_IDEMPOTENT_KEY, COLUMN_LOOP_MASKS, COLUMN_ORDERING_KEY,
	COLUMN_CODE, COLUMN_EXECUTION_ID, COLUMN_FLOW_STATUS, COLUMN_FLOW_CODE,
	COLUMN_LOG_ID, COLUMN_SQLSTATE, COLUMN_ERROR, COLUMN_RESPONSE,
	NUM_COLUMNS
};

static const Oid column_types[NUM_COLUMNS] = {
	INT8OID, OIDOID, OIDOID, INT4OID, INT4OID, CHAROID,
	BOOLOID, BOOLOID, BOOLOID, TIMESTAMPTZOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	TEXTOID, TEXTOID, TEXTOID, JSONBOID,
	JSONBOID, TEXTOID, JSONBOID, TEXTOID,
	INT8OID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTOID, TEXTOID, JSONBOID
};

/* By SQL, where insert_row will not do: a superuser has put a trigger, say, on
 * the table. */
static void
insert_by_sql(Datum *values, bool *nulls)
{
	static SqlStatement statement = SQL_STATEMENT(
		"INSERT INTO feishu.outbox (id, roleid, database, max_attempts, is_async, own_key,"
		" created_at, run_at, next_at, expires_at, server, namespace, flow_id,"
		" operator, params, idempotent_key, loop_masks, ordering_key)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
		18, INT8OID, OIDOID, OIDOID, INT4OID, BOOLOID, BOOLOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TEXTOID, JSONBOID, TEXTOID);
	static const int columns[18] = {
		COLUMN_ID, COLUMN_ROLEID, COLUMN_DATABASE, COLUMN_MAX_ATTEMPTS, COLUMN_IS_ASYNC, COLUMN_OWN_KEY,
		COLUMN_CREATED_AT, COLUMN_RUN_AT, COLUMN_NEXT_AT, COLUMN_EXPIRES_AT,
		COLUMN_SERVER, COLUMN_NAMESPACE, COLUMN_FLOW_ID, COLUMN_OPERATOR,
		COLUMN_PARAMS, COLUMN_IDEMPOTENT_KEY, COLUMN_LOOP_MASKS, COLUMN_ORDERING_KEY
	};
	Datum		arguments[18];
	char		flags[18];
	SqlCaller	caller;

	for (int i = 0; i < 18; i++)
	{
		arguments[i] = values[columns[i]];
		flags[i] = nulls[columns[i]] ? 'n' : ' ';
	}
	sql_begin_as_owner(&caller);
	sql_run(&statement, arguments, flags, SPI_OK_INSERT, NULL);
	sql_end_as_owner(&caller);
}

/* Insert a checked flow. */
static int64
insert_flow(const QueuedFlow *flow)
{
	const FlowRequest *request = &flow->request;
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	TimestampTz run_at = flow->run_at == DT_NOBEGIN ? now : flow->run_at;
	TimestampTz expires_at = flow->expires_at;
	bool		delayed = run_at > now && run_at > GetCurrentTimestamp();
	bool		own_key = request->idempotent_key == NULL;
	Oid			outbox;
	Oid			sequence;
	Datum		values[NUM_COLUMNS] = {0};
	bool		nulls[NUM_COLUMNS];
	int64		id;

	check_delivery(flow, now);
	if (TIMESTAMP_IS_NOBEGIN(expires_at))
		expires_at = expires_by_age(Max(run_at, now));

	/* a read-only transaction, a standby: as INSERT would */
	PreventCommandIfReadOnly("enqueue_flow()");
	PreventCommandIfParallelMode("enqueue_flow()");

	/* wait for a DROP EXTENSION here, and then look if it has happened */
	sql_find_outbox(&outbox, &sequence);
	LockRelationOid(sequence, RowExclusiveLock);
	sql_find_outbox(&outbox, &sequence);
	id = nextval_internal(sequence, false);

	memset(nulls, true, sizeof(nulls));
#define SET(column, datum) (values[column] = (datum), nulls[column] = false)
	SET(COLUMN_ID, Int64GetDatum(id));
	SET(COLUMN_ROLEID, ObjectIdGetDatum(GetUserId()));
	SET(COLUMN_DATABASE, ObjectIdGetDatum(MyDatabaseId));
	SET(COLUMN_ATTEMPTS, Int32GetDatum(0));
	if (flow->max_attempts > 0)
		SET(COLUMN_MAX_ATTEMPTS, Int32GetDatum(flow->max_attempts));
	SET(COLUMN_STATE, CharGetDatum('q'));
	SET(COLUMN_IS_ASYNC, BoolGetDatum(request->is_async));
	SET(COLUMN_OWN_KEY, BoolGetDatum(own_key));
	SET(COLUMN_UNANSWERED, BoolGetDatum(false));
	SET(COLUMN_CREATED_AT, TimestampTzGetDatum(now));
	SET(COLUMN_RUN_AT, TimestampTzGetDatum(run_at));
	if (delayed)
		SET(COLUMN_NEXT_AT, TimestampTzGetDatum(run_at));
	SET(COLUMN_EXPIRES_AT, TimestampTzGetDatum(expires_at));
	SET(COLUMN_SERVER, CStringGetTextDatum(flow->server));
	SET(COLUMN_NAMESPACE, CStringGetTextDatum(request->namespace_name));
	SET(COLUMN_FLOW_ID, CStringGetTextDatum(request->flow_id));
	SET(COLUMN_OPERATOR, JsonbPGetDatum(request->operator_id));
	if (request->params != NULL)
		SET(COLUMN_PARAMS, JsonbPGetDatum(request->params));
	SET(COLUMN_IDEMPOTENT_KEY,
		CStringGetTextDatum(own_key ? random_key() : request->idempotent_key));
	if (request->loop_masks != NULL)
		SET(COLUMN_LOOP_MASKS, JsonbPGetDatum(request->loop_masks));
	if (flow->ordering_key != NULL)
		SET(COLUMN_ORDERING_KEY, CStringGetTextDatum(flow->ordering_key));

	if (!insert_row(outbox, NUM_COLUMNS, column_types, values, nulls))
		insert_by_sql(values, nulls);

	outbox_tell_row(id);
	warn_without_dispatcher();
	return id;
}

int64
outbox_enqueue(const QueuedFlow *flow)
{
	QueuedFlow	complete = *flow;
	FlowServer *server = server_lookup(flow->server, GetUserId());

	complete.server = server->name;
	if (complete.request.operator_id == NULL && server->operator_json != NULL)
		complete.request.operator_id =
			DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(server->operator_json)));
	server_forget_secrets(server);
	request_check(&complete.request);
	return insert_flow(&complete);
}

/*
 * enqueue_flow(namespace, flow_id, operator, params, is_async, idempotent_key,
 * loop_masks, server, run_at, ordering_key, max_attempts, expires_at)
 */
Datum
feishu_enqueue_flow(PG_FUNCTION_ARGS)
{
	QueuedFlow	flow = {0};
	FlowServer *server;

	server = server_lookup(PG_ARGISNULL(ARG_SERVER) ? NULL :
						   NameStr(*PG_GETARG_NAME(ARG_SERVER)),
						   GetUserId());
	flow.server = server->name;
	flow.request = *request_from_arguments(fcinfo, server->operator_json);
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
		OUTBOX_EXPIRES_AT(PG_GETARG_TIMESTAMPTZ(ARG_EXPIRES_AT));

	PG_RETURN_INT64(insert_flow(&flow));
}


/* ---------- Changing a queued or finished flow ---------- */

/* Throw that there is no such flow for the caller. */
static void
report_no_flow(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("flow %lld does not exist", (long long) id),
			 errhint("The view feishu.flows shows the flows that you may see.")));
}

/*
 * The state of a row as it is now, whatever the transaction's snapshot says.
 * Throws when there is none or it belongs to a role that userid is not a member
 * of.
 */
static char
read_state(int64 id, Oid userid)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT state, roleid FROM feishu.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) == 0 ||
		!is_member_of_role(userid, DatumGetObjectId(sql_value(0, 2, NULL))))
		report_no_flow(id);
	return DatumGetChar(sql_value(0, 1, NULL));
}

/* Has the dispatcher claimed a row? */
static bool
is_claimed(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu.claim WHERE $1 OPERATOR(pg_catalog.=) ANY (ids)",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};

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
		"SELECT FROM feishu.outbox WHERE id OPERATOR(pg_catalog.=) $1 FOR UPDATE",
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

/*
 * Change a row by a statement whose first argument is its id, if it is in one
 * of the states and not claimed; true if it was changed.
 */
static bool
change_flow(int64 id, const char *states, SqlStatement *statement,
			Datum *values, const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	Oid			userid = GetUserId();
	SqlCaller	caller;
	volatile bool locked = false;
	volatile bool changed = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		sql_begin_as_owner(&caller);
		locked = strchr(states, read_state(id, userid)) != NULL && !is_claimed(id) &&
			lock_flow(id);
		if (locked &&
			strchr(states, read_state(id, userid)) != NULL && !is_claimed(id))
		{
			sql_run(statement, values, nulls, SPI_OK_UPDATE, NULL);
			changed = true;
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
		ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	/*
	 * The dispatcher skips a row that is locked: it must look again if this
	 * comes to nothing.  If it does not, whoever waits for the row in an
	 * ordering key may go.
	 */
	if (locked)
	{
		outbox_tell_row(id);
		at_abort.min_id = Min(at_abort.min_id, id);
	}
	wake_at_commit |= changed;
	return changed;
}

/* Did the transaction, or anybody before it, cancel a flow that was not sent? */
static bool
is_cancelled(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu.outbox WHERE id OPERATOR(pg_catalog.=) $1"
		" AND state OPERATOR(pg_catalog.=) 'c'",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};
	SqlCaller	caller;
	bool		found;

	sql_begin_as_owner(&caller);
	found = sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0;
	sql_end_as_owner(&caller);
	return found;
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
		"UPDATE feishu.outbox SET next_at = NULL,"
		" finished_at = pg_catalog.clock_timestamp(),"
		" state = CASE WHEN unanswered THEN 'u' ELSE 'c' END::pg_catalog.\"char\","
		" error = CASE WHEN unanswered THEN pg_catalog.concat_ws('; ', error,"
		" 'cancelled after it was sent') ELSE error END"
		" WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	int64		id = PG_GETARG_INT64(0);
	Datum		values[1] = {Int64GetDatum(id)};

	PG_RETURN_BOOL(change_flow(id, "q", &statement, values, NULL) && is_cancelled(id));
}

/* retry_flow(id, new_key) */
Datum
feishu_retry_flow(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu.outbox SET state = 'q', attempts = 0, finished_at = NULL,"
		" next_at = NULL, run_at = $2, expires_at = $3, database = $5,"
		" idempotent_key = COALESCE($4, idempotent_key),"
		" own_key = own_key OR $4 IS NOT NULL,"
		" unanswered = unanswered AND $4 IS NULL,"
		" code = NULL, execution_id = NULL, flow_status = NULL, flow_code = NULL,"
		" log_id = NULL, sqlstate = NULL, error = NULL, response = NULL"
		" WHERE id OPERATOR(pg_catalog.=) $1",
		5, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, OIDOID);
	int64		id = PG_GETARG_INT64(0);
	bool		new_key = PG_GETARG_BOOL(1);
	TimestampTz now = GetCurrentTimestamp();
	Datum		values[5] = {
		Int64GetDatum(id),
		TimestampTzGetDatum(now),
		TimestampTzGetDatum(expires_by_age(now)),
		new_key ? CStringGetTextDatum(random_key()) : (Datum) 0,
		ObjectIdGetDatum(MyDatabaseId)
	};
	char		nulls[5] = {' ', ' ', ' ', new_key ? ' ' : 'n', ' '};
	bool		queued = change_flow(id, "fuc", &statement, values, nulls);

	if (queued)
		warn_without_dispatcher();
	PG_RETURN_BOOL(queued);
}

/* purge_flows(before) */
Datum
feishu_purge_flows(PG_FUNCTION_ARGS)
{
	static SqlStatement statement = SQL_STATEMENT(
		"DELETE FROM feishu.outbox WHERE finished_at OPERATOR(pg_catalog.<) $1"
		" AND pg_catalog.pg_has_role($2, roleid, 'MEMBER')",
		2, TIMESTAMPTZOID, OIDOID);
	Datum		values[2] = {PG_GETARG_DATUM(0), ObjectIdGetDatum(GetUserId())};
	SqlCaller	caller;
	uint64		purged;

	sql_begin_as_owner(&caller);
	purged = sql_run(&statement, values, NULL, SPI_OK_DELETE, NULL);
	sql_end_as_owner(&caller);
	PG_RETURN_INT64((int64) purged);
}


/* ---------- Waiting ---------- */

/* A flow's end, in the caller's memory context. */
typedef struct FlowEnd
{
	char		state;
	int			sqlstate;
	char	   *error;
	Jsonb	   *response;
} FlowEnd;

/*
 * Read a flow as it is now, whatever the transaction's snapshot says.  Throws
 * when the caller may not see it, or has queued it in this transaction.
 */
static void
read_end(int64 id, Oid userid, MemoryContext context, FlowEnd *end)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT state, roleid, sqlstate, error, response, xmin"
		" FROM feishu.outbox WHERE id OPERATOR(pg_catalog.=) $1",
		1, INT8OID);
	Datum		values[1] = {Int64GetDatum(id)};
	SqlCaller	caller;
	bool		is_null;
	Datum		value;

	sql_begin_as_owner(&caller);
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) == 0 ||
		!is_member_of_role(userid, DatumGetObjectId(sql_value(0, 2, NULL))))
	{
		/* our own uncommitted row is beyond the latest snapshot, too */
		report_no_flow(id);
	}
	end->state = DatumGetChar(sql_value(0, 1, NULL));
	if (end->state == 'q' &&
		TransactionIdIsCurrentTransactionId(DatumGetTransactionId(sql_value(0, 6, NULL))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("flow %lld was queued by this very transaction", (long long) id),
				 errdetail("It is sent after the transaction has committed."),
				 errhint("COMMIT first, then wait.")));
	value = sql_value(0, 3, &is_null);
	end->sqlstate = 0;
	if (!is_null)
	{
		char	   *code = TextDatumGetCString(value);

		if (strlen(code) == 5)
			end->sqlstate = MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]);
	}
	value = sql_value(0, 4, &is_null);
	end->error = is_null ? NULL : MemoryContextStrdup(context, TextDatumGetCString(value));
	value = sql_value(0, 5, &is_null);
	end->response = NULL;
	if (!is_null)
	{
		Jsonb	   *response = DatumGetJsonbP(value);

		end->response = MemoryContextAlloc(context, VARSIZE(response));
		memcpy(end->response, response, VARSIZE(response));
	}
	sql_end_as_owner(&caller);
}

/* wait_flow(id, timeout) */
Datum
feishu_wait_flow(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	int64		id = PG_GETARG_INT64(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	TimestampTz deadline;
	Oid			userid = GetUserId();
	FlowEnd		end;

	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   IntervalPGetDatum(timeout)));
	if (wait_event == 0)
		wait_event = feishu_wait_event_new("FeishuFlowWait");

	for (;;)
	{
		long		left;

		/* first ask to be woken, then look: so no end is missed */
		wakeup_wait_begin();
		read_end(id, userid, CurrentMemoryContext, &end);
		if (end.state != 'q')
			break;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (left <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEISHU_TIMEOUT),
					 errmsg("flow %lld has not ended in time", (long long) id),
					 errhint("It stays queued; look at the views feishu.flows and feishu.dispatch_status.")));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, WAIT_LOOK_MS), wait_event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	wakeup_wait_end();

	if (end.state == 's')
	{
		if (end.response == NULL)
			PG_RETURN_NULL();
		PG_RETURN_JSONB_P(end.response);
	}
	ereport(ERROR,
			(errcode(end.sqlstate != 0 ? end.sqlstate : ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 end.state == 'c' ? errmsg("flow %lld was cancelled", (long long) id) :
			 end.state == 'u' ? errmsg("flow %lld is unconfirmed: it most likely ran, but its answer was lost", (long long) id) :
			 errmsg("flow %lld failed", (long long) id),
			 end.error ? errdetail_internal("%s", end.error) : 0));
	PG_RETURN_NULL();			/* not reached */
}
