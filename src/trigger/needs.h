/*-------------------------------------------------------------------------
 *
 * needs.h
 *	  What of an event a jsonpath looks at.
 *
 * Private to src/trigger/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/trigger/needs.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_NEEDS_H
#define FEISHU_NEEDS_H

#include "utils/jsonpath.h"

#include "trigger/event.h"

extern void needs_add_all(EventNeeds *needs);
extern bool needs_column(const EventNeeds *needs, int side, const char *name);
extern void needs_add_path(JsonPath *path, EventNeeds *needs);

#endif							/* FEISHU_NEEDS_H */
