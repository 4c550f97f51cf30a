/*-------------------------------------------------------------------------
 *
 * src/http/http_sockets.h
 *	  libcurl's sockets, the wait for them, and the health of connections; for
 *	  http*.c only.
 *
 * Only http_sockets_create, _reserve and _wait may throw: the others may be
 * called in callbacks of libcurl.  Events are CURL_CSELECT_IN and _OUT.
 *
 * Private to src/http/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HTTP_SOCKETS_H
#define FEISHU_HTTP_SOCKETS_H

#include <netinet/in.h>

#include "base/steady.h"
#include "storage/latch.h"

#define HTTP_NEVER				PG_INT64_MAX

/* Wanted of a socket, besides CURL_CSELECT_*: no event, but it is in use. */
#define HTTP_SOCKET_HELD		0x100
#define HTTP_SOCKET_EVENTS		(CURL_CSELECT_IN | CURL_CSELECT_OUT)

/* What the poller found. */
typedef struct HttpPolled
{
	int			fd;
	uint32		generation;		/* as given when fd was added */
	int			events;
} HttpPolled;

/* What is known of a descriptor. */
typedef struct HttpSocket
{
	int			wanted;			/* events, or HTTP_SOCKET_HELD; 0: idle */
	int			registered;		/* events in the poller; 0: not in it */
	uint32		generation;		/* of its registration */
	bool		opened;			/* by us */
	bool		owned;			/* connected: we are notified of its end */
	bool		muted;			/* fired while idle: not registered */
	bool		quiet;			/* nothing may come while it is idle */
	bool		suspect;		/* its peer may be gone */
	bool		spent;			/* takes no more requests */
	bool		retired;		/* the same, and shut down */
	bool		shut;			/* by us */
	int			local_port;		/* 0: not known yet */
	int			peer_port;
	char		peer[INET6_ADDRSTRLEN]; /* its address */
	uint64		active;			/* num_active when something came last */
	SteadyTime	opened_at;
	SteadyTime	idle_until;		/* then its peer may close it if it is idle */
	void	   *owner;			/* whose it is: an HttpPool */
} HttpSocket;

typedef struct HttpSockets
{
	int			poller;
	WaitEventSet *wait_set;
	HttpSocket *slots;			/* malloc'ed; indexed by descriptor */
	int			num_slots;
	int			num_known;		/* so many have been in use */
	int			num_opened;		/* sockets that we opened */
	int			num_busy;		/* owned ones that are wanted */
	int			num_reserved;	/* descriptors that fd.c knows of */
	int			num_quiet;
	int			num_suspect;
	int			num_shut;
	uint64		num_active;		/* how often something came, on any */
	bool		unregistered;	/* one that is wanted is not in the poller */
	SteadyTime	next_due;		/* before, none is to be retired */
	int			max_age;		/* ms; that next_due was reckoned with */
} HttpSockets;

/* http_poller.c */
extern int	http_poller_create(void);
extern bool http_poller_set(int poller, int fd, int before, int events, uint32 generation);
extern int	http_poller_look(int poller, HttpPolled *polled, int max);

/* http_sockets.c */
extern HttpSockets *http_sockets_create(void);
extern void http_sockets_reserve(HttpSockets *set, int spare);
extern bool http_socket_opened(HttpSockets *set, int fd, void *owner);
extern void http_socket_connected(HttpSockets *set, int fd);
extern void http_socket_closed(HttpSockets *set, int fd);
extern void http_socket_want(HttpSockets *set, int fd, int events, void *owner);
extern void http_socket_mute(HttpSockets *set, int fd);
extern HttpSocket *http_sockets_polled(HttpSockets *set, const HttpPolled *polled);
extern int	http_sockets_look(HttpSockets *set, HttpPolled *events, int max_events);
extern int	http_sockets_wait(HttpSockets *set, long timeout_ms, uint32 wait_event,
							  HttpPolled *events, int max_events, bool *latch_set);

/* http_conn.c */
extern void http_conn_note_peer(HttpSockets *set, int fd, const void *peer, size_t size);
extern void http_conn_shut(HttpSockets *set, int fd);
extern bool http_conn_is_shut(const HttpSockets *set, int local_port);
extern void http_conn_note_activity(HttpSockets *set, int fd);
extern bool http_conn_active_since(const HttpSockets *set, int fd, uint64 number);
extern void http_conn_keep(HttpSockets *set, int fd, bool quiet, int idle_ms);
extern void http_conn_spend(HttpSockets *set, int fd);
extern void http_conn_suspect(HttpSockets *set, int fd, uint64 number);
extern void http_conn_trust(HttpSockets *set, int fd);
extern bool http_conn_is_open(const HttpSockets *set, int fd);
extern int	http_conn_find(const HttpSockets *set, int local_port,
						   const char *peer_address, int peer_port);
extern void http_conns_shut_unsolicited(HttpSockets *set);
extern bool http_conns_retire(HttpSockets *set, const void *owner);

#endif							/* FEISHU_HTTP_SOCKETS_H */
