/*-------------------------------------------------------------------------
 *
 * src/http/http_classify.c
 *	  How a transfer ended: libcurl's result code in terms of the caller.
 *
 * Runs with signals blocked, and does not throw; see http_loop.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/nls.h"
#include "http/http_internal.h"

/* What was going on when a transfer ended, from the times libcurl keeps. */
static const char *
transfer_phase(HttpTransfer *transfer)
{
	CURL	   *easy = transfer->handle->easy;
	static const struct
	{
		CURLINFO	info;
		const char *phase;
	}			phases[] =
	{
		{CURLINFO_NAMELOOKUP_TIME, gettext_noop("resolving the host name")},
		{CURLINFO_CONNECT_TIME, gettext_noop("connecting")}
	};

	/* the times of a reused connection are 0: look at what came first */
	if (transfer->result.http_status > 0)
		return gettext_noop("receiving the answer");
	if (http_transfer_is_sent(transfer))
	{
		curl_off_t	uploaded = 0;

		if (curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &uploaded) == CURLE_OK &&
			uploaded > 0 && uploaded < (curl_off_t) transfer->request.body_len)
			return gettext_noop("handing over the request");
		return gettext_noop("waiting for the answer");
	}
	for (int i = 0; i < (int) lengthof(phases); i++)
	{
		double		seconds = 0;

		if (curl_easy_getinfo(easy, phases[i].info, &seconds) == CURLE_OK && seconds <= 0)
			return phases[i].phase;
	}
	/* for this, some libcurls set the time of any transfer that ends */
	return transfer->begun ? gettext_noop("handing over the request") :
		gettext_noop("establishing the connection");
}

/*
 * The connection that the request was sent on has died, and libcurl could not
 * make another to send it again?
 */
static bool
is_lost_at_resend(const HttpTransfer *transfer, bool answer_began)
{
#ifdef FEISHU_HAVE_CURL_PREREQ
	HttpTrouble trouble = transfer->result.trouble;

	return transfer->result.request_sent && !transfer->resend_ok && !answer_began &&
		trouble != HTTP_TROUBLE_RESET && trouble != HTTP_TROUBLE_LOCAL;
#else
	return false;				/* always on a fresh connection: no second time */
#endif
}

/*
 * Was there no thread to resolve a name in, or no descriptor to hear of its end?
 * libcurl has no code of its own for that.
 */
static bool
has_no_resolver(const HttpTransfer *transfer)
{
	return strstr(transfer->handle->error_buffer, "thread failed to start") != NULL;
}

/* Is there no descriptor left for what libraries open: a socket to the name service,
 * a file of authorities? */
static bool
has_no_descriptor(void)
{
	int			fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE;
	close(fd);
	return false;
}

/*
 * Is there no port left to connect from?  EADDRNOTAVAIL says so, but also that the
 * host has no address of the peer's kind, such as of IPv6.  UDP has other ports.
 */
static bool
has_no_port(const HttpTransfer *transfer)
{
	const struct sockaddr *peer = (const struct sockaddr *) &transfer->peer;
	int			fd;
	bool		has_address;

	if (transfer->peer_size == 0)
		return false;
	fd = socket(peer->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	has_address = connect(fd, peer, transfer->peer_size) == 0;
	close(fd);
	return has_address;
}

/* Could a connection not be made because of what this host is short of? */
static bool
cannot_begin_connection(const HttpTransfer *transfer)
{
	long		error = 0;

	if (transfer->no_socket)
		return true;
	curl_easy_getinfo(transfer->handle->easy, CURLINFO_OS_ERRNO, &error);
	return error == ENOBUFS || error == ENOMEM || error == EAGAIN ||
		(error == EADDRNOTAVAIL && has_no_port(transfer));
}

/* Was TLS being begun with the proxy?  Once it has made a tunnel, with the peer. */
static bool
is_at_proxy(const HttpTransfer *transfer)
{
	const char *proxy = transfer->handle->proxy;
	long		tunnel_status = 0;

	curl_easy_getinfo(transfer->handle->easy, CURLINFO_HTTP_CONNECTCODE, &tunnel_status);
	return proxy != NULL && http_url_has_scheme(proxy, "https") && tunnel_status == 0;
}

/*
 * The connection or the stream has failed, or the time is up, but has the answer
 * come all the same?  A peer may answer before it has got the whole of the request,
 * and close.  What remains of a refusal that broke off does not say which one it is;
 * but redirects, and what gateways say of a request, need no body.
 */
static bool
is_answered(const HttpTransfer *transfer, CURLcode code)
{
	CURL	   *easy = transfer->handle->easy;
	long		status = transfer->result.http_status;
	curl_off_t	length = -1;
	curl_off_t	received = 0;

	switch (code)
	{
		case CURLE_SEND_ERROR:
		case CURLE_SEND_FAIL_REWIND:
		case CURLE_RECV_ERROR:
		case CURLE_GOT_NOTHING:
		case CURLE_PARTIAL_FILE:
		case CURLE_HTTP2:
		case CURLE_HTTP2_STREAM:
		case CURLE_OPERATION_TIMEDOUT:
			break;
		default:
			return false;
	}
	if (status == 0 || transfer->status != status)
		return false;
	if (curl_easy_getinfo(easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length) == CURLE_OK &&
		curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &received) == CURLE_OK &&
		length >= 0 && received >= length)
		return true;
	return status / 100 == 3 || status >= 405;
}

/*
 * Fill in the outcome of a transfer that has ended; its handle,
 * http_status and request_sent are there still
 */
void
http_transfer_classify(HttpTransfer *transfer, CURLcode code)
{
	HttpResult *result = &transfer->result;
	bool		answer_began = result->http_status > 0;

	if (code == CURLE_OK || (!transfer->too_large && is_answered(transfer, code)))
	{
		result->outcome = HTTP_ANSWERED;
		return;
	}

	result->phase = transfer_phase(transfer);
	if (transfer->too_large)
	{
		result->outcome = HTTP_TOO_LARGE;
		return;
	}

	if (transfer->refused && transfer->status == 0)
	{
		result->outcome = HTTP_NO_CONNECTION;
		result->trouble = HTTP_TROUBLE_REFUSED;
		return;
	}

	if (transfer->too_slow || transfer->bad_encoding)
	{
		result->outcome = HTTP_BAD_ANSWER;
		result->trouble = HTTP_TROUBLE_ANSWER;
		return;
	}

	switch (code)
	{
		case CURLE_OPERATION_TIMEDOUT:
			result->outcome = HTTP_TIMEOUT;
			return;
		case CURLE_FILESIZE_EXCEEDED:
			result->outcome = HTTP_TOO_LARGE;
			return;

			/* not HTTP, or not as it says */
		case CURLE_UNSUPPORTED_PROTOCOL:	/* "HTTP/0.9" */
		case CURLE_WEIRD_SERVER_REPLY:
		case CURLE_BAD_CONTENT_ENCODING:
		case CURLE_PARTIAL_FILE:
			result->outcome = HTTP_BAD_ANSWER;
			result->trouble = HTTP_TROUBLE_ANSWER;
			return;

		case CURLE_COULDNT_RESOLVE_HOST:
			result->trouble = has_no_resolver(transfer) ? HTTP_TROUBLE_LOCAL : HTTP_TROUBLE_DNS;
			break;
		case CURLE_COULDNT_RESOLVE_PROXY:
		case CURLE_PROXY:
			result->trouble = has_no_resolver(transfer) ? HTTP_TROUBLE_LOCAL : HTTP_TROUBLE_PROXY;
			break;
		case CURLE_COULDNT_CONNECT:
			result->trouble = HTTP_TROUBLE_CONNECT;
			break;
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_ISSUER_ERROR:
			result->trouble = is_at_proxy(transfer) ?
				HTTP_TROUBLE_PROXY_CERTIFICATE : HTTP_TROUBLE_CERTIFICATE;
			break;
		case CURLE_SSL_CACERT_BADFILE:
			result->trouble = HTTP_TROUBLE_CA_FILE;
			break;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_ENGINE_NOTFOUND:
			result->trouble = is_at_proxy(transfer) ?
				HTTP_TROUBLE_PROXY_TLS : HTTP_TROUBLE_TLS;
			break;
		case CURLE_OUT_OF_MEMORY:
			/* libcurl says so, too, when a header is beyond all measure */
			result->trouble = answer_began ? HTTP_TROUBLE_RESET : HTTP_TROUBLE_LOCAL;
			break;
		case CURLE_FAILED_INIT:
			result->trouble = HTTP_TROUBLE_LOCAL;
			break;
		default:
			result->trouble = HTTP_TROUBLE_RESET;
			break;
	}

	/*
	 * libcurl was about to send the request a second time: we refused that, or
	 * it found no way to.
	 */
	if (transfer->resent || transfer->stale || is_lost_at_resend(transfer, answer_began))
		result->trouble = HTTP_TROUBLE_KEPT;
	switch (result->trouble)
	{
		case HTTP_TROUBLE_CONNECT:
			if (cannot_begin_connection(transfer))
				result->trouble = HTTP_TROUBLE_LOCAL;
			break;
		case HTTP_TROUBLE_DNS:
		case HTTP_TROUBLE_PROXY:
		case HTTP_TROUBLE_CERTIFICATE:
		case HTTP_TROUBLE_PROXY_CERTIFICATE:
		case HTTP_TROUBLE_CA_FILE:
			if (has_no_descriptor())
				result->trouble = HTTP_TROUBLE_LOCAL;
			break;
		default:
			break;
	}
	if (transfer->out_of_memory)
		result->trouble = HTTP_TROUBLE_LOCAL;

	/* An answer that broke off is not the same as none. */
	if (result->trouble == HTTP_TROUBLE_RESET && answer_began)
	{
		result->outcome = HTTP_BAD_ANSWER;
		result->trouble = HTTP_TROUBLE_ANSWER;
	}
	else
		result->outcome = HTTP_NO_CONNECTION;
}
