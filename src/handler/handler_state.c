/*-------------------------------------------------------------------------
 *
 * src/handler/handler_state.c
 *	  What handlers leave in the session of their role.
 *
 * Several handlers of a role have one session, and, if they are quick, one transaction.
 * What one does to settings is undone right after it (handler_call.c).  What else
 * statements do to a session (temporary tables, PREPARE, cursors, LOAD, ...) is
 * noticed here, by a hook: then its transaction ends with it, and the session is
 * cleaned as by DISCARD ALL.  Advisory locks of the session, which functions take, are
 * released in any case.
 *
 * What a library or a procedural language keeps in the process stays, as in a session
 * of a connection pool.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/discard.h"
#include "commands/trigger.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "handler/handler_internal.h"

static ProcessUtility_hook_type process_utility_next = NULL;

/* Since the session was cleaned. */
static bool touched = false;
static bool unclean = false;


/* May it leave something in the session? */
static bool
leaves_something(const Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_TransactionStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
		case T_ConstraintsSetStmt:
		case T_NotifyStmt:
		case T_CopyStmt:
		case T_CallStmt:
		case T_DoStmt:
		case T_LockStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
		case T_TruncateStmt:
			return false;
		default:
			return true;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest,
				QueryCompletion *completion)
{
	unclean |= leaves_something(pstmt->utilityStmt);
	/* deferred is what others of the transaction do, too */
	touched |= unclean || IsA(pstmt->utilityStmt, ConstraintsSetStmt);

	process_utility_next(pstmt, query, read_only_tree, context, params, environment, dest,
						 completion);
}

/* Watch what is done in this session. */
void
handler_state_watch(void)
{
	process_utility_next = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
}

/* Has a handler done what others of its transaction would notice? */
bool
handler_state_is_touched(void)
{
	return touched;
}

/*
 * Before the commit of handlers, fire what is deferred to it.
 *
 * What else would do so at the commit of handlers: their deferred triggers.  What these
 * do to settings is undone as what handlers do to them.
 */
void
handler_state_fire_deferred(void)
{
	ConstraintsSetStmt all_immediate = {.type = T_ConstraintsSetStmt};
	int			settings = NewGUCNestLevel();

	AfterTriggerSetState(&all_immediate);
	AtEOXact_GUC(false, settings);
}

/*
 * Outside of a transaction, undo what handlers have left in the session.
 *
 * In a transaction of its own, which cursors and temporary tables need.  It has the time
 * of a handler, for others of the role may have locked a temporary table.
 */
void
handler_state_clean(void)
{
	DiscardStmt all = {.type = T_DiscardStmt, .target = DISCARD_ALL};

	touched = false;
	LockReleaseAll(USER_LOCKMETHOD, true);
	if (!unclean)
		return;
	unclean = false;
	handler_time_begin();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	DiscardCommand(&all, true);
	PopActiveSnapshot();
	CommitTransactionCommand();
	handler_time_end();
}
