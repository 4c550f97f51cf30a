/*-------------------------------------------------------------------------
 *
 * fuzz_internal.h
 *	  What fuzz_target.c and fuzz_request.c share; for no other file.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/fuzz/fuzz_internal.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_FUZZ_INTERNAL_H
#define FEISHU_FUZZ_INTERNAL_H

#include "utils/jsonb.h"

/* What must hold; throws when it does not. */
#define CHECK(condition) \
	((condition) ? (void) 0 : fuzz_check_failed(__FILE__, __LINE__, #condition))

typedef struct FuzzInput
{
	char		kind;
	int			number;
	int			encoding;
	const char *body;
	size_t		body_len;
} FuzzInput;

extern void fuzz_check_failed(const char *file, int line, const char *condition);

/* NULL is the same as NULL alone. */
extern bool fuzz_same_text(const char *a, const char *b);
extern bool fuzz_same_jsonb(const Jsonb *a, const Jsonb *b);

/* A member that is neither absent nor null. */
extern bool fuzz_find_member(JsonbContainer *object, const char *key, JsonbValue *value);

/* The arguments of a start of a flow, to be written. */
extern void fuzz_check_request(const FuzzInput *input);

#endif							/* FEISHU_FUZZ_INTERNAL_H */
