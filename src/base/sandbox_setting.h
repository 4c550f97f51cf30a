/*-------------------------------------------------------------------------
 *
 * src/base/sandbox_setting.h
 *	  The setting feishu_flow.sandbox_response: how it is written, and who set it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SANDBOX_SETTING_H
#define FEISHU_SANDBOX_SETTING_H

#include "utils/guc.h"

#define SANDBOX_SETTING		"feishu_flow.sandbox_response"

extern char *feishu_guc_sandbox_response;	/* empty: the platform's own example */

/* Hooks of the setting. */
extern bool sandbox_setting_check(char **newval, void **extra, GucSource source);
extern void sandbox_setting_assign(const char *newval, void *extra);
extern bool sandbox_setting_split(const char *value, int *http_status, const char **body);
extern Oid	sandbox_setting_owner(void);
extern const char *sandbox_setting_configured(void);
extern Oid	sandbox_database_owner(void);

#endif							/* FEISHU_SANDBOX_SETTING_H */
