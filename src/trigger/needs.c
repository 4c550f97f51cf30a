/*-------------------------------------------------------------------------
 *
 * src/trigger/needs.c
 *	  What of an event a jsonpath looks at.
 *
 * Columns that no jsonpath looks at are left out of the event: they cost nothing,
 * and one that cannot be converted to jsonb is in nobody's way.
 *
 * A jsonpath is followed from the event downwards: through one of its sides to the
 * columns that are named.  What a filter or a subscript looks at is followed from
 * where it stands ("@") or from the event ("$").  Whatever is taken as a whole, or
 * looked at by what is not known here, is needed as a whole.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "trigger/event.h"

/* Where in the event a part of a jsonpath stands. */
typedef enum Place
{
	PLACE_EVENT,
	PLACE_NEW,					/* a row, or the array of rows */
	PLACE_OLD,
	PLACE_VALUE					/* in a column, or computed */
} Place;

static void add_expression(JsonPathItem *item, Place current, EventNeeds *needs);

static int
place_side(Place place)
{
	return place == PLACE_NEW ? EVENT_NEW : EVENT_OLD;
}

/* All of an event. */
void
needs_add_all(EventNeeds *needs)
{
	needs->any = true;
	for (int i = 0; i < EVENT_SIDES; i++)
	{
		needs->side[i] = true;
		needs->all_columns[i] = true;
	}
}

/* Is a column needed of this side? */
bool
needs_column(const EventNeeds *needs, int side, const char *name)
{
	ListCell   *cell;

	if (needs->all_columns[side])
		return true;
	foreach(cell, needs->columns[side])
	{
		if (strcmp((char *) lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/* All that is at a place is needed. */
static void
add_whole(Place place, EventNeeds *needs)
{
	if (place == PLACE_EVENT)
		needs_add_all(needs);
	else if (place != PLACE_VALUE)
		needs->all_columns[place_side(place)] = true;
}

/* A member of what is at a place: where that is. */
static Place
add_key(const char *key, Place place, EventNeeds *needs)
{
	if (place == PLACE_EVENT)
		needs->members = lappend(needs->members, unconstify(char *, key));
	if (place == PLACE_NEW || place == PLACE_OLD)
		needs->columns[place_side(place)] =
			lappend(needs->columns[place_side(place)], unconstify(char *, key));
	if (place != PLACE_EVENT)
		return PLACE_VALUE;
	if (strcmp(key, "new") == 0 || strcmp(key, "new_rows") == 0)
		place = PLACE_NEW;
	else if (strcmp(key, "old") == 0 || strcmp(key, "old_rows") == 0)
		place = PLACE_OLD;
	else
		return PLACE_VALUE;
	needs->side[place_side(place)] = true;
	return place;
}

/* What the subscripts of an array look at; "@" in them is where current is. */
static void
add_subscripts(JsonPathItem *array, Place current, EventNeeds *needs)
{
	for (int i = 0; i < array->content.array.nelems; i++)
	{
		JsonPathItem from;
		JsonPathItem to;

		if (jspGetArraySubscript(array, &from, &to, i))
			add_expression(&to, current, needs);
		add_expression(&from, current, needs);
	}
}

/* The accessors that follow an item, which is at a place. */
static void
add_accessors(JsonPathItem *item, Place place, Place current, EventNeeds *needs)
{
	JsonPathItem step = *item;
	JsonPathItem next;
	JsonPathItem predicate;

	for (; jspGetNext(&step, &next); step = next)
	{
		switch (next.type)
		{
			case jpiKey:
				place = add_key(jspGetString(&next, NULL), place, needs);
				break;
			case jpiAnyArray:
				break;
			case jpiIndexArray:
				add_subscripts(&next, current, needs);
				break;
			case jpiFilter:
				jspGetArg(&next, &predicate);
				add_expression(&predicate, place, needs);
				break;
			case jpiType:
			case jpiSize:
				place = PLACE_VALUE;
				break;
			default:
				add_whole(place, needs);
				place = PLACE_VALUE;
				break;
		}
	}
	add_whole(place, needs);
}

/* An expression or predicate, in which "@" is what is at current. */
static void
add_expression(JsonPathItem *item, Place current, EventNeeds *needs)
{
	JsonPathItem argument;
	Place		place = PLACE_VALUE;

	check_stack_depth();
	switch (item->type)
	{
		case jpiRoot:
			place = PLACE_EVENT;
			break;
		case jpiCurrent:
			place = current;
			break;
		case jpiNull:
		case jpiString:
		case jpiNumeric:
		case jpiBool:
		case jpiLast:
		case jpiVariable:
			break;
		case jpiNot:
		case jpiIsUnknown:
		case jpiExists:
		case jpiPlus:
		case jpiMinus:
			jspGetArg(item, &argument);
			add_expression(&argument, current, needs);
			break;
		case jpiAnd:
		case jpiOr:
		case jpiEqual:
		case jpiNotEqual:
		case jpiLess:
		case jpiGreater:
		case jpiLessOrEqual:
		case jpiGreaterOrEqual:
		case jpiAdd:
		case jpiSub:
		case jpiMul:
		case jpiDiv:
		case jpiMod:
		case jpiStartsWith:
			jspGetLeftArg(item, &argument);
			add_expression(&argument, current, needs);
			jspGetRightArg(item, &argument);
			add_expression(&argument, current, needs);
			break;
		case jpiLikeRegex:
			jspInitByBuffer(&argument, item->base, item->content.like_regex.expr);
			add_expression(&argument, current, needs);
			break;
		default:
			needs_add_all(needs);
			break;
	}
	add_accessors(item, place, current, needs);
}

/* Add what a jsonpath looks at.  The jsonpath has to live on. */
void
needs_add_path(JsonPath *path, EventNeeds *needs)
{
	JsonPathItem item;

	needs->any = true;
	jspInit(&item, path);
	add_expression(&item, PLACE_EVENT, needs);
}
