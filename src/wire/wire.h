/*-------------------------------------------------------------------------
 *
 * wire.h
 *	  The wire format: FlowRequest to path and body, bytes to FlowResponse.
 *
 * Pure functions of their arguments and the database encoding: no SPI, no
 * shared memory, no libcurl, no settings.  In a database whose encoding is
 * neither UTF8 nor SQL_ASCII they look up the conversion in the catalogs, so
 * call them in a transaction.  (Reading outside of one would lose all but
 * ASCII there.)  Results are palloc'd in the current context.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/wire.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIRE_H
#define FEISHU_WIRE_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "wire/mask.h"

/* SQLSTATEs of the extension.  Class LK, see docs/errors.md. */
#define ERRCODE_FEISHU_REFUSED			MAKE_SQLSTATE('L','K','4','0','0')
#define ERRCODE_FEISHU_CREDENTIALS		MAKE_SQLSTATE('L','K','4','0','1')
#define ERRCODE_FEISHU_PERMISSION		MAKE_SQLSTATE('L','K','4','0','3')
#define ERRCODE_FEISHU_NOT_FOUND		MAKE_SQLSTATE('L','K','4','0','4')
#define ERRCODE_FEISHU_KEY_USED			MAKE_SQLSTATE('L','K','4','0','9')
#define ERRCODE_FEISHU_RATE_LIMIT		MAKE_SQLSTATE('L','K','4','2','9')
#define ERRCODE_FEISHU_PLATFORM			MAKE_SQLSTATE('L','K','5','0','0')
#define ERRCODE_FEISHU_BAD_ANSWER		MAKE_SQLSTATE('L','K','5','0','2')
#define ERRCODE_FEISHU_NO_CONNECTION	MAKE_SQLSTATE('L','K','5','0','3')
#define ERRCODE_FEISHU_TIMEOUT			MAKE_SQLSTATE('L','K','5','0','4')

/*
 * One start of a flow.  Strings are in the database encoding; NULL pointers
 * are members that were not given and are not sent.
 */
typedef struct FlowRequest
{
	char	   *namespace_name;
	char	   *flow_id;
	Jsonb	   *operator_id;	/* an object with _id or email; required */
	Jsonb	   *params;			/* an object, or NULL */
	bool		is_async;		/* sent only when true, the platform's default
								 * being false */
	char	   *idempotent_key; /* or NULL */
	Jsonb	   *loop_masks;		/* array of strings, or NULL */
	int64		size;			/* of its body as written; 0: not known */
} FlowRequest;

/* What a caller should do about an answer (or about the lack of one). */
typedef enum FlowAction
{
	FLOW_SUCCEEDED,
	FLOW_REFRESH_TOKEN,			/* evict the token, fetch, send once more */
	FLOW_WAIT,					/* rate limit: wait, does not count as an attempt */
	FLOW_RETRY,					/* back off, same idempotent_key */
	FLOW_STOP_APP,				/* credentials or quota: no call of this app
								 * can succeed until somebody acts */
	FLOW_KEY_USED,				/* on a repeat of ours: it was accepted before */
	FLOW_FAIL					/* refused for good */
} FlowAction;

/*
 * An answer of the platform, read.  Text is in the database encoding, without
 * control characters, and capped: 256 bytes for identifiers, 1024 for
 * messages, 512 for the excerpt ("..." follows what was cut).
 *
 * FLOW_SUCCEEDED may come with sqlstate LK502 and a NULL body: the flow was
 * accepted, and its answer says what jsonb of this database cannot hold.  A
 * queue records a success; who wants the body gets an error.
 */
typedef struct FlowResponse
{
	FlowAction	action;
	int			sqlstate;		/* 0: all is well */
	const char *reason;			/* primary message's second half, e.g. "the
								 * idempotent key was already used"; static,
								 * to be shown with _(); NULL when sqlstate is
								 * 0 */
	const char *hint;			/* static advice, likewise, or NULL */
	char	   *helps;			/* http(s) URL of the platform's advice, or
								 * NULL */
	bool		has_code;
	int64		code;			/* outer code, when has_code */
	char	   *inner_code;		/* data.code; NULL when it says success: empty,
								 * "0", absent */
	char	   *inner_message;	/* data.error_msg, NULL when empty or absent */
	char	   *message;		/* msg, NULL when empty or absent; never to be
								 * branched on */
	char	   *log_id;			/* error.log_id, NULL when absent */
	char	   *execution_id;	/* data.execution_id, NULL when empty or absent */
	char	   *status;			/* data.status, NULL when empty or absent */
	Jsonb	   *body;			/* the whole answer; NULL when it cannot be
								 * used as jsonb of this database */
	char	   *excerpt;		/* of the raw answer; "" when it was empty */
} FlowResponse;

/*
 * Token endpoint's answer, read.  A refusal never has a body or an excerpt:
 * the answer's bytes may hold secrets.  Its action is FLOW_STOP_APP, FLOW_WAIT
 * or FLOW_RETRY.  A token is 1 to 4096 bytes of visible ASCII.
 */
typedef struct TokenResponse
{
	char	   *token;			/* NULL when refused */
	int			expires_in;		/* seconds, 0 when the answer gave no usable one */
	FlowResponse refusal;		/* filled in when token is NULL */
} TokenResponse;

/* What is known of an HTTP response besides its body. */
typedef struct HttpAnswer
{
	int			http_status;
	const char *body;			/* a NUL byte follows; NULL when it has no bytes */
	size_t		body_len;
} HttpAnswer;

/*
 * Why text cannot be one segment of the path, or NULL when it can: empty,
 * ".", "..", longer than 255 bytes in UTF-8, or with a control character.
 * The result completes the sentence "namespace ...", is static, and to be shown
 * with _().  Throws 22021/22P05 when the text cannot be converted to UTF-8.
 */
extern const char *wire_check_segment(const char *text);

/* The same for an idempotent key: empty, too long, or a control character. */
extern const char *wire_check_key(const char *text);

/*
 * base_url + /open-apis/apaas/v1/applications/{namespace}/flows/{flow_id}/execute
 * with everything but RFC 3986's unreserved characters percent-encoded, in
 * UTF-8.  Throws 22023 on a bad segment and 22021/22P05 when the text cannot
 * be converted to UTF-8.
 */
extern char *wire_execute_url(const char *base_url, const FlowRequest *request);

/*
 * base_url + /open-apis/application/v6/scopes: which permissions the tenant
 * granted to the app whose token asks.  Itself it needs none.  From the
 * platform's documentation, "Query the tenant's authorization status".
 */
extern char *wire_scopes_url(const char *base_url);

/* The most that is written at all: a string of PostgreSQL has less than 1 GB. */
#define WIRE_MAX_REQUEST	(512 * 1024 * 1024)

/*
 * How many bytes the body of an execute request has, as it is written, found out
 * without writing it, and (wire_jsonb_size) what a jsonb argument of it makes up.
 * Counting ends beyond limit: more than that is returned, and no more is known.
 * Throws as wire_write_request does.
 */
extern int64 wire_request_size(const FlowRequest *request, int64 limit);
extern int64 wire_jsonb_size(Jsonb *json, int64 limit);

/*
 * Is a body so small that it need not be counted, and is there nothing in it that
 * cannot be converted?  False: nobody knows.
 */
extern bool wire_request_is_small(const FlowRequest *request, int64 limit);

/*
 * The body of an execute request, JSON in UTF-8, replaces what is in body,
 * which the caller initialised.  Throws 22021/22P05 when it cannot be
 * converted to UTF-8.  The caller has seen to its size.
 */
extern void wire_write_request(const FlowRequest *request, StringInfo body);

/* The body of a token request, likewise; *content_type is static. */
extern void wire_write_token_request(bool oauth, const char *app_id,
									  const char *app_secret,
									  StringInfo body, const char **content_type);

/*
 * Read an answer.  In its text, but not in its body, secrets (or NULL) are masked
 * before it is cut.  Never throws on account of what the peer sent (out of
 * memory apart): an answer that cannot be used comes back with sqlstate LK502
 * and the action its HTTP status calls for.
 */
extern FlowResponse *wire_read_answer(const HttpAnswer *answer, const MaskSecrets *secrets);
extern TokenResponse *wire_read_token_answer(bool oauth, const HttpAnswer *answer,
											  const MaskSecrets *secrets);

/* What stands for an answer that there was no memory for. */
extern FlowResponse *wire_unread_answer(int http_status);

/*
 * data.out_params of a response object as one object; NULL when there are
 * none.  Throws 22023 when response is not an object, and LK502 when the
 * member is there and cannot be read.
 */
extern Jsonb *wire_out_params(Jsonb *response);

/*
 * Text of the peer or of libcurl (claimed to be UTF-8) as text of this
 * database that is fit for a message: unrepresentable characters and invalid
 * bytes become "?", control characters (and those that change the direction
 * of text) blanks, a run of them one, both ends are trimmed of blanks, and it
 * is cut at max bytes, at a character's boundary, with "..." appended.  Does
 * not throw.
 */
extern char *wire_printable(const char *bytes, size_t len, int max);

/*
 * Text in the database encoding, with "?" for what the client's encoding
 * cannot represent: an error's text that cannot be sent would replace the error
 * by another one.  Needs a transaction.
 */
extern char *wire_for_client(char *text);

/* UTF-8 copy of text in the database encoding. */
extern char *wire_to_utf8(const char *text);

#endif							/* FEISHU_WIRE_H */
