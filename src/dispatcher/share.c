/*-------------------------------------------------------------------------
 *
 * src/dispatcher/share.c
 *	  What lower priorities of a lane get while higher ones have rows.
 *
 * Places of a lane go to its highest tier with rows, as many as it can use.  When
 * it never runs dry, one place in SHARE_PLACES goes to the lower ones all the same:
 * these take turns.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dispatcher/lane.h"

#define SHARE_PLACES		8

/* What the lower ones could not use by then is not kept for them. */
#define SHARE_MOST			(FLIGHT_BATCH / SHARE_PLACES)

static bool
has_rows(const Tier *tier)
{
	return tier_work_at(tier) == 0;
}

/* As it is before rows of it are claimed. */
ShareRank
share_rank(const Tier *tier)
{
	const Lane *lane = tier->lane;
	ShareRank	rank = {false, false};

	for (int i = 0; i < lane->num_tiers; i++)
	{
		const Tier *other = lane->tiers[i];

		if (other == tier || !has_rows(other))
			continue;
		if (other->priority > tier->priority)
			rank.is_below = true;
		else
			rank.is_above = true;
	}
	return rank;
}

/* A tier that stood so has had places. */
void
share_note(Tier *tier, ShareRank rank, int places)
{
	LaneShare  *share = &tier->lane->share;

	if (rank.is_below)
	{
		share->passed_by = Max(share->passed_by - places * (SHARE_PLACES - 1), 0);
		tier->shared = ++share->num_shares;
	}
	else if (rank.is_above)
		share->passed_by = Min(share->passed_by + places, SHARE_MOST * (SHARE_PLACES - 1));
	else
		share->passed_by = 0;	/* nobody waits */
}

/*
 * The lower tier that is to have places now, before the highest one; NULL: none is.
 * Returns how many, too.
 */
Tier *
share_lower(const Lane *lane, int most, int *places)
{
	Tier	   *next = NULL;
	bool		is_top = true;

	*places = Min(lane->share.passed_by / (SHARE_PLACES - 1), most);
	if (*places == 0)
		return NULL;
	for (int i = 0; i < lane->num_tiers; i++)
	{
		Tier	   *tier = lane->tiers[i];

		if (!has_rows(tier))
			continue;
		if (!is_top && (next == NULL || tier->shared < next->shared))
			next = tier;
		is_top = false;
	}
	return next;
}
