/*-------------------------------------------------------------------------
 *
 * src/api/check_schema.c
 *	  What the extension's script has to know before it makes anything.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "fmgr.h"
#include "utils/builtins.h"

#include "base/nls.h"

PG_FUNCTION_INFO_V1(feishu_check_schema);

/*
 * Throw if there is a schema of this name: the extension makes its own, so that
 * nothing in it is somebody else's.
 */
Datum
feishu_check_schema(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	if (OidIsValid(get_namespace_oid(name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_SCHEMA),
				 errmsg("schema \"%s\" already exists", name),
				 errdetail("The extension creates this schema itself, and does not take over an existing one."),
				 errhint("Rename the existing schema (ALTER SCHEMA %s RENAME TO ...), or drop it if nobody needs it. Then repeat CREATE EXTENSION.",
						 quote_identifier(name))));
	PG_RETURN_VOID();
}
