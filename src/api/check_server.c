/*-------------------------------------------------------------------------
 *
 * src/api/check_server.c
 *	  SQL function check_server: what is wrong with the way to the platform?
 *
 * It obtains a token, which proves name service, proxy, TLS, base_url and
 * credentials; then it asks for the app's permissions, which is an API that
 * needs none; and, for a namespace, it asks for a flow that does not exist.
 * No flow is ever started.  At last it looks at what queued flows wait for.  Of a
 * sandbox there is only that to look at.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "api/execute.h"
#include "app/limiter.h"
#include "base/compat.h"
#include "base/nls.h"
#include "base/sqlrun.h"
#include "call/clocks.h"
#include "call/report.h"
#include "launcher/launcher.h"
#include "wire/codes.h"
#include "wire/wire_check.h"

PG_FUNCTION_INFO_V1(feishu_check_server);

/* A flow's API name ends in ten hexadecimal digits: there is none like this. */
#define NO_SUCH_FLOW		"feishu_flow_check_server"

/* An operator for it when the server has none. */
#define NOBODY				"{\"_id\": 1}"

/* The code of a call that the scope is missing for. */
#define CODE_NO_SCOPE		INT64CONST(99991672)

/* The columns, as they come together. */
typedef struct CheckReport
{
	bool		has_token_ok;
	bool		token_ok;
	int			http_status;	/* 0: none */
	bool		has_code;
	int64		code;
	int64		latency_us;
	StringInfoData message;		/* sentences */
	StringInfoData hint;		/* likewise; may be empty */
} CheckReport;

/* Append a sentence. */
static void
add_sentence(StringInfo text, const char *sentence)
{
	if (sentence == NULL || sentence[0] == '\0')
		return;
	/* not after a full stop that is as wide as two letters */
	if (text->len > 0 && !IS_HIGHBIT_SET(text->data[text->len - 1]))
		appendStringInfoChar(text, ' ');
	appendStringInfoString(text, sentence);
}

/* A call was refused: the columns tell of it. */
static void
report_refusal(CheckReport *report, const FlowOutcome *outcome)
{
	const FlowResponse *response = outcome->response;

	report->http_status = outcome->http_status;
	report->has_code = response != NULL && response->has_code;
	report->code = report->has_code ? response->code : 0;
	add_sentence(&report->message, psprintf(_("%s. %s"), report_message(outcome),
											report_detail(outcome)));
	add_sentence(&report->hint, report_hint(outcome));

	if (outcome->trouble == HTTP_TROUBLE_CERTIFICATE ||
		outcome->trouble == HTTP_TROUBLE_PROXY_CERTIFICATE)
		add_sentence(&report->message,
					 psprintf(_("The clock of the database host says %s."),
							  timestamptz_to_str(GetCurrentTimestamp())));
}

/* Does one jsonb contain another, as with the operator @>? */
static bool
contains(Jsonb *whole, const char *part)
{
	return DatumGetBool(DirectFunctionCall2(jsonb_contains, JsonbPGetDatum(whole),
											DirectFunctionCall1(jsonb_in, CStringGetDatum(part))));
}

/*
 * May the app start flows?  False when it was found that it may not.  Not every
 * platform knows the list of permissions: without it, nothing is said.
 */
static bool
check_permissions(CheckReport *report, const FlowOutcome *outcome)
{
	FlowResponse *scopes = outcome->check->scopes;

	if (scopes == NULL)
		return true;
	if (scopes->sqlstate == ERRCODE_FEISHU_CREDENTIALS ||
		scopes->sqlstate == ERRCODE_FEISHU_PERMISSION)
	{
		FlowOutcome refusal = *outcome;

		refusal.response = scopes;
		refusal.reason = scopes->reason;
		refusal.hint = scopes->hint;
		refusal.log_id = scopes->log_id;
		refusal.http_status = outcome->check->scopes_status;
		add_sentence(&report->message, _("A request for the app's permissions failed:"));
		report_refusal(report, &refusal);
		return false;
	}
	if (scopes->sqlstate == 0 && scopes->body != NULL &&
		contains(scopes->body, "{\"data\": {\"scopes\": []}}") &&
		!contains(scopes->body, "{\"data\": {\"scopes\": [{\"scope_name\": \"app_engine:flow:write\", \"grant_status\": 1}]}}"))
	{
		const Verdict *verdict = codes_lookup_outer(CODE_NO_SCOPE);

		add_sentence(&report->message,
					 _("The tenant has not granted the app the permission app_engine:flow:write."));
		add_sentence(&report->hint, _(verdict->hint));
		return false;
	}
	return true;
}

/*
 * May the app call this low-code application?  A refusal for want of the flow, or
 * for what was sent, says yes.
 */
static void
check_namespace(CheckReport *report, const CallScope *scope, FlowServer *server,
				const FlowRequest *request)
{
	FlowLimits	limits = execute_limits(server, -1);
	const FlowOutcome *outcome;

	outcome = flow_call_outcome(execute_call(scope, server, request, &limits, NULL));
	if (outcome->sqlstate == 0 || outcome->sqlstate == ERRCODE_FEISHU_REFUSED ||
		(outcome->sqlstate == ERRCODE_FEISHU_NOT_FOUND && outcome->response != NULL &&
		 outcome->response->inner_code != NULL))
		add_sentence(&report->message,
					 psprintf(_("The low-code application \"%s\" takes calls of the app."),
							  request->namespace_name));
	else
	{
		add_sentence(&report->message,
					 psprintf(_("A request to the low-code application \"%s\" failed:"),
							  request->namespace_name));
		report_refusal(report, outcome);
	}
}

/* Does the platform's clock agree with ours? */
static void
check_clock(CheckReport *report, const FlowCheck *check)
{
	if (!check->has_clock || (check->clock_behind_us <= CLOCK_TOLERANCE_US &&
							  check->clock_behind_us >= -CLOCK_TOLERANCE_US))
		return;
	if (check->clock_behind_us > 0)
		add_sentence(&report->message,
					 psprintf(_("The clock of the database host is %lld s behind that of the platform."),
							  (long long) (check->clock_behind_us / USECS_PER_SEC)));
	else
		add_sentence(&report->message,
					 psprintf(_("The clock of the database host is %lld s ahead of that of the platform."),
							  (long long) (-check->clock_behind_us / USECS_PER_SEC)));
	add_sentence(&report->hint,
				 _("Set the clock of the database host, best by NTP: with a wrong one valid certificates seem invalid, and run_at and expires_at are off."));
}

/* Has somebody paused the server's queue by hand? */
static bool
is_paused(const char *server_name)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT FROM feishu_internal.paused_server WHERE server OPERATOR(pg_catalog.=) $1",
		1, TEXTOID);
	Datum		values[1] = {CStringGetTextDatum(server_name)};

	return sql_run_as_owner(&statement, values, NULL, SPI_OK_SELECT, GetLatestSnapshot()) > 0;
}

/* How to have somebody send what is queued; NULL if there is somebody. */
static const char *
dispatch_hint(void)
{
	const char *table;

	switch (launcher_problem(&table))
	{
		case DISPATCH_NO_PROBLEM:
			break;
		case DISPATCH_NOT_PRELOADED:
			return _("Calls work, but nothing sends queued flows: add feishu_flow to shared_preload_libraries and restart the server.");
		case DISPATCH_OFF:
			return _("Calls work, but nothing sends queued flows: feishu_flow.dispatch is off. Set it to on in postgresql.conf and reload.");
		case DISPATCH_LIBRARY_OLD:
		case DISPATCH_LIBRARY_TAKEN:
			/* no call works, and its error says why */
			break;
		case DISPATCH_CLOSED:
			return _("Calls work, but nothing sends queued flows: the database is a template, or allows no connections. ALTER DATABASE changes that.");
		case DISPATCH_NO_WORKER:
			return psprintf(_("Calls work, but nothing sends queued flows: there is no background worker for that. Increase max_worker_processes, currently %d, and restart the server. The server log says if there is another reason."),
							max_worker_processes);
		case DISPATCH_FAILS:
			return _("Calls work, but nothing sends queued flows: the dispatcher fails. The server log says why.");
		case DISPATCH_NO_HANDLERS:
			return psprintf(_("Calls work and queued flows are sent, but handlers wait: there is no background worker for them. Increase max_worker_processes, currently %d, and restart the server."),
							max_worker_processes);
		case DISPATCH_LOCKED_OUT:
			return psprintf(_("Calls work, but nothing sends queued flows: %s."), launcher_problem_text(true));
		case DISPATCH_TABLE_GONE:
		case DISPATCH_TABLE_ROW_SECURITY:
		case DISPATCH_TABLE_NOT_HEAP:
		case DISPATCH_TABLE_UNLOGGED:
		case DISPATCH_TABLE_DISTRIBUTED:
		case DISPATCH_TABLE_TRIGGER:
		case DISPATCH_TABLE_RULE:
			return psprintf(_("Calls work, but queued flows may not be sent, or may be lost: %s. Undo this change: the extension's tables do not support it."),
							launcher_problem_text(true));
	}
	return NULL;
}

/* Is there somebody to send what is queued, and may he? */
static void
check_dispatch(CheckReport *report, const FlowServer *server)
{
	const char *problem = dispatch_hint();
	LimiterStatus status = {0};

	if (problem != NULL)
		add_sentence(&report->hint, problem);
	else if (is_paused(server->name))
		add_sentence(&report->hint,
					 _("Calls work, but queued flows wait: the server was paused, and its owner ends that with feishu.resume_server."));
	else if (limiter_status(&server->app_key, server->userid, &status) && status.pause != LIMITER_RUNNING)
		add_sentence(&report->hint,
					 psprintf(_("Queued flows wait until %s: %s. The server's owner ends that with feishu.resume_server."),
							  timestamptz_to_str(status.resume_at),
							  _(limiter_pause_text(status.pause))));
}

/* All of it, with the server looked up for the current role. */
static void
check_all(CheckReport *report, const CallScope *scope, const char *server_name,
		  char *namespace_name)
{
	FlowServer *server = server_lookup(server_name, GetUserId());
	bool		is_fixed = server->protocol == TOKEN_FIXED;
	FlowLimits	limits = execute_limits(server, -1);
	FlowRequest request = {0};
	const FlowOutcome *outcome;

	if (namespace_name != NULL)
	{
		request.namespace_name = namespace_name;
		request.flow_id = pstrdup(NO_SUCH_FLOW);
		request.operator_id =
			request_default_operator(server->operator_json ? server->operator_json : NOBODY);
		request_check(&request);
	}

	if (server->is_sandbox)
	{
		add_sentence(&report->message,
					 _("The server is a sandbox: calls and queued flows are answered by the extension itself, and nothing is sent to the platform."));
		check_dispatch(report, server);
		return;
	}

	outcome = flow_call_outcome(execute_call(scope, server, NULL, &limits, NULL));
	report->latency_us = outcome->duration_us;
	if (outcome->sqlstate != 0)
	{
		report->has_token_ok = true;
		report_refusal(report, outcome);
		return;
	}

	/* that a fixed token is good is known when it was good for something */
	report->token_ok = report->has_token_ok = report->has_code = !is_fixed ||
		(outcome->check->scopes != NULL && outcome->check->scopes->sqlstate == 0);
	report->http_status = outcome->http_status;
	if (!is_fixed)
		add_sentence(&report->message, _("An access token was obtained."));
	else if (report->token_ok)
		add_sentence(&report->message,
					 _("The platform accepts the user mapping's tenant_access_token."));
	else
		add_sentence(&report->message,
					 _("The platform answers. The user mapping's tenant_access_token is used as it is; only a call can tell whether the platform accepts it."));

	if (check_permissions(report, outcome) && namespace_name != NULL)
		check_namespace(report, scope, server, &request);
	check_clock(report, outcome->check);
	check_dispatch(report, server);
}

/* What check_server is given, and what it gives. */
typedef struct CheckServer
{
	FunctionCallInfo fcinfo;
	TupleDesc	tupdesc;
	HeapTuple	tuple;
} CheckServer;

/* check_server, in its scope. */
static void
check_server(const CallScope *scope, void *arg)
{
	CheckServer *check = arg;
	FunctionCallInfo fcinfo = check->fcinfo;
	CheckReport report = {0};
	Interval   *latency;
	Datum		values[6] = {0};
	bool		nulls[6] = {false};

	initStringInfo(&report.message);
	initStringInfo(&report.hint);
	check_all(&report, scope,
			  PG_ARGISNULL(0) ? NULL : NameStr(*PG_GETARG_NAME(0)),
			  PG_NARGS() < 2 || PG_ARGISNULL(1) ? NULL :
			  text_to_cstring(PG_GETARG_TEXT_PP(1)));

	latency = palloc0(sizeof(Interval));
	latency->time = report.latency_us;
	values[0] = BoolGetDatum(report.token_ok);
	nulls[0] = !report.has_token_ok;
	values[1] = Int32GetDatum(report.http_status);
	nulls[1] = report.http_status == 0;
	values[2] = Int64GetDatum(report.code);
	nulls[2] = !report.has_code;
	values[3] = IntervalPGetDatum(latency);
	values[4] = CStringGetTextDatum(report.message.data);
	values[5] = CStringGetTextDatum(report.hint.data);
	nulls[5] = report.hint.len == 0;

	MemoryContextSwitchTo(scope->caller);
	check->tuple = heap_form_tuple(check->tupdesc, values, nulls);
}

/*
 * check_server(server [, namespace]): one row (token_ok, http_status, code,
 * latency, message, hint).  Hint is NULL when nothing is wrong.
 */
Datum
feishu_check_server(PG_FUNCTION_ARGS)
{
	CheckServer check = {.fcinfo = fcinfo};

	if (get_call_result_type(fcinfo, NULL, &check.tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	check.tupdesc = BlessTupleDesc(check.tupdesc);
	call_scope_run(check_server, &check);
	PG_RETURN_DATUM(HeapTupleGetDatum(check.tuple));
}
