/*-------------------------------------------------------------------------
 *
 * http_internal.h
 *	  What http.c and the other http_*.c share; for no other file.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/http_internal.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HTTP_INTERNAL_H
#define FEISHU_HTTP_INTERNAL_H

#include <curl/curl.h>
#include <signal.h>

#include "lib/ilist.h"
#include "libpq/pqsignal.h"

#include "budget.h"
#include "compat.h"
#include "http.h"
#include "http_sockets.h"

/* Idle easy handles kept for reuse: one makes a call about 10 us cheaper.  As
 * many as a dispatcher has in flight by default. */
#define HTTP_MAX_IDLE_HANDLES	256

#define HTTP_NO_TIMER			PG_INT64_MAX

/* A configured easy handle, and what it is set up for.  malloc'ed. */
typedef struct HttpHandle
{
	CURL	   *easy;
	CURLU	   *url;
	char	   *url_text;		/* what it is set up for; NULL: nothing */
	size_t		target;			/* where the request's target begins in it; 0:
								 * libcurl takes it from url */
	char	   *proxy;			/* NULL: none */
	char	   *ca_file;		/* the CA it trusts; NULL: those of the system */
	long		timeout_ms;		/* these two: 0 if not set */
	long		connect_timeout_ms;
	HttpTransfer *transfer;		/* that it is used for */
	char		error_buffer[CURL_ERROR_SIZE];
} HttpHandle;

struct HttpLoop
{
	CURLM	   *multi;
	HttpSockets *sockets;
	int64		timer;			/* when libcurl wants to be called, by http.c's
								 * clock; HTTP_NO_TIMER: not at all */
	long		timer_in_ms;	/* the same from now on, whenever that clock is
								 * read next; -1: see timer */
	HttpHandle *idle[HTTP_MAX_IDLE_HANDLES];	/* last used last */
	int			num_idle;
	struct curl_slist *headers; /* of every request */
	bool		deferred;		/* a new transfer waits, see http_loop_defer */
	bool		fresh;			/* there is one */
	int			budget;			/* connections that there may be */
	int			num_unbegun;	/* active ones without a connection */
	size_t		free_body;		/* of a body, for which there is always memory */
	dlist_head	paused;			/* those that wait for memory; active, too */
	int			num_minded;		/* active ones whose deadline is not libcurl's */
	bool		hold_heavy;		/* those have to wait */
	dlist_head	active;			/* under way */
	dlist_head	done;			/* ended, not yet handed out */
	dlist_head	heavy;			/* likewise, with answers that take time and memory */
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
	HttpHandle *handle;			/* NULL once freed or ended */
	struct curl_slist *headers; /* its own, then the loop's */
	void	   *owner;
	dlist_node	node;			/* in loop->active or loop->done */
	bool		listed;
	bool		resend_ok;
	bool		begun;			/* a connection was there to send it on */
	bool		resent;			/* refused to send it a second time */
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
	size_t		request_len;	/* of its body */
	size_t		max_response;
	size_t		body_size;		/* allocated */
	size_t		header_size;	/* of all headers so far */
	int			header_lines;
	long		sent_before;	/* to a proxy, for a tunnel, when it was begun */
	bool		have_tt_logid;
	bool		have_ogw_reset;
	TimestampTz started;
	uint64		active_before;	/* num_active of the sockets then */
	TimestampTz deadline;
	HttpResult	result;
	MemoryContextCallback callback;
};

/* Block signals around calls of libcurl, see http.c. */
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

/* http.c: callbacks of every easy handle */
extern curl_socket_t http_open_socket(void *userp, curlsocktype purpose,
									  struct curl_sockaddr *address);
extern int	http_close_socket(void *userp, curl_socket_t fd);

/* Set an option of "easy", unless one failed before ("ok"). */
#define SET(option, value) \
	ok = ok && curl_easy_setopt(easy, option, value) == CURLE_OK

/* http_handle.c */
extern HttpHandle *http_handle_acquire(HttpLoop *loop, const HttpRequest *request);
extern void http_handle_release(HttpLoop *loop, HttpHandle *handle, bool reusable);
extern void http_handle_free(HttpHandle *handle);
extern int	http_handle_socket(const HttpLoop *loop, const HttpHandle *handle);

/* http_handle.c: the headers of every request, or NULL */
extern struct curl_slist *http_headers_create(void);

/* http_body.c, likewise http_transfer.c: callbacks of every easy handle; userp is the
 * HttpHandle */
extern size_t http_transfer_on_body(char *data, size_t size, size_t nmemb, void *userp);
extern size_t http_transfer_on_header(char *data, size_t size, size_t nmemb, void *userp);
#ifdef FEISHU_HAVE_CURL_PREREQ
extern int	http_transfer_on_request(void *userp, char *remote_ip, char *local_ip,
									 int remote_port, int local_port);
#else
extern void http_transfers_note_begun(HttpLoop *loop);
#endif

/* http_body.c: let paused transfers go on for which there is memory; signals are
 * blocked */
extern void http_bodies_go_on(HttpLoop *loop);

/* http_body.c: when to look for late ones; and is this one? */
extern TimestampTz http_bodies_until(HttpLoop *loop);
extern bool http_body_is_late(HttpTransfer *transfer, TimestampTz now);

/* http_body.c: a header says how the body is packed; unpack a complete one */
extern void http_body_note_encoding(HttpTransfer *transfer, const char *value);
extern bool http_body_is_heavy(const HttpTransfer *transfer);
extern void http_body_unpack(HttpTransfer *transfer);

/* http_body.c: of those that have ended with much to read, whose turn it is */
extern HttpTransfer *http_body_next_heavy(HttpLoop *loop);

/* http_body.c: no more comes; and it is not needed any more */
extern void http_body_end(HttpTransfer *transfer);
extern void http_body_free(HttpTransfer *transfer);

/* http.c: start what is to be started; signals are blocked */
extern void http_loop_run_due(HttpLoop *loop);

/* http_classify.c: fill in the outcome of a transfer that has ended; its handle,
 * http_status and request_sent are there still */
extern void http_transfer_classify(HttpTransfer *transfer, CURLcode code);

/* http_transfer.c: note the end of a transfer; signals are blocked */
extern void http_transfer_finish(HttpTransfer *transfer, CURLcode code);

#endif							/* FEISHU_HTTP_INTERNAL_H */
