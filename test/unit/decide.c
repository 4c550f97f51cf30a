/*-------------------------------------------------------------------------
 *
 * decide.c
 *	  Tests of src/dispatcher/decide.c: what becomes of a flow, by what is known of it
 *	  and what came of its call.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/decide.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "dispatcher/decide.h"

#define NOW		EPOCH
#define LATER	(NOW + SECONDS(3600))

#define QUEUED		OUTBOX_QUEUED
#define SUCCEEDED	OUTBOX_SUCCEEDED
#define FAILED		OUTBOX_FAILED
#define UNCONFIRMED	OUTBOX_UNCONFIRMED
#define CANCELLED	OUTBOX_CANCELLED

/* The delays of attempts are 1, 2, 4, 8 and 10 seconds. */
static const DecideBy by = {NOW, 1000, 10000, 1.0, 0};

/* What is expected of an end besides its state. */
typedef struct Expected
{
	OutboxState state;
	EndReason	reason;
	int			attempts;
	bool		unanswered;
	bool		silent;
	int64		after;			/* it is tried again after this; 0: at once, or not */
	int64		hold;			/* and its lane waits for this */
} Expected;

static const char *
about(const char *name, const char *what)
{
	static char text[200];

	snprintf(text, sizeof(text), "%s: %s", name, what);
	return text;
}

static void
check(const char *name, const FlightEnd *end, const Expected *expected)
{
	is(end->state, expected->state, about(name, "the state"));
	is(end->reason, expected->reason, about(name, "the reason"));
	is(end->attempts, expected->attempts, about(name, "the attempts"));
	is(end->unanswered, expected->unanswered, about(name, "whether one got no answer"));
	is(end->silent, expected->silent, about(name, "whether it is as if not tried"));
	is(end->next_at ? end->next_at - NOW : 0, expected->after, about(name, "when it is tried again"));
	is(end->hold_until ? end->hold_until - NOW : 0, expected->hold, about(name, "how long its lane waits"));
}

static void
test_outcomes(void)
{
	static const struct
	{
		const char *name;
		FlightFacts facts;		/* attempts, most, expires, own key, unanswered */
		FlowAction	action;
		int			sqlstate;
		HttpTrouble trouble;
		bool		sent;
		Expected	expected;
	}			cases[] = {
		{"success", {0, 5, LATER}, FLOW_SUCCEEDED, 0, HTTP_TROUBLE_NONE, true,
		{SUCCEEDED, END_BY_OUTCOME, 1}},
		{"success of a repeat", {2, 5, LATER, true, true}, FLOW_SUCCEEDED, 0, HTTP_TROUBLE_NONE, true,
		{SUCCEEDED, END_BY_OUTCOME, 3, true}},
		{"success at the last moment", {0, 1, NOW}, FLOW_SUCCEEDED, 0, HTTP_TROUBLE_NONE, true,
		{SUCCEEDED, END_BY_OUTCOME, 1}},

		{"a used key, the user's", {0, 5, LATER}, FLOW_KEY_USED, ERRCODE_FEISHU_KEY_USED, HTTP_TROUBLE_NONE, true,
		{FAILED, END_BY_OUTCOME, 1}},
		{"a used key, the user's, after silence", {1, 5, LATER, false, true}, FLOW_KEY_USED, ERRCODE_FEISHU_KEY_USED,
		HTTP_TROUBLE_NONE, true, {UNCONFIRMED, END_BY_OUTCOME, 2, true}},
		{"a used key of our own", {0, 5, LATER, true}, FLOW_KEY_USED, ERRCODE_FEISHU_KEY_USED, HTTP_TROUBLE_NONE, true,
		{UNCONFIRMED, END_BY_OUTCOME, 1}},

		{"refused", {0, 5, LATER, true}, FLOW_FAIL, ERRCODE_FEISHU_REFUSED, HTTP_TROUBLE_NONE, true,
		{FAILED, END_BY_OUTCOME, 1}},
		{"refused after silence", {1, 5, LATER, true, true}, FLOW_FAIL, ERRCODE_FEISHU_REFUSED, HTTP_TROUBLE_NONE, true,
		{UNCONFIRMED, END_BY_OUTCOME, 2, true}},
		{"not found after silence", {1, 5, LATER, true, true}, FLOW_FAIL, ERRCODE_FEISHU_NOT_FOUND, HTTP_TROUBLE_NONE,
		true, {FAILED, END_BY_OUTCOME, 2, true}},

		{"silence", {0, 5, LATER, true}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT, HTTP_TROUBLE_RESET, true,
		{QUEUED, END_BY_OUTCOME, 1, true, false, SECONDS(1)}},
		{"silence for the third time", {2, 5, LATER, true, true}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		HTTP_TROUBLE_RESET, true, {QUEUED, END_BY_OUTCOME, 3, true, false, SECONDS(4)}},
		{"silence for the fifth time", {4, 9, LATER, true, true}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		HTTP_TROUBLE_RESET, true, {QUEUED, END_BY_OUTCOME, 5, true, false, SECONDS(10)}},
		{"silence for the 2^31th time", {PG_INT32_MAX - 1, PG_INT32_MAX, LATER}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		HTTP_TROUBLE_RESET, true, {FAILED, END_OF_ATTEMPTS, PG_INT32_MAX, true}},
		{"no connection", {0, 5, LATER, true}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION, HTTP_TROUBLE_CONNECT, false,
		{QUEUED, END_BY_OUTCOME, 1, false, false, SECONDS(1)}},
		{"no connection after silence", {1, 5, LATER, true, true}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION,
		HTTP_TROUBLE_CONNECT, false, {QUEUED, END_BY_OUTCOME, 2, true, false, SECONDS(2)}},
		{"silence at the last attempt", {4, 5, LATER}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT, HTTP_TROUBLE_RESET, true,
		{FAILED, END_OF_ATTEMPTS, 5, true}},
		{"silence when it expires before the next", {0, 5, NOW + SECONDS(1)}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		HTTP_TROUBLE_RESET, true, {FAILED, END_OF_TIME, 1, true}},
		{"silence when it expires just after", {0, 5, NOW + SECONDS(1) + 1}, FLOW_RETRY, ERRCODE_FEISHU_TIMEOUT,
		HTTP_TROUBLE_RESET, true, {QUEUED, END_BY_OUTCOME, 1, true, false, SECONDS(1)}},

		{"the peer did not look at it", {0, 5, LATER}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION, HTTP_TROUBLE_REFUSED,
		true, {QUEUED, END_BY_OUTCOME, 0, false, false, SECONDS(8)}},
		{"... after more attempts", {5, 9, LATER}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION, HTTP_TROUBLE_REFUSED, true,
		{QUEUED, END_BY_OUTCOME, 5, false, false, SECONDS(10)}},

		{"a rate limit", {1, 2, LATER}, FLOW_WAIT, ERRCODE_FEISHU_RATE_LIMIT, HTTP_TROUBLE_NONE, true,
		{QUEUED, END_BY_OUTCOME, 1, false, true}},
		{"credentials", {0, 1, LATER}, FLOW_STOP_APP, ERRCODE_FEISHU_CREDENTIALS, HTTP_TROUBLE_NONE, false,
		{QUEUED, END_BY_OUTCOME, 0, false, true}},
		{"a token", {0, 1, LATER}, FLOW_REFRESH_TOKEN, ERRCODE_FEISHU_CREDENTIALS, HTTP_TROUBLE_NONE, true,
		{QUEUED, END_BY_OUTCOME, 0, false, true}},

		{"short of something here", {1, 2, LATER}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION, HTTP_TROUBLE_LOCAL, false,
		{QUEUED, END_BY_OUTCOME, 1, false, true, 0, SECONDS(1)}},
		{"... when it was sent", {0, 5, LATER}, FLOW_RETRY, ERRCODE_FEISHU_NO_CONNECTION, HTTP_TROUBLE_LOCAL, true,
		{QUEUED, END_BY_OUTCOME, 1, true, false, SECONDS(1)}}
	};

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		FlowOutcome outcome = {
			.action = cases[i].action, .sqlstate = cases[i].sqlstate,
			.trouble = cases[i].trouble, .request_sent = cases[i].sent
		};
		FlowResponse response = {0};
		FlightEnd	end;

		outcome.response = &response;
		outcome.log_id = "log";
		end = decide_outcome(&cases[i].facts, &outcome, &by);
		check(cases[i].name, &end, &cases[i].expected);
		is(end.sqlstate, cases[i].sqlstate, about(cases[i].name, "the SQLSTATE"));
		is(end.response == &response && end.log_id == outcome.log_id, 1, about(cases[i].name, "the answer"));
	}
}

static void
test_unsent(void)
{
	static const struct
	{
		const char *name;
		FlightFacts facts;		/* ..., unanswered, ours, too large */
		bool		ends;
		int			sqlstate;
		Expected	expected;
	}			cases[] = {
		{"one to be sent", {4, 5, NOW + 1, true, false, true}},
		{"a copied row", {0, 5, NOW, true, false, false, true}, true, 0, {CANCELLED, END_COPIED}},
		{"one that has expired", {5, 5, NOW, true, true, true, true}, true, ERRCODE_FEISHU_TIMEOUT,
		{FAILED, END_EXPIRED, 5, true}},
		{"one whose attempts were made", {5, 5, LATER, true, false, true, true}, true, ERRCODE_FEISHU_TIMEOUT,
		{FAILED, END_EXHAUSTED, 5}},
		{"... one without an answer", {6, 5, LATER, true, true, true}, true, ERRCODE_FEISHU_TIMEOUT,
		{UNCONFIRMED, END_EXHAUSTED, 6, true}},
		{"one that is too large", {0, 5, LATER, true, false, true, true}, true, ERRCODE_INVALID_PARAMETER_VALUE,
		{FAILED, END_TOO_LARGE}}
	};

	for (int i = 0; i < (int) lengthof(cases); i++)
	{
		FlightEnd	end;

		is(decide_unsent(&cases[i].facts, NOW, &end), cases[i].ends, about(cases[i].name, "whether it ends unsent"));
		if (!cases[i].ends)
			continue;
		check(cases[i].name, &end, &cases[i].expected);
		is(end.sqlstate, cases[i].sqlstate, about(cases[i].name, "the SQLSTATE"));
	}
}

static void
test_errors(void)
{
	const FlightFacts facts = {1, 5, LATER, true, true, true};
	const Expected lasting = {FAILED, END_BY_ERROR, 1, true};
	const Expected untried = {QUEUED, END_UNTRIED, 1, true, true};
	FlightEnd	end;

	end = decide_error(&facts, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, &by);
	check("what cannot be written", &end, &lasting);
	end = decide_error(&facts, ERRCODE_DATA_CORRUPTED, &by);
	check("what is damaged", &end, &lasting);
	end = decide_error(&facts, ERRCODE_STATEMENT_TOO_COMPLEX, &by);
	check("what goes beyond a limit", &end, &lasting);
	is(end.postponed, false, "what is for good does not make the lane wait");

	for (int before = 0; before < 6; before++)
	{
		const int64 seconds[] = {1, 2, 4, 8, 8, 8};
		DecideBy	again = by;
		Expected	postponed = {QUEUED, END_BY_ERROR, 1, true, false, SECONDS(seconds[before])};

		again.postponed = before;
		end = decide_error(&facts, ERRCODE_OUT_OF_MEMORY, &again);
		check("no memory", &end, &postponed);
		is(end.postponed, true, "... which is of the moment");
	}
	end = decide_untried(&facts);
	check("one that was given back", &end, &untried);
}

static void
test_jitter(void)
{
	const FlightFacts facts = {0, 5, LATER};
	const FlowOutcome outcome = {.action = FLOW_RETRY, .sqlstate = ERRCODE_FEISHU_TIMEOUT};
	DecideBy	random = by;

	random.jitter = 0.25;
	is(decide_outcome(&facts, &outcome, &random).next_at - NOW, MS(250), "a part of the delay is by chance");
	random.jitter = 0;
	is(decide_outcome(&facts, &outcome, &random).next_at - NOW, MS(1), "... but it is never nothing");
}

int
main(void)
{
	test_outcomes();
	test_unsent();
	test_errors();
	test_jitter();
	return 0;
}
