/*-------------------------------------------------------------------------
 *
 * src/base/role_settings.h
 *	  Limits that are set for a role or a database, in the dispatcher.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ROLE_SETTINGS_H
#define FEISHU_ROLE_SETTINGS_H

#include "datatype/timestamp.h"

/* Every role may set what it likes for itself: more bytes than these are not read. */
#define MAX_SETTINGS		(64 * 1024)

extern void role_settings_note_configured(void);
extern void role_settings_read(TimestampTz now);
extern void role_settings_read_again(void);
extern int	role_max_request_size(Oid roleid);
extern int	role_max_response_size(Oid roleid);

#endif							/* FEISHU_ROLE_SETTINGS_H */
