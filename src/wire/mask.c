/*-------------------------------------------------------------------------
 *
 * src/wire/mask.c
 *	  Secrets in text of the peer, which may echo what it was sent.
 *
 * A peer escapes what it echoes in its own way: so a secret is looked for character
 * by character, in each of the forms that a character may take.  Text keeps its
 * length.
 *
 * A secret is masked where all of it is, and nowhere else.  If a part of one were
 * masked, who has a peer echo his guesses would see by the asterisks which is right,
 * and find the secret letter by letter.  So text is masked first and cut then: what
 * a cut leaves of an echo is asterisks.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "utils/memutils.h"

#include "base/compat.h"
#include "wire/mask.h"
#include "wire/wire_internal.h"

/* A secret so long does not turn up in an answer by chance. */
#define SECRET_SURE_LENGTH		16

/* Longest of the forms below, such as "&quot;"; and room for one and a NUL byte. */
#define FORM_LENGTH		6
#define FORM_SIZE		16

/* How a character may be escaped: in JSON, in a URL, in HTML. */
static const char *const forms[] = {
	"\\%c", "\\u%04x", "%%%02x", "&#%d;", "&#x%x;", "&%s;"
};

/* What the forms begin with. */
#define FORM_STARTS		"\\%&"

/* The name that a character has in HTML, or NULL. */
static const char *
html_name(char c)
{
	switch (c)
	{
		case '&':
			return "amp";
		case '<':
			return "lt";
		case '>':
			return "gt";
		case '"':
			return "quot";
		default:
			return NULL;
	}
}

/* How many bytes at text spell a character in this form; 0: they do not. */
static size_t
match_form(const char *text, const char *form, char c)
{
	char		spelled[FORM_SIZE];
	size_t		len;

	if (form[0] != text[0])
		return 0;
	if (strcmp(form, "&%s;") != 0)
		snprintf(spelled, sizeof(spelled), form, (unsigned char) c);
	else if (html_name(c) != NULL)
		snprintf(spelled, sizeof(spelled), form, html_name(c));
	else
		return 0;
	for (len = 0; spelled[len] != '\0'; len++)
	{
		/* digits may be of either case; \c stands for itself */
		if (text[len] != spelled[len] &&
			(len < 2 || tolower((unsigned char) text[len]) != spelled[len]))
			return 0;
	}
	return len;
}

/*
 * Where the text ends that spells the secret from s on; NULL: it does not.
 */
static const char *
match_secret(const char *text, const char *s)
{
	for (; *s != '\0'; s++)
	{
		for (int i = 0; i < (int) lengthof(forms); i++)
		{
			size_t		len = match_form(text, forms[i], *s);
			const char *end = len > 0 ? match_secret(text + len, s + 1) : NULL;

			/* two backslashes are one that is escaped */
			if (end != NULL || (len > 0 && *s == '\\'))
				return end;
		}
		if (*text != *s)
			return NULL;
		text++;
	}
	return text;
}

/* In place; both may be NULL. */
static void
mask_secret(char *text, const char *secret)
{
	/* its first character, as it is or escaped: nowhere else can it begin */
	char		starts[sizeof(FORM_STARTS) + 1] = FORM_STARTS;

	if (text == NULL || secret == NULL || secret[0] == '\0')
		return;
	starts[sizeof(FORM_STARTS) - 1] = secret[0];
	while (*(text += strcspn(text, starts)) != '\0')
	{
		const char *end = match_secret(text, secret);
		size_t		len = end != NULL ? end - text : 0;

		if (len > 0)
			memset(text, '*', len);
		text += Max(len, 1);
	}
}

/*
 * Overwrite each whole occurrence of a secret in text by asterisks.  Does not throw.  In
 * place.  Both may be NULL.
 */
void
mask_secrets(const MaskSecrets *secrets, char *text)
{
	for (int i = 0; secrets != NULL && i < MASK_SECRETS; i++)
		mask_secret(text, secrets->secrets[i]);
}

/* How many bytes a secret may have in text at most, escaped. */
size_t
mask_longest(const MaskSecrets *secrets)
{
	size_t		longest = 0;

	for (int i = 0; secrets != NULL && i < MASK_SECRETS; i++)
	{
		if (secrets->secrets[i] != NULL)
			longest = Max(longest, strlen(secrets->secrets[i]) * FORM_LENGTH);
	}
	return longest;
}

/* Of a secret that is too short to be sure, nothing is masked. */
static void
mask_secret_bytes(char *bytes, size_t len, const char *secret)
{
	size_t		secret_len = secret != NULL ? strlen(secret) : 0;
	char	   *found;

	if (bytes == NULL || secret_len < SECRET_SURE_LENGTH)
		return;
	while ((found = memmem(bytes, len, secret, secret_len)) != NULL)
	{
		memset(found, '*', secret_len);
		len -= found + secret_len - bytes;
		bytes = found + secret_len;
	}
}

/* Only where a secret stands as it is: what the bytes mean stays. */
void
mask_bytes(const MaskSecrets *secrets, char *bytes, size_t len)
{
	for (int i = 0; secrets != NULL && i < MASK_SECRETS; i++)
		mask_secret_bytes(bytes, len, secrets->secrets[i]);
}

/* Is the secret in a name of a member?  In values it is masked in place. */
static bool
mask_values(Jsonb *json, const char *secret)
{
	JsonbIterator *iterator = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		in_name = false;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvString)
			mask_secret_bytes(value.val.string.val, value.val.string.len, secret);
		else if (token == WJB_KEY)
			in_name |= memmem(value.val.string.val, value.val.string.len, secret,
							  strlen(secret)) != NULL;
	}
	return in_name;
}

/* Make it anew with the secret masked in names, by which members are sorted. */
static Jsonb *
mask_names(Jsonb *json, const char *secret)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow mask",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(scratch);
	JsonbInState state = {0};
	JsonbIterator *iterator = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	Jsonb	   *masked;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		has_value = token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM;

		/* where it is: what is there is not needed any more */
		if (token == WJB_KEY)
			mask_secret_bytes(value.val.string.val, value.val.string.len, secret);
		if (token == WJB_END_ARRAY || token == WJB_END_OBJECT)
			wirejson_push_end(&state, token);
		else
			feishu_jsonb_push(&state, token, has_value ? &value : NULL);
	}
	MemoryContextSwitchTo(old_context);
	masked = JsonbValueToJsonb(state.result);
	MemoryContextDelete(scratch);
	pfree(json);
	return masked;
}

static Jsonb *
mask_secret_jsonb(Jsonb *json, const char *secret)
{
	size_t		secret_len = secret != NULL ? strlen(secret) : 0;

	if (json == NULL || secret_len < SECRET_SURE_LENGTH ||
		memmem(VARDATA(json), VARSIZE(json) - VARHDRSZ, secret, secret_len) == NULL ||
		!mask_values(json, secret))
		return json;
	return mask_names(json, secret);
}

/*
 * No escape hides a secret there any more.  The jsonb itself, masked in place, or another
 * one in the current memory context, where the first one was, which is freed.  Throws
 * only when memory runs out.
 */
Jsonb *
mask_jsonb(const MaskSecrets *secrets, Jsonb *json)
{
	for (int i = 0; secrets != NULL && i < MASK_SECRETS; i++)
		json = mask_secret_jsonb(json, secrets->secrets[i]);
	return json;
}
