/*-------------------------------------------------------------------------
 *
 * shutdown.h
 *	  How a dispatcher is told to end.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/shutdown.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SHUTDOWN_H
#define FEISHU_SHUTDOWN_H

extern void shutdown_init(void);
extern void shutdown_begin_work(void);
extern void shutdown_end_work(void);
extern bool shutdown_is_told(void);
extern int	shutdown_left_ms(int limit_ms);

#endif							/* FEISHU_SHUTDOWN_H */
