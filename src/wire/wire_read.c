/*-------------------------------------------------------------------------
 *
 * src/wire/wire_read.c
 *	  The wire format, reading: bytes to FlowResponse.
 *
 * Nothing here throws because of what a peer sent.  wirejson.c makes jsonb of
 * the bytes, codes.c knows what the codes mean, and here are the answer's
 * members: which there are, of which type, and which of them decides.  A
 * member of the wrong type counts as absent unless the outcome hangs on it.
 *
 * An answer may be a success that jsonb of this database cannot hold.  It is
 * FLOW_SUCCEEDED then, so that nobody starts the flow again, but with a NULL
 * body and sqlstate LK502, so that a caller who wants the body gets an error.
 *
 * Answers to requests for a token never give away their bytes: they have no
 * excerpt and no body, whatever they say, because a token may be in there, or
 * the app_secret that a misconfigured endpoint echoes.  What a refusal says is
 * in code, message and log_id.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "base/nls.h"
#include "wire/codes.h"
#include "wire/wire.h"
#include "wire/wire_internal.h"

/*
 * Caps on text of the answer, in bytes, so that a peer cannot flood messages,
 * logs and the outbox.  A cut identifier could be mistaken for a whole one,
 * hence the generous cap: the platform's are under 40 bytes.
 */
#define MAX_ID_SIZE			256
#define MAX_MESSAGE_SIZE	1024
#define MAX_EXCERPT_SIZE	512
#define MAX_URL_SIZE		500

#define MAX_HELPS			10	/* elements of error.helps that are looked at */

/*
 * The platform's tokens live for 2 hours at most.  A longer life than this is
 * taken for nonsense.
 */
#define MAX_TOKEN_LIFETIME	(7 * 24 * 3600)

static const char *const OUT_PARAMS_ERROR =
gettext_noop("could not read out_params of the flow's response");
static const char *const OUT_PARAMS_HINT =
gettext_noop("It is not what the platform documents: read response -> 'data' -> 'out_params' in your own way.");


/*
 * Members of JSON objects
 */

/* Find a member; false when it is absent or null. */
static bool
find_member(JsonbContainer *object, const char *key, JsonbValue *value)
{
	if (getKeyJsonValueFromContainer(object, key, (int) strlen(key), value) == NULL)
		return false;
	return value->type != jbvNull;
}

/* The container of a value that is an object, else NULL. */
static JsonbContainer *
value_object(const JsonbValue *value)
{
	if (value->type == jbvBinary && JsonContainerIsObject(value->val.binary.data))
		return value->val.binary.data;
	return NULL;
}

static JsonbContainer *
value_array(const JsonbValue *value)
{
	if (value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data))
		return value->val.binary.data;
	return NULL;
}

static JsonbContainer *
find_object(JsonbContainer *object, const char *key)
{
	JsonbValue	value;

	return find_member(object, key, &value) ? value_object(&value) : NULL;
}

static char *
numeric_text(Numeric number)
{
	return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(number)));
}

/* A string, or a number as text, as it is; NULL for any other type. */
static char *
value_text(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return numeric_text(value->val.numeric);
		default:
			return NULL;
	}
}

/*
 * Text of the database's encoding, fit for a message, without secrets.  They are
 * masked before the text is cut (mask.c): so more of it is made than is shown.
 */
static char *
fit_text(const char *text, int len, int max, const MaskSecrets *secrets)
{
	char	   *fit = wiretext_fit(text, len, max + (int) mask_longest(secrets));

	mask_secrets(secrets, fit);
	return wiretext_cut(fit, max);
}

/*
 * A member's text, fit for a message; NULL when the member is absent, empty,
 * or not text.
 */
static char *
find_text(JsonbContainer *object, const char *key, int max, const MaskSecrets *secrets)
{
	JsonbValue	value;
	char	   *result;

	if (!find_member(object, key, &value))
		return NULL;
	if (value.type == jbvString)
		result = fit_text(value.val.string.val, value.val.string.len, max, secrets);
	else if (value.type == jbvNumeric)
	{
		char	   *text = numeric_text(value.val.numeric);

		result = fit_text(text, (int) strlen(text), max, secrets);
		pfree(text);			/* of a large exponent it is long */
	}
	else
		return NULL;
	return result[0] != '\0' ? result : NULL;
}

/* An integer, as a number or as a string of digits. */
static bool
find_int64(JsonbContainer *object, const char *key, int64 *result)
{
	JsonbValue	value;
	char	   *text;
	char	   *end;
	bool		ok;

	if (!find_member(object, key, &value))
		return false;
	text = value_text(&value);
	if (text == NULL)
		return false;

	errno = 0;
	*result = strtoi64(text, &end, 10);
	ok = errno == 0 && end != text &&
		(text[0] == '-' || (text[0] >= '0' && text[0] <= '9'));
	if (ok && end[0] == '.' && value.type == jbvNumeric)
		end += 1 + strspn(end + 1, "0");
	ok = ok && *end == '\0';

	pfree(text);
	return ok;
}

/*
 * The first http or https URL in text, made of visible ASCII: all of the text
 * if whole.  NULL when there is none, or when it is too long to be shown.
 */
static char *
extract_url(const JsonbValue *value, bool whole, const MaskSecrets *secrets)
{
	char	   *text;
	char	   *url;
	size_t		len = 0;

	if (value->type != jbvString)
		return NULL;
	text = pnstrdup(value->val.string.val, value->val.string.len);
	mask_secrets(secrets, text);

	for (url = text; *url != '\0'; url++)
	{
		if (pg_strncasecmp(url, "https://", 8) == 0 ||
			pg_strncasecmp(url, "http://", 7) == 0)
			break;
		if (whole)
			return NULL;
	}
	while (url[len] > 0x20 && url[len] < 0x7f && strchr("\"<>\\^`{|}", url[len]) == NULL)
		len++;
	if (whole && url[len] != '\0')
		return NULL;
	while (!whole && len > 0 && strchr(".,;:!?)]'", url[len - 1]) != NULL)
		len--;					/* the sentence's, not the URL's */
	if (len == 0 || len > MAX_URL_SIZE)
		return NULL;

	return pnstrdup(url, len);
}


/*
 * Reading
 */

static void
apply_verdict(FlowResponse *response, Verdict verdict)
{
	response->action = verdict.action;
	response->sqlstate = verdict.sqlstate;
	response->reason = verdict.reason;
	response->hint = verdict.hint;
}

/* The member "code". */
static void
read_code(JsonbContainer *root, FlowResponse *response)
{
	response->has_code = find_int64(root, "code", &response->code);
	if (!response->has_code)
		response->code = 0;
}

/* What the platform says of a failure. */
static void
read_explanation(JsonbContainer *root, FlowResponse *response, const MaskSecrets *secrets)
{
	JsonbContainer *error = find_object(root, "error");
	JsonbContainer *helps;
	JsonbValue	value;

	response->message = find_text(root, "msg", MAX_MESSAGE_SIZE, secrets);
	if (error == NULL)
		return;
	response->log_id = find_text(error, "log_id", MAX_ID_SIZE, secrets);

	if (find_member(error, "helps", &value) && (helps = value_array(&value)) != NULL)
	{
		int			nhelps = Min((int) JsonContainerSize(helps), MAX_HELPS);

		for (int i = 0; i < nhelps && response->helps == NULL; i++)
		{
			JsonbValue *element = getIthJsonbValueFromContainer(helps, i);
			JsonbContainer *help = value_object(element);

			if (help != NULL && find_member(help, "url", &value))
				response->helps = extract_url(&value, true, secrets);
		}
	}
	if (response->helps == NULL && find_member(error, "troubleshooter", &value))
		response->helps = extract_url(&value, false, secrets);
}

/*
 * The member "data".  False when it, or the code in it, is not of the type
 * that the platform documents.
 */
static bool
read_data(JsonbContainer *root, FlowResponse *response, const MaskSecrets *secrets)
{
	JsonbContainer *data;
	JsonbValue	value;
	char	   *code;
	int64		number;

	if (!find_member(root, "data", &value))
		return true;
	data = value_object(&value);
	if (data == NULL)
		return false;

	response->execution_id = find_text(data, "execution_id", MAX_ID_SIZE, secrets);
	response->status = find_text(data, "status", MAX_ID_SIZE, secrets);

	if (!find_member(data, "code", &value))
		return true;
	code = value_text(&value);
	if (code == NULL)
		return false;
	if (code[0] == '\0' || (find_int64(data, "code", &number) && number == 0))
		return true;
	response->inner_code = fit_text(code, (int) strlen(code), MAX_ID_SIZE, secrets);
	pfree(code);
	return true;
}

/* What a readable answer to a start of a flow means. */
static Verdict
judge_answer(const FlowResponse *response, bool data_ok, int http_status)
{
	const Verdict *known_outer = NULL;
	const Verdict *known_inner = NULL;

	if (!response->has_code)
		return codes_unusable(http_status, ANSWER_NO_CODE, false);

	if (response->code != 0)
		known_outer = codes_lookup_outer(response->code);
	if (known_outer != NULL)
		return *known_outer;

	/* what the flow said tells more than a code that nobody knows */
	if (response->inner_code != NULL)
		known_inner = codes_lookup_inner(response->inner_code);
	if (known_inner != NULL)
		return *known_inner;

	if (response->code != 0)
		return codes_unknown_outer(http_status);
	if (http_status < 200 || http_status > 299)
		return codes_contradictory(http_status, false);
	if (!data_ok)
		return codes_unusable(http_status, ANSWER_BAD_DATA, false);
	if (response->inner_code != NULL)
		return codes_unknown_inner();
	return codes_success();
}

/* For an error's DETAIL: the beginning of the answer as it came. */
static void
read_excerpt(const char *body, size_t body_len, FlowResponse *response,
			 const MaskSecrets *secrets)
{
	char	   *text = wire_printable(body, body_len,
									  MAX_EXCERPT_SIZE + (int) mask_longest(secrets));

	mask_secrets(secrets, text);
	response->excerpt = wiretext_cut(text, MAX_EXCERPT_SIZE);
}

/*
 * Read an answer; a NUL byte follows its body, which is NULL when it has no bytes.
 * Secrets (or NULL) are masked in all that becomes of it, and in body.  Does not throw
 * on account of what the peer sent.
 *
 * Throws when memory runs out, and at a cancel if the answer is long.  One that cannot
 * be used comes back with sqlstate LK502 and the action its HTTP status calls for.
 */
FlowResponse *
wire_read_answer(int http_status, char *body, size_t body_len, const MaskSecrets *secrets)
{
	FlowResponse *response = palloc0(sizeof(FlowResponse));
	WireJson	json;
	bool		data_ok;

	response->excerpt = "";
	if (body == NULL)
		body = "";				/* of which nothing is written */
	mask_bytes(secrets, body, body_len);
	wirejson_read_object(body, body_len, &json);
	if (json.value == NULL)
	{
		apply_verdict(response, codes_unusable(http_status, json.problem, false));
		read_excerpt(body, body_len, response, secrets);
		return response;
	}

	read_code(&json.value->root, response);
	data_ok = read_data(&json.value->root, response, secrets);
	apply_verdict(response, judge_answer(response, data_ok, http_status));
	if (ANSWER_IS_LOSSY(json.problem) && response->action == FLOW_SUCCEEDED)
		apply_verdict(response, codes_lossy_success(json.problem));

	if (response->sqlstate != 0)
	{
		JsonbContainer *data = find_object(&json.value->root, "data");

		read_explanation(&json.value->root, response, secrets);
		if (data != NULL)
			response->inner_message = find_text(data, "error_msg", MAX_MESSAGE_SIZE, secrets);
		read_excerpt(body, body_len, response, secrets);
	}
	if (ANSWER_IS_LOSSY(json.problem))
		pfree(json.value);
	/* what the peer has escaped shows itself when it has been read */
	else if (memchr(body, '\\', body_len) != NULL)
		response->body = mask_jsonb(secrets, json.value);
	else
		response->body = json.value;
	return response;
}

/* What stands for an answer that there was no memory for. */
FlowResponse *
wire_unread_answer(int http_status)
{
	FlowResponse *response = palloc0(sizeof(FlowResponse));

	response->excerpt = "";
	apply_verdict(response, codes_unusable(http_status, ANSWER_NO_MEMORY, false));
	return response;
}

/*
 * The token in an answer, or NULL when there is none that can be sent in a
 * header.  A "?" in a lossy copy may not be the platform's.
 */
static char *
read_token(JsonbContainer *root, const char *key, bool lossy)
{
	JsonbValue	value;

	if (!find_member(root, key, &value) || value.type != jbvString ||
		value.val.string.len == 0 || value.val.string.len > TOKEN_MAX_LENGTH)
		return NULL;

	for (int i = 0; i < value.val.string.len; i++)
	{
		char		c = value.val.string.val[i];

		if (c < 0x21 || c > 0x7e || (lossy && c == '?'))
			return NULL;
	}
	return pnstrdup(value.val.string.val, value.val.string.len);
}

/*
 * What a readable answer to a request for a token means; on success, and only
 * then, the token is filled in.
 */
static Verdict
judge_token_answer(bool oauth, JsonbContainer *root, bool lossy, int http_status,
				   FlowResponse *response)
{
	JsonbValue	value;
	int64		lifetime;
	bool		code_present;

	if (response->has_code && response->code != 0)
	{
		const Verdict *known = codes_lookup_outer(response->code);

		return known != NULL ? *known : codes_refused_token(http_status);
	}

	/* RFC 6749: "error" is there if and only if the token is refused */
	if (oauth && find_member(root, "error", &value))
		return codes_refused_token(http_status);

	code_present = find_member(root, "code", &value);
	if (!response->has_code && (code_present || !oauth))
		return codes_unusable(http_status, ANSWER_NO_CODE, true);
	if (http_status < 200 || http_status > 299)
		return codes_contradictory(http_status, true);

	response->token = read_token(root, oauth ? "access_token" : "tenant_access_token",
							  lossy);
	if (response->token == NULL)
		return codes_unusable(http_status, ANSWER_NO_TOKEN, true);

	if (find_int64(root, oauth ? "expires_in" : "expire", &lifetime) &&
		lifetime > 0 && lifetime <= MAX_TOKEN_LIFETIME)
		response->expires_in = (int) lifetime;
	return codes_success();
}

/*
 * wire_read_answer for a token request; body stays as it is.
 *
 * A refusal never has a body or an excerpt: the answer's bytes may hold secrets.  Its
 * action is FLOW_STOP_APP, FLOW_WAIT or FLOW_RETRY.  A token is 1 to TOKEN_MAX_LENGTH
 * bytes of visible ASCII.
 */
FlowResponse *
wire_read_token_answer(bool oauth, int http_status, const char *body, size_t body_len,
					   const MaskSecrets *secrets)
{
	FlowResponse *response = palloc0(sizeof(FlowResponse));
	WireJson	json;

	response->excerpt = "";
	wirejson_read_object(body != NULL ? body : "", body_len, &json);
	if (json.value == NULL)
		apply_verdict(response, codes_unusable(http_status, json.problem, true));
	else
	{
		JsonbContainer *root = &json.value->root;

		read_code(root, response);
		read_explanation(root, response, secrets);
		if (response->message == NULL)
			response->message = find_text(root, "error_description", MAX_MESSAGE_SIZE, secrets);
		if (response->message == NULL)
			response->message = find_text(root, "error", MAX_MESSAGE_SIZE, secrets);
		apply_verdict(response,
					  judge_token_answer(oauth, root, ANSWER_IS_LOSSY(json.problem),
										 http_status, response));
		explicit_bzero(json.value, VARSIZE(json.value));
		pfree(json.value);
	}

	/* whatever is refused for good here hits every call of the app */
	if (response->action == FLOW_FAIL || response->action == FLOW_REFRESH_TOKEN)
		response->action = FLOW_STOP_APP;
	return response;
}


/*
 * Output parameters
 */

static void
out_params_unreadable(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEISHU_BAD_ANSWER),
			 errmsg("%s", _(OUT_PARAMS_ERROR)),
			 errdetail("%s", _(detail)),
			 errhint("%s", _(OUT_PARAMS_HINT))));
}

/* An array of {"api_name", "value"} as one object. */
static Jsonb *
join_out_params(JsonbContainer *array)
{
	JsonbIterator *iterator = JsonbIteratorInit(array);
	JsonbIteratorToken token;
	JsonbValue	element;
	JsonbInState state;
	int			number = 0;

	memset(&state, 0, sizeof(state));
	feishu_jsonb_push(&state, WJB_BEGIN_OBJECT, NULL);

	token = JsonbIteratorNext(&iterator, &element, false);
	Assert(token == WJB_BEGIN_ARRAY);
	while ((token = JsonbIteratorNext(&iterator, &element, true)) == WJB_ELEM)
	{
		JsonbContainer *param = value_object(&element);
		JsonbValue	name;
		JsonbValue	value;

		number++;
		if (param == NULL ||
			getKeyJsonValueFromContainer(param, "api_name", 8, &name) == NULL ||
			name.type != jbvString)
			ereport(ERROR,
					(errcode(ERRCODE_FEISHU_BAD_ANSWER),
					 errmsg("%s", _(OUT_PARAMS_ERROR)),
					 errdetail("Element %d is not an object with a string \"api_name\".",
							   number),
					 errhint("%s", _(OUT_PARAMS_HINT))));

		if (getKeyJsonValueFromContainer(param, "value", 5, &value) == NULL)
			value.type = jbvNull;

		/* of several values with the same name, the last one wins */
		feishu_jsonb_push(&state, WJB_KEY, &name);
		feishu_jsonb_push(&state, WJB_VALUE, &value);
	}
	Assert(token == WJB_END_ARRAY);

	feishu_jsonb_push(&state, WJB_END_OBJECT, NULL);
	return JsonbValueToJsonb(state.result);
}

/*
 * data.out_params of a response object as one object; NULL when there are
 * none.  Throws 22023 when response is not an object, and LK502 when the
 * member is there and cannot be read.
 */
Jsonb *
wire_out_params(Jsonb *response)
{
	JsonbContainer *data;
	JsonbContainer *container = NULL;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(response))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a JSON object", "response")));

	if (!find_member(&response->root, "data", &value))
		return NULL;
	data = value_object(&value);
	if (data == NULL)
		out_params_unreadable(gettext_noop("The member \"data\" is not an object."));
	if (!find_member(data, "out_params", &value))
		return NULL;

	if (value.type == jbvBinary)
		container = value.val.binary.data;
	else if (value.type == jbvString)
	{
		WireJson	json;

		if (value.val.string.len == 0)
			return NULL;
		wirejson_read_text(value.val.string.val, value.val.string.len, &json);
		if (ANSWER_IS_LOSSY(json.problem))
			out_params_unreadable(gettext_noop("It has a value that jsonb of this database cannot represent."));
		if (json.problem == ANSWER_TOO_DEEP)
			out_params_unreadable(gettext_noop("It is nested too deeply."));
		if (json.value == NULL)
			out_params_unreadable(gettext_noop("It is not valid JSON."));

		/* an object is not documented, but what the caller wants */
		if (JB_ROOT_IS_OBJECT(json.value))
			return JB_ROOT_COUNT(json.value) > 0 ? json.value : NULL;
		if (!JB_ROOT_IS_SCALAR(json.value))
			container = &json.value->root;
		else if (JsonbExtractScalar(&json.value->root, &value) &&
				 value.type == jbvNull)
			return NULL;
	}
	if (container == NULL)
		out_params_unreadable(gettext_noop("It is neither an array nor an object."));

	if (JsonContainerSize(container) == 0)
		return NULL;
	if (JsonContainerIsObject(container))
		return JsonbValueToJsonb(&value);	/* likewise */
	return join_out_params(container);
}
