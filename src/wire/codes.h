/*-------------------------------------------------------------------------
 *
 * src/wire/codes.h
 *	  What each answer of the platform means and what a caller should do.
 *
 * All of the knowledge about result codes, inner codes and HTTP statuses is
 * in the tables of codes.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_CODES_H
#define FEISHU_CODES_H

#include "wire/wire.h"

/*
 * reason and hint are static, marked for translation and not translated:
 * whoever shows them calls _().  A verdict of success has neither.
 */
typedef struct Verdict
{
	FlowAction	action;
	int			sqlstate;
	const char *reason;
	const char *hint;			/* or NULL */
} Verdict;

/* Why an answer cannot be used, or not in full. */
typedef enum AnswerProblem
{
	ANSWER_OK,

	/* the answer can be read, but jsonb of this database cannot hold it */
	ANSWER_LOSSY_ENCODING,		/* character unknown to the encoding */
	ANSWER_LOSSY_VALUE,			/* \u0000, half a surrogate pair, huge number */

	/* there is no JSON object to read */
	ANSWER_EMPTY,
	ANSWER_HAS_NUL,
	ANSWER_NOT_UTF8,
	ANSWER_TOO_DEEP,
	ANSWER_TOO_MANY_VALUES,
	ANSWER_NOT_JSON,
	ANSWER_NO_MEMORY,			/* here */

	/* there is one, but it is not an answer of the platform */
	ANSWER_NO_CODE,
	ANSWER_BAD_DATA,
	ANSWER_CONTRADICTORY,
	ANSWER_NO_TOKEN
} AnswerProblem;

#define ANSWER_IS_LOSSY(problem) \
	((problem) == ANSWER_LOSSY_ENCODING || (problem) == ANSWER_LOSSY_VALUE)

extern Verdict codes_success(void);

/* By outer code other than 0, or by data.code; NULL when it is unknown. */
extern const Verdict *codes_lookup_outer(int64 code);
extern const Verdict *codes_lookup_inner(const char *code);
extern Verdict codes_unknown_inner(void);

/* An outer code that is unknown, or a refused token without one. */
extern Verdict codes_unknown_outer(int http_status);
extern Verdict codes_refused_token(int http_status);
extern Verdict codes_unusable(int http_status, AnswerProblem problem,
							  bool for_token);
extern Verdict codes_contradictory(int http_status, bool for_token);
extern Verdict codes_lossy_success(AnswerProblem problem);

#endif							/* FEISHU_CODES_H */
