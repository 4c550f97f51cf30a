/*-------------------------------------------------------------------------
 *
 * src/base/sqlrun.h
 *	  SQL on the extension's own tables: saved plans, run as their owner.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SQLRUN_H
#define FEISHU_SQLRUN_H

#include "executor/spi.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"

/* Where the queue's tables are; nobody else may look into it. */
#define QUEUE_SCHEMA		"feishu_internal"

#define SQL_MAX_ARGUMENTS	24

/* A statement, planned at its first use and kept; to be a static variable. */
typedef struct SqlStatement
{
	const char *text;			/* everything in it is qualified */
	int			num_arguments;
	Oid			types[SQL_MAX_ARGUMENTS];
	int			options;		/* of cursors, see SPI_prepare_cursor */
	SPIPlanPtr	plan;
} SqlStatement;

/* Initializer: text, number of arguments, their types (InvalidOid for none). */
#define SQL_STATEMENT(text_, num, ...) \
	{.text = (text_), .num_arguments = (num), .types = {__VA_ARGS__}}

/* The same, with one plan for any arguments.  Otherwise PostgreSQL may plan it anew
 * each time, when a plan for these arguments looks cheaper: it has copies of them,
 * which may be large, and it always looks cheaper when arrays are short. */
#define SQL_STATEMENT_PLANNED_ONCE(text_, num, ...) \
	{.text = (text_), .num_arguments = (num), .types = {__VA_ARGS__}, \
	 .options = CURSOR_OPT_GENERIC_PLAN}

/* The queue's tables; these two are not written by SQL (flow_id.c). */
#define QUEUE_TABLES		8
#define LAST_ID_TABLE		"last_id"
#define LAST_END_TABLE		"last_end"

extern const char *const queue_tables[QUEUE_TABLES];
extern bool sql_has_triggers(Relation table);
extern Oid	sql_find_table(const char *name);
extern void sql_find_outbox(Oid *outbox, Oid *last_id);
extern void sql_lock_outbox(Oid *outbox, Oid *last_id);
extern Oid	sql_lock_number(const char *name);
extern void sql_check_writable(const char *command);

/* Who one was before. */
typedef struct SqlCaller
{
	Oid			userid;
	int			sec_context;
} SqlCaller;

/* Between these two, SPI is connected and the current user owns the tables. */
extern void sql_begin_as_owner(SqlCaller *caller);
extern void sql_end_as_owner(const SqlCaller *caller);
extern uint64 sql_run(SqlStatement *statement, Datum *values, const char *nulls,
					  int expected, Snapshot snapshot);
extern uint64 sql_run_as_owner(SqlStatement *statement, Datum *values, const char *nulls,
							   int expected, Snapshot snapshot);
extern Datum sql_value(uint64 row, int column, bool *is_null);
extern int64 sql_int64(uint64 row, int column);

#endif							/* FEISHU_SQLRUN_H */
