/*-------------------------------------------------------------------------
 *
 * insert.h
 *	  Insert one row into a table at the cost of the row.
 *
 * Private to src/queue/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/queue/insert.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_INSERT_H
#define FEISHU_INSERT_H

/*
 * Insert a row of all columns, which have these types, into the table and its
 * indexes, as INSERT would.  Returns false, having done nothing, when the table
 * is another one than the caller thinks, or has something that only the
 * executor does right (triggers, check constraints, row security, ...): then use
 * SQL.  The caller has checked rights and NOT NULL.
 */
extern bool insert_row(Oid relid, int num_columns, const Oid *types,
					   Datum *values, bool *nulls);

#endif							/* FEISHU_INSERT_H */
