/*-------------------------------------------------------------------------
 *
 * src/queue/origin.c
 *	  In which database of which cluster a row of the queue was queued.
 *
 * Rows of the queue may come to a database that they were not queued in: it is a
 * copy, or a subscriber of a publication that has the queue's tables.  There
 * they must not be sent, for the original sends them.  So each row says where it
 * was queued, by the cluster's system identifier and the database's OID, and so
 * does the row of feishu_internal.claim, which tells a dispatcher whether there was one
 * before it:
 *
 *	what has happened			system identifier	OID
 *	a restart, a failover		the same			the same
 *	CREATE DATABASE TEMPLATE	the same			another
 *	pg_upgrade					another				the same
 *	pg_createsubscriber			another				the same
 *	rows were replicated		another				any
 *
 * A row of feishu_internal.claim that is this database's: go on.  What came by
 * replication meanwhile is cancelled when its turn comes.
 *
 * None, but one with our OID: the cluster was upgraded, which always makes a new
 * one, and what waits is ours now.  If the major version is the same and the
 * database is a subscriber, pg_createsubscriber has made it, and it is a copy.
 * Where that is wrong, both send: the idempotent keys have each flow start once,
 * whereas a flow that nobody sends is lost.
 *
 * Neither: this is a copy, or the row was lost.  What waits here of another
 * database is cancelled, and no handler of another database is called.
 *
 * Rows of feishu_internal.claim that others write, by replication, are left alone.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "queue/notify.h"
#include "queue/on_end.h"
#include "queue/origin.h"
#include "queue/record_text.h"

Datum
origin_system(void)
{
	return Int64GetDatum((int64) GetSystemIdentifier());
}

Datum
origin_database(void)
{
	return ObjectIdGetDatum(MyDatabaseId);
}

bool
origin_is_ours(Datum system_identifier, Datum database)
{
	return DatumGetInt64(system_identifier) == (int64) GetSystemIdentifier() &&
		DatumGetObjectId(database) == MyDatabaseId;
}

/* Has it been decided whose the rows of another cluster are? */
static bool
is_settled(void)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.claim WHERE system_identifier OPERATOR(pg_catalog.=) $1"
		" AND database OPERATOR(pg_catalog.=) $2",
		2, INT8OID, OIDOID);
	Datum		values[2] = {origin_system(), origin_database()};

	return sql_run(&statement, values, NULL, SPI_OK_SELECT, NULL) > 0;
}

/* origin_is_ours, or it may be so soon: nobody has looked yet whether this is an upgrade. */
bool
origin_may_be_ours(Datum system_identifier, Datum database)
{
	SqlCaller	caller;
	bool		settled;

	if (origin_is_ours(system_identifier, database))
		return true;
	if (DatumGetObjectId(database) != MyDatabaseId)
		return false;
	sql_begin_as_owner(&caller);
	settled = is_settled();
	sql_end_as_owner(&caller);
	return !settled;
}

/* What waited when the cluster was upgraded is ours now, claims included. */
static void
adopt(Datum *values)
{
	static SqlStatement adopt_flows = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox o SET system_identifier = $1 FROM feishu_internal.claim c"
		" WHERE c.database = $2 AND o.database = $2"
		" AND o.system_identifier = c.system_identifier AND (o.state = 'q' OR " HANDLER_WAITS ")",
		2, INT8OID, OIDOID);
	static SqlStatement adopt_claim = SQL_STATEMENT(
		"WITH old AS (DELETE FROM feishu_internal.claim WHERE database = $2 RETURNING ids)"
		" INSERT INTO feishu_internal.claim (system_identifier, database, major_version, ids)"
		" SELECT $1, $2, $3, ARRAY(SELECT unnest(ids) FROM old)",
		3, INT8OID, OIDOID, INT4OID);
	uint64		num = sql_run(&adopt_flows, values, NULL, SPI_OK_UPDATE, NULL);

	sql_run(&adopt_claim, values, NULL, SPI_OK_INSERT, NULL);
	if (num > 0)
		ereport(LOG,
				(errmsg("feishu_flow sends the flows that were waiting in database \"%s\" when the cluster was upgraded",
						get_database_name(MyDatabaseId))));
}

/* This database is a copy: what waits in the original is the original's. */
static void
disown(Datum *values)
{
	static SqlStatement disown_flows = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET state = 'c', next_at = NULL, finished_at = now(), error = $3"
		" WHERE state = 'q' AND (database <> $2 OR system_identifier <> $1)",
		3, INT8OID, OIDOID, TEXTOID);
	static SqlStatement disown_handlers = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET handler_state = 'f', handler_error = $3"
		" WHERE " HANDLER_WAITS " AND (database <> $2 OR system_identifier <> $1)",
		3, INT8OID, OIDOID, TEXTOID);
	static SqlStatement claim = SQL_STATEMENT(
		"INSERT INTO feishu_internal.claim (system_identifier, database, major_version, ids)"
		" VALUES ($1, $2, $3, '{}')",
		3, INT8OID, OIDOID, INT4OID);
	Datum		disowned[3] = {values[0], values[1], CStringGetTextDatum(record_not_ours_text())};
	uint64		num = sql_run(&disown_flows, disowned, NULL, SPI_OK_UPDATE, NULL);

	disowned[2] = CStringGetTextDatum(_("the database was copied while this handler was waiting; the original calls it"));
	sql_run(&disown_handlers, disowned, NULL, SPI_OK_UPDATE, NULL);
	sql_run(&claim, values, NULL, SPI_OK_INSERT, NULL);
	if (num > 0)
	{
		notify_ended_some();
		ereport(LOG,
				(errmsg("feishu_flow cancels the flows that were waiting when database \"%s\" was copied: the original sends them",
						get_database_name(MyDatabaseId))));
	}
}

/*
 * See that feishu_internal.claim has a row of this database; needs a transaction and
 * sql_begin_as_owner.
 */
void
origin_settle(void)
{
	static SqlStatement is_upgraded = SQL_STATEMENT(
		"SELECT FROM feishu_internal.claim WHERE database = $2 AND system_identifier <> $1"
		" AND (major_version <> $3"
		" OR NOT EXISTS (SELECT FROM pg_subscription WHERE subdbid = $2))",
		3, INT8OID, OIDOID, INT4OID);
	Datum		values[3] = {
		origin_system(), origin_database(), Int32GetDatum(PG_VERSION_NUM / 10000)
	};

	if (is_settled())
		return;
	if (sql_run(&is_upgraded, values, NULL, SPI_OK_SELECT, NULL) > 0)
		adopt(values);
	else
		disown(values);
}
