/*-------------------------------------------------------------------------
 *
 * src/http/http_pool.c
 *	  Pools of connections: libcurl's multi handles.
 *
 * New transfers go to the loop's pool, and nearly always it is the only one.
 * libcurl gives an HTTP/2 connection new requests for as long as others are under
 * way on it, and cannot be told of a single connection that it is to take no more.
 * So when there is such a one (http_conns_retire), the loop gets a new pool.  The
 * old one lives until its transfers have ended.
 *
 * A transfer knows its pool, and so does each socket (HttpSocket.owner).  A pool
 * without transfers is freed where no callback of libcurl runs, and nobody looks
 * through the pools.
 *
 * Nothing here throws; signals are blocked by the caller, see http_loop.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/steady.h"
#include "http/http_internal.h"

/* Idle connections kept by a process that makes one call at a time. */
#define HTTP_MAX_IDLE_CONNECTIONS	8L

/* Old pools that there may be: each has descriptors of its own. */
#define HTTP_MAX_OLD_POOLS			8


/* ---------- Callbacks of libcurl: no throw, no palloc ---------- */

/*
 * Does libcurl want nothing of a socket because its transfer is paused?  That is one
 * of HTTP/1, and has its connection for itself.
 */
static bool
is_paused(CURL *easy)
{
	char	   *handle = NULL;

	return curl_easy_getinfo(easy, CURLINFO_PRIVATE, &handle) == CURLE_OK && handle != NULL &&
		((HttpHandle *) handle)->transfer != NULL && ((HttpHandle *) handle)->transfer->is_paused;
}

/* CURLMOPT_SOCKETFUNCTION: libcurl says what it waits for on a socket. */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *userp, void *socketp)
{
	HttpPool   *pool = userp;
	int			events = 0;

	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		events |= CURL_CSELECT_IN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		events |= CURL_CSELECT_OUT;
	if (what == CURL_POLL_REMOVE && http_conn_is_open(pool->loop->sockets, fd) && is_paused(easy))
		events = HTTP_SOCKET_HELD;
	http_socket_want(pool->loop->sockets, fd, events, pool);
	return 0;					/* -1 would end every transfer, for good */
}

/* CURLMOPT_TIMERFUNCTION: libcurl says when it wants to be called again. */
static int
on_timer(CURLM *multi, long timeout_ms, void *userp)
{
	HttpPool   *pool = userp;

	/* comes several times a request: the clock is read when that is needed */
	pool->timer = timeout_ms == 0 ? 0 : HTTP_NO_TIMER;	/* 0: at once */
	pool->timer_in_ms = timeout_ms > 0 ? timeout_ms : -1;
	return 0;
}


/* ---------- One pool ---------- */

static void
pool_free(HttpPool *pool)
{
	curl_easy_cleanup(pool->nobody);	/* NULL will do */
	curl_multi_cleanup(pool->multi);	/* likewise */
	free(pool);
}

/* As many connections as those of older pools leave. */
static bool
pool_limit_connections(HttpPool *pool)
{
	HttpSockets *sockets = pool->loop->sockets;
	int			num = pool->loop->budget;

	for (int fd = 0; fd < sockets->num_known; fd++)
	{
		if (sockets->slots[fd].opened && sockets->slots[fd].owner != pool)
			num--;
	}
	/* beyond, libcurl closes one that is idle, or lets a transfer wait */
	return curl_multi_setopt(pool->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
							 (long) Max(num, HTTP_MIN_CONNECTIONS)) == CURLM_OK;
}

/* Connections per host, and requests that share one: as the loop has it. */
void
http_pool_limit_host(HttpPool *pool)
{
	HttpLoop   *loop = pool->loop;
	long		max = Max(loop->max_host_connections, loop->expected);

	(void) curl_multi_setopt(pool->multi, CURLMOPT_MAX_HOST_CONNECTIONS,
							 (long) loop->max_host_connections);
	if (max > 0)
	{
		/* or libcurl would open a connection for each request beyond 100 */
		(void) curl_multi_setopt(pool->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, max);
	}
	(void) curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS, max + HTTP_MAX_IDLE_CONNECTIONS);
}

/* A new pool, or NULL. */
HttpPool *
http_pool_create(HttpLoop *loop)
{
	HttpPool   *pool = calloc(1, sizeof(HttpPool));

	if (pool == NULL)
		return NULL;
	pool->loop = loop;
	pool->timer = HTTP_NO_TIMER;
	pool->timer_in_ms = -1;
	pool->multi = curl_multi_init();
	if (pool->multi == NULL ||
		curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, on_socket) != CURLM_OK ||
		curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool) != CURLM_OK ||
		curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, on_timer) != CURLM_OK ||
		curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool) != CURLM_OK ||
		!pool_limit_connections(pool))
	{
		pool_free(pool);
		return NULL;
	}
	http_pool_limit_host(pool);
	return pool;
}

/* In how many ms libcurl wants to be called, never too early; -1: not at all. */
static long
pool_timer_ms(HttpPool *pool)
{
	int64		now;

	if (pool->timer == 0)
		return 0;
	if (pool->timer == HTTP_NO_TIMER && pool->timer_in_ms < 0)
		return -1;
	now = steady_now();
	if (pool->timer_in_ms >= 0)
	{
		pool->timer = now + (int64) pool->timer_in_ms * 1000;
		pool->timer_in_ms = -1;
	}
	return (long) ((Max(pool->timer - now, 0) + 999) / 1000);
}

/* Give a transfer, whose handle is set up, to the loop's pool. */
bool
http_pool_add(HttpTransfer *transfer)
{
	HttpPool   *pool = transfer->loop->pool;

	if (curl_multi_add_handle(pool->multi, transfer->handle->easy) != CURLM_OK)
		return false;
	transfer->pool = pool;
	pool->num_transfers++;
	return true;
}

/* Take it away. */
void
http_pool_remove(HttpTransfer *transfer)
{
	curl_multi_remove_handle(transfer->pool->multi, transfer->handle->easy);
	transfer->pool->num_transfers--;
}

/*
 * Transfers may have waited to see whether a new connection can be shared
 * (CURLOPT_PIPEWAIT).  From libcurl 8.10 on they are not woken when it cannot, but
 * by its answer only, which may take long.  They are woken, too, when any handle
 * leaves.
 */
static void
wake_waiting(HttpPool *pool)
{
	pool->connected = false;
	if (pool->loop->num_unbegun == 0)
		return;
	if (pool->nobody == NULL)
		pool->nobody = curl_easy_init();
	if (pool->nobody != NULL && curl_multi_add_handle(pool->multi, pool->nobody) == CURLM_OK)
		(void) curl_multi_remove_handle(pool->multi, pool->nobody);
}

/* Let libcurl act on a socket, or on its timer with CURL_SOCKET_TIMEOUT. */
void
http_pool_act(HttpPool *pool, curl_socket_t fd, int events)
{
	int			running;

	if (fd == CURL_SOCKET_TIMEOUT)
	{
		/* libcurl sets the next one, if any */
		pool->timer = HTTP_NO_TIMER;
		pool->timer_in_ms = -1;
	}
	(void) curl_multi_socket_action(pool->multi, fd, events, &running);
	if (pool->connected)
		wake_waiting(pool);
	/* a dispatcher may be long in a transaction before the next turn */
	if (pool->loop->deferred)
		(void) pool_timer_ms(pool);
}

/* Fetch the transfers that libcurl has ended. */
static void
pool_collect(HttpPool *pool)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(pool->multi, &left)) != NULL)
	{
		char	   *handle = NULL;

		if (message->msg == CURLMSG_DONE &&
			curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &handle) == CURLE_OK)
			http_transfer_finish(((HttpHandle *) handle)->transfer, message->data.result);
	}
}


/* ---------- All of them ---------- */

/* Let libcurl begin what is new and end what is late. */
void
http_pools_run_timers(HttpLoop *loop)
{
	dlist_iter	iter;

	http_pool_act(loop->pool, CURL_SOCKET_TIMEOUT, 0);
	dlist_foreach(iter, &loop->old_pools)
		http_pool_act(dlist_container(HttpPool, node, iter.cur), CURL_SOCKET_TIMEOUT, 0);
}

/* In how many ms libcurl wants to be called; -1: not at all. */
long
http_pools_timer_ms(HttpLoop *loop)
{
	long		timer_ms = pool_timer_ms(loop->pool);
	dlist_iter	iter;

	dlist_foreach(iter, &loop->old_pools)
	{
		long		other = pool_timer_ms(dlist_container(HttpPool, node, iter.cur));

		if (other >= 0 && (timer_ms < 0 || other < timer_ms))
			timer_ms = other;
	}
	return timer_ms;
}

/* Note the transfers that have ended, and free old pools that have none left. */
void
http_pools_collect(HttpLoop *loop)
{
	dlist_mutable_iter iter;

	pool_collect(loop->pool);
	dlist_foreach_modify(iter, &loop->old_pools)
	{
		HttpPool   *pool = dlist_container(HttpPool, node, iter.cur);

		pool_collect(pool);
		if (pool->num_transfers > 0)
			continue;
		dlist_delete(&pool->node);
		loop->num_old_pools--;
		pool_free(pool);
		(void) pool_limit_connections(loop->pool);
	}
}

/* Are more connections open than are worth keeping? */
bool
http_pool_has_surplus(HttpLoop *loop)
{
	return loop->sockets->num_opened >
		Max(loop->max_host_connections, loop->expected) + HTTP_MAX_IDLE_CONNECTIONS;
}

/*
 * New transfers go over new connections.  Without memory for that, or when too many
 * old pools have not come to an end, they do not yet.
 */
void
http_pools_renew(HttpLoop *loop)
{
	HttpPool   *pool = loop->num_old_pools < HTTP_MAX_OLD_POOLS ? http_pool_create(loop) : NULL;

	if (pool == NULL)
		return;
	dlist_push_tail(&loop->old_pools, &loop->pool->node);
	loop->num_old_pools++;
	loop->pool = pool;
}
