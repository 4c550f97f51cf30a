/*-------------------------------------------------------------------------
 *
 * attempts.h
 *	  Writing which attempts went wrong.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/attempts.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ATTEMPTS_H
#define FEISHU_ATTEMPTS_H

#include "dispatcher/flight.h"

extern void attempts_write(Flight **flights, int num);
extern void attempts_recover(void);

#endif							/* FEISHU_ATTEMPTS_H */
