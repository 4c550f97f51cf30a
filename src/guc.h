/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  Settings of feishu_flow.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/guc.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_GUC_H
#define FEISHU_GUC_H

extern char *feishu_guc_server;	/* server used when a call names none */
extern int	feishu_guc_timeout; /* ms, a whole call */
extern int	feishu_guc_connect_timeout; /* ms, name lookup + TCP + TLS */
extern int	feishu_guc_max_response_size;	/* kB */
extern int	feishu_guc_max_apps;	/* slots of the shared token cache */

/* To be called once, from _PG_init. */
extern void guc_define_settings(void);

#endif							/* FEISHU_GUC_H */
