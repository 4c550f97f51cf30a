/*
 * To be preloaded (LD_PRELOAD): as long as the file that SLOW_FLUSH names is there, nothing gets to disk: fdatasync()
 * waits.
 *
 *   cc -shared -fPIC -o slow_flush.so slow_flush.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*Sync) (int file);

int
fdatasync(int file)
{
	static Sync sync = NULL;
	const char *path = getenv("SLOW_FLUSH");

	while (path != NULL && access(path, F_OK) == 0)
		usleep(5000);
	if (sync == NULL)
		sync = (Sync) dlsym(RTLD_NEXT, "fdatasync");
	return sync(file);
}
