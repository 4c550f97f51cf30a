/*-------------------------------------------------------------------------
 *
 * request.c
 *	  Arguments of execute_flow and enqueue_flow to a checked FlowRequest.
 *
 * Everything that the platform would refuse for its form is refused here,
 * before anything is sent or queued, with the argument's name.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/request.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "guc.h"
#include "nls.h"
#include "request.h"

/* Positions of the arguments. */
#define ARG_NAMESPACE		0
#define ARG_FLOW_ID			1
#define ARG_OPERATOR		2
#define ARG_PARAMS			3
#define ARG_IS_ASYNC		4
#define ARG_IDEMPOTENT_KEY	5
#define ARG_LOOP_MASKS		6

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

/*
 * Is a jsonb number written as an integer in the range of int64?  It goes to the
 * platform as it is, and "1.0" is no integer to everybody's JSON parser.
 */
static bool
is_int64(Numeric number)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
	const char *digits = text + (text[0] == '-');

	if (digits[strspn(digits, "0123456789")] != '\0')
		return false;
	errno = 0;
	(void) strtoll(text, NULL, 10);
	return errno == 0;
}

const char *
request_check_operator(Jsonb *operator_id)
{
	JsonbValue	value;
	bool		has_id = false;
	bool		has_email = false;

	if (!JB_ROOT_IS_OBJECT(operator_id))
		return gettext_noop("must be a JSON object");
	if (object_member(operator_id, "_id", &value) != NULL && value.type != jbvNull)
	{
		if (value.type != jbvNumeric || !is_int64(value.val.numeric))
			return gettext_noop("must have an integer in the range of bigint as \"_id\"");
		has_id = true;
	}
	if (object_member(operator_id, "email", &value) != NULL && value.type != jbvNull)
	{
		if (value.type != jbvString ||
			(value.val.string.len > 0 &&
			 memchr(value.val.string.val, '@', value.val.string.len) == NULL))
			return gettext_noop("must have an e-mail address as \"email\"");
		has_email = value.val.string.len > 0;
	}
	if (!has_id && !has_email)
		return gettext_noop("must have \"_id\" or \"email\"");
	return NULL;
}

/* Throw that an argument is wrong. */
static void
report_argument(const char *argument, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" %s", argument, _(problem)),
			 hint ? errhint("%s", _(hint)) : 0));
}

/* Throw that the operator is wrong, and show it: a template may have made it. */
static void
report_operator(Jsonb *operator_id, const char *problem)
{
	char	   *json = VARSIZE(operator_id) <= MAX_SHOWN ?
		JsonbToCString(NULL, &operator_id->root, VARSIZE(operator_id)) : NULL;

	/* a number of a few bytes may have very many digits */
	if (json != NULL && strlen(json) > MAX_SHOWN)
		json = NULL;

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" %s", "operator", _(problem)),
			 json != NULL ? errdetail("It is %s.", json) : 0,
			 errhint("Write it like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}': the user of the low-code platform in whose name the flow runs.")));
}

/* namespace or flow_id */
static void
check_segment(const char *argument, const char *text, const char *hint)
{
	const char *problem;

	if (text == NULL)
		report_argument(argument, gettext_noop("must not be null"), hint);
	problem = codec_check_segment(text);
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
		report_argument("loop_masks", gettext_noop("must be a JSON array"), hint);
	if (JB_ROOT_COUNT(loop_masks) > MAX_LOOP_MASKS)
		report_argument("loop_masks", gettext_noop("must not have more than 20 elements"), hint);
	iterator = JsonbIteratorInit(&loop_masks->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM && value.type != jbvString)
			report_argument("loop_masks", gettext_noop("must have only strings as elements"), hint);
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

	request->size = codec_request_size(request, limit);
	if (request->size <= limit)
		return;
	/* a small part of it is not to blame */
	if (request->params == NULL || codec_jsonb_size(request->params, limit / 2) <= limit / 2)
	{
		int64		operator_size = codec_jsonb_size(request->operator_id, limit);
		int64		masks_size = request->loop_masks == NULL ? 0 :
			codec_jsonb_size(request->loop_masks, limit);

		argument = masks_size > operator_size ? "loop_masks" : "operator";
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("argument \"%s\" makes the request too large", argument),
			 errdetail("As it is sent, with all digits of its numbers, the request has more than %d kB, which is feishu_flow.max_request_size.",
					   feishu_guc_max_request_size),
			 errhint("Send less, such as a link to what is large instead of its contents, or have an administrator raise feishu_flow.max_request_size.")));
}

void
request_check(FlowRequest *request)
{
	const char *problem;

	check_segment("namespace", request->namespace_name,
				  gettext_noop("The low-code platform shows it under application management; it looks like package_7344545d87__c."));
	check_segment("flow_id", request->flow_id,
				  gettext_noop("It is the flow's API name, which the low-code platform shows in the table of flows."));

	if (request->operator_id == NULL)
		report_argument("operator", gettext_noop("must not be null, since the server has no default operator"),
						gettext_noop("Give it, like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}', or set the server's operator option."));
	problem = codec_wrote_operator_last(request->operator_id) ? NULL :
		request_check_operator(request->operator_id);
	if (problem != NULL)
		report_operator(request->operator_id, problem);

	if (request->params != NULL && !JB_ROOT_IS_OBJECT(request->params))
		report_argument("params", gettext_noop("must be a JSON object"),
						gettext_noop("Its members are the flow's input parameters by API name; leave it null when the flow has none."));
	if (request->idempotent_key != NULL)
	{
		problem = codec_check_key(request->idempotent_key);
		if (problem != NULL)
			report_argument("idempotent_key", problem,
							gettext_noop("Leave it null, or give each start of a flow a value of its own, such as a UUID."));
	}
	if (request->loop_masks != NULL)
		check_loop_masks(request->loop_masks);
	check_size(request);
}

/* A text argument as a string, or NULL. */
static char *
text_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

/* A jsonb argument, or NULL. */
static Jsonb *
jsonb_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_JSONB_P(n);
}

FlowRequest *
request_from_arguments(FunctionCallInfo fcinfo, const char *default_operator)
{
	FlowRequest *request = palloc0(sizeof(FlowRequest));

	request->namespace_name = text_argument(fcinfo, ARG_NAMESPACE);
	request->flow_id = text_argument(fcinfo, ARG_FLOW_ID);
	request->operator_id = jsonb_argument(fcinfo, ARG_OPERATOR);
	if (request->operator_id == NULL && default_operator != NULL)
		request->operator_id =
			DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(default_operator)));
	request->params = jsonb_argument(fcinfo, ARG_PARAMS);
	request->is_async = !PG_ARGISNULL(ARG_IS_ASYNC) && PG_GETARG_BOOL(ARG_IS_ASYNC);
	request->idempotent_key = text_argument(fcinfo, ARG_IDEMPOTENT_KEY);
	request->loop_masks = jsonb_argument(fcinfo, ARG_LOOP_MASKS);
	request_check(request);
	return request;
}
