/*-------------------------------------------------------------------------
 *
 * src/http/http_loop.c
 *	  HTTP transfers over one wait loop: libcurl's multi interface driven by
 *	  a WaitEventSet.
 *
 * Together with http_transfer.c, which has the single transfer, http_library.c,
 * http_classify.c, http_handle.c, http_pool.c and http_authorities.c, this is the
 * only code that knows of libcurl.  A process has one HttpLoop, made at the first
 * request and kept until the process ends, so that connections, the DNS cache and
 * loaded CA certificates outlive a call.
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

#include "base/nls.h"
#include "http/http_internal.h"

/* Socket events handled in one turn. */
#define HTTP_EVENTS_PER_TURN	64

/*
 * Connections of a process may take three quarters of the descriptors that fd.c
 * has, as long as so many are left to PostgreSQL's own files.  That is more than
 * fd.c lets go to what it does not manage (AcquireExternalFD), but to wait takes no
 * descriptor any more.  And a few there are in any case.
 */
#define HTTP_RESERVED_DESCRIPTORS	48

/* Descriptors of a transfer that has no connection yet: to resolve a name, or to
 * try two addresses at once. */
#define HTTP_BEGIN_DESCRIPTORS		2

/* How often to look for more of an answer that is there already. */
#define HTTP_READ_ROUNDS		64

static HttpLoop *the_loop = NULL;


/* ---------- Callbacks of libcurl: no throw, no palloc ---------- */

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
	transfer->peer_size = Min(address->addrlen, sizeof(transfer->peer));
	memcpy(&transfer->peer, &address->addr, transfer->peer_size);
	fd = socket(address->family, type, address->protocol);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
		transfer->no_socket = true;
	if (fd >= 0 && !http_socket_opened(transfer->loop->sockets, fd, transfer->pool))
	{
		close(fd);
		fd = CURL_SOCKET_BAD;
		transfer->no_socket = true;
	}
	if (fd >= 0)
		http_conn_note_peer(transfer->loop->sockets, fd, &transfer->peer, transfer->peer_size);
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

/*
 * The process's one loop, made at the first use.  Throws when libcurl cannot
 * be initialised, or there is no descriptor for it (53000); it can be tried again.
 */
HttpLoop *
http_loop_get(void)
{
	static HttpSockets *sockets = NULL;
	HttpLoop   *loop;
	sigset_t	saved;
	bool		ok;

	if (the_loop != NULL)
		return the_loop;

	http_library_require();
	if (sockets == NULL)
		sockets = http_sockets_create();
	loop = MemoryContextAllocZero(TopMemoryContext, sizeof(HttpLoop));
	loop->sockets = sockets;
	loop->budget = Max(max_safe_fds - Max(max_safe_fds / 4, HTTP_RESERVED_DESCRIPTORS),
					   HTTP_MIN_CONNECTIONS);
	loop->first_deadline = DT_NOEND;
	dlist_init(&loop->old_pools);
	dlist_init(&loop->active);
	dlist_init(&loop->done);
	dlist_init(&loop->heavy);
	dlist_init(&loop->paused);

	curl_enter(&saved);
	loop->pool = http_pool_create(loop);
	ok = loop->pool != NULL;
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

/*
 * Cap on connections per host (0: none), and on requests that share one; the
 * dispatcher sets it.
 */
void
http_loop_set_host_connections(HttpLoop *loop, int max)
{
	sigset_t	saved;

	curl_enter(&saved);
	loop->max_host_connections = max;
	http_pool_limit_host(loop->pool);
	curl_leave(&saved);
}

/*
 * So many transfers will be under way at once, so that as many connections are worth
 * keeping.  0: no more than usual; surplus ones are closed.  Does not throw.
 */
void
http_loop_expect(HttpLoop *loop, int transfers)
{
	sigset_t	saved;

	if (loop->expected == transfers)
		return;
	loop->expected = transfers;
	curl_enter(&saved);
	http_pool_limit_host(loop->pool);
	if (http_pool_has_surplus(loop))
	{
		/* libcurl closes idle ones one by one, or all */
		http_pools_renew(loop);
		http_pools_collect(loop);
	}
	curl_leave(&saved);
}

/*
 * How many more transfers may begin so that the descriptors of the process
 * suffice, at least 0.  Idle connections are not counted: libcurl closes them to
 * make room.
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

/*
 * From now on nothing is sent but by http_loop_turn and http_loop_send_deferred,
 * not even what a new transfer could send at once.
 */
void
http_loop_defer(HttpLoop *loop)
{
	loop->deferred = true;
}

/* Whether those with heavy answers wait to be handed out: then they end no turn. */
void
http_loop_hold_heavy(HttpLoop *loop, bool hold)
{
	loop->hold_heavy = hold;
}

/* Is there a heavy one for http_loop_next_done? */
static bool
loop_has_heavy(HttpLoop *loop)
{
	return !dlist_is_empty(&loop->heavy) && !loop->hold_heavy;
}

/* Is there any? */
static bool
loop_has_done(HttpLoop *loop)
{
	return !dlist_is_empty(&loop->done) || loop_has_heavy(loop);
}

/*
 * Transfers that are past their deadline: keep libcurl from ending them by itself,
 * until what has come of them is read.  Returns whether there are any; they are to
 * be ended by loop_end_late.
 */
static bool
loop_spare_late(HttpLoop *loop)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	iter;
	bool		late = false;

	if (now < Min(loop->first_deadline, http_bodies_until(loop)))
		return false;
	loop->first_deadline = DT_NOEND;
	dlist_foreach(iter, &loop->active)
	{
		HttpTransfer *transfer = dlist_container(HttpTransfer, node, iter.cur);

		if (!http_body_is_late(transfer, now))
		{
			/* a paused one's moves */
			if (!transfer->is_paused)
				loop->first_deadline = Min(loop->first_deadline, transfer->deadline);
			continue;
		}
		transfer->late = late = true;
		/* 0 is no limit here, and a default of minutes there */
		curl_easy_setopt(transfer->handle->easy, CURLOPT_TIMEOUT_MS, 0L);
		curl_easy_setopt(transfer->handle->easy, CURLOPT_CONNECTTIMEOUT_MS, 0L);
		transfer->handle->timeout_ms = transfer->handle->connect_timeout_ms = 0;
	}
	return late;
}

/*
 * Read all that has come by now, without waiting.  Likewise leaves the latch
 * alone, and does not throw.  Signals are blocked.
 */
static void
loop_read(HttpLoop *loop)
{
	for (int round = 0; round < HTTP_READ_ROUNDS; round++)
	{
		HttpPolled	events[HTTP_EVENTS_PER_TURN];
		int			num_events = http_sockets_look(loop->sockets, events, lengthof(events));

		if (num_events == 0)
			break;
		for (int i = 0; i < num_events; i++)
			http_pool_act(loop->sockets->slots[events[i].fd].owner, events[i].fd, events[i].events);
	}
	http_pools_collect(loop);
}

/*
 * End those that loop_spare_late found, unless their answer is there.  A process may
 * come back to its loop long after it came in.  Signals are blocked.
 */
static void
loop_end_late(HttpLoop *loop)
{
	dlist_mutable_iter iter;

	loop_read(loop);
	dlist_foreach_modify(iter, &loop->active)
	{
		HttpTransfer *transfer = dlist_container(HttpTransfer, node, iter.cur);

		if (transfer->late && !transfer->is_paused)
			http_transfer_finish(transfer, CURLE_OPERATION_TIMEDOUT);
	}
}

/*
 * Let libcurl do what it would do by itself now: begin what is new, end what is late.
 * Runs with signals blocked, and does not throw.
 */
void
http_loop_run_due(HttpLoop *loop)
{
	/* libcurl chooses connections now */
	if (loop->fresh)
	{
		http_conns_shut_unsolicited(loop->sockets);
		(void) http_conns_retire(loop->sockets, loop->pool);
	}
	loop->fresh = false;
	if (loop_spare_late(loop))
		loop_end_late(loop);
	http_pools_run_timers(loop);
	http_pools_collect(loop);
}

/*
 * Take what has come while nobody drove the loop: transfers that have ended by it
 * are handed out by http_loop_next_done.  Does not throw.
 */
void
http_loop_catch_up(HttpLoop *loop)
{
	sigset_t	saved;

	if (dlist_is_empty(&loop->active))
		return;
	curl_enter(&saved);
	if (loop_spare_late(loop))
		loop_end_late(loop);
	else
		loop_read(loop);
	curl_leave(&saved);
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

/*
 * Send what can be sent at once.  Does not wait, and leaves the latch alone.
 * Does not throw.
 */
void
http_loop_send_deferred(HttpLoop *loop)
{
	sigset_t	saved;

	curl_enter(&saved);
	http_loop_run_due(loop);
	curl_leave(&saved);
}

/*
 * One turn: move every transfer forward, wait until something happens or
 * until "until" (DT_NOEND: for ever), and handle interrupts.  Returns as soon
 * as a transfer has ended, the process latch was set, the time is up, or there is
 * room for a transfer (http_loop_room) after there was none.
 * Throws only what CHECK_FOR_INTERRUPTS throws.  wait_event as in
 * WaitLatch.
 */
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
		bool		late;
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
		timer_ms = http_pools_timer_ms(loop);
		if (timer_ms == 0)
		{
			curl_enter(&saved);
			http_loop_run_due(loop);
			curl_leave(&saved);
			timer_ms = http_pools_timer_ms(loop);
		}
		if (!dlist_is_empty(&loop->done))
			return;

		http_sockets_reserve(loop->sockets, loop->num_unbegun);
		/* while there are heavy ones, look between each two what has come of others */
		num_events = http_sockets_wait(loop->sockets, loop_has_heavy(loop) ? 0 :
									   loop_timeout_ms(timer_ms, turn_until), wait_event,
									   events, lengthof(events), &latch_set);
		curl_enter(&saved);
		/*
		 * before libcurl looks at any: it looks at all of its timers then, and can
		 * lose the one of a connection that is being made
		 */
		late = loop_spare_late(loop);
		for (int i = 0; i < num_events; i++)
			http_pool_act(loop->sockets->slots[events[i].fd].owner, events[i].fd, events[i].events);
		if (late)
			loop_end_late(loop);
		else if (num_events > 0)
			http_pools_collect(loop);
		curl_leave(&saved);

		CHECK_FOR_INTERRUPTS();
		if (latch_set || loop_has_done(loop) || (was_full && http_loop_room(loop) > 0))
			return;
		if (!TIMESTAMP_IS_NOEND(until) && GetCurrentTimestamp() >= until)
			return;
	}
}

/*
 * The next transfer that has ended and was not handed out, or NULL: first all
 * that are quickly read; of those whose answers take time and memory one at a time,
 * each role's in turn.  *heavy: it is one of those.
 */
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
