/*-------------------------------------------------------------------------
 *
 * dispatch_tokens.c
 *	  The dispatcher refreshes the tokens that sessions of its database use.
 *
 * Who asks says whose credentials on which server it used (token_ask.c).  They are
 * looked up as that role's, so with its rights, and as they are now.  What cannot be
 * looked up is no trouble of the dispatcher's: who asked is told, and makes the
 * request itself.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatch_tokens.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "foreign/foreign.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "dispatch.h"
#include "fetch.h"
#include "guc.h"
#include "token.h"

/* Copied at once from the cache. */
#define MAX_ASKED	16

/* Fetch a token for who asked.  False: its credentials are others by now. */
static bool
refresh_token(const TokenAsked *asked)
{
	ForeignServer *foreign_server = GetForeignServerExtended(asked->serverid, FSV_MISSING_OK);
	FlowServer *server;
	bool		is_same;

	if (foreign_server == NULL || GetUserNameFromId(asked->userid, true) == NULL)
		return false;
	server = server_lookup(foreign_server->servername, asked->userid);
	is_same = memcmp(&server->app_key, &asked->key, sizeof(AppKey)) == 0;
	if (is_same)
	{
		TokenLease	lease;

		token_lease_init(&lease, &asked->key, server->payer, CurrentMemoryContext);
		if (token_ask_accept(&lease))
			(void) token_refresh_start(TopMemoryContext, server, &lease,
									   server->connect_timeout_ms >= 0 ?
									   server->connect_timeout_ms : feishu_guc_connect_timeout,
									   NULL, NULL);
	}
	server_forget_secrets(server);
	return is_same;
}

/* The same in a subtransaction: an error is a no. */
static bool
refresh_try(const TokenAsked *asked)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		done = refresh_token(asked);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION)
			ReThrowError(error);
		FreeErrorData(error);
		done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

void
tokens_refresh_asked(void)
{
	TokenAsked	asked[MAX_ASKED];
	int			num;

	/* each has its answer then */
	do
	{
		num = token_asks_of_database(asked, MAX_ASKED);
		for (int i = 0; i < num; i++)
		{
			if (!refresh_try(&asked[i]))
				token_ask_refuse(&asked[i].key);
		}
	} while (num == MAX_ASKED);
}
