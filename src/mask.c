/*-------------------------------------------------------------------------
 *
 * mask.c
 *	  Secrets in text of the peer, which may echo what it was sent.
 *
 * A peer escapes what it echoes in its own way, and we cut what is long: so a
 * secret is looked for character by character, in each of the forms that a
 * character may take, and its beginning counts at the end of the text.  Text
 * keeps its length.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/mask.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mask.h"

/* A beginning of a secret so long is hidden, too, where text was cut. */
#define SECRET_PREFIX_LENGTH	6

/*
 * How many bytes at text spell the secret, as it is, JSON-escaped or
 * percent-encoded; 0: they do not.  Text that ends within the secret counts
 * when enough of it is there.
 */
static size_t
match_secret(const char *text, const char *secret)
{
	const char *t = text;
	const char *s = secret;

	for (; *s != '\0'; s++)
	{
		unsigned int c;

		if (*t == '\0' || strcmp(t, "...") == 0)
			return s - secret >= SECRET_PREFIX_LENGTH ? t - text : 0;
		if (*t == *s && !(t[0] == '\\' && t[1] == '\\'))
			t++;
		else if (t[0] == '\\' && t[1] == *s)
			t += 2;
		else if (t[0] == '%' && sscanf(t + 1, "%2x", &c) == 1 && c == (unsigned char) *s)
			t += 3;
		else
			return 0;
	}
	return t - text;
}

void
mask_secret(char *text, const char *secret)
{
	if (text == NULL || secret == NULL || secret[0] == '\0')
		return;
	while (*text != '\0')
	{
		size_t		len = match_secret(text, secret);

		if (len > 0)
			memset(text, '*', len);
		text += Max(len, 1);
	}
}
