/*-------------------------------------------------------------------------
 *
 * wirejson.c
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
 * may say that a flow was started.  Such text is read from a lossy copy, in
 * which these are replaced.
 *
 * PostgreSQL's own parser fails on \u escapes that the encoding lacks, and in
 * a SQL_ASCII database on all beyond ASCII, so where the encoding is not UTF8
 * escapes are resolved here.  In SQL_ASCII the result is UTF-8 bytes, as it is
 * for the same characters when they are not escaped.
 *
 * Reading happens in a scratch context that is gone afterwards: the parse
 * tree of JSON is many times as large as its text.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wirejson.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "wirejson.h"
#include "wiretext.h"

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

/*
 * Numbers with more digits, or with an exponent of more digits, are suspected
 * when parsing fails.  numeric holds 131072 digits before and 16383 after the
 * point, so the culprit is always among them.
 */
#define SUSPECT_DIGITS	1000
#define SUSPECT_EXPONENT_DIGITS 3

/* What a pass over JSON text found. */
typedef struct JsonScan
{
	bool		too_deep;
	int64		nvalues;		/* no fewer than there are */
	bool		has_bad_escape; /* \u0000 or half a surrogate pair */
	bool		has_wide_escape;	/* \u0080 and beyond */
	bool		has_suspect_number;
} JsonScan;


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

/* Read the number at p.  Returns its length. */
static int
read_number(const char *p, const char *end, bool *suspect)
{
	const char *start = p;
	const char *exponent;

	if (p < end && *p == '-')
		p++;
	while (p < end && ((*p >= '0' && *p <= '9') || *p == '.'))
		p++;
	*suspect = p - start > SUSPECT_DIGITS;

	if (p < end && (*p == 'e' || *p == 'E'))
	{
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			p++;
		while (p < end && *p == '0')
			p++;
		exponent = p;
		while (p < end && *p >= '0' && *p <= '9')
			p++;
		if (p - exponent > SUSPECT_EXPONENT_DIGITS)
			*suspect = true;
	}
	return (int) (p - start);
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
			else if (end - p >= 2)
			{
				step = 2;
				if (p[1] == 'u')
				{
					pg_wchar	c;
					int			escape_len = read_escape(p, end, &c);

					if (escape_len > 0)
					{
						step = escape_len;
						if (c == 0)
							scan->has_bad_escape = true;
						else if (c >= 0x80)
							scan->has_wide_escape = true;
					}
				}
			}
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
		else if (*p == '-' || (*p >= '0' && *p <= '9'))
		{
			bool		suspect;

			step = read_number(p, end, &suspect);
			if (suspect)
				scan->has_suspect_number = true;
		}
		p += step;
	}
}

/*
 * Copy of JSON text, with "?" for escapes that jsonb cannot hold and, where
 * the encoding is not UTF8, other escapes beyond ASCII resolved.  Suspect
 * numbers become null if drop_numbers.  *problem is set when something was
 * lost.
 */
static char *
json_resolve(const char *text, size_t len, bool drop_numbers, AnswerProblem *problem)
{
	const char *p = text;
	const char *end = text + len;
	const char *copied = text;
	bool		in_string = false;
	bool		is_utf8 = GetDatabaseEncoding() == PG_UTF8;
	WireConversion conversion;
	StringInfoData out;

	wiretext_conversion_init(&conversion);
	initStringInfo(&out);
	while (p < end)
	{
		int			step = 1;
		char		piece[WIRETEXT_CHAR_SIZE];

		piece[0] = '\0';
		if (in_string)
		{
			if (*p == '"')
				in_string = false;
			else if (*p == '\\' && end - p >= 2)
			{
				pg_wchar	c = 0;
				int			escape_len = 0;

				step = 2;
				if (p[1] == 'u')
					escape_len = read_escape(p, end, &c);
				if (escape_len > 0)
				{
					step = escape_len;
					if (c == 0)
					{
						strcpy(piece, "?");
						*problem = ANSWER_LOSSY_VALUE;
					}
					else if (c >= 0x80 && !is_utf8)
					{
						unsigned char utf8[MAX_MULTIBYTE_CHAR_LEN];
						size_t		utf8_len;

						unicode_to_utf8(c, utf8);
						utf8_len = pg_encoding_mblen(PG_UTF8, (char *) utf8);
						if (wiretext_convert(&conversion, (char *) utf8, utf8_len,
											 piece) < utf8_len)
						{
							strcpy(piece, "?");
							if (*problem == ANSWER_OK)
								*problem = ANSWER_LOSSY_ENCODING;
						}
					}
				}
			}
		}
		else if (*p == '"')
			in_string = true;
		else if (*p == '-' || (*p >= '0' && *p <= '9'))
		{
			bool		suspect;

			step = read_number(p, end, &suspect);
			if (suspect && drop_numbers)
			{
				strcpy(piece, "null");
				*problem = ANSWER_LOSSY_VALUE;
			}
		}

		p += step;
		if (piece[0] != '\0')
		{
			appendBinaryStringInfo(&out, copied, (int) (p - step - copied));
			appendStringInfoString(&out, piece);
			copied = p;
		}
	}
	appendBinaryStringInfo(&out, copied, (int) (end - copied));

	return out.data;
}

/* Hear a cancel, if the answer is long. */
static void
check_between_steps(size_t len)
{
	if (len >= LONG_ANSWER)
		CHECK_FOR_INTERRUPTS();
}

/*
 * Parse JSON text in the database encoding, NUL-terminated, in the current
 * context.  json->problem tells what the text has lost already.
 */
static void
parse_text(const char *text, size_t len, int64 max_values, WireJson *json)
{
	AnswerProblem problem = json->problem;
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

	if (scan.has_bad_escape ||
		(scan.has_wide_escape && GetDatabaseEncoding() != PG_UTF8))
	{
		text = json_resolve(text, len, false, &problem);
		len = strlen(text);
	}

	if (feishu_jsonb_from_cstring(unconstify(char *, text), &json->value))
		json->problem = problem;
	else if (scan.has_suspect_number &&
			 feishu_jsonb_from_cstring(json_resolve(text, len, true, &problem),
									   &json->value))
		json->problem = problem;
	else
	{
		json->value = NULL;
		json->problem = ANSWER_NOT_JSON;
	}
}

/*
 * Begin and end of reading in a scratch context.  If something throws in
 * between, the scratch context goes with its parent, the caller's.
 */
static MemoryContext
scratch_begin(void)
{
	return MemoryContextSwitchTo(AllocSetContextCreate(CurrentMemoryContext,
													   "feishu_flow answer",
													   ALLOCSET_DEFAULT_SIZES));
}

static void
scratch_end(MemoryContext caller_context, WireJson *json)
{
	MemoryContext scratch = MemoryContextSwitchTo(caller_context);

	if (json->value != NULL)
	{
		Jsonb	   *copy = palloc(VARSIZE(json->value));

		memcpy(copy, json->value, VARSIZE(json->value));
		json->value = copy;
	}
	MemoryContextDelete(scratch);
}

void
wirejson_read_text(const char *text, size_t len, WireJson *json)
{
	MemoryContext caller_context = scratch_begin();

	json->problem = ANSWER_OK;
	parse_text(pnstrdup(text, len), len, PG_INT64_MAX, json);
	scratch_end(caller_context, json);
}

/* First byte that is not JSON's white space, or NULL. */
static const char *
skip_blanks(const char *p, const char *end)
{
	for (; p < end; p++)
	{
		if (*p != ' ' && *p != '\t' && *p != '\r' && *p != '\n')
			return p;
	}
	return NULL;
}

void
wirejson_read_object(const char *bytes, size_t len, WireJson *json)
{
	MemoryContext caller_context;
	const char *start;
	const char *text;
	size_t		text_len;
	bool		lossy = false;

	json->value = NULL;

	/* a byte order mark is not JSON, but harmless */
	if (len >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0)
	{
		bytes += 3;
		len -= 3;
	}

	start = skip_blanks(bytes, bytes + len);
	if (start == NULL)
		json->problem = ANSWER_EMPTY;
	else if (len > MAX_ANSWER_SIZE)
		json->problem = ANSWER_TOO_LARGE;
	else if (memchr(bytes, '\0', len) != NULL)
		json->problem = ANSWER_HAS_NUL;
	else if (!pg_verify_mbstr(PG_UTF8, bytes, (int) len, true))
		json->problem = ANSWER_NOT_UTF8;
	else if (*start != '{')
		json->problem = ANSWER_NOT_JSON;
	else
	{
		check_between_steps(len);
		caller_context = scratch_begin();
		/* as it is where it can be: a copy is as large */
		text = bytes;
		text_len = len;
		if (GetDatabaseEncoding() != PG_UTF8)
			text = wiretext_from_utf8(bytes, len, &text_len, &lossy);
		json->problem = lossy ? ANSWER_LOSSY_ENCODING : ANSWER_OK;
		parse_text(text, text_len, MAX_ANSWER_VALUES, json);
		check_between_steps(len);
		scratch_end(caller_context, json);
	}
}
