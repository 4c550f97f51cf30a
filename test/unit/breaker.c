/*-------------------------------------------------------------------------
 *
 * breaker.c
 *	  Tests of src/breaker.c: what holds dispatch to a platform that does not answer.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/breaker.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "app/breaker.h"

#define NOW		EPOCH

extern int	MyProcPid;
extern int	feishu_guc_retry_base_delay;
extern int	feishu_guc_retry_max_delay;

static Breakers breakers;

/* So many calls of a role, that go out now, get no answer; what that changed. */
static int
fail(Oid roleid, int calls)
{
	int			changes = 0;

	while (calls-- > 0)
		changes |= breakers_note_trouble(&breakers, roleid, LIMITER_NO_PROBE, breakers.epoch, NOW);
	return changes;
}

/* Which probe a role may send at some time; -1: it has to wait. */
static int
admit(Oid roleid, TimestampTz now, TimestampTz *retry_at)
{
	LimiterProbe probe = LIMITER_NO_PROBE;
	TimestampTz ignored;

	return breakers_admit(&breakers, roleid, now, &probe, retry_at ? retry_at : &ignored) ? (int) probe : -1;
}

/* For how long a role has to wait. */
static int64
held(Oid roleid)
{
	TimestampTz retry_at = NOW;

	return admit(roleid, NOW - SECONDS(1000), &retry_at) < 0 ? retry_at - NOW : 0;
}

/* A role's probe at some time gets no answer. */
static void
probe_in_vain(Oid roleid, LimiterProbe probe, TimestampTz now)
{
	uint64		epoch = breakers.epoch;

	breakers_begin_probe(&breakers, roleid, probe);
	breakers_end_probe(&breakers, roleid, probe, epoch);
	(void) breakers_note_trouble(&breakers, roleid, probe, epoch, now);
}

static void
begin(void)
{
	memset(&breakers, 0, sizeof(breakers));
	feishu_guc_retry_base_delay = 1000;
	feishu_guc_retry_max_delay = 300 * 1000;
}

static void
test_role(void)
{
	TimestampTz retry_at = 0;

	begin();
	is(breakers_note_answer(&breakers, 1, false), 0, "an answer when all is well changes nothing");
	is(fail(1, 4), 0, "four calls of a role without an answer change nothing");
	is(admit(1, NOW, NULL), LIMITER_NO_PROBE, "... and its next goes as ever");
	is(fail(1, 1), BREAKER_ROLE_OPENED, "the fifth opens the role's breaker");
	is(fail(1, 1), 0, "... once");
	is(held(1), SECONDS(1), "... it is probed after retry_base_delay");
	is(admit(1, NOW + SECONDS(1) - 1, NULL), -1, "... not before");
	is(admit(1, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ROLE, "... then by one call");
	is(admit(2, NOW, NULL), LIMITER_NO_PROBE, "another role goes as ever");

	breakers_begin_probe(&breakers, 1, LIMITER_NO_PROBE);
	is(admit(1, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ROLE, "what is no probe does not count as one");
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE);
	is(admit(1, NOW + SECONDS(1000), &retry_at), -1, "a second probe waits");
	is(retry_at, DT_NOEND, "... for the end of the first");
	breakers_end_probe(&breakers, 1, LIMITER_PROBE_FOR_ALL, breakers.epoch);
	is(admit(1, NOW + SECONDS(1000), NULL), -1, "... its own");
	breakers_end_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE, breakers.epoch);
	is(admit(1, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ROLE, "... which lets the next go");
	probe_in_vain(1, LIMITER_PROBE_FOR_ROLE, NOW);
	is(held(1), SECONDS(2), "one in vain doubles the time");
	probe_in_vain(1, LIMITER_PROBE_FOR_ROLE, NOW);
	is(held(1), SECONDS(4), "... each");
	for (int i = 0; i < 40; i++)
		probe_in_vain(1, LIMITER_PROBE_FOR_ROLE, NOW);
	is(held(1), SECONDS(300), "... up to retry_max_delay");
	is(breakers_note_answer(&breakers, 1, false), BREAKER_ROLE_CLOSED, "an answer closes it");
	is(held(1), 0, "... so that all go");
	is(fail(1, 4), 0, "... and it counts anew");
	is(breakers_note_answer(&breakers, 1, false), 0, "an answer in between");
	is(fail(1, 4), 0, "... has four others change nothing");
	is(fail(1, 1), BREAKER_ROLE_OPENED, "... but five");

	feishu_guc_retry_max_delay = 200;
	begin();
	feishu_guc_retry_max_delay = 200;
	(void) fail(1, 5);
	is(held(1), MS(200), "a retry_max_delay below retry_base_delay holds from the first on");
}

static void
test_own_trouble(void)
{
	begin();
	(void) fail(1, 5);
	probe_in_vain(1, LIMITER_PROBE_FOR_ROLE, NOW);
	is(held(1), SECONDS(2), "a role in trouble");
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE);
	is(breakers_note_answer(&breakers, 2, false), BREAKER_PROBE_DUE, "another is answered: it may probe at once");
	is(admit(1, NOW, NULL), LIMITER_PROBE_FOR_ROLE, "... whatever is under way");
	is(breakers_note_answer(&breakers, 2, false), 0, "... once");
	for (int i = 0; i < 40; i++)
	{
		probe_in_vain(1, LIMITER_PROBE_FOR_ROLE, NOW);
		(void) breakers_note_answer(&breakers, 2, false);
	}
	is(held(1), SECONDS(60), "its own trouble is looked at each minute");
	is(admit(2, NOW, NULL), LIMITER_NO_PROBE, "... and holds up nobody else");
	(void) fail(1, 4);
	is(breakers_note_answer(&breakers, 2, false), 0, "... nor do four calls while nobody is answered");
	(void) fail(1, 5);
	is(breakers_note_answer(&breakers, 2, false), BREAKER_PROBE_DUE,
	   "nobody was answered for five calls: the next answer lets it probe again");
	is(breakers_note_answer(&breakers, 1, false), BREAKER_ROLE_CLOSED, "its own answer ends that");
	is(breakers_note_answer(&breakers, 2, false), 0, "... and others' are no news");

	begin();
	(void) fail(1, 3);
	is(breakers_note_answer(&breakers, 2, false), 0, "a role with some trouble, and another is answered");
	is(fail(1, 1), 0, "... leaves its count");
	is(fail(1, 1), BREAKER_ROLE_OPENED, "... which goes on");
	is(breakers_note_answer(&breakers, 2, false), 0, "... as its own trouble");

	begin();
	(void) fail(1, 1);
	(void) breakers_note_answer(&breakers, 2, false);
	is(fail(1, 4), BREAKER_ROLE_OPENED, "... also if another was answered after its first call");
	is(breakers_note_answer(&breakers, 2, false), 0, "... likewise");

	begin();
	(void) fail(1, 4);
	(void) breakers_note_answer(&breakers, 2, false);
	(void) breakers_note_answer(&breakers, 1, false);
	is(fail(1, 1), 0, "its own answer after another's has it count anew");
}

static void
test_all(void)
{
	begin();
	(void) fail(1, 4);
	is(fail(2, 1), 0, "four calls of a role and one of another change nothing for all");
	is(fail(2, 1), BREAKER_OPENED, "two of another open the breaker for all");
	is(admit(3, NOW, NULL), -1, "... also for a third role");
	is(held(3), SECONDS(1), "... which probes after retry_base_delay");
	is(fail(3, 10), 0, "... what was under way changes nothing");
	is(admit(3, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ALL, "... then by one call for all");
	breakers_begin_probe(&breakers, 3, LIMITER_PROBE_FOR_ALL);
	is(admit(1, NOW + SECONDS(1), NULL), -1, "... others wait for its end");
	breakers_end_probe(&breakers, 3, LIMITER_PROBE_FOR_ROLE, breakers.epoch);
	is(admit(1, NOW + SECONDS(1), NULL), -1, "... not for that of a role's");
	breakers_end_probe(&breakers, 3, LIMITER_PROBE_FOR_ALL, breakers.all.epoch - 1);
	is(admit(1, NOW + SECONDS(1), NULL), -1, "... nor for one from before");
	breakers_end_probe(&breakers, 3, LIMITER_PROBE_FOR_ALL, breakers.all.epoch);
	probe_in_vain(3, LIMITER_PROBE_FOR_ALL, NOW);
	is(held(1), SECONDS(2), "one in vain doubles the time");
	is(held(3), SECONDS(2) + MS(50), "... and lets others go first");
	for (int i = 0; i < 40; i++)
		probe_in_vain(1, LIMITER_PROBE_FOR_ALL, NOW);
	is(held(3), SECONDS(300), "... up to retry_max_delay");
	is(breakers_note_answer(&breakers, 4, false) & BREAKER_CLOSED, BREAKER_CLOSED, "an answer to anybody closes it");
	is(held(3), 0, "... for others");

	begin();
	(void) fail(1, 2);
	(void) fail(2, 2);
	is(fail(3, 1), BREAKER_OPENED, "five calls of three roles open the breaker for all");
	begin();
	(void) fail(1, 3);
	(void) fail(2, 1);
	is(breakers_note_answer(&breakers, 3, false), 0, "an answer to anybody in between");
	is(fail(2, 1), 0, "... has it count anew");
	is(fail(1, 1), 0, "... by role, too");
	is(fail(1, 1), BREAKER_ROLE_OPENED, "... while that of a role goes on");

	begin();
	(void) fail(1, 2);
	(void) breakers_note_answer(&breakers, 3, false);
	(void) fail(1, 2);
	is(fail(2, 3), BREAKER_OPENED, "... and what came before the answer does not count");

	begin();
	(void) fail(1, 3);
	(void) fail(2, 2);
	probe_in_vain(3, LIMITER_PROBE_FOR_ALL, NOW);
	(void) breakers_note_answer(&breakers, 4, false);
	(void) fail(1, 3);
	(void) fail(2, 2);
	is(held(3), SECONDS(1), "who probed for all in vain has his turn when it opens again");

	begin();
	(void) fail(1, 5);
	(void) fail(2, 2);
	is(breakers.all.open, 1, "a breaker for all, and one of a role");
	is(breakers_note_answer(&breakers, 1, true), BREAKER_CLOSED | BREAKER_ROLE_CLOSED, "who asks for all closes each");
	is(held(1), 0, "... that of the role, too");
	begin();
	(void) fail(1, 5);
	is(breakers_note_answer(&breakers, 2, true), BREAKER_CLOSED | BREAKER_ROLE_CLOSED,
	   "... also where there are roles' alone");
	begin();
	(void) fail(1, 4);
	is(breakers_note_answer(&breakers, 2, true), 0, "... and tells of none where there is none");
	is(fail(1, 4), 0, "... but has them count anew");
}

static void
test_epochs(void)
{
	uint64		before;

	begin();
	before = breakers.epoch;
	(void) fail(1, 5);
	(void) breakers_note_answer(&breakers, 1, false);
	for (int i = 0; i < 20; i++)
		(void) breakers_note_trouble(&breakers, 1, LIMITER_NO_PROBE, before, NOW);
	is(held(1), 0, "what went out before a breaker closed does not open it");

	begin();
	before = breakers.epoch;
	(void) fail(1, 3);
	(void) fail(2, 2);
	(void) breakers_note_answer(&breakers, 1, false);
	for (int i = 0; i < 4; i++)
	{
		(void) breakers_note_trouble(&breakers, 3, LIMITER_NO_PROBE, before, NOW);
		(void) breakers_note_trouble(&breakers, 4, LIMITER_NO_PROBE, before, NOW);
	}
	is(held(1), 0, "... nor that for all");
	is(fail(3, 1), BREAKER_ROLE_OPENED, "... but it counts for roles whose breaker was closed all the time");

	/* calls that count for all, but for no role */
	begin();
	before = breakers.epoch;
	for (Oid role = 1; role <= 2; role++)
	{
		(void) fail(role, 5);
		(void) breakers_note_answer(&breakers, role, false);
	}
	for (int i = 0; i < 10; i++)
	{
		int			changes = breakers_note_trouble(&breakers, 1 + i % 2, LIMITER_NO_PROBE, before, NOW);

		is(changes | breakers_note_answer(&breakers, 3, false), 0, "each answer has the calls of before count no more");
	}

	/* a probe that was under way when its breaker began anew */
	begin();
	(void) fail(1, 5);
	before = breakers.epoch;
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE);
	(void) breakers_note_answer(&breakers, 2, false);
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE);
	breakers_end_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE, before);
	is(admit(1, NOW, NULL), -1, "the end of an earlier probe is not that of a later one");
	(void) breakers_note_trouble(&breakers, 1, LIMITER_PROBE_FOR_ROLE, before, NOW);
	breakers_end_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE, breakers.epoch);
	is(admit(1, NOW, NULL), LIMITER_PROBE_FOR_ROLE, "... nor what became of it");
}

static void
test_room(void)
{
	begin();
	for (Oid role = 1; role <= BREAKER_ROLES; role++)
	{
		(void) fail(role, role == 3 ? 1 : 3);
		(void) breakers_note_answer(&breakers, 99, false);
	}
	(void) fail(50, 4);
	is(fail(50, 1), BREAKER_ROLE_OPENED, "a role more than there is room for: that with least trouble makes some");
	(void) breakers_note_answer(&breakers, 99, false);
	is(fail(1, 1), 0, "... and another's trouble");
	is(fail(1, 1), BREAKER_ROLE_OPENED, "... is known still");

	begin();
	for (Oid role = 1; role <= BREAKER_ROLES; role++)
	{
		(void) fail(role, 5);
		(void) breakers_note_answer(&breakers, 99, false);
	}
	is(fail(50, 4), 0, "all of them have an open breaker: there is no room for another role");
	is(held(50), 0, "... it goes as ever");
	is(admit(3, NOW, NULL), LIMITER_PROBE_FOR_ROLE, "... and theirs stay");
	is(fail(50, 1), BREAKER_OPENED, "... its calls count for all");
}

static void
test_the_rest(void)
{
	TimestampTz until = 0;

	begin();
	is(breakers_hold(&breakers, 1, &until), 0, "nobody is held back");
	is(breakers_are_live(&breakers, NOW), 0, "... and nothing would be lost");
	is(breakers_resume(&breakers), 0, "... nor is there anything to resume");
	(void) fail(1, 5);
	is(breakers_hold(&breakers, 1, &until), 1, "a role is held back");
	is(until - NOW, SECONDS(1), "... until it is probed");
	is(breakers_hold(&breakers, 2, &until), 0, "... alone");
	is(breakers_are_live(&breakers, NOW + SECONDS(1) - 1), 1, "... that would be lost");
	is(breakers_are_live(&breakers, NOW + SECONDS(1)), 0, "... until the time of the probe");
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ROLE);
	breakers_forget_process(&breakers, MyProcPid + 1);
	is(admit(1, NOW + SECONDS(1), NULL), -1, "the end of another process ends no probe");
	breakers_forget_process(&breakers, MyProcPid);
	is(admit(1, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ROLE, "... that of its own does");
	breakers_check_clock(&breakers, NOW);
	is(held(1), SECONDS(1), "the clock is as it was");
	breakers_check_clock(&breakers, NOW - 1);
	is(admit(1, NOW - 1, NULL), LIMITER_PROBE_FOR_ROLE, "a clock that was set back has it probed now");
	is(breakers_resume(&breakers), 1, "who resumes closes it");
	is(breakers_resume(&breakers), 0, "... once");
	is(held(1), 0, "... at once");
	is(fail(1, 4), 0, "... and it counts anew");

	begin();
	(void) fail(1, 3);
	(void) fail(2, 2);
	is(breakers_are_live(&breakers, NOW + SECONDS(1) - 1), 1, "a breaker for all would be lost");
	is(breakers_are_live(&breakers, NOW + SECONDS(1)), 0, "... until the time of the probe");
	breakers_begin_probe(&breakers, 1, LIMITER_PROBE_FOR_ALL);
	breakers_forget_process(&breakers, MyProcPid + 1);
	is(admit(1, NOW + SECONDS(1), NULL), -1, "the end of another process ends no probe for all");
	breakers_forget_process(&breakers, MyProcPid);
	is(admit(1, NOW + SECONDS(1), NULL), LIMITER_PROBE_FOR_ALL, "... that of its own does");
	breakers_check_clock(&breakers, NOW - 1);
	is(admit(1, NOW - 1, NULL), LIMITER_PROBE_FOR_ALL, "a clock that was set back has it probed now");
	is(breakers_resume(&breakers), 1, "who resumes closes it");
	is(held(1), 0, "... at once, for all");
	is(fail(1, 4), 0, "... and it counts anew");
	is(fail(2, 1), 0, "... for all, too");
	(void) breakers_resume(&breakers);
	(void) fail(1, 3);
	(void) breakers_note_answer(&breakers, 2, false);
	(void) breakers_resume(&breakers);
	is(fail(1, 5), BREAKER_ROLE_OPENED, "... and whose trouble it was");
	is(breakers_note_answer(&breakers, 2, false), BREAKER_PROBE_DUE, "... is forgotten");
}

void
test_breaker(void)
{
	test_role();
	test_own_trouble();
	test_all();
	test_epochs();
	test_room();
	test_the_rest();
}
