/*-------------------------------------------------------------------------
 *
 * arrival.c
 *	  A platform that says when each request arrived.
 *
 * Answers the documented responses over HTTP/1.1 on loopback.  Of each execute
 * request whose params have a member "xid", that number and the time at which
 * the request was read (microseconds since 1970, the clock of PostgreSQL's
 * commit timestamps) are printed.  The first line printed is the port.
 *
 * Each request must arrive in one piece, as small ones do on loopback.
 *
 * Usage: arrival >LOG
 *
 * bench/arrival.c
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#define MAX_CONNECTIONS 1024

static const char *const token_answer =
	"{\"code\":0,\"msg\":\"ok\",\"tenant_access_token\":\"t-g1044ghJRUIJJ5ELPM3ZNMMDKDGSSNCFAHQBL7YZ\",\"expire\":7200}";
static const char *const execute_answer =
	"{\"code\":0,\"data\":{\"code\":\"\",\"error_msg\":\"\",\"execution_id\":\"1816970091484211\","
	"\"out_params\":\"[]\",\"status\":\"end\"},\"msg\":\"success\"}";

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static int
listen_on_loopback(void)
{
	struct sockaddr_in address = {0};
	socklen_t	len = sizeof(address);
	int			fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 ||
		listen(fd, 128) != 0 || getsockname(fd, (struct sockaddr *) &address, &len) != 0)
		die("could not listen");
	printf("%d\n", ntohs(address.sin_port));
	return fd;
}

/* Print the request's number and the time. */
static void
note_arrival(const char *request, const struct timespec *arrived)
{
	const char *xid = strstr(request, "\\\"xid\\\":");

	if (xid == NULL)
		return;
	xid += strcspn(xid, "0123456789");
	printf("%lld %lld\n", atoll(xid),
		   (long long) arrived->tv_sec * 1000000 + arrived->tv_nsec / 1000);
}

/* Read one request and answer it; returns false when the connection is over. */
static bool
serve(int fd)
{
	char		request[8192];
	char		answer[1024];
	struct timespec arrived;
	ssize_t		len = recv(fd, request, sizeof(request) - 1, 0);
	bool		for_token;
	const char *body;

	clock_gettime(CLOCK_REALTIME, &arrived);
	if (len <= 0)
		return false;
	request[len] = '\0';
	for_token = strstr(request, "/tenant_access_token/") != NULL;
	body = for_token ? token_answer : execute_answer;
	len = snprintf(answer, sizeof(answer),
				   "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
				   strlen(body), body);
	if (send(fd, answer, len, MSG_NOSIGNAL) != len)
		return false;
	if (!for_token)
		note_arrival(request, &arrived);
	return true;
}

int
main(void)
{
	static struct pollfd fds[MAX_CONNECTIONS];
	int			num = 1;
	int			on = 1;

	setvbuf(stdout, NULL, _IOLBF, 0);
	fds[0].fd = listen_on_loopback();
	fds[0].events = POLLIN;
	while (poll(fds, num, -1) > 0)
	{
		for (int i = num - 1; i > 0; i--)
		{
			if (fds[i].revents == 0 || serve(fds[i].fd))
				continue;
			close(fds[i].fd);
			fds[i] = fds[--num];
		}
		if (fds[0].revents != 0 && num < MAX_CONNECTIONS)
		{
			fds[num].fd = accept(fds[0].fd, NULL, NULL);
			if (fds[num].fd < 0)
				die("accept");
			setsockopt(fds[num].fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
			fds[num].events = POLLIN;
			fds[num++].revents = 0;
		}
	}
	die("poll");
}
