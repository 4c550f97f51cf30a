
/*
 * To be preloaded (LD_PRELOAD): memory is left out of core dumps in pages of 2 MB only, as if it were made of such.
 *
 *   cc -shared -fPIC -o huge_pages.so huge_pages.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HUGE_PAGE	((uintptr_t) 2 << 20)

int
madvise(void *memory, size_t size, int advice)
{
	if (advice == MADV_DONTDUMP && (((uintptr_t) memory | size) & (HUGE_PAGE - 1)) != 0)
	{
		errno = EINVAL;
		return -1;
	}
	return (int) syscall(SYS_madvise, memory, size, advice);
}
