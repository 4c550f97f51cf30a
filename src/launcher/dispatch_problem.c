/*-------------------------------------------------------------------------
 *
 * src/launcher/dispatch_problem.c
 *	  Why nothing sends what is queued in a database, or may not.
 *
 * Besides that there may be no dispatcher, the queue's tables may not be what the
 * extension has made of them.  Superusers do that, by a command for all tables,
 * say; a dispatcher may get along with it, or fail, or flows be lost.
 *
 * A view shows it at each look, so this costs some look-ups in the system caches,
 * and waits for nobody.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/guc.h"
#include "base/lock_wait.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "http/http.h"
#include "launcher/launcher_internal.h"

PG_FUNCTION_INFO_V1(feishu_dispatch_problem);

/* Is this a database that gets no dispatcher? */
static bool
database_is_closed(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		closed = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		closed = form->datistemplate || !form->datallowconn;
		ReleaseSysCache(tuple);
	}
	return closed;
}

/* Open a table if nobody is altering or dropping it: he is not waited for. */
static Relation
open_if_free(Oid relid)
{
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return NULL;
	if (SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		return relation_open(relid, NoLock);
	UnlockRelationOid(relid, AccessShareLock);
	return NULL;
}

/* Is a table distributed?  Citus has a catalog of those. */
static bool
table_is_distributed(Oid relid)
{
	Oid			catalog = get_relname_relid("pg_dist_partition", PG_CATALOG_NAMESPACE);
	AttrNumber	column = OidIsValid(catalog) ? get_attnum(catalog, "logicalrelid") : InvalidAttrNumber;
	Relation	relation;
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	if (column == InvalidAttrNumber || get_atttype(catalog, column) != REGCLASSOID ||
		get_rel_relkind(catalog) != RELKIND_RELATION)
		return false;
	relation = open_if_free(catalog);
	if (relation == NULL)
		return false;
	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	scan = systable_beginscan(relation, InvalidOid, false, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	relation_close(relation, AccessShareLock);
	return found;
}

/* Does a table have a trigger or rule?  pg_class says only that it had one once. */
static DispatchProblem
table_triggers(Oid relid)
{
	Relation	relation = open_if_free(relid);
	DispatchProblem problem;

	if (relation == NULL)
		return DISPATCH_NO_PROBLEM;
	problem = sql_has_triggers(relation) ? DISPATCH_TABLE_TRIGGER :
		relation->rd_rules != NULL ? DISPATCH_TABLE_RULE : DISPATCH_NO_PROBLEM;
	relation_close(relation, AccessShareLock);
	return problem;
}

/*
 * What somebody has made of a table that we may not be up to; by_sql: its rows
 * are written by SQL.
 */
static DispatchProblem
table_problem(Oid relid, bool by_sql)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	FormData_pg_class form;

	if (!HeapTupleIsValid(tuple))
		return DISPATCH_TABLE_GONE;
	form = *(Form_pg_class) GETSTRUCT(tuple);
	ReleaseSysCache(tuple);

	if (by_sql && form.relforcerowsecurity)
		return DISPATCH_TABLE_ROW_SECURITY;
	if (form.relpersistence != RELPERSISTENCE_PERMANENT)
		return DISPATCH_TABLE_UNLOGGED;
	if (table_is_distributed(relid))
		return DISPATCH_TABLE_DISTRIBUTED;
	if (form.relam != HEAP_TABLE_AM_OID)
		return DISPATCH_TABLE_NOT_HEAP;
	if (by_sql && (form.relhastriggers || form.relhasrules))
		return table_triggers(relid);
	return DISPATCH_NO_PROBLEM;
}

/* The first problem of a table, and which it is. */
static DispatchProblem
tables_problem(const char **table)
{
	/* while the extension is being dropped, say */
	if (!OidIsValid(get_namespace_oid(QUEUE_SCHEMA, true)))
		return DISPATCH_NO_PROBLEM;
	for (int i = 0; i < QUEUE_TABLES; i++)
	{
		DispatchProblem problem = table_problem(sql_find_table(queue_tables[i]),
												strcmp(queue_tables[i], LAST_ID_TABLE) != 0 &&
												strcmp(queue_tables[i], LAST_END_TABLE) != 0);

		if (problem == DISPATCH_NO_PROBLEM)
			continue;
		*table = queue_tables[i];
		return problem;
	}
	return DISPATCH_NO_PROBLEM;
}

/* Why there is no dispatcher; and the process of one that there is, or 0. */
static DispatchProblem
dispatcher_problem(int *pid)
{
	SlotView	view;
	int			place;
	bool		known;

	*pid = 0;

	if (!launcher_present())
		return DISPATCH_NOT_PRELOADED;
	if (!feishu_guc_dispatch)
		return DISPATCH_OFF;
	if (RecoveryInProgress())
		return DISPATCH_NO_PROBLEM;
	if (http_library_fault() == HTTP_LIBRARY_OLD)
		return DISPATCH_LIBRARY_OLD;
	if (http_library_fault() == HTTP_LIBRARY_TAKEN)
		return DISPATCH_LIBRARY_TAKEN;

	/* the slot may become another database's meanwhile */
	place = slots_find(MyDatabaseId);
	known = place >= 0 && slots_view(place, &view) && view.database == MyDatabaseId;
	if (known && view.worker)
	{
		*pid = view.pid;
		return view.failing ? DISPATCH_FAILS :
			view.locked_out || lock_wait_is_long(view.pid) ? DISPATCH_LOCKED_OUT :
			view.no_handlers ? DISPATCH_NO_HANDLERS : DISPATCH_NO_PROBLEM;
	}
	if (database_is_closed())
		return DISPATCH_CLOSED;
	if (!slots_may_start())
		return DISPATCH_NO_WORKER;
	return known && !view.ended_well ? DISPATCH_FAILS : DISPATCH_NO_PROBLEM;
}

/*
 * What is the matter with a table is what an administrator has to know, before
 * that the dispatcher fails.
 */
static DispatchProblem
find_problem(const char **table, int *pid)
{
	DispatchProblem problem = dispatcher_problem(pid);
	DispatchProblem of_table;

	*table = NULL;
	if (problem != DISPATCH_NO_PROBLEM && problem != DISPATCH_FAILS &&
		problem != DISPATCH_LOCKED_OUT && problem != DISPATCH_NO_HANDLERS)
		return problem;
	of_table = tables_problem(table);
	return of_table != DISPATCH_NO_PROBLEM ? of_table : problem;
}

/* Why this database's flows are not sent, and the table, if it is one's. */
DispatchProblem
launcher_problem(const char **table)
{
	int			pid;

	return find_problem(table, &pid);
}

/* In words, with %s for the table, or for versions, or NULL. */
static const char *
problem_format(DispatchProblem problem)
{
	switch (problem)
	{
		case DISPATCH_NO_PROBLEM:
		case DISPATCH_LOCKED_OUT:
			break;
		case DISPATCH_NOT_PRELOADED:
			return gettext_noop("PostgreSQL was started without feishu_flow in shared_preload_libraries");
		case DISPATCH_OFF:
			return gettext_noop("feishu_flow.dispatch is off");
		case DISPATCH_LIBRARY_OLD:
			return gettext_noop("libcurl %s is too old for this build of feishu_flow, made with libcurl %s");
		case DISPATCH_LIBRARY_TAKEN:
			return gettext_noop("libcurl was set up by another library");
		case DISPATCH_CLOSED:
			return gettext_noop("the database is a template, or allows no connections");
		case DISPATCH_NO_WORKER:
			return gettext_noop("there is no background worker for the dispatcher");
		case DISPATCH_NO_HANDLERS:
			return gettext_noop("handlers wait: there is no background worker for them");
		case DISPATCH_FAILS:
			return gettext_noop("the dispatcher fails, see the server log");
		case DISPATCH_TABLE_GONE:
			return gettext_noop("table feishu_internal.%s is missing");
		case DISPATCH_TABLE_ROW_SECURITY:
			return gettext_noop("table feishu_internal.%s has row security forced");
		case DISPATCH_TABLE_NOT_HEAP:
			return gettext_noop("table feishu_internal.%s has another access method than heap");
		case DISPATCH_TABLE_UNLOGGED:
			return gettext_noop("table feishu_internal.%s is unlogged");
		case DISPATCH_TABLE_DISTRIBUTED:
			return gettext_noop("table feishu_internal.%s is distributed");
		case DISPATCH_TABLE_TRIGGER:
			return gettext_noop("table feishu_internal.%s has a trigger");
		case DISPATCH_TABLE_RULE:
			return gettext_noop("table feishu_internal.%s has a rule");
	}
	return NULL;
}

/* launcher_problem in words, palloc'd; NULL for none. */
char *
launcher_problem_text(bool translated)
{
	const char *table;
	int			pid;
	DispatchProblem problem = find_problem(&table, &pid);
	const char *format = problem_format(problem);

	if (problem == DISPATCH_LOCKED_OUT)
		return lock_wait_text(pid, translated);
	if (format == NULL)
		return NULL;
	if (translated)
		format = _(format);
	if (problem == DISPATCH_LIBRARY_OLD)
		return psprintf(format, http_library_version(), http_library_built_with());
	return table != NULL ? psprintf(format, table) : pstrdup(format);
}

/*
 * dispatch_problem(): why nothing sends what is queued in this database, or may
 * not; NULL when a dispatcher does.
 */
Datum
feishu_dispatch_problem(PG_FUNCTION_ARGS)
{
	char	   *problem = launcher_problem_text(false);

	if (problem == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(problem));
}
