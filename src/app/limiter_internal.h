/*-------------------------------------------------------------------------
 *
 * limiter_internal.h
 *	  The limiter's memory, for the files of the limiter alone.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/limiter_internal.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_LIMITER_INTERNAL_H
#define FEISHU_LIMITER_INTERNAL_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

#include "app/gate.h"
#include "app/limiter.h"

typedef struct LimiterSlot
{
	slock_t		mutex;
	bool		recently_used;	/* spared once by slot_take */
	Oid			payer;			/* InvalidOid: several; see app_share.c */
	AppGate		gate;
} LimiterSlot;

typedef struct Limiter
{
	LWLock	   *lock;			/* NULL: not shared */
	pg_atomic_uint32 ends;		/* of pauses that ended early */
	pg_atomic_uint32 frees;		/* places given back for which somebody waits */
	pg_atomic_uint64 loss_logged_at;
	pg_atomic_uint64 no_room_logged_at;
	/* limiter_keep.c */
	LWLock	   *file_lock;		/* who writes the file; nobody waits for it */
	bool		file_failed;	/* and that was told; under file_lock */
	pg_atomic_uint32 keep_asked;
	pg_atomic_uint32 keep_done;
	int			num_slots;
	int			num_used;		/* the first so many are in use */
	int			hand;			/* of slot_take */
	AppKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* then the slots */
} Limiter;

/* limiter_slots.c */
extern Limiter *limiter;
extern LimiterSlot *limiter_slots;

extern void limiter_ensure(void);
extern int	limiter_slot_find(const AppKey *key);
extern int	limiter_slot_find_or_add(const FlowServer *server);
extern void limiter_slot_hold(int slot, int places, int turns);
extern void limiter_tell_free(void);
extern void limiter_log_losses(void);

static inline void
limiter_lock(LWLockMode mode)
{
	if (limiter->lock != NULL)
		LWLockAcquire(limiter->lock, mode);
}

static inline void
limiter_unlock(void)
{
	if (limiter->lock != NULL)
		LWLockRelease(limiter->lock);
}

/* limiter_keep.c */
extern void limiter_restore(void);
extern bool limiter_keep(bool must);

#endif							/* FEISHU_LIMITER_INTERNAL_H */
