/*-------------------------------------------------------------------------
 *
 * http_poller.h
 *	  The kernel's set of sockets to wait for.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/http_poller.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_HTTP_POLLER_H
#define FEISHU_HTTP_POLLER_H

/* What was found: events are CURL_CSELECT_IN and CURL_CSELECT_OUT. */
typedef struct HttpPolled
{
	int			fd;
	uint32		generation;		/* as given when fd was added */
	int			events;
} HttpPolled;

extern int	http_poller_create(void);
extern bool http_poller_set(int poller, int fd, int before, int events, uint32 generation);
extern int	http_poller_look(int poller, HttpPolled *polled, int max);

#endif							/* FEISHU_HTTP_POLLER_H */
