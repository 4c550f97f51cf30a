/*-------------------------------------------------------------------------
 *
 * src/http/http_internal.h
 *	  What http_loop.c and the other http_*.c share.
 *
 * Private to src/http/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HTTP_INTERNAL_H
#define FEISHU_HTTP_INTERNAL_H

#include <curl/curl.h>
#include <signal.h>
#include <sys/socket.h>

#include "lib/ilist.h"
#include "libpq/pqsignal.h"

#include "base/budget.h"
#include "base/compat.h"
#include "http/http.h"
#include "http/http_sockets.h"

/* Idle easy handles kept for reuse: one makes a call about 10 us cheaper.  As
 * many as a dispatcher has in flight by default. */
#define HTTP_MAX_IDLE_HANDLES	256

#define HTTP_NO_TIMER			PG_INT64_MAX

typedef struct HttpPool HttpPool;

/* Peers of which a process knows which HTTP they need: see http_peers.c. */
#define HTTP_MAX_PEERS			16

typedef struct HttpPeer
{
	uint64		origin;			/* hash of scheme, host, port and the way there */
	int			failures;		/* since it answered over HTTP/2 */
	TimestampTz http1_until;	/* it is not offered HTTP/2 before; 0: it is */
} HttpPeer;

/* A configured easy handle, and what it is set up for.  malloc'ed. */
typedef struct HttpHandle
{
	CURL	   *easy;
	CURLU	   *url;
	char	   *url_text;		/* what it is set up for; NULL: nothing */
	char	   *proxy;			/* NULL: none */
	char	   *authorities;	/* whom it trusts, see http_authorities_get;
								 * NULL: not set yet */
	HttpVersion version;		/* it speaks */
	long		timeout_ms;		/* these two: 0 if not set */
	long		connect_timeout_ms;
	bool		close;			/* its connection is to be closed after this transfer */
	HttpTransfer *transfer;		/* that it is used for */
	char		error_buffer[CURL_ERROR_SIZE];
} HttpHandle;

struct HttpLoop
{
	HttpPool   *pool;			/* for new transfers */
	dlist_head	old_pools;		/* with transfers that have not ended */
	int			num_old_pools;
	int			max_host_connections;	/* 0: no limit */
	int			expected;		/* so many transfers will be active at once */
	HttpSockets *sockets;
	HttpHandle *idle[HTTP_MAX_IDLE_HANDLES];	/* last used last */
	int			num_idle;
	HttpPeer	peers[HTTP_MAX_PEERS];
	int			num_peers;
	unsigned	next_peer;		/* whose place is taken next */
	bool		deferred;		/* a new transfer waits, see http_loop_defer */
	bool		fresh;			/* there is one */
	int			budget;			/* connections that there may be */
	int			num_unbegun;	/* active ones without a connection */
	TimestampTz first_deadline; /* no transfer that is under way has an earlier
								 * one; DT_NOEND: none has any */
	size_t		free_body;		/* of a body, for which there is always memory */
	dlist_head	paused;			/* those that wait for memory; active, too */
	int			num_minded;		/* active ones whose deadline is not libcurl's */
	bool		hold_heavy;		/* those have to wait */
	dlist_head	active;			/* under way */
	dlist_head	done;			/* ended, not yet handed out */
	dlist_head	heavy;			/* likewise, with answers that take time and memory */
};

/* A pool of connections, see http_pool.c.  malloc'ed. */
struct HttpPool
{
	HttpLoop   *loop;
	CURLM	   *multi;
	int64		timer;			/* when libcurl wants to be called, by the steady
								 * clock; HTTP_NO_TIMER: not at all */
	long		timer_in_ms;	/* the same from now on, whenever that clock is
								 * read next; -1: see timer */
	int			num_transfers;
	bool		connected;		/* there is a new connection, see wake_waiting */
	CURL	   *nobody;			/* NULL as long as it was not needed */
	dlist_node	node;			/* in loop->old_pools */
};

/* How an answer is packed. */
typedef enum HttpEncoding
{
	HTTP_ENCODING_NONE,
	HTTP_ENCODING_GZIP,			/* or zlib's own */
	HTTP_ENCODING_UNKNOWN
} HttpEncoding;

struct HttpTransfer
{
	HttpLoop   *loop;
	HttpPool   *pool;
	HttpHandle *handle;			/* NULL once freed or ended */
	struct curl_slist *headers;
	void	   *owner;
	dlist_node	node;			/* in loop->active or loop->done */
	bool		listed;
	bool		resend_ok;
	bool		begun;			/* a connection was there to send it on */
	bool		resent;			/* we refused to have it sent a second time */
	bool		refused;		/* the peer says that it did not process it */
	bool		needs_http1;	/* ... because it was HTTP/2 */
	bool		downgraded;		/* ... and libcurl goes on with HTTP/1.1 by itself */
	bool		stale;			/* its connection had been shut down by us */
	unsigned long stream;		/* its number, with HTTP/2, if libcurl said it */
	bool		going;			/* the peer of its connection goes away, and did ... */
	unsigned long last_stream;	/* ... not process streams beyond this one */
	int			num_resends;	/* of what was refused */
	int			status;			/* of the final answer, as far as it has come */
	HttpRequest request;		/* but for its strings, which a handle has */
	bool		too_large;
	bool		out_of_memory;	/* for the answer */
	bool		too_slow;		/* for the memory that others wait for */
	bool		bad_encoding;	/* one that was not asked for */
	HttpEncoding encoding;
	BudgetAccount account;		/* of the body; without a share: not counted */
	size_t		wanted;			/* while paused: bytes that it waits for */
	bool		is_paused;		/* in loop->paused */
	dlist_node	paused_node;
	TimestampTz paused_since;
	TimestampTz beyond_since;	/* while account.beyond */
	bool		minded;			/* counted in loop->num_minded */
	bool		no_socket;		/* out of descriptors, or of memory for one */
	struct sockaddr_storage peer;	/* that a socket was opened for last */
	socklen_t	peer_size;
	size_t		max_response;
	size_t		body_size;		/* allocated */
	size_t		header_size;	/* of all headers so far */
	int			header_lines;
	long		sent_before;	/* to a proxy, for a tunnel, when it was begun */
	bool		have_id;		/* not the other one */
	bool		have_reset;		/* not Retry-After */
	int			keep_seconds;	/* that its connection is kept without a request,
								 * as the peer says; -1: it says nothing */
	TimestampTz started;
	uint64		active_before;	/* num_active of the sockets then */
	TimestampTz deadline;
	bool		late;			/* is past it */
	HttpResult	result;
	MemoryContextCallback callback;
};

/* Block signals around calls of libcurl, see http_loop.c. */
static inline void
curl_enter(sigset_t *saved)
{
	sigprocmask(SIG_SETMASK, &BlockSig, saved);
}

static inline void
curl_leave(const sigset_t *saved)
{
	sigprocmask(SIG_SETMASK, saved, NULL);
}

/* Connections that there are in any case. */
#define HTTP_MIN_CONNECTIONS	4

/* http_pool.c; signals are blocked */
extern HttpPool *http_pool_create(HttpLoop *loop);
extern void http_pool_limit_host(HttpPool *pool);
extern bool http_pool_add(HttpTransfer *transfer);
extern void http_pool_remove(HttpTransfer *transfer);
extern void http_pool_act(HttpPool *pool, curl_socket_t fd, int events);
extern void http_pools_run_timers(HttpLoop *loop);
extern long http_pools_timer_ms(HttpLoop *loop);
extern void http_pools_collect(HttpLoop *loop);
extern bool http_pool_has_surplus(HttpLoop *loop);
extern void http_pools_renew(HttpLoop *loop);

/* http_loop.c: callbacks of every easy handle */
extern curl_socket_t http_open_socket(void *userp, curlsocktype purpose,
									  struct curl_sockaddr *address);
extern int	http_close_socket(void *userp, curl_socket_t fd);

/* Set an option of "easy", unless one failed before ("ok"). */
#define SET(option, value) \
	ok = ok && curl_easy_setopt(easy, option, value) == CURLE_OK

/* http_library.c */
extern void http_library_require(void);

/* http_handle.c */
extern HttpHandle *http_handle_acquire(HttpLoop *loop, const HttpRequest *request);
extern HttpHandle *http_handle_acquire_trusting(HttpLoop *loop, const HttpRequest *request,
												const char *authorities);
extern void http_handle_release(HttpLoop *loop, HttpHandle *handle, bool reusable);
extern void http_handle_free(HttpHandle *handle);
extern int	http_handle_socket(const HttpLoop *loop, const HttpHandle *handle);

/* http_authorities.c: what http_authorities_get returns instead of a file: the
 * system's folder, or whatever libcurl takes by itself */
#define HTTP_AUTHORITIES_FOLDER		"folder"
#define HTTP_AUTHORITIES_DEFAULT	"default"

/* http_authorities.c */
extern void http_authorities_look(void);
extern const char *http_authorities_get(const char *ca_file);
extern bool http_authorities_set(CURL *easy, const char *authorities);

/* Callbacks of every easy handle, which is userp. */
extern size_t http_transfer_on_body(char *data, size_t size, size_t nmemb, void *userp);
extern size_t http_transfer_on_header(char *data, size_t size, size_t nmemb, void *userp);
extern void http_transfer_close_after(HttpTransfer *transfer);
#ifdef FEISHU_HAVE_CURL_PREREQ
extern int	http_transfer_on_request(void *userp, char *remote_ip, char *local_ip,
									 int remote_port, int local_port);
#else
extern void http_transfers_note_begun(HttpLoop *loop);
#endif

/* http_body.c */
extern void http_bodies_go_on(HttpLoop *loop);
extern TimestampTz http_bodies_until(HttpLoop *loop);
extern bool http_body_is_late(HttpTransfer *transfer, TimestampTz now);
extern void http_body_note_encoding(HttpTransfer *transfer, const char *value);
extern bool http_body_is_heavy(const HttpTransfer *transfer);
extern void http_body_unpack(HttpTransfer *transfer);
extern HttpTransfer *http_body_next_heavy(HttpLoop *loop);
extern void http_body_end(HttpTransfer *transfer);
extern void http_body_free(HttpTransfer *transfer);

/* http_loop.c */
extern void http_loop_run_due(HttpLoop *loop);

/* http_classify.c */
extern void http_transfer_classify(HttpTransfer *transfer, CURLcode code);

/* http_cause.c */
extern HttpCause http_cause_find(HttpTransfer *transfer, CURLcode code);

/* http_transfer.c */
extern bool http_transfer_configure(HttpTransfer *transfer, const HttpRequest *request);
extern void http_transfer_finish(HttpTransfer *transfer, CURLcode code);

/* http_refused.c */
extern int	http_transfer_on_words(CURL *easy, curl_infotype type, char *data, size_t size,
								   void *userp);
extern bool http_transfer_allow_resend(HttpTransfer *transfer, bool is_sent);
extern bool http_transfer_resend(HttpTransfer *transfer);
extern void http_transfer_note_version(HttpTransfer *transfer, CURLcode code);

/* http_url.c */
extern bool http_url_origin(const char *url, char *origin, size_t size);

/* http_peers.c */
extern bool http_peer_needs_http1(HttpLoop *loop, const char *url, const char *proxy,
								  const char *authorities);
extern void http_peer_needs_http1_note(HttpLoop *loop, const HttpHandle *handle);
extern void http_peer_failed(HttpLoop *loop, const HttpHandle *handle);
extern void http_peer_answered(HttpLoop *loop, const HttpHandle *handle);

#endif							/* FEISHU_HTTP_INTERNAL_H */
