/*-------------------------------------------------------------------------
 *
 * src/http/http_transfer.c
 *	  One HTTP transfer: its request, its answer, and its end.
 *
 * An HttpTransfer lives in a memory context of the caller.  Its easy handle,
 * headers and response buffer are malloc'ed; the context's reset callback
 * frees them, in whatever state the transfer is, so that no error, cancel or
 * termination leaves anything behind.
 *
 * The callbacks here gather the answer.  See http_loop.c for the rules they keep.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/nls.h"
#include "http/http_internal.h"


/*
 * libcurl would wait for "100 Continue" before a body of more than 1 MB, and
 * has to be told not to.  Said well below that.
 */
#define HTTP_LARGE_BODY			(64 * 1024)

static void transfer_detach(HttpTransfer *transfer, bool reusable);
static void transfer_on_reset(void *arg);


/* ---------- Callbacks of libcurl: no throw, no palloc ---------- */

/* Bytes of requests, of which one to a proxy for a tunnel is the first. */
static long
bytes_sent(const HttpTransfer *transfer)
{
	long		sent = 0;

	curl_easy_getinfo(transfer->handle->easy, CURLINFO_REQUEST_SIZE, &sent);
	return sent;
}

/* libcurl 8.7 does not count them: what it is about to send may have been sent. */
static bool
counts_bytes_sent(void)
{
	static unsigned int version = 0;

	if (version == 0)
		version = curl_version_info(CURLVERSION_NOW)->version_num;
	return version >> 8 != 0x0807;
}

/* May the peer have received the request? */
static bool
transfer_is_sent(const HttpTransfer *transfer)
{
#ifdef FEISHU_HAVE_CURL_PREREQ
	return transfer->begun && !transfer->refused &&
		(bytes_sent(transfer) > transfer->sent_before || !counts_bytes_sent());
#else
	long		tunnel_status = 0;
	curl_off_t	begun_us = 0;

	if (transfer->refused)
		return false;
	if (!counts_bytes_sent())
		return curl_easy_getinfo(transfer->handle->easy, CURLINFO_PRETRANSFER_TIME_T,
								 &begun_us) == CURLE_OK && begun_us > 0;
	/* ours follows the 2xx of a proxy */
	curl_easy_getinfo(transfer->handle->easy, CURLINFO_HTTP_CONNECTCODE, &tunnel_status);
	return bytes_sent(transfer) > 0 && (tunnel_status == 0 || tunnel_status / 100 == 2);
#endif
}

#ifdef FEISHU_HAVE_CURL_PREREQ

/* The connection was not used, but libcurl would take it for one that was. */
static int
abort_request(HttpTransfer *transfer)
{
	http_transfer_close_after(transfer);
	return CURL_PREREQFUNC_ABORT;
}

/*
 * CURLOPT_PREREQFUNCTION: the request is about to be sent on a connection.
 *
 * When a reused connection dies before the first byte of an answer, libcurl
 * sends the request again on another by itself, though the peer may have
 * acted on the first one.  Whether that is all right is the caller's to say,
 * unless the peer has said that it did not.
 *
 * Nothing can be sent on a connection that we have shut down.  libcurl may not have
 * noticed; it would try one after the other, and give up after five.
 */
int
http_transfer_on_request(void *userp, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
	HttpTransfer *transfer = ((HttpHandle *) userp)->transfer;
	long		new_connections = 0;

	if (curl_easy_getinfo(transfer->handle->easy, CURLINFO_NUM_CONNECTS, &new_connections) == CURLE_OK &&
		new_connections > 0)
		transfer->pool->connected = true;
	if (transfer->begun)
	{
		if (transfer->needs_http1)
			http_transfer_note_version(transfer, CURLE_OK);
		if (!http_transfer_allow_resend(transfer, transfer_is_sent(transfer)))
			return abort_request(transfer);
	}
	else
	{
		transfer->begun = true;
		transfer->loop->num_unbegun--;
	}
	transfer->sent_before = bytes_sent(transfer);
	if (http_conn_is_shut(transfer->loop->sockets, local_port))
	{
		transfer->stale = true;
		return abort_request(transfer);
	}
	return CURL_PREREQFUNC_OK;
}

#else

/* Without that callback: look which transfers have a connection by now. */
void
http_transfers_note_begun(HttpLoop *loop)
{
	dlist_iter	iter;

	dlist_foreach(iter, &loop->active)
	{
		HttpTransfer *transfer = dlist_container(HttpTransfer, node, iter.cur);

		if (transfer->begun || bytes_sent(transfer) == 0)
			continue;
		transfer->begun = true;
		loop->num_unbegun--;
	}
}

#endif


/* ---------- How it ended ---------- */

/*
 * For how many ms a connection may be used again that the peer keeps for so many
 * seconds; -1: no limit.  It counts from the answer on, which takes its time, and
 * the next request takes as long.
 */
static int
reuse_ms(int keep_seconds)
{
	return keep_seconds < 0 ? -1 : keep_seconds * 1000 - Min(1000, keep_seconds * 500);
}

/*
 * The connection is kept after an answer, which may have been read without being
 * waited for.  Of HTTP/1 nothing is to be heard of it meanwhile.
 */
static void
note_answered(HttpTransfer *transfer)
{
	CURL	   *easy = transfer->handle->easy;
	long		version = 0;
	curl_socket_t fd = CURL_SOCKET_BAD;

	if (curl_easy_getinfo(easy, CURLINFO_HTTP_VERSION, &version) != CURLE_OK ||
		curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &fd) != CURLE_OK ||
		fd == CURL_SOCKET_BAD)
		return;
	http_conn_keep(transfer->loop->sockets, fd,
				   version == CURL_HTTP_VERSION_1_0 || version == CURL_HTTP_VERSION_1_1,
				   reuse_ms(transfer->keep_seconds));
}

/* libcurl has closed the connection, or others use it: then it takes no more. */
static void
note_closed(HttpTransfer *transfer)
{
	int			fd = http_handle_socket(transfer->loop, transfer->handle);

	if (fd >= 0)
		http_conn_spend(transfer->loop->sockets, fd);
}

/*
 * Note a transfer's end: what happened, in terms of the caller.  Runs with
 * signals blocked, and does not throw.
 */
void
http_transfer_finish(HttpTransfer *transfer, CURLcode code)
{
	HttpResult *result = &transfer->result;

	http_transfer_note_version(transfer, code);
	if (code != CURLE_OK && http_transfer_resend(transfer))
		return;
	curl_easy_getinfo(transfer->handle->easy, CURLINFO_RESPONSE_CODE, &result->http_status);
	if (result->http_status / 100 == 1)
		result->http_status = 0;	/* what followed never came */
	result->request_sent = transfer_is_sent(transfer);
	result->duration_us = GetCurrentTimestamp() - transfer->started;

	http_transfer_classify(transfer, code);
	result->connect_expired = code == CURLE_OPERATION_TIMEDOUT && !result->request_sent &&
		GetCurrentTimestamp() < transfer->deadline;

	result->cause = http_cause_find(transfer, code);
	if (transfer->handle->close)
		note_closed(transfer);
	else if (code == CURLE_OK)
		note_answered(transfer);
	transfer_detach(transfer, code == CURLE_OK);
	dlist_delete(&transfer->node);
	dlist_push_tail(http_body_is_heavy(transfer) ? &transfer->loop->heavy :
					&transfer->loop->done, &transfer->node);
}


/* ---------- Transfers ---------- */

/* Set up the easy handle for one request.  Does not throw. */
bool
http_transfer_configure(HttpTransfer *transfer, const HttpRequest *request)
{
	HttpHandle *handle = transfer->handle;
	CURL	   *easy = handle->easy;
	TimestampTz now = GetCurrentTimestamp();
	long		timeout_ms;
	long		connect_timeout_ms;
	bool		fresh = transfer->loop->sockets->num_suspect > 0 || transfer->stale;
	bool		ok = true;

	/* 0 would mean no limit */
	timeout_ms = (long) Min((request->deadline - now + 999) / 1000, INT_MAX);
	timeout_ms = Max(timeout_ms, 1);

	handle->transfer = transfer;
	connect_timeout_ms = Max(request->connect_timeout_ms, 1);
	if (handle->timeout_ms != timeout_ms)
		SET(CURLOPT_TIMEOUT_MS, timeout_ms);
	if (handle->connect_timeout_ms != connect_timeout_ms)
		SET(CURLOPT_CONNECTTIMEOUT_MS, connect_timeout_ms);
	handle->timeout_ms = timeout_ms;
	handle->connect_timeout_ms = connect_timeout_ms;
	if (handle->close)
		SET(CURLOPT_FORBID_REUSE, 0L);
	handle->close = false;
	SET(CURLOPT_HTTPHEADER, transfer->headers);
	if (request->body != NULL)
	{
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDS, request->body);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body_len);
	}
	else
		SET(CURLOPT_HTTPGET, 1L);
#ifndef FEISHU_HAVE_CURL_PREREQ
	/* a connection that was never used before is never retried on */
	fresh |= !request->resend_ok;
#endif
	SET(CURLOPT_FRESH_CONNECT, fresh ? 1L : 0L);
	return ok;
}

/* A header.  It may be secret, and psprintf could leave a copy. */
static char *
header_line(const char *name, const char *value)
{
	size_t		size = strlen(name) + strlen(value) + 1;
	char	   *line = palloc(size);

	snprintf(line, size, "%s%s", name, value);
	return line;
}

/* Append a line to the headers.  Signals are blocked. */
static bool
transfer_add_header(HttpTransfer *transfer, const char *line)
{
	struct curl_slist *headers = curl_slist_append(transfer->headers, line);

	if (headers == NULL)
		return false;
	transfer->headers = headers;
	return true;
}

/* Free the headers, of which one is secret.  Does not throw. */
static void
transfer_free_headers(HttpTransfer *transfer)
{
	for (struct curl_slist *header = transfer->headers; header != NULL; header = header->next)
		explicit_bzero(header->data, strlen(header->data));
	curl_slist_free_all(transfer->headers);
	transfer->headers = NULL;
}

/*
 * Begin a transfer.  It belongs to context: resetting or deleting that
 * context gives the transfer up and frees all it holds, whatever its state.
 * The request's strings are copied, but for the body.  owner is handed back by
 * http_loop_next_done.  Throws 53200 when memory runs out; every other
 * trouble is reported through the result.
 */
HttpTransfer *
http_transfer_start(HttpLoop *loop, MemoryContext context,
					const HttpRequest *request, void *owner)
{
	HttpTransfer *transfer;
	MemoryContext old_context;
	char	   *content_type = NULL;
	char	   *authorization = NULL;
	sigset_t	saved;
	bool		ok;

	old_context = MemoryContextSwitchTo(context);
	transfer = palloc0(sizeof(HttpTransfer));
	transfer->loop = loop;
	transfer->owner = owner;
	transfer->resend_ok = request->resend_ok;
	transfer->request = *request;
	transfer->request.url = transfer->request.proxy = transfer->request.ca_file = NULL;
	transfer->request.content_type = transfer->request.bearer = NULL;
	transfer->max_response = request->max_response;
	transfer->account.share = request->share;
	transfer->account.kind = BUDGET_ANSWER;
	transfer->deadline = request->deadline;
	transfer->started = GetCurrentTimestamp();
	transfer->active_before = loop->sockets->num_active;
	transfer->result.reset_seconds = -1;
	transfer->keep_seconds = -1;
	transfer->callback.func = transfer_on_reset;
	transfer->callback.arg = transfer;
	MemoryContextRegisterResetCallback(context, &transfer->callback);

	if (request->content_type != NULL)
		content_type = header_line("Content-Type: ", request->content_type);
	if (request->bearer != NULL)
		authorization = header_line("Authorization: Bearer ", request->bearer);
	MemoryContextSwitchTo(old_context);

	/* so that fd.c keeps its own files within limits */
	http_sockets_reserve(loop->sockets, loop->num_unbegun + 1);

	curl_enter(&saved);
	if (http_conns_retire(loop->sockets, loop->pool))
		http_pools_renew(loop);
	/* unpacked by http_body.c */
	ok = transfer_add_header(transfer, "Accept-Encoding: gzip");
	ok = ok && (request->body_len < HTTP_LARGE_BODY || transfer_add_header(transfer, "Expect:"));
	ok = ok && (content_type == NULL || transfer_add_header(transfer, content_type));
	ok = ok && (authorization == NULL || transfer_add_header(transfer, authorization));
	if (ok)
	{
		transfer->handle = http_handle_acquire(loop, request);
		ok = transfer->handle != NULL && http_transfer_configure(transfer, request) &&
			http_pool_add(transfer);
	}
	if (ok)
	{
		dlist_push_tail(&loop->active, &transfer->node);
		transfer->listed = true;
		loop->num_unbegun++;
		loop->first_deadline = Min(loop->first_deadline, transfer->deadline);
		loop->fresh = true;
		/* which sends the request, if there is a connection */
		if (!loop->deferred)
			http_loop_run_due(loop);
	}
	else
	{
		if (transfer->handle != NULL)
			http_handle_free(transfer->handle);
		transfer->handle = NULL;
	}
	curl_leave(&saved);

	if (authorization != NULL)
		explicit_bzero(authorization, strlen(authorization));
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Could not set up an HTTP request.")));
	return transfer;
}

/*
 * The transfer has ended before its time, but its connection is kept, for HTTP/2
 * can give up a single request.  Close it all the same when nobody else is at
 * work, so that the peer hears of it now, and not by the next request.
 *
 * When it brought nothing for as long as the transfer lasted, its peer may be gone,
 * or the answers of others may come yet.  So it is left to those, while new requests
 * go over new connections: or each would wait in vain, too.
 */
static void
hang_up(HttpTransfer *transfer, int fd, bool is_alone)
{
	HttpSockets *sockets = transfer->loop->sockets;

	if (!http_conn_is_open(sockets, fd))
		return;
	if (transfer->result.outcome == HTTP_TIMEOUT &&
		!http_conn_active_since(sockets, fd, transfer->active_before))
		http_conn_suspect(sockets, fd, transfer->active_before);
	if (is_alone)
		http_conn_shut(sockets, fd);
}

/* Is it the only one that is under way? */
static bool
transfer_is_alone(const HttpTransfer *transfer)
{
	const dlist_head *active = &transfer->loop->active;

	return active->head.next == &transfer->node && transfer->node.next == &active->head;
}

/* Take the easy handle from the loop.  Signals are blocked. */
static void
transfer_detach(HttpTransfer *transfer, bool reusable)
{
	HttpHandle *handle = transfer->handle;
	bool		is_alone = transfer_is_alone(transfer);
	int			fd = reusable ? -1 : http_handle_socket(transfer->loop, handle);

	http_pool_remove(transfer);
	transfer->handle = NULL;
	http_body_end(transfer);
	if (fd >= 0)
		hang_up(transfer, fd, is_alone);
	handle->transfer = NULL;
	http_handle_release(transfer->loop, handle, reusable);
	transfer_free_headers(transfer);
	if (!transfer->begun)
		transfer->loop->num_unbegun--;
}

/* Reset callback of the memory context that the transfer belongs to. */
static void
transfer_on_reset(void *arg)
{
	HttpTransfer *transfer = arg;

	if (transfer->handle != NULL || transfer->headers != NULL)
	{
		sigset_t	saved;

		curl_enter(&saved);
		if (transfer->handle != NULL)
			transfer_detach(transfer, false);
		transfer_free_headers(transfer);
		curl_leave(&saved);
	}
	http_body_free(transfer);
	if (transfer->listed)
	{
		dlist_delete(&transfer->node);
		transfer->listed = false;
	}
}

/* May the peer have received the request, or a part of it? */
bool
http_transfer_is_sent(const HttpTransfer *transfer)
{
	return transfer->handle == NULL ? transfer->result.request_sent :
		transfer_is_sent(transfer);
}

/*
 * Give a transfer up, or free a finished one, before its context goes.  The
 * result goes with it.  Idempotent; does not throw.
 */
void
http_transfer_free(HttpTransfer *transfer)
{
	/* what is left is for the memory context, whose callback finds no work */
	transfer_on_reset(transfer);
}

const HttpResult *
http_transfer_result(const HttpTransfer *transfer)
{
	return &transfer->result;
}

void *
http_transfer_owner(const HttpTransfer *transfer)
{
	return transfer->owner;
}
