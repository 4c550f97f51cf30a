/*-------------------------------------------------------------------------
 *
 * src/queue/attempt.h
 *	  Attempts of flows that went wrong.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ATTEMPT_H
#define FEISHU_ATTEMPT_H

#include "base/sqlrun.h"

/* In SQL: the number of the next failure of a row of the outbox, whose columns are so
 * qualified ("o." or ""). */
#define ATTEMPT_NEXT(row) \
	"COALESCE(" row "failures, 0) OPERATOR(pg_catalog.+) 1"

/* These need a transaction and sql_begin_as_owner. */
extern void attempt_insert(SqlStatement *statement, Datum *values, const char *nulls);
extern void attempt_keep_request(int64 flow);

#endif							/* FEISHU_ATTEMPT_H */
