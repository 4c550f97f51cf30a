/*
 * To be preloaded (LD_PRELOAD): names that end in ".hang" are never resolved, as if no name server answered, and
 * those that end in ".slow" after a second and a half: to 127.0.0.1. Those that end in ".moves" lead to the address in
 * the file that RESOLVER_MOVES names.
 *
 *   cc -shared -fPIC -o hanging_resolver.so hanging_resolver.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int (*Resolver) (const char *node, const char *service, const struct addrinfo *hints,
						 struct addrinfo **result);

static int
ends_in(const char *name, const char *end)
{
	size_t		len = name ? strlen(name) : 0;

	return len > strlen(end) && strcmp(name + len - strlen(end), end) == 0;
}

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	Resolver	resolver = (Resolver) dlsym(RTLD_NEXT, "getaddrinfo");

	if (ends_in(node, ".hang"))
	{
		for (;;)
			pause();
	}
	if (ends_in(node, ".slow"))
	{
		const struct timespec delay = {1, 500000000};

		nanosleep(&delay, NULL);
		node = "127.0.0.1";
	}
	if (ends_in(node, ".moves"))
	{
		FILE	   *file = fopen(getenv("RESOLVER_MOVES"), "re");
		char		address[64] = "";
		int			found = file ? fscanf(file, "%63s", address) : 0;

		if (file)
			fclose(file);
		if (found != 1)
			return EAI_AGAIN;
		return resolver(address, service, hints, result);
	}
	return resolver(node, service, hints, result);
}
