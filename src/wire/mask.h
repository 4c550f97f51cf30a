/*-------------------------------------------------------------------------
 *
 * src/wire/mask.h
 *	  Secrets in text of the peer, which may echo what it was sent.
 *
 * Copyright (c) 2026, feishu_flow contributors
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

extern void mask_secrets(const MaskSecrets *secrets, char *text);
extern size_t mask_longest(const MaskSecrets *secrets);

/* The same in bytes that are yet to be read, and in jsonb that was read of such. */
extern void mask_bytes(const MaskSecrets *secrets, char *bytes, size_t len);
extern Jsonb *mask_jsonb(const MaskSecrets *secrets, Jsonb *json);

#endif							/* FEISHU_MASK_H */
