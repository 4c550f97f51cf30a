/*-------------------------------------------------------------------------
 *
 * pause.h
 *	  What the functions that pause servers and flows share.
 *
 * Private to src/api/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/api/pause.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_PAUSE_H
#define FEISHU_PAUSE_H

#include "foreign/foreign.h"

extern ForeignServer *pause_find_server(const char *name);

#endif							/* FEISHU_PAUSE_H */
