/*-------------------------------------------------------------------------
 *
 * fuzz_target.c
 *	  One input of the fuzz: bytes of a peer, and what must hold for them.
 *
 * An input is a line and a body:
 *
 *	answer 200 UTF8
 *	{"code": 0, "data": {}}
 *
 * The line's first letter says what the body is (a: answer to a start of a
 * flow, t and o: to a request for a token by either protocol, p: text of a peer
 * to be shown, r: arguments of a start of a flow, to be written); then come the
 * HTTP status (p: the cap) and the encoding that the database shall have.  What
 * is missing has a default, so that every input means something.
 *
 * What is checked, besides that nothing crashes and nothing is thrown:
 *	- a success has a 2xx status and code 0 everywhere, and the other way round
 *	- the body is what jsonb_in alone makes of the same bytes, in this encoding
 *	  and in UTF8
 *	- what jsonb cannot hold does not change what an answer means
 *	- jsonb survives a trip through its text
 *	- text is valid in the encoding, without control characters, and capped
 *	- codes are those that numeric arithmetic finds, or none
 *	- the same input again gives the same
 *	- memory that is kept is a small multiple of the input
 *	- what is written is JSON or a URL, and says what the arguments say
 *
 * The database encoding is changed under the server's feet, which is no trick
 * for anywhere else: catalogs are ASCII here, and the conversion functions that
 * the server remembers are only those to and from the client's encoding.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/fuzz/fuzz_target.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "fuzz_internal.h"
#include "fuzz_target.h"
#include "wire/wire.h"
#include "wire/wire_internal.h"

#define MAX_LINE		48

/* The caps that wire.h promises. */
#define MAX_ID			256
#define MAX_MESSAGE		1024
#define MAX_EXCERPT		512
#define MAX_URL			500
#define MAX_TOKEN		4096
#define MAX_LIFETIME	(7 * 24 * 3600)

/* So many brackets at least must be readable, whatever else there is. */
#define SURE_DEPTH		128

/* What may be kept of an answer. */
#define MEMORY_PER_BYTE	16
#define MEMORY_ANYWAY	(64 * 1024)

/*
 * Multibyte and single-byte ones, and one that accepts anything.  (Not EUC_TW:
 * PostgreSQL converts some characters to what it calls invalid there.  Not
 * MULE_INTERNAL: 19 has it no more.)
 */
static const pg_enc encodings[] = {
	PG_UTF8, PG_SQL_ASCII, PG_LATIN1, PG_EUC_CN, PG_EUC_JIS_2004, PG_EUC_KR,
	PG_WIN1252, PG_ISO_8859_5
};

void
fuzz_check_failed(const char *file, int line, const char *condition)
{
	elog(ERROR, "fuzz: %s:%d: not so: %s", file, line, condition);
}


/*
 * Reading an input
 */

static const char *
skip_word(const char *p, const char *end)
{
	while (p < end && *p != ' ')
		p++;
	while (p < end && *p == ' ')
		p++;
	return p;
}

static FuzzInput
read_input(const char *data, size_t size)
{
	FuzzInput	input = {'a', 200, PG_UTF8, data, size};
	const char *end = memchr(data, '\n', Min(size, MAX_LINE));
	const char *p = data;
	bool		negative;

	if (end == NULL)
		return input;
	input.body = end + 1;
	input.body_len = data + size - input.body;

	if (p < end)
		input.kind = *p;
	p = skip_word(p, end);
	negative = p < end && *p == '-';
	if (negative)
		p++;
	if (p < end && *p >= '0' && *p <= '9')
	{
		input.number = 0;
		for (; p < end && *p >= '0' && *p <= '9' && input.number < 1000000; p++)
			input.number = input.number * 10 + (*p - '0');
		if (negative)
			input.number = -input.number;
	}
	p = skip_word(p, end);
	for (size_t i = 0; i < lengthof(encodings); i++)
	{
		const char *name = pg_encoding_to_char(encodings[i]);

		if (strlen(name) == (size_t) (end - p) && memcmp(name, p, end - p) == 0)
			input.encoding = encodings[i];
	}
	return input;
}


/*
 * What holds for text and jsonb
 */

/* Text that is shown; NULL is none. */
static void
check_text(const char *text, int max)
{
	size_t		len;

	if (text == NULL)
		return;
	len = strlen(text);
	CHECK(len <= (size_t) max + 3);
	CHECK(len <= (size_t) max || strcmp(text + len - 3, "...") == 0);
	CHECK(pg_verify_mbstr(GetDatabaseEncoding(), text, (int) len, true));
	CHECK(len == 0 || (text[0] != ' ' && text[len - 1] != ' '));
	for (size_t i = 0; i < len; i++)
		CHECK((unsigned char) text[i] >= 0x20 && text[i] != 0x7f);
}

/* An error's text as the client gets it. */
static void
check_client_text(const char *text)
{
	char	   *copy = wire_for_client(pstrdup(text));

	CHECK(strlen(copy) <= strlen(text));
	CHECK(pg_verify_mbstr(GetDatabaseEncoding(), copy, (int) strlen(copy), true));
}

bool
fuzz_same_text(const char *a, const char *b)
{
	return a == NULL ? b == NULL : b != NULL && strcmp(a, b) == 0;
}

bool
fuzz_same_jsonb(const Jsonb *a, const Jsonb *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return VARSIZE(a) == VARSIZE(b) && memcmp(a, b, VARSIZE(a)) == 0;
}

static void
check_jsonb(Jsonb *value)
{
	char	   *text = JsonbToCString(NULL, &value->root, VARSIZE(value));
	Jsonb	   *again;

	CHECK(pg_verify_mbstr(GetDatabaseEncoding(), text, (int) strlen(text), true));
	CHECK(feishu_jsonb_from_cstring(text, &again));
	CHECK(fuzz_same_jsonb(value, again));
}

bool
fuzz_find_member(JsonbContainer *object, const char *key, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(object, key, (int) strlen(key), value) != NULL &&
		value->type != jbvNull;
}

static bool
is_container(const JsonbValue *value, uint32 kind)
{
	return value->type == jbvBinary && (value->val.binary.data->header & kind) != 0;
}

/* jsonb of UTF-8 bytes as PostgreSQL's own functions make it, or NULL. */
static Jsonb *
parse_utf8(const char *bytes, size_t len)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	PG_TRY();
	{
		char	   *text = pg_any_to_server(pnstrdup(bytes, len), (int) len, PG_UTF8);

		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	return result;
}

/*
 * The object that PostgreSQL alone sees in the bytes, or NULL when it sees none.
 * False when it may be beyond the codec's limits, so that nothing is certain.
 */
static bool
reference_object(const FuzzInput *input, Jsonb **object)
{
	const char *body = input->body;
	size_t		len = input->body_len;
	size_t		depth = 0;

	*object = NULL;
	for (size_t i = 0; i < len; i++)
	{
		if (body[i] == '[' || body[i] == '{')
			depth++;
	}
	if (depth > SURE_DEPTH)
		return false;

	if (len >= 3 && memcmp(body, "\xEF\xBB\xBF", 3) == 0)
	{
		body += 3;
		len -= 3;
	}
	if (memchr(body, '\0', len) == NULL && pg_verify_mbstr(PG_UTF8, body, (int) len, true))
		*object = parse_utf8(body, len);
	if (*object != NULL && !JB_ROOT_IS_OBJECT(*object))
		*object = NULL;
	return true;
}

/*
 * The same in a UTF8 database.  What another encoding holds must be this, too,
 * when converted: so it is where each character has but one form.
 */
static void
check_utf8_reference(const FuzzInput *input, Jsonb *body)
{
	char	   *text = JsonbToCString(NULL, &body->root, VARSIZE(body));
	Jsonb	   *expected;
	Jsonb	   *converted;

	if (input->encoding != PG_SQL_ASCII)
		text = (char *) pg_do_encoding_conversion((unsigned char *) text, (int) strlen(text),
												  input->encoding, PG_UTF8);
	SetDatabaseEncoding(PG_UTF8);
	if (reference_object(input, &expected))
	{
		CHECK(feishu_jsonb_from_cstring(text, &converted));
		CHECK(fuzz_same_jsonb(expected, converted));
	}
	SetDatabaseEncoding(input->encoding);
}

/*
 * A copy in which escapes that no text can hold are those of a question mark,
 * as is half of what they encode when there are two that make a character.
 */
static char *
replace_escapes(const char *body, size_t len)
{
	char	   *copy = palloc(len + 1);

	memcpy(copy, body, len);
	copy[len] = '\0';
	for (size_t i = 0; i + 1 < len; i++)
	{
		if (copy[i] != '\\')
			continue;
		i++;
		if (copy[i] != 'u' || i + 4 >= len || strspn(copy + i + 1, "0123456789abcdefABCDEF") < 4)
			continue;
		if (memcmp(copy + i + 1, "0000", 4) == 0 ||
			((copy[i + 1] == 'd' || copy[i + 1] == 'D') && strchr("89abcdefABCDEF", copy[i + 2])))
			memcpy(copy + i + 1, "003f", 4);
		i += 4;
	}
	return copy;
}


/*
 * Answers
 */

static void
check_sqlstate(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_FEISHU_REFUSED:
		case ERRCODE_FEISHU_CREDENTIALS:
		case ERRCODE_FEISHU_PERMISSION:
		case ERRCODE_FEISHU_NOT_FOUND:
		case ERRCODE_FEISHU_KEY_USED:
		case ERRCODE_FEISHU_RATE_LIMIT:
		case ERRCODE_FEISHU_PLATFORM:
		case ERRCODE_FEISHU_BAD_ANSWER:
		case ERRCODE_FEISHU_NO_CONNECTION:
		case ERRCODE_FEISHU_TIMEOUT:
			return;
		default:
			elog(ERROR, "fuzz: SQLSTATE %s", unpack_sql_state(sqlstate));
	}
}

/* What answers of every kind have in common. */
static void
check_response(const FlowResponse *response)
{
	CHECK((response->sqlstate == 0) == (response->reason == NULL));
	if (response->sqlstate != 0)
		check_sqlstate(response->sqlstate);
	CHECK(response->sqlstate != 0 || response->action == FLOW_SUCCEEDED);
	CHECK(response->action != FLOW_WAIT || response->sqlstate == ERRCODE_FEISHU_RATE_LIMIT);
	CHECK((response->action == FLOW_KEY_USED) == (response->sqlstate == ERRCODE_FEISHU_KEY_USED));
	CHECK(response->has_code || response->code == 0);

	check_text(response->inner_code, MAX_ID);
	check_text(response->log_id, MAX_ID);
	check_text(response->execution_id, MAX_ID);
	check_text(response->status, MAX_ID);
	check_text(response->inner_message, MAX_MESSAGE);
	check_text(response->message, MAX_MESSAGE);
	CHECK(response->excerpt != NULL);
	check_text(response->excerpt, MAX_EXCERPT);
	check_client_text(response->excerpt);
	if (response->message != NULL)
		check_client_text(response->message);

	if (response->helps != NULL)
	{
		check_text(response->helps, MAX_URL);
		CHECK(pg_strncasecmp(response->helps, "http", 4) == 0);
		for (const char *p = response->helps; *p != '\0'; p++)
			CHECK(*p > 0x20 && *p < 0x7f);
	}
}

static bool
same_response(const FlowResponse *a, const FlowResponse *b)
{
	return a->action == b->action && a->sqlstate == b->sqlstate &&
		a->reason == b->reason && a->hint == b->hint &&
		a->has_code == b->has_code && a->code == b->code &&
		fuzz_same_text(a->helps, b->helps) &&
		fuzz_same_text(a->inner_code, b->inner_code) &&
		fuzz_same_text(a->inner_message, b->inner_message) &&
		fuzz_same_text(a->message, b->message) &&
		fuzz_same_text(a->log_id, b->log_id) &&
		fuzz_same_text(a->execution_id, b->execution_id) &&
		fuzz_same_text(a->status, b->status) &&
		fuzz_same_text(a->excerpt, b->excerpt) &&
		fuzz_same_jsonb(a->body, b->body);
}

static bool
numeric_is_int64(Numeric number, int64 *result)
{
	Datum		value = NumericGetDatum(number);
	Datum		whole = DirectFunctionCall2(numeric_trunc, value, Int32GetDatum(0));

	if (!DatumGetBool(DirectFunctionCall2(numeric_eq, value, whole)) ||
		!DatumGetBool(DirectFunctionCall2(numeric_ge, value, NumericGetDatum(int64_to_numeric(PG_INT64_MIN)))) ||
		!DatumGetBool(DirectFunctionCall2(numeric_le, value, NumericGetDatum(int64_to_numeric(PG_INT64_MAX)))))
		return false;
	*result = DatumGetInt64(DirectFunctionCall1(numeric_int8, value));
	return true;
}

/* The outer code against the answer's member of that name. */
static void
check_code(const FlowResponse *response, JsonbContainer *root)
{
	JsonbValue	value;
	int64		number;

	if (!fuzz_find_member(root, "code", &value))
		CHECK(!response->has_code);
	else if (value.type == jbvNumeric)
	{
		CHECK(response->has_code == numeric_is_int64(value.val.numeric, &number));
		CHECK(!response->has_code || response->code == number);
	}
	else if (value.type == jbvString)
	{
		if (response->has_code)
		{
			char	   *text = pnstrdup(value.val.string.val, value.val.string.len);

			CHECK(DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(text))) == response->code);
		}
	}
	else
		CHECK(!response->has_code);
}

/* Does the member "data" say neither that the flow failed nor nonsense? */
static bool
data_is_well(JsonbContainer *root)
{
	JsonbValue	value;
	int64		number;
	char	   *text;

	if (!fuzz_find_member(root, "data", &value))
		return true;
	if (!is_container(&value, JB_FOBJECT))
		return false;
	if (!fuzz_find_member(value.val.binary.data, "code", &value))
		return true;
	if (value.type == jbvNumeric)
		return numeric_is_int64(value.val.numeric, &number) && number == 0;
	if (value.type != jbvString)
		return false;

	/* empty, or a zero */
	text = pnstrdup(value.val.string.val, value.val.string.len);
	if (text[0] == '-' && text[1] != '\0')
		text++;
	return strspn(text, "0") == strlen(text);
}

static void
check_out_params(Jsonb *body)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	PG_TRY();
	{
		result = wire_out_params(body);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_FEISHU_BAD_ANSWER)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	if (result != NULL)
	{
		CHECK(JB_ROOT_IS_OBJECT(result));
		CHECK(JB_ROOT_COUNT(result) > 0);
		check_jsonb(result);
	}
}

static void
check_answer(const FuzzInput *input)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext kept = AllocSetContextCreate(context, "fuzz answer", ALLOCSET_DEFAULT_SIZES);
	bool		well_status = input->number >= 200 && input->number <= 299;
	char	   *body = (char *) input->body;	/* nothing is masked in it */
	FlowResponse *response;
	FlowResponse *readable;
	Jsonb	   *reference;

	MemoryContextSwitchTo(kept);
	response = wire_read_answer(input->number, body, input->body_len, NULL);
	CHECK(CurrentMemoryContext == kept);
	CHECK(MemoryContextMemAllocated(kept, true) <= MEMORY_ANYWAY + MEMORY_PER_BYTE * input->body_len);
	MemoryContextSwitchTo(context);

	check_response(response);
	CHECK(same_response(response, wire_read_answer(input->number, body, input->body_len, NULL)));

	CHECK(response->sqlstate != 0 || response->body != NULL);
	if (response->action == FLOW_SUCCEEDED)
	{
		CHECK(well_status);
		CHECK(response->has_code && response->code == 0);
		CHECK(response->inner_code == NULL);
		CHECK(response->sqlstate == 0 || response->sqlstate == ERRCODE_FEISHU_BAD_ANSWER);
		CHECK((response->sqlstate == 0) == (response->body != NULL));
	}
	if (response->action == FLOW_KEY_USED)
		CHECK(fuzz_same_text(response->inner_code, "k_wf_ec_2001008"));

	if (reference_object(input, &reference))
	{
		if (reference != NULL || input->encoding == PG_UTF8)
			CHECK(fuzz_same_jsonb(reference, response->body));
	}

	/* what cannot be held must not be misunderstood */
	readable = wire_read_answer(input->number, replace_escapes(input->body, input->body_len),
								input->body_len, NULL);
	CHECK(readable->action == response->action);
	CHECK(readable->has_code == response->has_code && readable->code == response->code);

	if (response->body != NULL)
	{
		JsonbContainer *root = &response->body->root;

		CHECK(JsonContainerIsObject(root));
		check_jsonb(response->body);
		check_code(response, root);
		CHECK((response->action == FLOW_SUCCEEDED) ==
			  (well_status && response->has_code && response->code == 0 && data_is_well(root)));
		check_out_params(response->body);
		if (input->encoding != PG_UTF8 && pg_encoding_max_length(input->encoding) == 1)
			check_utf8_reference(input, response->body);
	}
}

static void
check_token_answer(const FuzzInput *input, bool oauth)
{
	FlowResponse *token = wire_read_token_answer(oauth, input->number, input->body,
												 input->body_len, NULL);
	FlowResponse *again = wire_read_token_answer(oauth, input->number, input->body,
												 input->body_len, NULL);
	Jsonb	   *reference;

	check_response(token);
	CHECK(same_response(token, again));
	CHECK(fuzz_same_text(token->token, again->token));
	CHECK(token->expires_in == again->expires_in);

	/* never the answer's bytes */
	CHECK(token->body == NULL);
	CHECK(token->excerpt[0] == '\0');

	if (token->token == NULL)
	{
		CHECK(token->sqlstate != 0);
		CHECK(token->action == FLOW_STOP_APP || token->action == FLOW_WAIT ||
			  token->action == FLOW_RETRY);
		CHECK(token->expires_in == 0);
	}
	else
	{
		size_t		len = strlen(token->token);

		CHECK(token->sqlstate == 0 && token->action == FLOW_SUCCEEDED);
		CHECK(input->number >= 200 && input->number <= 299);
		CHECK(token->code == 0);
		CHECK(len >= 1 && len <= MAX_TOKEN);
		for (size_t i = 0; i < len; i++)
			CHECK(token->token[i] > 0x20 && token->token[i] < 0x7f);
		CHECK(token->expires_in >= 0 && token->expires_in <= MAX_LIFETIME);
	}

	if (reference_object(input, &reference) && reference != NULL)
	{
		JsonbValue	value;

		check_code(token, &reference->root);
		if (token->token != NULL)
		{
			CHECK(fuzz_find_member(&reference->root, oauth ? "access_token" : "tenant_access_token", &value));
			CHECK(value.type == jbvString);
			CHECK(fuzz_same_text(token->token, pnstrdup(value.val.string.val, value.val.string.len)));
		}
	}
}

/* Text of any bytes. */
static void
check_printable(const FuzzInput *input)
{
	int			max = Max(input->number, 0);
	char	   *text = wire_printable(input->body, input->body_len, max);

	check_text(text, max);
	check_client_text(text);

	/* again, it is as it was, but for what follows a cut */
	if (strlen(text) <= (size_t) max && GetDatabaseEncoding() == PG_UTF8)
		CHECK(fuzz_same_text(text, wire_printable(text, strlen(text), max)));

	if (memchr(input->body, '\0', input->body_len) == NULL &&
		pg_verify_mbstr(GetDatabaseEncoding(), input->body, (int) input->body_len, true))
		check_text(wiretext_fit(input->body, (int) input->body_len, max), max);
}


static void
check_input(const FuzzInput *input)
{
	switch (input->kind)
	{
		case 't':
			check_token_answer(input, false);
			break;
		case 'o':
			check_token_answer(input, true);
			break;
		case 'p':
			check_printable(input);
			break;
		case 'r':
			fuzz_check_request(input);
			break;
		default:
			check_answer(input);
			break;
	}
}

void
fuzz_check_input(const char *data, size_t size)
{
	char	   *copy = palloc(size + 1);	/* as an answer, with a NUL byte behind it */
	FuzzInput	input;
	int			encoding = GetDatabaseEncoding();

	memcpy(copy, data, size);
	copy[size] = '\0';
	input = read_input(copy, size);

	Assert(pg_get_client_encoding() == PG_LATIN1);
	SetDatabaseEncoding(input.encoding);
	PG_TRY();
	{
		check_input(&input);
	}
	PG_FINALLY();
	{
		SetDatabaseEncoding(encoding);
	}
	PG_END_TRY();
}
