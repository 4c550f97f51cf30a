/*
 * To be preloaded (LD_PRELOAD): what is sent over TCP has been answered when send() returns (or five seconds have
 * passed), as if the peer were so near that nobody ever had to wait for an answer.
 *
 *   cc -shared -fPIC -o prompt_answer.so prompt_answer.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

typedef ssize_t (*Send) (int fd, const void *bytes, size_t size, int flags);

ssize_t
send(int fd, const void *bytes, size_t size, int flags)
{
	Send		real_send = (Send) dlsym(RTLD_NEXT, "send");
	ssize_t		sent = real_send(fd, bytes, size, flags);
	int			error = errno;
	struct sockaddr_storage address;
	socklen_t	length = sizeof(address);

	if (sent > 0 && getsockname(fd, (struct sockaddr *) &address, &length) == 0 &&
		address.ss_family == AF_INET)
	{
		struct pollfd answer = {.fd = fd, .events = POLLIN};

		poll(&answer, 1, 5000);
	}
	errno = error;
	return sent;
}
