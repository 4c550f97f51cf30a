/*-------------------------------------------------------------------------
 *
 * src/base/budget.h
 *	  What requests and answers under way may take of a process's memory.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_BUDGET_H
#define FEISHU_BUDGET_H

/*
 * Of a process: the bytes that all together may have, but for those beyond, and with
 * what cannot wait.  A dispatcher is to keep within 128 MB, with what it takes besides
 * to read an answer of the largest size and a request that is beyond.
 */
#define BUDGET_BYTES		(24 * 1024 * 1024)
#define BUDGET_BYTES_AT_ONCE (36 * 1024 * 1024)

/* Of one of each kind at a time the bytes do not count. */
typedef enum BudgetKind
{
	BUDGET_REQUEST,
	BUDGET_ANSWER
} BudgetKind;

#define BUDGET_KINDS		2

/* Who pays: in the dispatcher a lane, which is a part of a role. */
typedef struct BudgetShare
{
	struct BudgetShare *whole;	/* NULL: it is no part of another */
	int64		bytes;
	uint64		turns[BUDGET_KINDS];	/* of a whole: when it had its turn last */
} BudgetShare;

/* What one request, or one answer, has.  Zeros but for the share: nothing. */
typedef struct BudgetAccount
{
	BudgetShare *share;
	int64		bytes;
	BudgetKind	kind;
	bool		beyond;
} BudgetAccount;

extern bool budget_take(BudgetAccount *account, int64 bytes);
extern bool budget_take_at_once(BudgetAccount *account, int64 bytes);
extern void budget_take_anyway(BudgetAccount *account, int64 bytes);
extern void budget_give_back(BudgetAccount *account, int64 bytes);
extern bool budget_go_beyond(BudgetAccount *account);
extern bool budget_is_before(const BudgetShare *other, const BudgetShare *one, BudgetKind kind);
extern void budget_take_turn(BudgetShare *share, BudgetKind kind);

#endif							/* FEISHU_BUDGET_H */
