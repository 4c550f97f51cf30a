/*-------------------------------------------------------------------------
 *
 * src/wire/wire.h
 *	  The wire format: FlowRequest to path and body, bytes to FlowResponse.
 *
 * Pure functions of their arguments and the database encoding.  In a database whose encoding is
 * neither UTF8 nor SQL_ASCII they look up the conversion in the catalogs, so
 * call them in a transaction.  (Reading outside of one would lose all but
 * ASCII there.)  Results are palloc'd in the current context.
 *
 * Copyright (c) 2026, feishu_flow contributors
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

#define TOKEN_MAX_LENGTH	4096	/* an OAuth token is a JWT */

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
	FLOW_RETRY,					/* back off, same idempotent_key; what nobody has
								 * decided is no success */
	FLOW_SUCCEEDED,
	FLOW_REFRESH_TOKEN,			/* evict the token, fetch, send once more */
	FLOW_WAIT,					/* rate limit: wait, does not count as an attempt */
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
	/* of an answer to a request for a token alone */
	char	   *token;			/* NULL when refused */
	int			expires_in;		/* seconds, 0 when there is no usable number */
} FlowResponse;

extern const char *wire_check_name(const char *text, bool is_segment);
extern char *wire_execute_url(const char *base_url, const FlowRequest *request);
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
extern bool wire_request_is_small(const FlowRequest *request, int64 limit);
extern void wire_write_request(const FlowRequest *request, StringInfo body);
extern void wire_write_token_request(bool oauth, const char *app_id,
									  const char *app_secret,
									  StringInfo body, const char **content_type);
extern FlowResponse *wire_read_answer(int http_status, char *body, size_t body_len,
									  const MaskSecrets *secrets);
extern FlowResponse *wire_read_token_answer(bool oauth, int http_status, const char *body,
											size_t body_len, const MaskSecrets *secrets);
extern FlowResponse *wire_unread_answer(int http_status);
extern Jsonb *wire_out_params(Jsonb *response);
extern char *wire_printable(const char *bytes, size_t len, int max);
extern char *wire_for_client(char *text);
extern char *wire_to_utf8(const char *text);

#endif							/* FEISHU_WIRE_H */
