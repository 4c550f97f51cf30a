/*-------------------------------------------------------------------------
 *
 * src/queue/notify.c
 *	  What a transaction has to tell the dispatcher, and those who wait, at its
 *	  end.
 *
 * What is told is noted in this backend, and passed on by callbacks at the end of
 * the transaction, registered once per backend.  Telling too much does no harm:
 * a row that was rolled back is not seen.  Telling too little is what must never
 * happen.  The end of a prepared transaction, which runs no callback of ours, is
 * seen by launcher_ddl.c; what nobody saw is left to the dispatcher's slow poll.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/resowner.h"

#include "base/waiters.h"
#include "launcher/launcher.h"
#include "launcher/launcher_sessions.h"
#include "queue/notify.h"

/* With more flows than this ended, all who wait in this database are told. */
#define MAX_ENDED	1024

/* With handlers of more roles, all sessions for handlers are told. */
#define MAX_ROLES	16

/* A role with handlers that wait. */
typedef struct HandlerNotice
{
	Oid			roleid;
	int64		min_number;
} HandlerNotice;

/* What this transaction has to tell, when it commits and when it does not. */
static DispatchNotice at_commit = {.min_id = PG_INT64_MAX};
static DispatchNotice at_abort = {.min_id = PG_INT64_MAX};
static int	abort_level = 0;	/* nesting of the innermost one that locked rows */
static bool control_at_commit = false;
static int64 ended[MAX_ENDED];	/* flows whose waiters are told at commit */
static int	num_ended = 0;		/* may be one more than there is room for */
static HandlerNotice handlers[MAX_ROLES];
static int	num_handlers = 0;	/* likewise */
static bool callback_registered = false;

static bool
notice_is_empty(const DispatchNotice *notice)
{
	return notice->min_id == PG_INT64_MAX && !notice->control && !notice->handlers && !notice->handlers_run;
}

static void
notice_clear(DispatchNotice *notice)
{
	*notice = DISPATCH_NO_NOTICE;
}

/* Tell the sessions of roles; the dispatcher, if one has none. */
static void
notify_sessions(void)
{
	if (num_handlers > MAX_ROLES)
	{
		sessions_notify_all();
		at_commit.handlers = true;
		return;
	}
	for (int i = 0; i < num_handlers; i++)
	{
		bool		told = sessions_notify(handlers[i].roleid, handlers[i].min_number);

		at_commit.handlers |= !told;
		at_commit.handlers_run |= told;
	}
}

/* Transaction callback; does not throw. */
static void
notify_at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			notify_sessions();
			if (!notice_is_empty(&at_commit))
				launcher_notify(&at_commit);
			if (num_ended > MAX_ENDED)
				waiters_notify_all();
			else
				waiters_notify(ended, num_ended);
			break;
		case XACT_EVENT_ABORT:
			if (!notice_is_empty(&at_abort))
				launcher_notify(&at_abort);
			control_at_commit = false;
			break;
		case XACT_EVENT_PREPARE:
			control_at_commit = false;
			break;
		default:
			return;
	}
	notice_clear(&at_commit);
	notice_clear(&at_abort);
	abort_level = 0;
	num_ended = 0;
	num_handlers = 0;
}

/*
 * Subtransaction callback; does not throw.  Row locks go with the subtransaction
 * that took them, and the transaction may stay open for long.
 */
static void
notify_at_subtransaction_end(SubXactEvent event, SubTransactionId sub,
						   SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (abort_level < level ||
		(event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB))
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
		launcher_notify(&at_abort);
	abort_level = level - 1;
}

/*
 * Changes in catalogs are told later than rows: after the invalidation
 * messages, or the dispatcher would look at what it has cached.
 */
static void
notify_after_locks(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *arg)
{
	if (control_at_commit && phase == RESOURCE_RELEASE_AFTER_LOCKS && is_commit && is_top_level)
	{
		DispatchNotice notice = DISPATCH_NO_NOTICE;

		control_at_commit = false;
		notice.control = true;
		launcher_notify(&notice);
	}
}

static void
notify_register_callbacks(void)
{
	if (!callback_registered)
	{
		RegisterXactCallback(notify_at_transaction_end, NULL);
		RegisterSubXactCallback(notify_at_subtransaction_end, NULL);
		RegisterResourceReleaseCallback(notify_after_locks, NULL);
		callback_registered = true;
	}
}

/* At commit, have the dispatcher look at rows from id on. */
void
notify_row(int64 id)
{
	notify_register_callbacks();
	at_commit.min_id = Min(at_commit.min_id, id);
}

/*
 * notify_row, and if the transaction or the subtransaction rolls back, too: the dispatcher
 * skips a row that is locked, and must look again when it is not.  To be called in the
 * subtransaction that locks it.
 */
void
notify_locked_row(int64 id)
{
	notify_row(id);
	at_abort.min_id = Min(at_abort.min_id, id);
	abort_level = GetCurrentTransactionNestLevel();
}

void
notify_ended(int64 id)
{
	notify_register_callbacks();
	if (num_ended < MAX_ENDED)
		ended[num_ended++] = id;
	else
		num_ended = MAX_ENDED + 1;
}

void
notify_ended_some(void)
{
	notify_register_callbacks();
	num_ended = MAX_ENDED + 1;
}

/* At commit, tell the dispatcher that pauses, servers or mappings changed. */
void
notify_control(void)
{
	notify_register_callbacks();
	control_at_commit = true;
}

/* A handler of a role waits, with this number or a higher one. */
void
notify_handler(Oid roleid, int64 number)
{
	notify_register_callbacks();
	if (num_handlers > MAX_ROLES)
		return;
	for (int i = 0; i < num_handlers; i++)
	{
		if (handlers[i].roleid != roleid)
			continue;
		handlers[i].min_number = Min(handlers[i].min_number, number);
		return;
	}
	if (num_handlers < MAX_ROLES)
		handlers[num_handlers] = (HandlerNotice) {roleid, number};
	num_handlers++;
}
