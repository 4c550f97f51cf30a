/*-------------------------------------------------------------------------
 *
 * src/wire/codes.c
 *	  What each answer of the platform means and what a caller should do.
 *
 * An answer is judged by its outer code if that is a known one, else by
 * data.code, else by the HTTP status, else by what is wrong with its bytes.
 * There is one table for each, and nothing else in the extension knows what a
 * code means.  "msg" is never looked at: the platform says that it may change.
 *
 * The codes come from the API document, the platform's public documentation
 * and its SDKs.  Those of the inner table that the document does not list
 * were learnt from third parties and may change, so that an unknown code
 * always has a verdict too, and the conservative one: a flow that the
 * platform refused is not sent again.
 *
 * Where the outcome is unknown (5xx, an answer that cannot be read) the
 * action is FLOW_RETRY: with the same idempotent_key the platform starts a
 * flow at most once.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "wire/codes.h"

typedef struct OuterCode
{
	int64		code;
	Verdict		verdict;
} OuterCode;

typedef struct InnerCode
{
	const char *code;
	Verdict		verdict;
} InnerCode;

/* HTTP statuses first to last; token_hint replaces the hint if not NULL. */
typedef struct StatusRange
{
	int			first;
	int			last;
	Verdict		verdict;
	const char *token_hint;
} StatusRange;

/* Texts that more than one row uses. */
#define REASON_TOKEN \
	gettext_noop("the access token was refused")
#define HINT_TOKEN \
	gettext_noop("If a new token is refused too, check that app_id and app_secret (or tenant_access_token) of the user mapping belong to this base_url and tenant.")
#define REASON_CREDENTIALS \
	gettext_noop("app_id or app_secret was refused")
#define HINT_CREDENTIALS \
	gettext_noop("Correct app_id and app_secret with ALTER USER MAPPING; both are on the app's page \"Credentials & Basic Info\" in the developer console. An app of Feishu works with base_url https://open.feishu.cn only, one of Lark with https://open.larksuite.com.")
#define REASON_RATE_LIMIT \
	gettext_noop("the rate limit was reached")
#define HINT_RATE_LIMIT \
	gettext_noop("Wait and try again, or keep below the limit with the server option max_rate.")
#define REASON_QUOTA \
	gettext_noop("the monthly quota of API calls is used up")
#define HINT_QUOTA \
	gettext_noop("Calls are accepted again next month, or after an administrator of the tenant has raised its plan.")
#define REASON_SCOPE \
	gettext_noop("the app lacks a permission")
#define HINT_SCOPE \
	gettext_noop("Add the scope app_engine:flow:write to the app in the developer console and publish a version of it; an administrator of the low-code application must also authorise the app id there (application management, Open API).")
#define REASON_PARAMETERS \
	gettext_noop("the parameters were refused")
#define HINT_PARAMETERS \
	gettext_noop("Check namespace, flow_id, operator (an _id or email that exists in the tenant) and params.")
#define REASON_PLATFORM \
	gettext_noop("the platform had an internal error")
#define HINT_PLATFORM \
	gettext_noop("Try again later, for a flow with the same idempotent_key. If this goes on, give the log id to the platform's support.")
#define REASON_FLOW_INPUT \
	gettext_noop("the flow refused its input")
#define HINT_FLOW_INPUT \
	gettext_noop("Compare params with the flow's inputs (names, types, which are required), and check that the flow is of a kind that the API can start.")
#define REASON_BUSY \
	gettext_noop("the flow engine is busy")
#define HINT_BUSY \
	gettext_noop("Try again later, for a flow with the same idempotent_key.")
#define REASON_TIMEOUT \
	gettext_noop("the platform gave up waiting for the request")
#define HINT_BASE_URL \
	gettext_noop("Check the server's base_url; a proxy or gateway may have answered in the platform's place.")
#define HINT_TOKEN_URL \
	gettext_noop("Check the server's token_url, or its base_url when token_url is not set.")
#define HINT_TOKEN_NOT_FOUND \
	gettext_noop("Check the server's token_url, or when that is not set its base_url: scheme, host and port only, such as https://open.feishu.cn.")
#define REASON_NOT_FOUND \
	gettext_noop("there is nothing at this URL")
#define HINT_NOT_FOUND \
	gettext_noop("Check the server's base_url: scheme, host and port only, such as https://open.feishu.cn.")
#define REASON_UNAUTHORIZED \
	gettext_noop("the credentials were refused")
#define REASON_FORBIDDEN \
	gettext_noop("access was denied")

#define VERDICT_TOKEN \
	{FLOW_REFRESH_TOKEN, ERRCODE_FEISHU_CREDENTIALS, REASON_TOKEN, HINT_TOKEN}
#define VERDICT_CREDENTIALS \
	{FLOW_STOP_APP, ERRCODE_FEISHU_CREDENTIALS, REASON_CREDENTIALS, HINT_CREDENTIALS}
#define VERDICT_RATE_LIMIT \
	{FLOW_WAIT, ERRCODE_FEISHU_RATE_LIMIT, REASON_RATE_LIMIT, HINT_RATE_LIMIT}
#define VERDICT_SCOPE \
	{FLOW_FAIL, ERRCODE_FEISHU_PERMISSION, REASON_SCOPE, HINT_SCOPE}
#define VERDICT_PLATFORM \
	{FLOW_RETRY, ERRCODE_FEISHU_PLATFORM, REASON_PLATFORM, HINT_PLATFORM}
#define VERDICT_FLOW_INPUT \
	{FLOW_FAIL, ERRCODE_FEISHU_REFUSED, REASON_FLOW_INPUT, HINT_FLOW_INPUT}
#define VERDICT_BUSY \
	{FLOW_RETRY, ERRCODE_FEISHU_PLATFORM, REASON_BUSY, HINT_BUSY}
#define VERDICT_TIMEOUT \
	{FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT, REASON_TIMEOUT, HINT_BUSY}

/* The outer code. */
static const OuterCode outer_codes[] = {
	/* the token */
	{99991663, VERDICT_TOKEN},
	{99991664, VERDICT_TOKEN},
	{99991665, VERDICT_TOKEN},
	{99991668, VERDICT_TOKEN},
	{99991671, VERDICT_TOKEN},
	{99991661, {FLOW_FAIL, ERRCODE_FEISHU_CREDENTIALS,
		gettext_noop("the platform saw no access token"),
	gettext_noop("Check that no proxy or gateway on the way to base_url removes the Authorization header.")}},

	/* the app's credentials */
	{10003, VERDICT_CREDENTIALS},
	{10014, VERDICT_CREDENTIALS},
	{10015, VERDICT_CREDENTIALS},
	{99991543, VERDICT_CREDENTIALS},

	/* limits */
	{99991400, VERDICT_RATE_LIMIT},
	{99991403, {FLOW_STOP_APP, ERRCODE_FEISHU_RATE_LIMIT, REASON_QUOTA, HINT_QUOTA}},

	/* permissions */
	{99991672, VERDICT_SCOPE},
	{99991676, VERDICT_SCOPE},
	{99991662, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION,
		gettext_noop("the app is disabled"),
	gettext_noop("Have an administrator of the tenant enable the app, and publish a version of it in the developer console.")}},
	{99991673, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION,
		gettext_noop("the app is not available in this tenant"),
	gettext_noop("Publish a version of the app in the developer console and have an administrator of the tenant approve it.")}},
	{212100, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION,
		gettext_noop("the app is not installed in this tenant"),
	gettext_noop("Publish a version of the app in the developer console and have an administrator of the tenant approve it.")}},
	{99991401, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION,
		gettext_noop("the IP address of this database server was refused"),
	gettext_noop("Add the public IP address of the database server to the app's IP allow list in the developer console (Security Settings).")}},

	/* the request */
	{99992402, {FLOW_FAIL, ERRCODE_FEISHU_REFUSED, REASON_PARAMETERS, HINT_PARAMETERS}},
	{2320001, {FLOW_FAIL, ERRCODE_FEISHU_REFUSED, REASON_PARAMETERS, HINT_PARAMETERS}},

	/* the platform */
	{1500, VERDICT_PLATFORM},
	{1663, VERDICT_PLATFORM},
	{1668, VERDICT_PLATFORM},
	{2200, VERDICT_PLATFORM},
	{5000, VERDICT_PLATFORM},
	{10101, VERDICT_PLATFORM},
	{55001, VERDICT_PLATFORM},
	{65001, VERDICT_PLATFORM},

	/* OAuth token endpoint: server error, temporarily unavailable */
	{20050, VERDICT_PLATFORM},
	{20072, VERDICT_PLATFORM}
};

/* data.code, which says how the flow itself fared. */
static const InnerCode inner_codes[] = {
	{"k_wf_ec_2001008", {FLOW_KEY_USED, ERRCODE_FEISHU_KEY_USED,
		gettext_noop("the idempotent key was already used"),
	gettext_noop("A request with this idempotent_key was accepted before; use a new key to start the flow once more.")}},
	{"k_wf_ec_200036", {FLOW_FAIL, ERRCODE_FEISHU_NOT_FOUND,
		gettext_noop("there is no such flow"),
	gettext_noop("Check namespace (application management) and flow_id (the flow's API name in the list of flows), and that the flow is deployed and active.")}},
	{"k_ec_000009", {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION,
		gettext_noop("the operator or the app may not start this flow"),
	gettext_noop("Check the namespace. An administrator of the low-code application must authorise the app id (application management, Open API), and the operator needs the right to start the flow.")}},

	{"k_wf_ec_2001001", VERDICT_FLOW_INPUT},
	{"k_wf_ec_2001002", VERDICT_FLOW_INPUT},
	{"k_wf_ec_2001004", VERDICT_FLOW_INPUT},
	{"k_wf_ec_2001006", VERDICT_FLOW_INPUT},

	{"k_op_ec_20001", VERDICT_BUSY},
	{"k_op_ec_20002", VERDICT_BUSY},
	{"k_op_ec_20003", VERDICT_BUSY},
	{"k_cf_ec_200009", VERDICT_BUSY},
	{"k_ec_000001", VERDICT_BUSY},
	{"k_ec_000004", VERDICT_BUSY},
	{"k_ec_000018", VERDICT_BUSY},
	{"k_ec_000032", VERDICT_BUSY},
	{"k_ec_000040", VERDICT_BUSY},
	{"k_ec_000053", VERDICT_BUSY},

	{"k_ec_000054", {FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		gettext_noop("the flow ran out of time"),
	gettext_noop("Set is_async to true for a flow that runs for long; whether this one ended is unknown, so try again only with the same idempotent_key.")}}
};

static const Verdict success = {FLOW_SUCCEEDED, 0, NULL, NULL};

static const Verdict unknown_inner =
{FLOW_FAIL, ERRCODE_FEISHU_REFUSED,
	gettext_noop("the flow failed"),
gettext_noop("Look at this execution in the flow's log on the low-code platform.")};

/* The platform answered with a code that the table does not know. */
static const StatusRange unknown_outer[] = {
	{500, 599, VERDICT_PLATFORM, NULL},
	{429, 429, VERDICT_RATE_LIMIT, NULL},
	{408, 408, VERDICT_TIMEOUT, NULL},
	{401, 401, {FLOW_FAIL, ERRCODE_FEISHU_CREDENTIALS, REASON_UNAUTHORIZED, HINT_TOKEN},
	NULL},
	{403, 403, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION, REASON_FORBIDDEN, HINT_SCOPE},
	NULL},
	{404, 404, {FLOW_FAIL, ERRCODE_FEISHU_NOT_FOUND, REASON_NOT_FOUND,
		gettext_noop("Check namespace, flow_id and the server's base_url.")},
	NULL},
	{INT_MIN, INT_MAX, {FLOW_FAIL, ERRCODE_FEISHU_REFUSED,
		gettext_noop("the platform refused the request"),
		gettext_noop("Look the code up in the platform's list of error codes.")},
	NULL}
};

/* So it did for a token: whatever it is, it hits every call of the app. */
static const StatusRange refused_token[] = {
	{500, 599, VERDICT_PLATFORM, NULL},
	{429, 429, VERDICT_RATE_LIMIT, NULL},
	{408, 408, VERDICT_TIMEOUT, NULL},
	{403, 403, {FLOW_STOP_APP, ERRCODE_FEISHU_PERMISSION, REASON_FORBIDDEN, HINT_CREDENTIALS},
	NULL},
	{404, 404, {FLOW_STOP_APP, ERRCODE_FEISHU_NOT_FOUND, REASON_NOT_FOUND, HINT_TOKEN_NOT_FOUND},
	NULL},
	{INT_MIN, INT_MAX, {FLOW_STOP_APP, ERRCODE_FEISHU_CREDENTIALS,
		gettext_noop("no access token was granted"), HINT_CREDENTIALS},
	NULL}
};

/*
 * What answered did not speak the platform's JSON.  2xx is absent: there the
 * problem itself decides.
 */
static const StatusRange unusable[] = {
	{500, 599, {FLOW_RETRY, ERRCODE_FEISHU_PLATFORM,
		gettext_noop("the platform, or a gateway in front of it, failed"), HINT_PLATFORM},
	NULL},
	{304, 304, {FLOW_FAIL, ERRCODE_FEISHU_BAD_ANSWER,
		gettext_noop("a cache answered in the platform's place"), HINT_BASE_URL},
	HINT_TOKEN_URL},
	{300, 399, {FLOW_FAIL, ERRCODE_FEISHU_NOT_FOUND,
		gettext_noop("redirects are not followed"),
		gettext_noop("Set the server's base_url to the address that the redirect leads to, if you trust it.")},
		gettext_noop("Set the server's token_url (or base_url) to the address that the redirect leads to, if you trust it.")
	},
	{401, 401, {FLOW_FAIL, ERRCODE_FEISHU_CREDENTIALS, REASON_UNAUTHORIZED, HINT_BASE_URL},
	HINT_TOKEN_URL},
	{403, 403, {FLOW_FAIL, ERRCODE_FEISHU_PERMISSION, REASON_FORBIDDEN,
		gettext_noop("A proxy or firewall may have answered in the platform's place: check the server's base_url and proxy.")},
		gettext_noop("A proxy or firewall may have answered in the platform's place: check the server's token_url, base_url and proxy.")
	},
	{404, 404, {FLOW_FAIL, ERRCODE_FEISHU_NOT_FOUND, REASON_NOT_FOUND, HINT_NOT_FOUND},
	HINT_TOKEN_NOT_FOUND},
	{407, 407, {FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION,
		gettext_noop("the proxy refused the connection"),
		gettext_noop("The proxy asks for authentication: check the server's proxy.")},
	NULL},
	{408, 408, VERDICT_TIMEOUT, NULL},
	{413, 413, {FLOW_FAIL, ERRCODE_FEISHU_REFUSED,
		gettext_noop("the request is too large"),
		gettext_noop("Send less in params.")},
	HINT_TOKEN_URL},
	{429, 429, VERDICT_RATE_LIMIT, NULL},
	{400, 499, {FLOW_FAIL, ERRCODE_FEISHU_BAD_ANSWER,
		gettext_noop("the request was refused with an answer that is not the platform's"),
		HINT_BASE_URL},
	HINT_TOKEN_URL}
};

/*
 * What is wrong with the answer, though the HTTP status said that all went
 * well.  Indexed by AnswerProblem; those not here never get here.
 */
#define HINT_UNKNOWN \
	gettext_noop("The flow may have started: try again only with the same idempotent_key. Check the server's base_url, too; a proxy or gateway may have answered in the platform's place.")
#define HINT_LARGE \
	gettext_noop("The flow may have started: try again only with the same idempotent_key. Have it return less in its output parameters.")

#define UNUSABLE(reason, hint) \
	{FLOW_RETRY, ERRCODE_FEISHU_BAD_ANSWER, reason, hint}

static const Verdict problems[] = {
	[ANSWER_EMPTY] =
	UNUSABLE(gettext_noop("the answer is empty"), HINT_UNKNOWN),
	[ANSWER_HAS_NUL] =
	UNUSABLE(gettext_noop("the answer has a zero byte"), HINT_UNKNOWN),
	[ANSWER_NOT_UTF8] =
	UNUSABLE(gettext_noop("the answer is not valid UTF-8"), HINT_UNKNOWN),
	[ANSWER_TOO_DEEP] =
	UNUSABLE(gettext_noop("the answer is nested too deeply"), HINT_UNKNOWN),
	[ANSWER_TOO_MANY_VALUES] =
	UNUSABLE(gettext_noop("the answer has too many values"), HINT_LARGE),
	[ANSWER_NOT_JSON] =
	UNUSABLE(gettext_noop("the answer is not a JSON object"), HINT_UNKNOWN),
	[ANSWER_NO_MEMORY] =
	UNUSABLE(gettext_noop("there was no memory to read the answer"),
			 gettext_noop("The flow may have started: try again only with the same idempotent_key. Check that the database host has memory left, or have the flow return less.")),
	[ANSWER_NO_CODE] =
	UNUSABLE(gettext_noop("the answer has no usable member \"code\""), HINT_UNKNOWN),
	[ANSWER_BAD_DATA] =
	UNUSABLE(gettext_noop("the answer's member \"data\" is not what the platform documents"), HINT_UNKNOWN),
	[ANSWER_CONTRADICTORY] =
	UNUSABLE(gettext_noop("the answer says success but its HTTP status says failure"), HINT_UNKNOWN),
	[ANSWER_NO_TOKEN] =
	UNUSABLE(gettext_noop("the answer has no usable access token"), HINT_TOKEN_URL)
};

/* Accepted, but the answer is not usable here; see wire_read_answer. */
static const Verdict lossy_encoding =
{FLOW_SUCCEEDED, ERRCODE_FEISHU_BAD_ANSWER,
	gettext_noop("the flow was accepted, but its answer has characters that the database encoding cannot represent"),
gettext_noop("Do not start it again: it was accepted. A database with encoding UTF8 can hold every answer.")};

static const Verdict lossy_value =
{FLOW_SUCCEEDED, ERRCODE_FEISHU_BAD_ANSWER,
	gettext_noop("the flow was accepted, but its answer has a value that jsonb cannot represent"),
gettext_noop("Do not start it again: it was accepted. Have the flow return no zero characters (\\u0000), no halves of surrogate pairs and no numbers beyond the range of numeric.")};


Verdict
codes_success(void)
{
	return success;
}

const Verdict *
codes_lookup_outer(int64 code)
{
	for (size_t i = 0; i < lengthof(outer_codes); i++)
	{
		if (outer_codes[i].code == code)
			return &outer_codes[i].verdict;
	}
	return NULL;
}

const Verdict *
codes_lookup_inner(const char *code)
{
	for (size_t i = 0; i < lengthof(inner_codes); i++)
	{
		if (strcmp(inner_codes[i].code, code) == 0)
			return &inner_codes[i].verdict;
	}
	return NULL;
}

/* data.code says that the flow failed, and is unknown. */
Verdict
codes_unknown_inner(void)
{
	return unknown_inner;
}

/* The first range that holds the status, or NULL. */
static const StatusRange *
lookup_status(const StatusRange *ranges, size_t nranges, int http_status)
{
	for (size_t i = 0; i < nranges; i++)
	{
		if (http_status >= ranges[i].first && http_status <= ranges[i].last)
			return &ranges[i];
	}
	return NULL;
}

Verdict
codes_unknown_outer(int http_status)
{
	return lookup_status(unknown_outer, lengthof(unknown_outer), http_status)->verdict;
}

Verdict
codes_refused_token(int http_status)
{
	return lookup_status(refused_token, lengthof(refused_token), http_status)->verdict;
}

/*
 * The answer cannot be used because of problem: the HTTP status decides, and
 * if that says that all went well, the problem does.
 */
Verdict
codes_unusable(int http_status, AnswerProblem problem, bool for_token)
{
	const StatusRange *range;
	Verdict		verdict;

	range = lookup_status(unusable, lengthof(unusable), http_status);
	if (range != NULL)
	{
		verdict = range->verdict;
		if (for_token && range->token_hint != NULL)
			verdict.hint = range->token_hint;
	}
	else
	{
		Assert(problem >= ANSWER_EMPTY && problem < lengthof(problems));
		verdict = problems[problem];
		if (for_token)
			verdict.hint = HINT_TOKEN_URL;
	}
	return verdict;
}

/* Code 0 although the HTTP status is not 2xx. */
Verdict
codes_contradictory(int http_status, bool for_token)
{
	Verdict		verdict;

	/*
	 * A status that asks to come back later is good advice all the same.
	 * Otherwise it is open what happened: the flow may have started.
	 */
	verdict = codes_unusable(http_status, ANSWER_CONTRADICTORY, for_token);
	if (verdict.action != FLOW_RETRY && verdict.action != FLOW_WAIT)
	{
		verdict = problems[ANSWER_CONTRADICTORY];
		if (for_token)
			verdict.hint = HINT_TOKEN_URL;
	}
	return verdict;
}

/* A success whose answer cannot be held as jsonb: ANSWER_LOSSY_* only. */
Verdict
codes_lossy_success(AnswerProblem problem)
{
	Assert(ANSWER_IS_LOSSY(problem));
	return problem == ANSWER_LOSSY_ENCODING ? lossy_encoding : lossy_value;
}
