/*
 * To be preloaded (LD_PRELOAD): as long as the file that SET_CLOCK names is there, the time of day is an hour earlier.
 *
 *   cc -shared -fPIC -o set_clock.so set_clock.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

typedef int (*Clock) (struct timeval *now, void *zone);

int
gettimeofday(struct timeval *now, void *zone)
{
	static Clock clock = NULL;
	const char *path = getenv("SET_CLOCK");

	if (clock == NULL)
		clock = (Clock) dlsym(RTLD_NEXT, "gettimeofday");
	if (clock(now, zone) != 0)
		return -1;
	if (path != NULL && access(path, F_OK) == 0)
		now->tv_sec -= 3600;
	return 0;
}
