/*-------------------------------------------------------------------------
 *
 * src/trigger/role.c
 *	  The role that ran the statement for which a trigger fires.
 *
 * A flow is queued in the name of the role that was current_user of the
 * statement that made the change: of that in a SECURITY DEFINER function, the
 * function's owner.  A trigger function is not always run as that role:
 *
 * - Before 18, a deferred trigger is run as whoever is current_user when it is
 *   fired, at the end of the transaction as a rule.
 * - Since 18, any trigger is run as whoever was current_user when the change was
 *   made.  If that was a foreign key's action (ON DELETE CASCADE), it is the owner
 *   of the referencing table, who may have nothing to do with it.
 *
 * So two things are noted while statements run:
 *
 * - the frames: the statements of which the AFTER triggers are being fired, the
 *   innermost first.  What a foreign key does is a query without triggers of its
 *   own: its changes are added to those of the statement that set it off, so the
 *   innermost frame is that of the statement for which a trigger fires.
 * - the commands of this transaction, by command id, and their roles.  The row of a
 *   deferred trigger has the id of the command that wrote it.
 *
 * A statement that began before the library was loaded has neither; nor have changes
 * that are not made by statements, such as those of a subscription.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_constraint.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/nls.h"
#include "trigger/role.h"

/* A statement of which the AFTER triggers are being fired. */
typedef struct Frame
{
	struct Frame *outer;
	Oid			role;
	int			depth;			/* of triggers, outside those that it fires */
} Frame;

/* Commands that wrote, of one role; InvalidOid: nobody knows which. */
typedef struct CommandRange
{
	CommandId	first;
	CommandId	last;
	Oid			role;
} CommandRange;

#define FIRST_COMMANDS	16

static Frame *frames = NULL;	/* the innermost; on the stack */

/* Of the current transaction, in its memory, in the order of ids. */
static CommandRange *commands = NULL;
static Size num_commands = 0;
static Size max_commands = 0;

static ExecutorStart_hook_type prev_executor_start = NULL;
static ExecutorFinish_hook_type prev_executor_finish = NULL;
static ProcessUtility_hook_type process_utility_next = NULL;


/* ---------- Commands ---------- */

/* Reset callback of the transaction's memory. */
static void
commands_forget(void *arg)
{
	commands = NULL;
	num_commands = max_commands = 0;
}

static void
commands_make_room(void)
{
	MemoryContextCallback *callback;

	if (commands == NULL)
	{
		callback = MemoryContextAlloc(TopTransactionContext, sizeof(MemoryContextCallback));
		commands = MemoryContextAlloc(TopTransactionContext,
									  FIRST_COMMANDS * sizeof(CommandRange));
		max_commands = FIRST_COMMANDS;
		callback->func = commands_forget;
		callback->arg = NULL;
		MemoryContextRegisterResetCallback(TopTransactionContext, callback);
	}
	else if (num_commands == max_commands)
	{
		commands = repalloc_huge(commands, 2 * max_commands * sizeof(CommandRange));
		max_commands *= 2;
	}
}

/*
 * Note who writes with the current command id.  It counts as used from here on: a
 * command that fails before it writes does not leave its id to another role's.
 */
static void
commands_add(Oid role)
{
	CommandId	command = GetCurrentCommandId(true);
	CommandRange *last;

	commands_make_room();
	last = num_commands > 0 ? &commands[num_commands - 1] : NULL;
	/* what is between wrote nothing, as a foreign key's look at the other table: a
	 * transaction of many statements of one role has one range */
	if (last != NULL && last->role == role)
	{
		last->last = command;
		return;
	}
	if (last != NULL && last->last == command)
	{
		/* two roles with one command id: whose a row is cannot be seen */
		role = InvalidOid;
		if (last->first == command)
		{
			last->role = role;
			return;
		}
		last->last--;
	}
	commands[num_commands++] = (CommandRange) {command, command, role};
}

/* Who wrote with a command id, or InvalidOid. */
static Oid
commands_find(CommandId command)
{
	Size		low = 0;
	Size		high = num_commands;

	while (low < high)
	{
		Size		middle = low + (high - low) / 2;

		if (commands[middle].last < command)
			low = middle + 1;
		else
			high = middle;
	}
	return low < num_commands && commands[low].first <= command ?
		commands[low].role : InvalidOid;
}


/* ---------- Hooks ---------- */

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/* The role of the statement of which a trigger is being fired right here, or
 * InvalidOid. */
static Oid
firing_role(void)
{
	return frames != NULL && frames->depth + 1 == trigger_depth() ? frames->role : InvalidOid;
}

/* May a query change rows? */
static bool
is_writing(const QueryDesc *query)
{
	return query->operation != CMD_SELECT || query->plannedstmt->hasModifyingCTE;
}

static void
executor_start(QueryDesc *query, int eflags)
{
	if (is_writing(query) && (eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0)
	{
		/* a foreign key's query is run as the owner of a table */
		bool		is_action = (eflags & EXEC_FLAG_SKIP_TRIGGERS) != 0 &&
			InNoForceRLSOperation();

		commands_add(is_action ? firing_role() : GetUserId());
	}

	if (prev_executor_start)
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

static void
executor_finish_next(QueryDesc *query)
{
	if (prev_executor_finish)
		prev_executor_finish(query);
	else
		standard_ExecutorFinish(query);
}

static void
executor_finish(QueryDesc *query)
{
	Frame		frame;

	if (!is_writing(query) || (query->estate->es_top_eflags & EXEC_FLAG_SKIP_TRIGGERS) != 0)
	{
		executor_finish_next(query);
		return;
	}
	frame.outer = frames;
	frame.role = GetUserId();
	frame.depth = trigger_depth();
	frames = &frame;
	PG_TRY();
	{
		executor_finish_next(query);
	}
	PG_FINALLY();
	{
		frames = frame.outer;
	}
	PG_END_TRY();
}

/* COPY writes without the executor. */
static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest,
				QueryCompletion *completion)
{
	Node	   *statement = pstmt->utilityStmt;

	if (IsA(statement, CopyStmt) && ((CopyStmt *) statement)->is_from && IsTransactionState())
		commands_add(GetUserId());

	process_utility_next(pstmt, query, read_only_tree, context, params, environment, dest,
						 completion);
}

/* Watch statements from here on.  To be called once, when the library is loaded. */
void
role_install_hooks(void)
{
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	prev_executor_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = executor_finish;
	process_utility_next = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
}


/* ---------- The role of a change ---------- */

/* Throw that nobody knows. */
static void
report_unknown(const TriggerData *trigdata)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not determine which role made the change that fired trigger \"%s\"",
					trigdata->tg_trigger->tgname),
			 errdetail("The flow would be queued in the name of that role, but the change was not made by a statement that began after feishu_flow was loaded."),
			 trigdata->tg_trigger->tgdeferrable ?
			 errhint("Create the trigger without DEFERRABLE, since its flow is sent after the commit in either case, or add feishu_flow to shared_preload_libraries.") :
			 errhint("Add feishu_flow to shared_preload_libraries.")));
}

/* Has the table a foreign key that changes rows by itself at such a change? */
static bool
has_action(const TriggerData *trigdata)
{
	bool		by_delete = TRIGGER_FIRED_BY_DELETE(trigdata->tg_event);
	ListCell   *cell;
	bool		found = false;

	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		return false;
	foreach(cell, RelationGetFKeyList(trigdata->tg_relation))
	{
		ForeignKeyCacheInfo *key = lfirst_node(ForeignKeyCacheInfo, cell);
		HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(key->conoid));
		Form_pg_constraint constraint;

		if (!HeapTupleIsValid(tuple))
			continue;
		constraint = (Form_pg_constraint) GETSTRUCT(tuple);
		if (by_delete)
			found |= constraint->confdeltype == FKCONSTR_ACTION_CASCADE;
		else
			found |= constraint->confupdtype == FKCONSTR_ACTION_CASCADE ||
				constraint->confupdtype == FKCONSTR_ACTION_SETNULL ||
				constraint->confupdtype == FKCONSTR_ACTION_SETDEFAULT ||
				constraint->confdeltype == FKCONSTR_ACTION_SETNULL ||
				constraint->confdeltype == FKCONSTR_ACTION_SETDEFAULT;
		ReleaseSysCache(tuple);
	}
	return found;
}

/*
 * The role of a change that no hook has seen, by the role that the trigger
 * function is run as.
 */
static Oid
role_unwatched(const TriggerData *trigdata)
{
	if (FEISHU_TRIGGERS_KEEP_ROLE ?
		InLocalUserIdChange() && !TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) &&
		has_action(trigdata) :
		trigdata->tg_trigger->tgdeferrable)
		report_unknown(trigdata);
	return GetUserId();
}

/* The role of the command that wrote a row trigger's row, or InvalidOid. */
static Oid
role_of_row(const TriggerData *trigdata)
{
	TupleTableSlot *slot = TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
		trigdata->tg_newslot : trigdata->tg_trigslot;
	HeapTuple	tuple;
	bool		should_free;
	CommandId	command;

	/* another table access method may keep no command ids */
	if (!TTS_IS_BUFFERTUPLE(slot))
		return InvalidOid;
	tuple = ExecFetchSlotHeapTuple(slot, false, &should_free);
	if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		command = HeapTupleHeaderGetCmax(tuple->t_data);
	else
		command = HeapTupleHeaderGetCmin(tuple->t_data);
	if (should_free)
		heap_freetuple(tuple);
	return commands_find(command);
}

/*
 * The role that was current_user of the statement that made the change.
 * Throws 55000 when that cannot be known.
 */
Oid
role_of_change(const TriggerData *trigdata)
{
	Oid			role;

	if (trigdata->tg_trigger->tgdeferrable)
		role = role_of_row(trigdata);
	else if (!FEISHU_TRIGGERS_KEEP_ROLE)
		return GetUserId();

	/*
	 * No foreign key inserts or truncates, and these two may be done while a
	 * statement's triggers are being fired, and not by the executor.
	 */
	else if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) ||
			 TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		return GetUserId();
	else
		role = firing_role();
	return OidIsValid(role) ? role : role_unwatched(trigdata);
}

/*
 * Throw unless a flow of this role, who made the change, may have a handler, which is
 * called as that role.
 *
 * What a trigger does is its table owner's to say, and who writes to a table lets
 * him.  Whose DELETE has an action of a foreign key does not: where the trigger function
 * is not run as him, no handler is.
 */
void
role_check_handler(const TriggerData *trigdata, Oid role)
{
	Oid			userid = GetUserId();

	if (!FEISHU_TRIGGERS_KEEP_ROLE || role == userid || feishu_role_may_act(userid, role))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("trigger \"%s\" cannot have a handler called as role \"%s\"",
					trigdata->tg_trigger->tgname, GetUserNameFromId(role, false)),
			 errdetail("The change was made by a foreign key, whose actions are run as role \"%s\", the owner of the table.",
					   GetUserNameFromId(userid, false)),
			 errhint("Leave on_end out of the options template, or let the table's owner be a role that may SET ROLE to those that change the other table.")));
}
