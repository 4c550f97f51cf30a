/*-------------------------------------------------------------------------
 *
 * src/http/http_body.c
 *	  The body of an answer: its memory, and how it is unpacked.
 *
 * Where a transfer has a share of the process's memory (HttpRequest.share), its body
 * takes what it needs of the budget before it has it.  The first few kilobytes are
 * always there.  Without room for more the transfer is paused: libcurl reads no more
 * of its socket, and the peer has to wait.  That time is not the peer's: the deadline
 * moves by as much.  Libcurl keeps no deadline of a transfer that was paused, so
 * that is minded here.
 *
 * One transfer at a time goes on whatever there is (budget.c), so that those that
 * are paused with a part of their answer do not wait for each other: one of the role
 * whose turn was longest ago.  While others wait it has a few seconds.
 *
 * The streams of a connection of HTTP/2 cannot be paused one by one, as long as their
 * peer may send without being asked.  They are given half as much again, of which a
 * role leaves a part to others as well, and then end as what there is no memory for.
 *
 * What comes packed is kept packed, and is unpacked when it is handed out to be read,
 * one at a time: a few kilobytes may have many megabytes in them.  (Libcurl would
 * unpack what it has read even of a transfer that is paused.)  What is heavy to read
 * comes after all that is not, each role's in turn.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <zlib.h>

#include "utils/timestamp.h"

#include "base/nls.h"
#include "http/http_internal.h"

/* First size of a response buffer; the usual answer is shorter.  Then it doubles, or
 * grows by so much where there is little memory. */
#define BODY_INITIAL		1024
#define BODY_STEP			65536

/* Bytes of all answers that need no room in the budget. */
#define BODY_FREE_BYTES		(8 * 1024 * 1024)
#define BODY_MIN_FREE		4096

/* The one that goes on whatever there is has so long, while others wait. */
#define BODY_TURN_MS		10000

/* Unpacked at once; and what inflateInit2 calls gzip or zlib, as it finds it. */
#define UNPACK_PIECE		16384
#define UNPACK_ANY_HEADER	(MAX_WBITS + 32)


/* There may be so many transfers that share the memory for answers. */
void
http_loop_share_memory(HttpLoop *loop, int transfers)
{
	loop->free_body = Max(BODY_FREE_BYTES / Max(transfers, 1), BODY_MIN_FREE);
}


/* ---------- Pauses ---------- */

/* No libcurl minds the deadline from now on. */
static void
mind_deadline(HttpTransfer *transfer)
{
	curl_easy_setopt(transfer->handle->easy, CURLOPT_TIMEOUT_MS, 0L);
	transfer->handle->timeout_ms = 0;
	if (!transfer->minded)
		transfer->loop->num_minded++;
	transfer->minded = true;
}

static void
body_pause(HttpTransfer *transfer, size_t wanted)
{
	transfer->wanted = wanted;
	transfer->paused_since = GetCurrentTimestamp();
	transfer->is_paused = true;
	dlist_push_tail(&transfer->loop->paused, &transfer->paused_node);
	mind_deadline(transfer);
}

static void
body_resume(HttpTransfer *transfer)
{
	CURLcode	code;

	dlist_delete(&transfer->paused_node);
	transfer->is_paused = false;
	transfer->deadline += GetCurrentTimestamp() - transfer->paused_since;
	transfer->late = false;
	transfer->loop->first_deadline = Min(transfer->loop->first_deadline, transfer->deadline);
	code = curl_easy_pause(transfer->handle->easy, CURLPAUSE_CONT);
	/* what it had read already was handed over by that, and may have been refused */
	if (code != CURLE_OK || transfer->too_large || transfer->out_of_memory)
		http_transfer_finish(transfer, code != CURLE_OK ? code : CURLE_WRITE_ERROR);
}

/* Of two transfers, one NULL perhaps, that whose role had its turn longer ago. */
static HttpTransfer *
earlier_turn(HttpTransfer *one, HttpTransfer *other)
{
	return budget_is_before(other->account.share, one != NULL ? one->account.share : NULL,
							BUDGET_ANSWER) ? other : one;
}

/*
 * Let paused transfers go on for which there is memory; signals are
 * blocked
 */
void
http_bodies_go_on(HttpLoop *loop)
{
	dlist_mutable_iter iter;
	HttpTransfer *next = NULL;

	dlist_foreach_modify(iter, &loop->paused)
	{
		HttpTransfer *transfer = dlist_container(HttpTransfer, paused_node, iter.cur);

		if (budget_take(&transfer->account, transfer->wanted - transfer->account.bytes))
			body_resume(transfer);
	}
	dlist_foreach_modify(iter, &loop->paused)
		next = earlier_turn(next, dlist_container(HttpTransfer, paused_node, iter.cur));
	if (next == NULL || !budget_go_beyond(&next->account))
		return;
	next->beyond_since = GetCurrentTimestamp();
	budget_take_turn(next->account.share, BUDGET_ANSWER);
	body_resume(next);
}

/*
 * When the first of the deadlines ends that libcurl does not mind: a paused
 * transfer's does not.
 */
static TimestampTz
transfer_minded_until(const HttpTransfer *transfer)
{
	TimestampTz until = transfer->is_paused || !transfer->minded ? DT_NOEND : transfer->deadline;

	if (transfer->account.beyond && !dlist_is_empty(&transfer->loop->paused))
		until = Min(until, TimestampTzPlusMilliseconds(transfer->beyond_since, BODY_TURN_MS));
	return until;
}

/* When to look for late ones; and is this one? */
TimestampTz
http_bodies_until(HttpLoop *loop)
{
	TimestampTz until = DT_NOEND;
	dlist_iter	iter;

	if (loop->num_minded == 0)
		return DT_NOEND;
	dlist_foreach(iter, &loop->active)
		until = Min(until, transfer_minded_until(dlist_container(HttpTransfer, node, iter.cur)));
	return until;
}

bool
http_body_is_late(HttpTransfer *transfer, TimestampTz now)
{
	if (transfer->is_paused)
		return false;
	if (transfer->deadline <= now)
		return true;
	if (transfer_minded_until(transfer) > now)
		return false;
	transfer->too_slow = true;
	return true;
}


/* ---------- Memory ---------- */

/*
 * How many bytes a body may have, of which it needs some and better had more.  0:
 * it is paused, or flags say why not.
 */
static size_t
body_may_have(HttpTransfer *transfer, size_t wanted, size_t needed)
{
	BudgetAccount *account = &transfer->account;
	int64		missing = (int64) needed - account->bytes;
	long		version = 0;

	if (account->share == NULL)
		return wanted;
	if (wanted <= transfer->loop->free_body)
	{
		budget_take_anyway(account, Max((int64) wanted - account->bytes, 0));
		return wanted;
	}
	if (budget_take(account, Max((int64) wanted - account->bytes, 0)))
		return wanted;
	if (missing <= 0 || budget_take(account, missing))
		return needed;
	if (curl_easy_getinfo(transfer->handle->easy, CURLINFO_HTTP_VERSION, &version) == CURLE_OK &&
		version != CURL_HTTP_VERSION_1_0 && version != CURL_HTTP_VERSION_1_1)
	{
		transfer->out_of_memory = !budget_take_at_once(account, missing);
		return transfer->out_of_memory ? 0 : needed;
	}
	body_pause(transfer, needed);
	return 0;
}

/* CURLOPT_WRITEFUNCTION: a piece of the answer's body. */
size_t
http_transfer_on_body(char *data, size_t size, size_t nmemb, void *userp)
{
	HttpTransfer *transfer = ((HttpHandle *) userp)->transfer;
	HttpResult *result = &transfer->result;
	size_t		len = size * nmemb;

	if (len > transfer->max_response - result->body_len)
	{
		transfer->too_large = true;
		return 0;
	}
	if (result->body_len + len >= transfer->body_size)
	{
		size_t		most = Max(transfer->max_response, BODY_INITIAL) + 1;
		size_t		wanted = Max(transfer->body_size, BODY_INITIAL);
		char	   *body;

		while (wanted <= result->body_len + len)
			wanted *= 2;
		wanted = body_may_have(transfer, Min(wanted, most),
							   Min(TYPEALIGN(BODY_STEP, result->body_len + len + 1), most));
		if (wanted == 0)
			return transfer->out_of_memory ? 0 : CURL_WRITEFUNC_PAUSE;
		body = realloc(result->body, wanted);
		if (body == NULL)
		{
			transfer->out_of_memory = true;
			return 0;
		}
		result->body = body;
		transfer->body_size = wanted;
	}
	memcpy(result->body + result->body_len, data, len);
	result->body_len += len;
	result->body[result->body_len] = '\0';
	return len;
}

/* A body is complete: what it does not need goes back. */
void
http_body_end(HttpTransfer *transfer)
{
	size_t		needed = transfer->result.body_len + 1;
	char	   *body;

	if (transfer->is_paused)
		dlist_delete(&transfer->paused_node);
	transfer->is_paused = false;
	if (transfer->minded)
		transfer->loop->num_minded--;
	transfer->minded = false;
	if (transfer->result.body == NULL || transfer->body_size < needed + BODY_MIN_FREE ||
		(body = realloc(transfer->result.body, needed)) == NULL)
		return;
	transfer->result.body = body;
	transfer->body_size = needed;
	if (transfer->account.bytes > (int64) needed)
		budget_give_back(&transfer->account, transfer->account.bytes - (int64) needed);
}

void
http_body_free(HttpTransfer *transfer)
{
	HttpResult *result = &transfer->result;

	if (result->body != NULL)
	{
		/* it may be the answer to a token request */
		explicit_bzero(result->body, result->body_len);
		free(result->body);
	}
	result->body = NULL;
	result->body_len = 0;
	budget_give_back(&transfer->account, transfer->account.bytes);
}


/* ---------- Unpacking ---------- */

/* A header says how the body is packed; unpack a complete one */
void
http_body_note_encoding(HttpTransfer *transfer, const char *value)
{
	if (value[0] == '\0' || pg_strcasecmp(value, "identity") == 0)
		return;
	/* one after the other is not what was asked for */
	if (transfer->encoding == HTTP_ENCODING_NONE &&
		(pg_strcasecmp(value, "gzip") == 0 || pg_strcasecmp(value, "x-gzip") == 0 ||
		 pg_strcasecmp(value, "deflate") == 0))
		transfer->encoding = HTTP_ENCODING_GZIP;
	else
		transfer->encoding = HTTP_ENCODING_UNKNOWN;
}

/*
 * Unpack bytes into a buffer of so many bytes, or (NULL) only count what they have
 * in them, as far as limit.  False: they cannot be unpacked.
 */
static bool
unpack(const char *packed, size_t packed_len, char *buffer, size_t limit, size_t *len)
{
	z_stream	stream = {0};
	unsigned char piece[UNPACK_PIECE];
	int			code;

	*len = 0;
	if (inflateInit2(&stream, UNPACK_ANY_HEADER) != Z_OK)
		return false;
	stream.next_in = (unsigned char *) unconstify(char *, packed);
	stream.avail_in = (unsigned int) packed_len;
	do
	{
		size_t		room = Min(buffer != NULL ? limit - *len : sizeof(piece), sizeof(piece));

		stream.next_out = buffer != NULL ? (unsigned char *) buffer + *len : piece;
		stream.avail_out = (unsigned int) room;
		code = inflate(&stream, Z_NO_FLUSH);
		*len += room - stream.avail_out;
	} while (code == Z_OK && *len <= limit && (buffer == NULL || *len < limit));
	/* the end is found out without room, too */
	if (code == Z_OK && buffer != NULL && *len == limit)
		code = inflate(&stream, Z_FINISH);
	inflateEnd(&stream);
	return code == Z_STREAM_END || (buffer == NULL && code == Z_OK);
}

/* The body cannot be used: that is how the transfer has ended. */
static void
body_spoilt(HttpTransfer *transfer, HttpOutcome outcome, HttpTrouble trouble, HttpCauseKind cause)
{
	HttpResult *result = &transfer->result;

	result->outcome = outcome;
	result->trouble = trouble;
	result->phase = gettext_noop("receiving the answer");
	result->cause = (HttpCause) {.kind = cause};
}

void
http_body_unpack(HttpTransfer *transfer)
{
	HttpResult *result = &transfer->result;
	size_t		len;
	size_t		again;
	char	   *body;

	if (transfer->encoding == HTTP_ENCODING_NONE || result->outcome != HTTP_ANSWERED ||
		result->body_len == 0)
		return;
	if (transfer->encoding == HTTP_ENCODING_UNKNOWN ||
		!unpack(result->body, result->body_len, NULL, transfer->max_response, &len))
	{
		body_spoilt(transfer, HTTP_BAD_ANSWER, HTTP_TROUBLE_ANSWER,
					HTTP_CAUSE_ENCODING);
		return;
	}
	if (len > transfer->max_response)
	{
		body_spoilt(transfer, HTTP_TOO_LARGE, HTTP_TROUBLE_NONE, HTTP_CAUSE_NONE);
		return;
	}
	body = malloc(len + 1);
	if (body == NULL || !unpack(result->body, result->body_len, body, len, &again) || again != len)
	{
		free(body);
		body_spoilt(transfer, HTTP_NO_CONNECTION, HTTP_TROUBLE_LOCAL, HTTP_CAUSE_MEMORY);
		return;
	}
	body[len] = '\0';
	explicit_bzero(result->body, result->body_len);
	free(result->body);
	result->body = body;
	result->body_len = len;
	transfer->body_size = len + 1;
	transfer->encoding = HTTP_ENCODING_NONE;
	if (transfer->account.share != NULL && (int64) len > transfer->account.bytes)
		budget_take_anyway(&transfer->account, (int64) len - transfer->account.bytes);
}

/*
 * Does it take time and memory to read the answer of a transfer that has ended?
 * Packed, it is unpacked only as far as that tells.
 */
bool
http_body_is_heavy(const HttpTransfer *transfer)
{
	const HttpResult *result = &transfer->result;
	size_t		most = transfer->loop->free_body;
	size_t		len;

	if (transfer->account.share == NULL || result->outcome != HTTP_ANSWERED)
		return false;
	if (transfer->encoding != HTTP_ENCODING_GZIP || result->body_len == 0)
		return result->body_len > most;
	return unpack(result->body, result->body_len, NULL, most, &len) && len > most;
}

/* Of those that have ended with much to read, whose turn it is */
HttpTransfer *
http_body_next_heavy(HttpLoop *loop)
{
	HttpTransfer *next = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, &loop->heavy)
		next = earlier_turn(next, dlist_container(HttpTransfer, node, iter.cur));
	if (next != NULL)
		budget_take_turn(next->account.share, BUDGET_ANSWER);
	return next;
}
