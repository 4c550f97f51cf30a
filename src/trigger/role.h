/*-------------------------------------------------------------------------
 *
 * role.h
 *	  The role that ran the statement for which a trigger fires.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/trigger/role.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ROLE_H
#define FEISHU_ROLE_H

#include "commands/trigger.h"

/* Watch statements from here on.  To be called once, when the library is loaded. */
extern void role_install_hooks(void);

/* The role that was current_user of the statement that made the change. */
extern Oid	role_of_change(const TriggerData *trigdata);

#endif							/* FEISHU_ROLE_H */
