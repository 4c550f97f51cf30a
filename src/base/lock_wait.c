/*-------------------------------------------------------------------------
 *
 * src/base/lock_wait.c
 *	  Whose lock keeps a dispatcher from its queue.
 *
 * A dispatcher does not wait for locks on the queue's tables: it tries again.  So
 * who keeps it from them is looked for in the lock table.  For other locks, of
 * rows say, it waits as anybody does.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "base/lock_wait.h"
#include "base/nls.h"
#include "base/sqlrun.h"

#define LONG_WAIT_MS		1000

/* What is in the way. */
typedef struct Obstacle
{
	int			pid;			/* 0: a prepared transaction; -1: nothing */
	bool		waits;			/* for the lock itself */
	const char *table;			/* of the queue; NULL: none */
} Obstacle;

/* Has a process waited for a lock for longer than a second? */
bool
lock_wait_is_long(int pid)
{
	PGPROC	   *proc = pid != 0 ? BackendPidGetProc(pid) : NULL;
	TimestampTz since;

	/* the time stays there when the wait is over */
	if (proc == NULL || proc->waitStatus != PROC_WAIT_STATUS_WAITING)
		return false;
	since = (TimestampTz) pg_atomic_read_u64(&proc->waitStart);

	return since != 0 && TimestampDifferenceExceeds(since, GetCurrentTimestamp(), LONG_WAIT_MS);
}

/* The first of those that a process waits for. */
static Obstacle
find_blocker(int pid)
{
	Datum		pids = DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(pid));
	Datum	   *elements;
	int			num;

	deconstruct_array(DatumGetArrayTypeP(pids), INT4OID, sizeof(int32), true, TYPALIGN_INT, &elements, NULL, &num);
	return (Obstacle) {.pid = num > 0 ? DatumGetInt32(elements[0]) : -1};
}

/* Does a lock keep others from writing to what it is on? */
static bool
keeps_writers_out(LOCKMASK held, LOCKMODE wanted)
{
	for (LOCKMODE mode = AccessShareLock; mode <= MaxLockMode; mode++)
	{
		if (((held & LOCKBIT_ON(mode)) != 0 || mode == wanted) &&
			DoLockModesConflict(RowExclusiveLock, mode))
			return true;
	}
	return false;
}

/* Who has locked a table of the queue, or else waits to. */
static Obstacle
find_holder(void)
{
	LockData   *locks = GetLockStatusData();
	Obstacle	found = {.pid = -1};

	for (int table = 0; table < QUEUE_TABLES; table++)
	{
		LOCKTAG		tag;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, sql_find_table(queue_tables[table]));
		for (int i = 0; i < locks->nelements; i++)
		{
			LockInstanceData *lock = &locks->locks[i];
			bool		holds;

			if (memcmp(&lock->locktag, &tag, sizeof(tag)) != 0 ||
				!keeps_writers_out(lock->holdMask, lock->waitLockMode))
				continue;
			holds = keeps_writers_out(lock->holdMask, NoLock);
			if (found.pid < 0 || (found.waits && holds))
				found = (Obstacle) {.pid = lock->pid, .waits = !holds, .table = queue_tables[table]};
		}
	}
	return found;
}

/* The role of a process, or NULL if that has ended. */
static const char *
process_role(int pid)
{
	PGPROC	   *proc = BackendPidGetProc(pid);

	return proc != NULL && OidIsValid(proc->roleId) ? GetUserNameFromId(proc->roleId, true) : NULL;
}

/*
 * Whose lock that is, in words; if it does not wait, whose lock is on the queue's
 * tables.  palloc'd.  In a transaction.
 */
char *
lock_wait_text(int pid, bool translated)
{
	Obstacle	obstacle = lock_wait_is_long(pid) ? find_blocker(pid) : find_holder();
	const char *role = obstacle.pid > 0 ? process_role(obstacle.pid) : NULL;
	const char *format;

	if (obstacle.pid == 0)
	{
		format = obstacle.table == NULL ?
			gettext_noop("a prepared transaction has a lock that the dispatcher waits for") :
			gettext_noop("a prepared transaction has a lock on table feishu_internal.%s");
		return psprintf(translated ? _(format) : format, obstacle.table);
	}
	if (role == NULL)
	{
		format = gettext_noop("another transaction has a lock that the dispatcher waits for");
		return pstrdup(translated ? _(format) : format);
	}
	format = obstacle.table == NULL ?
		gettext_noop("process %d of role %s has a lock that the dispatcher waits for") :
		obstacle.waits ?
		gettext_noop("process %d of role %s waits for a lock on table feishu_internal.%s") :
		gettext_noop("process %d of role %s has a lock on table feishu_internal.%s");
	return psprintf(translated ? _(format) : format, obstacle.pid, role, obstacle.table);
}
