/*-------------------------------------------------------------------------
 *
 * src/wire/wire_write.c
 *	  The wire format, writing: FlowRequest to URL and body.
 *
 * What a jsonb of some bytes says may be very long: 1e131071 has 131,072 digits.
 * So a body is written in two passes of the same code: the first one counts, as
 * far as a limit, and the second one writes into memory of just that size, without
 * a copy of any part.
 *
 * Multibyte characters of a database encoding never hold an ASCII byte, so JSON is
 * written in it, and each string is converted to UTF-8 by itself.  What is written
 * is the caller's, so these functions throw: 22021 or 22P05 for what UTF-8 cannot
 * represent.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"

#include "base/nls.h"
#include "wire/wire.h"

/*
 * Of names in the path, which are far shorter, and of keys: the document gives no limit
 * for these.  Its example is a short word and its advice a UUID; this leaves ample room
 * and keeps indexes possible.
 */
#define MAX_NAME_SIZE	255

/*
 * What a byte of jsonb can make of a body at most.  A number has the most: in 10
 * bytes and the 4 of its entry up to 131,072 digits before the point and 16,383
 * after it.
 */
#define MAX_GROWTH			11000

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

/* wire_check_name for text that is UTF-8 already. */
static const char *
check_name(const char *utf8, bool is_segment)
{
	if (utf8[0] == '\0')
		return gettext_noop("argument \"%s\" must not be empty");
	if (is_segment && (strcmp(utf8, ".") == 0 || strcmp(utf8, "..") == 0))
		return gettext_noop("argument \"%s\" must not be \".\" or \"..\"");
	if (strlen(utf8) > MAX_NAME_SIZE)
		return gettext_noop("argument \"%s\" must not be longer than 255 bytes");
	if (has_control(utf8))
		return gettext_noop("argument \"%s\" must not contain control characters");
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

/*
 * Why text cannot be a key or (is_segment) one segment of the path, or NULL when it can:
 * empty, longer than 255 bytes in UTF-8, or with a control character; a segment, "." or
 * "..", too.  The result is a sentence with %s for the argument's name.  Throws
 * 22021/22P05 when the text cannot be converted to UTF-8.
 */
const char *
wire_check_name(const char *text, bool is_segment)
{
	char	   *utf8 = as_utf8(text);
	const char *result = check_name(utf8, is_segment);

	free_utf8(utf8, text);
	return result;
}

static void
append_segment(StringInfo buf, const char *argument, const char *text)
{
	char	   *utf8 = as_utf8(text);
	const char *trouble = check_name(utf8, true);

	if (trouble != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(trouble, argument)));
	append_percent_encoded(buf, utf8);
	free_utf8(utf8, text);
}

/* A URL that begins with base_url. */
static void
init_url(StringInfo url, const char *base_url)
{
	initStringInfo(url);
	appendStringInfoString(url, wire_to_utf8(base_url));
	while (url->len > 0 && url->data[url->len - 1] == '/')
		url->data[--url->len] = '\0';
}

/*
 * Where an app asks for its permissions.
 *
 * base_url + /open-apis/application/v6/scopes: which permissions the tenant granted to
 * the app whose token asks.  Itself it needs none.  From the platform's documentation,
 * "Query the tenant's authorization status".
 */
char *
wire_scopes_url(const char *base_url)
{
	StringInfoData url;

	init_url(&url, base_url);
	appendStringInfoString(&url, "/open-apis/application/v6/scopes");
	return url.data;
}

/*
 * Where a flow is started.
 *
 * base_url + /open-apis/apaas/v1/applications/{namespace}/flows/{flow_id}/execute with
 * everything but RFC 3986's unreserved characters percent-encoded, in UTF-8.  Throws
 * 22023 on a bad segment and 22021/22P05 when the text cannot be converted to UTF-8.
 */
char *
wire_execute_url(const char *base_url, const FlowRequest *request)
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

/* Where JSON goes. */
typedef struct JsonSink
{
	StringInfo	out;			/* has room for all; NULL: only count */
	int64		size;			/* bytes so far, in UTF-8 */
	int64		limit;			/* with more than this, stop */
	bool		in_string;		/* what is written is the text of a JSON string */
} JsonSink;

static bool
sink_is_full(const JsonSink *sink)
{
	return sink->size > sink->limit;
}

/* Bytes as they are. */
static void
sink_put(JsonSink *sink, const char *bytes, int len)
{
	sink->size += len;
	if (sink->out != NULL)
		appendBinaryStringInfo(sink->out, bytes, len);
}

/* ASCII of JSON's own: quotes and backslashes are escaped within a string. */
static void
sink_put_json(JsonSink *sink, const char *text)
{
	if (!sink->in_string)
	{
		sink_put(sink, text, (int) strlen(text));
		return;
	}
	for (; *text != '\0'; text++)
	{
		if (*text == '"' || *text == '\\')
			sink_put(sink, "\\", 1);
		sink_put(sink, text, 1);
	}
}

/* Text is converted in pieces of so many bytes: for each, memory is taken four
 * times. */
#define PIECE_SIZE			8192

/*
 * A part of a string without a character that JSON escapes, as UTF-8.  In SQL_ASCII
 * bytes are taken for UTF-8, and have to be that.
 */
static void
sink_put_text(JsonSink *sink, const char *text, int len)
{
	int			encoding = GetDatabaseEncoding();
	bool		is_ascii = true;

	for (int i = 0; i < len && is_ascii; i++)
		is_ascii = !IS_HIGHBIT_SET(text[i]);
	if (encoding == PG_UTF8 || is_ascii)
	{
		sink_put(sink, text, len);
		return;
	}
	if (encoding == PG_SQL_ASCII)
	{
		(void) pg_verify_mbstr(PG_UTF8, text, len, false);
		sink_put(sink, text, len);
		return;
	}
	while (len > 0 && !sink_is_full(sink))
	{
		int			piece = len <= PIECE_SIZE ? len : pg_mbcliplen(text, len, PIECE_SIZE);
		char	   *utf8 = pg_server_to_any(text, piece, PG_UTF8);

		sink_put(sink, utf8, (int) strlen(utf8));
		pfree(utf8);
		text += piece;
		len -= piece;
	}
}

/* Does JSON escape this character? */
static bool
is_escaped(char c)
{
	return (unsigned char) c < ' ' || c == '"' || c == '\\';
}

static void
sink_put_escaped(JsonSink *sink, char c)
{
	char		escape[sizeof("\\u0000")];
	const char *letter = c != '\0' ? strchr("\"\"\\\\\bb\ff\nn\rr\tt", c) : NULL;

	if (letter != NULL)
		snprintf(escape, sizeof(escape), "\\%c", letter[1]);
	else
		snprintf(escape, sizeof(escape), "\\u%04x", (unsigned char) c);
	sink_put_json(sink, escape);
}

/* A JSON string. */
static void
sink_put_string(JsonSink *sink, const char *text, int len)
{
	const char *run = text;		/* not written yet */
	const char *end = text + len;

	sink_put_json(sink, "\"");
	for (const char *p = text; p < end; p++)
	{
		if (!is_escaped(*p))
			continue;
		CHECK_FOR_INTERRUPTS();
		sink_put_text(sink, run, (int) (p - run));
		sink_put_escaped(sink, *p);
		run = p + 1;
		if (sink_is_full(sink))
			return;
	}
	sink_put_text(sink, run, (int) (end - run));
	sink_put_json(sink, "\"");
}

/*
 * How many characters numeric_out writes, without writing them: from the digits
 * (of base 10000) as they are sent to clients in binary form.
 */
static int
numeric_length(Numeric number)
{
	bytea	   *sent = DatumGetByteaPP(DirectFunctionCall1(numeric_send, NumericGetDatum(number)));
	StringInfoData buf = {
		.data = VARDATA_ANY(sent), .len = VARSIZE_ANY_EXHDR(sent)
	};
	int			num_digits = (int) pq_getmsgint(&buf, 2);
	int			weight = (int16) pq_getmsgint(&buf, 2);
	bool		is_negative = pq_getmsgint(&buf, 2) != 0;
	int			scale = (int) pq_getmsgint(&buf, 2);
	int			before_point = 1;

	if (num_digits > 0 && weight >= 0)
	{
		int			first = (int) pq_getmsgint(&buf, 2);

		before_point = weight * 4 + (first >= 1000 ? 4 : first >= 100 ? 3 : first >= 10 ? 2 : 1);
	}
	pfree(sent);
	return (is_negative ? 1 : 0) + before_point + (scale > 0 ? 1 + scale : 0);
}

static void
sink_put_scalar(JsonSink *sink, const JsonbValue *value)
{
	char	   *text;

	switch (value->type)
	{
		case jbvNull:
			sink_put(sink, "null", 4);
			break;
		case jbvBool:
			if (value->val.boolean)
				sink_put(sink, "true", 4);
			else
				sink_put(sink, "false", 5);
			break;
		case jbvString:
			sink_put_string(sink, value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			if (sink->out == NULL)
			{
				sink->size += numeric_length(value->val.numeric);
				break;
			}
			text = DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
			sink_put(sink, text, (int) strlen(text));
			pfree(text);
			break;
		default:
			elog(ERROR, "unknown type of jsonb value: %d", (int) value->type);
	}
}

/* An object or array, in the layout of PostgreSQL. */
static void
sink_put_jsonb(JsonSink *sink, Jsonb *json)
{
	JsonbIterator *iterator = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		is_first = true;	/* no comma before what comes */

	while (!sink_is_full(sink) &&
		   (token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		ends = token == WJB_END_ARRAY || token == WJB_END_OBJECT;

		CHECK_FOR_INTERRUPTS();
		if (!is_first && !ends)
			sink_put(sink, ", ", 2);
		is_first = false;
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
			case WJB_BEGIN_OBJECT:
				sink_put(sink, token == WJB_BEGIN_ARRAY ? "[" : "{", 1);
				is_first = true;
				break;
			case WJB_END_ARRAY:
			case WJB_END_OBJECT:
				sink_put(sink, token == WJB_END_ARRAY ? "]" : "}", 1);
				break;
			case WJB_KEY:
				sink_put_string(sink, value.val.string.val, value.val.string.len);
				sink_put(sink, ": ", 2);
				is_first = true;
				break;
			default:
				sink_put_scalar(sink, &value);
				break;
		}
	}
}

/* Likewise as a JSON string, which is how the platform wants it. */
static void
sink_put_jsonb_string(JsonSink *sink, Jsonb *json)
{
	sink_put(sink, "\"", 1);
	sink->in_string = true;
	sink_put_jsonb(sink, json);
	sink->in_string = false;
	sink_put(sink, "\"", 1);
}

static void
sink_put_request(JsonSink *sink, const FlowRequest *request)
{
	sink_put_json(sink, "{\"operator\":");
	sink_put_jsonb_string(sink, request->operator_id);
	if (request->params != NULL)
	{
		sink_put_json(sink, ",\"params\":");
		sink_put_jsonb_string(sink, request->params);
	}
	if (request->is_async)
		sink_put_json(sink, ",\"is_async\":true");
	if (request->idempotent_key != NULL)
	{
		sink_put_json(sink, ",\"idempotent_key\":");
		sink_put_string(sink, request->idempotent_key, (int) strlen(request->idempotent_key));
	}
	if (request->loop_masks != NULL)
	{
		sink_put_json(sink, ",\"loop_masks\":");
		sink_put_jsonb(sink, request->loop_masks);
	}
	sink_put_json(sink, "}");
}

int64
wire_request_size(const FlowRequest *request, int64 limit)
{
	JsonSink	sink = {.limit = limit};

	sink_put_request(&sink, request);
	return sink.size;
}

int64
wire_jsonb_size(Jsonb *json, int64 limit)
{
	JsonSink	sink = {.limit = limit};

	sink_put_jsonb_string(&sink, json);
	return sink.size;
}

/*
 * Is a body so small that it need not be counted, and is there nothing in it that
 * cannot be converted?  False: nobody knows.
 */
bool
wire_request_is_small(const FlowRequest *request, int64 limit)
{
	int64		size = VARSIZE(request->operator_id);

	if (GetDatabaseEncoding() != PG_UTF8)
		return false;
	if (request->params != NULL)
		size += VARSIZE(request->params);
	if (request->loop_masks != NULL)
		size += VARSIZE(request->loop_masks);
	/* the names of the members, and the key, are far less than one byte makes */
	return (size + 1) * MAX_GROWTH <= limit;
}

/*
 * The body of an execute request, JSON in UTF-8, replaces what is in body,
 * which the caller initialised.  Throws 22021/22P05 when it cannot be
 * converted to UTF-8.  The caller has seen to its size.
 */
void
wire_write_request(const FlowRequest *request, StringInfo body)
{
	JsonSink	sink = {.out = body, .limit = WIRE_MAX_REQUEST};
	int64		size = request->size > 0 ? request->size :
		wire_request_size(request, WIRE_MAX_REQUEST);

	if (size > WIRE_MAX_REQUEST)
		elog(ERROR, "request is too large to be written");
	resetStringInfo(body);
	/* all at once: to grow is to have the most of it twice */
	enlargeStringInfo(body, (int) size);
	sink_put_request(&sink, request);
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

/* wire_write_request for a token request; *content_type is static. */
void
wire_write_token_request(bool oauth, const char *app_id, const char *app_secret,
						  StringInfo body, const char **content_type)
{
	resetStringInfo(body);
	if (oauth)
	{
		*content_type = "application/x-www-form-urlencoded";
		appendStringInfoString(body, "grant_type=client_credentials&client_id=");
		append_percent_encoded(body, wire_to_utf8(app_id));
		appendStringInfoString(body, "&client_secret=");
		append_percent_encoded(body, wire_to_utf8(app_secret));
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
