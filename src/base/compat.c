/*-------------------------------------------------------------------------
 *
 * src/base/compat.c
 *	  Shims of compat.h that need code.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "fmgr.h"
#include "miscadmin.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"

#include "base/compat.h"

#if PG_VERSION_NUM >= 160000

/*
 * Call a type's input function without throwing because of what the text
 * says; false when it is no value of the type, and then *error, unless NULL,
 * tells why.  16 has soft errors for this.  See compat.c for 15.
 */
bool
feishu_input(PGFunction function, char *text, Datum *result, ErrorData **error)
{
	ErrorSaveContext escontext = {.type = T_ErrorSaveContext};

	escontext.details_wanted = error != NULL;
	if (DirectInputFunctionCallSafe(function, text, InvalidOid, -1,
									(Node *) &escontext, result))
		return true;
	if (error != NULL)
		*error = escontext.error_data;
	return false;
}

#else

/*
 * 15 can only throw, so catch what says that the text is bad (class 22 and
 * syntax errors) or beyond a limit (54000), and nothing else: not a cancel,
 * not out of memory.
 *
 * Going on after an error without a rollback to a subtransaction is safe
 * here and in few other places: the input functions it is used with take no
 * lock, buffer, pin or catalog reference that error cleanup would have to
 * release.  All they do is to allocate memory, which goes with the context.
 */
bool
feishu_input(PGFunction function, char *text, Datum *result, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile bool parsed = false;

	PG_TRY();
	{
		*result = DirectFunctionCall3(function, CStringGetDatum(text),
									  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
		parsed = true;
	}
	PG_CATCH();
	{
		ErrorData  *caught;

		MemoryContextSwitchTo(context);
		caught = CopyErrorData();
		/* the error has ended all HOLD_INTERRUPTS, but those of our callers hold */
		InterruptHoldoffCount = holdoff;
		if (ERRCODE_TO_CATEGORY(caught->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			caught->sqlerrcode != ERRCODE_SYNTAX_ERROR &&
			caught->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		if (error != NULL)
			*error = caught;
		else
			FreeErrorData(caught);
		FlushErrorState();
	}
	PG_END_TRY();

	return parsed;
}

/* As the server's own have_createdb_privilege(). */
bool
feishu_have_createdb(void)
{
	HeapTuple	tuple;
	bool		may = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

#endif

/* Parse JSON text in the database encoding; false when jsonb cannot hold it. */
bool
feishu_jsonb_from_cstring(char *json, Jsonb **result)
{
	Datum		datum;

	if (!feishu_input(jsonb_in, json, &datum, NULL))
		return false;
	*result = DatumGetJsonbP(datum);
	return true;
}
