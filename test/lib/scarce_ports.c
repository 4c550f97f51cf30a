/*
 * To be preloaded (LD_PRELOAD): as long as the file that SCARCE_PORTS names is there, no TCP connection can be made for
 * want of a local port; or, if that has a number in it, by that errno; a second number is the one process that it is
 * about.
 *
 *   cc -shared -fPIC -o scarce_ports.so scarce_ports.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int (*Connect) (int fd, const struct sockaddr *address, socklen_t size);

int
connect(int fd, const struct sockaddr *address, socklen_t size)
{
	const char *path = getenv("SCARCE_PORTS");
	int			type = 0;
	socklen_t	type_size = sizeof(type);

	if (path != NULL && access(path, F_OK) == 0 && (address->sa_family == AF_INET || address->sa_family == AF_INET6) &&
		getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) == 0 && type == SOCK_STREAM)
	{
		FILE	   *file = fopen(path, "r");
		int			number = EADDRNOTAVAIL;
		int			pid = 0;

		if (file != NULL)
		{
			(void) !fscanf(file, "%d %d", &number, &pid);
			fclose(file);
		}
		if (pid == 0 || pid == getpid())
		{
			errno = number;
			return -1;
		}
	}
	return ((Connect) dlsym(RTLD_NEXT, "connect")) (fd, address, size);
}
