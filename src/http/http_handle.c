/*-------------------------------------------------------------------------
 *
 * src/http/http_handle.c
 *	  libcurl's easy handles: set up once, used for many transfers.
 *
 * To set up a handle and to parse its URL costs more than a transfer that
 * reuses them.  So handles that are not in use are kept, with what they are
 * set to: their URL, their proxy, and the authorities they trust.  Nothing here throws;
 * signals are blocked by the caller, see http_loop.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "http/http_internal.h"

/*
 * A name is resolved again for a connection that is made so many seconds later: it
 * may lead elsewhere by then.  Not for each of many that are made at once.
 */
#define HTTP_DNS_SECONDS		5L

/* Settings that no request changes. */
static bool
handle_configure(HttpHandle *handle, HttpLoop *loop)
{
	CURL	   *easy = handle->easy;
	bool		ok = true;
	char		user_agent[64];

	/* without the packager's name, which follows a blank */
	snprintf(user_agent, sizeof(user_agent), "feishu_flow/%s PostgreSQL/%.*s",
			 FEISHU_FLOW_VERSION, (int) strcspn(PG_VERSION, " "), PG_VERSION);
	SET(CURLOPT_USERAGENT, user_agent);
	SET(CURLOPT_PRIVATE, handle);
	SET(CURLOPT_ERRORBUFFER, handle->error_buffer);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(FEISHU_CURLOPT_PROTOCOLS, FEISHU_CURL_PROTOCOLS);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_PROXY_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_PROXY_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_PROXY_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	SET(CURLOPT_PROXY, "");		/* the server's proxy option alone decides */
	SET(CURLOPT_NOPROXY, "");
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_DNS_CACHE_TIMEOUT, HTTP_DNS_SECONDS);
	/* the least there is: a request is some hundred bytes, and a dispatcher has
	 * hundreds of them under way */
	SET(CURLOPT_UPLOAD_BUFFERSIZE, 16384L);
	SET(CURLOPT_OPENSOCKETFUNCTION, http_open_socket);
	SET(CURLOPT_OPENSOCKETDATA, handle);
	SET(CURLOPT_CLOSESOCKETFUNCTION, http_close_socket);
	SET(CURLOPT_CLOSESOCKETDATA, loop);
	SET(CURLOPT_WRITEFUNCTION, http_transfer_on_body);
	SET(CURLOPT_WRITEDATA, handle);
	SET(CURLOPT_HEADERFUNCTION, http_transfer_on_header);
	SET(CURLOPT_HEADERDATA, handle);
	SET(CURLOPT_DEBUGFUNCTION, http_transfer_on_words);
	SET(CURLOPT_DEBUGDATA, handle);
#ifdef FEISHU_HAVE_CURL_QUICK_EXIT
	SET(CURLOPT_QUICK_EXIT, 1L);
#endif
#ifdef FEISHU_HAVE_CURL_PREREQ
	SET(CURLOPT_PREREQFUNCTION, http_transfer_on_request);
	SET(CURLOPT_PREREQDATA, handle);
#endif
	/* Optional features of a libcurl build: no harm if they are missing. */
#ifdef FEISHU_HAVE_CURL_CA_CACHE
	/* for ever: a file that has changed gets another name */
	(void) curl_easy_setopt(easy, CURLOPT_CA_CACHE_TIMEOUT, -1L);
#endif
	return ok;
}

void
http_handle_free(HttpHandle *handle)
{
	/* the easy handle first: it refers to the URL */
	curl_easy_cleanup(handle->easy);
	curl_url_cleanup(handle->url);
	free(handle->url_text);
	free(handle->proxy);
	free(handle->authorities);
	free(handle);
}

/* A configured handle without a URL, or NULL. */
static HttpHandle *
handle_create(HttpLoop *loop)
{
	HttpHandle *handle = calloc(1, sizeof(HttpHandle));

	if (handle == NULL)
		return NULL;
	handle->easy = curl_easy_init();
	handle->url = curl_url();
	if (handle->easy == NULL || handle->url == NULL ||
		!handle_configure(handle, loop))
	{
		http_handle_free(handle);
		return NULL;
	}
	return handle;
}

/*
 * Set the URL.  libcurl parses what comes by CURLOPT_URL for each transfer
 * anew, so it gets the URL parsed.  One that cannot be parsed is for libcurl to
 * complain of when it is used.
 */
static bool
handle_set_url(HttpHandle *handle, const char *url)
{
	CURL	   *easy = handle->easy;
	bool		ok = true;

	free(handle->url_text);
	handle->url_text = strdup(url);
	if (curl_url_set(handle->url, CURLUPART_URL, url, 0) == CURLUE_OK)
	{
		/* forget the text that libcurl made of the former one */
		SET(CURLOPT_URL, NULL);
		SET(CURLOPT_CURLU, handle->url);
	}
	else
	{
		SET(CURLOPT_CURLU, NULL);
		SET(CURLOPT_URL, url);
	}
	return ok && handle->url_text != NULL;
}

/*
 * Set which HTTP to speak to the URL's peer.  A libcurl without HTTP/2 has no other
 * than 1.1.
 */
static void
handle_set_version(HttpHandle *handle, const char *url, HttpVersion version)
{
	CURL	   *easy = handle->easy;
	bool		is_tls = http_url_has_scheme(url, "https");
	bool		may_be_2 = version == HTTP_VERSION_2 || (version == HTTP_VERSION_ANY && is_tls);

	handle->version = version;
	(void) curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
							!may_be_2 ? (long) CURL_HTTP_VERSION_1_1 :
							is_tls ? (long) CURL_HTTP_VERSION_2TLS :
							(long) CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE);
	/* see if the connection that is being made can be shared; that of HTTP/1.1 never
	 * can, but libcurl would find that out by the first answer only */
	(void) curl_easy_setopt(easy, CURLOPT_PIPEWAIT, may_be_2 ? 1L : 0L);
	/* The newest TLS that there is, said otherwise: so libcurl sends nothing that is to
	 * be HTTP/2 over a kept connection of HTTP/1.1. */
	(void) curl_easy_setopt(easy, CURLOPT_SSLVERSION, version == HTTP_VERSION_2 ?
							(long) (CURL_SSLVERSION_TLSv1_2 | CURL_SSLVERSION_MAX_TLSv1_3) :
							(long) CURL_SSLVERSION_TLSv1_2);
	/* what it says of HTTP/2 is of interest: see http_refused.c */
	(void) curl_easy_setopt(easy, CURLOPT_VERBOSE, may_be_2 ? 1L : 0L);
}

/* The version that a request is to be sent in. */
static HttpVersion
version_of_request(HttpLoop *loop, const HttpRequest *request, const char *authorities)
{
	return request->version == HTTP_VERSION_ANY &&
		http_peer_needs_http1(loop, request->url, request->proxy, authorities) ?
		HTTP_VERSION_1_1 : request->version;
}

/* Are both texts NULL, or the same? */
static bool
same_text(const char *one, const char *other)
{
	if (one == NULL || other == NULL)
		return one == other;
	return strcmp(one, other) == 0;
}

static bool
handle_set_proxy(HttpHandle *handle, const char *proxy)
{
	CURL	   *easy = handle->easy;
	bool		ok = true;

	if (same_text(handle->proxy, proxy))
		return true;
	free(handle->proxy);
	handle->proxy = proxy != NULL ? strdup(proxy) : NULL;
	SET(CURLOPT_PROXY, proxy != NULL ? proxy : "");
	return ok && (handle->proxy != NULL) == (proxy != NULL);
}

/* Is TLS spoken for a request, to the proxy at least? */
static bool
request_needs_tls(const HttpRequest *request)
{
	return http_url_has_scheme(request->url, "https") ||
		(request->proxy != NULL && http_url_has_scheme(request->proxy, "https"));
}

/* Make a new handle, and its proxy, trust these authorities alone: a private server
 * is not to be vouched for by others. */
static bool
handle_set_authorities(HttpHandle *handle, const char *authorities)
{
	handle->authorities = strdup(authorities);
	return handle->authorities != NULL && http_authorities_set(handle->easy, authorities);
}

/* Does the handle trust them, or can it?  NULL: none are needed. */
static bool
handle_may_trust(const HttpHandle *handle, const char *authorities)
{
	return authorities == NULL || handle->authorities == NULL ||
		strcmp(handle->authorities, authorities) == 0;
}

/* Take an idle handle out of the list. */
static HttpHandle *
handle_take(HttpLoop *loop, int i)
{
	HttpHandle *handle = loop->idle[i];

	loop->num_idle--;
	memmove(&loop->idle[i], &loop->idle[i + 1],
			(loop->num_idle - i) * sizeof(HttpHandle *));
	return handle;
}

/*
 * An idle handle that trusts whom it should, or a new one, or NULL: preferably
 * one that was used for the same URL.
 */
static HttpHandle *
handle_find(HttpLoop *loop, const char *url, const char *authorities)
{
	int			other = -1;

	for (int i = loop->num_idle - 1; i >= 0; i--)
	{
		if (!handle_may_trust(loop->idle[i], authorities))
			continue;
		other = i;
		if (same_text(loop->idle[i]->url_text, url))
			break;
	}
	return other >= 0 ? handle_take(loop, other) : handle_create(loop);
}

/* The handle that was used last, if it is set up for just this, as nearly always
 * in a session: then there is nothing to look at or to set.  Else NULL. */
static HttpHandle *
handle_take_last(HttpLoop *loop, const HttpRequest *request, HttpVersion version,
				 const char *authorities)
{
	HttpHandle *last = loop->num_idle > 0 ? loop->idle[loop->num_idle - 1] : NULL;

	if (last == NULL || last->version != version ||
		!same_text(last->url_text, request->url) ||
		!same_text(last->proxy, request->proxy) ||
		(authorities != NULL && !same_text(last->authorities, authorities)))
		return NULL;
	loop->num_idle--;
	return last;
}

/* Any handle, set up for whom a request goes to, or NULL. */
static HttpHandle *
handle_set_up(HttpLoop *loop, const HttpRequest *request, HttpVersion version,
			  const char *authorities)
{
	const char *url = request->url;
	HttpHandle *handle = handle_find(loop, url, authorities);
	bool		ok;
	bool		fits;

	if (handle == NULL)
		return NULL;
	fits = same_text(handle->url_text, url);
	ok = fits || handle_set_url(handle, url);
	if (!fits || handle->version != version)
		handle_set_version(handle, url, version);
	ok = ok && handle_set_proxy(handle, request->proxy);
	if (authorities != NULL && handle->authorities == NULL)
		ok = ok && handle_set_authorities(handle, authorities);
	if (!ok)
	{
		http_handle_free(handle);
		return NULL;
	}
	return handle;
}

/* A handle for a request that trusts these authorities (NULL: none are needed), or
 * NULL. */
HttpHandle *
http_handle_acquire_trusting(HttpLoop *loop, const HttpRequest *request, const char *authorities)
{
	HttpVersion version = version_of_request(loop, request, authorities);
	HttpHandle *handle = handle_take_last(loop, request, version, authorities);

	if (handle == NULL)
		handle = handle_set_up(loop, request, version, authorities);
	if (handle != NULL)
		handle->error_buffer[0] = '\0';
	return handle;
}

/* A handle for a request, or NULL. */
HttpHandle *
http_handle_acquire(HttpLoop *loop, const HttpRequest *request)
{
	const char *authorities = NULL;

	if (request_needs_tls(request) &&
		(authorities = http_authorities_get(request->ca_file)) == NULL)
		return NULL;
	return http_handle_acquire_trusting(loop, request, authorities);
}

/*
 * Keep a handle for the next request, in the place of the one that was not
 * used for longest if there is no room.  One whose transfer failed is dropped:
 * libcurl 8 carries some failures over to the next transfer, even through
 * curl_easy_reset (curl issue 18206).
 */
void
http_handle_release(HttpLoop *loop, HttpHandle *handle, bool reusable)
{
	if (!reusable)
	{
		http_handle_free(handle);
		return;
	}
	if (loop->num_idle == HTTP_MAX_IDLE_HANDLES)
		http_handle_free(handle_take(loop, 0));
	loop->idle[loop->num_idle++] = handle;
}

/*
 * The socket that the transfer under way uses, or -1 if it has none yet.
 * (CURLINFO_ACTIVESOCKET is only that of an ended one, in libcurl 8.14 still.)
 */
int
http_handle_socket(const HttpLoop *loop, const HttpHandle *handle)
{
	CURL	   *easy = handle->easy;
	long		local_port = 0;
	long		peer_port = 0;
	char	   *peer_address = NULL;

	if (curl_easy_getinfo(easy, CURLINFO_LOCAL_PORT, &local_port) != CURLE_OK || local_port <= 0 ||
		curl_easy_getinfo(easy, CURLINFO_PRIMARY_PORT, &peer_port) != CURLE_OK ||
		curl_easy_getinfo(easy, CURLINFO_PRIMARY_IP, &peer_address) != CURLE_OK ||
		peer_address == NULL)
		return -1;
	return http_conn_find(loop->sockets, (int) local_port, peer_address, (int) peer_port);
}
