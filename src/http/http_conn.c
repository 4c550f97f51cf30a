/*-------------------------------------------------------------------------
 *
 * src/http/http_conn.c
 *	  Health of the connections that libcurl keeps.
 *
 * Of HTTP/1 what is sent unsolicited would be taken for the answer to the next
 * request: libcurl 7.88 uses such a connection again (curl issue 10646).  It
 * does not when it is shut down.  Recent ones look at a connection once a second
 * only; they are kept from sending a request there, see http_transfer_on_request.
 *
 * In the same way ends what is to take no more requests: a connection that its
 * peer will soon close, as it says, for want of a request; that is as old as
 * feishu_flow.max_connection_age; or that brought an answer of a gateway without a
 * backend.  The next one goes where the name leads by then.
 *
 * Nothing here throws.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/guc.h"
#include "http/http_sockets.h"

/* Sockets looked at at once. */
#define MAX_POLLED				64

/* Buffers of bytes that are thrown away when a connection is shut down. */
#define MAX_DISCARDED			64

/* Port of an address, and the address as text; 0: neither is known. */
static int
address_text(const struct sockaddr_storage *address, char *text, size_t size)
{
	const struct sockaddr_in *in = (const struct sockaddr_in *) address;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) address;

	if (address->ss_family == AF_INET && inet_ntop(AF_INET, &in->sin_addr, text, size) != NULL)
		return ntohs(in->sin_port);
	if (address->ss_family == AF_INET6 && inet_ntop(AF_INET6, &in6->sin6_addr, text, size) != NULL)
		return ntohs(in6->sin6_port);
	return 0;
}

/*
 * fd is about to be connected with this peer.  The kernel forgets whom it was
 * connected with when the peer resets the connection, and that may be before what
 * the peer said is read.
 */
void
http_conn_note_peer(HttpSockets *set, int fd, const void *peer, size_t size)
{
	HttpSocket *slot = &set->slots[fd];
	struct sockaddr_storage address = {0};

	memcpy(&address, peer, Min(size, sizeof(address)));
	slot->local_port = 0;
	slot->peer_port = address_text(&address, slot->peer, sizeof(slot->peer));
}

/* The local port of a socket; 0: it has none yet. */
static int
port_of(const HttpSockets *set, int fd)
{
	HttpSocket *slot = &set->slots[fd];
	struct sockaddr_storage address;
	socklen_t	size = sizeof(address);
	char		text[INET6_ADDRSTRLEN];

	if (slot->local_port == 0 && getsockname(fd, (struct sockaddr *) &address, &size) == 0)
		slot->local_port = address_text(&address, text, sizeof(text));
	return slot->local_port;
}

/*
 * Shut down a connection, so that libcurl does not use it again.  What it brought is
 * thrown away: with bytes to read, be it TLS's word that this is the end, libcurl 7.88
 * takes a connection for alive, and gives up after five that are not.
 */
void
http_conn_shut(HttpSockets *set, int fd)
{
	HttpSocket *slot = &set->slots[fd];
	char		buffer[4096];

	if (!slot->shut)
	{
		slot->shut = port_of(set, fd) != 0;
		set->num_shut += slot->shut;
	}
	(void) shutdown(fd, SHUT_RDWR);
	for (int i = 0; i < MAX_DISCARDED && recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT) > 0; i++)
		;
}

/* Is it one that we shut down?  That libcurl says which by the local port alone does no
 * harm: another one of that port is not used again, either. */
bool
http_conn_is_shut(const HttpSockets *set, int local_port)
{
	for (int fd = 0; fd < set->num_known && set->num_shut > 0; fd++)
	{
		if (set->slots[fd].shut && set->slots[fd].local_port == local_port)
			return true;
	}
	return false;
}

/* When a connection is to be retired. */
static SteadyTime
slot_due(const HttpSockets *set, const HttpSocket *slot)
{
	return slot->spent ? 0 :
		Min(slot->idle_until, steady_after_ms(slot->opened_at, set->max_age));
}

/* There is no reason to suspect a connection, any more. */
void
http_conn_trust(HttpSockets *set, int fd)
{
	if (set->slots[fd].suspect)
		set->num_suspect--;
	set->slots[fd].suspect = false;
}

/* Something came on fd. */
void
http_conn_note_activity(HttpSockets *set, int fd)
{
	if (fd >= set->num_slots)
		return;
	set->slots[fd].active = ++set->num_active;
	http_conn_trust(set, fd);
}

/* Did anything come on fd since num_active was this number? */
bool
http_conn_active_since(const HttpSockets *set, int fd, uint64 number)
{
	return fd < set->num_slots && set->slots[fd].active > number;
}

/*
 * fd is kept after an answer, which may have been read without being waited for.
 * "quiet": nothing may come on it while it is idle, for as long as it is open.  It
 * may be used again for so many ms; -1: the peer sets no limit.
 */
void
http_conn_keep(HttpSockets *set, int fd, bool quiet, int idle_ms)
{
	HttpSocket *slot;

	http_socket_connected(set, fd);
	if (fd >= set->num_slots)
		return;
	slot = &set->slots[fd];
	if (quiet && !slot->quiet)
	{
		slot->quiet = true;
		set->num_quiet++;
	}
	slot->idle_until = idle_ms >= 0 ? steady_after_ms(steady_now(), idle_ms) : HTTP_NEVER;
	set->next_due = Min(set->next_due, slot_due(set, slot));
	http_conn_note_activity(set, fd);
}

/* fd takes no more requests; those that are under way on it may end. */
void
http_conn_spend(HttpSockets *set, int fd)
{
	set->slots[fd].spent = true;
	set->next_due = 0;
}

/* Is fd one that we opened, and still open? */
bool
http_conn_is_open(const HttpSockets *set, int fd)
{
	return fd < set->num_slots && set->slots[fd].opened;
}

/*
 * The socket that we opened with this local port and peer (a numeric address), or
 * -1.
 */
int
http_conn_find(const HttpSockets *set, int local_port, const char *peer_address, int peer_port)
{
	for (int fd = 0; fd < set->num_known; fd++)
	{
		const HttpSocket *slot = &set->slots[fd];

		if (slot->opened && slot->peer_port == peer_port && port_of(set, fd) == local_port &&
			strcmp(slot->peer, peer_address) == 0)
			return fd;
	}
	return -1;
}

/*
 * Shut down connections to the peer of fd that are idle and brought nothing since
 * num_active was this number.
 */
static void
shut_idle(HttpSockets *set, int fd, uint64 number)
{
	const HttpSocket *slot = &set->slots[fd];

	for (int i = 0; i < set->num_known && slot->peer_port != 0; i++)
	{
		const HttpSocket *other = &set->slots[i];

		if (other->opened && other->wanted == 0 && other->active <= number &&
			other->peer_port == slot->peer_port && strcmp(other->peer, slot->peer) == 0)
			http_conn_shut(set, i);
	}
}

/*
 * A request was in vain on fd, which brought nothing since num_active was this
 * number: its peer may be gone.  Shut it down as soon as nothing is wanted of it,
 * unless something comes before, or has come already.
 *
 * Those to the same peer that are idle are shut down now: each would be tried in
 * turn.  fd itself may be one of them, for libcurl can end all its transfers at
 * once.  No request would be sent on it any more that ends the suspicion.
 */
void
http_conn_suspect(HttpSockets *set, int fd, uint64 number)
{
	struct pollfd polled = {.fd = fd, .events = POLLIN};

	if (set->slots[fd].suspect || poll(&polled, 1, 0) != 0)
		return;
	if (set->slots[fd].wanted != 0)
	{
		set->slots[fd].suspect = true;
		set->num_suspect++;
	}
	shut_idle(set, fd, number);
}

/*
 * Shut down each connection on which something came that may not have come, so
 * that no request is sent on it.  The wait does so, too, for what comes meanwhile.
 */
void
http_conns_shut_unsolicited(HttpSockets *set)
{
	HttpPolled	polled[MAX_POLLED];
	int			num = set->num_quiet > 0 ? MAX_POLLED : 0;

	/* the kernel goes round, should more than these be readable */
	for (int left = set->num_known; left > 0 && num == MAX_POLLED; left -= num)
	{
		num = http_poller_look(set->poller, polled, MAX_POLLED);
		for (int i = 0; i < num; i++)
		{
			HttpSocket *slot = http_sockets_polled(set, &polled[i]);

			if (slot != NULL && slot->quiet && slot->wanted == 0)
				http_socket_mute(set, polled[i].fd);
		}
	}
}

/*
 * Shut down each idle connection that is to take no more requests.  Returns whether
 * there is one of this owner's that is in use, but would take more all the same: of
 * HTTP/2, or so new that this is not known.
 */
bool
http_conns_retire(HttpSockets *set, const void *owner)
{
	SteadyTime	now = steady_now();
	bool		in_use = false;

	if (set->max_age == feishu_guc_max_connection_age && now < set->next_due)
		return false;

	set->max_age = feishu_guc_max_connection_age;
	set->next_due = HTTP_NEVER;
	for (int fd = 0; fd < set->num_known; fd++)
	{
		HttpSocket *slot = &set->slots[fd];
		SteadyTime	due = slot_due(set, slot);

		if (!slot->opened || slot->retired)
			continue;
		if (due > now)
			set->next_due = Min(set->next_due, due);
		else if (slot->owned && slot->wanted == 0)
		{
			slot->retired = true;
			http_conn_shut(set, fd);
		}
		else if (!slot->quiet && slot->owner == owner)
			in_use = true;
		/* else it is looked at when it is kept, see http_conn_keep */
	}
	if (in_use)
		set->next_due = now;
	return in_use;
}
