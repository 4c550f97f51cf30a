/*-------------------------------------------------------------------------
 *
 * src/api/validator.c
 *	  SQL function feishu_flow_validator, of the foreign-data wrapper.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "fmgr.h"

#include "app/server.h"
#include "queue/notify.h"

PG_FUNCTION_INFO_V1(feishu_flow_validator);


/* feishu_flow_validator(options, catalog): throws what is wrong with them, see options_check. */
Datum
feishu_flow_validator(PG_FUNCTION_ARGS)
{
	Oid			catalog = PG_GETARG_OID(1);

	options_check(untransformRelOptions(PG_GETARG_DATUM(0)), catalog);

	/* flows may wait for just this: credentials corrected, a server made */
	if (catalog == UserMappingRelationId || catalog == ForeignServerRelationId)
		notify_control();

	PG_RETURN_VOID();
}
