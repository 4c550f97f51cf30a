/*-------------------------------------------------------------------------
 *
 * src/dispatcher/share.h
 *	  What lower priorities of a lane get while higher ones have rows.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SHARE_H
#define FEISHU_SHARE_H

struct Lane;
struct Tier;

typedef struct LaneShare
{
	int			passed_by;		/* places that went to the highest tier with rows
								 * while lower ones waited, less what these got */
	uint64		num_shares;		/* counts what they got */
} LaneShare;

/* How a tier stands among those of its lane that have rows. */
typedef struct ShareRank
{
	bool		is_below;		/* higher ones have */
	bool		is_above;		/* lower ones have */
} ShareRank;

extern ShareRank share_rank(const struct Tier *tier);
extern void share_note(struct Tier *tier, ShareRank rank, int places);
extern struct Tier *share_lower(const struct Lane *lane, int most, int *places);

#endif							/* FEISHU_SHARE_H */
