/*-------------------------------------------------------------------------
 *
 * src/dispatcher/tokens.c
 *	  The dispatcher refreshes the tokens that sessions of its database use.
 *
 * Who asks says whose credentials on which server it used (token_ask.c).  They are
 * looked up as that role's, so with its rights, and as they are now.  What cannot be
 * looked up is no trouble of the dispatcher's: who asked is told, and makes the
 * request itself.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "foreign/foreign.h"
#include "utils/memutils.h"

#include "app/token.h"
#include "app/token_fetch.h"
#include "base/compat.h"
#include "base/guc.h"
#include "dispatcher/dispatcher_internal.h"

/* Copied at once from the cache. */
#define MAX_ASKED	16

/* Who asked, and what became of it. */
typedef struct Refresh
{
	const TokenAsked *asked;
	bool		is_same;		/* its credentials are those that it asked for */
} Refresh;

/* Fetch a token for who asked. */
static void
refresh_token(void *arg)
{
	Refresh    *refresh = arg;
	const TokenAsked *asked = refresh->asked;
	ForeignServer *foreign_server = GetForeignServerExtended(asked->serverid, FSV_MISSING_OK);
	FlowServer *server;

	if (foreign_server == NULL || GetUserNameFromId(asked->userid, true) == NULL)
		return;
	server = server_lookup(foreign_server->servername, asked->userid);
	refresh->is_same = memcmp(&server->app_key, &asked->key, sizeof(AppKey)) == 0;
	if (refresh->is_same)
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
}

/* Refresh tokens for the sessions that asked.  In a transaction. */
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
			Refresh		refresh = {&asked[i], false};
			ErrorData  *error;

			if (!transaction_try(refresh_token, &refresh, &error) || !refresh.is_same)
				token_ask_refuse(&asked[i].key);
		}
	} while (num == MAX_ASKED);
}
