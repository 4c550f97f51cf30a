/*-------------------------------------------------------------------------
 *
 * src/queue/on_end.c
 *	  Which function is meant by on_end.
 *
 * It is looked for when the flow is queued, by the search_path of then, and is
 * remembered by schema and name, quoted.  It is called by these, with the rights of
 * the role that queued the flow: so a function that was replaced meanwhile is called
 * as it is by then, and one that the role may not execute any more is not.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/nls.h"
#include "queue/on_end.h"

#define FUNCTION_HINT \
	gettext_noop("Give the name of a function of one argument of type feishu.flows.")


/* The row type of the view feishu.flows. */
static Oid
flows_type(void)
{
	Oid			schema = get_namespace_oid("feishu", true);
	Oid			view = OidIsValid(schema) ? get_relname_relid("flows", schema) : InvalidOid;

	if (!OidIsValid(view))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension \"%s\" is not installed in this database", "feishu_flow"),
				 errhint("CREATE EXTENSION feishu_flow.")));
	return get_rel_type_id(view);
}

/* Handlers are called in sessions of the role: may it have one? */
static void
check_role(Oid roleid)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(roleid));
	bool		may;

	if (!HeapTupleIsValid(tuple))
		return;
	may = !FEISHU_WORKERS_NEED_LOGIN || ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!may)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no handler can be called for role \"%s\"", GetUserNameFromId(roleid, true)),
				 errdetail("Handlers are called in a session of the role that queued the flow, and this role is not permitted to log in."),
				 errhint("ALTER ROLE ... LOGIN (a password is not needed), or queue the flow as another role.")));
}

/* Throw that an on_end cannot be used. */
static void
report_name(const char *on_end)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" is not the name of a function: \"%s\"", "on_end", on_end),
			 errhint("%s", _(FUNCTION_HINT))));
}

/* The parts of a name, of which its schema may have to be one. */
static List *
parse_name(const char *on_end, bool with_schema)
{
	char	   *copy = pstrdup(on_end);
	List	   *parts;
	List	   *names = NIL;
	ListCell   *cell;

	if (!SplitIdentifierString(copy, '.', &parts) || list_length(parts) < 1 || list_length(parts) > 2)
		report_name(on_end);
	if (with_schema && list_length(parts) < 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must name the function with its schema: \"%s\"", "on_end", on_end),
				 errdetail("The trigger can be deferred, and is fired then with the search_path of whoever ends the transaction."),
				 errhint("Write it like \"public.order_approved\".")));
	foreach(cell, parts)
		names = lappend(names, makeString(lfirst(cell)));
	return names;
}

/*
 * The function that a role means by on_end, as it is remembered.  Throws.
 *
 * with_schema: the name has to have one, for the search_path is not the role's choice.
 */
char *
on_end_resolve(const char *on_end, Oid roleid, bool with_schema)
{
	List	   *names = parse_name(on_end, with_schema);
	Oid			argument = flows_type();
	Oid			function = LookupFuncName(names, 1, &argument, true);
	Oid			schema;

	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist",
						func_signature_string(names, 1, NIL, &argument)),
				 errhint("%s", _(FUNCTION_HINT))));
	if (get_func_prokind(function) != PROKIND_FUNCTION)
		report_name(on_end);
	schema = get_func_namespace(function);
	if (isAnyTempNamespace(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not name a temporary function", "on_end"),
				 errdetail("It is called in another session.")));
	if (!feishu_may_use_schema(schema, roleid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_SCHEMA, get_namespace_name(schema));
	if (!feishu_may_execute(function, roleid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, get_func_name(function));
	check_role(roleid);
	return quote_qualified_identifier(get_namespace_name(schema), get_func_name(function));
}
