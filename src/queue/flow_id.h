/*-------------------------------------------------------------------------
 *
 * src/queue/flow_id.h
 *	  Ids of flows: draw the next one, look at the last.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_FLOW_ID_H
#define FEISHU_FLOW_ID_H

extern int64 flow_id_draw(Oid relid);
extern int64 flow_id_last(Oid relid);

#endif							/* FEISHU_FLOW_ID_H */
