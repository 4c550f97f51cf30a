/*-------------------------------------------------------------------------
 *
 * answer.c
 *	  Answers to requests that carried our secrets, read without these.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/answer.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "answer.h"
#include "fetch.h"
#include "mask.h"
#include "nls.h"
#include "phrases.h"

void
answer_mask_text(const AnswerSecrets *secrets, char *text)
{
	for (int i = 0; i < (int) lengthof(secrets->secrets); i++)
		mask_secret(text, secrets->secrets[i]);
	/* only then: the secrets would not be recognised with a break in them */
	phrases_break(text);
}

/* What an answer says of the flow: success has it, too. */
static void
mask_ids(const AnswerSecrets *secrets, FlowResponse *response)
{
	answer_mask_text(secrets, response->log_id);
	answer_mask_text(secrets, response->execution_id);
	answer_mask_text(secrets, response->status);
}

void
answer_mask_response(const AnswerSecrets *secrets, FlowResponse *response)
{
	if (response->sqlstate == 0)
		return;
	answer_mask_text(secrets, response->excerpt);
	answer_mask_text(secrets, response->message);
	answer_mask_text(secrets, response->inner_message);
	answer_mask_text(secrets, response->inner_code);
	answer_mask_text(secrets, response->helps);
	mask_ids(secrets, response);
}

FlowResponse *
answer_read(const AnswerSecrets *secrets, const HttpResult *result)
{
	HttpAnswer	answer = http_answer(result);
	FlowResponse *response;

	for (int i = 0; i < (int) lengthof(secrets->secrets); i++)
		mask_secret_bytes(result->body, result->body_len, secrets->secrets[i]);
	response = codec_read_answer(&answer);

	/* what the peer has escaped shows itself when it has been read */
	if (result->body_len > 0 && memchr(result->body, '\\', result->body_len) != NULL)
	{
		for (int i = 0; i < (int) lengthof(secrets->secrets); i++)
			response->body = mask_secret_jsonb(response->body, secrets->secrets[i]);
		mask_ids(secrets, response);
	}
	return response;
}

FlowResponse *
answer_read_or_fail(const AnswerSecrets *secrets, const HttpResult *result)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	FlowResponse *volatile response = NULL;

	PG_TRY();
	{
		response = answer_read(secrets, result);
	}
	PG_CATCH();
	{
		int			sqlerrcode = geterrcode();
		ErrorData  *error;

		if (sqlerrcode != ERRCODE_OUT_OF_MEMORY &&
			ERRCODE_TO_CATEGORY(sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			sqlerrcode != ERRCODE_INTERNAL_ERROR)	/* beyond what palloc gives */
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		/* the error has let them through */
		InterruptHoldoffCount = holdoff;
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("feishu_flow could not read an answer: %s", error->message)));
		FreeErrorData(error);
		response = codec_unread_answer(result->http_status);
	}
	PG_END_TRY();
	return response;
}
