/*-------------------------------------------------------------------------
 *
 * src/trigger/names.c
 *	  Names that the jsonpaths of a trigger may use, and those of a partition's root.
 *
 * To a jsonpath a name that is not there is nothing.  But the members of an event
 * and the columns of its rows are known before the trigger fires: what is none of
 * them is a mistake, or was renamed or dropped, and is told, as PL/pgSQL does.  What
 * is inside of a column is known to nobody.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/partition.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/nls.h"
#include "trigger/event.h"

/* A name so far from what was meant is another one. */
#define NAMES_MAX_DISTANCE	4

static const char *const members_of_row[] = {
	"op", "schema", "table", "root_schema", "root_table", "new", "old", NULL
};
static const char *const members_of_rows[] = {
	"op", "schema", "table", "root_schema", "root_table", "new_rows", "old_rows", NULL
};
static const char *const members_of_statement[] = {
	"op", "schema", "table", "root_schema", "root_table", NULL
};

/* The members that an event of the trigger may have. */
static const char *const *
members_find(const TriggerData *trigdata)
{
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		return members_of_row;
	return trigdata->tg_trigger->tgoldtable != NULL ||
		trigdata->tg_trigger->tgnewtable != NULL ?
		members_of_rows : members_of_statement;
}

/* Look for the closest match so far; what differs in case alone is the closest. */
static void
match_update(ClosestMatchState *match, const char **same, const char *name,
			 const char *candidate)
{
	updateClosestMatch(match, candidate);
	if (pg_strcasecmp(name, candidate) == 0)
		*same = candidate;
}

static void
check_member(const char *name, const TriggerData *trigdata, const char *argument,
			 const char *path)
{
	const char *const *members = members_find(trigdata);
	ClosestMatchState match;
	StringInfoData list;
	const char *closest = NULL;

	for (int i = 0; members[i] != NULL; i++)
	{
		if (strcmp(members[i], name) == 0)
			return;
	}

	initStringInfo(&list);
	initClosestMatch(&match, name, NAMES_MAX_DISTANCE);
	for (int i = 0; members[i] != NULL; i++)
	{
		match_update(&match, &closest, name, members[i]);
		appendStringInfo(&list, "%s$.%s", i > 0 ? ", " : "", members[i]);
	}
	if (closest == NULL)
		closest = getClosestMatch(&match);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("%s template of trigger \"%s\" looks at \"%s\", which its event does not have",
					argument, trigdata->tg_trigger->tgname, name),
			 errdetail("The jsonpath is %s. The event has %s.", path, list.data),
			 closest != NULL ? errhint("Perhaps you meant \"$.%s\".", closest) :
			 members == members_of_statement ?
			 errhint("Give the trigger its rows by REFERENCING NEW TABLE AS or OLD TABLE AS, or create it FOR EACH ROW.") :
			 members == members_of_row ?
			 errhint("Columns are members of the rows, as in \"$.new.id\".") :
			 errhint("Columns are members of the rows, as in \"$.new_rows[*].id\".")));
}

static void
check_column(const char *name, const TriggerData *trigdata, const char *argument,
			 const char *path)
{
	TupleDesc	tupdesc = RelationGetDescr(trigdata->tg_relation);
	ClosestMatchState match;
	const char *closest = NULL;

	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);

		if (!attribute->attisdropped && strcmp(NameStr(attribute->attname), name) == 0)
			return;
	}

	initClosestMatch(&match, name, NAMES_MAX_DISTANCE);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);

		if (!attribute->attisdropped)
			match_update(&match, &closest, name, NameStr(attribute->attname));
	}
	if (closest == NULL)
		closest = getClosestMatch(&match);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("%s template of trigger \"%s\" looks at column \"%s\", which table \"%s\" does not have",
					argument, trigdata->tg_trigger->tgname, name,
					RelationGetRelationName(trigdata->tg_relation)),
			 errdetail("The jsonpath is %s.", path),
			 closest != NULL ? errhint("Perhaps you meant the column \"%s\".", closest) :
			 errhint("Create the trigger anew with the columns that the table has now.")));
}

/* Throw 42703 if a jsonpath that needs this names what its event cannot have. */
void
names_check(const EventNeeds *needs, const TriggerData *trigdata, const char *argument,
			const char *path)
{
	ListCell   *cell;

	foreach(cell, needs->members)
		check_member(lfirst(cell), trigdata, argument, path);
	for (int side = 0; side < EVENT_SIDES; side++)
	{
		foreach(cell, needs->columns[side])
			check_column(lfirst(cell), trigdata, argument, path);
	}
}

/*
 * The root of a partition and its palloc'ed names, or InvalidOid.
 *
 * A lock on the partition keeps the root from being dropped, but for one that is just
 * being detached: that is none any more.
 */
Oid
names_find_root(Relation rel, char **schema, char **table)
{
	List	   *ancestors;
	Oid			rootid;

	if (!rel->rd_rel->relispartition)
		return InvalidOid;
	ancestors = get_partition_ancestors(RelationGetRelid(rel));
	if (ancestors == NIL)
		return InvalidOid;
	rootid = llast_oid(ancestors);
	*table = get_rel_name(rootid);
	*schema = get_namespace_name(get_rel_namespace(rootid));
	return *table != NULL && *schema != NULL ? rootid : InvalidOid;
}
