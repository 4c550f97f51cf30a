/*-------------------------------------------------------------------------
 *
 * src/app/limiter_keep.c
 *	  What the limiter keeps over a restart.
 *
 * A crash empties shared memory, and two promises would break: that no more
 * than max_rate goes out, and that a pause which the platform asked for is
 * kept.  So both are written to a file (limits_file.c), which the postmaster
 * reads when it sets shared memory up.
 *
 * What has been sent cannot be written for each request.  A record therefore has
 * the history of an app and its allowance: so many requests may go out until
 * it is written again, and none beyond them before that is done.  After a
 * crash the whole allowance counts as sent at the start.  It is a part of the
 * rate (rate.c), so a rate that is small is written for nearly each request and
 * one that is large every few seconds; neither waits much after a crash.  An
 * orderly shutdown writes what was sent, without an allowance.
 *
 * One process writes at a time, for all apps, and no lock is waited for: a
 * call whose app has to be written while another process does so asks again a
 * little later, as one that waits for max_rate does.  The lock of the table of
 * apps is held to copy only.  If the file cannot be written, calls go on with
 * the limits that are in memory.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <errno.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"
#include "app/limits_file.h"
#include "base/nls.h"

/* Where a record comes from. */
typedef struct KeptApp
{
	int			slot;
	uint32		added;			/* to its allowance, once this is written */
} KeptApp;

/*
 * Copy what is to be kept of an app, with the allowance that it will have.
 * False if nothing is.  The gate's spinlock is held.
 */
static bool
gate_copy(AppGate *gate, TimestampTz now, LimitsRecord *record, uint32 *added)
{
	bool		asked = gate->allowance == 0 && gate->allowance_size > 0;

	gate->keep_epoch++;
	if (!asked && !gate_must_keep(gate, now))
	{
		gate->allowance = gate->allowance_size = 0;
		return false;
	}
	gate->allowance = Min(gate->allowance, gate->allowance_size);
	*added = gate->allowance_size - gate->allowance;
	record->allowance = gate->allowance_size;
	record->span = gate->span;
	record->rate_until = gate->rate_until;
	record->history = gate->history;
	return true;
}

/* Copy what is to be kept of all apps; the number of records. */
static int
apps_copy(LimitsRecord *records, KeptApp *kept, int room, TimestampTz now)
{
	int			num = 0;

	for (int i = 0; i < app_table->num_used && num < room; i++)
	{
		App		   *app = &apps[i];
		LimitsRecord *record = &records[num];
		bool		keep;

		SpinLockAcquire(&app->mutex);
		keep = gate_copy(&app->gate, now, record, &kept[num].added);
		SpinLockRelease(&app->mutex);
		if (!keep)
			continue;
		record->key = app_table->keys[i];
		record->payer = app->payer;
		kept[num++].slot = i;
	}
	return num;
}

/* What was copied is written: let so many requests go out. */
static void
apps_allow(const LimitsRecord *records, const KeptApp *kept, int num)
{
	for (int i = 0; i < num; i++)
	{
		App		   *app = &apps[kept[i].slot];

		/* it may be another app's meanwhile */
		if (memcmp(&app_table->keys[kept[i].slot], &records[i].key, sizeof(AppKey)) != 0)
			continue;
		SpinLockAcquire(&app->mutex);
		app->gate.allowance += kept[i].added;
		SpinLockRelease(&app->mutex);
	}
}

/* It could not be written, which must hold nobody up. */
static void
apps_allow_unwritten(void)
{
	for (int i = 0; i < app_table->num_used; i++)
	{
		App		   *app = &apps[i];

		SpinLockAcquire(&app->mutex);
		if (app->gate.allowance == 0)
			app->gate.allowance = app->gate.allowance_size;
		SpinLockRelease(&app->mutex);
	}
}

/*
 * Write the file anew; 0 or an errno.  file_lock is held, but by the last process, which
 * takes no locks and leaves no file if there is nothing to keep.
 */
static int
keep_all(bool is_last)
{
	int			room = Max(app_table->num_slots, 1);
	LimitsRecord *records = calloc(room, sizeof(LimitsRecord));
	KeptApp    *kept = calloc(room, sizeof(KeptApp));
	int			error = ENOMEM;

	if (records != NULL && kept != NULL)
	{
		int			num;

		if (!is_last)
			app_table_lock(LW_SHARED);
		num = apps_copy(records, kept, room, GetCurrentTimestamp());
		if (!is_last)
			app_table_unlock();
		error = 0;
		if (num == 0 && is_last)
			limits_file_remove();
		else
			error = limits_file_write(records, num);
		if (error == 0 && !is_last)
		{
			app_table_lock(LW_SHARED);
			apps_allow(records, kept, num);
			app_table_unlock();
		}
	}
	free(records);
	free(kept);
	return error;
}

static void
log_failure(int error)
{
	errno = error;
	ereport(LOG,
			(errcode_for_file_access(),
			 errmsg("could not write file \"%s\": %m", LIMITS_FILE),
			 errdetail("Calls go on. But after a crash feishu_flow will not know what its apps send now, nor which pauses the platform asks for."),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * Write what is to be kept, unless another process does so now; did we?  With
 * must, it is written in any case, if need be by that other process, which then
 * does it once more.  Not under a lock.  Does not throw.
 */
bool
limiter_keep(bool must)
{
	bool		done = false;

	if (app_table->lock == NULL)
		return false;
	if (must)
		pg_atomic_fetch_add_u32(&app_table->keep_asked, 1);
	do
	{
		uint32		asked;
		int			error;
		bool		is_new;

		if (!LWLockConditionalAcquire(app_table->file_lock, LW_EXCLUSIVE))
			break;				/* who has it looks after its release, too */
		asked = pg_atomic_read_u32(&app_table->keep_asked);
		error = keep_all(false);
		is_new = error != 0 && !app_table->file_failed;
		app_table->file_failed = error != 0;
		pg_atomic_write_u32(&app_table->keep_done, asked);
		LWLockRelease(app_table->file_lock);

		if (error != 0)
		{
			app_table_lock(LW_SHARED);
			apps_allow_unwritten();
			app_table_unlock();
		}
		if (is_new)
			log_failure(error);
		done = true;
	} while (pg_atomic_read_u32(&app_table->keep_done) !=
			 pg_atomic_read_u32(&app_table->keep_asked));
	return done;
}

/* The postmaster ends, in order: what was sent is known exactly. */
static void
limiter_at_shutdown(int code, Datum arg)
{
	int			error;

	/* not in a crash: what is written already is to be used then */
	if (code != 0)
		return;
	for (int i = 0; i < app_table->num_used; i++)
	{
		/* a process that an immediate shutdown has ended may hold it */
		SpinLockInit(&apps[i].mutex);
		apps[i].gate.allowance = apps[i].gate.allowance_size = 0;
	}
	error = keep_all(true);
	if (error != 0)
		log_failure(error);
}

/* The gate as it was kept; what may have been sent, as of now. */
static AppGate
gate_restore(const LimitsRecord *record, TimestampTz now)
{
	AppGate		gate = {0};

	gate.history = record->history;
	rate_repair(&gate.history);
	gate.span = record->span;
	gate.rate_until = gate.rate_kept = record->rate_until;
	if (record->allowance > 0)
		rate_count_many(&gate.history, record->allowance, now);
	return gate;
}

/* In the postmaster, when shared memory is new. */
void
limiter_restore(void)
{
	LimitsRecord *records = NULL;
	int			num = limits_file_read(&records);
	TimestampTz now = GetCurrentTimestamp();

	app_table_lock(LW_EXCLUSIVE);
	for (int i = 0; i < num; i++)
	{
		AppGate		gate = gate_restore(&records[i], now);
		App		   *app;

		if (!gate_must_keep(&gate, now))
			continue;
		app = app_append(&records[i].key, records[i].payer);
		if (app == NULL)
			break;				/* max_apps was lowered */
		app->gate = gate;
	}
	app_table_unlock();
	if (records != NULL)
		pfree(records);
	if (!IsUnderPostmaster)
		on_shmem_exit(limiter_at_shutdown, (Datum) 0);
}
