/*-------------------------------------------------------------------------
 *
 * src/call/call_internal.h
 *	  A flow call, and what else the files of src/call/ share.
 *
 * Private to src/call/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_CALL_INTERNAL_H
#define FEISHU_CALL_INTERNAL_H

#include "lib/ilist.h"

#include "app/server.h"
#include "app/token.h"
#include "app/token_fetch.h"
#include "call/call.h"
#include "http/http.h"
#include "wire/mask.h"
#include "wire/wire.h"

typedef enum CallState
{
	CALL_WAITING,				/* for another one's token request; in waiting */
	CALL_FETCHING,				/* a token */
	CALL_LIMITED,				/* waits for a place; in waiting */
	CALL_SENDING,				/* the execute request */
	CALL_LINGERING,				/* all but done: its refresh is under way; in
								 * waiting */
	CALL_DONE					/* in done, until handed out */
} CallState;

struct FlowCall
{
	TransferListener listener;	/* must be first */
	MemoryContext context;
	void	   *owner;
	FlowServer *server;
	FlowLimits	limits;
	bool		check_only;		/* obtain a token, start no flow */
	bool		dispatching;	/* for the limiter */
	bool		batched;		/* an error of a step ends it */
	char	   *url;
	StringInfoData body;
	CallState	state;
	bool		refreshed;		/* a refused token was replaced already */
	TokenFetch *refresh;		/* of its token, besides; or NULL */
	TimestampTz retry_at;		/* with CALL_WAITING, _LIMITED and _LINGERING */
	LimiterPause held_by;		/* with CALL_LIMITED */
	LimiterPlace place;
	HttpTransfer *transfer;		/* with CALL_SENDING */
	FlowOutcome outcome;
	int64		held;			/* of its answer, counted in what all hold */
	dlist_node	node;			/* in waiting or done */
	bool		listed;
	MemoryContextCallback callback;
	TokenLease	lease;
};

/* Put the call on a list, or on none. */
static inline void
call_list(FlowCall *call, dlist_head *list)
{
	if (call->listed)
		dlist_delete(&call->node);
	call->listed = list != NULL;
	if (list != NULL)
		dlist_push_tail(list, &call->node);
}

/* call.c */
extern void call_wait(FlowCall *call, CallState state);

/* call_end.c */
extern void call_end(FlowCall *call);
extern MaskSecrets call_secrets(const FlowCall *call);
extern void call_finish_transfer(FlowCall *call, const HttpResult *result, bool for_token,
								 bool is_shared, FlowResponse *response);
extern void call_finish_check(FlowCall *call, const HttpResult *result);
extern void call_finish_shared_failure(FlowCall *call, const TokenFailure *failure);
extern void call_finish_held_back(FlowCall *call);
extern void call_finish_late(FlowCall *call);
extern void call_finish_short(FlowCall *call);
extern bool call_any_done(void);
extern void call_forget_held(FlowCall *call);

/* answer.c */
extern void answer_mask_text(const MaskSecrets *secrets, char *text);
extern void answer_break_phrases(FlowResponse *response);
extern FlowResponse *answer_read(const MaskSecrets *secrets, const HttpResult *result);
extern FlowResponse *answer_read_or_fail(const MaskSecrets *secrets,
										 const HttpResult *result);

/* sandbox.c */
extern void sandbox_answer(const FlowServer *server, size_t max_response, HttpResult *result);

#endif							/* FEISHU_CALL_INTERNAL_H */
