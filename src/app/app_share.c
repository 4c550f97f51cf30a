/*-------------------------------------------------------------------------
 *
 * app_share.c
 *	  How roles share the tables of apps.
 *
 * The limiter and the cache of tokens have room for feishu_flow.max_apps apps.
 * Each new secret makes a new app, so a role could fill them alone.  A slot
 * remembers who pays for it (FlowServer.payer), and who has its share of a full
 * table makes room among its own.  In the limiter, where calls under way keep their
 * slots, the last ones are a reserve for those who have less than a share.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/app_share.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "app/app_share.h"
#include "base/guc.h"
#include "base/nls.h"

/* One eighth, but a few apps in a small table. */
#define APP_SHARE_PART		8
#define APP_SHARE_LEAST		4

/* Losses that follow each other so closely make one line of the log. */
#define APP_SHARE_QUIET_MS	(60 * 1000)

int
app_share_slots(int num_slots)
{
	int			least = Min(APP_SHARE_LEAST, Max(num_slots / 2, 1));

	return Max(num_slots / APP_SHARE_PART, least);
}

int
app_share_reserve(int num_slots)
{
	return num_slots / APP_SHARE_PART;
}

void
app_share_log(pg_atomic_uint64 *logged_at, AppLoss loss)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		last = pg_atomic_read_u64(logged_at);

	/* the clock may have been set back */
	if (last != 0 && (TimestampTz) last <= now &&
		!TimestampDifferenceExceeds((TimestampTz) last, now, APP_SHARE_QUIET_MS))
		return;
	if (!pg_atomic_compare_exchange_u64(logged_at, &last, (uint64) now))
		return;
	ereport(LOG,
			(loss == APP_LOSS_LIMITS ?
			 errmsg("feishu_flow has forgotten the limits of an app, to make room for those of another") :
			 loss == APP_LOSS_TOKEN ?
			 errmsg("feishu_flow has forgotten the access token of an app, to make room for that of another") :
			 errmsg("feishu_flow has no room to keep the limits of another app: its calls wait"),
			 errhint("Set feishu_flow.max_apps, which is %d, to more than there are apps, and restart the server.",
					 feishu_guc_max_apps),
			 errhidestmt(true), errhidecontext(true)));
}
