/*-------------------------------------------------------------------------
 *
 * waitset.c
 *	  A WaitEventSet over sockets that come and go at somebody else's will.
 *
 * PostgreSQL's WaitEventSet can be added to and modified but not removed
 * from, and its functions may throw.  libcurl opens, closes and loses
 * interest in sockets inside its callbacks, where nothing may throw.  So the
 * callbacks only write down in an array, indexed by descriptor, what is
 * wanted, and the set is brought in line just before the next wait.
 *
 * A socket that nothing is wanted of stays in the set as long as it is open,
 * registered for reading: the next request on that connection then needs no
 * system call here.  The set is rebuilt only when
 *
 * - a socket in it was closed;
 * - one of which we may not hear when it is closed is not wanted any more, for
 *	 its number may come back as another socket, or as a file.  libcurl 8.23
 *	 wants one of its own in each transfer: so a session builds the set anew for
 *	 each call, while the platform works;
 * - an idle one became readable, which means that the peer closed it or talks
 *	 out of turn.  It is muted until it is wanted again.
 *
 * Of HTTP/1 what is said out of turn would be taken for the answer to the next
 * request: libcurl 7.88 uses such a connection again (curl issue 10646).  It
 * does not when it is shut down.
 *
 * We hear of the end of a socket that we opened ourselves, so not of the name
 * resolver's; and only once it is connected: libcurl 7.88.0 to 8.2.0 closes
 * one that is not by itself (curl pull request 11439).  Connected is what it
 * wants to read from, and what is said to be quiet.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/waitset.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "waitset.h"

/* Events fetched from the kernel at once. */
#define MAX_EVENTS_PER_WAIT		64

/* Room of a new WaitEventSet; more when it is full. */
#define INITIAL_EVENTS			16

/* Entries of every set: the latch and the postmaster's death. */
#define FIXED_EVENTS			2

/* What is known of a descriptor. */
typedef struct SocketSlot
{
	uint32		wanted;			/* WL_SOCKET_*; 0: idle */
	uint32		registered;		/* WL_SOCKET_* in the set; 0: not in it */
	int			position;		/* in the set, when registered */
	bool		opened;			/* by us */
	bool		owned;			/* open, and we will hear of its end */
	bool		muted;			/* fired while idle: keep out of the set */
	bool		quiet;			/* nothing may come while it is idle */
	bool		doubted;		/* its peer may be gone */
	uint64		heard;			/* num_heard when something came last */
} SocketSlot;

struct SocketWaitSet
{
	WaitEventSet *set;			/* NULL: to be built */
	int			size;			/* its capacity */
	int			used;			/* entries in it, dead ones included */
	bool		dirty;			/* an entry must leave it: rebuild */
	SocketSlot *slots;			/* malloc'ed; indexed by descriptor */
	int			num_slots;
	int			num_known;		/* so many have been in use */
	int			num_doubted;
	uint64		num_heard;		/* how often something came, on any */
	int		   *changed;		/* malloc'ed: descriptors to add or modify */
	int			num_changed;
	int			max_changed;
};


SocketWaitSet *
waitset_create(void)
{
	return MemoryContextAllocZero(TopMemoryContext, sizeof(SocketWaitSet));
}

/* The slot of a descriptor, or NULL when memory runs out. */
static SocketSlot *
slot_get(SocketWaitSet *set, int fd)
{
	if (fd >= set->num_slots)
	{
		int			num = Max(64, set->num_slots);
		SocketSlot *slots;

		while (num <= fd)
			num *= 2;
		slots = realloc(set->slots, num * sizeof(SocketSlot));
		if (slots == NULL)
			return NULL;
		memset(slots + set->num_slots, 0,
			   (num - set->num_slots) * sizeof(SocketSlot));
		set->slots = slots;
		set->num_slots = num;
	}
	set->num_known = Max(set->num_known, fd + 1);
	return &set->slots[fd];
}

/* There is no doubt about a socket, any more. */
static void
slot_trust(SocketWaitSet *set, SocketSlot *slot)
{
	if (slot->doubted)
		set->num_doubted--;
	slot->doubted = false;
}

bool
waitset_opened(SocketWaitSet *set, int fd)
{
	SocketSlot *slot = slot_get(set, fd);

	if (slot == NULL)
		return false;
	/* A number that is in the set was closed without our knowing. */
	if (slot->registered)
		set->dirty = true;
	slot_trust(set, slot);
	slot->wanted = 0;
	slot->opened = true;
	slot->owned = false;
	slot->muted = false;
	slot->quiet = false;
	slot->heard = 0;
	return true;
}

void
waitset_closed(SocketWaitSet *set, int fd)
{
	SocketSlot *slot;

	if (fd >= set->num_slots)
		return;
	slot = &set->slots[fd];
	if (slot->registered)
		set->dirty = true;
	slot_trust(set, slot);
	slot->wanted = 0;
	slot->opened = false;
	slot->owned = false;
}

bool
waitset_want(SocketWaitSet *set, int fd, uint32 events)
{
	SocketSlot *slot = slot_get(set, fd);

	if (slot == NULL)
		return false;
	slot->wanted = events;
	if (events == 0)
	{
		if (slot->registered && !slot->owned)
			set->dirty = true;
		if (slot->doubted)
			(void) shutdown(fd, SHUT_RDWR);
		slot_trust(set, slot);
		slot->opened = slot->owned;
		return true;
	}
	if (slot->opened && (events & WL_SOCKET_READABLE))
		slot->owned = true;
	slot->muted = false;
	if (slot->registered == events)
		return true;

	if (set->num_changed >= set->max_changed)
	{
		int			max = Max(64, set->max_changed * 2);
		int		   *changed = realloc(set->changed, max * sizeof(int));

		if (changed == NULL)
			return false;
		set->changed = changed;
		set->max_changed = max;
	}
	set->changed[set->num_changed++] = fd;
	return true;
}

void
waitset_quiet(SocketWaitSet *set, int fd)
{
	SocketSlot *slot = slot_get(set, fd);

	if (slot == NULL)
		return;
	/* an answer that came at once was never waited for */
	slot->opened = true;
	slot->owned = true;
	slot->quiet = true;
}

void
waitset_hear(SocketWaitSet *set, int fd)
{
	if (fd >= set->num_slots)
		return;
	set->slots[fd].heard = ++set->num_heard;
	slot_trust(set, &set->slots[fd]);
}

void
waitset_doubt(SocketWaitSet *set, int fd)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};

	if (set->slots[fd].doubted || poll(&polled, 1, 0) != 0)
		return;
	set->slots[fd].doubted = true;
	set->num_doubted++;
}

bool
waitset_has_doubts(const SocketWaitSet *set)
{
	return set->num_doubted > 0;
}

uint64
waitset_num_heard(const SocketWaitSet *set)
{
	return set->num_heard;
}

bool
waitset_heard_since(const SocketWaitSet *set, int fd, uint64 number)
{
	return fd < set->num_slots && set->slots[fd].heard > number;
}

bool
waitset_is_open(const SocketWaitSet *set, int fd)
{
	return fd < set->num_slots && set->slots[fd].opened;
}

/* Port of a socket's address, and the address as text; -1: neither is known. */
static int
address_text(const struct sockaddr_storage *address, char *text, size_t size)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *) address;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) address;

	if (address->ss_family == AF_INET && inet_ntop(AF_INET, &in->sin_addr, text, size) != NULL)
		return ntohs(in->sin_port);
	if (address->ss_family == AF_INET6 && inet_ntop(AF_INET6, &in6->sin6_addr, text, size) != NULL)
		return ntohs(in6->sin6_port);
	return -1;
}

int
waitset_find(const SocketWaitSet *set, int local_port, const char *peer_address, int peer_port)
{
	for (int fd = 0; fd < set->num_known; fd++)
	{
		struct sockaddr_storage address;
		socklen_t	size = sizeof(address);
		char		text[INET6_ADDRSTRLEN];

		if (!set->slots[fd].opened ||
			getsockname(fd, (struct sockaddr *) &address, &size) != 0 ||
			address_text(&address, text, sizeof(text)) != local_port)
			continue;
		size = sizeof(address);
		if (getpeername(fd, (struct sockaddr *) &address, &size) == 0 &&
			address_text(&address, text, sizeof(text)) == peer_port &&
			strcmp(text, peer_address) == 0)
			return fd;
	}
	return -1;
}

/* Something came on an idle socket. */
static void
slot_mute(SocketWaitSet *set, int fd)
{
	SocketSlot *slot = &set->slots[fd];

	slot->muted = true;
	if (slot->registered)
		set->dirty = true;
	if (slot->quiet)
		(void) shutdown(fd, SHUT_RDWR);
}

/* Shut down those of the sockets that have something to read. */
static void
shut_readable(SocketWaitSet *set, struct pollfd *polled, int num)
{
	if (num == 0 || poll(polled, num, 0) <= 0)
		return;
	for (int i = 0; i < num; i++)
	{
		if (polled[i].revents != 0)
			slot_mute(set, polled[i].fd);
	}
}

void
waitset_shut_noisy(SocketWaitSet *set)
{
	struct pollfd polled[MAX_EVENTS_PER_WAIT];
	int			num = 0;

	for (int fd = 0; fd < set->num_known; fd++)
	{
		SocketSlot *slot = &set->slots[fd];

		if (!slot->quiet || !slot->owned || slot->muted || slot->wanted != 0)
			continue;
		polled[num].fd = fd;
		polled[num++].events = POLLIN;
		if (num == MAX_EVENTS_PER_WAIT)
		{
			shut_readable(set, polled, num);
			num = 0;
		}
	}
	shut_readable(set, polled, num);
}

/* Must a new set have this socket? */
static inline bool
slot_belongs(const SocketSlot *slot)
{
	return slot->wanted || (slot->owned && !slot->muted);
}

/* Put one socket into the set as it is wanted. */
static void
slot_register(SocketWaitSet *set, int fd)
{
	SocketSlot *slot = &set->slots[fd];
	uint32		events = slot->wanted ? slot->wanted : WL_SOCKET_READABLE;

	if (slot->registered == events)
		return;
	if (slot->registered)
		ModifyWaitEvent(set->set, slot->position, events, NULL);
	else
	{
		slot->position = AddWaitEventToSet(set->set, events, fd, NULL, NULL);
		set->used++;
	}
	slot->registered = events;
}

/* Build the set anew. */
static void
waitset_rebuild(SocketWaitSet *set)
{
	int			num_sockets = 0;

	set->dirty = true;			/* until all is done, should it throw */
	if (set->set != NULL)
	{
		FreeWaitEventSet(set->set);
		set->set = NULL;
	}
	for (int fd = 0; fd < set->num_known; fd++)
	{
		set->slots[fd].registered = 0;
		if (slot_belongs(&set->slots[fd]))
			num_sockets++;
	}
	set->num_changed = 0;

	set->size = Max(INITIAL_EVENTS, 2 * (num_sockets + FIXED_EVENTS));
	set->set = feishu_create_wait_event_set(set->size);
	AddWaitEventToSet(set->set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set->set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	set->used = FIXED_EVENTS;
	for (int fd = 0; fd < set->num_known; fd++)
	{
		if (slot_belongs(&set->slots[fd]))
			slot_register(set, fd);
	}
	set->dirty = false;
}

/* Bring the set in line with what is wanted. */
static void
waitset_refresh(SocketWaitSet *set)
{
	if (set->set == NULL || set->dirty ||
		set->used + set->num_changed > set->size)
	{
		waitset_rebuild(set);
		return;
	}

	if (set->num_changed == 0)
		return;
	set->dirty = true;			/* until all is done, should it throw */
	for (int i = 0; i < set->num_changed; i++)
	{
		if (set->slots[set->changed[i]].wanted)
			slot_register(set, set->changed[i]);
	}
	set->num_changed = 0;
	set->dirty = false;
}

int
waitset_wait(SocketWaitSet *set, long timeout_ms, uint32 wait_event,
			 SocketEvent *events, int max_events, bool *latch_set)
{
	WaitEvent	occurred[MAX_EVENTS_PER_WAIT];
	int			num_occurred;
	int			num_events = 0;

	*latch_set = false;
	waitset_refresh(set);

	num_occurred = WaitEventSetWait(set->set, timeout_ms, occurred,
									Min(max_events, MAX_EVENTS_PER_WAIT), wait_event);

	for (int i = 0; i < num_occurred; i++)
	{
		SocketSlot *slot;

		if (occurred[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			*latch_set = true;
		}
		if (!(occurred[i].events & WL_SOCKET_MASK))
			continue;
		slot = &set->slots[occurred[i].fd];
		if (slot->wanted == 0)
		{
			slot_mute(set, occurred[i].fd);
			continue;
		}
		if (occurred[i].events & WL_SOCKET_READABLE)
			waitset_hear(set, occurred[i].fd);
		events[num_events].fd = occurred[i].fd;
		events[num_events].events = occurred[i].events;
		num_events++;
	}
	return num_events;
}
