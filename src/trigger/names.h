/*-------------------------------------------------------------------------
 *
 * names.h
 *	  Names that the jsonpaths of a trigger may use, and those of a partition's root.
 *
 * Private to src/trigger/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/trigger/names.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_NAMES_H
#define FEISHU_NAMES_H

#include "commands/trigger.h"

#include "trigger/event.h"

/* Throw 42703 if a jsonpath that needs this names what its event cannot have. */
extern void names_check(const EventNeeds *needs, const TriggerData *trigdata,
						const char *argument, const char *path);

/* The root of a partition and its palloc'ed names, or InvalidOid. */
extern Oid	names_find_root(Relation rel, char **schema, char **table);

#endif							/* FEISHU_NAMES_H */
