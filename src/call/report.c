/*-------------------------------------------------------------------------
 *
 * report.c
 *	  What a user is told of the outcome of a call.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/report.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/nls.h"
#include "call/report.h"

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
