/*-------------------------------------------------------------------------
 *
 * src/queue/outbox.c
 *	  The queue's table, from the side of those who queue flows.
 *
 * An enqueue is an insert in the caller's transaction (insert.c); what it means
 * for the dispatcher ("look at ids from here on") is told at the end of the
 * transaction (notify.c).
 *
 * The tables belong to the extension's owner and are granted to nobody.  The
 * functions here, in change_flow.c and in wait_flow.c work on them as that owner, in a
 * security-restricted context, with everything in their SQL qualified, after
 * they have checked the rights of the caller themselves.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "app/server.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "launcher/launcher.h"
#include "queue/flow_id.h"
#include "queue/notify.h"
#include "queue/on_end.h"
#include "queue/origin.h"
#include "queue/outbox.h"
#include "queue/outbox_internal.h"
#include "queue/record_text.h"
#include "queue/replace.h"
#include "wire/wire_check.h"

/* To ask for random bytes costs more than the bytes: ask for those of some keys. */
#define KEYS_AT_ONCE		16

/* So often may the flow that has a key end between two looks at it. */
#define KEY_TRIES			5


/*
 * Say once a session, if there is no dispatcher, that nobody will send what is queued.
 */
void
outbox_warn_without_dispatcher(void)
{
	static bool warned = false;

	if (warned || launcher_present())
		return;
	warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("flows are queued, but nothing will send them"),
			 errdetail("PostgreSQL was started without feishu_flow in shared_preload_libraries, so there is no dispatcher."),
			 errhint("Add it to shared_preload_libraries and restart the server; what is queued by then will be sent.")));
}

/* Throw that there is no such flow for the caller. */
void
outbox_report_no_flow(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("flow %lld does not exist", (long long) id),
			 errhint("The view feishu.flows shows the flows that you may see.")));
}

/* A random UUID (version 4) as text: the key of a flow that was given none. */
char *
outbox_random_key(void)
{
	static uint8 bytes[KEYS_AT_ONCE * UUID_LEN];
	static int	num_left = 0;	/* keys */
	static const char digits[] = "0123456789abcdef";
	char	   *key;
	char	   *place;
	uint8	   *uuid;

	if (num_left == 0)
	{
		if (!pg_strong_random(bytes, sizeof(bytes)))
			elog(ERROR, "could not generate random values");
		num_left = KEYS_AT_ONCE;
	}
	key = place = palloc(2 * UUID_LEN + sizeof("----"));
	uuid = &bytes[--num_left * UUID_LEN];
	uuid[6] = (uuid[6] & 0x0f) | 0x40;	/* version 4 of RFC 9562 */
	uuid[8] = (uuid[8] & 0x3f) | 0x80;	/* its variant */
	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*place++ = '-';
		*place++ = digits[uuid[i] >> 4];
		*place++ = digits[uuid[i] & 0x0f];
	}
	*place = '\0';
	return key;
}

static void
check_delivery(const QueuedFlow *flow, TimestampTz now)
{
	if (flow->ordering_key != NULL)
	{
		const char *problem = wire_check_name(flow->ordering_key, false);

		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg(problem, "ordering_key"),
					 errhint("Leave it null, or give flows that must not overtake each other the same value.")));
	}
	if (flow->replace_key != NULL)
	{
		const char *problem = wire_check_name(flow->replace_key, false);

		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg(problem, "replace_key"),
					 errhint("Leave it null, or give flows of which only the last is to be started the same value.")));
		if (flow->request.idempotent_key != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("arguments \"%s\" and \"%s\" cannot be given together", "replace_key", "idempotent_key"),
					 errdetail("By the one, the last flow that was queued counts; by the other, the first."),
					 errhint("Leave one of them null.")));
	}
	if (flow->max_attempts == 0 || flow->max_attempts < -1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be positive", "max_attempts")));
	if (flow->priority < OUTBOX_MIN_PRIORITY || flow->priority > OUTBOX_MAX_PRIORITY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be from %d to %d", "priority",
						OUTBOX_MIN_PRIORITY, OUTBOX_MAX_PRIORITY)));
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
TimestampTz
outbox_expires_by_age(TimestampTz run_at)
{
	TimestampTz expires_at;

	if (pg_add_s64_overflow(run_at, (int64) feishu_guc_max_age * USECS_PER_SEC, &expires_at) ||
		!IS_VALID_TIMESTAMP(expires_at))
		return DT_NOEND;
	return expires_at;
}

/* As OutboxColumn has them. */
static const Oid column_types[OUTBOX_COLUMNS] = {
	INT8OID, OIDOID, OIDOID, INT8OID, INT4OID, OIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT2OID,
	CHAROID, BOOLOID, BOOLOID, BOOLOID, BOOLOID,
	TEXTOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID,
	TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT4OID, INT4OID,
	INT4OID, CHAROID,
	JSONBOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TEXTOID, JSONBOID, TEXTOID, TEXTOID
};

#define NUM_INSERTED	24

#define INSERT_STATEMENT(conflict) \
	SQL_STATEMENT("INSERT INTO feishu_internal.outbox (id, roleid, database, system_identifier, max_attempts," \
				  " server_owner, is_async, own_key, created_at, run_at, next_at, expires_at, server, namespace, flow_id," \
				  " operator, params, idempotent_key, loop_masks, ordering_key, on_end, replace_key, replaceable, priority)" \
				  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22," \
				  " $23, $24)" \
				  conflict, \
				  NUM_INSERTED, INT8OID, OIDOID, OIDOID, INT8OID, INT4OID, OIDOID, BOOLOID, BOOLOID, \
				  TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, \
				  TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT2OID)

/* These columns of a row, as arguments of a statement. */
void
outbox_row_arguments(const Datum *values, const bool *nulls, const int *columns, int num,
					 Datum *arguments, char *flags)
{
	for (int i = 0; i < num; i++)
	{
		arguments[i] = values[columns[i]];
		flags[i] = nulls[columns[i]] ? 'n' : ' ';
	}
}

/* Unless what is there, a row is inserted: see insert_by_sql. */
typedef enum InsertUnless
{
	UNLESS_NOTHING,
	UNLESS_KEY_COUNTS,			/* its idempotent key, which is the user's */
	UNLESS_KEY_WAITS			/* its replace_key */
} InsertUnless;

/*
 * By SQL, where insert_row will not do: a superuser has put a trigger, say, on the
 * table, or the row has a key of the user's.  False: no row was inserted.  That is so
 * if what is named is there; a transaction that was queueing it was waited for.
 */
static bool
insert_by_sql(Datum *values, bool *nulls, InsertUnless unless)
{
	static SqlStatement statements[] = {
		INSERT_STATEMENT(""),
		INSERT_STATEMENT(" ON CONFLICT (server, roleid, idempotent_key) WHERE " OUTBOX_KEY_COUNTS " DO NOTHING"),
		INSERT_STATEMENT(" ON CONFLICT (server, roleid, replace_key) WHERE " REPLACE_WAITS " DO NOTHING")
	};
	static const int columns[NUM_INSERTED] = {
		OUTBOX_ID, OUTBOX_ROLEID, OUTBOX_DATABASE, OUTBOX_SYSTEM_IDENTIFIER, OUTBOX_MAX_ATTEMPTS,
		OUTBOX_SERVER_OWNER, OUTBOX_IS_ASYNC, OUTBOX_OWN_KEY, OUTBOX_CREATED_AT, OUTBOX_RUN_AT, OUTBOX_NEXT_AT, OUTBOX_EXPIRES_AT,
		OUTBOX_SERVER, OUTBOX_NAMESPACE, OUTBOX_FLOW_ID, OUTBOX_OPERATOR,
		OUTBOX_PARAMS, OUTBOX_IDEMPOTENT_KEY, OUTBOX_LOOP_MASKS, OUTBOX_ORDERING_KEY, OUTBOX_ON_END,
		OUTBOX_REPLACE_KEY, OUTBOX_REPLACEABLE, OUTBOX_PRIORITY
	};
	Datum		arguments[NUM_INSERTED];
	char		flags[NUM_INSERTED];

	outbox_row_arguments(values, nulls, columns, NUM_INSERTED, arguments, flags);
	return sql_run_as_owner(&statements[unless], arguments, flags, SPI_OK_INSERT, NULL) > 0;
}

/*
 * Cancel a flow that waits in a copy of the database that it was queued in, as the
 * dispatcher will when it begins there: it is not to stand for one of this database.
 */
void
outbox_cancel_copied(int64 id)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET state = 'c', next_at = NULL,"
		" finished_at = pg_catalog.clock_timestamp(), error = $2"
		" WHERE id OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'q'",
		2, INT8OID, TEXTOID);
	Datum		values[2] = {Int64GetDatum(id), CStringGetTextDatum(record_not_ours_text())};

	if (sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL) > 0)
		notify_ended(id);
}

/*
 * The flow that has a key of the user's; 0: none has.  Whatever the transaction's
 * snapshot says: by now it may have failed, and then nothing would be started.
 *
 * One of another cluster may be ours soon, when that was upgraded (origin.c).
 */
static int64
find_key(const QueuedFlow *flow)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT id, state OPERATOR(pg_catalog.=) 'q' AND system_identifier OPERATOR(pg_catalog.=) $4"
		" AND database OPERATOR(pg_catalog.<>) $5"
		" FROM feishu_internal.outbox WHERE server OPERATOR(pg_catalog.=) $1"
		" AND roleid OPERATOR(pg_catalog.=) $2 AND idempotent_key OPERATOR(pg_catalog.=) $3"
		" AND " OUTBOX_KEY_COUNTS,
		5, TEXTOID, OIDOID, TEXTOID, INT8OID, OIDOID);
	Datum		values[5] = {
		CStringGetTextDatum(flow->server),
		ObjectIdGetDatum(flow->roleid),
		CStringGetTextDatum(flow->request.idempotent_key),
		origin_system(),
		origin_database()
	};
	SqlCaller	caller;
	int64		id = 0;

	sql_begin_as_owner(&caller);
	if (sql_run(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) > 0)
	{
		id = sql_int64(0, 1);
		if (DatumGetBool(sql_value(0, 2, NULL)))
		{
			outbox_cancel_copied(id);
			id = 0;
		}
	}
	sql_end_as_owner(&caller);
	return id;
}

/*
 * Insert the row, whose key is the user's; returns its id, or that of the flow that has
 * the key.  That one may have ended before it is seen; but what a superuser has put on
 * the table may throw each row away, too, and may do so.
 */
static int64
insert_key(const QueuedFlow *flow, int64 id, Datum *values, bool *nulls)
{
	for (int i = 0; i < KEY_TRIES; i++)
	{
		int64		other;

		if (insert_by_sql(values, nulls, UNLESS_KEY_COUNTS))
			return id;
		other = find_key(flow);
		if (other != 0)
			return other;
	}
	(void) insert_by_sql(values, nulls, UNLESS_NOTHING);
	return id;
}

/*
 * Replace the flow that waits with the row's replace_key; if there is none, insert the
 * row.  Returns the id.  An id is drawn when it is known that it is needed; then another
 * may have come first.
 */
static int64
insert_or_replace(const QueuedFlow *flow, Oid outbox, Oid last_id, Datum *values, bool *nulls)
{
	int64		id = 0;

	for (int i = 0; i < KEY_TRIES; i++)
	{
		int64		other = replace_waiting(flow, outbox, values, nulls);

		if (other != 0)
			return other;
		if (id == 0)
			values[OUTBOX_ID] = Int64GetDatum(id = flow_id_draw(last_id));
		if (insert_by_sql(values, nulls, UNLESS_KEY_WAITS))
			return id;
	}
	(void) insert_by_sql(values, nulls, UNLESS_NOTHING);
	return id;
}

/*
 * Insert a flow whose request is checked, and whose server is known.  Returns its id, or
 * that of the flow that has its key or that it replaces, which is looked for first: else
 * each would draw an id in vain.
 */
int64
outbox_insert(const QueuedFlow *flow)
{
	const FlowRequest *request = &flow->request;
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	TimestampTz run_at = flow->run_at == DT_NOBEGIN ? now : flow->run_at;
	TimestampTz expires_at = flow->expires_at;
	bool		delayed = run_at > now && run_at > GetCurrentTimestamp();
	bool		own_key = request->idempotent_key == NULL;
	Oid			outbox;
	Oid			last_id;
	Datum		values[OUTBOX_COLUMNS] = {0};
	bool		nulls[OUTBOX_COLUMNS];
	char	   *on_end;
	int64		id;

	check_delivery(flow, now);
	on_end = flow->on_end != NULL ? on_end_resolve(flow->on_end, flow->roleid, flow->on_end_needs_schema) : NULL;
	if (TIMESTAMP_IS_NOBEGIN(expires_at))
		expires_at = outbox_expires_by_age(Max(run_at, now));

	/* a read-only transaction, a standby: as INSERT would */
	sql_check_writable("enqueue_flow()");
	PreventCommandIfParallelMode("enqueue_flow()");

	sql_lock_outbox(&outbox, &last_id);
	if (!own_key && (id = find_key(flow)) != 0)
		return id;

	memset(nulls, true, sizeof(nulls));
#define SET(column, datum) (values[column] = (datum), nulls[column] = false)
	nulls[OUTBOX_ID] = false;	/* it is drawn last */
	SET(OUTBOX_ROLEID, ObjectIdGetDatum(flow->roleid));
	SET(OUTBOX_DATABASE, origin_database());
	SET(OUTBOX_SYSTEM_IDENTIFIER, origin_system());
	SET(OUTBOX_ATTEMPTS, Int32GetDatum(0));
	if (flow->max_attempts > 0)
		SET(OUTBOX_MAX_ATTEMPTS, Int32GetDatum(flow->max_attempts));
	SET(OUTBOX_SERVER_OWNER, ObjectIdGetDatum(flow->server_owner));
	SET(OUTBOX_STATE, CharGetDatum(OUTBOX_QUEUED));
	SET(OUTBOX_IS_ASYNC, BoolGetDatum(request->is_async));
	SET(OUTBOX_OWN_KEY, BoolGetDatum(own_key));
	SET(OUTBOX_UNANSWERED, BoolGetDatum(false));
	SET(OUTBOX_REPLACEABLE, BoolGetDatum(flow->replace_key != NULL));
	SET(OUTBOX_PRIORITY, Int16GetDatum(flow->priority));
	SET(OUTBOX_CREATED_AT, TimestampTzGetDatum(now));
	SET(OUTBOX_RUN_AT, TimestampTzGetDatum(run_at));
	if (delayed)
		SET(OUTBOX_NEXT_AT, TimestampTzGetDatum(run_at));
	SET(OUTBOX_EXPIRES_AT, TimestampTzGetDatum(expires_at));
	SET(OUTBOX_SERVER, CStringGetTextDatum(flow->server));
	SET(OUTBOX_NAMESPACE, CStringGetTextDatum(request->namespace_name));
	SET(OUTBOX_FLOW_ID, CStringGetTextDatum(request->flow_id));
	SET(OUTBOX_OPERATOR, JsonbPGetDatum(request->operator_id));
	if (request->params != NULL)
		SET(OUTBOX_PARAMS, JsonbPGetDatum(request->params));
	SET(OUTBOX_IDEMPOTENT_KEY,
		CStringGetTextDatum(own_key ? outbox_random_key() : request->idempotent_key));
	if (request->loop_masks != NULL)
		SET(OUTBOX_LOOP_MASKS, JsonbPGetDatum(request->loop_masks));
	if (flow->ordering_key != NULL)
		SET(OUTBOX_ORDERING_KEY, CStringGetTextDatum(flow->ordering_key));
	if (flow->replace_key != NULL)
		SET(OUTBOX_REPLACE_KEY, CStringGetTextDatum(flow->replace_key));
	if (on_end != NULL)
		SET(OUTBOX_ON_END, CStringGetTextDatum(on_end));

	if (flow->replace_key != NULL)
		id = insert_or_replace(flow, outbox, last_id, values, nulls);
	else
	{
		id = flow_id_draw(last_id);
		values[OUTBOX_ID] = Int64GetDatum(id);
		if (!own_key)
		{
			int64		other = insert_key(flow, id, values, nulls);

			if (other != id)
				return other;
		}
		else if (!insert_row(outbox, OUTBOX_COLUMNS, column_types, values, nulls))
			(void) insert_by_sql(values, nulls, UNLESS_NOTHING);
	}

	notify_row(id);
	outbox_warn_without_dispatcher();
	return id;
}

/*
 * Insert a row in the current transaction, in the name of flow->roleid, who needs USAGE
 * on the server (42501) and a user mapping (42704).  Returns its id.  request.operator_id
 * may be NULL if the server has a default operator; request.idempotent_key NULL: a
 * random UUID is made.  If the key is in the queue already, nothing is queued, and the
 * id is that of the flow that has it.  With a replace_key, a flow that has it, waits,
 * and was never begun with is replaced, and the id is its.  SPI is used inside.
 */
int64
outbox_enqueue(const QueuedFlow *flow)
{
	QueuedFlow	complete = *flow;
	FlowServer *server = server_lookup(flow->server, flow->roleid);

	complete.server = server->name;
	complete.server_owner = server->owner;
	if (complete.request.operator_id == NULL)
		complete.request.operator_id = request_default_operator(server->operator_json);
	server_forget_secrets(server);
	request_check(&complete.request);
	return outbox_insert(&complete);
}
