/*
 * To be preloaded (LD_PRELOAD): as long as the file that SCARCE_MEMORY names is there, memory runs out once, and the
 * file is gone. If it is executable, for libcurl, as the next request is begun; else for the next malloc() of 45,000
 * to 60,000 bytes.
 *
 *   cc -shared -fPIC -o scarce_memory.so scarce_memory.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

typedef int (*Add) (void *multi, void *easy);

extern void *__libc_malloc(size_t size);

static int
runs_out(int for_libcurl)
{
	const char *path = getenv("SCARCE_MEMORY");
	int			error = errno;
	int			so = path != NULL && access(path, F_OK) == 0 &&
		(access(path, X_OK) == 0) == for_libcurl && unlink(path) == 0;

	errno = error;
	return so;
}

int
curl_multi_add_handle(void *multi, void *easy)
{
	static Add	add = NULL;

	if (runs_out(1))
		return 3;				/* CURLM_OUT_OF_MEMORY */
	if (add == NULL)
		add = (Add) dlsym(dlopen("libcurl.so.4", RTLD_LAZY | RTLD_NOLOAD), "curl_multi_add_handle");
	return add(multi, easy);
}

void *
malloc(size_t size)
{
	if (size >= 45000 && size <= 60000 && runs_out(0))
	{
		errno = ENOMEM;
		return NULL;
	}
	return __libc_malloc(size);
}
