/*-------------------------------------------------------------------------
 *
 * template.c
 *	  JSON in which strings that begin with "$" are jsonpaths over an event.
 *
 * A template is parsed into the tokens that pushJsonbValue wants, each value
 * either as it stands or a compiled jsonpath, so that to fill it in is one
 * pass without a look at its text.  A template without any jsonpath is filled in
 * when it is parsed.
 *
 * "$$..." is the string "$...".  A jsonpath that finds nothing is null, one
 * value that value, several an array.  Keys are taken as they are.
 *
 * The plain jsonpath, member of member ("$.new.id"), is by far the most
 * common.  It is looked up right here; the rest, and whatever meets an array,
 * goes to PostgreSQL's executor.  What jsonpaths look at is known beforehand, so
 * that events need not hold more: see needs.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/template.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/fmgrprotos.h"
#include "utils/jsonpath.h"

#include "compat.h"
#include "needs.h"
#include "nls.h"
#include "template.h"

/* A jsonpath of a template. */
typedef struct TemplatePath
{
	char	   *text;
	JsonPath   *path;
	int			num_keys;		/* of a plain one, else -1 */
	char	  **keys;
} TemplatePath;

typedef struct TemplateItem
{
	JsonbIteratorToken token;
	JsonbValue	value;			/* of a key, or of a value without path */
	TemplatePath *path;			/* or NULL */
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

	errcontext("jsonpath \"%s\" in the %s", context->path->text,
			   _(context->template->argument));
}

/* Throw that something is no jsonpath. */
static void
report_path(const Template *template, const char *text, int sqlstate,
			const char *problem)
{
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s of trigger \"%s\" has an invalid jsonpath: %s",
					_(template->argument), template->trigger, text),
			 errdetail_internal("%s", problem),
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
path_parse(const Template *template, const char *text, int len)
{
	TemplatePath *path = palloc0(sizeof(TemplatePath));
	JsonPathItem item;
	Datum		datum;
	ErrorData  *error;

	path->text = pnstrdup(text, len);
	if (!feishu_input(jsonpath_in, path->text, &datum, &error))
		report_path(template, path->text, error->sqlerrcode, error->message);
	path->path = DatumGetJsonPathP(datum);

	jspInit(&item, path->path);
	if (item.type == jpiVariable)
		report_path(template, path->text, ERRCODE_UNDEFINED_OBJECT,
					_("There are no jsonpath variables here."));
	path_find_keys(path);
	return path;
}

/* Append a token, and compile it if it is a jsonpath. */
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
	if (token != WJB_KEY && value->type == jbvString &&
		value->val.string.len > 0 && value->val.string.val[0] == '$')
	{
		if (value->val.string.len > 1 && value->val.string.val[1] == '$')
		{
			item->value.val.string.val++;
			item->value.val.string.len--;
		}
		else
			item->path = path_parse(template, value->val.string.val,
									value->val.string.len);
	}
}

Template *
template_parse(const char *argument, const char *trigger, const char *text)
{
	Template   *template = palloc0(sizeof(Template));
	JsonbValue	value;
	Datum		datum;
	ErrorData  *error;
	bool		has_path = false;

	if (text[strspn(text, " \t\r\n")] == '\0')
		return NULL;

	template->argument = argument;
	template->trigger = trigger;
	if (!feishu_input(jsonb_in, pstrdup(text), &datum, &error))
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 errmsg("%s of trigger \"%s\" is not valid JSON", _(argument), trigger),
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

	for (int i = 0; i < template->num_items; i++)
		has_path |= template->items[i].path != NULL;
	if (!has_path)
		template->constant = template_render(template, NULL);
	return template;
}

Jsonb *
template_json(const Template *template)
{
	return template->json;
}

void
template_add_needs(const Template *template, EventNeeds *needs)
{
	for (int i = 0; i < template->num_items; i++)
	{
		if (template->items[i].path != NULL)
			needs_add_path(template->items[i].path->path, needs);
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
		if (template->is_scalar)
			return JsonbValueToJsonb(&value);
		feishu_jsonb_push(&state, item->token,
						  item->token < WJB_BEGIN_ARRAY ? &value : NULL);
	}
	return JsonbValueToJsonb(state.result);
}
