/*-------------------------------------------------------------------------
 *
 * src/dispatcher/claim_ids.c
 *	  The row of feishu_internal.claim: which rows the dispatcher of this database has
 *	  claimed.
 *
 * It is written by each transaction that claims rows, or records ends.  After a crash
 * it says which attempts got no answer.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "base/nls.h"
#include "base/sqlrun.h"
#include "dispatcher/claim.h"
#include "dispatcher/dispatcher_internal.h"
#include "queue/origin.h"

/* Where this database's row of feishu_internal.claim is. */
static ItemPointerData claim_row;

/* Throw that there is none. */
static void
report_no_claim(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("table feishu_internal.claim does not have one row")));
}

/* Take over from the dispatcher before us, if there was one (origin.c). */
void
claim_recover(void)
{
	static SqlStatement begin = SQL_STATEMENT(
		"UPDATE feishu_internal.claim SET ids = '{}' WHERE system_identifier = $1 AND database = $2"
		" RETURNING ctid",
		2, INT8OID, OIDOID);
	/* what held its lanes will be found again if it is still so */
	static SqlStatement forget_holds = SQL_STATEMENT(
		"DELETE FROM feishu_internal.held_lane", 0, InvalidOid);
	Datum		values[2] = {origin_system(), origin_database()};

	origin_settle();
	attempts_recover();
	sql_run(&forget_holds, NULL, NULL, SPI_OK_DELETE, NULL);
	if (sql_run(&begin, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1)
		report_no_claim();
	claim_row = *(ItemPointer) DatumGetPointer(sql_value(0, 1, NULL));
}

/*
 * Flows that were claimed for the first time are not replaced any more (replace.c), but
 * for those that were given back at once.  ids: room for all flights.
 */
static void
close_replaceable(int64 *ids)
{
	static SqlStatement statement = SQL_STATEMENT(
		"UPDATE feishu_internal.outbox SET replaceable = false WHERE id = ANY ($1)",
		1, INT8ARRAYOID);
	int			num = flight_ids_begun(ids);
	Datum		values[1];

	if (num == 0)
		return;
	values[0] = array_of_ids(ids, num);
	sql_run(&statement, values, NULL, SPI_OK_UPDATE, NULL);
}

/*
 * Write which rows are in flight.  The row is found by where it is: an old
 * snapshot may keep thousands of its former versions.  By now another may be
 * there, which came by replication.
 */
void
claim_write_ids(void)
{
#define WRITE_IDS	"UPDATE feishu_internal.claim SET ids = $1 WHERE system_identifier = $2 AND database = $3"
	static SqlStatement statement = SQL_STATEMENT(
		WRITE_IDS " AND ctid = $4 RETURNING ctid",
		4, INT8ARRAYOID, INT8OID, OIDOID, TIDOID);
	/* VACUUM FULL may have moved it */
	static SqlStatement anywhere = SQL_STATEMENT(
		WRITE_IDS " RETURNING ctid",
		3, INT8ARRAYOID, INT8OID, OIDOID);
	int64	   *ids = palloc(Max(flight_most_ids(), 1) * sizeof(int64));
	Datum		values[4] = {
		array_of_ids(ids, flight_ids(ids)), origin_system(), origin_database(), PointerGetDatum(&claim_row)
	};

	close_replaceable(ids);
	if (sql_run(&statement, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1 &&
		sql_run(&anywhere, values, NULL, SPI_OK_UPDATE_RETURNING, NULL) != 1)
		report_no_claim();
	claim_row = *(ItemPointer) DatumGetPointer(sql_value(0, 1, NULL));
}
