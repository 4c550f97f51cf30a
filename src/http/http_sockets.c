/*-------------------------------------------------------------------------
 *
 * src/http/http_sockets.c
 *	  libcurl's sockets and the wait for them.
 *
 * libcurl opens, closes and loses interest in sockets inside its callbacks,
 * where nothing may throw.  So its sockets are registered in a poller of our
 * own (http_poller.c).  That one is in a WaitEventSet {latch, postmaster death,
 * poller} which never changes: a process needs no new descriptor to wait.
 *
 * A socket that nothing is wanted of stays registered for reading as long as it
 * is open: the next request on that connection then needs no system call here.
 * It leaves the poller when
 *
 * - it is closed, also by itself;
 * - it is one of whose end we may not be notified, and it is not wanted any
 *	 more, for its number may come back as another socket, or as a file;
 * - it became readable while idle, which means that the peer closed it or sent
 *	 something unsolicited.  It is muted until it is wanted again.
 *
 * We are notified of the end of a socket that we opened ourselves, so not of the
 * name resolver's; and only once it is connected: libcurl 7.88.0 to 8.2.0 closes
 * one that is not by itself (curl pull request 11439).  Connected is what it
 * wants to read from, and what an answer came from.  Of no other socket is it
 * taken for granted that it is registered still.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/nls.h"
#include "http/http_sockets.h"

/* Of the WaitEventSet: latch, postmaster death, poller. */
#define NUM_WAIT_EVENTS			3

/* When to try again to register a socket. */
#define RETRY_MS				100

/* Build the WaitEventSet.  Throws. */
static void
sockets_build_wait_set(HttpSockets *set)
{
	set->wait_set = feishu_create_wait_event_set(NUM_WAIT_EVENTS);
	AddWaitEventToSet(set->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(set->wait_set, WL_SOCKET_READABLE, set->poller, NULL, NULL);
}

/* Free what there is of a set that could not be made, and throw. */
static void
sockets_fail(HttpSockets *set, const char *why)
{
	if (set->wait_set != NULL)
		FreeWaitEventSet(set->wait_set);
	if (set->poller >= 0)
		close(set->poller);
	while (set->num_reserved-- > 0)
		ReleaseExternalFD();
	pfree(set);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("could not prepare to wait for answers"),
			 errdetail_internal("%s", why),
			 errhint("Check that the database host has memory and file descriptors left.")));
}

/*
 * A new set in TopMemoryContext, for the life of the process.  Throws 53000 when
 * there is no descriptor for it; then it can be tried again.
 */
HttpSockets *
http_sockets_create(void)
{
	MemoryContext context = CurrentMemoryContext;
	HttpSockets *set = MemoryContextAllocZero(TopMemoryContext, sizeof(HttpSockets));
	char	   *volatile why = NULL;

	set->poller = -1;
	if (AcquireExternalFD())
	{
		set->num_reserved = 1;
		set->poller = http_poller_create();
	}
	if (set->poller < 0)
		sockets_fail(set, strerror(errno));

	PG_TRY();
	{
		sockets_build_wait_set(set);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		why = error->message;
	}
	PG_END_TRY();
	if (why != NULL)
		sockets_fail(set, why);
	return set;
}

/*
 * Tell fd.c of the sockets that are open, and of so many that may be opened soon.
 * Not done in callbacks: fd.c may close files of its own for them, and throw.
 */
void
http_sockets_reserve(HttpSockets *set, int spare)
{
	int			wanted = 1 + set->num_opened + spare;	/* with the poller */

	for (; set->num_reserved < wanted; set->num_reserved++)
		ReserveExternalFD();
	for (; set->num_reserved > wanted; set->num_reserved--)
		ReleaseExternalFD();
}

/* The slot of a descriptor, or NULL when memory runs out. */
static HttpSocket *
slot_get(HttpSockets *set, int fd)
{
	if (fd >= set->num_slots)
	{
		int			num = Max(64, set->num_slots);
		HttpSocket *slots;

		while (num <= fd)
			num *= 2;
		slots = realloc(set->slots, num * sizeof(HttpSocket));
		if (slots == NULL)
			return NULL;
		memset(slots + set->num_slots, 0,
			   (num - set->num_slots) * sizeof(HttpSocket));
		set->slots = slots;
		set->num_slots = num;
	}
	set->num_known = Max(set->num_known, fd + 1);
	return &set->slots[fd];
}

/* There is no reason to treat a socket as another of its number was. */
static void
slot_forget(HttpSockets *set, HttpSocket *slot)
{
	http_conn_trust(set, slot - set->slots);
	if (slot->quiet)
		set->num_quiet--;
	slot->quiet = false;
	if (slot->shut)
		set->num_shut--;
	slot->shut = false;
	slot->muted = false;
	slot->spent = false;
	slot->retired = false;
	slot->idle_until = HTTP_NEVER;
	slot->active = 0;
}

/* Note the state of a socket, and count. */
static void
slot_set(HttpSockets *set, HttpSocket *slot, bool opened, bool owned, int wanted)
{
	set->num_opened += (int) opened - (int) slot->opened;
	set->num_busy += (int) (owned && wanted) - (int) (slot->owned && slot->wanted);
	slot->opened = opened;
	slot->owned = owned;
	slot->wanted = wanted;
}

/*
 * Register a socket for these events; 0: not at all.  One for which the kernel has
 * no memory now is tried again in each wait.
 */
static void
slot_register(HttpSockets *set, HttpSocket *slot, int events)
{
	int			before = slot->registered;

	if (before == 0 || !slot->owned)
		slot->generation++;
	slot->registered = events;
	if (!http_poller_set(set->poller, slot - set->slots, before, events, slot->generation))
	{
		slot->registered = 0;
		set->unregistered = true;
	}
}

/* fd was opened by us, for this owner; http_socket_closed tells when it goes. */
bool
http_socket_opened(HttpSockets *set, int fd, void *owner)
{
	HttpSocket *slot = slot_get(set, fd);

	if (slot == NULL)
		return false;
	slot_forget(set, slot);
	slot_set(set, slot, true, false, 0);
	/* if there was one of this number, it left the poller by itself */
	slot->registered = 0;
	slot->owner = owner;
	slot->opened_at = steady_now();
	set->next_due = Min(set->next_due, steady_after_ms(slot->opened_at, set->max_age));
	return true;
}

/* fd, which we opened, is connected; register it, if it is not, for it is kept. */
void
http_socket_connected(HttpSockets *set, int fd)
{
	HttpSocket *slot = slot_get(set, fd);

	if (slot == NULL)
		return;
	slot_set(set, slot, true, true, slot->wanted);
	if (slot->wanted == 0 && !slot->muted && slot->registered != CURL_CSELECT_IN)
		slot_register(set, slot, CURL_CSELECT_IN);
}

/* fd is about to be closed. */
void
http_socket_closed(HttpSockets *set, int fd)
{
	HttpSocket *slot;

	if (fd >= set->num_slots)
		return;
	slot = &set->slots[fd];
	/* or it would stay if another process has it, too */
	if (slot->registered)
		slot_register(set, slot, 0);
	slot_forget(set, slot);
	slot_set(set, slot, false, false, 0);
}

/*
 * From now on wait for these events on fd of this owner; 0: for none.  Without memory for it, a
 * name resolver's is not waited for: libcurl looks at it now and then all the same.
 *
 * HTTP_SOCKET_HELD: for none either, but it is not idle.  What comes on it is the rest
 * of an answer, which is not to be read now.
 */
void
http_socket_want(HttpSockets *set, int fd, int events, void *owner)
{
	HttpSocket *slot = slot_get(set, fd);
	bool		opened;
	bool		owned;

	if (slot == NULL)
		return;
	slot->owner = owner;
	if (events == 0)
	{
		if (slot->suspect)
			http_conn_shut(set, fd);
		http_conn_trust(set, fd);
		opened = owned = slot->owned;
	}
	else
	{
		slot->muted = false;
		opened = slot->opened;
		owned = slot->owned || (opened && (events & CURL_CSELECT_IN));
	}
	slot_set(set, slot, opened, owned, events);

	/* one that is kept waits for its peer to close it */
	if (events == 0 && owned && !slot->muted)
		events = CURL_CSELECT_IN;
	events &= HTTP_SOCKET_EVENTS;
	if (slot->registered != events || (events != 0 && !owned))
		slot_register(set, slot, events);
}

/* Something came on an idle socket.  One that must be quiet is not used again. */
void
http_socket_mute(HttpSockets *set, int fd)
{
	HttpSocket *slot = &set->slots[fd];

	slot->muted = true;
	slot_register(set, slot, 0);
	if (slot->quiet)
		http_conn_shut(set, fd);
}

/* Whose event is it?  NULL: of another socket that had this number. */
HttpSocket *
http_sockets_polled(HttpSockets *set, const HttpPolled *polled)
{
	HttpSocket *slot = &set->slots[polled->fd];

	return slot->registered != 0 && slot->generation == polled->generation ? slot : NULL;
}

/* Fetch events of the sockets that there are now, and mute those that are idle. */
int
http_sockets_look(HttpSockets *set, HttpPolled *events, int max_events)
{
	int			num = http_poller_look(set->poller, events, max_events);
	int			num_events = 0;

	for (int i = 0; i < num; i++)
	{
		HttpSocket *slot = http_sockets_polled(set, &events[i]);

		if (slot == NULL)
			continue;
		if (slot->wanted == 0)
		{
			http_socket_mute(set, events[i].fd);
			continue;
		}
		events[num_events].fd = events[i].fd;
		events[num_events].events = events[i].events & slot->wanted;
		if (events[num_events].events & CURL_CSELECT_IN)
			http_conn_note_activity(set, events[i].fd);
		num_events++;
	}
	return num_events;
}

/* Register those that could not be.  Returns whether all are. */
static bool
sockets_register_again(HttpSockets *set)
{
	set->unregistered = false;
	for (int fd = 0; fd < set->num_known; fd++)
	{
		HttpSocket *slot = &set->slots[fd];

		if (slot->registered == 0 && (slot->wanted & HTTP_SOCKET_EVENTS) != 0)
			slot_register(set, slot, slot->wanted);
	}
	return !set->unregistered;
}

/*
 * Wait until a socket has one of its events, the process latch is set, or so
 * many ms have passed; -1: no matter how many.  Returns the number of events
 * stored; *latch_set tells of the latch, which is then reset.  Exits when the
 * postmaster dies.
 */
int
http_sockets_wait(HttpSockets *set, long timeout_ms, uint32 wait_event,
				  HttpPolled *events, int max_events, bool *latch_set)
{
	WaitEvent	occurred[NUM_WAIT_EVENTS];
	int			num_occurred;
	int			num_events = 0;

	*latch_set = false;
	if (set->unregistered && !sockets_register_again(set))
		timeout_ms = timeout_ms < 0 ? RETRY_MS : Min(timeout_ms, RETRY_MS);
	num_occurred = WaitEventSetWait(set->wait_set, timeout_ms, occurred,
									lengthof(occurred), wait_event);
	for (int i = 0; i < num_occurred; i++)
	{
		if (occurred[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			*latch_set = true;
		}
		if (occurred[i].events & WL_SOCKET_READABLE)
			num_events = http_sockets_look(set, events, max_events);
	}
	return num_events;
}
