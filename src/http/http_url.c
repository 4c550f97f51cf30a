/*-------------------------------------------------------------------------
 *
 * src/http/http_url.c
 *	  URLs, as libcurl reads them.
 *
 * Nobody else takes a URL apart: what is checked, compared or shown of one is what
 * libcurl will connect to.  libcurl is lenient with some, each version in its own
 * way; those are refused by http_url_check where they are set.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "http/http_internal.h"

/* Is it the scheme of the URL? */
bool
http_url_has_scheme(const char *url, const char *scheme)
{
	size_t		len = strlen(scheme);

	return pg_strncasecmp(url, scheme, len) == 0 && strncmp(url + len, "://", 3) == 0;
}

/*
 * Scheme, host and port of a URL, without what may be secret.  False if it is none,
 * or one without a host, or has too long a host.  Does not throw.
 */
bool
http_url_origin(const char *url, char *origin, size_t size)
{
	CURLU	   *parsed = curl_url();
	char	   *scheme = NULL;
	char	   *host = NULL;
	char	   *port = NULL;
	bool		ok;

	ok = parsed != NULL &&
		curl_url_set(parsed, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) == CURLUE_OK &&
		curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
		curl_url_get(parsed, CURLUPART_HOST, &host, 0) == CURLUE_OK;
	if (ok && curl_url_get(parsed, CURLUPART_PORT, &port, 0) == CURLUE_OK)
		ok = snprintf(origin, size, "%s://%s:%s", scheme, host, port) < (int) size;
	else if (ok)
		ok = snprintf(origin, size, "%s://%s", scheme, host) < (int) size;
	curl_free(scheme);
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(parsed);
	return ok;
}

/* What is wrong with host and port, which libcurl took with this code. */
static HttpUrlFault
find_fault(const HttpUrl *url, CURLU *parsed, CURLUcode code)
{
	const char *rest = url->host + url->host_len;
	char	   *text = NULL;
	bool		ok = code == CURLUE_OK;

	if (rest[0] == ':' && memchr(rest + 1, ':', url->path - rest - 1) != NULL)
		return HTTP_URL_HOST;
	/* of brackets each version of libcurl says something else */
	if (url->host[0] == '[' && url->host[url->host_len - 1] != ']')
		return HTTP_URL_IPV6;
	if (rest < url->path && rest[0] != ':')
		return HTTP_URL_HOST;
	if (code == CURLUE_NO_HOST || url->host_len == 0)
		return HTTP_URL_NO_HOST;
	if (rest[0] == ':' && ok)
		ok = curl_url_get(parsed, CURLUPART_PORT, &text, 0) == CURLUE_OK && atoi(text) > 0;
	curl_free(text);
	if (!ok && (code == CURLUE_OK || code == CURLUE_BAD_PORT_NUMBER))
		return rest[0] == ':' ? HTTP_URL_PORT : HTTP_URL_HOST;
	/* a zone is no part of the host to libcurl */
	if (url->host[0] == '[')
		return ok && memchr(url->host, '%', url->host_len) == NULL ? HTTP_URL_FINE : HTTP_URL_IPV6;
	/* it also makes an address of what is not written as one */
	text = NULL;
	ok = ok && curl_url_get(parsed, CURLUPART_HOST, &text, 0) == CURLUE_OK &&
		strlen(text) == url->host_len && pg_strncasecmp(text, url->host, url->host_len) == 0;
	curl_free(text);
	return ok ? HTTP_URL_FINE : HTTP_URL_HOST;
}

/*
 * What is wrong with a URL that has a scheme?
 *
 * Is this a URL of a scheme, which the caller has seen, a host, and maybe a port and a
 * path, written as libcurl understands it?  Whether host and path are what they should
 * be is the caller's to see; *url points into the text.  Does not throw.
 *
 * Where libcurl cannot be used it is not: no request is sent by such a process, and one
 * that sends some checks again.
 */
HttpUrlFault
http_url_check(const char *text, HttpUrl *url)
{
	bool		is_fit = http_library_fault() != HTTP_LIBRARY_TAKEN;
	CURLU	   *parsed = is_fit ? curl_url() : NULL;
	CURLUcode	code = is_fit ? CURLUE_OUT_OF_MEMORY : CURLUE_OK;
	HttpUrlFault fault;
	char	   *origin;

	url->host = strstr(text, "://") + 3;
	url->path = url->host + strcspn(url->host, "/?#");
	url->host_len = strcspn(url->host, url->host[0] == '[' ? "]/?#" : ":/?#");
	url->host_len += url->host[url->host_len] == ']';
	origin = strndup(text, url->path - text);
	if (parsed != NULL && origin != NULL)
		code = curl_url_set(parsed, CURLUPART_URL, origin,
							CURLU_NON_SUPPORT_SCHEME | CURLU_DISALLOW_USER);
	if (code == CURLUE_OUT_OF_MEMORY)
		fault = HTTP_URL_MEMORY;
	else if (code == CURLUE_USER_NOT_ALLOWED ||
			 memchr(url->host, '@', url->path - url->host) != NULL)
		fault = HTTP_URL_USER;
	else if (strpbrk(text, "?#") != NULL)
		fault = HTTP_URL_QUERY;
	else
		fault = is_fit ? find_fault(url, parsed, code) : HTTP_URL_FINE;
	free(origin);
	curl_url_cleanup(parsed);
	return fault;
}
