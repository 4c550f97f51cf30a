/*-------------------------------------------------------------------------
 *
 * src/wire/wire_check.c
 *	  What a request to start a flow must be.
 *
 * Everything that the platform would refuse for its form is refused here,
 * before anything is sent or queued, with the argument's name.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"
#include "wire/wire_check.h"

/* The document allows 0 to 20. */
#define MAX_LOOP_MASKS		20

/* An operator of more bytes is not shown. */
#define MAX_SHOWN			1000

/* The member of an object, or NULL; the object is known to be one. */
static JsonbValue *
object_member(Jsonb *object, const char *name, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(&object->root, name, strlen(name), value);
}

/* Read an integer by its value: "5.00" is 5.  False if it is none, or too large. */
bool
request_integer(const char *text, int64 *value)
{
	char	   *end;

	errno = 0;
	*value = strtoll(text, &end, 10);
	if (end == text || errno != 0)
		return false;
	if (end[0] == '.' && end[1] != '\0')
		end += 1 + strspn(end + 1, "0");
	return *end == '\0';
}

/* A jsonb number as text. */
static char *
number_text(const JsonbValue *value)
{
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));
}

/*
 * Change a member of an operator to what goes to the platform; false: it stays as
 * it is.  "7.00" is no integer to everybody's JSON parser.  The blanks at the end of
 * a char(n) are no data, and never end an e-mail address.
 */
static bool
change_member(const JsonbValue *key, JsonbValue *value)
{
	const char *name = key->val.string.val;
	int			name_len = key->val.string.len;

	if (value->type == jbvNumeric && name_len == 3 && memcmp(name, "_id", 3) == 0)
	{
		char	   *text = number_text(value);
		int64		number;

		if (strchr(text, '.') == NULL || !request_integer(text, &number))
			return false;
		value->val.numeric = int64_to_numeric(number);
		return true;
	}
	if (value->type == jbvString && name_len == 5 && memcmp(name, "email", 5) == 0)
	{
		int			len = value->val.string.len;

		while (len > 0 && value->val.string.val[len - 1] == ' ')
			len--;
		if (len == value->val.string.len)
			return false;
		value->val.string.len = len;
		return true;
	}
	return false;
}

/*
 * An operator, or NULL, as it goes to the platform: with an integer as _id, and an
 * e-mail address without blanks at its end.
 */
Jsonb *
request_operator(Jsonb *operator_id)
{
	JsonbInState state = {0};
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	key = {0};
	JsonbValue	value;
	bool		is_changed = false;

	if (operator_id == NULL || !JB_ROOT_IS_OBJECT(operator_id))
		return operator_id;
	iterator = JsonbIteratorInit(&operator_id->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			key = value;
		else if (token == WJB_VALUE)
			is_changed |= change_member(&key, &value);
		feishu_jsonb_push(&state, token, token < WJB_BEGIN_ARRAY ? &value : NULL);
	}
	return is_changed ? JsonbValueToJsonb(state.result) : operator_id;
}

/* request_operator for the server's operator (JSON text). */
Jsonb *
request_default_operator(const char *json)
{
	if (json == NULL)
		return NULL;
	return request_operator(DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
															   CStringGetDatum(json))));
}

/* An argument or template as a jsonb; JSON null is as good as NULL. */
Jsonb *
request_json(Jsonb *json)
{
	JsonbValue	value;

	if (json != NULL && JB_ROOT_IS_SCALAR(json) &&
		JsonbExtractScalar(&json->root, &value) && value.type == jbvNull)
		return NULL;
	return json;
}

/* NULL when the object can be an operator, else what is wrong with it, as a
 * sentence with %s for the name of the option, or of the argument. */
const char *
request_check_operator(Jsonb *operator_id, bool of_option)
{
	JsonbValue	value;
	bool		has_id = false;
	bool		has_email = false;
	int64		id;

	if (!JB_ROOT_IS_OBJECT(operator_id))
		return of_option ? gettext_noop("option \"%s\" must be a JSON object") :
			gettext_noop("argument \"%s\" must be a JSON object");
	if (object_member(operator_id, "_id", &value) != NULL && value.type != jbvNull)
	{
		if (value.type != jbvNumeric || !request_integer(number_text(&value), &id))
			return of_option ? gettext_noop("option \"%s\" must have an integer in the range of bigint as \"_id\"") :
			gettext_noop("argument \"%s\" must have an integer in the range of bigint as \"_id\"");
		has_id = true;
	}
	if (object_member(operator_id, "email", &value) != NULL && value.type != jbvNull)
	{
		if (value.type != jbvString ||
			(value.val.string.len > 0 &&
			 memchr(value.val.string.val, '@', value.val.string.len) == NULL))
			return of_option ? gettext_noop("option \"%s\" must have an e-mail address as \"email\"") :
			gettext_noop("argument \"%s\" must have an e-mail address as \"email\"");
		has_email = value.val.string.len > 0;
	}
	if (!has_id && !has_email)
		return of_option ? gettext_noop("option \"%s\" must have \"_id\" or \"email\"") :
			gettext_noop("argument \"%s\" must have \"_id\" or \"email\"");
	return NULL;
}

/* Throw that an argument is wrong. */
static void
report_argument(const char *argument, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(problem, argument),
			 hint ? errhint("%s", _(hint)) : 0));
}

const char *
request_sort(Jsonb *json)
{
	JsonbValue	value;

	if (!JB_ROOT_IS_SCALAR(json))
		return JB_ROOT_IS_ARRAY(json) ?
			gettext_noop("It is a JSON array.") : gettext_noop("It is a JSON object.");
	JsonbExtractScalar(&json->root, &value);
	switch (value.type)
	{
		case jbvString:
			return gettext_noop("It is a JSON string.");
		case jbvNumeric:
			return gettext_noop("It is a JSON number.");
		default:
			return gettext_noop("It is a JSON boolean.");
	}
}

/* Is it a string whose text is an object or an array? */
static bool
is_encoded_twice(Jsonb *json)
{
	JsonbValue	value;
	Jsonb	   *inner;

	return JB_ROOT_IS_SCALAR(json) && JsonbExtractScalar(&json->root, &value) &&
		value.type == jbvString &&
		feishu_jsonb_from_cstring(pnstrdup(value.val.string.val, value.val.string.len), &inner) &&
		!JB_ROOT_IS_SCALAR(inner);
}

const char *
request_sort_hint(Jsonb *json, const char *hint)
{
	return is_encoded_twice(json) ?
		gettext_noop("The text of the string is JSON, which was encoded twice. Give the JSON itself: do not encode text that is JSON already, and cast such a column by ::jsonb.") :
		hint;
}

/* Throw that an argument is JSON of another sort than it must be. */
static void
report_sort(const char *argument, Jsonb *json, const char *problem, const char *hint)
{
	hint = request_sort_hint(json, hint);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(problem, argument),
			 errdetail_internal("%s", _(request_sort(json))),
			 errhint("%s", _(hint))));
}

/* Throw that the operator is wrong, and show it: a template may have made it. */
static void
report_operator(Jsonb *operator_id, const char *problem)
{
	const char *hint = gettext_noop("Write it like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}': the user of the low-code platform in whose name the flow runs.");
	char	   *json = VARSIZE(operator_id) <= MAX_SHOWN ?
		JsonbToCString(NULL, &operator_id->root, VARSIZE(operator_id)) : NULL;

	/* a number of a few bytes may have very many digits */
	if (json != NULL && strlen(json) > MAX_SHOWN)
		json = NULL;
	hint = request_sort_hint(operator_id, hint);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg(problem, "operator"),
			 json != NULL ? errdetail("It is %s.", json) : 0,
			 errhint("%s", _(hint))));
}

/* namespace or flow_id */
static void
check_segment(const char *argument, const char *text, const char *hint)
{
	const char *problem;

	if (text == NULL)
		report_argument(argument, gettext_noop("argument \"%s\" must not be null"), hint);
	problem = wire_check_name(text, true);
	if (problem != NULL)
		report_argument(argument, problem, hint);
}

static void
check_loop_masks(Jsonb *loop_masks)
{
	const char *hint = gettext_noop("Write it like '[\"mask_1\", \"mask_2\"]'.");
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_ARRAY(loop_masks) || JB_ROOT_IS_SCALAR(loop_masks))
		report_sort("loop_masks", loop_masks, gettext_noop("argument \"%s\" must be a JSON array"), hint);
	if (JB_ROOT_COUNT(loop_masks) > MAX_LOOP_MASKS)
		report_argument("loop_masks", gettext_noop("argument \"%s\" must not have more than 20 elements"), hint);
	iterator = JsonbIteratorInit(&loop_masks->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM && value.type != jbvString)
			report_argument("loop_masks", gettext_noop("argument \"%s\" must have only strings as elements"), hint);
	}
}

/*
 * A jsonb of some kilobytes may say gigabytes, so it is the body as written that is
 * bounded.  In a database of another encoding than UTF8 this is also where what
 * cannot be sent is found.
 */
static void
check_size(FlowRequest *request)
{
	int64		limit = (int64) feishu_guc_max_request_size * 1024;
	const char *argument = "params";

	if (wire_request_is_small(request, limit))
		return;
	request->size = wire_request_size(request, limit);
	if (request->size <= limit)
		return;
	/* a small part of it is not to blame */
	if (request->params == NULL || wire_jsonb_size(request->params, limit / 2) <= limit / 2)
	{
		int64		operator_size = wire_jsonb_size(request->operator_id, limit);
		int64		masks_size = request->loop_masks == NULL ? 0 :
			wire_jsonb_size(request->loop_masks, limit);

		argument = masks_size > operator_size ? "loop_masks" : "operator";
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" makes the request too large", argument),
			 errdetail("As it is sent, with all digits of its numbers, the request has more than %d kB, which is feishu_flow.max_request_size.",
					   feishu_guc_max_request_size),
			 errhint("Send less, such as a link to what is large instead of its contents, or have an administrator raise feishu_flow.max_request_size.")));
}

/* Check what names a flow; throws 22023 naming the argument. */
void
request_check_flow(const char *namespace_name, const char *flow_id)
{
	check_segment("namespace", namespace_name,
				  gettext_noop("The low-code platform shows it under application management; it looks like package_7344545d87__c."));
	check_segment("flow_id", flow_id,
				  gettext_noop("It is the flow's API name, which the low-code platform shows in the table of flows."));
}

/* Check every member; throws 22023 naming the argument. */
void
request_check(FlowRequest *request)
{
	const char *problem;

	request_check_flow(request->namespace_name, request->flow_id);
	if (request->operator_id == NULL)
		report_argument("operator", gettext_noop("argument \"%s\" must not be null, since the server has no default operator"),
						gettext_noop("Give it, like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}', or set the server's operator option."));
	problem = request_check_operator(request->operator_id, false);
	if (problem != NULL)
		report_operator(request->operator_id, problem);

	if (request->params != NULL && !JB_ROOT_IS_OBJECT(request->params))
		report_sort("params", request->params, gettext_noop("argument \"%s\" must be a JSON object"),
					gettext_noop("Its members are the flow's input parameters by API name; leave it null when the flow has none."));
	if (request->idempotent_key != NULL)
	{
		problem = wire_check_name(request->idempotent_key, false);
		if (problem != NULL)
			report_argument("idempotent_key", problem,
							gettext_noop("Leave it null, or give each start of a flow a value of its own, such as a UUID."));
	}
	if (request->loop_masks != NULL)
		check_loop_masks(request->loop_masks);
	check_size(request);
}
