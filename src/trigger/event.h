/*-------------------------------------------------------------------------
 *
 * src/trigger/event.h
 *	  What a trigger fired for, as jsonb: the document that templates look at.
 *
 * Row triggers: {"op", "schema", "table", "new", "old"}.  Statement triggers:
 * {"op", "schema", "table"}, and with transition tables "new_rows" and
 * "old_rows", arrays of objects.  A side that the change does not have is null.
 * Events of a partition have "root_schema" and "root_table", too.
 *
 * Private to src/trigger/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_EVENT_H
#define FEISHU_EVENT_H

#include "commands/trigger.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"

/* The sides of a change. */
#define EVENT_NEW			0	/* new, new_rows */
#define EVENT_OLD			1	/* old, old_rows */
#define EVENT_SIDES			2

/* What somebody will look at.  Zeroed: at nothing. */
typedef struct EventNeeds
{
	bool		any;			/* at anything at all */
	bool		side[EVENT_SIDES];	/* at this side */
	bool		all_columns[EVENT_SIDES];	/* at all columns of it */
	List	   *columns[EVENT_SIDES];	/* at these: char *, not copied */
	List	   *members;		/* of the event itself: char *, not copied */
} EventNeeds;

/* Prepared for one table. */
typedef struct EventPlan EventPlan;

extern EventPlan *event_plan_create(Relation rel, const EventNeeds *needs);
extern Oid	event_plan_root(const EventPlan *plan);
extern bool event_is_empty(const TriggerData *trigdata);
extern Jsonb *event_build(EventPlan *plan, const TriggerData *trigdata);

/* names.c */
extern void names_check(const EventNeeds *needs, const TriggerData *trigdata,
						const char *argument, const char *path);
extern Oid	names_find_root(Relation rel, char **schema, char **table);

/* needs.c */
extern void needs_add_all(EventNeeds *needs);
extern bool needs_column(const EventNeeds *needs, int side, const char *name);
extern void needs_add_path(JsonPath *path, EventNeeds *needs);

#endif							/* FEISHU_EVENT_H */
