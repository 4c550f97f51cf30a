/*-------------------------------------------------------------------------
 *
 * answer.h
 *	  Answers to requests that carried our secrets, read without these.
 *
 * Private to src/call/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/answer.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ANSWER_H
#define FEISHU_ANSWER_H

#include "http/http.h"
#include "wire/mask.h"
#include "wire/wire.h"

extern void answer_mask_text(const MaskSecrets *secrets, char *text);
extern void answer_break_phrases(FlowResponse *response);
extern FlowResponse *answer_read(const MaskSecrets *secrets, const HttpResult *result);
extern FlowResponse *answer_read_or_fail(const MaskSecrets *secrets,
										 const HttpResult *result);

#endif							/* FEISHU_ANSWER_H */
