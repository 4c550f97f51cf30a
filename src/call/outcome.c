/*-------------------------------------------------------------------------
 *
 * src/call/outcome.c
 *	  What the limiter learns from the outcome of a call, and the other way
 *	  round.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "call/outcome.h"

/* What to report of a call that ended so. */
LimiterReport
outcome_report(const FlowOutcome *outcome, TokenProtocol protocol)
{
	const FlowResponse *response = outcome->response;

	switch (outcome->action)
	{
		case FLOW_WAIT:
			return LIMITER_REPORT_RATE;

		case FLOW_STOP_APP:
			return outcome->sqlstate == ERRCODE_FEISHU_RATE_LIMIT ?
				LIMITER_REPORT_QUOTA : LIMITER_REPORT_CREDENTIALS;

		case FLOW_REFRESH_TOKEN:

			/*
			 * A fixed token is what it is.  If one that was got just now was
			 * refused, too, no other call will do better, but that may pass.
			 */
			return protocol == TOKEN_FIXED ?
				LIMITER_REPORT_CREDENTIALS : LIMITER_REPORT_TROUBLE;

		case FLOW_RETRY:

			/*
			 * A connection that had been kept ends when it has served its
			 * time, with all the requests on it if it is HTTP/2.  A platform
			 * in trouble shows it by the next one.
			 */
			if (outcome->trouble == HTTP_TROUBLE_KEPT)
				return LIMITER_REPORT_NOTHING;

			/*
			 * What the platform can say in its own words is the trouble of
			 * one flow, and so is an answer of more than we read.
			 */
			if (outcome->http_status >= 500)
				return LIMITER_REPORT_TROUBLE;
			if (response != NULL)
				return response->has_code ?
					LIMITER_REPORT_ANSWERED : LIMITER_REPORT_TROUBLE;
			return outcome->too_large ?
				LIMITER_REPORT_ANSWERED : LIMITER_REPORT_TROUBLE;

		default:
			return LIMITER_REPORT_ANSWERED;
	}
}

/*
 * The outcome of a call that the limiter holds back for longer than it can
 * wait: LK429.
 */
void
outcome_hold_back(FlowOutcome *outcome, LimiterPause why, TimestampTz retry_at)
{
	outcome->action = FLOW_WAIT;
	outcome->sqlstate = ERRCODE_FEISHU_RATE_LIMIT;
	outcome->held_back = true;
	outcome->reset_seconds = TIMESTAMP_IS_NOEND(retry_at) || why == LIMITER_NO_ROOM ? -1 :
		Max(retry_at - GetCurrentTimestamp(), 0) / 1e6;
	switch (why)
	{
		case LIMITER_QUOTA:
			outcome->reason = gettext_noop("the monthly quota of API calls is used up");
			outcome->hint = gettext_noop("Have an administrator of the tenant raise the quota, or wait for the next month; feishu.resume_server then lets queued flows go at once.");
			break;
		case LIMITER_MAX_RATE:
			outcome->reason = gettext_noop("the server's max_rate leaves no room within the timeout");
			outcome->hint = gettext_noop("Raise the timeout, or the server's max_rate option if the platform allows more, or queue the flow with feishu.enqueue_flow.");
			break;
		case LIMITER_MAX_CONCURRENCY:
			outcome->reason = gettext_noop("the server's max_concurrency left no room within the timeout");
			outcome->hint = gettext_noop("Raise the timeout or the server's max_concurrency option, or queue the flow with feishu.enqueue_flow.");
			break;
		case LIMITER_NO_ROOM:
			outcome->reason = gettext_noop("more apps are busy than feishu_flow.max_apps has room for, and the server's max_rate or max_concurrency has to be kept");
			outcome->hint = gettext_noop("Try again later, or queue the flow with feishu.enqueue_flow; have an administrator raise feishu_flow.max_apps, which takes a restart.");
			break;
		default:
			outcome->reason = gettext_noop("the platform's rate limit holds calls back for longer than the timeout");
			outcome->hint = gettext_noop("Raise the timeout, or queue the flow with feishu.enqueue_flow; the server's max_rate option can keep calls below the platform's limit.");
			break;
	}
}

/* The outcome of a call that was not made, as those before it had no answer: LK503. */
void
outcome_give_up_on_platform(FlowOutcome *outcome)
{
	outcome->action = FLOW_RETRY;
	outcome->sqlstate = ERRCODE_FEISHU_NO_CONNECTION;
	outcome->held_back = true;
	outcome->reset_seconds = -1;
	outcome->reason = gettext_noop("the platform does not answer");
	outcome->hint = gettext_noop("See the errors of the earlier rows. When the platform answers again, run the statement for the remaining rows; or queue the flows with feishu.enqueue_flow, which waits for that.");
}

/* Shorter than anybody's flow: perhaps meant in seconds. */
#define SHORT_TIMEOUT_MS	1000

/* Advice for a transfer that brought no answer. */
static const char *
transport_hint(const FlowServer *server, const FlowLimits *limits,
			   const HttpResult *result, bool may_have_started)
{
	if (result->connect_expired)
		return server->proxy != NULL ?
			gettext_noop("Check the server's proxy option, and whether the database host may connect to the proxy; or raise the server's connect_timeout option or feishu_flow.connect_timeout.") :
			gettext_noop("Check the server's base_url and token_url, and whether the database host may connect to them: if it reaches the internet through a proxy only, set the server's proxy option. Or raise its connect_timeout option or feishu_flow.connect_timeout.");
	if (result->outcome == HTTP_TIMEOUT && limits->timeout_ms < SHORT_TIMEOUT_MS)
		return may_have_started ?
			gettext_noop("The flow may have started: try again only with the same idempotent_key. Raise the timeout argument, the server's timeout option or feishu_flow.timeout: in the latter two a number without a unit is milliseconds.") :
			gettext_noop("Raise the timeout argument, the server's timeout option or feishu_flow.timeout: in the latter two a number without a unit is milliseconds.");
	if (result->outcome == HTTP_TIMEOUT)
		return may_have_started ?
			gettext_noop("The flow may have started: try again only with the same idempotent_key. If it needs longer, raise the timeout argument, the server's timeout option or feishu_flow.timeout, or start it with is_async => true.") :
			gettext_noop("Raise the timeout argument, the server's timeout option or feishu_flow.timeout.");
	if (result->outcome == HTTP_TOO_LARGE)
		return may_have_started ?
			gettext_noop("The flow may have started: try again only with the same idempotent_key. Raise feishu_flow.max_response_size, or let the flow return less.") :
			gettext_noop("Check the server's token_url.");

	switch (result->trouble)
	{
		case HTTP_TROUBLE_DNS:
			return gettext_noop("Check the host name in the server's base_url and token_url, and the name service of the database host. If that host reaches the internet through a proxy only, set the server's proxy option: the proxy then looks the name up.");
		case HTTP_TROUBLE_PROXY:
			return gettext_noop("Check the server's proxy option.");
		case HTTP_TROUBLE_CONNECT:
			if (server->proxy != NULL)
				return gettext_noop("Check the server's proxy option, and whether the database host may connect to the proxy.");
			return gettext_noop("Check the server's base_url and token_url, and whether the database host may connect to them: if it reaches the internet through a proxy only, set the server's proxy option.");
		case HTTP_TROUBLE_CERTIFICATE:
			return server->ca_file != NULL ?
				gettext_noop("Check that base_url and token_url name the host as its certificate does, that the certificate is current, that the clock of the database host is right, and that the file of the server's ca_file option has the authority that issued the certificate.") :
				gettext_noop("Check that base_url and token_url name the host as its certificate does, that the certificate is current, and that the clock of the database host is right; set the server's ca_file option to the PEM file of a private CA.");
		case HTTP_TROUBLE_PROXY_CERTIFICATE:
			return server->ca_file != NULL ?
				gettext_noop("Check that the server's proxy option names the proxy's host as its certificate does, that the certificate is current, that the clock of the database host is right, and that the file of the server's ca_file option has the authority of the proxy as well as that of the platform.") :
				gettext_noop("Check that the server's proxy option names the proxy's host as its certificate does, that the certificate is current, and that the clock of the database host is right; for a proxy with a private CA, set the server's ca_file option to a PEM file of that CA and of the platform's.");
		case HTTP_TROUBLE_PROXY_TLS:
			return gettext_noop("Check that the server's proxy option leads to a proxy that speaks TLS 1.2 or later, and not to one of the scheme http.");
		case HTTP_TROUBLE_CA_FILE:
			return gettext_noop("Check that the server's ca_file option names a PEM file that the database server's operating-system user can read.");
		case HTTP_TROUBLE_TLS:
			/* not every libcurl can tell then */
			if (server->proxy != NULL && http_url_has_scheme(server->proxy, "https"))
				return gettext_noop("Check that base_url leads to a server that speaks TLS 1.2 or later, and that its certificate was issued by an authority in the server's ca_file option, or by one of the system's without this option. Behind a proxy that speaks TLS, the cause may be either.");
			return gettext_noop("Check that base_url leads to a server that speaks TLS 1.2 or later, and not to a proxy or an http port.");
		case HTTP_TROUBLE_REFUSED:
			return gettext_noop("The flow has not started: try again later. If it goes on, set the server's http_version option to 1.1.");
		case HTTP_TROUBLE_LOCAL:
			return may_have_started ?
				gettext_noop("The flow may have started: try again only with the same idempotent_key. Check that the database host has memory, file descriptors, threads and local ports left.") :
				gettext_noop("Check that the database host has memory, file descriptors, threads and local ports left.");
		default:
			return may_have_started ?
				gettext_noop("The flow may have started: try again only with the same idempotent_key.") :
				gettext_noop("Try again later; if it goes on, check the server's base_url, token_url and proxy.");
	}
}

/* The outcome of a transfer that brought no usable HTTP response. */
void
outcome_of_trouble(FlowOutcome *outcome, const FlowServer *server,
				   const FlowLimits *limits, const HttpResult *result)
{
	outcome->action = FLOW_RETRY;
	outcome->hint = transport_hint(server, limits, result,
								   outcome->request_sent && !outcome->for_token);
	outcome->trouble = result->trouble;
	outcome->phase = result->phase;
	outcome->cause = http_cause_text(result->cause);
	switch (result->outcome)
	{
		case HTTP_TIMEOUT:
			outcome->sqlstate = ERRCODE_FEISHU_TIMEOUT;
			outcome->timeout_ms = result->connect_expired ?
				limits->connect_timeout_ms : limits->timeout_ms;
			outcome->reason = result->connect_expired ?
				gettext_noop("no connection within %d ms") :
				gettext_noop("no answer within %d ms");
			break;
		case HTTP_TOO_LARGE:
			outcome->sqlstate = ERRCODE_FEISHU_BAD_ANSWER;
			outcome->reason = gettext_noop("the answer is too large");
			break;
		case HTTP_BAD_ANSWER:
			outcome->sqlstate = ERRCODE_FEISHU_BAD_ANSWER;
			outcome->reason = gettext_noop("the answer was cut off or is not HTTP");
			break;
		default:
			outcome->sqlstate = ERRCODE_FEISHU_NO_CONNECTION;
			switch (result->trouble)
			{
				case HTTP_TROUBLE_RESET:
				case HTTP_TROUBLE_KEPT:
					outcome->reason = gettext_noop("the request broke off before an answer came");
					break;
				case HTTP_TROUBLE_CERTIFICATE:
					outcome->reason = gettext_noop("the platform's certificate could not be verified");
					break;
				case HTTP_TROUBLE_PROXY_CERTIFICATE:
					outcome->reason = gettext_noop("the proxy's certificate could not be verified");
					break;
				case HTTP_TROUBLE_REFUSED:
					outcome->reason = gettext_noop("the peer returned the request without processing it");
					break;
				case HTTP_TROUBLE_LOCAL:
					outcome->reason = gettext_noop("the database host ran short of memory, file descriptors, threads or local ports");
					break;
				default:
					outcome->reason = gettext_noop("the platform could not be reached");
					break;
			}
			break;
	}
}

/* What a transfer's result shows whatever became of it; text in the current context. */
void
outcome_take_result(FlowOutcome *outcome, const HttpResult *result)
{
	outcome->too_large = result->outcome == HTTP_TOO_LARGE;
	outcome->http_status = result->http_status;
	outcome->reset_seconds = result->reset_seconds;
	outcome->duration_us = result->duration_us;
	if (result->location[0] != '\0')
		outcome->location = wire_printable(result->location, strlen(result->location),
											HTTP_HEADER_SIZE);
	if (result->id[0] != '\0')
		outcome->log_id = wire_printable(result->id, strlen(result->id), HTTP_HEADER_SIZE);
}

/* The platform's clock against ours, as far as an answer shows it. */
void
outcome_check_clock(FlowCheck *check, const HttpResult *result)
{
	TimestampTz theirs;
	TimestampTz ours = GetCurrentTimestamp();

	if (result->date[0] == '\0' || !http_read_date(result->date, &theirs))
		return;
	check->has_clock = true;
	check->clock_behind_us = theirs - (ours - ours % USECS_PER_SEC);
}
