/*-------------------------------------------------------------------------
 *
 * wirejson.h
 *	  JSON of the wire to jsonb of this database, without throwing.
 *
 * In a database whose encoding is neither UTF8 nor SQL_ASCII, call these in a
 * transaction: see wiretext.c.
 *
 * Private to src/wire/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/wirejson.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIREJSON_H
#define FEISHU_WIREJSON_H

#include "base/compat.h"
#include "wire/codes.h"

/*
 * JSON, read.  problem says what value is:
 *	ANSWER_OK			exactly what the text says
 *	ANSWER_LOSSY_*		a copy in which "?" stands for characters, and null
 *						for numbers, that jsonb of this database cannot hold
 *	anything else		NULL
 * value is palloc'd in the context that was current.
 */
typedef struct WireJson
{
	Jsonb	   *value;
	AnswerProblem problem;
} WireJson;

extern void wirejson_read_object(const char *bytes, size_t len, WireJson *json);
extern void wirejson_read_text(const char *text, size_t len, WireJson *json);
extern void wirejson_push_end(JsonbInState *state, JsonbIteratorToken token);

#endif							/* FEISHU_WIREJSON_H */
