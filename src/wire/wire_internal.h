/*-------------------------------------------------------------------------
 *
 * src/wire/wire_internal.h
 *	  JSON and text of the wire to jsonb and text of this database, without throwing.
 *
 * In a database whose encoding is neither UTF8 nor SQL_ASCII, call these in a
 * transaction: see wiretext.c.
 *
 * Private to src/wire/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIRE_INTERNAL_H
#define FEISHU_WIRE_INTERNAL_H

#include "mb/pg_wchar.h"

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

/* wirejson.c */
extern void wirejson_read_object(const char *bytes, size_t len, WireJson *json);
extern void wirejson_read_text(const char *text, size_t len, WireJson *json);
extern void wirejson_push_end(JsonbInState *state, JsonbIteratorToken token);

/* Room for one converted character and a NUL byte. */
#define WIRETEXT_CHAR_SIZE	(MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1)

/* wiretext.c */
extern Oid	wiretext_conversion(void);
extern size_t wiretext_convert(Oid conversion, const char *src, size_t len, char *dst);
extern char *wiretext_from_utf8(const char *src, size_t len, size_t *result_len,
								bool *lossy);
extern char *wiretext_fit(const char *text, int len, int max);
extern char *wiretext_cut(char *text, int max);

#endif							/* FEISHU_WIRE_INTERNAL_H */
