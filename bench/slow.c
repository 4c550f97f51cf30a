/*-------------------------------------------------------------------------
 *
 * slow.c
 *	  A platform that takes its time: each request is answered after a fixed one.
 *
 * HTTP/1.1 on a port of its own, which is printed.  A request is answered DELAY_MS
 * after it came, with the documented response; one for a token at once.  Requests end
 * with the body that their Content-Length tells; a connection has one at a time.  Answers
 * become due in the order in which the requests came, so a ring holds them.
 *
 * Usage: slow DELAY_MS
 *
 * bench/slow.c
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define MAX_FD		4096
#define EVENTS		256
#define TOKEN \
	"{\"code\":0,\"msg\":\"ok\",\"tenant_access_token\":\"t-g1044ghJRUIJJ5ELPM3ZNMMDKDGSSNCFAHQBL7YZ\",\"expire\":7200}"
#define ANSWER \
	"{\"code\":0,\"data\":{\"code\":\"\",\"error_msg\":\"\",\"execution_id\":\"1816970091484211\"," \
	"\"out_params\":\"[{\\\"api_name\\\":\\\"_flowExecutionID\\\",\\\"value\\\":1816970091484211}]\"," \
	"\"status\":\"end\"},\"msg\":\"success\"}"

typedef struct Connection
{
	int			number;			/* of the connection with this descriptor */
	size_t		len;
	char		request[8192];
} Connection;

typedef struct Due
{
	int			fd;
	int			number;
	double		at;
} Due;

static Connection connections[MAX_FD];
static Due	ring[MAX_FD];
static unsigned first_due,
			last_due;

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
answer(int fd, const char *body)
{
	char		text[1024];
	int			len = snprintf(text, sizeof(text),
							   "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
							   strlen(body), body);

	if (write(fd, text, len) != len)
		fprintf(stderr, "slow: an answer was not taken\n");
}

/* Is a whole request there? */
static int
is_whole(const Connection *connection)
{
	const char *end = strstr(connection->request, "\r\n\r\n");
	const char *length = strcasestr(connection->request, "\r\nContent-Length:");

	return end != NULL &&
		connection->len >= (size_t) (end + 4 - connection->request) +
		(length != NULL && length < end ? strtoul(length + 17, NULL, 10) : 0);
}

static void
take(int fd, double delay)
{
	Connection *connection = &connections[fd];
	ssize_t		len = read(fd, connection->request + connection->len,
						   sizeof(connection->request) - 1 - connection->len);

	if (len <= 0)
	{
		connection->number++;
		close(fd);
		return;
	}
	connection->len += len;
	connection->request[connection->len] = '\0';
	if (!is_whole(connection))
		return;
	connection->len = 0;
	if (strstr(connection->request, "tenant_access_token") != NULL)
		answer(fd, TOKEN);
	else
		ring[last_due++ % MAX_FD] = (Due) {fd, connection->number, now() + delay};
}

/* Answer what is due; returns the ms until the next one, -1: none. */
static int
answer_due(void)
{
	while (first_due != last_due)
	{
		Due		   *due = &ring[first_due % MAX_FD];
		double		left = due->at - now();

		if (left > 0)
			return (int) (left * 1000);
		if (connections[due->fd].number == due->number)
			answer(due->fd, ANSWER);
		first_due++;
	}
	return -1;
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	size = sizeof(address);
	struct epoll_event event = {.events = EPOLLIN};
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	int			poller = epoll_create1(0);
	int			one = 1;

	if (argc != 2)
	{
		fprintf(stderr, "usage: slow DELAY_MS\n");
		return 1;
	}
	if (bind(listener, (struct sockaddr *) &address, size) != 0 || listen(listener, 4096) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &size) != 0)
		die("slow: listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	event.data.fd = listener;
	epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
	for (;;)
	{
		struct epoll_event events[EVENTS];
		int			num = epoll_wait(poller, events, EVENTS, answer_due());

		for (int i = 0; i < num; i++)
		{
			int			fd = events[i].data.fd;

			if (fd != listener)
			{
				take(fd, atof(argv[1]) / 1000);
				continue;
			}
			fd = accept(listener, NULL, NULL);
			if (fd < 0 || fd >= MAX_FD)
				die("slow: accept");
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			event.data.fd = fd;
			connections[fd].len = 0;
			epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
		}
	}
}
