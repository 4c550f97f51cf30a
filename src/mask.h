/*-------------------------------------------------------------------------
 *
 * mask.h
 *	  Secrets in text of the peer, which may echo what it was sent.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/mask.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_MASK_H
#define FEISHU_MASK_H

/*
 * Overwrite each occurrence of a secret in text by asterisks, in place.  Both
 * may be NULL.  Does not throw.
 */
extern void mask_secret(char *text, const char *secret);

#endif							/* FEISHU_MASK_H */
