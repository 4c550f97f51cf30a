/*-------------------------------------------------------------------------
 *
 * src/queue/record_text.c
 *	  What the queue says of ends that are not the outcome of a call.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/nls.h"
#include "queue/record_text.h"

const char *
record_lost_text(void)
{
	return _("the dispatcher ended before an answer came");
}

const char *
record_expired_text(void)
{
	return _("expired before it could be sent");
}

const char *
record_expired_hint(void)
{
	return _("See in feishu.dispatch_status what holds flows back, then queue it again by feishu.retry_flow.");
}

const char *
record_unconfirmed_hint(void)
{
	return _("See on the platform whether it has run; to start it once more, use feishu.retry_flow with new_key => true.");
}

const char *
record_not_ours_text(void)
{
	return _("the database was copied while this flow was waiting; the original sends it");
}
