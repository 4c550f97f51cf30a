/*-------------------------------------------------------------------------
 *
 * src/wire/wirejson.c
 *	  JSON of the wire to jsonb of this database, without throwing.
 *
 * What a peer sent is checked before anything of PostgreSQL that throws gets
 * to see it: size, NUL bytes, UTF-8, and, in one pass over the text, the depth
 * of nesting and the number of values, so that neither the recursive parser's
 * stack nor jsonb's limits can be reached.
 *
 * JSON can say what jsonb, or the database encoding, cannot: "\u0000", half a
 * surrogate pair, a number beyond numeric, a Chinese character in a LATIN1
 * database.  An answer that does so must be understood all the same, since it
 * may say that a flow was started.  So these are replaced.
 *
 * PostgreSQL's own parser fails on them, and in a SQL_ASCII database on all \u
 * escapes beyond ASCII; and it copies what is long three times.  So here is another,
 * in which a string without escapes is where it was read.  In SQL_ASCII the result
 * of an escape is UTF-8 bytes, as it is for the same character when not escaped.
 *
 * Values are gathered in a scratch context that is gone afterwards: they take many
 * times as much as a short text of them.  Only the jsonb is made where it stays.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "base/compat.h"
#include "wire/wire_internal.h"

/*
 * Deepest nesting that is read.  The platform's answers need 6 levels and
 * output parameters some more.  PostgreSQL's JSON parser recurses for each
 * level and throws at max_stack_depth, which the least setting (100 kB) makes
 * a few hundred levels.
 */
#define MAX_DEPTH		128

/*
 * Longest answer, and most values in one, that are read.  Within these, no
 * limit of jsonb (256 MB in all) and of palloc (1 GB, reached by the parser's
 * arrays) can be hit.  No cancel interrupts the parser: on a fast machine at
 * rest it takes some 0.1 s for an answer of 16 MB, or of as many values.
 */
#define MAX_ANSWER_SIZE	(128 * 1024 * 1024)
#define MAX_ANSWER_VALUES (256 * 1024)

/*
 * A cancel is heard between the steps of reading an answer so long.  None to a
 * token request is, which must not end in the middle: others wait for it.
 */
#define LONG_ANSWER		(1024 * 1024)

/* What a pass over JSON text found. */
typedef struct JsonScan
{
	bool		too_deep;
	int64		nvalues;		/* no fewer than there are */
} JsonScan;

/* JSON text in the database encoding that is being parsed. */
typedef struct JsonParser
{
	const char *p;
	const char *end;
	JsonbInState state;
	Oid			conversion;		/* from UTF-8 */
	AnswerProblem problem;		/* what was lost */
	bool		drop_long;		/* numbers that may be beyond numeric are null */
} JsonParser;

/*
 * Numbers of more characters may be beyond numeric, and others that have an exponent:
 * the first one that is tells to try no more of them.
 */
#define LONG_NUMBER		1000

/* Bytes of values in a container, below which it is worth while to be exact. */
#define SMALL_CONTAINER	1024


/* The four hex digits of a \u escape, or -1. */
static int
read_hex4(const char *p, const char *end)
{
	int			result = 0;

	if (end - p < 4)
		return -1;
	for (int i = 0; i < 4; i++)
	{
		char		c = p[i];

		result <<= 4;
		if (c >= '0' && c <= '9')
			result |= c - '0';
		else if (c >= 'a' && c <= 'f')
			result |= c - 'a' + 10;
		else if (c >= 'A' && c <= 'F')
			result |= c - 'A' + 10;
		else
			return -1;
	}
	return result;
}

/*
 * Read the \u escape at p, its other half included.  Returns its length, or 0
 * when it is malformed, which is left for the parser to say.  *c is 0 for an
 * escape that jsonb cannot hold.
 */
static int
read_escape(const char *p, const char *end, pg_wchar *c)
{
	int			first = read_hex4(p + 2, end);
	int			second;

	if (first < 0)
		return 0;

	*c = first;
	if (!is_utf16_surrogate_first(*c))
	{
		if (is_utf16_surrogate_second(*c))
			*c = 0;
		return 6;
	}

	if (end - p >= 12 && p[6] == '\\' && p[7] == 'u' &&
		(second = read_hex4(p + 8, end)) >= 0 &&
		is_utf16_surrogate_second((pg_wchar) second))
	{
		*c = surrogate_pair_to_codepoint(*c, (pg_wchar) second);
		return 12;
	}
	*c = 0;
	return 6;
}

/*
 * Look through JSON text in the database encoding.  It need not be valid: the
 * parser tells that.
 */
static void
json_scan(const char *text, size_t len, JsonScan *scan)
{
	const char *p = text;
	const char *end = text + len;
	bool		in_string = false;
	int			depth = 0;

	memset(scan, 0, sizeof(JsonScan));
	while (p < end)
	{
		int			step = 1;

		if (in_string)
		{
			while (p < end && *p != '"' && *p != '\\')
				p++;
			if (p == end)
				break;
			if (*p == '"')
				in_string = false;
			else
				step = 2;
		}
		else if (*p == '"')
			in_string = true;
		else if (*p == '{' || *p == '[')
		{
			scan->nvalues++;
			if (++depth > MAX_DEPTH)
			{
				scan->too_deep = true;
				return;
			}
		}
		else if (*p == '}' || *p == ']')
			depth--;
		else if (*p == ',')
			scan->nvalues++;
		p += step;
	}
}

/* Go to what is not white space; is there any? */
static bool
parser_skip_blanks(JsonParser *parser)
{
	while (parser->p < parser->end && (*parser->p == ' ' || *parser->p == '\t' ||
									   *parser->p == '\r' || *parser->p == '\n'))
		parser->p++;
	return parser->p < parser->end;
}

/* Go over this character, if it is the next one. */
static bool
parser_take(JsonParser *parser, char c)
{
	if (!parser_skip_blanks(parser) || *parser->p != c)
		return false;
	parser->p++;
	return true;
}

/* Go over digits; are there any? */
static bool
parser_take_digits(JsonParser *parser)
{
	const char *start = parser->p;

	while (parser->p < parser->end && *parser->p >= '0' && *parser->p <= '9')
		parser->p++;
	return parser->p > start;
}

static bool
parser_take_word(JsonParser *parser, const char *word)
{
	size_t		len = strlen(word);

	if ((size_t) (parser->end - parser->p) < len || memcmp(parser->p, word, len) != 0)
		return false;
	parser->p += len;
	return true;
}

/* A character of an escape, as far as the encoding has it.  Returns its length. */
static size_t
parser_put_character(JsonParser *parser, pg_wchar c, char *out)
{
	unsigned char utf8[MAX_MULTIBYTE_CHAR_LEN];
	char		piece[WIRETEXT_CHAR_SIZE];
	size_t		len;

	if (c == 0)
		parser->problem = ANSWER_LOSSY_VALUE;
	else if (c < 0x80)
	{
		*out = (char) c;
		return 1;
	}
	else
	{
		unicode_to_utf8(c, utf8);
		len = pg_encoding_mblen(PG_UTF8, (char *) utf8);
		if (wiretext_convert(parser->conversion, (char *) utf8, len, piece) == len)
		{
			len = strlen(piece);
			memcpy(out, piece, len);
			return len;
		}
		if (parser->problem == ANSWER_OK)
			parser->problem = ANSWER_LOSSY_ENCODING;
	}
	*out = '?';
	return 1;
}

/* The text of a string with escapes, none of which is shorter than what it says. */
static bool
parser_unescape(JsonParser *parser, const char *text, const char *end, JsonbValue *value)
{
	static const char names[] = "\"\\/bfnrt";
	static const char meanings[] = "\"\\/\b\f\n\r\t";
	char	   *out = palloc(end - text);

	value->val.string.val = out;
	while (text < end)
	{
		const char *name;

		if (*text != '\\')
			*out++ = *text++;
		else if (text[1] == 'u')
		{
			pg_wchar	c;
			int			len = read_escape(text, end, &c);

			if (len == 0)
				return false;
			out += parser_put_character(parser, c, out);
			text += len;
		}
		else if ((name = strchr(names, text[1])) != NULL)
		{
			*out++ = meanings[name - names];
			text += 2;
		}
		else
			return false;
	}
	value->val.string.len = (int) (out - value->val.string.val);
	return true;
}

static bool
parser_string(JsonParser *parser, JsonbValue *value)
{
	const char *start;
	bool		has_escapes = false;

	if (!parser_take(parser, '"'))
		return false;
	start = parser->p;
	while (parser->p < parser->end && *parser->p != '"')
	{
		if ((unsigned char) *parser->p < ' ')
			return false;
		if (*parser->p == '\\')
		{
			has_escapes = true;
			parser->p++;
		}
		parser->p++;
	}
	if (parser->p >= parser->end)
		return false;
	value->type = jbvString;
	value->val.string.val = unconstify(char *, start);
	value->val.string.len = (int) (parser->p - start);
	parser->p++;
	return !has_escapes || parser_unescape(parser, start, parser->p - 1, value);
}

static bool
parser_number(JsonParser *parser, JsonbValue *value)
{
	const char *start = parser->p;
	bool		is_long = false;
	char	   *text;
	Datum		number;

	if (parser->p < parser->end && *parser->p == '-')
		parser->p++;
	if (parser->p < parser->end && *parser->p == '0')
		parser->p++;
	else if (!parser_take_digits(parser))
		return false;
	if (parser->p < parser->end && *parser->p == '.')
	{
		parser->p++;
		if (!parser_take_digits(parser))
			return false;
	}
	if (parser->p < parser->end && (*parser->p == 'e' || *parser->p == 'E'))
	{
		is_long = true;
		parser->p++;
		if (parser->p < parser->end && (*parser->p == '+' || *parser->p == '-'))
			parser->p++;
		if (!parser_take_digits(parser))
			return false;
	}
	is_long |= parser->p - start > LONG_NUMBER;

	value->type = jbvNull;
	if (!parser->drop_long || !is_long)
	{
		text = pnstrdup(start, parser->p - start);
		if (feishu_input(numeric_in, text, &number, NULL))
		{
			value->type = jbvNumeric;
			value->val.numeric = DatumGetNumeric(number);
		}
		pfree(text);
	}
	if (value->type == jbvNull)
	{
		parser->drop_long = true;
		parser->problem = ANSWER_LOSSY_VALUE;
	}
	return true;
}

/* A value that is no container. */
static bool
parser_scalar(JsonParser *parser, JsonbValue *value)
{
	switch (*parser->p)
	{
		case '"':
			return parser_string(parser, value);
		case 't':
		case 'f':
			value->type = jbvBool;
			value->val.boolean = *parser->p == 't';
			return parser_take_word(parser, value->val.boolean ? "true" : "false");
		case 'n':
			value->type = jbvNull;
			return parser_take_word(parser, "null");
		default:
			return parser_number(parser, value);
	}
}

/*
 * Push the end of an array or an object, all of which was pushed: as feishu_jsonb_push,
 * but what memory it has beyond its values is given back.  Most are small, and have room
 * for 4 values.
 */
void
wirejson_push_end(JsonbInState *state, JsonbIteratorToken token)
{
	JsonbParseState *ended = state->parseState;
	JsonbValue *container = &ended->contVal;
	bool		is_array = token == WJB_END_ARRAY;
	void	   *room = is_array ? (void *) container->val.array.elems :
		(void *) container->val.object.pairs;
	size_t		size = is_array ? container->val.array.nElems * sizeof(JsonbValue) :
		container->val.object.nPairs * sizeof(JsonbPair);

	if (size < SMALL_CONTAINER)
	{
		void	   *copy = size > 0 ? palloc(size) : NULL;

		if (size > 0)
			memcpy(copy, room, size);
		if (is_array)
			container->val.array.elems = copy;
		else
			container->val.object.pairs = copy;
		pfree(room);
	}
	feishu_jsonb_push(state, token, NULL);
	if (ended->next != NULL)	/* else it has the result */
		pfree(ended);
}

/*
 * Any value, but at the top a container.  It was seen before that they are not nested too
 * deep.
 */
static bool
parser_value(JsonParser *parser, JsonbIteratorToken token)
{
	JsonbValue	value;
	bool		is_array;
	char		close;

	if (!parser_skip_blanks(parser))
		return false;
	if (*parser->p != '{' && *parser->p != '[')
	{
		if (!parser_scalar(parser, &value))
			return false;
		feishu_jsonb_push(&parser->state, token, &value);
		return true;
	}

	is_array = *parser->p++ == '[';
	close = is_array ? ']' : '}';
	feishu_jsonb_push(&parser->state, is_array ? WJB_BEGIN_ARRAY : WJB_BEGIN_OBJECT, NULL);
	if (!parser_take(parser, close))
	{
		do
		{
			if (!is_array)
			{
				if (!parser_string(parser, &value) || !parser_take(parser, ':'))
					return false;
				feishu_jsonb_push(&parser->state, WJB_KEY, &value);
			}
			if (!parser_value(parser, is_array ? WJB_ELEM : WJB_VALUE))
				return false;
		} while (parser_take(parser, ','));
		if (!parser_take(parser, close))
			return false;
	}
	wirejson_push_end(&parser->state, is_array ? WJB_END_ARRAY : WJB_END_OBJECT);
	return true;
}

/* All of the text; a scalar is what jsonb calls a raw one. */
static bool
parser_all(JsonParser *parser)
{
	JsonbValue	array = {.type = jbvArray};
	bool		is_scalar;

	if (!parser_skip_blanks(parser))
		return false;
	is_scalar = *parser->p != '{' && *parser->p != '[';
	array.val.array.rawScalar = true;
	array.val.array.nElems = 1;
	if (is_scalar)
		feishu_jsonb_push(&parser->state, WJB_BEGIN_ARRAY, &array);
	if (!parser_value(parser, WJB_ELEM))
		return false;
	if (is_scalar)
		feishu_jsonb_push(&parser->state, WJB_END_ARRAY, NULL);
	return !parser_skip_blanks(parser);
}

/* Hear a cancel, if the answer is long. */
static void
check_between_steps(size_t len)
{
	if (len >= LONG_ANSWER)
		CHECK_FOR_INTERRUPTS();
}

/*
 * Parse JSON text in the database encoding.  json->problem tells what the text has lost
 * already.  The jsonb is made in the current context; if something throws, what is else
 * goes with that.
 */
static void
parse_text(const char *text, size_t len, int64 max_values, WireJson *json)
{
	JsonParser	parser = {.p = text, .end = text + len, .problem = json->problem};
	MemoryContext old_context;
	MemoryContext scratch;
	JsonScan	scan;

	json->value = NULL;
	json_scan(text, len, &scan);
	check_between_steps(len);
	if (scan.too_deep)
	{
		json->problem = ANSWER_TOO_DEEP;
		return;
	}
	if (scan.nvalues > max_values)
	{
		json->problem = ANSWER_TOO_MANY_VALUES;
		return;
	}

	scratch = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow answer",
									ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(scratch);
	parser.conversion = wiretext_conversion();
	json->problem = parser_all(&parser) ? parser.problem : ANSWER_NOT_JSON;
	check_between_steps(len);
	MemoryContextSwitchTo(old_context);
	if (json->problem != ANSWER_NOT_JSON)
		json->value = JsonbValueToJsonb(parser.state.result);
	MemoryContextDelete(scratch);
}

/*
 * Read JSON text of any type in the database encoding, such as a string found
 * inside other JSON.  Does not throw because of what the text says, though it
 * may because of its sheer size.
 */
void
wirejson_read_text(const char *text, size_t len, WireJson *json)
{
	json->problem = ANSWER_OK;
	parse_text(text, len, PG_INT64_MAX, json);
}

/*
 * Read bytes that claim to be a JSON object in UTF-8, and that a NUL byte follows.
 * Does not throw, out of memory apart.
 */
void
wirejson_read_object(const char *bytes, size_t len, WireJson *json)
{
	const char *start;
	char	   *text;
	size_t		text_len;
	bool		lossy = false;

	Assert(len <= MAX_ANSWER_SIZE);
	json->value = NULL;

	/* a byte order mark is not JSON, but harmless */
	if (len >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0)
	{
		bytes += 3;
		len -= 3;
	}

	start = bytes + strspn(bytes, " \t\r\n");
	if (start >= bytes + len)
		json->problem = ANSWER_EMPTY;
	else if (memchr(bytes, '\0', len) != NULL)
		json->problem = ANSWER_HAS_NUL;
	else if (!pg_verify_mbstr(PG_UTF8, bytes, (int) len, true))
		json->problem = ANSWER_NOT_UTF8;
	else if (*start != '{')
		json->problem = ANSWER_NOT_JSON;
	else
	{
		check_between_steps(len);
		json->problem = ANSWER_OK;
		if (GetDatabaseEncoding() == PG_UTF8)
			parse_text(bytes, len, MAX_ANSWER_VALUES, json);
		else
		{
			text = wiretext_from_utf8(bytes, len, &text_len, &lossy);
			json->problem = lossy ? ANSWER_LOSSY_ENCODING : ANSWER_OK;
			parse_text(text, text_len, MAX_ANSWER_VALUES, json);
			pfree(text);
		}
		check_between_steps(len);
	}
}
