/*-------------------------------------------------------------------------
 *
 * src/dispatcher/arrays.c
 *	  Arrays of values, as arguments of SQL.
 *
 * All in the current memory context.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

#include "dispatcher/dispatcher_internal.h"

/* Of values of a type; nulls may be NULL. */
Datum
array_of_nullable(Datum *values, bool *nulls, int num, Oid type)
{
	int16		length;
	bool		by_value;
	char		align;
	int			dims[1] = {num};
	int			lower[1] = {1};

	get_typlenbyvalalign(type, &length, &by_value, &align);
	return PointerGetDatum(construct_md_array(values, nulls, 1, dims, lower,
											  type, length, by_value, align));
}

/* The same of which none is null. */
Datum
array_of(Datum *values, int num, Oid type)
{
	return array_of_nullable(values, NULL, num, type);
}

/* Of ids. */
Datum
array_of_ids(const int64 *ids, int num)
{
	Datum	   *values = palloc(Max(num, 1) * sizeof(Datum));

	for (int i = 0; i < num; i++)
		values[i] = Int64GetDatum(ids[i]);
	return array_of(values, num, INT8OID);
}
