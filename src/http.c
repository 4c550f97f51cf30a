/*-------------------------------------------------------------------------
 *
 * http.c
 *	  HTTP transfers over one wait loop: libcurl's multi interface driven by
 *	  a WaitEventSet.
 *
 * Together with http_transfer.c, which has the single transfer,
 * http_classify.c and http_handle.c, this is the only code that knows of
 * libcurl.  A process has one HttpLoop, made at the first request and kept until the process ends, so
 * that connections, the DNS cache and loaded CA certificates outlive a call.
 *
 * Rules that everything here keeps:
 *
 * - A callback of libcurl never throws and never calls anything of PostgreSQL
 *	 that can.  It writes to memory that is already there or comes from
 *	 malloc, and reports trouble by a flag or its return value.
 *
 * - Signals are blocked around each libcurl call (curl_enter, curl_leave), but
 *	 for SIGQUIT, by which a backend dies at once: no handler runs inside
 *	 libcurl, and the threads that libcurl starts to resolve names inherit the
 *	 mask, so that a signal meant for the backend is never delivered to one of
 *	 them.
 *
 * - libcurl never waits.  http_loop_turn does, by http_sockets.c, on {latch,
 *	 postmaster death, libcurl's sockets}, and then lets CHECK_FOR_INTERRUPTS
 *	 have its say.
 *
 * Each transfer belongs to a memory context, whose reset callback removes it
 * from the loop: that covers every error, cancel and termination.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/http.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "http_internal.h"
#include "nls.h"
#include "steady.h"

/* Socket events handled in one turn. */
#define HTTP_EVENTS_PER_TURN	64

/* Idle connections kept by a process that makes one call at a time. */
#define HTTP_MAX_IDLE_CONNECTIONS	8L

/*
 * Connections of a process may take three quarters of the descriptors that fd.c
 * has, as long as so many are left to PostgreSQL's own files.  That is more than
 * fd.c lets go to what it does not manage (AcquireExternalFD), but to wait takes no
 * descriptor any more.  And a few there are in any case.
 */
#define HTTP_RESERVED_DESCRIPTORS	48
#define HTTP_MIN_CONNECTIONS		4

/* Descriptors of a transfer that has no connection yet: to resolve a name, or to
 * try two addresses at once. */
#define HTTP_BEGIN_DESCRIPTORS		2

static HttpLoop *the_loop = NULL;


/* ---------- Callbacks of libcurl: no throw, no palloc ---------- */

/* CURLMOPT_SOCKETFUNCTION: libcurl says what it waits for on a socket. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *userp, void *socketp)
{
	HttpLoop   *loop = userp;
	int			events = 0;

	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= CURL_CSELECT_IN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= CURL_CSELECT_OUT;
	http_socket_want(loop->sockets, fd, events);
	return 0;					/* -1 would end every transfer, for good */
}

/* CURLMOPT_TIMERFUNCTION: libcurl says when it wants to be called again. */
static int
on_timer(CURLM *multi, long timeout_ms, void *userp)
{
	HttpLoop   *loop = userp;

	/* comes several times a request: the clock is read when that is needed */
	loop->timer = timeout_ms == 0 ? 0 : HTTP_NO_TIMER;	/* 0: at once */
	loop->timer_in_ms = timeout_ms > 0 ? timeout_ms : -1;
	return 0;
}

/* CURLOPT_OPENSOCKETFUNCTION; userp is the HttpHandle */
curl_socket_t
http_open_socket(void *userp, curlsocktype purpose, struct curl_sockaddr *address)
{
	HttpTransfer *transfer = ((HttpHandle *) userp)->transfer;
	curl_socket_t fd;
	int			type = address->socktype;

#ifdef SOCK_CLOEXEC
	type |= SOCK_CLOEXEC;
#endif
	fd = socket(address->family, type, address->protocol);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
		transfer->no_socket = true;
	if (fd >= 0 && !http_socket_opened(transfer->loop->sockets, fd))
	{
		close(fd);
		fd = CURL_SOCKET_BAD;
		transfer->no_socket = true;
	}
	return fd;
}

/* CURLOPT_CLOSESOCKETFUNCTION; the loop, for the handle may be gone by then */
int
http_close_socket(void *userp, curl_socket_t fd)
{
	HttpLoop   *loop = userp;

	http_socket_closed(loop->sockets, fd);
	return close(fd);
}


/* ---------- The loop ---------- */

HttpLoop *
http_loop_get(void)
{
	static bool initialized = false;
	static HttpSockets *sockets = NULL;
	HttpLoop   *loop;
	sigset_t	saved;
	bool		ok;

	if (the_loop != NULL)
		return the_loop;

	if (sockets == NULL)
		sockets = http_sockets_create();
	loop = MemoryContextAllocZero(TopMemoryContext, sizeof(HttpLoop));
	loop->sockets = sockets;
	loop->budget = Max(max_safe_fds - Max(max_safe_fds / 4, HTTP_RESERVED_DESCRIPTORS),
					   HTTP_MIN_CONNECTIONS);
	loop->timer = HTTP_NO_TIMER;
	loop->timer_in_ms = -1;
	dlist_init(&loop->active);
	dlist_init(&loop->done);
	dlist_init(&loop->heavy);
	dlist_init(&loop->paused);

	curl_enter(&saved);
	if (!initialized)
		initialized = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
	if (initialized)
	{
		loop->multi = curl_multi_init();
		loop->headers = http_headers_create();
	}
	ok = loop->multi != NULL && loop->headers != NULL &&
		curl_multi_setopt(loop->multi, CURLMOPT_SOCKETFUNCTION, on_socket) == CURLM_OK &&
		curl_multi_setopt(loop->multi, CURLMOPT_SOCKETDATA, loop) == CURLM_OK &&
		curl_multi_setopt(loop->multi, CURLMOPT_TIMERFUNCTION, on_timer) == CURLM_OK &&
		curl_multi_setopt(loop->multi, CURLMOPT_TIMERDATA, loop) == CURLM_OK &&
		curl_multi_setopt(loop->multi, CURLMOPT_MAXCONNECTS, HTTP_MAX_IDLE_CONNECTIONS) == CURLM_OK &&
	/* beyond, libcurl closes one that is idle, or lets a transfer wait */
		curl_multi_setopt(loop->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long) loop->budget) == CURLM_OK;
	if (!ok)
	{
		curl_multi_cleanup(loop->multi);	/* NULL will do */
		curl_slist_free_all(loop->headers);
	}
	curl_leave(&saved);

	if (!ok)
	{
		pfree(loop);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	}
	the_loop = loop;
	return loop;
}

void
http_loop_set_host_connections(HttpLoop *loop, int max)
{
	sigset_t	saved;

	curl_enter(&saved);
	curl_multi_setopt(loop->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long) max);
	/* or libcurl would open a connection for each request beyond 100 */
	curl_multi_setopt(loop->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, (long) max);
	curl_multi_setopt(loop->multi, CURLMOPT_MAXCONNECTS, max + HTTP_MAX_IDLE_CONNECTIONS);
	curl_leave(&saved);
}

/*
 * How many more transfers may begin so that the descriptors of the process
 * suffice.  Idle connections are not counted: libcurl closes them to make room.
 */
int
http_loop_room(HttpLoop *loop)
{
	int			used;

#ifndef FEISHU_HAVE_CURL_PREREQ
	http_transfers_note_begun(loop);
#endif
	used = loop->sockets->num_busy + loop->num_unbegun * HTTP_BEGIN_DESCRIPTORS;
	return Max(loop->budget - used, 0) / HTTP_BEGIN_DESCRIPTORS;
}

void
http_loop_defer(HttpLoop *loop)
{
	loop->deferred = true;
}

void
http_loop_hold_heavy(HttpLoop *loop, bool hold)
{
	loop->hold_heavy = hold;
}

/* Is there one for http_loop_next_done? */
static bool
loop_has_done(HttpLoop *loop)
{
	return !dlist_is_empty(&loop->done) ||
		(!dlist_is_empty(&loop->heavy) && !loop->hold_heavy);
}

/* In how many ms libcurl wants to be called, never too early; -1: not at all. */
static long
loop_timer_ms(HttpLoop *loop)
{
	int64		now;

	if (loop->timer == 0)
		return 0;
	if (loop->timer == HTTP_NO_TIMER && loop->timer_in_ms < 0)
		return -1;
	now = steady_now();
	if (loop->timer_in_ms >= 0)
	{
		loop->timer = now + (int64) loop->timer_in_ms * 1000;
		loop->timer_in_ms = -1;
	}
	return (long) ((Max(loop->timer - now, 0) + 999) / 1000);
}

/* Let libcurl act on a socket, or on its timer with CURL_SOCKET_TIMEOUT. */
static void
loop_action(HttpLoop *loop, curl_socket_t fd, int events)
{
	int			running;

	if (fd == CURL_SOCKET_TIMEOUT)
	{
		/* libcurl sets the next one, if any */
		loop->timer = HTTP_NO_TIMER;
		loop->timer_in_ms = -1;
	}
	(void) curl_multi_socket_action(loop->multi, fd, events, &running);
	/* a dispatcher may be long in a transaction before the next turn */
	if (loop->deferred)
		(void) loop_timer_ms(loop);
}

/* Fetch the transfers that libcurl has ended.  Signals are blocked. */
static void
loop_collect(HttpLoop *loop)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(loop->multi, &left)) != NULL)
	{
		char	   *handle = NULL;

		if (message->msg == CURLMSG_DONE &&
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &handle) == CURLE_OK)
			http_transfer_finish(((HttpHandle *) handle)->transfer, message->data.result);
	}
}

/*
 * End transfers that are past their deadline.  libcurl does so itself, but can
 * lose the timer of a connection that is being made, and then be late by some
 * 200 ms.
 */
static void
loop_expire(HttpLoop *loop)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_mutable_iter iter;
	sigset_t	saved;

	dlist_foreach_modify(iter, &loop->active)
	{
		HttpTransfer *transfer = dlist_container(HttpTransfer, node, iter.cur);

		if (http_body_is_late(transfer, now))
		{
			curl_enter(&saved);
			http_transfer_finish(transfer, CURLE_OPERATION_TIMEDOUT);
			curl_leave(&saved);
		}
	}
}

/*
 * Let libcurl do what it would do by itself now: begin what is new, end what
 * is late.  Runs with signals blocked, and does not throw.
 */
void
http_loop_run_due(HttpLoop *loop)
{
	/* libcurl chooses connections now */
	if (loop->fresh)
		http_conns_shut_unsolicited(loop->sockets);
	loop->fresh = false;
	loop_action(loop, CURL_SOCKET_TIMEOUT, 0);
	loop_collect(loop);
}

/* How long to wait: until then, or until libcurl wants to be called in timer_ms. */
static long
loop_timeout_ms(long timer_ms, TimestampTz until)
{
	long		until_ms;

	if (TIMESTAMP_IS_NOEND(until))
		return timer_ms;
	until_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	return timer_ms < 0 ? until_ms : Min(timer_ms, until_ms);
}

void
http_loop_send_deferred(HttpLoop *loop)
{
	sigset_t	saved;

	curl_enter(&saved);
	http_loop_run_due(loop);
	curl_leave(&saved);
}

void
http_loop_turn(HttpLoop *loop, TimestampTz until, uint32 wait_event)
{
	bool		was_full = http_loop_room(loop) == 0;

	CHECK_FOR_INTERRUPTS();

	for (;;)
	{
		HttpPolled	events[HTTP_EVENTS_PER_TURN];
		int			num_events;
		bool		latch_set;
		long		timer_ms;
		TimestampTz turn_until;
		sigset_t	saved;

		if (!dlist_is_empty(&loop->paused))
		{
			curl_enter(&saved);
			http_bodies_go_on(loop);
			curl_leave(&saved);
		}
		turn_until = Min(until, http_bodies_until(loop));
		timer_ms = loop_timer_ms(loop);
		if (timer_ms == 0)
		{
			curl_enter(&saved);
			http_loop_run_due(loop);
			curl_leave(&saved);
			timer_ms = loop_timer_ms(loop);
		}
		if (loop_has_done(loop))
			return;

		http_sockets_reserve(loop->sockets, loop->num_unbegun);
		num_events = http_sockets_wait(loop->sockets, loop_timeout_ms(timer_ms, turn_until), wait_event,
									   events, lengthof(events), &latch_set);
		if (num_events > 0)
		{
			curl_enter(&saved);
			for (int i = 0; i < num_events; i++)
				loop_action(loop, events[i].fd, events[i].events);
			loop_collect(loop);
			curl_leave(&saved);
		}

		CHECK_FOR_INTERRUPTS();
		if (latch_set || loop_has_done(loop) || (was_full && http_loop_room(loop) > 0))
			return;
		if (!TIMESTAMP_IS_NOEND(turn_until) && GetCurrentTimestamp() >= turn_until)
		{
			loop_expire(loop);
			return;
		}
	}
}

HttpTransfer *
http_loop_next_done(HttpLoop *loop, bool *heavy)
{
	HttpTransfer *transfer;

	*heavy = dlist_is_empty(&loop->done);
	if (!*heavy)
		transfer = dlist_head_element(HttpTransfer, node, &loop->done);
	else if (loop->hold_heavy || (transfer = http_body_next_heavy(loop)) == NULL)
		return NULL;
	dlist_delete(&transfer->node);
	transfer->listed = false;
	http_body_unpack(transfer);
	return transfer;
}

const char *
http_library_version(void)
{
	return curl_version();
}
