/*-------------------------------------------------------------------------
 *
 * template.h
 *	  JSON whose strings are filled in from an event by jsonpaths.
 *
 * Private to src/trigger/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/trigger/template.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TEMPLATE_H
#define FEISHU_TEMPLATE_H

#include "utils/jsonb.h"

#include "trigger/event.h"

typedef struct Template Template;

/*
 * Parse a template in the current memory context, where all of it stays; NULL
 * when it is empty or JSON null.  argument, such as "params template", and
 * trigger are for messages, and not copied.  Throws 22P02 or 42601, naming
 * them, when it is not JSON or holds what is not a jsonpath.
 */
extern Template *template_parse(const char *argument, const char *trigger,
								const char *text);

/* The template itself, to look at what does not depend on an event. */
extern Jsonb *template_json(const Template *template);

/*
 * Add what its jsonpaths look at.  The template has to live on.  Throws 42703 if
 * that is what events of the trigger cannot have.
 */
extern void template_add_needs(const Template *template, const TriggerData *trigdata,
							   EventNeeds *needs);

/*
 * Fill in a template from an event that has what it needs (NULL if that is
 * nothing).  The result may be part of the template, and scratch memory is
 * left in the current memory context.  Throws what jsonpath throws, with
 * the jsonpath as context, and 22023 if there is not one scalar for a text.
 */
extern Jsonb *template_render(const Template *template, Jsonb *event);

#endif							/* FEISHU_TEMPLATE_H */
