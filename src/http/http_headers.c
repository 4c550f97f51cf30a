/*-------------------------------------------------------------------------
 *
 * src/http/http_headers.c
 *	  What is kept of the headers of an answer.
 *
 * An answer may have interim ones before it (1xx): each status line begins anew, so
 * that nothing of theirs is taken for the answer's.  That is why Retry-After is read
 * here: libcurl keeps it across them.
 *
 * Callbacks of libcurl: nothing here throws or pallocs.  See http_loop.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "utils/timestamp.h"

#include "http/http_internal.h"

/*
 * libcurl limits the headers of an answer, but not the trailers behind it, and keeps
 * a copy of each for whoever might ask.
 */
#define HTTP_MAX_HEADERS		(64 * 1024)
#define HTTP_MAX_HEADER_LINES	512

/* One that is longer is not read at all. */
#define HTTP_MAX_LOCATION		8192

/* A day: what is said to last for longer is not meant so. */
#define HTTP_MAX_RESET			86400

/* A date as in the header Date; false when it is none. */
bool
http_read_date(const char *date, TimestampTz *when)
{
	time_t		seconds = curl_getdate(date, NULL);

	if (seconds < 0)
		return false;
	*when = time_t_to_timestamptz(seconds);
	return true;
}

/*
 * If line is the header "name", copy its value, trimmed; of one that is too long,
 * nothing.
 */
static bool
take_header(const char *line, size_t len, const char *name, char *value, size_t size)
{
	size_t		name_len = name != NULL ? strlen(name) : len;

	if (len <= name_len || line[name_len] != ':' ||
		pg_strncasecmp(line, name, name_len) != 0)
		return false;
	line += name_len + 1;
	len -= name_len + 1;
	while (len > 0 && (*line == ' ' || *line == '\t'))
		line++, len--;
	while (len > 0 && isspace((unsigned char) line[len - 1]))
		len--;
	if (len >= size)
		len = 0;
	memcpy(value, line, len);
	value[len] = '\0';
	return true;
}

/*
 * Where a redirect leads.  Of a location that is too long, to whom: cut elsewhere, it
 * might end in a part of what is secret.
 */
static bool
take_location(const char *line, size_t len, char *location)
{
	char		value[HTTP_MAX_LOCATION];

	if (!take_header(line, len, "location", value, sizeof(value)))
		return false;
	if (strlen(value) < HTTP_HEADER_SIZE)
		strcpy(location, value);
	else if (!http_url_origin(value, location, HTTP_HEADER_SIZE))
		location[0] = '\0';
	return true;
}

/*
 * The status line of an answer: forget what an interim one before it had.  Headers
 * of that are not those of the answer.
 */
static void
begin_answer(HttpTransfer *transfer, const char *line, size_t len)
{
	HttpResult *result = &transfer->result;
	const char *blank = memchr(line, ' ', len);
	int			status = 0;

	for (const char *p = blank; p != NULL && ++p < line + len && isdigit((unsigned char) *p);)
		status = Min(status * 10 + (*p - '0'), 1000);
	transfer->status = status / 100 == 1 ? 0 : status;
	transfer->have_id = false;
	transfer->have_reset = false;
	transfer->keep_seconds = -1;
	transfer->encoding = HTTP_ENCODING_NONE;
	result->reset_seconds = -1;
	result->id[0] = '\0';
	result->location[0] = '\0';
	result->date[0] = '\0';
}

/* Retry-After: seconds, or a date; -1 if it is neither. */
static double
retry_after(const char *value)
{
	TimestampTz when;

	if (value[0] != '\0' && value[strspn(value, "0123456789")] == '\0')
		return Min(strtod(value, NULL), HTTP_MAX_RESET);
	if (!http_read_date(value, &when))
		return -1;
	return Min(Max(when - GetCurrentTimestamp(), 0) / 1e6, HTTP_MAX_RESET);
}

/* A number of seconds; -1 if it is none. */
static double
reset_seconds(const char *value)
{
	char	   *end;
	double		seconds = strtod(value, &end);

	return end != value && seconds >= 0 && seconds <= HTTP_MAX_RESET ? seconds : -1;
}

/* The timeout of a header Keep-Alive ("timeout=5, max=100"), or -1. */
static int
keep_alive_seconds(const char *value)
{
	static const char name[] = "timeout=";

	for (const char *p = value; *p != '\0'; p++)
	{
		if (pg_strncasecmp(p, name, sizeof(name) - 1) == 0 &&
			(p == value || strchr(" \t,;", p[-1]) != NULL))
		{
			const char *number = p + sizeof(name) - 1;

			return isdigit((unsigned char) *number) ?
				(int) Min(strtoul(number, NULL, 10), HTTP_MAX_RESET) : -1;
		}
	}
	return -1;
}

/*
 * Gateways answer so that have no backend any more, or not at this address.  Only
 * a new connection may find another, once the name leads there.
 */
static bool
is_of_gateway(int status)
{
	return status == 502 || status == 503 || status == 504;
}

/* Have libcurl close the connection after the transfer, if nobody else uses it. */
void
http_transfer_close_after(HttpTransfer *transfer)
{
	HttpHandle *handle = transfer->handle;

	if (!handle->close)
		handle->close = curl_easy_setopt(handle->easy, CURLOPT_FORBID_REUSE, 1L) == CURLE_OK;
}

/* Keep a header, if it is one of the few that somebody wants to know of. */
static void
keep_header(HttpTransfer *transfer, const char *line, size_t len)
{
	const HttpHeaderNames *names = &transfer->request.headers;
	HttpResult *result = &transfer->result;
	char		value[HTTP_HEADER_SIZE];

	if (take_header(line, len, names->id, value, sizeof(value)))
	{
		strcpy(result->id, value);
		transfer->have_id = true;
	}
	else if (take_header(line, len, names->other_id, value, sizeof(value)))
	{
		if (!transfer->have_id)
			strcpy(result->id, value);
	}
	else if (take_header(line, len, names->reset, value, sizeof(value)))
	{
		double		seconds = reset_seconds(value);

		transfer->have_reset |= seconds >= 0;
		if (seconds >= 0)
			result->reset_seconds = seconds;
	}
	else if (take_header(line, len, "retry-after", value, sizeof(value)))
	{
		if (!transfer->have_reset)
			result->reset_seconds = retry_after(value);
	}
	else if (take_header(line, len, "content-encoding", value, sizeof(value)))
		http_body_note_encoding(transfer, value);
	else if (take_header(line, len, "transfer-encoding", value, sizeof(value)))
	{
		/* libcurl would unpack it, asked or not */
		transfer->bad_encoding |= pg_strcasecmp(value, "chunked") != 0 &&
			pg_strcasecmp(value, "identity") != 0;
	}
	else if (take_header(line, len, "keep-alive", value, sizeof(value)))
		transfer->keep_seconds = keep_alive_seconds(value);
	else if (!take_header(line, len, "date", result->date, sizeof(result->date)))
		(void) take_location(line, len, result->location);
}

/* CURLOPT_HEADERFUNCTION: a line of the headers, or of the trailers. */
size_t
http_transfer_on_header(char *data, size_t size, size_t nmemb, void *userp)
{
	HttpTransfer *transfer = ((HttpHandle *) userp)->transfer;
	size_t		len = size * nmemb;

	transfer->header_size += len;
	if (transfer->header_size > HTTP_MAX_HEADERS ||
		++transfer->header_lines > HTTP_MAX_HEADER_LINES)
	{
		transfer->too_large = true;
		return 0;
	}
	if (len > 5 && memcmp(data, "HTTP/", 5) == 0)
		begin_answer(transfer, data, len);
	else if (len == 0 || data[0] == '\r' || data[0] == '\n')
	{
		/* the end of the headers */
		if (is_of_gateway(transfer->status))
			http_transfer_close_after(transfer);
	}
	else
		keep_header(transfer, data, len);
	return transfer->bad_encoding ? 0 : len;
}
