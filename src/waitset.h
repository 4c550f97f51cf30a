/*-------------------------------------------------------------------------
 *
 * waitset.h
 *	  A WaitEventSet over sockets that come and go at somebody else's will.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/waitset.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WAITSET_H
#define FEISHU_WAITSET_H

#include "datatype/timestamp.h"

typedef struct SocketWaitSet SocketWaitSet;

/* What waitset_wait found; events are WL_SOCKET_READABLE and _WRITEABLE. */
typedef struct SocketEvent
{
	int			fd;
	uint32		events;
} SocketEvent;

/* A new set in TopMemoryContext, for the life of the process. */
extern SocketWaitSet *waitset_create(void);

/*
 * All below but waitset_wait neither throw nor palloc, so that a callback of a
 * library may call them; false of waitset_opened and _want means that memory
 * ran out.
 */

/* fd was opened by us, and waitset_closed will tell when it goes. */
extern bool waitset_opened(SocketWaitSet *set, int fd);
extern void waitset_closed(SocketWaitSet *set, int fd);

/* From now on wait for these events on fd; 0: for none. */
extern bool waitset_want(SocketWaitSet *set, int fd, uint32 events);

/*
 * From now on nothing may come on fd while nothing is wanted of it.  It is one
 * that we opened, and connected.  Ends with fd.
 */
extern void waitset_quiet(SocketWaitSet *set, int fd);

/*
 * Something was heard on fd, as each time that waitset_wait finds it readable;
 * and was anything since waitset_num_heard gave this number?
 */
extern void waitset_hear(SocketWaitSet *set, int fd);
extern uint64 waitset_num_heard(const SocketWaitSet *set);
extern bool waitset_heard_since(const SocketWaitSet *set, int fd, uint64 number);

/*
 * The peer of fd may be gone: shut it down as soon as nothing is wanted of it,
 * unless something is heard before, or has come already.  Is any in doubt?
 */
extern void waitset_doubt(SocketWaitSet *set, int fd);
extern bool waitset_has_doubts(const SocketWaitSet *set);

/*
 * The socket that we opened with this local port and peer (a numeric address), or
 * -1; and is one that we opened still open?
 */
extern int	waitset_find(const SocketWaitSet *set, int local_port,
						 const char *peer_address, int peer_port);
extern bool waitset_is_open(const SocketWaitSet *set, int fd);

/*
 * Shut down each socket on which something came that may not have come, so that
 * nobody uses it again.  waitset_wait does so, too, for what comes meanwhile.
 */
extern void waitset_shut_noisy(SocketWaitSet *set);

/*
 * Wait until a socket has one of its events, the process latch is set, or so
 * many ms have passed; -1: no matter how many.  Returns the number of events
 * stored; *latch_set tells of the latch, which is then reset.  Exits when the
 * postmaster dies.  May throw when system resources run out; the set stays
 * usable.
 */
extern int	waitset_wait(SocketWaitSet *set, long timeout_ms, uint32 wait_event,
						 SocketEvent *events, int max_events, bool *latch_set);

#endif							/* FEISHU_WAITSET_H */
