/*-------------------------------------------------------------------------
 *
 * src/http/http_cause.c
 *	  Why a transfer brought no answer, in our own words.
 *
 * What libcurl, OpenSSL and the C library say of it is not shown: it is English
 * only, and in it are phrases like "reset by peer", by which frameworks recognise
 * a lost connection to the *database*, and then run the statement again.  So a
 * cause is found among those that we have a sentence for, from libcurl's result
 * code, the system's error, and what OpenSSL says of a certificate.  A number
 * leads to what was left out.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/nls.h"
#include "http/http_internal.h"

/* Of OpenSSL, whose headers are not needed otherwise: X509_V_ERR_... */
#define VERIFY_NO_ISSUER			2
#define VERIFY_NOT_YET_VALID		9
#define VERIFY_EXPIRED				10
#define VERIFY_SELF_SIGNED			18
#define VERIFY_SELF_SIGNED_IN_CHAIN	19
#define VERIFY_NO_LOCAL_ISSUER		20
#define VERIFY_NO_CHAIN				21
#define VERIFY_OTHER_HOST			62
#define VERIFY_OTHER_ADDRESS		64

/* ... and SSL_R_..., which are the lower bits of its codes */
#define TLS_REASON(code)			((code) & 0xFFF)
#define TLS_HTTP_REQUEST			156
#define TLS_UNSUPPORTED_PROTOCOL	258
#define TLS_WRONG_VERSION_NUMBER	267
#define TLS_UNEXPECTED_EOF			294
#define TLS_ALERT_PROTOCOL_VERSION	1070

/* A sentence each, without a full stop; %d stands for the number. */
static const char *const cause_texts[] = {
	[HTTP_CAUSE_NONE] = NULL,
	[HTTP_CAUSE_NO_ADDRESS] =
	gettext_noop("the name service gave no address for the host"),
	[HTTP_CAUSE_NO_PROXY_ADDRESS] =
	gettext_noop("the name service gave no address for the proxy"),
	[HTTP_CAUSE_NOT_LISTENING] =
	gettext_noop("nothing listens at that address and port, or a firewall rejects connections"),
	[HTTP_CAUSE_NO_WAY] =
	gettext_noop("the network has no route to that address"),
	[HTTP_CAUSE_SILENT] =
	gettext_noop("that address does not respond"),
	[HTTP_CAUSE_FORBIDDEN] =
	gettext_noop("the database host does not allow it"),
	[HTTP_CAUSE_SYSTEM] =
	gettext_noop("system error %d"),
	[HTTP_CAUSE_NO_PORT] =
	gettext_noop("the database host has no local port left"),
	[HTTP_CAUSE_NO_SOCKET] =
	gettext_noop("the database host has no file descriptor or memory left for a socket"),
	[HTTP_CAUSE_NO_THREAD] =
	gettext_noop("there was no thread or file descriptor to look up the host name"),
	[HTTP_CAUSE_MEMORY] =
	gettext_noop("memory ran out"),
	[HTTP_CAUSE_EXPIRED] =
	gettext_noop("the certificate has expired"),
	[HTTP_CAUSE_NOT_YET_VALID] =
	gettext_noop("the certificate is not valid yet"),
	[HTTP_CAUSE_SELF_SIGNED] =
	gettext_noop("the certificate is self-signed, and not among those that are trusted"),
	[HTTP_CAUSE_UNKNOWN_CA] =
	gettext_noop("the certificate is of an authority that is not trusted"),
	[HTTP_CAUSE_OTHER_HOST] =
	gettext_noop("the certificate is for another host name"),
	[HTTP_CAUSE_CERTIFICATE] =
	gettext_noop("the certificate did not pass verification, with result %d of the TLS library"),
	[HTTP_CAUSE_CA_FILE] =
	gettext_noop("no certificate of an authority could be read"),
	[HTTP_CAUSE_NOT_TLS] =
	gettext_noop("the peer does not speak TLS"),
	[HTTP_CAUSE_TLS_VERSION] =
	gettext_noop("the peer speaks no version of TLS that is allowed here"),
	[HTTP_CAUSE_TLS_ENDED] =
	gettext_noop("the peer broke off the TLS handshake"),
	[HTTP_CAUSE_TLS_CODE] =
	gettext_noop("the TLS handshake failed, with code %08X of OpenSSL"),
	[HTTP_CAUSE_TLS] =
	gettext_noop("the TLS handshake failed"),
	[HTTP_CAUSE_PROXY_STATUS] =
	gettext_noop("the proxy answered with HTTP status %d"),
	[HTTP_CAUSE_PROXY] =
	gettext_noop("the proxy did not do as it was asked, with code %d of libcurl"),
	[HTTP_CAUSE_KEPT] =
	gettext_noop("the peer had ended a connection that was kept for further requests"),
	[HTTP_CAUSE_NOT_PROCESSED] =
	gettext_noop("the peer said that it did not process the request"),
	[HTTP_CAUSE_HUNG_UP] =
	gettext_noop("the peer hung up"),
	[HTTP_CAUSE_BROKE_OFF] =
	gettext_noop("the peer or the network broke the transfer off"),
	[HTTP_CAUSE_HTTP2] =
	gettext_noop("the peer ended the request with HTTP/2 error %d"),
	[HTTP_CAUSE_NOT_HTTP] =
	gettext_noop("the answer is not HTTP"),
	[HTTP_CAUSE_SHORT] =
	gettext_noop("the answer is shorter than it says"),
	[HTTP_CAUSE_ENCODING] =
	gettext_noop("the answer's compression is broken"),
	[HTTP_CAUSE_NOT_ASKED] =
	gettext_noop("the answer has an encoding that was not requested"),
	[HTTP_CAUSE_TOO_SLOW] =
	gettext_noop("it took too long while others waited for memory"),
	[HTTP_CAUSE_HEADERS] =
	gettext_noop("the answer's headers are too large"),
	[HTTP_CAUSE_OTHER] =
	gettext_noop("code %d of libcurl")
};

static HttpCause
cause(HttpCauseKind kind, int number)
{
	return (HttpCause)
	{
		kind, number
	};
}

/* A number that libcurl keeps of a transfer; 0: none. */
static int
info(HttpTransfer *transfer, CURLINFO what)
{
	long		number = 0;

	if (curl_easy_getinfo(transfer->handle->easy, what, &number) != CURLE_OK)
		return 0;
	return (int) number;
}

/* The number behind the last such mark in libcurl's words; 0: there is none. */
static int
number_behind(HttpTransfer *transfer, const char *mark, int base)
{
	const char *rest = transfer->handle->error_buffer;
	const char *found = NULL;

	while ((rest = strstr(rest, mark)) != NULL)
		found = rest += strlen(mark);
	return found ? (int) strtoul(found, NULL, base) : 0;
}

/*
 * The stream, or the connection, ended with an error of HTTP/2: "(err 1)", or from 8.19
 * "(error 0x1 PROTOCOL_ERROR)".  Others have no number.
 */
static HttpCause
http2_cause(HttpTransfer *transfer)
{
	int			error = number_behind(transfer, "(err ", 10);

	if (error == 0)
		error = number_behind(transfer, "(error 0x", 16);
	return error != 0 ? cause(HTTP_CAUSE_HTTP2, error) : cause(HTTP_CAUSE_BROKE_OFF, 0);
}

/* There is no connection, by what the system says. */
static HttpCause
system_cause(int error, bool is_local)
{
	switch (error)
	{
		case 0:
			return cause(HTTP_CAUSE_NONE, 0);
		case ECONNREFUSED:
			return cause(HTTP_CAUSE_NOT_LISTENING, 0);
		case ENETUNREACH:
		case EHOSTUNREACH:
		case ENETDOWN:
		case EHOSTDOWN:
			return cause(HTTP_CAUSE_NO_WAY, 0);
		case ETIMEDOUT:
			return cause(HTTP_CAUSE_SILENT, 0);
		case EACCES:
		case EPERM:
			return cause(HTTP_CAUSE_FORBIDDEN, 0);
		case EADDRNOTAVAIL:
			/* or the host has no address of that family */
			return cause(is_local ? HTTP_CAUSE_NO_PORT : HTTP_CAUSE_NO_WAY, 0);
		case ECONNRESET:
		case ECONNABORTED:
		case EPIPE:
			return cause(HTTP_CAUSE_HUNG_UP, 0);
		default:
			return cause(HTTP_CAUSE_SYSTEM, error);
	}
}

/* A certificate was not accepted: the peer's, or the proxy's. */
static HttpCause
certificate_cause(HttpTransfer *transfer)
{
	int			verified = info(transfer, CURLINFO_SSL_VERIFYRESULT);

	if (verified == 0)
		verified = info(transfer, CURLINFO_PROXY_SSL_VERIFYRESULT);
	switch (verified)
	{
		case VERIFY_EXPIRED:
			return cause(HTTP_CAUSE_EXPIRED, 0);
		case VERIFY_NOT_YET_VALID:
			return cause(HTTP_CAUSE_NOT_YET_VALID, 0);
		case VERIFY_SELF_SIGNED:
			return cause(HTTP_CAUSE_SELF_SIGNED, 0);
		case VERIFY_NO_ISSUER:
		case VERIFY_NO_LOCAL_ISSUER:
		case VERIFY_NO_CHAIN:
		case VERIFY_SELF_SIGNED_IN_CHAIN:
			return cause(HTTP_CAUSE_UNKNOWN_CA, 0);
		case 0:					/* libcurl compares names itself */
		case VERIFY_OTHER_HOST:
		case VERIFY_OTHER_ADDRESS:
			return cause(HTTP_CAUSE_OTHER_HOST, 0);
		default:
			return cause(HTTP_CAUSE_CERTIFICATE, verified);
	}
}

/* TLS was not established. */
static HttpCause
tls_cause(HttpTransfer *transfer)
{
	int			code = number_behind(transfer, "error:", 16);

	if (code == 0)
		return strstr(transfer->handle->error_buffer, "SSL_ERROR_SYSCALL") ||
			info(transfer, CURLINFO_OS_ERRNO) != 0 ?
			cause(HTTP_CAUSE_TLS_ENDED, 0) : cause(HTTP_CAUSE_TLS, 0);
	switch (TLS_REASON(code))
	{
		case TLS_WRONG_VERSION_NUMBER:
		case TLS_HTTP_REQUEST:
			return cause(HTTP_CAUSE_NOT_TLS, 0);
		case TLS_UNSUPPORTED_PROTOCOL:
		case TLS_ALERT_PROTOCOL_VERSION:
			return cause(HTTP_CAUSE_TLS_VERSION, 0);
		case TLS_UNEXPECTED_EOF:
			return cause(HTTP_CAUSE_TLS_ENDED, 0);
		default:
			return cause(HTTP_CAUSE_TLS_CODE, code);
	}
}

/*
 * Why a transfer that has been classified ended as it did.  Its handle is there
 * still.  Runs with signals blocked, and does not throw.
 */
HttpCause
http_cause_find(HttpTransfer *transfer, CURLcode code)
{
	const HttpResult *result = &transfer->result;
	int			proxy_status = info(transfer, CURLINFO_HTTP_CONNECTCODE);

	if (result->outcome == HTTP_ANSWERED || result->outcome == HTTP_TIMEOUT ||
		result->outcome == HTTP_TOO_LARGE)
		return cause(HTTP_CAUSE_NONE, 0);
	if (result->trouble == HTTP_TROUBLE_KEPT)
		return cause(HTTP_CAUSE_KEPT, 0);
	if (result->trouble == HTTP_TROUBLE_REFUSED)
		return cause(HTTP_CAUSE_NOT_PROCESSED, 0);
	if (transfer->too_slow)
		return cause(HTTP_CAUSE_TOO_SLOW, 0);
	if (transfer->bad_encoding)
		return cause(HTTP_CAUSE_NOT_ASKED, 0);
	if (result->trouble == HTTP_TROUBLE_CA_FILE)
		return cause(HTTP_CAUSE_CA_FILE, 0);
	if (transfer->no_socket)
		return cause(HTTP_CAUSE_NO_SOCKET, 0);
	if (transfer->out_of_memory)
		return cause(HTTP_CAUSE_MEMORY, 0);
	if (proxy_status != 0 && proxy_status / 100 != 2)
		return cause(HTTP_CAUSE_PROXY_STATUS, proxy_status);

	switch (code)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_RESOLVE_PROXY:
			if (result->trouble == HTTP_TROUBLE_LOCAL)
				return cause(HTTP_CAUSE_NO_THREAD, 0);
			return code == CURLE_COULDNT_RESOLVE_HOST ?
				cause(HTTP_CAUSE_NO_ADDRESS, 0) : cause(HTTP_CAUSE_NO_PROXY_ADDRESS, 0);
		case CURLE_PROXY:
			return cause(HTTP_CAUSE_PROXY, info(transfer, CURLINFO_PROXY_ERROR));
		case CURLE_COULDNT_CONNECT:
			return system_cause(info(transfer, CURLINFO_OS_ERRNO),
								result->trouble == HTTP_TROUBLE_LOCAL);
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_ISSUER_ERROR:
			return certificate_cause(transfer);
		case CURLE_SSL_CACERT_BADFILE:
			return cause(HTTP_CAUSE_CA_FILE, 0);
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_ENGINE_NOTFOUND:
			return tls_cause(transfer);
		case CURLE_GOT_NOTHING:
			return cause(HTTP_CAUSE_HUNG_UP, 0);
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
			return cause(HTTP_CAUSE_BROKE_OFF, 0);
		case CURLE_HTTP2:
		case CURLE_HTTP2_STREAM:
			return http2_cause(transfer);
		case CURLE_UNSUPPORTED_PROTOCOL:
		case CURLE_WEIRD_SERVER_REPLY:
			return cause(HTTP_CAUSE_NOT_HTTP, 0);
		case CURLE_PARTIAL_FILE:
			return cause(HTTP_CAUSE_SHORT, 0);
		case CURLE_BAD_CONTENT_ENCODING:
			return cause(HTTP_CAUSE_ENCODING, 0);
		case CURLE_OUT_OF_MEMORY:
			/* libcurl says so, too, when a header is beyond all measure */
			return result->trouble == HTTP_TROUBLE_LOCAL ?
				cause(HTTP_CAUSE_MEMORY, 0) : cause(HTTP_CAUSE_HEADERS, 0);
		default:
			return cause(HTTP_CAUSE_OTHER, (int) code);
	}
}

/* The same as text for users, palloc'd; NULL: there is nothing to be said. */
char *
http_cause_text(HttpCause of)
{
	const char *text = cause_texts[of.kind];

	return text ? psprintf(_(text), of.number) : NULL;
}
