/*-------------------------------------------------------------------------
 *
 * clocks.h
 *	  Servers whose platform's clock and ours are apart, see clocks.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/call/clocks.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_CLOCKS_H
#define FEISHU_CLOCKS_H

#include "http/http.h"

/* Clocks that differ by no more are not apart. */
#define CLOCK_TOLERANCE_US	(60 * USECS_PER_SEC)

extern void clocks_request_shmem(void);
extern void clocks_startup_shmem(void);

/* An answer of a server of this database has come. */
extern void clocks_note(Oid serverid, const HttpResult *result);

#endif							/* FEISHU_CLOCKS_H */
