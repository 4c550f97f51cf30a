/*
 * To be preloaded (LD_PRELOAD): as long as the file that SCARCE_THREADS names is there, no thread can be started.
 *
 *   cc -shared -fPIC -o scarce_threads.so scarce_threads.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*Create) (pthread_t *thread, const pthread_attr_t *attributes, void *(*start) (void *), void *arg);

int
pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start) (void *), void *arg)
{
	const char *path = getenv("SCARCE_THREADS");

	if (path != NULL && access(path, F_OK) == 0)
		return EAGAIN;
	return ((Create) dlsym(RTLD_NEXT, "pthread_create")) (thread, attributes, start, arg);
}
