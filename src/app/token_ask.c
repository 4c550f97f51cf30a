/*-------------------------------------------------------------------------
 *
 * token_ask.c
 *	  How a session has the dispatcher of its database refresh a token.
 *
 * A session drives its HTTP loop only while it has calls under way, and may end
 * after the first: a refresh that it begins gets no further, though many such
 * sessions use the token.  A dispatcher always drives its loop.  So the session
 * that finds a token due hands the duty on, by a note in the token's slot, and the
 * dispatcher takes it from there.
 *
 * The note holds no secret: it says whose credentials on which server gave the
 * token.  The dispatcher looks them up itself, with that role's rights, and fetches
 * a token if they still have the identity (AppKey) of the slot.  If they have not,
 * or cannot be looked up (what made them may not have committed), it says so; or it
 * is too busy to, or has ended, and the note becomes too old.  Then the session
 * that comes next has the duty, and is told (asked_in_vain) to see to it itself.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/token_ask.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "app/token_internal.h"

void
token_ask_dispatcher(TokenLease *lease, const TokenAsked *asked)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenSlot  *slot;

	Assert(lease->fetching && lease->flight != 0);
	token_lease_drop_duty(lease);
	token_cache_lock(LW_EXCLUSIVE);
	slot = token_slot_of_flight(lease);
	if (slot != NULL)
	{
		slot->flight = 0;
		slot->ask = TOKEN_ASK_PENDING;
		slot->ask_until = TimestampTzPlusMilliseconds(now, TOKEN_TAKEOVER_MS);
		slot->asked = *asked;
	}
	token_cache_unlock();
}

int
token_asks_of_database(TokenAsked *asked, int max)
{
	int			num = 0;

	if (!token_cache_is_shared())
		return 0;
	token_cache_lock(LW_SHARED);
	for (int i = 0; i < token_cache->num_used && num < max; i++)
	{
		if (token_slots[i].ask == TOKEN_ASK_PENDING &&
			token_slots[i].asked.database == MyDatabaseId)
		{
			asked[num] = token_slots[i].asked;
			asked[num++].key = token_cache->keys[i];
		}
	}
	token_cache_unlock();
	return num;
}

bool
token_ask_accept(TokenLease *lease)
{
	TimestampTz now = GetCurrentTimestamp();
	TokenSlot  *slot;
	bool		accepted = false;

	token_cache_lock(LW_EXCLUSIVE);
	slot = token_slot_find(&lease->key);
	if (slot != NULL && slot->ask == TOKEN_ASK_PENDING)
	{
		slot->ask = TOKEN_ASK_NONE;
		/* it may have expired, or somebody may be at it who needs it more */
		accepted = token_slot_is_good(slot, now) && slot->refresh_at <= now &&
			(slot->flight == 0 || slot->flight_deadline <= now);
		if (accepted)
			token_slot_start_flight(slot, lease,
									TimestampTzPlusMilliseconds(now, TOKEN_REFRESH_MS), true);
	}
	token_cache_unlock();
	return accepted;
}

void
token_ask_refuse(const AppKey *key)
{
	TokenSlot  *slot;

	token_cache_lock(LW_EXCLUSIVE);
	slot = token_slot_find(key);
	if (slot != NULL && slot->ask == TOKEN_ASK_PENDING)
		slot->ask = TOKEN_ASK_IN_VAIN;
	token_cache_unlock();
}
