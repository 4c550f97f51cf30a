/*-------------------------------------------------------------------------
 *
 * codec_write.c
 *	  The wire format, writing: FlowRequest to URL and body.
 *
 * JSON is built in the database encoding, whose multibyte characters never
 * hold an ASCII byte, and converted to UTF-8 as a whole.  What is written is
 * the caller's, so these functions throw: 22021 or 22P05 for what UTF-8
 * cannot represent, 54000 for what is beyond PostgreSQL's limit for a string.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/codec_write.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/json.h"

#include "codec.h"
#include "nls.h"

/*
 * The document gives no limit for the idempotent key.  Its example is a short
 * word and its advice a UUID; this leaves ample room and keeps indexes
 * possible.
 */
#define MAX_KEY_SIZE	255

#define MAX_SEGMENT_SIZE	255 /* bytes of UTF-8; names are far shorter */

/* A longer operator is written anew for each request. */
#define KEPT_OPERATOR_SIZE	512


/* Append UTF-8 text with all but RFC 3986's unreserved characters encoded. */
static void
append_percent_encoded(StringInfo buf, const char *utf8)
{
	static const char hex[] = "0123456789ABCDEF";
	const char *run = utf8;		/* not appended yet */
	const char *p;

	for (p = utf8; *p != '\0'; p++)
	{
		unsigned char c = (unsigned char) *p;

		if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
			(c >= '0' && c <= '9') ||
			c == '-' || c == '.' || c == '_' || c == '~')
			continue;
		appendBinaryStringInfo(buf, run, (int) (p - run));
		appendStringInfoChar(buf, '%');
		appendStringInfoChar(buf, hex[c >> 4]);
		appendStringInfoChar(buf, hex[c & 0x0f]);
		run = p + 1;
	}
	appendBinaryStringInfo(buf, run, (int) (p - run));
}

/* C0, DEL, and C1 (U+0080 to U+009F) in its two bytes */
static bool
has_control(const char *utf8)
{
	for (const unsigned char *p = (const unsigned char *) utf8; *p != '\0'; p++)
	{
		if (*p >= 0x20 && *p < 0x7f)
			continue;
		if (*p <= 0x7f || (p[0] == 0xc2 && p[1] <= 0x9f))
			return true;
	}
	return false;
}

/* codec_check_segment for text that is UTF-8 already. */
static const char *
check_segment(const char *utf8)
{
	if (utf8[0] == '\0')
		return gettext_noop("must not be empty");
	if (strcmp(utf8, ".") == 0 || strcmp(utf8, "..") == 0)
		return gettext_noop("must not be \".\" or \"..\"");
	if (strlen(utf8) > MAX_SEGMENT_SIZE)
		return gettext_noop("must not be longer than 255 bytes");

	if (has_control(utf8))
		return gettext_noop("must not contain control characters");
	return NULL;
}

/* Text as UTF-8, for free_utf8: text itself, if it is. */
static char *
as_utf8(const char *text)
{
	return pg_server_to_any(text, (int) strlen(text), PG_UTF8);
}

static void
free_utf8(char *utf8, const char *text)
{
	if (utf8 != text)
		pfree(utf8);
}

const char *
codec_check_key(const char *text)
{
	char	   *utf8 = as_utf8(text);
	const char *result = NULL;

	if (utf8[0] == '\0')
		result = gettext_noop("must not be empty");
	else if (strlen(utf8) > MAX_KEY_SIZE)
		result = gettext_noop("must not be longer than 255 bytes");
	else if (has_control(utf8))
		result = gettext_noop("must not contain control characters");
	free_utf8(utf8, text);
	return result;
}

const char *
codec_check_segment(const char *text)
{
	char	   *utf8 = as_utf8(text);
	const char *result = check_segment(utf8);

	free_utf8(utf8, text);
	return result;
}

static void
append_segment(StringInfo buf, const char *argument, const char *text)
{
	char	   *utf8 = as_utf8(text);
	const char *trouble = check_segment(utf8);

	if (trouble != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s %s", argument, _(trouble))));
	append_percent_encoded(buf, utf8);
	free_utf8(utf8, text);
}

/* A URL that begins with base_url. */
static void
init_url(StringInfo url, const char *base_url)
{
	initStringInfo(url);
	appendStringInfoString(url, codec_to_utf8(base_url));
	while (url->len > 0 && url->data[url->len - 1] == '/')
		url->data[--url->len] = '\0';
}

char *
codec_scopes_url(const char *base_url)
{
	StringInfoData url;

	init_url(&url, base_url);
	appendStringInfoString(&url, "/open-apis/application/v6/scopes");
	return url.data;
}

char *
codec_execute_url(const char *base_url, const FlowRequest *request)
{
	StringInfoData url;

	init_url(&url, base_url);
	appendStringInfoString(&url, "/open-apis/apaas/v1/applications/");
	append_segment(&url, "namespace", request->namespace_name);
	appendStringInfoString(&url, "/flows/");
	append_segment(&url, "flow_id", request->flow_id);
	appendStringInfoString(&url, "/execute");
	return url.data;
}

/*
 * Append JSON as a JSON string, which is how the platform wants it.  JSON text
 * has no control characters, so only quotes and backslashes are escaped.
 */
static void
append_json_string(StringInfo buf, Jsonb *value)
{
	char	   *text = JsonbToCString(NULL, &value->root, VARSIZE(value));
	char	   *run = text;		/* not appended yet */
	char	   *p;

	appendStringInfoChar(buf, '"');
	for (p = text; *p != '\0'; p++)
	{
		if (*p != '"' && *p != '\\')
			continue;
		appendBinaryStringInfo(buf, run, (int) (p - run));
		appendStringInfoChar(buf, '\\');
		run = p;
	}
	appendBinaryStringInfo(buf, run, (int) (p - run));
	appendStringInfoChar(buf, '"');
	pfree(text);
}

/* A body that was written may have so many bytes more than it needs. */
#define SPARE_ROOM			65536

/*
 * The operator written last.  It is nearly always that of the next request, too,
 * and to check and write one takes some 4,000 instructions of a call's 130,000.
 */
typedef struct KeptOperator
{
	Size		size;			/* of value; 0: none is kept */
	int			len;			/* of text */
	char		value[KEPT_OPERATOR_SIZE];	/* jsonb */
	char		text[KEPT_OPERATOR_SIZE];	/* as written */
} KeptOperator;

static KeptOperator last_operator = {0};

bool
codec_wrote_operator_last(const Jsonb *operator_id)
{
	return VARSIZE(operator_id) == last_operator.size &&
		memcmp(operator_id, last_operator.value, last_operator.size) == 0;
}

static void
append_operator(StringInfo buf, Jsonb *operator_id)
{
	int			start = buf->len;
	int			len;

	if (codec_wrote_operator_last(operator_id))
	{
		appendBinaryStringInfo(buf, last_operator.text, last_operator.len);
		return;
	}
	append_json_string(buf, operator_id);
	len = buf->len - start;
	last_operator.size = 0;
	if (VARSIZE(operator_id) <= KEPT_OPERATOR_SIZE && len <= KEPT_OPERATOR_SIZE)
	{
		memcpy(last_operator.value, operator_id, VARSIZE(operator_id));
		memcpy(last_operator.text, buf->data + start, len);
		last_operator.len = len;
		last_operator.size = VARSIZE(operator_id);
	}
}

/* Convert all of buf from the database encoding. */
static void
convert_to_utf8(StringInfo buf)
{
	char	   *utf8 = pg_server_to_any(buf->data, buf->len, PG_UTF8);

	if (utf8 != buf->data)
	{
		resetStringInfo(buf);
		appendStringInfoString(buf, utf8);
		pfree(utf8);
	}
}

void
codec_write_request(const FlowRequest *request, StringInfo body)
{
	resetStringInfo(body);
	appendStringInfoString(body, "{\"operator\":");
	append_operator(body, request->operator_id);
	if (request->params != NULL)
	{
		appendStringInfoString(body, ",\"params\":");
		append_json_string(body, request->params);
	}
	if (request->is_async)
		appendStringInfoString(body, ",\"is_async\":true");
	if (request->idempotent_key != NULL)
	{
		appendStringInfoString(body, ",\"idempotent_key\":");
		escape_json(body, request->idempotent_key);
	}
	if (request->loop_masks != NULL)
	{
		appendStringInfoString(body, ",\"loop_masks\":");
		(void) JsonbToCString(body, &request->loop_masks->root,
							  VARSIZE(request->loop_masks));
	}
	appendStringInfoChar(body, '}');
	convert_to_utf8(body);
	/* a large one keeps no room that it does not need */
	if (body->maxlen - body->len > SPARE_ROOM)
	{
		body->maxlen = body->len + 1;
		body->data = repalloc(body->data, body->maxlen);
	}
}

void
codec_write_token_request(bool oauth, const char *app_id, const char *app_secret,
						  StringInfo body, const char **content_type)
{
	resetStringInfo(body);
	if (oauth)
	{
		*content_type = "application/x-www-form-urlencoded";
		appendStringInfoString(body, "grant_type=client_credentials&client_id=");
		append_percent_encoded(body, codec_to_utf8(app_id));
		appendStringInfoString(body, "&client_secret=");
		append_percent_encoded(body, codec_to_utf8(app_secret));
	}
	else
	{
		*content_type = "application/json; charset=utf-8";
		appendStringInfoString(body, "{\"app_id\":");
		escape_json(body, app_id);
		appendStringInfoString(body, ",\"app_secret\":");
		escape_json(body, app_secret);
		appendStringInfoChar(body, '}');
		convert_to_utf8(body);
	}
}
