/*-------------------------------------------------------------------------
 *
 * arrays.h
 *	  Arrays of values, as arguments of SQL.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/arrays.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ARRAYS_H
#define FEISHU_ARRAYS_H

extern Datum array_of(Datum *values, int num, Oid type);
extern Datum array_of_nullable(Datum *values, bool *nulls, int num, Oid type);
extern Datum array_of_ids(const int64 *ids, int num);

#endif							/* FEISHU_ARRAYS_H */
