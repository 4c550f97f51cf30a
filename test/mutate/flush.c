/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Counts of a library that gcov watches are written by _exit(), too.
 *
 * A server that is stopped at once, as those of tests are in the end, leaves by _exit(), where gcov's own handler is
 * not called. So this, linked into the library, puts a function of ours before the _exit() of the program that loads
 * it.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void __gcov_dump(void);

static void
flush_and_exit(int status)
{
	static int	begun = 0;

	if (!begun++)
		__gcov_dump();
	for (;;)
		syscall(SYS_exit_group, status);
}

/* The first object is the program. */
static int
replace_exit(struct dl_phdr_info *program, size_t size __attribute__((unused)), void *arg __attribute__((unused)))
{
	const ElfW(Sym) *symbols = NULL;
	const char *names = NULL;
	const ElfW(Rela) *relocations = NULL;
	size_t		num = 0;

	for (int i = 0; i < program->dlpi_phnum; i++)
	{
		const ElfW(Dyn) *entry;

		if (program->dlpi_phdr[i].p_type != PT_DYNAMIC)
			continue;
		entry = (void *) (program->dlpi_addr + program->dlpi_phdr[i].p_vaddr);
		for (; entry->d_tag != DT_NULL; entry++)
		{
			if (entry->d_tag == DT_SYMTAB)
				symbols = (void *) entry->d_un.d_ptr;
			else if (entry->d_tag == DT_STRTAB)
				names = (void *) entry->d_un.d_ptr;
			else if (entry->d_tag == DT_JMPREL)
				relocations = (void *) entry->d_un.d_ptr;
			else if (entry->d_tag == DT_PLTRELSZ)
				num = entry->d_un.d_val / sizeof(ElfW(Rela));
		}
	}
	for (size_t i = 0; symbols != NULL && names != NULL && relocations != NULL && i < num; i++)
	{
		const char *name = names + symbols[relocations[i].r_info >> 32].st_name;
		char	   *slot = (char *) (program->dlpi_addr + relocations[i].r_offset);
		size_t		page = sysconf(_SC_PAGESIZE);
		char	   *start = slot - (size_t) slot % page;

		if (strcmp(name, "_exit") == 0 && mprotect(start, page, PROT_READ | PROT_WRITE) == 0)
			*(void (**) (int)) slot = flush_and_exit;
	}
	return 1;
}

__attribute__((constructor))
static void
flush_begin(void)
{
	dl_iterate_phdr(replace_exit, NULL);
}
