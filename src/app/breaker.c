/*-------------------------------------------------------------------------
 *
 * src/app/breaker.c
 *	  What holds dispatch to a platform that does not answer.
 *
 * While a breaker is open, one queued flow at a time probes the platform, at
 * growing intervals.  An app has a breaker for each role that is in trouble, and
 * one for all.  So who has flows that hang, or fail, holds up only what is his.
 *
 * A role's opens after a row of its calls without an answer.  The first answer to
 * another role lets it probe at once: perhaps the platform was down.  If others go
 * on to be answered, it is the role's own trouble, and its own answers alone close
 * its breaker.
 *
 * The one for all opens after a row of calls of several roles, with no answer to
 * anybody in between.  Any answer closes it.
 *
 * What was sent before a change of a breaker says nothing about its new state.  Each
 * change begins an epoch, and what got no answer counts only if it went out in the
 * breaker's last one.  Answers always count.
 *
 * If more roles are in trouble than there is room for, the others' count for the
 * breaker for all only.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "app/breaker.h"
#include "base/guc.h"

/*
 * So many calls without an answer, and none with one, open a breaker; that for all
 * if so many of them are not of the role that has most.
 */
#define BREAKER_TROUBLES		5
#define BREAKER_OTHERS			2

/* Longest interval of probes while other roles are answered. */
#define BREAKER_OWN_MOST_MS		(60 * 1000)

/* Who probed for all in vain lets others go first. */
#define BREAKER_ROTATE_MS		50

static inline TimestampTz
ms_after(TimestampTz time, int64 ms)
{
	return time + ms * 1000;
}


/* ---------- One breaker ---------- */

static int
least_backoff(void)
{
	return Min(feishu_guc_retry_base_delay, feishu_guc_retry_max_delay);
}

/* Open, close, or begin anew. */
static void
breaker_set(Breakers *breakers, Breaker *breaker, bool open, TimestampTz probe_at)
{
	breaker->open = open;
	breaker->epoch = ++breakers->epoch;
	breaker->probe_pid = 0;
	breaker->backoff_ms = least_backoff();
	breaker->probe_at = probe_at;
}

/* A probe was in vain. */
static void
breaker_back_off(Breaker *breaker, int most_ms, TimestampTz now)
{
	breaker->backoff_ms = (int) Min(2 * (int64) breaker->backoff_ms, most_ms);
	breaker->probe_at = ms_after(now, breaker->backoff_ms);
}

static void
breaker_check_clock(Breaker *breaker, TimestampTz now)
{
	if (breaker->probe_at > ms_after(now, breaker->backoff_ms))
		breaker->probe_at = now;
}

/* After a change: what need not be looked for. */
static void
breakers_sum_up(Breakers *breakers)
{
	breakers->any_open = breakers->all.open;
	breakers->is_calm = !breakers->all.open && breakers->unanswered == 0;
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		const RoleBreaker *role = &breakers->roles[i];

		breakers->any_open |= role->breaker.open;
		breakers->is_calm &= !role->breaker.open && role->troubles == 0;
	}
}


/* ---------- Roles ---------- */

/* What is known of a role, or NULL. */
static RoleBreaker *
role_find(const Breakers *breakers, Oid roleid)
{
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		if (breakers->roles[i].roleid == roleid)
			return (RoleBreaker *) &breakers->roles[i];
	}
	return NULL;
}

/* Likewise, with room made for it if there is any. */
static RoleBreaker *
role_find_or_add(Breakers *breakers, Oid roleid)
{
	RoleBreaker *role = role_find(breakers, roleid);

	if (role != NULL)
		return role;
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		RoleBreaker *other = &breakers->roles[i];

		if (!OidIsValid(other->roleid))
		{
			role = other;
			break;
		}
		if (!other->breaker.open && (role == NULL || other->troubles < role->troubles))
			role = other;
	}
	if (role != NULL)
	{
		memset(role, 0, sizeof(RoleBreaker));
		role->roleid = roleid;
	}
	return role;
}

/* Of the calls that nobody was answered since, how many are not of the role with most? */
static int
count_others(const Breakers *breakers)
{
	int			most = 0;

	for (int i = 0; i < BREAKER_ROLES; i++)
		most = Max(most, breakers->roles[i].unanswered);
	return breakers->unanswered - most;
}

/* Which breaker a role has to pass, or NULL. */
static Breaker *
breaker_of(const Breakers *breakers, Oid roleid)
{
	RoleBreaker *role;

	if (!breakers->any_open)
		return NULL;
	if (breakers->all.open)
		return (Breaker *) &breakers->all;
	role = role_find(breakers, roleid);
	return role != NULL && role->breaker.open ? &role->breaker : NULL;
}


/* ---------- Probes ---------- */

/*
 * May a role's queued flow go?  As a probe, if *probe says so.  Else *retry_at is
 * when to ask again.
 */
bool
breakers_admit(const Breakers *breakers, Oid roleid, TimestampTz now,
			   LimiterProbe *probe, TimestampTz *retry_at)
{
	const Breaker *breaker = breaker_of(breakers, roleid);

	*probe = LIMITER_NO_PROBE;
	if (breaker == NULL)
		return true;
	*retry_at = breaker->probe_at;
	/* whatever becomes of a probe, its end wakes us */
	if (breaker->probe_pid != 0)
		*retry_at = DT_NOEND;
	else if (breaker == &breakers->all && breakers->probed_by == roleid)
		*retry_at = ms_after(breaker->probe_at, BREAKER_ROTATE_MS);
	if (*retry_at > now)
		return false;
	*probe = breaker == &breakers->all ? LIMITER_PROBE_FOR_ALL : LIMITER_PROBE_FOR_ROLE;
	return true;
}

void
breakers_begin_probe(Breakers *breakers, Oid roleid, LimiterProbe probe)
{
	if (probe != LIMITER_NO_PROBE)
		breaker_of(breakers, roleid)->probe_pid = MyProcPid;
}

/* The breaker that a probe was for, if it is in the same epoch. */
static Breaker *
breaker_of_probe(Breakers *breakers, Oid roleid, LimiterProbe probe, uint64 epoch)
{
	Breaker    *breaker = NULL;

	if (probe == LIMITER_PROBE_FOR_ALL)
		breaker = &breakers->all;
	else if (probe == LIMITER_PROBE_FOR_ROLE)
	{
		RoleBreaker *role = role_find(breakers, roleid);

		breaker = role != NULL ? &role->breaker : NULL;
	}
	return breaker != NULL && breaker->open && epoch >= breaker->epoch ? breaker : NULL;
}

void
breakers_end_probe(Breakers *breakers, Oid roleid, LimiterProbe probe, uint64 epoch)
{
	Breaker    *breaker = breaker_of_probe(breakers, roleid, probe, epoch);

	if (breaker != NULL)
		breaker->probe_pid = 0;
}


/* ---------- Reports ---------- */

/* A call that went out in an epoch got no answer.  Returns flags. */
int
breakers_note_trouble(Breakers *breakers, Oid roleid, LimiterProbe probe,
					  uint64 epoch, TimestampTz now)
{
	RoleBreaker *role = role_find_or_add(breakers, roleid);
	Breaker    *probed = breaker_of_probe(breakers, roleid, probe, epoch);
	int			changes = 0;

	if (probed == &breakers->all)
	{
		breakers->probed_by = roleid;
		breaker_back_off(probed, feishu_guc_retry_max_delay, now);
	}
	else if (probed != NULL)
		breaker_back_off(probed, role->is_own ?
						 Min(feishu_guc_retry_max_delay, BREAKER_OWN_MOST_MS) :
						 feishu_guc_retry_max_delay, now);
	if (breakers->all.open)
		return 0;

	if (epoch >= breakers->all.epoch)
	{
		breakers->unanswered++;
		if (role != NULL)
			role->unanswered++;
	}
	if (role != NULL && epoch >= role->breaker.epoch)
	{
		if (!role->breaker.open)
			role->troubles++;
		/* nobody else was answered for as long: perhaps the platform is down */
		if (role->unanswered >= BREAKER_TROUBLES)
			role->is_own = false;
	}
	if (breakers->unanswered >= BREAKER_TROUBLES && count_others(breakers) >= BREAKER_OTHERS)
	{
		breaker_set(breakers, &breakers->all, true, ms_after(now, least_backoff()));
		breakers->probed_by = InvalidOid;
		changes = BREAKER_OPENED;
	}
	else if (role != NULL && !role->breaker.open && role->troubles >= BREAKER_TROUBLES)
	{
		breaker_set(breakers, &role->breaker, true, ms_after(now, least_backoff()));
		changes = BREAKER_ROLE_OPENED;
	}
	breakers_sum_up(breakers);
	return changes;
}

/* A role's trouble is over. */
static int
role_end_trouble(Breakers *breakers, RoleBreaker *role)
{
	role->troubles = 0;
	role->is_own = false;
	if (!role->breaker.open)
		return 0;
	breaker_set(breakers, &role->breaker, false, 0);
	return BREAKER_ROLE_CLOSED;
}

/* Another role is answered. */
static int
role_note_others_answer(Breakers *breakers, RoleBreaker *role)
{
	if (role->troubles == 0 || role->is_own)
		return 0;
	role->is_own = true;
	if (!role->breaker.open)
		return 0;
	/* a probe under way may hang since before */
	breaker_set(breakers, &role->breaker, true, 0);
	return BREAKER_PROBE_DUE;
}

/* An answer came to a role; for_all: to who asked for all.  Returns flags. */
int
breakers_note_answer(Breakers *breakers, Oid roleid, bool for_all)
{
	int			changes = 0;

	if (breakers->is_calm)
		return 0;
	breakers->unanswered = 0;
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		RoleBreaker *role = &breakers->roles[i];

		role->unanswered = 0;
		changes |= for_all || role->roleid == roleid ?
			role_end_trouble(breakers, role) : role_note_others_answer(breakers, role);
	}
	if (for_all && (changes & BREAKER_ROLE_CLOSED))
		changes |= BREAKER_CLOSED;
	if (breakers->all.open)
	{
		breaker_set(breakers, &breakers->all, false, 0);
		changes |= BREAKER_CLOSED;
	}
	breakers_sum_up(breakers);
	return changes;
}


/* ---------- To look at, and to act on ---------- */

void
breakers_check_clock(Breakers *breakers, TimestampTz now)
{
	if (!breakers->any_open)
		return;
	breaker_check_clock(&breakers->all, now);
	for (int i = 0; i < BREAKER_ROLES; i++)
		breaker_check_clock(&breakers->roles[i].breaker, now);
}

bool
breakers_are_live(const Breakers *breakers, TimestampTz now)
{
	bool		live = breakers->all.open && breakers->all.probe_at > now;

	for (int i = 0; i < BREAKER_ROLES && breakers->any_open; i++)
	{
		const Breaker *breaker = &breakers->roles[i].breaker;

		live |= breaker->open && breaker->probe_at > now;
	}
	return live;
}

/* Is a role held back, and until when? */
bool
breakers_hold(const Breakers *breakers, Oid roleid, TimestampTz *until)
{
	const Breaker *breaker = breaker_of(breakers, roleid);

	if (breaker != NULL)
		*until = breaker->probe_at;
	return breaker != NULL;
}

void
breakers_forget_process(Breakers *breakers, int pid)
{
	if (breakers->all.probe_pid == pid)
		breakers->all.probe_pid = 0;
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		if (breakers->roles[i].breaker.probe_pid == pid)
			breakers->roles[i].breaker.probe_pid = 0;
	}
}

/* Close all; true if one was open. */
bool
breakers_resume(Breakers *breakers)
{
	bool		was_open = breakers->any_open;

	breakers->unanswered = 0;
	breaker_set(breakers, &breakers->all, false, 0);
	for (int i = 0; i < BREAKER_ROLES; i++)
	{
		RoleBreaker *role = &breakers->roles[i];

		role->troubles = role->unanswered = 0;
		role->is_own = false;
		breaker_set(breakers, &role->breaker, false, 0);
	}
	breakers_sum_up(breakers);
	return was_open;
}
