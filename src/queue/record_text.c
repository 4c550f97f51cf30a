/*-------------------------------------------------------------------------
 *
 * record_text.c
 *	  What the queue tells of an end: text for the columns error, report and hint.
 *
 * It is written by the dispatcher, in the language of the server.  The column error
 * is one sentence for who looks into the queue; report is for wait_flow, which raises
 * what execute_flow would have raised.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/queue/record_text.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "base/nls.h"
#include "call/report.h"
#include "queue/record_text.h"

/* What went wrong, for the column error. */
char *
record_error(const FlowOutcome *outcome)
{
	StringInfoData text;
	const FlowResponse *response = outcome->response;

	initStringInfo(&text);
	if (outcome->for_token)
		appendStringInfoString(&text, _("could not obtain an access token: "));
	if (outcome->timeout_ms > 0)
		appendStringInfo(&text, _(outcome->reason), outcome->timeout_ms);
	else
		appendStringInfoString(&text, _(outcome->reason));
	if (outcome->http_status != 0)
		appendStringInfo(&text, _("; HTTP status %d"), outcome->http_status);
	if (outcome->cause != NULL)
		appendStringInfo(&text, _("; %s"), outcome->cause);
	if (response != NULL && response->inner_message != NULL)
		appendStringInfo(&text, _("; %s"), response->inner_message);
	else if (response != NULL && response->message != NULL)
		appendStringInfo(&text, _("; %s"), response->message);
	return text.data;
}

/*
 * What execute_flow would have said, for wait_flow: the message, and on the next lines
 * the DETAIL.
 */
char *
record_report(const FlowOutcome *outcome)
{
	return psprintf("%s\n%s", report_message(outcome), report_detail(outcome));
}

const char *
record_lost_text(void)
{
	return _("the dispatcher ended before an answer came");
}

const char *
record_expired_text(void)
{
	return _("expired before it could be sent");
}

const char *
record_expired_hint(void)
{
	return _("See in feishu.dispatch_status what holds flows back, then queue it again by feishu.retry_flow.");
}

const char *
record_unconfirmed_hint(void)
{
	return _("See on the platform whether it has run; to start it once more, use feishu.retry_flow with new_key => true.");
}

const char *
record_not_ours_text(void)
{
	return _("the database was copied while this flow was waiting; the original sends it");
}
