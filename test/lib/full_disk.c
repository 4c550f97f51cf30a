/*
 * To be preloaded (LD_PRELOAD): as long as there is a file DATA_DIRECTORY.full, no table or index in DATA_DIRECTORY
 * grows, as if their disk were full. What is overwritten is written, and so is the write-ahead log.
 *
 *   cc -shared -fPIC -o full_disk.so full_disk.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

typedef ssize_t (*Write) (int fd, const void *bytes, size_t size, off_t offset);
typedef ssize_t (*WriteVector) (int fd, const struct iovec *parts, int num, off_t offset);
typedef int (*Allocate) (int fd, off_t offset, off_t size);

/* Has a file, were it written up to here, to grow on a disk that is full? */
static int
is_full(int fd, off_t end)
{
	struct stat file;
	char		link[64],
				path[PATH_MAX + sizeof(".full")];
	char	   *base;
	ssize_t		len;
	int			error = errno,
				full = 0;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (fstat(fd, &file) == 0 && S_ISREG(file.st_mode) && end > file.st_size &&
		(len = readlink(link, path, PATH_MAX)) > 0)
	{
		path[len] = '\0';
		base = strstr(path, "/base/");
		if (base != NULL)
		{
			strcpy(base, ".full");
			full = access(path, F_OK) == 0;
		}
	}
	errno = full ? ENOSPC : error;
	return full;
}

static ssize_t
write_at(const char *name, int fd, const void *bytes, size_t size, off_t offset)
{
	if (is_full(fd, offset + (off_t) size))
		return -1;
	return ((Write) dlsym(RTLD_NEXT, name)) (fd, bytes, size, offset);
}

ssize_t
pwrite(int fd, const void *bytes, size_t size, off_t offset)
{
	return write_at("pwrite", fd, bytes, size, offset);
}

ssize_t
pwrite64(int fd, const void *bytes, size_t size, off_t offset)
{
	return write_at("pwrite64", fd, bytes, size, offset);
}

static ssize_t
write_vector_at(const char *name, int fd, const struct iovec *parts, int num, off_t offset)
{
	off_t		end = offset;

	for (int i = 0; i < num; i++)
		end += (off_t) parts[i].iov_len;
	if (is_full(fd, end))
		return -1;
	return ((WriteVector) dlsym(RTLD_NEXT, name)) (fd, parts, num, offset);
}

ssize_t
pwritev(int fd, const struct iovec *parts, int num, off_t offset)
{
	return write_vector_at("pwritev", fd, parts, num, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *parts, int num, off_t offset)
{
	return write_vector_at("pwritev64", fd, parts, num, offset);
}

/* These return the error. */
static int
allocate(const char *name, int fd, off_t offset, off_t size)
{
	if (is_full(fd, offset + size))
		return ENOSPC;
	return ((Allocate) dlsym(RTLD_NEXT, name)) (fd, offset, size);
}

int
posix_fallocate(int fd, off_t offset, off_t size)
{
	return allocate("posix_fallocate", fd, offset, size);
}

int
posix_fallocate64(int fd, off_t offset, off_t size)
{
	return allocate("posix_fallocate64", fd, offset, size);
}
