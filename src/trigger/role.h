/*-------------------------------------------------------------------------
 *
 * src/trigger/role.h
 *	  The role that ran the statement for which a trigger fires.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ROLE_H
#define FEISHU_ROLE_H

#include "commands/trigger.h"

extern void role_install_hooks(void);
extern Oid	role_of_change(const TriggerData *trigdata);
extern void role_check_handler(const TriggerData *trigdata, Oid role);

#endif							/* FEISHU_ROLE_H */
