/*-------------------------------------------------------------------------
 *
 * src/base/budget.c
 *	  What requests and answers under way may take of a process's memory.
 *
 * A process that has many under way, for many roles, counts what they hold before
 * it is held: a request as it is written, an answer as it comes.  What finds no room
 * waits: a row in the queue, an answer at its sender.
 *
 * A lane has at most three quarters of what other lanes leave, and a role seven
 * eighths of what other roles do, so that those who come later find some.  So that nothing waits for ever, whatever its size and whoever
 * holds the rest, one request and one answer at a time are beyond: they may take
 * what they need, and it does not count.  Who is beyond waits for nobody.
 *
 * Nothing here throws: libcurl's callbacks come here.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/budget.h"

static int64 total = 0;
static BudgetAccount *beyond[BUDGET_KINDS];


static void
count(BudgetAccount *account, int64 bytes)
{
	total += bytes;
	for (BudgetShare *share = account->share; share != NULL; share = share->whole)
		share->bytes += bytes;
}

/* Take them in any case: they are there already, or few. */
void
budget_take_anyway(BudgetAccount *account, int64 bytes)
{
	account->bytes += bytes;
	if (!account->beyond)
		count(account, bytes);
}

/* Take bytes if there is room for them among so many. */
static bool
take_of(int64 all, BudgetAccount *account, int64 bytes)
{
	const int64 left = all - total;
	int64		most = left;

	for (BudgetShare *share = account->share; share != NULL; share = share->whole)
	{
		int			eighths = share->whole != NULL ? 6 : 7;

		/* who has nothing may have all that is left */
		if (share->bytes > 0)
			most = Min(most, (left + share->bytes) * eighths / 8 - share->bytes);
	}
	if (!account->beyond && bytes > most)
		return false;
	budget_take_anyway(account, bytes);
	return true;
}

/* Take so many bytes more, if there is room for them (always when beyond). */
bool
budget_take(BudgetAccount *account, int64 bytes)
{
	return take_of(BUDGET_BYTES, account, bytes);
}

/* budget_take for what cannot wait: of more. */
bool
budget_take_at_once(BudgetAccount *account, int64 bytes)
{
	return take_of(BUDGET_BYTES_AT_ONCE, account, bytes);
}

/* Give bytes back; with the last ones it is not beyond any more. */
void
budget_give_back(BudgetAccount *account, int64 bytes)
{
	account->bytes -= bytes;
	if (!account->beyond)
		count(account, -bytes);
	else if (account->bytes == 0)
	{
		account->beyond = false;
		beyond[account->kind] = NULL;
	}
}

/*
 * From now on all bytes of this one are had beyond the budget; false when another
 * of its kind does that.
 */
bool
budget_go_beyond(BudgetAccount *account)
{
	if (beyond[account->kind] != NULL)
		return account->beyond;
	beyond[account->kind] = account;
	count(account, -account->bytes);
	account->beyond = true;
	return true;
}

/* Whose turn is it rather: one's (or nobody's), or the other's?  And it has its turn. */
bool
budget_is_before(const BudgetShare *other, const BudgetShare *one, BudgetKind kind)
{
	return one == NULL || other->whole->turns[kind] < one->whole->turns[kind];
}

void
budget_take_turn(BudgetShare *share, BudgetKind kind)
{
	static uint64 turn = 0;

	share->whole->turns[kind] = ++turn;
}
