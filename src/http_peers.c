/*-------------------------------------------------------------------------
 *
 * http_peers.c
 *	  Peers that offer HTTP/2 and then do not do with it.
 *
 * Such a peer says so by HTTP_1_1_REQUIRED, or all that can be seen is that its
 * connections of HTTP/2 fail without an answer.  It is spoken to by HTTP/1.1 for a
 * while, or every request would have to be refused first, or would be lost.
 *
 * A process knows a few peers at a time, by a hash of scheme, host and port: two
 * that have the same are both spoken to by HTTP/1.1, which does no harm.  Nothing
 * here allocates or throws.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/http_peers.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/timestamp.h"

#include "http_internal.h"

/* A peer may be mended: after so long HTTP/2 is tried again. */
#define PEER_HTTP1_MS			(10 * 60 * 1000)

/* One failure may be a peer that was restarted, or its network. */
#define PEER_MOST_FAILURES		2

/* Scheme, host and port of a URL. */
static uint64
peer_of_url(const char *url)
{
	const char *host = strstr(url, "://");
	size_t		len = host == NULL ? strlen(url) : host + 3 - url + strcspn(host + 3, "/?#");

	return hash_bytes_extended((const unsigned char *) url, (int) len, 0);
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
peer_note(HttpLoop *loop, const char *url)
{
	uint64		origin = peer_of_url(url);
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
http_peer_needs_http1(HttpLoop *loop, const char *url)
{
	HttpPeer   *peer = loop->num_peers > 0 ? peer_find(loop, peer_of_url(url)) : NULL;

	return peer != NULL && peer->http1_until != 0 && GetCurrentTimestamp() < peer->http1_until;
}

/* It has said so. */
void
http_peer_needs_http1_note(HttpLoop *loop, const char *url)
{
	peer_note(loop, url)->http1_until =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PEER_HTTP1_MS);
}

/* A stream, or a new connection of HTTP/2, has failed without an answer. */
void
http_peer_failed(HttpLoop *loop, const char *url)
{
	HttpPeer   *peer = peer_note(loop, url);

	if (++peer->failures < PEER_MOST_FAILURES)
		return;
	peer->failures = 0;
	http_peer_needs_http1_note(loop, url);
}

/* It has answered over HTTP/2. */
void
http_peer_answered(HttpLoop *loop, const char *url)
{
	HttpPeer   *peer = loop->num_peers > 0 ? peer_find(loop, peer_of_url(url)) : NULL;

	if (peer != NULL)
		peer->failures = 0;
}
