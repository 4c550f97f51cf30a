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

extern bool insert_row(Oid relid, int num_columns, const Oid *types,
					   Datum *values, bool *nulls);

#endif							/* FEISHU_INSERT_H */
