/*-------------------------------------------------------------------------
 *
 * src/trigger/template.c
 *	  JSON whose strings are filled in from an event by jsonpaths.
 *
 * A template is parsed into the tokens that pushJsonbValue wants, each value
 * either as it stands or a compiled jsonpath, so that to fill it in is one
 * pass without a look at its text.  A template without any jsonpath is filled in
 * when it is parsed.
 *
 * A string that begins with "$" is a jsonpath, and "$$..." is the string "$...".
 * A jsonpath that finds nothing is null, one value that value, several an array.
 * In any other string, "${jsonpath}" is replaced by the one scalar that is found;
 * of dollars before a brace each pair stands for one, so "$${" for "${".  Keys are
 * taken as they are.
 *
 * The plain jsonpath, member of member ("$.new.id"), is by far the most
 * common.  It is looked up right here; the rest, and whatever meets an array,
 * goes to PostgreSQL's executor.  What jsonpaths look at is known beforehand, so
 * that events need not hold more: see needs.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonpath.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "base/nls.h"
#include "trigger/event.h"
#include "trigger/template.h"

/* A jsonpath of a template. */
typedef struct TemplatePath
{
	char	   *text;
	JsonPath   *path;
	int			num_keys;		/* of a plain one, else -1 */
	char	  **keys;
} TemplatePath;

/* A part of a text: as it stands, or what a jsonpath finds. */
typedef struct TemplatePart
{
	char	   *text;			/* or NULL */
	TemplatePath *path;
} TemplatePart;

typedef struct TemplateItem
{
	JsonbIteratorToken token;
	JsonbValue	value;			/* of a key, or of a value without path */
	TemplatePath *path;			/* or NULL */
	List	   *parts;			/* of a text with jsonpaths in it, else NIL */
} TemplateItem;

struct Template
{
	const char *argument;
	const char *trigger;
	Jsonb	   *json;			/* as it was parsed; items point into it */
	Jsonb	   *constant;		/* the result, when there is no path */
	bool		is_scalar;		/* a single item, without array or object */
	int			num_items;
	int			max_items;
	TemplateItem *items;
	List	   *paths;			/* all TemplatePaths */
};

/* What is being evaluated, for error messages. */
typedef struct PathContext
{
	const Template *template;
	const TemplatePath *path;
} PathContext;

static void
path_error_callback(void *arg)
{
	PathContext *context = arg;

	errcontext("jsonpath \"%s\" in the %s template", context->path->text,
			   context->template->argument);
}

/* Throw that something is no jsonpath. */
static void
report_path(const Template *template, const char *text, bool in_text, int sqlstate,
			const char *problem)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s template of trigger \"%s\" has an invalid jsonpath: %s",
					template->argument, template->trigger, text),
			 errdetail_internal("%s", problem),
			 in_text ?
			 errhint("What stands in \"${}\" is a jsonpath, as in \"order-${$.new.id}\". Write \"$${\" for a text with \"${\" in it.") :
			 errhint("A string that begins with \"$\" is a jsonpath, such as \"$.new.id\". Write \"$$\" at the beginning for a text that begins with \"$\".")));
}

/*
 * Is it "$.key.key..." in lax mode?  Then take the keys.  Only lax mode takes
 * a missing key for nothing.
 */
static void
path_find_keys(TemplatePath *path)
{
	JsonPathItem item;
	JsonPathItem next;
	int			n = 0;

	path->num_keys = -1;
	if ((path->path->header & JSONPATH_LAX) == 0)
		return;
	jspInit(&item, path->path);
	if (item.type != jpiRoot)
		return;
	for (; jspGetNext(&item, &next); item = next)
	{
		if (next.type != jpiKey)
			return;
		n++;
	}

	path->num_keys = n;
	path->keys = palloc(n * sizeof(char *));
	jspInit(&item, path->path);
	for (int i = 0; jspGetNext(&item, &next); item = next)
		path->keys[i++] = jspGetString(&next, NULL);
}

static TemplatePath *
path_parse(Template *template, const char *text, int len, bool in_text)
{
	TemplatePath *path = palloc0(sizeof(TemplatePath));
	JsonPathItem item;
	Datum		datum;
	ErrorData  *error;

	path->text = pnstrdup(text, len);
	if (!feishu_input(jsonpath_in, path->text, &datum, &error))
		report_path(template, path->text, in_text, error->sqlerrcode, error->message);
	path->path = DatumGetJsonPathP(datum);

	jspInit(&item, path->path);
	if (item.type == jpiVariable)
		report_path(template, path->text, in_text, ERRCODE_UNDEFINED_OBJECT,
					_("There are no jsonpath variables here."));
	path_find_keys(path);
	template->paths = lappend(template->paths, path);
	return path;
}

/*
 * How long a jsonpath is that a brace ends, which may have quoted names and strings
 * and braces of its own; -1 when none ends it.
 */
static int
text_path_length(const char *text, int len)
{
	bool		is_quoted = false;
	int			depth = 0;

	for (int i = 0; i < len; i++)
	{
		if (text[i] == '\\')
			i++;
		else if (text[i] == '"')
			is_quoted = !is_quoted;
		else if (text[i] == '{' && !is_quoted)
			depth++;
		else if (text[i] == '}' && !is_quoted && depth-- == 0)
			return i;
	}
	return -1;
}

static List *
parts_add(List *parts, char *text, TemplatePath *path)
{
	TemplatePart *part = palloc(sizeof(TemplatePart));

	part->text = text;
	part->path = path;
	return lappend(parts, part);
}

/* Set up a text, with or without jsonpaths in it. */
static void
item_set_text(Template *template, TemplateItem *item, const char *text, int len)
{
	StringInfoData plain;
	int			i = 0;

	initStringInfo(&plain);
	while (i < len)
	{
		int			dollars = 0;
		int			path_len;

		while (i + dollars < len && text[i + dollars] == '$')
			dollars++;
		if (dollars == 0)
		{
			appendStringInfoChar(&plain, text[i++]);
			continue;
		}
		if (i + dollars == len || text[i + dollars] != '{')
		{
			/* at the beginning the first one tells that this is a text */
			appendBinaryStringInfo(&plain, text + i, i == 0 ? dollars - 1 : dollars);
			i += dollars;
			continue;
		}
		appendBinaryStringInfo(&plain, text + i, dollars / 2);
		i += dollars;
		if (dollars % 2 == 0)
			continue;

		i++;
		path_len = text_path_length(text + i, len - i);
		if (path_len < 0)
			report_path(template, pnstrdup(text + i - 2, len - i + 2), true,
						ERRCODE_SYNTAX_ERROR, _("Its closing brace is missing."));
		if (plain.len > 0)
			item->parts = parts_add(item->parts, pstrdup(plain.data), NULL);
		resetStringInfo(&plain);
		item->parts = parts_add(item->parts, NULL,
								path_parse(template, text + i, path_len, true));
		i += path_len + 1;
	}
	if (item->parts != NIL && plain.len > 0)
		item->parts = parts_add(item->parts, plain.data, NULL);
	item->value.val.string.val = plain.data;
	item->value.val.string.len = plain.len;
}

/* Is it a text in which dollars say something? */
static bool
is_text_with_dollars(const JsonbValue *value)
{
	const char *text = value->val.string.val;
	int			len = value->val.string.len;

	if (len >= 2 && text[0] == '$')
		return text[1] == '$' || text[1] == '{';
	for (int i = 0; len > 0 && text[0] != '$' && i < len - 1; i++)
	{
		if (text[i] == '$' && text[i + 1] == '{')
			return true;
	}
	return false;
}

/* Append a token, and compile it if it has a jsonpath. */
static void
template_add_item(Template *template, JsonbIteratorToken token,
				  const JsonbValue *value)
{
	TemplateItem *item;

	if (template->num_items == template->max_items)
	{
		template->max_items *= 2;
		template->items = repalloc(template->items,
								   template->max_items * sizeof(TemplateItem));
	}
	item = &template->items[template->num_items++];
	memset(item, 0, sizeof(TemplateItem));
	item->token = token;
	if (value == NULL)
		return;

	item->value = *value;
	if (token == WJB_KEY || value->type != jbvString)
		return;
	if (is_text_with_dollars(value))
		item_set_text(template, item, value->val.string.val, value->val.string.len);
	else if (value->val.string.len > 0 && value->val.string.val[0] == '$')
		item->path = path_parse(template, value->val.string.val,
								value->val.string.len, false);
}

/*
 * Parse a template in the current memory context, where all of it stays; NULL
 * when it is empty or JSON null.  argument, such as "params", and
 * trigger are for messages, and not copied.  Throws 22P02 or 42601, naming
 * them, when it is not JSON or holds what is not a jsonpath.
 */
Template *
template_parse(const char *argument, const char *trigger, const char *text)
{
	Template   *template = palloc0(sizeof(Template));
	JsonbValue	value;
	Datum		datum;
	ErrorData  *error;

	if (text[strspn(text, " \t\r\n")] == '\0')
		return NULL;

	template->argument = argument;
	template->trigger = trigger;
	if (!feishu_input(jsonb_in, pstrdup(text), &datum, &error))
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg("%s template of trigger \"%s\" is not valid JSON", argument, trigger),
				 error->detail ? errdetail_internal("%s", error->detail) :
				 errdetail_internal("%s", error->message),
				 errhint("Strings and jsonpaths stand in double quotes, such as '{\"_id\": \"$.new.id\"}'.")));
	template->json = DatumGetJsonbP(datum);

	template->max_items = 16;
	template->items = palloc(template->max_items * sizeof(TemplateItem));
	template->is_scalar = JB_ROOT_IS_SCALAR(template->json);
	if (template->is_scalar)
	{
		JsonbExtractScalar(&template->json->root, &value);
		if (value.type == jbvNull)
			return NULL;
		template_add_item(template, WJB_VALUE, &value);
	}
	else
	{
		JsonbIterator *iterator = JsonbIteratorInit(&template->json->root);
		JsonbIteratorToken token;

		while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
		{
			bool		has_value = token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM;

			template_add_item(template, token, has_value ? &value : NULL);
		}
	}

	if (template->paths == NIL)
		template->constant = template_render(template, NULL);
	return template;
}

/* The template itself, to look at what does not depend on an event. */
Jsonb *
template_json(const Template *template)
{
	return template->json;
}

/*
 * Add what its jsonpaths look at.  The template has to live on.  Throws 42703 if
 * that is what events of the trigger cannot have.
 */
void
template_add_needs(const Template *template, const TriggerData *trigdata,
				   EventNeeds *needs)
{
	ListCell   *cell;

	foreach(cell, template->paths)
	{
		const TemplatePath *path = lfirst(cell);
		EventNeeds	of_path = {0};

		needs_add_path(path->path, &of_path);
		names_check(&of_path, trigdata, template->argument, path->text);
		needs_add_path(path->path, needs);
	}
}

/*
 * Follow a plain jsonpath; false when an array is in the way, which lax mode
 * looks into.
 */
static bool
path_follow_keys(const TemplatePath *path, Jsonb *event, JsonbValue *result)
{
	JsonbContainer *container = &event->root;

	result->type = jbvBinary;
	result->val.binary.data = container;
	result->val.binary.len = VARSIZE(event) - VARHDRSZ;
	for (int i = 0; i < path->num_keys; i++)
	{
		if (result->type == jbvBinary)
		{
			container = result->val.binary.data;
			if (JsonContainerIsArray(container))
				return false;
			if (getKeyJsonValueFromContainer(container, path->keys[i],
											 strlen(path->keys[i]), result) != NULL)
				continue;
		}
		result->type = jbvNull;
		break;
	}
	return true;
}

/* Evaluate a jsonpath.  The result points into the event or scratch memory. */
static void
path_evaluate(const Template *template, const TemplatePath *path, Jsonb *event,
			  JsonbValue *result)
{
	static const Jsonb no_variables = {.root = {.header = JB_FOBJECT}};
	PathContext context = {template, path};
	ErrorContextCallback callback;
	Jsonb	   *variables;
	Jsonb	   *found;

	if (path->num_keys >= 0 && path_follow_keys(path, event, result))
		return;

	variables = palloc(sizeof(Jsonb));
	*variables = no_variables;
	SET_VARSIZE(variables, offsetof(Jsonb, root) + sizeof(uint32));

	callback.callback = path_error_callback;
	callback.arg = &context;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	found = DatumGetJsonbP(DirectFunctionCall4(jsonb_path_query_array_tz,
											   JsonbPGetDatum(event),
											   PointerGetDatum(path->path),
											   JsonbPGetDatum(variables),
											   BoolGetDatum(false)));
	error_context_stack = callback.previous;

	switch (JB_ROOT_COUNT(found))
	{
		case 0:
			result->type = jbvNull;
			break;
		case 1:
			*result = *getIthJsonbValueFromContainer(&found->root, 0);
			break;
		default:
			result->type = jbvBinary;
			result->val.binary.data = &found->root;
			result->val.binary.len = VARSIZE(found) - VARHDRSZ;
			break;
	}
}

/* Throw that what a jsonpath found is nothing to put into a text. */
static void
report_value(const Template *template, const TemplatePath *path, bool is_null)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 is_null ?
			 errmsg("%s template of trigger \"%s\" has no value to put into a text",
					template->argument, template->trigger) :
			 errmsg("%s template of trigger \"%s\" has no single value to put into a text",
					template->argument, template->trigger),
			 is_null ?
			 errdetail("The jsonpath %s finds nothing, or null.", path->text) :
			 errdetail("The jsonpath %s finds several values, an array or an object.", path->text),
			 is_null ?
			 errhint("Leave out rows without a value by the trigger's WHEN condition; or write the jsonpath alone, without \"${}\", for null.") :
			 errhint("Let the jsonpath lead to one text, number or boolean, as in \"${$.new.id}\".")));
}

/* Put a text together. */
static void
text_render(const Template *template, List *parts, Jsonb *event, JsonbValue *result)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, parts)
	{
		const TemplatePart *part = lfirst(cell);
		JsonbValue	value;

		if (part->text != NULL)
		{
			appendStringInfoString(&text, part->text);
			continue;
		}
		path_evaluate(template, part->path, event, &value);
		switch (value.type)
		{
			case jbvString:
				appendBinaryStringInfo(&text, value.val.string.val, value.val.string.len);
				break;
			case jbvNumeric:
				appendStringInfoString(&text,
									   DatumGetCString(DirectFunctionCall1(numeric_out,
																		   NumericGetDatum(value.val.numeric))));
				break;
			case jbvBool:
				appendStringInfoString(&text, value.val.boolean ? "true" : "false");
				break;
			default:
				report_value(template, part->path, value.type == jbvNull);
				break;
		}
	}
	result->type = jbvString;
	result->val.string.val = text.data;
	result->val.string.len = text.len;
}

/*
 * Fill in a template from an event that has what it needs (NULL if that is
 * nothing).  The result may be part of the template, and scratch memory is
 * left in the current memory context.  Throws what jsonpath throws, with
 * the jsonpath as context, and 22023 if there is not one scalar for a text.
 */
Jsonb *
template_render(const Template *template, Jsonb *event)
{
	JsonbInState state = {0};

	if (template->constant != NULL)
		return template->constant;

	for (int i = 0; i < template->num_items; i++)
	{
		const TemplateItem *item = &template->items[i];
		JsonbValue	value = item->value;

		if (item->path != NULL)
			path_evaluate(template, item->path, event, &value);
		else if (item->parts != NIL)
			text_render(template, item->parts, event, &value);
		if (template->is_scalar)
			return JsonbValueToJsonb(&value);
		feishu_jsonb_push(&state, item->token,
						  item->token < WJB_BEGIN_ARRAY ? &value : NULL);
	}
	return JsonbValueToJsonb(state.result);
}
