/*-------------------------------------------------------------------------
 *
 * src/launcher/launcher_internal.h
 *	  Between launcher.c, launcher_slots.c, launcher_workers.c and launcher_ddl.c.
 *
 * Private to src/launcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LAUNCHER_INTERNAL_H
#define FEISHU_LAUNCHER_INTERNAL_H

#include "launcher/launcher.h"

#define EXTENSION_NAME		"feishu_flow"

/* What is known of a database. */
typedef enum ExtensionState
{
	EXTENSION_UNKNOWN,
	EXTENSION_ABSENT,
	EXTENSION_PRESENT
} ExtensionState;

/* A copy of what the launcher needs to know of a slot. */
typedef struct SlotView
{
	Oid			database;
	ExtensionState extension;
	bool		worker;			/* started and not over */
	uint32		generation;		/* of the worker */
	pid_t		pid;			/* 0: it has not attached yet */
	bool		held;			/* a DDL statement wants no worker */
	bool		stop;			/* the worker is, or was, to end */
	bool		ended_well;		/* the last worker's exit code was 0 */
	bool		failing;		/* the dispatcher cannot work on its queue */
	bool		locked_out;		/* ... as somebody has locked it */
	bool		no_handlers;	/* it could not start a worker for handlers */
	uint32		creations;		/* counts CREATE EXTENSION */
} SlotView;

/* Slots; of all these functions only slots_wait_until_free may throw. */
extern int	slots_count(void);
extern bool slots_view(int place, SlotView *view);
extern int	slots_find(Oid database);
extern int	slots_add(Oid database);
extern void slots_add_known(Oid database, Oid extension);
extern bool slots_remove(int place, bool database_gone);
extern void slots_notify_database(Oid database, const DispatchNotice *notice);

/* A slot's worker, seen by the launcher. */
extern bool slots_start_worker(int place, uint32 *generation);
extern void slots_forget_worker(int place, uint32 generation);
extern void slots_stop_worker(int place);
extern void slots_terminate_worker(int place);

/* A DDL statement that wants no worker in a database. */
extern int	slots_hold(Oid database);
extern void slots_release(int place);
extern void slots_wait_until_free(int place);

/* The launcher's own place. */
extern void slots_attach_launcher(void);
extern void slots_wake_launcher(bool databases_changed);
extern bool slots_take_changes(bool *overflowed);
extern void slots_set_no_room(bool no_room);
extern bool slots_may_start(void);
extern Oid	slots_lookup_extension(void);
extern void launcher_install_hooks(void);

#endif							/* FEISHU_LAUNCHER_INTERNAL_H */
