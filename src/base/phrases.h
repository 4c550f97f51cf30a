/*-------------------------------------------------------------------------
 *
 * src/base/phrases.h
 *	  Phrases by which clients recognise a lost database connection.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PHRASES_H
#define FEISHU_PHRASES_H

extern void phrases_break(char *text);

#endif							/* FEISHU_PHRASES_H */
