/*-------------------------------------------------------------------------
 *
 * src/trigger/template.h
 *	  JSON whose strings are filled in from an event by jsonpaths.
 *
 * Private to src/trigger/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TEMPLATE_H
#define FEISHU_TEMPLATE_H

#include "utils/jsonb.h"

#include "trigger/event.h"

typedef struct Template Template;
extern Template *template_parse(const char *argument, const char *trigger,
								const char *text);
extern Jsonb *template_json(const Template *template);
extern void template_add_needs(const Template *template, const TriggerData *trigdata,
							   EventNeeds *needs);
extern Jsonb *template_render(const Template *template, Jsonb *event);

#endif							/* FEISHU_TEMPLATE_H */
