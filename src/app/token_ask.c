/*-------------------------------------------------------------------------
 *
 * src/app/token_ask.c
 *	  How a session has the dispatcher of its database refresh a token.
 *
 * A session drives its HTTP loop only while it has calls under way, and may end
 * after the first: a refresh that it begins gets no further, though many such
 * sessions use the token.  A dispatcher always drives its loop.  So the session
 * that finds a token due hands the duty on, by a note beside the token, and the
 * dispatcher takes it from there.
 *
 * The note holds no secret: it says whose credentials on which server gave the
 * token.  The dispatcher looks them up itself, with that role's rights, and fetches
 * a token if they still have the identity (AppKey) of the token.  If they have not,
 * or cannot be looked up (what made them may not have committed), it says so; or it
 * is too busy to, or has ended, and the note becomes too old.  Then the session
 * that comes next has the duty, and is told (asked_in_vain) to see to it itself.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "app/apps_internal.h"

/*
 * The caller, told TOKEN_READY_REFRESH by a shared cache, hands its duty on to the
 * dispatcher of a database, which is to be told (DispatchNotice.tokens).
 */
void
token_ask_dispatcher(TokenLease *lease, const TokenAsked *asked)
{
	TimestampTz now = GetCurrentTimestamp();
	AppToken   *token;

	Assert(lease->fetching && lease->flight != 0);
	token_lease_drop_duty(lease);
	app_table_lock(LW_EXCLUSIVE);
	token = token_of_flight(lease);
	if (token != NULL)
	{
		token->flight = 0;
		token->ask = TOKEN_ASK_PENDING;
		token->ask_until = TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS);
		token->asked = *asked;
	}
	app_table_unlock();
}

/* What it is asked for; at most max. */
int
token_asks_of_database(TokenAsked *asked, int max)
{
	int			num = 0;

	if (!token_cache_is_shared())
		return 0;
	app_table_lock(LW_SHARED);
	for (int i = 0; i < app_table->num_used && num < max; i++)
	{
		if (apps[i].token.ask == TOKEN_ASK_PENDING &&
			apps[i].token.asked.database == MyDatabaseId)
		{
			asked[num] = apps[i].token.asked;
			asked[num++].key = app_table->keys[i];
		}
	}
	app_table_unlock();
	return num;
}

bool
token_ask_accept(TokenLease *lease)
{
	TimestampTz now = GetCurrentTimestamp();
	AppToken   *token;
	bool		accepted = false;

	app_table_lock(LW_EXCLUSIVE);
	token = token_find(&lease->key);
	if (token != NULL && token->ask == TOKEN_ASK_PENDING)
	{
		token->ask = TOKEN_ASK_NONE;
		/* it may have expired, or somebody may be at it who needs it more */
		accepted = token_is_good(token, now) && token->refresh_at <= now &&
			!token_is_fetched(token, now);
		if (accepted)
			token_start_flight(token, lease,
							   TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_MS), true);
	}
	app_table_unlock();
	return accepted;
}

void
token_ask_refuse(const AppKey *key)
{
	AppToken   *token;

	app_table_lock(LW_EXCLUSIVE);
	token = token_find(key);
	if (token != NULL && token->ask == TOKEN_ASK_PENDING)
		token->ask = TOKEN_ASK_IN_VAIN;
	app_table_unlock();
}
