/*-------------------------------------------------------------------------
 *
 * src/dispatcher/transaction.c
 *	  The dispatcher's transactions: as the owner of the queue's tables, and as
 *	  durable as what they write.
 *
 * An error in one leaves all of it to AbortOutOfAnyTransaction.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "http/http.h"
#include "launcher/launcher.h"

MemoryContext transaction_scratch;

/* Where the last commit ends that did not wait for the disk. */
static XLogRecPtr unflushed = InvalidXLogRecPtr;

/* The transaction that was begun last: has it committed, and which is it? */
static bool committed;
static uint64 number = 0;

/* Who we are outside of transactions. */
static SqlCaller caller;


/* Once a process. */
void
transaction_init(void)
{
	transaction_scratch = AllocSetContextCreate(TopMemoryContext, "feishu_flow dispatcher turn",
												ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(transaction_scratch);
}

/*
 * Lock the queue's tables for the transaction, unless somebody has locked one or
 * waits to.  All that the transaction reads or writes: if it waited for another,
 * DROP EXTENSION, which has that one and waits for these, would deadlock with it.
 * One that is missing is for the statements to complain of.
 */
static bool
lock_tables(void)
{
	for (int i = 0; i < QUEUE_TABLES; i++)
	{
		Oid			table = sql_find_table(queue_tables[i]);

		if (OidIsValid(table) && !ConditionalLockRelationOid(table, RowExclusiveLock))
			return false;
	}
	return true;
}

/*
 * Begin one as the owner of the tables, with a snapshot and the tables locked; false:
 * somebody else has locked them, and there is none.  Exits when the extension is gone.
 */
bool
transaction_begin(void)
{
	Oid			extension;

	committed = false;
	number++;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/*
	 * Dropped?  Then there is nothing to do, and nothing to complain of.  Whether
	 * it is being dropped its tables tell, not a lock on the extension: anybody
	 * can take that, by ALTER FUNCTION ... DEPENDS ON EXTENSION.
	 */
	extension = launcher_find_extension();
	if (!OidIsValid(extension))
		proc_exit(0);
	if (!lock_tables())
	{
		AbortCurrentTransaction();
		return false;
	}
	if (launcher_find_extension() != extension)
		proc_exit(0);
	PushActiveSnapshot(GetTransactionSnapshot());
	sql_begin_as_owner(&caller);
	return true;
}

/*
 * Do something in a subtransaction, with the memory context as it is.  False and the
 * error if that throws; a cancel or the like is thrown on.
 */
bool
transaction_try(void (*action) (void *arg), void *arg, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		action(arg);
		ReleaseCurrentSubTransaction();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY((*error)->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(*error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/* Do commits wait for a standby? */
bool
transaction_standby_waits(void)
{
	return SyncRepRequested() && SyncRepStandbyNames != NULL &&
		SyncRepStandbyNames[0] != '\0';
}

/*
 * Ends are recorded durably: the commit waits for the disk.  A claim alone does
 * not, for its requests are to go out at once; transaction_flush_claims sees to it when they
 * are under way.  But some claims wait:
 *
 * - Those of a key that is not ours.  Should one be lost in a crash, nothing
 *	 else tells that the platform's refusal of a used key may be due to us.
 * - All, where commits wait for a standby.  It would be promoted without knowing
 *	 what was sent, and cancel_flow would promise there that it never was.
 */
void
transaction_end(bool durable)
{
	sql_end_as_owner(&caller);
	PopActiveSnapshot();
	/* whatever commits need not wait for by default, an end does */
	if (!durable || synchronous_commit == SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", durable ? "local" : "off",
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	CommitTransactionCommand();
	committed = true;
	if (!durable)
		unflushed = XactLastCommitEnd;
	pgstat_report_stat(false);
	MemoryContextReset(transaction_scratch);
	MemoryContextSwitchTo(transaction_scratch);
}

/*
 * Write claims to disk while their requests fly.  Without a turn of the loop,
 * which might be told that a place is free and leave nobody to ask for it.
 */
void
transaction_flush_claims(void)
{
	if (unflushed == InvalidXLogRecPtr)
		return;
	http_loop_send_deferred(http_loop_get());
	XLogFlush(unflushed);
	unflushed = InvalidXLogRecPtr;
}

/* Prove that we are the only dispatcher of this database, for our lifetime. */
bool
transaction_lock_database(void)
{
	LOCKTAG		tag;

	/* SQL's advisory locks have 1 or 2 as the last field: nobody can take it */
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0x66656973, 0x68752e66, 3);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Which one is it that was begun last, from 1 on? */
uint64
transaction_number(void)
{
	return number;
}

/* Has it committed? */
bool
transaction_committed(void)
{
	return committed;
}
