/*-------------------------------------------------------------------------
 *
 * src/http/http_poller.c
 *	  The kernel's set of sockets to wait for: epoll, level-triggered.
 *
 * The set is a descriptor that is readable while one of its sockets has an
 * event, so that it can be waited for in a WaitEventSet.  This is the only file
 * to change for a system that has something else, such as kqueue.  Nothing here
 * throws.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>

#ifdef HAVE_SYS_EPOLL_H
#include <sys/epoll.h>
#else
#error "feishu_flow needs epoll; see http_poller.c"
#endif

#include "http/http_sockets.h"

/* Events fetched from the kernel at once. */
#define MAX_EVENTS				64

/* A new set, or -1 with errno. */
int
http_poller_create(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

/*
 * Wait for these CURL_CSELECT_* on fd, which was waited for "before"; 0: not at
 * all.  "before" may be wrong: a socket leaves the set when it is closed.
 */
bool
http_poller_set(int poller, int fd, int before, int events, uint32 generation)
{
	struct epoll_event event = {
		.events = ((events & CURL_CSELECT_IN) ? EPOLLIN : 0) |
		((events & CURL_CSELECT_OUT) ? EPOLLOUT : 0),
		.data.u64 = (uint64) generation << 32 | (uint32) fd
	};

	if (events == 0)
	{
		(void) epoll_ctl(poller, EPOLL_CTL_DEL, fd, &event);
		return true;
	}
	if (epoll_ctl(poller, before ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) == 0)
		return true;
	if (errno == ENOENT)
		return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0;
	if (errno == EEXIST)
		return epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event) == 0;
	return false;
}

/* Events that there are now.  Those left out come first the next time. */
int
http_poller_look(int poller, HttpPolled *polled, int max)
{
	struct epoll_event events[MAX_EVENTS];
	int			num = epoll_wait(poller, events, Min(max, MAX_EVENTS), 0);

	for (int i = 0; i < num; i++)
	{
		bool		failed = (events[i].events & (EPOLLERR | EPOLLHUP)) != 0;

		polled[i].fd = (int) (uint32) events[i].data.u64;
		polled[i].generation = (uint32) (events[i].data.u64 >> 32);
		polled[i].events = ((failed || (events[i].events & EPOLLIN)) ? CURL_CSELECT_IN : 0) |
			((failed || (events[i].events & EPOLLOUT)) ? CURL_CSELECT_OUT : 0);
	}
	return Max(num, 0);
}
