/*-------------------------------------------------------------------------
 *
 * src/call/answer.c
 *	  Answers to requests that carried our secrets, read without these.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "base/nls.h"
#include "base/phrases.h"
#include "call/call_internal.h"

/*
 * Make text of the peer fit for a message, in place: secrets are overwritten,
 * phrases that clients would take amiss are broken.  NULL is allowed.
 */
void
answer_mask_text(const MaskSecrets *secrets, char *text)
{
	mask_secrets(secrets, text);
	/* only then: the secrets would not be recognised with a break in them */
	phrases_break(text);
}

/* Break the phrases in all that a message shows of an answer that was read. */
void
answer_break_phrases(FlowResponse *response)
{
	if (response->sqlstate == 0)
		return;
	phrases_break(response->excerpt);
	phrases_break(response->message);
	phrases_break(response->inner_message);
	phrases_break(response->inner_code);
	phrases_break(response->helps);
	phrases_break(response->log_id);
	phrases_break(response->execution_id);
	phrases_break(response->status);
}

/*
 * Read an answer.  It is returned, and kept, whole, but for the secrets.
 * Throws when memory runs out, and at a cancel if the answer is long.
 */
FlowResponse *
answer_read(const MaskSecrets *secrets, const HttpResult *result)
{
	return wire_read_answer(result->http_status, result->body, result->body_len, secrets);
}

/*
 * answer_read for a dispatcher, which nothing that a peer says may stop: one for
 * which there is no memory is an answer that cannot be used.
 */
FlowResponse *
answer_read_or_fail(const MaskSecrets *secrets, const HttpResult *result)
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
		response = wire_unread_answer(result->http_status);
	}
	PG_END_TRY();
	return response;
}
