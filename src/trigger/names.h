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

extern void names_check(const EventNeeds *needs, const TriggerData *trigdata,
						const char *argument, const char *path);
extern Oid	names_find_root(Relation rel, char **schema, char **table);

#endif							/* FEISHU_NAMES_H */
