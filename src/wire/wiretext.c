/*-------------------------------------------------------------------------
 *
 * wiretext.c
 *	  UTF-8 of the wire to text of this database, without throwing.
 *
 * A database whose encoding is neither UTF8 nor SQL_ASCII needs its catalogs
 * to convert.  Outside of a transaction everything but ASCII counts as
 * unrepresentable there.  In SQL_ASCII the result is the bytes as they are.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/wiretext.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "wire/wire.h"
#include "wire/wiretext.h"


void
wiretext_conversion_init(WireConversion *conversion)
{
	int			encoding = GetDatabaseEncoding();
	Oid			proc = InvalidOid;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
	{
		conversion->kind = CONVERT_NOTHING;
		return;
	}

	if (IsTransactionState())
		proc = FindDefaultConversionProc(PG_UTF8, encoding);
	if (OidIsValid(proc))
	{
		conversion->kind = CONVERT_BY_FUNCTION;
		fmgr_info(proc, &conversion->function);
	}
	else
		conversion->kind = CONVERT_ASCII_ONLY;
}

size_t
wiretext_convert(WireConversion *conversion, const char *src, size_t len, char *dst)
{
	size_t		done;

	if (conversion->kind == CONVERT_BY_FUNCTION)
	{
		Datum		result;

		/* like pg_do_encoding_conversion_buf, without a lookup each time */
		result = FunctionCall6(&conversion->function,
							   Int32GetDatum(PG_UTF8),
							   Int32GetDatum(GetDatabaseEncoding()),
							   CStringGetDatum(src),
							   CStringGetDatum(dst),
							   Int32GetDatum((int32) len),
							   BoolGetDatum(true));
		return DatumGetInt32(result);
	}

	done = len;
	if (conversion->kind == CONVERT_ASCII_ONLY)
	{
		for (done = 0; done < len && !IS_HIGHBIT_SET(src[done]); done++)
			;
	}
	memcpy(dst, src, done);
	dst[done] = '\0';
	return done;
}

char *
wiretext_from_utf8(const char *src, size_t len, size_t *result_len, bool *lossy)
{
	WireConversion conversion;
	const char *end = src + len;
	char	   *result;
	char	   *dst;

	wiretext_conversion_init(&conversion);
	if (conversion.kind == CONVERT_BY_FUNCTION)
		result = palloc(len * MAX_CONVERSION_GROWTH + 1);
	else
		result = palloc(len + 1);

	dst = result;
	for (;;)
	{
		src += wiretext_convert(&conversion, src, end - src, dst);
		dst += strlen(dst);
		if (src >= end)
			break;

		CHECK_FOR_INTERRUPTS();
		*lossy = true;
		*dst++ = '?';
		src += pg_encoding_mblen(PG_UTF8, src);
	}

	*result_len = dst - result;
	return result;
}

char *
wire_for_client(char *text)
{
	int			server = GetDatabaseEncoding();
	int			client = pg_get_client_encoding();
	Oid			conversion;
	char	   *dst = text;

	if (server == client || server == PG_SQL_ASCII || client == PG_SQL_ASCII)
		return text;
	conversion = FindDefaultConversionProc(server, client);
	if (!OidIsValid(conversion))
		return text;

	for (char *src = text; *src != '\0';)
	{
		int			len = pg_mblen(src);
		unsigned char piece[MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1];

		if (IS_HIGHBIT_SET(*src) &&
			pg_do_encoding_conversion_buf(conversion, server, client, (unsigned char *) src,
										  len, piece, sizeof(piece), true) < len)
			*dst++ = '?';
		else
		{
			memmove(dst, src, len);
			dst += len;
		}
		src += len;
	}
	*dst = '\0';
	return text;
}

char *
wire_to_utf8(const char *text)
{
	char	   *result;

	result = pg_server_to_any(text, (int) strlen(text), PG_UTF8);
	if (result == text)
		result = pstrdup(text);
	return result;
}

/* Characters that break a line, or change how what follows is shown. */
static bool
is_unprintable(pg_wchar c)
{
	return c < 0x20 ||
		(c >= 0x7f && c <= 0x9f) ||
		(c >= 0x200e && c <= 0x200f) ||
		(c >= 0x2028 && c <= 0x202e) ||
		(c >= 0x2066 && c <= 0x2069) ||
		c == 0xfeff;
}

/*
 * Append a character, after a blank when control characters were left out
 * before it.  False when out would grow beyond max bytes.
 */
static bool
append_printable(StringInfo out, int max, bool *gap, const char *s, int len)
{
	bool		blank = *gap && out->len > 0 && out->data[out->len - 1] != ' ';

	if (out->len == 0 && *s == ' ')
		return true;			/* trimmed */
	if (out->len + (blank ? 1 : 0) + len > max)
		return false;
	if (blank)
		appendStringInfoChar(out, ' ');
	appendBinaryStringInfo(out, s, len);
	*gap = false;
	return true;
}

static char *
finish_printable(StringInfo out, bool cut)
{
	while (out->len > 0 && out->data[out->len - 1] == ' ')
		out->data[--out->len] = '\0';
	if (cut)
		appendStringInfoString(out, "...");
	return out->data;
}

/* Is this fit for a message as it is?  Most short text is. */
static bool
is_plain(const char *bytes, size_t len, int max)
{
	if (len == 0 || len > (size_t) max || bytes[0] == ' ' || bytes[len - 1] == ' ')
		return len == 0;
	for (size_t i = 0; i < len; i++)
	{
		if (bytes[i] < ' ' || bytes[i] >= 0x7f)
			return false;
	}
	return true;
}

char *
wire_printable(const char *bytes, size_t len, int max)
{
	const char *p = bytes;
	const char *end = bytes + len;
	StringInfoData out;
	WireConversion conversion;
	bool		gap = false;
	bool		cut = false;

	if (is_plain(bytes, len, max))
		return pnstrdup(bytes, len);

	wiretext_conversion_init(&conversion);
	initStringInfo(&out);
	while (p < end)
	{
		char		piece[WIRETEXT_CHAR_SIZE];
		int			char_len;

		if (!IS_HIGHBIT_SET(*p))
			char_len = 1;
		else
			char_len = pg_encoding_verifymbchar(PG_UTF8, p,
												(int) Min(end - p, MAX_MULTIBYTE_CHAR_LEN));

		if (char_len > 0 && is_unprintable(utf8_to_unicode((const unsigned char *) p)))
			gap = true;
		else
		{
			if (char_len <= 0)
			{
				char_len = 1;
				strcpy(piece, "?");
			}
			else if (wiretext_convert(&conversion, p, char_len, piece) < (size_t) char_len)
				strcpy(piece, "?");

			if (!append_printable(&out, max, &gap, piece, (int) strlen(piece)))
			{
				cut = true;
				break;
			}
		}
		p += char_len;
	}

	return finish_printable(&out, cut);
}

/* Encodings with control characters from 0x80 to 0x9f. */
static bool
is_iso_8859(int encoding)
{
	return (encoding >= PG_LATIN1 && encoding <= PG_LATIN10) ||
		(encoding >= PG_ISO_8859_5 && encoding <= PG_ISO_8859_8);
}

char *
wiretext_fit(const char *text, int len, int max)
{
	int			encoding = GetDatabaseEncoding();
	const char *p = text;
	const char *end = text + len;
	StringInfoData out;
	bool		gap = false;
	bool		cut = false;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return wire_printable(text, len, max);

	initStringInfo(&out);
	while (p < end)
	{
		int			char_len = 1;

		/* in a server encoding, bytes below 0x80 are always ASCII */
		if (IS_HIGHBIT_SET(*p))
			char_len = Max(1, pg_encoding_verifymbchar(encoding, p, (int) (end - p)));

		if (char_len == 1 && is_unprintable((unsigned char) *p) &&
			(!IS_HIGHBIT_SET(*p) || is_iso_8859(encoding)))
			gap = true;
		else if (!append_printable(&out, max, &gap, p, char_len))
		{
			cut = true;
			break;
		}
		p += char_len;
	}

	return finish_printable(&out, cut);
}

char *
wiretext_cut(char *text, int max)
{
	int			len = (int) strlen(text);
	StringInfoData out;

	if (len <= max)
		return text;
	initStringInfo(&out);
	appendBinaryStringInfo(&out, text, pg_mbcliplen(text, len, max));
	pfree(text);
	return finish_printable(&out, true);
}
