/*-------------------------------------------------------------------------
 *
 * src/http/http_refused.c
 *	  Requests that the peer says it did not process.
 *
 * HTTP/2 has ways to say so: RST_STREAM with REFUSED_STREAM or HTTP_1_1_REQUIRED,
 * and GOAWAY with a last stream below the request's.  Such a request can be sent
 * again, whatever it does; any other that ended without an answer cannot, for it
 * may have been acted on.
 *
 * libcurl sends some of them again by itself, but also those of which it only knows
 * that a reused connection died; others it reports as it does any failure.  Its
 * functions do not tell which it is.  Its words for people do: they are read here,
 * anchored at their beginning, and what is not recognised may have been acted on.
 * What each version says:
 *
 *	  stream number		"Using Stream ID: N" (7), "[HTTP/2] [N] OPENED" (8)
 *	  GOAWAY			"recveived GOAWAY, error=E, last_stream=N" (from 7.88; 8:
 *						"received"); before, nothing
 *	  HTTP_1_1_REQUIRED "HTTP/2 stream N ... HTTP_1_1_REQUIRED", and then "Downgrades
 *						to HTTP/1.1" when it is sent again so
 *	  REFUSED_STREAM	"REFUSED_STREAM, retrying" on a new connection, "HTTP/2
 *						stream N refused by server" (from 8.19) on any; before, on a
 *						connection that was used already, nothing
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "http/http_internal.h"

/* Longest text that is looked at; those of interest are shorter. */
#define WORDS_SIZE				160

/* The error code of HTTP/2. */
#define HTTP_1_1_REQUIRED		0xd

/*
 * A request is sent again so many times.  A peer that refuses it still is short of
 * something: the caller's backoff is better then.
 */
#define HTTP_MAX_RESENDS		3


/* ---------- What libcurl says ---------- */

/* If text begins so, what follows; else NULL. */
static const char *
after(const char *text, const char *beginning)
{
	size_t		len = strlen(beginning);

	return strncmp(text, beginning, len) == 0 ? text + len : NULL;
}

/* The transfer's stream has this number; 0: none yet. */
static void
note_stream(HttpTransfer *transfer, unsigned long stream)
{
	transfer->stream = stream;
	/* it may get its number after the peer said that it goes away */
	if (transfer->going && stream > transfer->last_stream)
		transfer->refused = true;
}

/*
 * The peer of this transfer's connection goes away, and did not process streams
 * beyond the last.  One that requires HTTP/1.1 does so because of the request that
 * came last.  The transfer is one of those on the connection, or has just found
 * it idle.
 */
static void
note_goaway(HttpTransfer *transfer, const char *numbers)
{
	HttpLoop   *loop = transfer->loop;
	char	   *end;
	unsigned long code = strtoul(numbers, &end, 10);
	const char *rest = after(end, ", last_stream=");
	unsigned long last;
	int			fd;
	dlist_iter	iter;

	if (end == numbers || rest == NULL)
		return;
	last = strtoul(rest, &end, 10);
	if (end == rest)
		return;
	fd = http_handle_socket(loop, transfer->handle);
	if (fd < 0)
		return;
	dlist_foreach(iter, &loop->active)
	{
		HttpTransfer *other = dlist_container(HttpTransfer, node, iter.cur);

		if (other->status != 0 || http_handle_socket(loop, other->handle) != fd)
			continue;
		other->going = true;
		other->last_stream = last;
		other->needs_http1 |= code == HTTP_1_1_REQUIRED;
		if (code == HTTP_1_1_REQUIRED && other->stream == last)
			other->refused = true;
		note_stream(other, other->stream);
	}
}

/* CURLOPT_DEBUGFUNCTION: libcurl says, among much else, what happens. */
int
http_transfer_on_words(CURL *easy, curl_infotype type, char *data, size_t size, void *userp)
{
	HttpTransfer *transfer = ((HttpHandle *) userp)->transfer;
	char		text[WORDS_SIZE];
	const char *rest;
	char	   *end;

	if (type != CURLINFO_TEXT || transfer == NULL || transfer->handle != userp)
		return 0;
	size = Min(size, sizeof(text) - 1);
	memcpy(text, data, size);
	text[size] = '\0';

	switch (text[0])
	{
		case 'U':
			if ((rest = after(text, "Using Stream ID: ")) != NULL)
				note_stream(transfer, strtoul(rest, NULL, 10));
			break;
		case '[':
			if ((rest = after(text, "[HTTP/2] [")) != NULL)
			{
				unsigned long stream = strtoul(rest, &end, 10);

				if (after(end, "] OPENED stream") != NULL)
					note_stream(transfer, stream);
			}
			break;
		case 'r':
			if ((rest = after(text, "received GOAWAY, error=")) != NULL ||
				(rest = after(text, "recveived GOAWAY, error=")) != NULL)
				note_goaway(transfer, rest);
			break;
		case 'D':
			if (after(text, "Downgrades to HTTP/1.1") != NULL)
				transfer->downgraded = true;
			break;
		case 'R':
			if (after(text, "REFUSED_STREAM, retrying") != NULL)
				transfer->refused = true;
			break;
		case 'H':
			if ((rest = after(text, "HTTP/2 stream ")) == NULL || transfer->status != 0)
				break;
			transfer->needs_http1 |= strstr(rest, "HTTP_1_1_REQUIRED") != NULL;
			transfer->refused |= transfer->needs_http1 ||
				strstr(rest, " refused by server") != NULL;
			break;
	}
	return 0;
}


/* ---------- Sending again ---------- */

/* What is known of the request's stream is of another connection. */
static void
begin_again(HttpTransfer *transfer)
{
	transfer->refused = false;
	transfer->stale = false;
	transfer->going = false;
	transfer->stream = 0;
}

/* Can a request that was refused fare better when it is sent again, now? */
static bool
is_worth_resending(const HttpTransfer *transfer)
{
	return transfer->num_resends < HTTP_MAX_RESENDS &&
		!(transfer->needs_http1 && transfer->request.version == HTTP_VERSION_2);
}

/*
 * May libcurl send the request again, as it is about to?  "is_sent": the peer may
 * have received it.
 */
bool
http_transfer_allow_resend(HttpTransfer *transfer, bool is_sent)
{
	if (transfer->refused)
	{
		/* after a GOAWAY, libcurl does not ask for another version */
		if (!is_worth_resending(transfer) ||
			(transfer->needs_http1 && !transfer->downgraded))
			return false;
		transfer->num_resends++;
	}
	else if (is_sent && !transfer->resend_ok)
	{
		transfer->resent = true;
		return false;
	}
	begin_again(transfer);
	transfer->handle->error_buffer[0] = '\0';
	return true;
}

/*
 * Send the request again if its peer said that it did not process it, or it was not
 * sent for its connection was stale, and libcurl does not do so by itself.  Its
 * connection is as good as gone; and the handle of a transfer that failed is not used
 * again, see http_handle_release.  Does not throw;
 * when it returns false, the transfer is as it was.
 */
bool
http_transfer_resend(HttpTransfer *transfer)
{
	HttpLoop   *loop = transfer->loop;
	HttpHandle *old = transfer->handle;
	HttpRequest request = transfer->request;
	HttpHandle *handle;
	HttpPool   *old_pool = transfer->pool;
	HttpPool   *pool;

	if (!(transfer->refused || transfer->stale) || transfer->status != 0 || old->url_text == NULL ||
		!is_worth_resending(transfer) || GetCurrentTimestamp() >= transfer->deadline)
		return false;
	request.url = old->url_text;
	request.proxy = old->proxy;
	handle = http_handle_acquire_trusting(loop, &request, old->authorities);
	if (handle == NULL)
		return false;

	transfer->handle = handle;
	if (!http_transfer_configure(transfer, &request) || !http_pool_add(transfer))
	{
		transfer->handle = old;
		http_handle_free(handle);
		return false;
	}
	pool = transfer->pool;
	transfer->handle = old;
	transfer->pool = old_pool;
	http_pool_remove(transfer);
	transfer->handle = handle;
	transfer->pool = pool;
	old->transfer = NULL;
	http_handle_release(loop, old, false);

	transfer->num_resends++;
	begin_again(transfer);
	transfer->downgraded = false;
	transfer->sent_before = 0;
	if (transfer->begun)
		loop->num_unbegun++;
	transfer->begun = false;
	loop->fresh = true;
	return true;
}

/* Did the stream fail, or a connection that was made for it? */
static bool
is_failure_of_http2(const HttpTransfer *transfer, CURLcode code)
{
	long		new_connections = 0;

	if (code == CURLE_HTTP2_STREAM)
		return true;
	return code == CURLE_HTTP2 &&
		curl_easy_getinfo(transfer->handle->easy, CURLINFO_NUM_CONNECTS,
						  &new_connections) == CURLE_OK && new_connections > 0;
}

/*
 * Learn from a transfer's end, or from its refusal, which HTTP its peer does well
 * with.
 */
void
http_transfer_note_version(HttpTransfer *transfer, CURLcode code)
{
	const HttpHandle *handle = transfer->handle;

	if (handle->url_text == NULL || transfer->request.version != HTTP_VERSION_ANY)
		return;
	if (transfer->needs_http1)
		http_peer_needs_http1_note(transfer->loop, handle);
	else if (transfer->stream == 0 || transfer->refused)
		return;
	else if (code == CURLE_OK)
		http_peer_answered(transfer->loop, handle);
	else if (transfer->status == 0 && is_failure_of_http2(transfer, code))
		http_peer_failed(transfer->loop, handle);
}
