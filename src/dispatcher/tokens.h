/*-------------------------------------------------------------------------
 *
 * tokens.h
 *	  Tokens that are refreshed for sessions.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/tokens.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_TOKENS_H
#define FEISHU_TOKENS_H

extern void tokens_refresh_asked(void);

#endif							/* FEISHU_TOKENS_H */
