/*-------------------------------------------------------------------------
 *
 * src/http/http.h
 *	  HTTP transfers over one wait loop.  Nothing here knows of Feishu.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HTTP_H
#define FEISHU_HTTP_H

#include "datatype/timestamp.h"
#include "utils/palloc.h"

#include "base/budget.h"

typedef struct HttpLoop HttpLoop;
typedef struct HttpTransfer HttpTransfer;

#define HTTP_HEADER_SIZE	256 /* longest response header kept */
#define HTTP_DATE_SIZE		64	/* of a date, as in RFC 9110 */

/* Which HTTP to speak. */
typedef enum HttpVersion
{
	HTTP_VERSION_ANY,			/* 2 where it is offered, but 1.1 to a peer that
								 * turned out not to do well with it */
	HTTP_VERSION_1_1,
	HTTP_VERSION_2				/* 2, over http without asking first, and no
								 * other if the peer offers it */
} HttpVersion;

/*
 * Names that a peer has for headers of its answers; NULL: it has none.  Static and in
 * lower case.
 */
typedef struct HttpHeaderNames
{
	const char *id;				/* of the answer, by which the peer finds it */
	const char *other_id;		/* where that is not there */
	const char *reset;			/* seconds to wait, rather than Retry-After */
} HttpHeaderNames;

/* One POST (or, with a NULL body, GET).  All strings are UTF-8. */
typedef struct HttpRequest
{
	const char *url;
	const char *content_type;	/* of the body */
	const char *bearer;			/* Authorization: Bearer ..., or NULL */
	const char *body;			/* NULL: GET.  Not copied: it must outlive the
								 * transfer, best in the transfer's context */
	size_t		body_len;
	const char *proxy;			/* NULL: none, whatever the environment says */
	const char *ca_file;		/* NULL: the system's */
	HttpHeaderNames headers;	/* of the answer */
	HttpVersion version;
	TimestampTz deadline;
	int			connect_timeout_ms;
	size_t		max_response;	/* bytes; a longer answer is an error */
	BudgetShare *share;			/* of memory for the answer, which waits for it; NULL:
								 * it does not */
	bool		resend_ok;		/* may be sent again without telling when a
								 * reused connection turns out to be dead */
} HttpRequest;

/* How a transfer ended. */
typedef enum HttpOutcome
{
	HTTP_PENDING,
	HTTP_ANSWERED,				/* a complete HTTP response, any status */
	HTTP_NO_CONNECTION,			/* DNS, TCP, proxy, TLS, or reset before any
								 * byte of an answer */
	HTTP_TIMEOUT,				/* deadline or connect timeout passed */
	HTTP_BAD_ANSWER,			/* cut off, not HTTP, bad content encoding */
	HTTP_TOO_LARGE				/* longer than max_response */
} HttpOutcome;

/* Where it went wrong, for advice. */
typedef enum HttpTrouble
{
	HTTP_TROUBLE_NONE,
	HTTP_TROUBLE_DNS,
	HTTP_TROUBLE_PROXY,
	HTTP_TROUBLE_CONNECT,
	HTTP_TROUBLE_CERTIFICATE,	/* the peer's cannot be verified */
	HTTP_TROUBLE_PROXY_CERTIFICATE, /* the proxy's */
	HTTP_TROUBLE_CA_FILE,		/* ours cannot be read */
	HTTP_TROUBLE_TLS,
	HTTP_TROUBLE_PROXY_TLS,		/* with the proxy */
	HTTP_TROUBLE_RESET,			/* closed or reset before an answer */
	HTTP_TROUBLE_KEPT,			/* the same of a connection that had been kept:
								 * peers end those now and then */
	HTTP_TROUBLE_REFUSED,		/* the peer said, again and again, that it did not
								 * process the request */
	HTTP_TROUBLE_ANSWER,		/* the answer broke off or is not HTTP */
	HTTP_TROUBLE_LOCAL			/* out of memory, descriptors, threads, ports */
} HttpTrouble;

/* Why there was no answer, see http_cause.c. */
typedef enum HttpCauseKind
{
	HTTP_CAUSE_NONE,			/* nothing to add to outcome and phase */
	HTTP_CAUSE_NO_ADDRESS,
	HTTP_CAUSE_NO_PROXY_ADDRESS,
	HTTP_CAUSE_NOT_LISTENING,
	HTTP_CAUSE_NO_WAY,
	HTTP_CAUSE_SILENT,
	HTTP_CAUSE_FORBIDDEN,
	HTTP_CAUSE_SYSTEM,
	HTTP_CAUSE_NO_PORT,
	HTTP_CAUSE_NO_SOCKET,
	HTTP_CAUSE_NO_THREAD,
	HTTP_CAUSE_MEMORY,
	HTTP_CAUSE_EXPIRED,
	HTTP_CAUSE_NOT_YET_VALID,
	HTTP_CAUSE_SELF_SIGNED,
	HTTP_CAUSE_UNKNOWN_CA,
	HTTP_CAUSE_OTHER_HOST,
	HTTP_CAUSE_CERTIFICATE,
	HTTP_CAUSE_CA_FILE,
	HTTP_CAUSE_NOT_TLS,
	HTTP_CAUSE_TLS_VERSION,
	HTTP_CAUSE_TLS_ENDED,
	HTTP_CAUSE_TLS_CODE,
	HTTP_CAUSE_TLS,
	HTTP_CAUSE_PROXY_STATUS,
	HTTP_CAUSE_PROXY,
	HTTP_CAUSE_KEPT,
	HTTP_CAUSE_NOT_PROCESSED,
	HTTP_CAUSE_HUNG_UP,
	HTTP_CAUSE_BROKE_OFF,
	HTTP_CAUSE_HTTP2,
	HTTP_CAUSE_NOT_HTTP,
	HTTP_CAUSE_SHORT,
	HTTP_CAUSE_ENCODING,
	HTTP_CAUSE_NOT_ASKED,
	HTTP_CAUSE_TOO_SLOW,
	HTTP_CAUSE_HEADERS,
	HTTP_CAUSE_OTHER
} HttpCauseKind;

typedef struct HttpCause
{
	HttpCauseKind kind;
	int			number;			/* that belongs to it, such as errno */
} HttpCause;

/*
 * Lives as long as the transfer.  body may hold any bytes, NUL included; one
 * more NUL follows them.
 */
typedef struct HttpResult
{
	HttpOutcome outcome;
	bool		request_sent;	/* the peer may have received all of it */
	bool		connect_expired;	/* HTTP_TIMEOUT, of connect_timeout_ms */
	long		http_status;	/* 0 when there was none */
	char	   *body;
	size_t		body_len;
	double		reset_seconds;	/* to wait, see HttpHeaderNames; -1: not said */
	char		id[HTTP_HEADER_SIZE];	/* of the answer, see HttpHeaderNames */
	char		location[HTTP_HEADER_SIZE]; /* of a redirect */
	char		date[HTTP_DATE_SIZE];	/* when the peer says it answered */
	HttpTrouble trouble;
	const char *phase;			/* static: what it was doing when it ended,
								 * e.g. "connecting" */
	HttpCause	cause;			/* NONE when ANSWERED */
	int64		duration_us;
} HttpResult;

extern HttpLoop *http_loop_get(void);
extern void http_loop_set_host_connections(HttpLoop *loop, int max);
extern void http_loop_expect(HttpLoop *loop, int transfers);
extern void http_loop_share_memory(HttpLoop *loop, int transfers);
extern void http_loop_hold_heavy(HttpLoop *loop, bool hold);
extern int	http_loop_room(HttpLoop *loop);
extern void http_loop_defer(HttpLoop *loop);
extern void http_loop_send_deferred(HttpLoop *loop);
extern HttpTransfer *http_transfer_start(HttpLoop *loop, MemoryContext context,
										 const HttpRequest *request, void *owner);
extern void http_transfer_free(HttpTransfer *transfer);
extern bool http_transfer_is_sent(const HttpTransfer *transfer);
extern const HttpResult *http_transfer_result(const HttpTransfer *transfer);
extern void *http_transfer_owner(const HttpTransfer *transfer);
extern void http_loop_turn(HttpLoop *loop, TimestampTz until, uint32 wait_event);
extern void http_loop_catch_up(HttpLoop *loop);
extern HttpTransfer *http_loop_next_done(HttpLoop *loop, bool *heavy);
extern bool http_read_date(const char *date, TimestampTz *when);

/* Why a text is no URL of scheme, host, and maybe port and path. */
typedef enum HttpUrlFault
{
	HTTP_URL_FINE,
	HTTP_URL_MEMORY,			/* has run out */
	HTTP_URL_USER,				/* there is user info */
	HTTP_URL_QUERY,				/* or a fragment */
	HTTP_URL_NO_HOST,
	HTTP_URL_HOST,
	HTTP_URL_IPV6,
	HTTP_URL_PORT
} HttpUrlFault;

/* Where its parts are. */
typedef struct HttpUrl
{
	const char *host;
	size_t		host_len;
	const char *path;			/* or the end */
} HttpUrl;

extern bool http_url_has_scheme(const char *url, const char *scheme);
extern HttpUrlFault http_url_check(const char *text, HttpUrl *url);
extern char *http_cause_text(HttpCause of);

/* Why libcurl cannot be used in this process, ever. */
typedef enum HttpLibraryFault
{
	HTTP_LIBRARY_FIT,
	HTTP_LIBRARY_OLD,			/* older than what we were built with needs */
	HTTP_LIBRARY_TAKEN			/* its memory may be another extension's */
} HttpLibraryFault;

extern void http_library_load(void);
extern HttpLibraryFault http_library_fault(void);

/* Versions of libcurl: the one in use, and the one that we were built with. */
extern const char *http_library_version(void);
extern const char *http_library_built_with(void);

#endif							/* FEISHU_HTTP_H */
