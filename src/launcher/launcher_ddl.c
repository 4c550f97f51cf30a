/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_ddl.c
 *	  What launcher and dispatchers must know of DDL statements.
 *
 * PostgreSQL does not drop, copy, rename or move a database while somebody is
 * connected to it, background workers included.  So the worker in it is made
 * to end before such a statement begins, and kept away by a hold on its slot
 * until the transaction is over.  Only for those who may do it: the statement
 * itself checks that later, and more, but by then it is too late to have left
 * the dispatcher of somebody else alone.
 *
 * CREATE and DROP EXTENSION are seen by the object access hook, however they
 * come about (CASCADE, DROP SCHEMA, DROP OWNED).  The end of a prepared
 * transaction, in which anything may have happened, is a statement.
 *
 * What is to be told at the end of a transaction is kept here until its locks
 * are released: later than a transaction callback would do it, so that
 * a worker started by this neither waits for them nor meets caches that have
 * not heard of the changes yet.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/waiters.h"
#include "launcher/launcher_internal.h"
#include "launcher/launcher_sessions.h"

static ProcessUtility_hook_type process_utility_next = NULL;
static object_access_hook_type prev_object_access = NULL;

/* To be done at the end of the transaction. */
static List *held_places = NIL; /* int, in TopMemoryContext; -1: none */
static bool databases_changed = false;
static bool extension_created = false;
static bool extension_dropped = false;


/* What is prepared is told of when it is committed. */
static void
transaction_event(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_PREPARE)
		extension_created = extension_dropped = false;
}

/* The locks are released.  Called several times; does not throw. */
static void
end_of_transaction(ResourceReleasePhase phase, bool is_commit,
				   bool is_top_level, void *arg)
{
	bool		changed = databases_changed;
	ListCell   *cell;

	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level)
		return;

	if (is_commit && extension_dropped)
	{
		DispatchNotice notice = DISPATCH_NO_NOTICE;

		notice.control = true;
		slots_notify_database(MyDatabaseId, &notice);
		sessions_stop(MyDatabaseId);
	}
	if (is_commit && extension_created)
		slots_add_known(MyDatabaseId, InvalidOid);
	extension_created = extension_dropped = databases_changed = false;

	foreach(cell, held_places)
	{
		if (lfirst_int(cell) >= 0)
			slots_release(lfirst_int(cell));
		changed = true;
	}
	list_free(held_places);
	held_places = NIL;
	if (changed)
		slots_wake_launcher(true);
}

/* Have these two called: from the first need on, at the end of each. */
static void
transaction_watch(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(transaction_event, NULL);
	RegisterResourceReleaseCallback(end_of_transaction, NULL);
	registered = true;
}


/* ---------- Databases ---------- */

/* May the current user copy this database? */
static bool
database_may_be_copied(Oid database)
{
	HeapTuple	tuple;
	bool		is_template = false;

	if (!feishu_have_createdb())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return is_template || feishu_database_ownercheck(database, GetUserId());
}

/* Make the worker in a database end, and none come, in this transaction. */
static void
database_hold(const char *name, bool copy)
{
	Oid			database = get_database_oid(name, true);
	MemoryContext context;
	int			place;

	if (!OidIsValid(database) || (database == MyDatabaseId && !copy))
		return;
	if (copy ? !database_may_be_copied(database) :
		!feishu_database_ownercheck(database, GetUserId()))
		return;

	transaction_watch();
	context = MemoryContextSwitchTo(TopMemoryContext);
	held_places = lappend_int(held_places, -1);
	MemoryContextSwitchTo(context);
	place = slots_hold(database);
	llast_int(held_places) = place;
	if (place >= 0)
		slots_wait_until_free(place);
}

/* The value of an option that is a string, or NULL. */
static const char *
option_string(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/* A statement on a database begins. */
static void
database_statement_begins(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			database_hold(((DropdbStmt *) statement)->dbname, false);
			break;
		case T_CreatedbStmt:
			{
				const char *name = option_string(((CreatedbStmt *) statement)->options,
												 "template");

				database_hold(name != NULL ? name : "template1", true);
				break;
			}
		case T_AlterDatabaseStmt:
			if (option_string(((AlterDatabaseStmt *) statement)->options, "tablespace"))
				database_hold(((AlterDatabaseStmt *) statement)->dbname, false);
			break;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType != OBJECT_DATABASE)
				return;
			database_hold(((RenameStmt *) statement)->subname, false);
			break;
		default:
			return;
	}
	transaction_watch();
	databases_changed = true;
}

/*
 * A prepared transaction of this database was committed: it may have queued
 * anything, cancelled flows, and created or dropped the extension.  Or it was
 * rolled back: it may have locked a row to cancel it.
 */
static void
prepared_transaction_ended(void)
{
	const DispatchNotice notice = {.min_id = PG_INT64_MIN, .control = true, .handlers = true};
	Oid			extension = slots_lookup_extension();

	if (OidIsValid(extension))
		slots_add_known(MyDatabaseId, extension);
	slots_notify_database(MyDatabaseId, &notice);
	sessions_notify_all();
	waiters_notify_all();
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *statement = pstmt->utilityStmt;
	bool		ends_prepared = IsA(statement, TransactionStmt) &&
		(((TransactionStmt *) statement)->kind == TRANS_STMT_COMMIT_PREPARED ||
		 ((TransactionStmt *) statement)->kind == TRANS_STMT_ROLLBACK_PREPARED);

	database_statement_begins(statement);

	process_utility_next(pstmt, query, read_only_tree, context, params, environment, dest,
						 completion);

	if (ends_prepared)
		prepared_transaction_ended();
}


/* ---------- The extension ---------- */

/* Is this extension ours?  Sees what the current command did. */
static bool
extension_is_ours(Oid extension)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	bool		ours = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		ours = strcmp(NameStr(((Form_pg_extension) GETSTRUCT(tuple))->extname),
					  EXTENSION_NAME) == 0;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return ours;
}

static void
object_access(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, class, object, sub, arg);

	if (class != ExtensionRelationId ||
		(access != OAT_POST_CREATE && access != OAT_DROP) ||
		!extension_is_ours(object))
		return;
	transaction_watch();
	if (access == OAT_POST_CREATE)
		extension_created = true;
	else
		extension_dropped = true;
}

void
launcher_install_hooks(void)
{
	process_utility_next = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}
