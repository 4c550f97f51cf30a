/*-------------------------------------------------------------------------
 *
 * compat.c
 *	  Shims of compat.h that need code.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/compat.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#include "utils/fmgrprotos.h"

#include "compat.h"

#if PG_VERSION_NUM >= 160000

bool
feishu_jsonb_from_cstring(char *json, Jsonb **result)
{
	ErrorSaveContext escontext = {.type = T_ErrorSaveContext};
	Datum		datum;

	if (!DirectInputFunctionCallSafe(jsonb_in, json, InvalidOid, -1,
									 (Node *) &escontext, &datum))
		return false;
	*result = DatumGetJsonbP(datum);
	return true;
}

#else

/*
 * 15 can only throw, so catch what says that the text is bad (class 22) or
 * beyond jsonb's limits (54000), and nothing else: not a cancel, not out of
 * memory.
 *
 * Going on after an error without a rollback to a subtransaction is safe
 * here and in few other places: jsonb_in takes no lock, buffer, pin or
 * catalog reference that error cleanup would have to release.  All it does
 * is to allocate memory, which goes with the context.
 */
bool
feishu_jsonb_from_cstring(char *json, Jsonb **result)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool parsed = false;

	PG_TRY();
	{
		*result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													 CStringGetDatum(json)));
		parsed = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;
		bool		is_bad_text;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		is_bad_text = ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
			error->sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		FreeErrorData(error);
		if (!is_bad_text)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	return parsed;
}

#endif
