/*-------------------------------------------------------------------------
 *
 * budget.c
 *	  What requests and answers under way may take of a process's memory.
 *
 * A process that has many under way, for many roles, counts what they hold before
 * it is held: a request as it is written, an answer as it comes.  What finds no room
 * waits: a row in the queue, an answer at its sender.
 *
 * One role has at most three quarters of what others leave, so that those who come
 * later find some.  So that nothing waits for ever, whatever its size and whoever
 * holds the rest, one request and one answer at a time are beyond: they may take
 * what they need, and it does not count.  Who is beyond waits for nobody.
 *
 * Nothing here throws: libcurl's callbacks come here.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/budget.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "budget.h"

static int64 total = 0;
static BudgetAccount *beyond[BUDGET_KINDS];


static void
count(BudgetAccount *account, int64 bytes)
{
	total += bytes;
	if (account->share != NULL)
		account->share->bytes += bytes;
}

void
budget_take_anyway(BudgetAccount *account, int64 bytes)
{
	account->bytes += bytes;
	if (!account->beyond)
		count(account, bytes);
}

bool
budget_take(BudgetAccount *account, int64 bytes)
{
	int64		left = BUDGET_BYTES - total;
	int64		had = account->share != NULL ? account->share->bytes : 0;

	/* who has nothing may have all that is left */
	if (had > 0)
		left = Min(left, (left + had) * 3 / 4 - had);
	if (!account->beyond && bytes > left)
		return false;
	budget_take_anyway(account, bytes);
	return true;
}

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

int64
budget_total(void)
{
	return total;
}
