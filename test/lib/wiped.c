/*
 * To be preloaded (LD_PRELOAD): what explicit_bzero() is to erase is written to the file that WIPED names, one line for
 * each, with other than printable characters as dots, unless it is erased already.
 *
 *   cc -O0 -U_FORTIFY_SOURCE -shared -fPIC -o wiped.so wiped.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MOST	4000

static void
note(const char *bytes, size_t size)
{
	const char *path = getenv("WIPED");
	char		line[LINE_MOST + 1];
	size_t		length = size < LINE_MOST ? size : LINE_MOST;
	int			file;
	int			some = 0;

	for (size_t i = 0; i < length; i++)
	{
		line[i] = bytes[i] >= ' ' && bytes[i] <= '~' ? bytes[i] : '.';
		some |= bytes[i] != 0;
	}
	line[length] = '\n';
	if (path == NULL || !some || (file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0)
		return;
	(void) !write(file, line, length + 1);
	close(file);
}

void
explicit_bzero(void *bytes, size_t size)
{
	note(bytes, size);
	memset(bytes, 0, size);
	__asm__ __volatile__("" : : "r"(bytes) : "memory");
}

/* The same, of programs that check the size of what is erased. */
extern void __explicit_bzero_chk(void *bytes, size_t size, size_t room);

void
__explicit_bzero_chk(void *bytes, size_t size, size_t room __attribute__((unused)))
{
	explicit_bzero(bytes, size);
}
