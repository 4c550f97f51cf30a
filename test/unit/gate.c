/*-------------------------------------------------------------------------
 *
 * gate.c
 *	  Tests of src/gate.c: turns, pauses, and what reports make of them.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/gate.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "app/gate.h"
#include "base/guc.h"

#define NOW		EPOCH
#define PART	MS(50)			/* of a second's window, see rate.c */

extern int	MyProcPid;

static AppGate gate;
static FlowServer server;

/* What gate_admit said last. */
static TimestampTz retry_at;
static LimiterPause why;
static bool unkept;

static void
begin(void)
{
	memset(&gate, 0, sizeof(gate));
	memset(&server, 0, sizeof(server));
	server.max_concurrency = -1;
	server.userid = 1;
}

/* Does a call go, at some time? */
static int
goes_at(LimiterPlace *place, bool dispatching, bool keeps, TimestampTz now)
{
	retry_at = 0;
	why = LIMITER_RUNNING;
	unkept = false;
	return gate_admit(&gate, &server, dispatching, keeps, place, now, &retry_at, &why, &unkept) == LIMITER_GO;
}

static int
goes(LimiterPlace *place, TimestampTz now)
{
	return goes_at(place, false, false, now);
}

static int
is_sent(LimiterPlace *place, TimestampTz now)
{
	return goes_at(place, true, false, now);
}

static void
wants(TimestampTz expected_at, LimiterPause expected_why, const char *name)
{
	is(retry_at == DT_NOEND ? -1 : retry_at - NOW, expected_at == DT_NOEND ? -1 : expected_at - NOW, name);
	is(why, expected_why, "... for the reason that it is");
}

/* A call ends with a report. */
static int
report_at(LimiterPlace *place, LimiterReport report, TimestampTz now)
{
	int			changes = gate_report(&gate, server.userid, place, report, -1, now, true);

	(void) gate_give_back(&gate, place);
	memset(place, 0, sizeof(*place));
	return changes;
}

static int
report(LimiterReport what)
{
	LimiterPlace place = {0};

	return report_at(&place, what, NOW);
}

static void
test_concurrency(void)
{
	LimiterPlace first = {0};
	LimiterPlace second = {0};
	LimiterPlace third = {0};
	LimiterPlace late = {0};

	begin();
	is(goes(&first, NOW), 1, "without limits a call goes");
	is(first.taken && !first.has_turn && gate.in_flight == 1, 1, "... in a place");
	is(gate_give_back(&gate, &first), 0, "... whose end nobody waits for");
	is(gate.in_flight + first.taken, 0, "... which is then free");
	is(gate_give_back(&gate, &first), 0, "... once");
	is(gate.in_flight, 0, "... and not twice");

	server.max_concurrency = 0;
	is(goes(&first, NOW), 0, "max_concurrency 0 lets none go");
	(void) gate_give_back(&gate, &first);
	is(gate_turns(&gate), 0, "... and a turn that is given up is over");
	server.max_concurrency = 2;
	is(goes(&first, NOW) + goes(&second, NOW), 2, "max_concurrency 2 lets two go");
	is(goes(&third, NOW), 0, "... and not three");
	wants(DT_NOEND, LIMITER_MAX_CONCURRENCY, "... which waits until one has ended");
	is(gate_turns(&gate), 1, "... by a turn");
	is(goes(&third, NOW), 0, "... as long as it takes");
	is(gate_turns(&gate), 1, "... the same");
	is(gate_give_back(&gate, &first), 1, "the end of one is waited for");
	is(goes(&late, NOW), 0, "a newcomer does not take the place");
	wants(NOW + MS(10), LIMITER_MAX_CONCURRENCY, "... but asks again soon");
	is(gate_turns(&gate), 2, "... in its turn");
	is(goes(&third, NOW), 1, "... who waited does");
	is(goes(&late, NOW), 0, "... then there is no more");
	wants(DT_NOEND, LIMITER_MAX_CONCURRENCY, "... until one has ended");
	(void) gate_give_back(&gate, &second);
	(void) gate_give_back(&gate, &third);
	is(goes(&first, NOW), 1, "there is room for who waits and for a newcomer: that goes");
	is(goes(&late, NOW), 1, "... and so does the other");
	is(gate_turns(&gate), 0, "... and nobody waits");

	begin();
	server.max_concurrency = 1;
	first = second = third = late = (LimiterPlace) {0};
	(void) goes(&first, NOW);
	(void) goes(&second, NOW);
	(void) goes(&third, NOW);
	(void) gate_give_back(&gate, &first);
	is(goes(&third, NOW), 1, "who asks first of those who wait goes");
	is(gate_give_back(&gate, &second), 0, "a turn is given up");
	is(gate_turns(&gate), 0, "... and counts no more");

	begin();
	(void) goes(&first, NOW);
	server.max_concurrency = -1;
	is(goes(&late, NOW), 1, "without a limit there is no turn");
	gate_forget_process(&gate, MyProcPid, 1, 0);
	is(gate.in_flight, 1, "a process that is gone gives its place back");
	gate.turns_drawn = 3;
	gate_forget_process(&gate, MyProcPid, 0, 2);
	is(gate_turns(&gate), 1, "... and its turns");
}

static void
test_rate_turns(void)
{
	LimiterPlace place = {0};
	LimiterPlace waiting[3] = {{0}};
	LimiterPlace late = {0};
	LimiterPlace ended = {0};

	begin();
	server.max_rate = (FlowRate) {2, 1000};
	is(goes(&place, NOW), 1, "max_rate 2: a call goes");
	is(place.counted_at == NOW && place.counted_after == 0, 1, "... and is counted");
	is(gate.span, 21 * PART, "... for as long as it matters");
	ended = place;
	place = (LimiterPlace) {0};
	is(goes(&place, NOW), 1, "... and another");
	is(place.counted_after, NOW, "... behind it");
	is(goes(&waiting[0], NOW), 0, "a third waits");
	wants(NOW + 21 * PART, LIMITER_MAX_RATE, "... for the window's end");
	is(goes(&waiting[1], NOW), 0, "... and a fourth");
	wants(NOW + 21 * PART, LIMITER_MAX_RATE, "... likewise");
	is(goes(&waiting[2], NOW), 0, "... a fifth");
	wants(NOW + 42 * PART, LIMITER_MAX_RATE, "... for the one behind it");
	is(goes(&waiting[1], NOW), 0, "who asks again");
	wants(NOW + 21 * PART, LIMITER_MAX_RATE, "... has the same time");
	is(goes(&waiting[2], NOW), 0, "... each of them");
	wants(NOW + 42 * PART, LIMITER_MAX_RATE, "... their own");
	is(goes(&late, NOW + 21 * PART), 0, "at that time a newcomer does not go");
	is(goes(&waiting[2], NOW + 21 * PART), 1, "... but any of those who wait");

	is(gate_give_back(&gate, &place), 1, "a place that was counted and not used is given back");
	is(goes(&waiting[0], NOW + 21 * PART), 1, "... another takes what is left of the window");
	is(goes(&waiting[1], NOW + 21 * PART), 0, "... and that is all");

	begin();
	server.max_rate = (FlowRate) {2, 1000};
	place = waiting[0] = ended = late = (LimiterPlace) {0};
	(void) goes(&place, NOW);
	(void) goes(&ended, NOW);
	is(goes(&waiting[0], NOW), 0, "the window is full");
	(void) gate_give_back(&gate, &ended);
	is(goes(&waiting[0], NOW), 1, "a place that was not used does not count");
	waiting[0].used = true;
	(void) gate_give_back(&gate, &waiting[0]);
	is(goes(&late, NOW), 0, "... one that was used does");
	(void) gate_give_back(&gate, &late);
	late = (LimiterPlace) {0};
	gate.rate_until = NOW + SECONDS(5);
	is(goes(&late, NOW), 0, "a pause of the platform that is longer than max_rate's");
	wants(NOW + SECONDS(5), LIMITER_RATE, "... is what is waited for");
	(void) gate_give_back(&gate, &late);
	gate.rate_until = NOW + MS(1);
	late = (LimiterPlace) {0};
	is(goes(&late, NOW), 0, "one that is shorter");
	wants(NOW + 21 * PART, LIMITER_MAX_RATE, "... is not");

	begin();
	server.max_rate = (FlowRate) {1, 1000};
	place = waiting[0] = waiting[1] = waiting[2] = (LimiterPlace) {0};
	(void) goes(&place, NOW);
	for (int i = 0; i < 3; i++)
		(void) goes(&waiting[i], NOW);
	(void) goes(&waiting[0], NOW);
	wants(NOW + 21 * PART, LIMITER_MAX_RATE, "the first of those who wait has the next window");
	(void) gate_give_back(&gate, &waiting[1]);
	(void) goes(&waiting[2], NOW);
	wants(NOW + 42 * PART, LIMITER_MAX_RATE, "... the third the one after it, if the second gives up");

	/* different rates of one app */
	begin();
	server.max_rate = (FlowRate) {100, 60000};
	place = late = (LimiterPlace) {0};
	(void) goes(&place, NOW);
	server.max_rate = (FlowRate) {100, 1000};
	(void) goes(&late, NOW + 1);
	is(gate.span, SECONDS(63), "what matters for the longer of two rates is known for as long");
	late = (LimiterPlace) {0};
	(void) goes(&late, NOW + SECONDS(200));
	is(gate.span, 21 * PART, "... until it matters no more");
}

static void
test_kept(void)
{
	LimiterPlace place = {0};
	LimiterPlace late = {0};

	begin();
	is(gate_must_keep(&gate, NOW), 0, "of a new app nothing is to be kept");
	server.max_rate = (FlowRate) {100, 60000};
	is(goes_at(&place, false, true, NOW), 0, "what is sent under a max_rate has to be written before");
	is(unkept, 1, "... which is said");
	wants(NOW + MS(10), LIMITER_MAX_RATE, "... somebody else may do it just now");
	is(gate.allowance_size, 10, "... for a tenth of the rate");
	is(gate.span, SECONDS(63), "... and as long as it matters");
	is(gate.history.windows[RATE_MINUTE].total, 0, "... nothing is counted yet");
	is(place.has_turn, 1, "... and it has its turn");
	gate.allowance = 2;
	gate.keep_epoch = 3;
	is(goes_at(&place, false, true, NOW), 1, "then it goes");
	is(gate.allowance, 1, "... out of what was written");
	is(unkept, 0, "... with nothing to be written");
	is(goes_at(&late, false, true, NOW), 1, "... and another");
	is(gate.allowance, 0, "... for all of it");
	is(gate_must_keep(&gate, NOW + SECONDS(63) - 1), 1, "what was sent is to be kept as long as it matters");
	is(gate_must_keep(&gate, NOW + SECONDS(63)), 0, "... no longer");
	(void) gate_give_back(&gate, &late);
	is(gate.allowance, 1, "one that was not used may go out instead");
	gate.keep_epoch++;
	(void) gate_give_back(&gate, &place);
	is(gate.allowance, 1, "... but not if it was written meanwhile");
	is(goes_at(&place, false, false, NOW), 1, "where nothing is kept it goes");
	is(gate.allowance, 0, "... likewise");
	place = (LimiterPlace) {0};
	is(goes_at(&place, false, false, NOW), 1, "... also without");
	is(gate.allowance, 0, "... which is not below none");
	gate.rate_until = NOW + SECONDS(1);
	late = (LimiterPlace) {0};
	is(goes_at(&late, false, true, NOW), 0, "nothing is written for a call");
	is(unkept, 0, "... that would have to wait all the same");

	begin();
	server.max_rate = (FlowRate) {100, 60000};
	server.max_concurrency = 0;
	late = (LimiterPlace) {0};
	(void) goes_at(&late, false, true, NOW);
	is(unkept, 0, "... nor for one without a place");
	begin();
	late = (LimiterPlace) {0};
	is(goes_at(&late, false, true, NOW), 1, "... nor without a max_rate");
	is(gate.history.last, 0, "... where nothing is counted");
	(void) gate_give_back(&gate, &late);
	is(gate.allowance, 0, "... nor given back");
}

static void
test_stops(void)
{
	LimiterPlace place = {0};
	LimiterPlace other = {0};
	LimiterStatus status = {0};

	begin();
	is(report(LIMITER_REPORT_CREDENTIALS), GATE_PAUSED, "refused credentials pause the app");
	is(report(LIMITER_REPORT_CREDENTIALS), 0, "... once");
	is(is_sent(&place, NOW + SECONDS(600) - 1), 0, "... queued flows wait");
	wants(NOW + SECONDS(600), LIMITER_CREDENTIALS, "... for ten minutes");
	is(goes(&other, NOW), 1, "... a synchronous call goes");
	gate_status(&gate, 1, NOW, &status);
	is(status.pause == LIMITER_CREDENTIALS && status.resume_at == NOW + SECONDS(600), 1, "... which is told");
	is(is_sent(&place, NOW + SECONDS(600)), 1, "then one is tried");
	is(place.is_trial, 1, "... as a trial");
	(void) gate_give_back(&gate, &other);
	other = (LimiterPlace) {0};
	is(is_sent(&other, NOW + SECONDS(600)), 0, "... one alone");
	wants(NOW + SECONDS(1200), LIMITER_CREDENTIALS, "... each ten minutes");
	is(report_at(&place, LIMITER_REPORT_NOTHING, NOW + SECONDS(601)), 0, "a trial that was none");
	is(is_sent(&other, NOW + SECONDS(601)), 1, "... has another try at once");
	is(report_at(&other, LIMITER_REPORT_REFUSED, NOW + SECONDS(601)), 0, "a trial whose token was refused");
	is(is_sent(&other, NOW + SECONDS(601)), 1, "... tries again at once");
	is(report_at(&other, LIMITER_REPORT_CREDENTIALS, NOW + SECONDS(602)), 0, "one in vain");
	is(is_sent(&other, NOW + SECONDS(1202) - 1), 0, "... has others wait from its end on");
	is(is_sent(&other, NOW + SECONDS(1202)), 1, "... for ten minutes");
	is(report_at(&other, LIMITER_REPORT_ANSWERED, NOW), GATE_RESUMED, "an answer ends the pause");
	is(is_sent(&other, NOW), 1, "... for all");
	is(other.is_trial, 0, "... which are no trials");

	begin();
	place = other = (LimiterPlace) {0};
	(void) is_sent(&place, NOW);
	(void) is_sent(&other, NOW);
	is(report_at(&place, LIMITER_REPORT_QUOTA, NOW), GATE_PAUSED, "a quota that is used up pauses the app");
	is(report_at(&other, LIMITER_REPORT_ANSWERED, NOW), 0, "... an answer to what was sent before does not end that");
	gate_status(&gate, 1, NOW, &status);
	is(status.pause == LIMITER_QUOTA && status.resume_at == NOW + SECONDS(3600), 1, "... which is told");
	is(is_sent(&place, NOW + SECONDS(3600) - 1), 0, "... queued flows wait");
	wants(NOW + SECONDS(3600), LIMITER_QUOTA, "... for an hour");
	is(goes(&place, NOW + SECONDS(1) - 1), 0, "... and synchronous calls");
	wants(NOW + SECONDS(1), LIMITER_QUOTA, "... for a second");
	is(goes(&place, NOW + SECONDS(1)), 1, "... then one tries");
	is(goes(&other, NOW + SECONDS(1)), 0, "... alone");
	is(report(LIMITER_REPORT_TOKEN), 0, "a token that was granted does not end that");
	is(report_at(&place, LIMITER_REPORT_ANSWERED, NOW), GATE_RESUMED, "... an answer does");

	(void) is_sent(&place, NOW);
	(void) report(LIMITER_REPORT_CREDENTIALS);
	(void) report(LIMITER_REPORT_ANSWERED);
	is(report_at(&place, LIMITER_REPORT_QUOTA, NOW), 0,
	   "a refusal of what was sent before an answer does not pause it anew");
	is(report(LIMITER_REPORT_CREDENTIALS), GATE_PAUSED, "... one of now does");
	is(report(LIMITER_REPORT_QUOTA), GATE_PAUSED, "... another reason is told");
	is(report(LIMITER_REPORT_CREDENTIALS), GATE_PAUSED, "... each");
	is(report(LIMITER_REPORT_TOKEN), GATE_RESUMED, "a token that was granted ends a pause for credentials");
	is(report(LIMITER_REPORT_TOKEN), 0, "... once");
	(void) report(LIMITER_REPORT_CREDENTIALS);
	is(report(LIMITER_REPORT_REACHED), GATE_RESUMED, "... and so does base_url that answers");
	is(report(LIMITER_REPORT_TROUBLE) | report(LIMITER_REPORT_REFUSED), 0, "trouble is no pause");
	(void) report(LIMITER_REPORT_CREDENTIALS);
	is(report(LIMITER_REPORT_REFUSED) | report(LIMITER_REPORT_NOTHING), 0,
	   "what is no answer to a flow does not end one");
	is(report(LIMITER_REPORT_TROUBLE), 0, "... nor does trouble");

	/* a trial under way when the pause is ended, and begins anew */
	begin();
	place = other = (LimiterPlace) {0};
	(void) report(LIMITER_REPORT_CREDENTIALS);
	(void) is_sent(&place, NOW + SECONDS(600));
	(void) gate_resume(&gate);
	(void) report(LIMITER_REPORT_CREDENTIALS);
	(void) report_at(&place, LIMITER_REPORT_NOTHING, NOW);
	is(is_sent(&other, NOW), 0, "a trial of an earlier pause says nothing of a later one");
	other = (LimiterPlace) {0};
	(void) goes(&other, NOW);
	(void) report_at(&other, LIMITER_REPORT_NOTHING, NOW);
	is(is_sent(&other, NOW), 0, "... nor does a call that is no trial");

	/* who is held back gives its turn up, and is no trial any more */
	begin();
	server.max_concurrency = 1;
	place = other = (LimiterPlace) {0};
	(void) is_sent(&place, NOW);
	(void) is_sent(&other, NOW);
	is(gate_turns(&gate), 1, "one waits for a place");
	(void) report(LIMITER_REPORT_CREDENTIALS);
	is(is_sent(&other, NOW), 0, "the app is paused");
	is(gate_turns(&gate), 0, "... nobody waits for its turn meanwhile");
	is(is_sent(&other, NOW + SECONDS(600)), 0, "a trial for which there is no place");
	is(other.is_trial, 0, "... is none");
	(void) gate_give_back(&gate, &other);
	(void) gate_give_back(&gate, &place);
	is(is_sent(&other, NOW + SECONDS(600)), 1, "... and can be made when there is one");
}

static void
test_breakers(void)
{
	LimiterPlace place = {0};
	LimiterPlace other = {0};
	LimiterStatus status = {0};

	begin();
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_TROUBLE, -1, NOW, false), 0, "a process of its own has no breaker");
	for (int i = 0; i < 4; i++)
		is(report(LIMITER_REPORT_TROUBLE), 0, "trouble");
	is(gate_is_live(&gate, NOW), 0, "... nothing would be lost with it");
	is(report(LIMITER_REPORT_TROUBLE), BREAKER_ROLE_OPENED, "... five times in a row");
	is(gate_is_open(&gate), 0, "... not all may go");
	is(gate_is_live(&gate, NOW), 1, "... which would be lost");
	is(is_sent(&place, NOW), 0, "... queued flows wait");
	wants(NOW + SECONDS(1), LIMITER_ROLE_BREAKER, "... for a probe");
	is(goes(&other, NOW), 1, "... a synchronous call goes");
	is(gate_give_back(&gate, &other), 0, "... and its end is nobody's");
	gate_status(&gate, 1, NOW, &status);
	is(status.pause == LIMITER_ROLE_BREAKER && status.resume_at == NOW + SECONDS(1), 1, "... which is told");
	gate_status(&gate, 1, NOW + SECONDS(5), &status);
	is(status.resume_at, NOW + SECONDS(5), "... and never of a time that is over");
	status = (LimiterStatus) {0};
	gate_status(&gate, 2, NOW, &status);
	is(status.pause, LIMITER_RUNNING, "... but to other roles");
	is(is_sent(&place, NOW + SECONDS(1)), 1, "then one is sent");
	is(place.probe, LIMITER_PROBE_FOR_ROLE, "... as a probe");
	is(is_sent(&other, NOW + SECONDS(9)), 0, "... alone");
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_NOTHING, -1, NOW, true), 0, "... it ends without a word");
	is(gate_give_back(&gate, &place), 1, "... its end is waited for");
	is(is_sent(&other, NOW + SECONDS(1)), 1, "... and another goes");
	is(report_at(&other, LIMITER_REPORT_ANSWERED, NOW), BREAKER_ROLE_CLOSED, "an answer closes the breaker");
	is(gate_is_open(&gate), 1, "... so that all may go");

	/* what went out before does not count */
	place = (LimiterPlace) {0};
	(void) is_sent(&place, NOW);
	for (int i = 0; i < 5; i++)
		(void) report(LIMITER_REPORT_TROUBLE);
	(void) report(LIMITER_REPORT_ANSWERED);
	for (int i = 0; i < 5; i++)
		(void) gate_report(&gate, 1, &place, LIMITER_REPORT_TROUBLE, -1, NOW, true);
	is(gate_is_open(&gate), 1, "trouble of what went out before an answer opens no breaker");

	for (int i = LIMITER_REPORT_ANSWERED; i <= LIMITER_REPORT_QUOTA; i++)
	{
		begin();
		for (int n = 0; n < 4; n++)
			(void) report(LIMITER_REPORT_TROUBLE);
		(void) report((LimiterReport) i);
		(void) gate_resume(&gate);
		begin();
		for (int n = 0; n < 5; n++)
			(void) report(LIMITER_REPORT_TROUBLE);
		is((report((LimiterReport) i) & BREAKER_ROLE_CLOSED) != 0,
		   i != LIMITER_REPORT_TOKEN && i != LIMITER_REPORT_TROUBLE,
		   "what base_url answers closes a breaker, and nothing else does");
	}
	for (int i = LIMITER_REPORT_ANSWERED; i <= LIMITER_REPORT_QUOTA; i++)
	{
		begin();
		for (int n = 0; n < 5; n++)
			(void) report(LIMITER_REPORT_TROUBLE);
		server.userid = 2;
		is((report((LimiterReport) i) & (BREAKER_ROLE_CLOSED | BREAKER_CLOSED)) != 0, i == LIMITER_REPORT_REACHED,
		   "... of another role none but that of who checks");
	}
	begin();
	for (int n = 0; n < 5; n++)
		(void) report(LIMITER_REPORT_TROUBLE);
	(void) report(LIMITER_REPORT_CREDENTIALS);
	for (int n = 0; n < 5; n++)
		(void) report(LIMITER_REPORT_TROUBLE);
	is(report(LIMITER_REPORT_ANSWERED), BREAKER_ROLE_CLOSED | GATE_RESUMED,
	   "an answer may end both a pause and a breaker");
	(void) report(LIMITER_REPORT_CREDENTIALS);
	for (int n = 0; n < 5; n++)
		(void) report(LIMITER_REPORT_TROUBLE);
	is(report(LIMITER_REPORT_REACHED), BREAKER_ROLE_CLOSED | BREAKER_CLOSED | GATE_RESUMED,
	   "... and so may one to who checks");
	begin();
	for (int n = 0; n < 5; n++)
		(void) report(LIMITER_REPORT_TROUBLE);
	server.userid = 2;
	is(report(LIMITER_REPORT_REACHED), BREAKER_ROLE_CLOSED | BREAKER_CLOSED,
	   "base_url that answers who checks closes all");

	/* of several roles */
	begin();
	for (int n = 0; n < 5; n++)
	{
		server.userid = 1 + n % 2;
		(void) report(LIMITER_REPORT_TROUBLE);
	}
	place = (LimiterPlace) {0};
	is(is_sent(&place, NOW), 0, "the breaker is open for all");
	wants(NOW + SECONDS(1), LIMITER_BREAKER, "... to each role");
	status = (LimiterStatus) {0};
	gate_status(&gate, 3, NOW, &status);
	is(status.pause, LIMITER_BREAKER, "... which is told");
	gate_forget_process(&gate, MyProcPid, 0, 0);
	is(is_sent(&place, NOW + SECONDS(1)), 1, "... one probes for all");
	gate_forget_process(&gate, MyProcPid, 1, 0);
	other = (LimiterPlace) {0};
	is(is_sent(&other, NOW + SECONDS(1)), 1, "... whose process is gone: another does");
}

/* The pause that a 429 makes. */
static int64
pause_of(double seconds)
{
	LimiterPlace place = {0};

	begin();
	(void) gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, seconds, NOW, true);
	return gate.rate_until - NOW;
}

static void
test_rate_pause(void)
{
	LimiterPlace place = {0};
	LimiterStatus status = {0};

	is(pause_of(-1), SECONDS(1), "a 429 that does not say for how long: a second");
	is(pause_of(2.5), SECONDS(2.5), "... else as long as it says");
	is(pause_of(0), MS(50), "... 50 ms at least");
	is(pause_of(86400), SECONDS(300), "... five minutes at most");

	(void) pause_of(10);
	is(gate_is_open(&gate), 0, "a pause of the platform");
	is(goes(&place, NOW + SECONDS(10) - 1), 0, "... holds calls back");
	wants(NOW + SECONDS(10), LIMITER_RATE, "... until then");
	is(gate_turns(&gate), 0, "... without a turn");
	gate_status(&gate, 1, NOW, &status);
	is(status.pause == LIMITER_RATE && status.resume_at == NOW + SECONDS(10), 1, "... which is told");
	is(gate_must_keep(&gate, NOW + SECONDS(10) - 1), 1, "... and to be kept");
	is(gate_must_keep(&gate, NOW + SECONDS(10)), 0, "... no longer");
	(void) gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 1, NOW, true);
	is(gate.rate_until, NOW + SECONDS(10), "one that is shorter does not shorten it");
	(void) gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 20, NOW, true);
	is(gate.rate_until, NOW + SECONDS(20), "... but one that is longer does");
	is(goes(&place, NOW + SECONDS(20)), 1, "then calls go");
	is(gate_is_open(&gate), 1, "... all");

	begin();
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 1, NOW, true), GATE_RATE, "the first is told");
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 1, NOW + SECONDS(60), true), 0,
	   "... and no other within a minute");
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 1, NOW + SECONDS(120) + 1, true), GATE_RATE,
	   "... but one later");
	is(gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 1, NOW, true), GATE_RATE,
	   "... and when the clock was set back");

	(void) pause_of(0.9);
	is(gate_pause_is_unkept(&gate, NOW), 0, "a short pause is not written");
	(void) pause_of(1);
	is(gate_pause_is_unkept(&gate, NOW), 0, "... of a second at most");
	(void) gate_report(&gate, 1, &place, LIMITER_REPORT_RATE, 10, NOW, true);
	is(gate_pause_is_unkept(&gate, NOW), 1, "a long one is");
	is(gate_pause_is_unkept(&gate, NOW), 0, "... once");
	gate.rate_until += SECONDS(1);
	is(gate_pause_is_unkept(&gate, NOW), 0, "... not for a second more");
	gate.rate_until += 1;
	is(gate_pause_is_unkept(&gate, NOW), 1, "... but for more than that");
	(void) gate_resume(&gate);
	is(gate_pause_is_unkept(&gate, NOW), 1, "... and for its end");
	is(gate_pause_is_unkept(&gate, NOW), 0, "... once");
	gate.rate_kept = NOW;
	is(gate_pause_is_unkept(&gate, NOW), 0, "... not of one that is over");
}

static void
test_the_rest(void)
{
	LimiterPlace place = {0};
	LimiterStatus status = {0};

	begin();
	is(gate_resume(&gate), 0, "of an app that runs there is nothing to resume");
	(void) report(LIMITER_REPORT_QUOTA);
	is(gate_is_live(&gate, NOW + SECONDS(3600) - 1), 1, "a pause would be lost");
	is(gate_is_live(&gate, NOW + SECONDS(3600)), 0, "... until a trial is due");
	is(gate_is_open(&gate), 0, "a paused app");
	is(gate_resume(&gate), 1, "... is resumed");
	is(gate_is_open(&gate), 1, "... at once");
	for (int i = 0; i < 5; i++)
		(void) report(LIMITER_REPORT_TROUBLE);
	is(gate_resume(&gate), 1, "... and so is one that did not answer");
	is(gate_is_open(&gate), 1, "... likewise");
	(void) pause_of(10);
	is(gate_resume(&gate), 0, "a pause of the platform ends without a word");
	is(gate_is_open(&gate), 1, "... likewise");

	/* what was under way says nothing then */
	(void) is_sent(&place, NOW);
	(void) report(LIMITER_REPORT_QUOTA);
	(void) gate_resume(&gate);
	is(report_at(&place, LIMITER_REPORT_QUOTA, NOW), 0, "a refusal of what was sent before does not pause it again");

	(void) is_sent(&place, NOW);
	(void) gate_resume(&gate);
	is(report_at(&place, LIMITER_REPORT_QUOTA, NOW), 0, "... also of an app that was not paused");

	/* the clock is set back */
	(void) pause_of(300);
	is(gate_is_live(&gate, NOW - 1), 0, "a pause of five minutes is not what it says when the clock is set back");
	(void) pause_of(300);
	gate_status(&gate, 1, NOW - 1, &status);
	is(status.pause, LIMITER_RUNNING, "... nor is it told");
	(void) pause_of(300);
	is(goes(&place, NOW), 0, "it holds calls back");
	is(goes(&place, NOW - 1), 1, "... is none when the clock is set back");
	begin();
	place = (LimiterPlace) {0};
	(void) report(LIMITER_REPORT_CREDENTIALS);
	is(is_sent(&place, NOW - SECONDS(1000)), 0, "refused credentials, and the clock is set back");
	is(retry_at, NOW - SECONDS(400), "... they are tried after ten minutes all the same");
	server.max_rate = (FlowRate) {0.01, 1000};
	begin();
	server.max_rate = (FlowRate) {0.01, 1000};
	(void) goes(&place, NOW);
	is(gate_must_keep(&gate, NOW - SECONDS(5000)), 1, "what was sent, and the clock is set back");
	place = (LimiterPlace) {0};
	is(goes(&place, NOW - SECONDS(5000)), 0, "... counts as of now");
	is(gate.history.last, NOW - SECONDS(5000), "... no later");
	begin();
	for (int i = 0; i < 5; i++)
		(void) report(LIMITER_REPORT_TROUBLE);
	place = (LimiterPlace) {0};
	is(is_sent(&place, NOW - SECONDS(1000)), 1, "a platform that does not answer is probed when the clock is set back");

	begin();
	server.max_concurrency = 1;
	place = (LimiterPlace) {0};
	(void) goes(&place, NOW);
	place = (LimiterPlace) {0};
	(void) goes(&place, NOW);
	gate_status(&gate, 1, NOW, &status);
	is(status.in_flight * 10 + status.waiting, 11, "calls under way and those that wait are counted");
	is(gate_is_idle(&gate), 0, "... so that the app is not idle");
	gate_forget_process(&gate, MyProcPid, 1, 0);
	is(gate_is_idle(&gate), 0, "... with one that waits, either");
	gate_forget_process(&gate, MyProcPid, 0, 1);
	is(gate_is_idle(&gate), 1, "... without both it is");
}

/* How many calls go at once. */
static int
go_at_once(void)
{
	LimiterPlace places[20] = {0};
	int			num = 0;

	while (num < (int) lengthof(places) && goes(&places[num], NOW))
		num++;
	return num;
}

static void
test_shares(void)
{
	feishu_guc_rate_share = 0.1;
	begin();
	server.max_concurrency = 70;
	is(go_at_once(), 7, "a tenth of max_concurrency 70 is seven");
	begin();
	server.max_concurrency = 79;
	is(go_at_once(), 7, "... of 79, too");
	begin();
	server.max_concurrency = 3;
	is(go_at_once(), 1, "... and of 3, one");
	begin();
	server.max_rate = (FlowRate) {70, 1000};
	is(go_at_once(), 7, "a tenth of max_rate 70 is a whole number, which goes at once");
	begin();
	server.max_rate = (FlowRate) {3, 1000};
	is(go_at_once(), 1, "a tenth of max_rate 3 is a rate all the same");
	is(retry_at, NOW + SECONDS(10) / 3, "... of one in so many seconds");
	begin();
	is(go_at_once(), 20, "a share of no limit is none");
	feishu_guc_rate_share = 1;
}

void
test_gate(void)
{
	test_shares();
	test_concurrency();
	test_rate_turns();
	test_kept();
	test_stops();
	test_breakers();
	test_rate_pause();
	test_the_rest();
}
