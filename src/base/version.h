/*-------------------------------------------------------------------------
 *
 * version.h
 *	  Version of feishu_flow, as in feishu_flow.control.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/base/version.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_VERSION_H
#define FEISHU_VERSION_H

#define FEISHU_FLOW_VERSION "1.0"

#endif							/* FEISHU_VERSION_H */
