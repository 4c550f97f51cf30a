/*-------------------------------------------------------------------------
 *
 * src/wire/wiretext.c
 *	  UTF-8 of the wire to text of this database, without throwing.
 *
 * A database whose encoding is neither UTF8 nor SQL_ASCII needs its catalogs
 * to convert.  Outside of a transaction everything but ASCII counts as
 * unrepresentable there.  In SQL_ASCII the result is the bytes as they are.
 *
 * Copyright (c) 2026, feishu_flow contributors
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
#include "wire/wire_internal.h"

/* Does the encoding take UTF-8 as it is? */
static bool
takes_utf8(int encoding)
{
	return encoding == PG_UTF8 || encoding == PG_SQL_ASCII;
}

/* The function that converts UTF-8 to the database encoding; InvalidOid: none. */
Oid
wiretext_conversion(void)
{
	if (takes_utf8(GetDatabaseEncoding()) || !IsTransactionState())
		return InvalidOid;
	return FindDefaultConversionProc(PG_UTF8, GetDatabaseEncoding());
}

/*
 * Convert as much of valid UTF-8 as the encoding can represent, to a NUL-terminated dst.
 *
 * dst has room for len * MAX_CONVERSION_GROWTH + 1 bytes.  Returns how many bytes of src
 * were converted: it stopped at a character that the encoding lacks if these are fewer
 * than len.
 */
size_t
wiretext_convert(Oid conversion, const char *src, size_t len, char *dst)
{
	int			encoding = GetDatabaseEncoding();
	size_t		done = len;

	if (OidIsValid(conversion))
		return pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding,
											 (unsigned char *) src, (int) len,
											 (unsigned char *) dst,
											 (int) (len * MAX_CONVERSION_GROWTH + 1), true);
	if (!takes_utf8(encoding))
	{
		for (done = 0; done < len && !IS_HIGHBIT_SET(src[done]); done++)
			;
	}
	memcpy(dst, src, done);
	dst[done] = '\0';
	return done;
}

/*
 * Valid UTF-8 as text in the database encoding, palloc'd.  Characters that it
 * lacks become "?", and then *lossy is set to true.
 */
char *
wiretext_from_utf8(const char *src, size_t len, size_t *result_len, bool *lossy)
{
	Oid			conversion = wiretext_conversion();
	const char *end = src + len;
	char	   *result = palloc(len * (OidIsValid(conversion) ? MAX_CONVERSION_GROWTH : 1) + 1);
	char	   *dst = result;

	for (;;)
	{
		src += wiretext_convert(conversion, src, end - src, dst);
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

/*
 * Text in the database encoding, with "?" for what the client's encoding
 * cannot represent: an error's text that cannot be sent would replace the error
 * by another one.  Needs a transaction.
 */
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

/* UTF-8 copy of text in the database encoding. */
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

/*
 * Text of the peer (claimed to be UTF-8) as text of this
 * database that is fit for a message: unrepresentable characters and invalid
 * bytes become "?", control characters (and those that change the direction
 * of text) blanks, a run of them one, both ends are trimmed of blanks, and it
 * is cut at max bytes, at a character's boundary, with "..." appended.  Does
 * not throw.
 */
char *
wire_printable(const char *bytes, size_t len, int max)
{
	const char *p = bytes;
	const char *end = bytes + len;
	StringInfoData out;
	Oid			conversion;
	bool		gap = false;
	bool		cut = false;

	if (is_plain(bytes, len, max))
		return pnstrdup(bytes, len);

	conversion = wiretext_conversion();
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
			else if (wiretext_convert(conversion, p, char_len, piece) < (size_t) char_len)
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

/*
 * Text in the database encoding made fit for a message, as wire_printable
 * does it.
 */
char *
wiretext_fit(const char *text, int len, int max)
{
	int			encoding = GetDatabaseEncoding();
	const char *p = text;
	const char *end = text + len;
	StringInfoData out;
	bool		gap = false;
	bool		cut = false;

	if (takes_utf8(encoding))
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

/* Text that one of both made, perhaps larger, cut in the same way: itself, or a copy. */
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
