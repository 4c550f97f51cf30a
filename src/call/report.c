/*-------------------------------------------------------------------------
 *
 * src/call/report.c
 *	  What a user is told of the outcome of a call: by an error, a row of
 *	  execute_flows, and the queue.
 *
 * All text of an outcome is put together here.  It is in the language of the process,
 * for the queue that of the server, in the database encoding, and without secrets.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/nls.h"
#include "call/report.h"

/* The second half of the primary message. */
char *
report_message(const FlowOutcome *outcome)
{
	const char *reason = _(outcome->reason);

	if (outcome->timeout_ms > 0)
		reason = psprintf(reason, outcome->timeout_ms);
	if (outcome->for_token)
		return psprintf(_("could not obtain an access token: %s"), reason);
	return pstrdup(reason);
}

/* DETAIL: all that helps support to find the request. */
char *
report_detail(const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;
	StringInfoData detail;

	initStringInfo(&detail);
	if (outcome->held_back)
	{
		appendStringInfo(&detail, _("No request was sent to \"%s\"."), outcome->url);
		if (outcome->reset_seconds >= 0)
			appendStringInfo(&detail, _(" It could be sent after %.3f s."),
							 outcome->reset_seconds);
		return detail.data;
	}
	if (response == NULL)
	{
		if (outcome->phase != NULL)
			appendStringInfo(&detail, _("The request to \"%s\" ended while %s"),
							 outcome->url, _(outcome->phase));
		else
			appendStringInfo(&detail, _("The request to \"%s\" failed"), outcome->url);
		if (outcome->cause != NULL)
			appendStringInfo(&detail, _(": %s."), outcome->cause);
		else
			appendStringInfoString(&detail, _("."));
		if (outcome->http_status != 0)
			appendStringInfo(&detail, _(" HTTP status %d."), outcome->http_status);
		if (outcome->log_id != NULL)
			appendStringInfo(&detail, _(" Log id %s."), outcome->log_id);
		return detail.data;
	}

	appendStringInfo(&detail, _("HTTP status %d"), outcome->http_status);
	if (response->has_code)
		appendStringInfo(&detail, _(", code %lld"), (long long) response->code);
	if (response->inner_code != NULL)
		appendStringInfo(&detail, _(", inner code %s"), response->inner_code);
	if (outcome->log_id != NULL)
		appendStringInfo(&detail, _(", log id %s"), outcome->log_id);
	if (response->execution_id != NULL)
		appendStringInfo(&detail, _(", execution id %s"), response->execution_id);
	if (outcome->reset_seconds >= 0)
		appendStringInfo(&detail, _(", to be tried again after %g s"), outcome->reset_seconds);
	if (outcome->location != NULL)
		appendStringInfo(&detail, _(", location %s"), outcome->location);
	if (response->excerpt[0] != '\0')
		appendStringInfo(&detail, _(", answer: %s"), response->excerpt);
	else if (response->message != NULL)
		appendStringInfo(&detail, _(", message: %s"), response->message);
	else
		appendStringInfoString(&detail, _("."));
	return detail.data;
}

/* HINT: what to do, and where the platform says more; or NULL. */
char *
report_hint(const FlowOutcome *outcome)
{
	const char *helps = outcome->response ? outcome->response->helps : NULL;

	if (outcome->hint != NULL && helps != NULL)
		return psprintf(_("%s See %s"), _(outcome->hint), helps);
	if (helps != NULL)
		return psprintf(_("See %s"), helps);
	return outcome->hint ? pstrdup(_(outcome->hint)) : NULL;
}

/* The whole report on a flow that did not succeed. */
FlowReport
report_failure(const FlowOutcome *outcome, const FlowRequest *request)
{
	FlowReport	report = {
		.sqlstate = outcome->sqlstate,
		.message = psprintf(_("could not execute flow \"%s/%s\": %s"),
							request->namespace_name, request->flow_id,
							report_message(outcome)),
		.detail = report_detail(outcome),
		.hint = report_hint(outcome)
	};

	return report;
}

/* One sentence for who looks into the queue. */
char *
report_sentence(const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, report_message(outcome));
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
report_lines(const FlowOutcome *outcome)
{
	return psprintf("%s\n%s", report_message(outcome), report_detail(outcome));
}
