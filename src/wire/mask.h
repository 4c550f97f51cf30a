/*-------------------------------------------------------------------------
 *
 * mask.h
 *	  Secrets in text of the peer, which may echo what it was sent.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/mask.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_MASK_H
#define FEISHU_MASK_H

#include "utils/jsonb.h"

/* Token, fixed token, app_secret: what a peer may echo.  Each may be NULL. */
#define MASK_SECRETS	3

typedef struct MaskSecrets
{
	const char *secrets[MASK_SECRETS];
} MaskSecrets;

/*
 * Overwrite each whole occurrence of a secret in text by asterisks, in place.  Both
 * may be NULL.  Does not throw.
 */
extern void mask_secrets(const MaskSecrets *secrets, char *text);

/* How many bytes a secret may have in text at most, escaped. */
extern size_t mask_longest(const MaskSecrets *secrets);

/*
 * The same in bytes that are yet to be read, so only where it stands as it is:
 * what they mean stays.  Of a secret that is too short to be sure, nothing is
 * masked.
 */
extern void mask_secret_bytes(char *bytes, size_t len, const char *secret);

/*
 * The same in jsonb that was read of such bytes, where no escape hides a secret
 * any more: the jsonb itself, masked in place, or another one in the current memory
 * context, where the first one was, which is freed.  Throws only when memory runs out.
 */
extern Jsonb *mask_secret_jsonb(Jsonb *json, const char *secret);

#endif							/* FEISHU_MASK_H */
