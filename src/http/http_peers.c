/*-------------------------------------------------------------------------
 *
 * src/http/http_peers.c
 *	  Peers that offer HTTP/2 and then do not do with it.
 *
 * Such a peer says so by HTTP_1_1_REQUIRED, or all that can be seen is that its
 * connections of HTTP/2 fail without an answer.  It is spoken to by HTTP/1.1 for a
 * while, or every request would have to be refused first, or would be lost.
 *
 * A process knows a few peers at a time, by a hash of scheme, host, port, and of the
 * way there: who has a proxy and authorities of his own says nothing of the peer that
 * others speak with.  Two that have the same hash are both spoken to by HTTP/1.1,
 * which does no harm.  Nothing here allocates or throws.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/timestamp.h"

#include "http/http_internal.h"

/* A peer may be mended: after so long HTTP/2 is tried again. */
#define PEER_HTTP1_MS			(10 * 60 * 1000)

/* One failure may be a peer that was restarted, or its network. */
#define PEER_MOST_FAILURES		2

/* The hash of a text that may be NULL. */
static uint64
hash_text(const char *text, uint64 seed)
{
	return text == NULL ? seed :
		hash_bytes_extended((const unsigned char *) text, (int) strlen(text), seed + 1);
}

/* Scheme, host and port of a URL, the proxy, and whom it is to be vouched for by. */
static uint64
peer_hash(const char *url, const char *proxy, const char *authorities)
{
	char		origin[HTTP_HEADER_SIZE];
	uint64		hash = hash_text(http_url_origin(url, origin, sizeof(origin)) ? origin : url, 0);

	return hash_text(authorities, hash_text(proxy, hash));
}

static uint64
peer_of_handle(const HttpHandle *handle)
{
	return peer_hash(handle->url_text, handle->proxy, handle->authorities);
}

static HttpPeer *
peer_find(HttpLoop *loop, uint64 origin)
{
	for (int i = 0; i < loop->num_peers; i++)
	{
		if (loop->peers[i].origin == origin)
			return &loop->peers[i];
	}
	return NULL;
}

/* The peer, in the place of the one that was noted first if there is no other. */
static HttpPeer *
peer_note(HttpLoop *loop, const HttpHandle *handle)
{
	uint64		origin = peer_of_handle(handle);
	HttpPeer   *peer = peer_find(loop, origin);

	if (peer == NULL)
	{
		if (loop->num_peers < HTTP_MAX_PEERS)
			peer = &loop->peers[loop->num_peers++];
		else
			peer = &loop->peers[loop->next_peer++ % HTTP_MAX_PEERS];
		memset(peer, 0, sizeof(HttpPeer));
		peer->origin = origin;
	}
	return peer;
}

bool
http_peer_needs_http1(HttpLoop *loop, const char *url, const char *proxy,
					  const char *authorities)
{
	HttpPeer   *peer = loop->num_peers > 0 ?
		peer_find(loop, peer_hash(url, proxy, authorities)) : NULL;

	return peer != NULL && peer->http1_until != 0 && GetCurrentTimestamp() < peer->http1_until;
}

/* It has said so. */
void
http_peer_needs_http1_note(HttpLoop *loop, const HttpHandle *handle)
{
	peer_note(loop, handle)->http1_until =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEER_HTTP1_MS);
}

/* A stream, or a new connection of HTTP/2, has failed without an answer. */
void
http_peer_failed(HttpLoop *loop, const HttpHandle *handle)
{
	HttpPeer   *peer = peer_note(loop, handle);

	if (++peer->failures < PEER_MOST_FAILURES)
		return;
	peer->failures = 0;
	http_peer_needs_http1_note(loop, handle);
}

/* It has answered over HTTP/2. */
void
http_peer_answered(HttpLoop *loop, const HttpHandle *handle)
{
	HttpPeer   *peer = loop->num_peers > 0 ? peer_find(loop, peer_of_handle(handle)) : NULL;

	if (peer != NULL)
		peer->failures = 0;
}
