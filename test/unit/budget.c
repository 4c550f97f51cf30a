/*-------------------------------------------------------------------------
 *
 * budget.c
 *	  Tests of src/base/budget.c: who may have how many bytes.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/unit/budget.c
 *
 *-------------------------------------------------------------------------
 */
#include "unit.h"

#include "base/budget.h"

#define MB				(1024 * 1024)

/* Two roles; the first has two lanes. */
static BudgetShare roles[2];
static BudgetShare lanes[3] = {{.whole = &roles[0]}, {.whole = &roles[0]}, {.whole = &roles[1]}};

/* The most that an account may take, found out by trying; it has nothing more afterwards. */
static int64
most(BudgetAccount *account, bool (*take) (BudgetAccount *account, int64 bytes))
{
	int64		low = 0;
	int64		high = 2 * BUDGET_BYTES_AT_ONCE;

	while (low < high)
	{
		int64		middle = (low + high + 1) / 2;

		if (take(account, middle))
		{
			budget_give_back(account, middle);
			low = middle;
		}
		else
			high = middle - 1;
	}
	return low;
}

static void
test_shares(void)
{
	BudgetAccount one = {.share = &lanes[0]};
	BudgetAccount two = {.share = &lanes[1]};
	BudgetAccount other = {.share = &lanes[2]};
	BudgetAccount nobody = {0};

	is(most(&one, budget_take), BUDGET_BYTES, "who has nothing may have all that is left");
	is(most(&one, budget_take_at_once), BUDGET_BYTES_AT_ONCE, "... and more of what cannot wait");
	is(most(&nobody, budget_take), BUDGET_BYTES, "... likewise what is nobody's");
	is(budget_take(&one, 8 * MB), true, "a lane has some");
	is(one.bytes, 8 * MB, "... which counts for it");
	is(roles[0].bytes, 8 * MB, "... and for its role");
	is(most(&one, budget_take), 10 * MB, "it may have three quarters in all");
	is(most(&one, budget_take_at_once), 19 * MB, "... likewise of what cannot wait");
	is(most(&two, budget_take), 13 * MB, "another of its role may have what the role may: seven eighths in all");
	is(most(&other, budget_take), 16 * MB, "another role may have all that is left");
	is(most(&nobody, budget_take), 16 * MB, "... and so may what is nobody's");
	is(budget_take(&other, 8 * MB), true, "another role has some");
	is(most(&one, budget_take), 4 * MB, "three quarters of what others leave");
	is(most(&two, budget_take), 6 * MB, "seven eighths of what other roles leave");
	budget_take_anyway(&other, 30 * MB);
	is(most(&one, budget_take), 0, "what is there in any case counts");
	is(roles[1].bytes, 38 * MB, "... for its role");
	budget_give_back(&other, 38 * MB);
	budget_give_back(&one, 8 * MB);
	is(roles[0].bytes + roles[1].bytes + lanes[0].bytes + lanes[2].bytes, 0, "what is given back is nobody's");
	is(most(&one, budget_take), BUDGET_BYTES, "... and can be had again");
}

static void
test_beyond(void)
{
	BudgetAccount one = {.share = &lanes[0], .kind = BUDGET_ANSWER};
	BudgetAccount two = {.share = &lanes[1], .kind = BUDGET_ANSWER};
	BudgetAccount request = {.share = &lanes[1], .kind = BUDGET_REQUEST};

	(void) budget_take(&one, 8 * MB);
	is(budget_go_beyond(&one), true, "one answer may go beyond");
	is(roles[0].bytes, 0, "... with what it has");
	is(budget_take(&one, 100 * MB), true, "... and have what it needs");
	budget_take_anyway(&one, 1 * MB);
	is(one.bytes, 109 * MB, "... all of it");
	is(most(&two, budget_take), BUDGET_BYTES, "... which does not count");
	is(budget_go_beyond(&one), true, "it is beyond");
	is(budget_go_beyond(&two), false, "... and no other answer");
	is(budget_go_beyond(&request), true, "... but a request may be");
	(void) budget_take(&request, 1);
	budget_give_back(&request, 1);
	budget_give_back(&one, 108 * MB);
	is(budget_go_beyond(&two), false, "as long as it has some");
	budget_give_back(&one, 1 * MB);
	is(one.beyond, false, "with the last ones it is not any more");
	is(budget_go_beyond(&two), true, "... and another may be");
	(void) budget_take(&two, 1);
	budget_give_back(&two, 1);
	is(most(&one, budget_take), BUDGET_BYTES, "all is to be had again");
}

static void
test_turns(void)
{
	is(budget_is_before(&lanes[0], NULL, BUDGET_ANSWER), true, "it is anybody's turn rather than nobody's");
	is(budget_is_before(&lanes[2], &lanes[0], BUDGET_ANSWER), false, "the first of those that had none stays");
	budget_take_turn(&lanes[0], BUDGET_ANSWER);
	is(budget_is_before(&lanes[2], &lanes[0], BUDGET_ANSWER), true, "who had no turn goes before who had one");
	is(budget_is_before(&lanes[0], &lanes[2], BUDGET_ANSWER), false, "... and not the other way round");
	is(budget_is_before(&lanes[2], &lanes[1], BUDGET_ANSWER), true, "a turn is the role's, not the lane's");
	is(budget_is_before(&lanes[2], &lanes[0], BUDGET_REQUEST), false, "... and of one kind");
	budget_take_turn(&lanes[2], BUDGET_ANSWER);
	is(budget_is_before(&lanes[1], &lanes[2], BUDGET_ANSWER), true, "then it is the turn of the first again");
}

int
main(void)
{
	test_shares();
	test_beyond();
	test_turns();
	return 0;
}
