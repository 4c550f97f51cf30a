/*-------------------------------------------------------------------------
 *
 * role_settings.h
 *	  Limits that are set for a role or a database, in the dispatcher.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/base/role_settings.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ROLE_SETTINGS_H
#define FEISHU_ROLE_SETTINGS_H

#include "datatype/timestamp.h"

/* Every role may set what it likes for itself: more bytes than these are not read. */
#define MAX_SETTINGS		(64 * 1024)

/* Note what the configuration says: before and after connecting, and at each reload. */
extern void role_settings_note_configured(void);

/* See what is set for roles and databases: if that was not done in the last second, or now. */
extern void role_settings_read(TimestampTz now);
extern void role_settings_read_again(void);

/* What holds for queued flows of a role, in kB. */
extern int	role_max_request_size(Oid roleid);
extern int	role_max_response_size(Oid roleid);

#endif							/* FEISHU_ROLE_SETTINGS_H */
