/*-------------------------------------------------------------------------
 *
 * src/app/server_catalog.c
 *	  A foreign server and a role's user mapping, as the catalogs have them.
 *
 * Both are read with one snapshot.  The system caches would not do: when both are
 * changed by one transaction, one row could be that from before and the other that
 * from after it, and a new secret be sent to an old address.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "app/options.h"
#include "app/server.h"
#include "base/compat.h"
#include "base/nls.h"

/* The wrapper is ours if its validator is; wrappers can be renamed. */
#define VALIDATOR_NAME		"feishu_flow_validator"

/* A misspelt name of a server differs by no more letters from the right one. */
#define NAME_MAX_DISTANCE	4

/* Options of a row, as a list of DefElem. */
static List *
read_options(Relation catalog, HeapTuple tuple, AttrNumber column)
{
	bool		is_null;
	Datum		options = heap_getattr(tuple, column, RelationGetDescr(catalog), &is_null);

	return is_null ? NIL : untransformRelOptions(options);
}

/* The server of this name; false if there is none. */
static bool
read_server_row(Snapshot snapshot, const char *name, ServerRows *rows)
{
	Relation	catalog = table_open(ForeignServerRelationId, AccessShareLock);
	NameData	key_name;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	namestrcpy(&key_name, name);
	ScanKeyInit(&key, Anum_pg_foreign_server_srvname, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(&key_name));
	scan = systable_beginscan(catalog, ForeignServerNameIndexId, true, snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);

		rows->serverid = form->oid;
		rows->owner = form->srvowner;
		rows->wrapperid = form->srvfdw;
		rows->server_options = read_options(catalog, tuple, Anum_pg_foreign_server_srvoptions);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return OidIsValid(rows->serverid);
}

/* The mapping of just this role on the server found (InvalidOid: of PUBLIC). */
static bool
read_mapping_row(Snapshot snapshot, Oid userid, ServerRows *rows)
{
	Relation	catalog = table_open(UserMappingRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&keys[0], Anum_pg_user_mapping_umuser, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(userid));
	ScanKeyInit(&keys[1], Anum_pg_user_mapping_umserver, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(rows->serverid));
	scan = systable_beginscan(catalog, UserMappingUserServerIndexId, true, snapshot, 2, keys);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		rows->mapping = OidIsValid(userid) ? MAPPING_OWN : MAPPING_PUBLIC;
		rows->mapping_options = read_options(catalog, tuple, Anum_pg_user_mapping_umoptions);
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return rows->mapping != MAPPING_NONE;
}

/*
 * Read them; false if there is no such server.
 *
 * For the server of this name and a role, as a snapshot has them; NULL: as they are now.
 */
bool
server_read_catalogs(const char *name, Oid userid, Snapshot snapshot, ServerRows *rows)
{
	bool		found;

	memset(rows, 0, sizeof(ServerRows));
	if (snapshot == NULL)
	{
		/* not one from before what AcceptInvalidationMessages has told of */
		InvalidateCatalogSnapshot();
		snapshot = GetCatalogSnapshot(ForeignServerRelationId);
	}
	snapshot = RegisterSnapshot(snapshot);
	found = read_server_row(snapshot, name, rows);
	if (found && !read_mapping_row(snapshot, userid, rows))
		(void) read_mapping_row(snapshot, InvalidOid, rows);
	UnregisterSnapshot(snapshot);
	return found;
}

bool
server_wrapper_is_ours(const ForeignDataWrapper *wrapper)
{
	char	   *validator = NULL;

	if (OidIsValid(wrapper->fdwvalidator))
		validator = get_func_name(wrapper->fdwvalidator);
	return validator != NULL && strcmp(validator, VALIDATOR_NAME) == 0;
}

/* Of our servers, the one that somebody meant who wrote this name; or NULL. */
static const char *
find_closest_server(const char *name)
{
	Relation	catalog = table_open(ForeignServerRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(catalog, InvalidOid, false, NULL, 0, NULL);
	ClosestMatchState match;
	char	   *same = NULL;
	HeapTuple	tuple;

	initClosestMatch(&match, name, NAME_MAX_DISTANCE);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);
		ForeignDataWrapper *wrapper = GetForeignDataWrapperExtended(form->srvfdw, FDW_MISSING_OK);
		char	   *candidate = pstrdup(NameStr(form->srvname));

		if (wrapper == NULL || !server_wrapper_is_ours(wrapper))
			continue;
		updateClosestMatch(&match, candidate);
		if (pg_strcasecmp(name, candidate) == 0)
			same = candidate;
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return same != NULL ? same : getClosestMatch(&match);
}

/*
 * by_setting: the name is that of the caller's setting feishu_flow.server.
 */
void
server_report_unknown(const char *name, bool by_setting)
{
	const char *closest = find_closest_server(name);

	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("server \"%s\" does not exist", name),
			 closest != NULL ? errhint("Perhaps you meant the server \"%s\".", closest) :
			 by_setting ?
			 errhint("Create it: CREATE SERVER %s FOREIGN DATA WRAPPER feishu_flow; or name another by the server argument or the setting feishu_flow.server.",
					 quote_identifier(name)) :
			 errhint("Create it: CREATE SERVER %s FOREIGN DATA WRAPPER feishu_flow.",
					 quote_identifier(name))));
}
