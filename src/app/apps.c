/*-------------------------------------------------------------------------
 *
 * src/app/apps.c
 *	  The table of apps: what all processes know of each app in use.
 *
 * An app is found by its key (AppKey), and has a token (token.c) and a gate
 * (limiter.c).  With shared_preload_libraries the table is in shared memory and has
 * feishu_flow.max_apps slots, so that all backends and dispatchers of the cluster share
 * tokens and keep limits together; else each process has a small one of its own.
 *
 * The lock protects which app has which slot, and the tokens.  It is held shared to
 * find an app and to copy its token, exclusively to give a slot to another app or to
 * change a token, and never for longer than that.  The app's spinlock protects its
 * gate.  All of it is plain data.
 *
 * A slot in use stays: one with calls under way, with callers who wait their turn, or
 * with a fetch of a token that has time left.  So who has a place or a turn finds his app
 * without the lock.  All others find it by its key each time.
 *
 * Any other slot makes room for another app when need be.  The first is one with which
 * nothing is lost, whoever had it.  Next is one with a good token, but no limits in
 * force, and last one whose limits are in force.  Of several it is the one that was not
 * used for longest.  Each new secret makes a new app, so a role could fill the table
 * alone.  So a slot remembers who pays for it (FlowServer.payer), and
 *
 *	- who has a share of the slots makes room among his own;
 *	- limits in force make room only for an app of the same payer, or where one payer
 *	  has most of the slots and more than a share;
 *	- the last slots are a reserve for those who have less than a share, so one whose
 *	  calls hang leaves room for others.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/mman.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/pg_shmem.h"
#include "storage/shmem.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"
#include "base/guc.h"
#include "base/nls.h"

#define APPS_TRANCHE		"feishu_flow_apps"

/* Apps that a process without the shared table remembers. */
#define APPS_LOCAL			16

/* A share, and the reserve, are an eighth; a share is a few apps in a small table. */
#define APPS_SHARE_PART		8
#define APPS_SHARE_LEAST	4

/* Losses that follow each other so closely make one line of the log. */
#define APPS_QUIET_MS		(60 * 1000)

/* Payers are counted by their number modulo this, which tells most apart. */
#define PAYER_BUCKETS		1024

/* What would be lost with an app, from the least on. */
typedef enum AppWorth
{
	APP_HAS_NOTHING,
	APP_HAS_TOKEN,
	APP_HAS_LIMITS,
	APP_IN_USE
} AppWorth;

AppTable   *app_table = NULL;
App		   *apps = NULL;

static App *last_found = NULL;	/* the first to look at */
static bool lost[APP_LOSSES];	/* by this process, and not yet told */


/* ---------- Memory ---------- */

/* Where the apps are: after the keys. */
static Size
apps_offset(int num_slots)
{
	return MAXALIGN(add_size(offsetof(AppTable, keys), mul_size(num_slots, sizeof(AppKey))));
}

static Size
table_size(int num_slots)
{
	return add_size(apps_offset(num_slots), mul_size(num_slots, sizeof(App)));
}

#ifdef MADV_DONTDUMP

/* Keep the pages of this size, in which the memory is, out of core dumps. */
static bool
keep_out_of_core(void *memory, Size size, Size page)
{
	uintptr_t	start = TYPEALIGN_DOWN(page, (uintptr_t) memory);
	uintptr_t	end = TYPEALIGN(page, (uintptr_t) memory + size);

	return madvise((void *) start, end - start, MADV_DONTDUMP) == 0;
}

#endif

/*
 * Tokens are no business of a core dump.  The pages may be huge; that is known only
 * from the failure to treat a part of one.  What else is in them is lost to it, too.
 */
static void
table_keep_out_of_core(void *memory, Size size)
{
#ifdef MADV_DONTDUMP
	Size		huge_page = 0;
	int			flags;

	if (keep_out_of_core(memory, size, sysconf(_SC_PAGESIZE)))
		return;
	GetHugePageSize(&huge_page, &flags);
	if (huge_page == 0 || !keep_out_of_core(memory, size, huge_page))
		ereport(LOG,
				(errmsg("could not keep feishu_flow's access tokens out of core dumps: %m")));
#endif
}

static void
table_attach(AppTable *table, int num_slots)
{
	app_table = table;
	apps = (App *) ((char *) table + apps_offset(num_slots));
	last_found = NULL;
}

/* Attach to a new table.  locks: of the shared one, or NULL. */
static void
table_init(AppTable *table, int num_slots, LWLockPadded *locks)
{
	memset(table, 0, table_size(num_slots));
	if (locks != NULL)
	{
		table->lock = &locks[0].lock;
		table->file_lock = &locks[1].lock;
	}
	table->num_slots = num_slots;
	for (int i = 0; i < APP_LOSSES; i++)
		pg_atomic_init_u64(&table->told_at[i], 0);
	pg_atomic_init_u32(&table->ends, 0);
	pg_atomic_init_u32(&table->frees, 0);
	pg_atomic_init_u32(&table->keep_asked, 0);
	pg_atomic_init_u32(&table->keep_done, 0);
	table_attach(table, num_slots);
	for (int i = 0; i < num_slots; i++)
		SpinLockInit(&apps[i].mutex);
	table_keep_out_of_core(table, table_size(num_slots));
}

void
apps_request_shmem(void)
{
	RequestAddinShmemSpace(table_size(feishu_guc_max_apps));
	RequestNamedLWLockTranche(APPS_TRANCHE, 2);
}

/* Reads what was kept over the restart, too. */
void
apps_startup_shmem(void)
{
	int			num_slots = feishu_guc_max_apps;
	AppTable   *table;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	table = ShmemInitStruct("feishu_flow apps", table_size(num_slots), &found);
	if (found)
		table_attach(table, num_slots);
	else
		table_init(table, num_slots, GetNamedLWLockTranche(APPS_TRANCHE));
	LWLockRelease(AddinShmemInitLock);
	if (!found)
		limiter_restore();
}

/* At the first use in a process: make a table if there is no shared one. */
void
app_table_ensure(void)
{
	if (app_table == NULL)
		table_init(MemoryContextAlloc(TopMemoryContext, table_size(APPS_LOCAL)), APPS_LOCAL,
				   NULL);
}


/* ---------- The lock, and the log ---------- */

void
app_table_lock(LWLockMode mode)
{
	if (app_table->lock != NULL)
		LWLockAcquire(app_table->lock, mode);
}

/* Tell the log of a loss, unless it was told so lately. */
static void
tell_loss(AppLoss loss)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		last = pg_atomic_read_u64(&app_table->told_at[loss]);

	/* the clock may have been set back */
	if (last != 0 && (TimestampTz) last <= now &&
		!TimestampDifferenceExceeds((TimestampTz) last, now, APPS_QUIET_MS))
		return;
	if (!pg_atomic_compare_exchange_u64(&app_table->told_at[loss], &last, (uint64) now))
		return;
	ereport(LOG,
			(loss == APP_LOSS_LIMITS ?
			 errmsg("feishu_flow has dropped the limits of an app, because another app needed the place") :
			 loss == APP_LOSS_TOKEN ?
			 errmsg("feishu_flow has dropped the access token of an app, because another app needed the place") :
			 errmsg("feishu_flow has no place left for the limits of another app: its calls wait"),
			 errhint("Set feishu_flow.max_apps, which is %d, to more than there are apps, and restart the server.",
					 feishu_guc_max_apps),
			 errhidestmt(true), errhidecontext(true)));
}

/* Release the lock, and tell the log what was lost under it.  Does not throw. */
void
app_table_unlock(void)
{
	if (app_table->lock != NULL)
		LWLockRelease(app_table->lock);
	for (int i = 0; i < APP_LOSSES; i++)
	{
		/* max_apps says nothing of the memory of one process */
		if (lost[i] && app_table->lock != NULL)
			tell_loss(i);
		lost[i] = false;
	}
}


/* ---------- Who makes room ---------- */

/* Slots that a payer may have without having to give up his own first. */
static int
share_slots(void)
{
	int			least = Min(APPS_SHARE_LEAST, Max(app_table->num_slots / 2, 1));

	return Max(app_table->num_slots / APPS_SHARE_PART, least);
}

static int
payer_count_slots(Oid payer)
{
	int			count = 0;

	for (int i = 0; i < app_table->num_used; i++)
		count += apps[i].payer == payer;
	return count;
}

/* Who has most of the slots.  Almost: see PAYER_BUCKETS. */
static Oid
payer_with_most_slots(void)
{
	uint16		counts[PAYER_BUCKETS] = {0};
	Oid			most = InvalidOid;

	for (int i = 0; i < app_table->num_used; i++)
	{
		Oid			payer = apps[i].payer;

		if (!OidIsValid(payer))
			continue;
		counts[payer % PAYER_BUCKETS]++;
		if (!OidIsValid(most) ||
			counts[payer % PAYER_BUCKETS] > counts[most % PAYER_BUCKETS])
			most = payer;
	}
	return most;
}

/* What would be lost with an app?  The lock is held exclusively. */
static AppWorth
app_worth(App *app, TimestampTz now)
{
	bool		is_idle;
	bool		is_live;

	SpinLockAcquire(&app->mutex);
	is_idle = gate_is_idle(&app->gate);
	is_live = gate_is_live(&app->gate, now);
	SpinLockRelease(&app->mutex);
	if (!is_idle || token_is_fetched(&app->token, now))
		return APP_IN_USE;
	if (is_live)
		return APP_HAS_LIMITS;
	return token_is_good(&app->token, now) ? APP_HAS_TOKEN : APP_HAS_NOTHING;
}

/* Slots that may be had without a loss of limits. */
static int
count_free_slots(TimestampTz now)
{
	int			count = app_table->num_slots - app_table->num_used;

	for (int i = 0; i < app_table->num_used; i++)
		count += app_worth(&apps[i], now) < APP_HAS_LIMITS;
	return count;
}

/*
 * The app that is worth least, and of several that which was not used for longest; NULL
 * if none is worth at most so much.  With a payer, of his apps alone.
 */
static App *
victim_find(Oid payer, AppWorth worth, TimestampTz now)
{
	App		   *victim = NULL;

	for (int i = 0; i < app_table->num_used; i++)
	{
		App		   *app = &apps[i];
		AppWorth	its_worth;

		if (OidIsValid(payer) && app->payer != payer)
			continue;
		its_worth = app_worth(app, now);
		if (its_worth > worth ||
			(victim != NULL && its_worth == worth && app->last_used >= victim->last_used))
			continue;
		victim = app;
		worth = its_worth;
	}
	return victim;
}

/* Which app makes room for one of this payer; NULL: none. */
static App *
victim_choose(Oid payer, bool has_share, bool may_take, TimestampTz now)
{
	App		   *victim = NULL;

	if (may_take)
		victim = victim_find(InvalidOid, has_share ? APP_HAS_NOTHING : APP_HAS_TOKEN, now);
	if (victim == NULL && !has_share)
	{
		Oid			most = payer_with_most_slots();

		if (OidIsValid(most) && payer_count_slots(most) > share_slots())
			payer = most;
	}
	return victim != NULL ? victim : victim_find(payer, APP_HAS_LIMITS, now);
}

/* A slot for an app of this payer, or NULL. */
static App *
slot_get(Oid payer)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		has_share = payer_count_slots(payer) >= share_slots();
	bool		may_take;
	App		   *victim;

	/* may he have one that others do not need?  Else they are left to others. */
	may_take = !has_share ||
		count_free_slots(now) > app_table->num_slots / APPS_SHARE_PART;
	if (may_take && app_table->num_used < app_table->num_slots)
		return &apps[app_table->num_used++];
	victim = victim_choose(payer, has_share, may_take, now);
	if (victim == NULL)
	{
		lost[APP_LOSS_NO_ROOM] = true;
		return NULL;
	}
	lost[APP_LOSS_LIMITS] |= app_worth(victim, now) == APP_HAS_LIMITS;
	lost[APP_LOSS_TOKEN] |= token_is_good(&victim->token, now) || victim->token.flight != 0;
	SpinLockAcquire(&victim->mutex);
	memset(&victim->gate, 0, sizeof(AppGate));
	SpinLockRelease(&victim->mutex);
	memset(&victim->token, 0, sizeof(AppToken));
	return victim;
}


/* ---------- Apps ---------- */

static AppKey *
app_key(const App *app)
{
	return &app_table->keys[app - apps];
}

/* The app of a key, or NULL.  The lock is held. */
App *
app_find(const AppKey *key)
{
	if (last_found != NULL && memcmp(app_key(last_found), key, sizeof(AppKey)) == 0)
		return last_found;
	for (int i = 0; i < app_table->num_used; i++)
	{
		if (memcmp(&app_table->keys[i], key, sizeof(AppKey)) == 0)
			return last_found = &apps[i];
	}
	return NULL;
}

/*
 * The app of a key, a new one if need be, or NULL when there is no room.  Takes the
 * lock, and leaves it held, in this mode or exclusively.
 */
App *
app_find_or_add(const AppKey *key, Oid payer, LWLockMode mode)
{
	App		   *app;

	app_table_lock(mode);
	app = app_find(key);
	if (app == NULL && mode == LW_SHARED)
	{
		app_table_unlock();
		app_table_lock(LW_EXCLUSIVE);
		app = app_find(key);
	}
	if (app == NULL)
	{
		app = slot_get(payer);
		if (app == NULL)
			return NULL;
		*app_key(app) = *key;
		app->payer = payer;
		app->last_used = GetCurrentTimestamp();
	}
	else if (app->payer != payer)
		app->payer = InvalidOid;	/* for good, so a shared lock will do */
	return app;
}

/* A new app in a slot that was never used, or NULL.  The lock is held exclusively. */
App *
app_append(const AppKey *key, Oid payer)
{
	App		   *app = &apps[app_table->num_used];

	if (app_table->num_used == app_table->num_slots)
	{
		lost[APP_LOSS_LIMITS] = true;
		return NULL;
	}
	app_table->num_used++;
	*app_key(app) = *key;
	app->payer = payer;
	return app;
}
