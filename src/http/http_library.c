/*-------------------------------------------------------------------------
 *
 * src/http/http_library.c
 *	  libcurl itself: set up once, by us, and fit for what we were built with.
 *
 * libcurl has one set of memory functions in a process, that of whoever sets it
 * up first.  Another extension may give it those of a memory context that goes at
 * the end of a transaction.  So we set it up as soon as we are loaded, which with
 * shared_preload_libraries is before anybody else, and never give it up: what
 * others ask for then is counted only.  Nothing of that is lost by a fork: no
 * thread and no connection is made, and OpenSSL notices that the process is another.
 *
 * Loaded into a session that has a library which can set memory functions, we
 * cannot find out whether it has, for to try it is to call them.  Then every call is
 * refused.
 *
 * Options that libcurl does not know yet cannot be seen when it is loaded, but by
 * its version.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef __ELF__
#include <link.h>
#endif

#include "miscadmin.h"

#include "base/nls.h"
#include "http/http_internal.h"

static HttpLibraryFault fault = HTTP_LIBRARY_FIT;
static bool initialized = false;
static bool duplicated = false; /* our_strdup was called */
static char owner[MAXPGPATH];	/* the library of HTTP_LIBRARY_TAKEN */


/* ---------- Whose memory ---------- */

/* strdup, by which libcurl shows that its memory functions are ours. */
static char *
our_strdup(const char *text)
{
	duplicated = true;
	return strdup(text);
}

static bool
library_initialize(void)
{
	return curl_global_init_mem(CURL_GLOBAL_DEFAULT, malloc, free, realloc, our_strdup,
								calloc) == CURLE_OK;
}

/* Has libcurl taken our memory functions? */
static bool
memory_is_ours(void)
{
	duplicated = false;
	curl_slist_free_all(curl_slist_append(NULL, "whose"));
	return duplicated;
}

#ifdef __ELF__

/* Is the address in a segment of a library? */
static bool
library_covers(const struct dl_phdr_info *library, ElfW(Addr) address, size_t size)
{
	for (int i = 0; i < library->dlpi_phnum; i++)
	{
		const ElfW(Phdr) *segment = &library->dlpi_phdr[i];
		ElfW(Addr)	begin = library->dlpi_addr + segment->p_vaddr;

		if (segment->p_type == PT_LOAD && address >= begin &&
			size <= segment->p_memsz && address - begin <= segment->p_memsz - size)
			return true;
	}
	return false;
}

/* Does a library know a function by its name, to call it or to offer it? */
static bool
library_names(const struct dl_phdr_info *library, const char *function)
{
	const ElfW(Dyn) *dynamic = NULL;
	ElfW(Addr)	names = 0;
	size_t		size = 0;

	for (int i = 0; i < library->dlpi_phnum; i++)
	{
		if (library->dlpi_phdr[i].p_type == PT_DYNAMIC)
			dynamic = (const ElfW(Dyn) *) (library->dlpi_addr + library->dlpi_phdr[i].p_vaddr);
	}
	for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++)
	{
		if (dynamic->d_tag == DT_STRTAB)
			names = dynamic->d_un.d_ptr;
		else if (dynamic->d_tag == DT_STRSZ)
			size = dynamic->d_un.d_val;
	}
	/* not every dynamic linker makes an address of the offset */
	if (!library_covers(library, names, size))
		names += library->dlpi_addr;
	/* with the NUL at either end: a whole name */
	return size > 0 && library_covers(library, names, size) &&
		memmem((const void *) names, size, function, strlen(function + 1) + 2) != NULL;
}

/* dl_iterate_phdr: note the first library that can set memory functions. */
static int
note_owner(struct dl_phdr_info *library, size_t size, void *arg)
{
	const char *name = library->dlpi_name != NULL ? last_dir_separator(library->dlpi_name) : NULL;

	/* neither the program, nor libcurl, nor we */
	if (name == NULL || strncmp(name, "/libcurl.", 9) == 0 || strncmp(name, "/libcurl-", 9) == 0 ||
		library_covers(library, (ElfW(Addr)) (&owner), 1) ||
		!library_names(library, "\0curl_global_init_mem"))
		return 0;
	strlcpy(owner, library->dlpi_name, sizeof(owner));
	return 1;
}

/* Is a library loaded, but ours, that can set libcurl's memory functions? */
static bool
find_owner(void)
{
	return dl_iterate_phdr(note_owner, NULL) != 0;
}

#else

static bool
find_owner(void)
{
	return false;
}

#endif


/* ---------- Is it fit? ---------- */

/* Say what is the matter, if anything is, at this level. */
static void
library_complain(int elevel)
{
	if (fault == HTTP_LIBRARY_OLD)
		ereport(elevel,
				(errcode(ERRCODE_SYSTEM_ERROR),
				 errmsg("libcurl %s is too old for this build of feishu_flow",
						http_library_version()),
				 errdetail("It was built with libcurl %s.", http_library_built_with()),
				 errhint("Upgrade libcurl to at least the version that feishu_flow was built with and restart the server, or build feishu_flow again on this host.")));
	if (fault == HTTP_LIBRARY_TAKEN)
		ereport(elevel,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("libcurl was set up by another library"),
				 errdetail("\"%s\" may have given libcurl memory that does not last.", owner),
				 errhint("Name feishu_flow in shared_preload_libraries, and before that library if it is named there, and restart the server.")));
}

/*
 * Set libcurl up, before anybody else if that can be.  Once, when we are loaded.
 */
void
http_library_load(void)
{
	bool		has_owner = find_owner();
	sigset_t	saved;

	if (curl_version_info(CURLVERSION_NOW)->version_num < FEISHU_CURL_NEEDED)
		fault = HTTP_LIBRARY_OLD;
	else if (has_owner && !process_shared_preload_libraries_in_progress)
		fault = HTTP_LIBRARY_TAKEN;
	else
	{
		curl_enter(&saved);
		initialized = library_initialize();
		if (initialized && has_owner && !memory_is_ours())
			fault = HTTP_LIBRARY_TAKEN;
		curl_leave(&saved);
	}
	if (fault == HTTP_LIBRARY_OLD || process_shared_preload_libraries_in_progress)
		library_complain(WARNING);
	if (fault == HTTP_LIBRARY_FIT && process_shared_preload_libraries_in_progress)
		http_authorities_look();
}

/* Why libcurl cannot be used in this process. */
HttpLibraryFault
http_library_fault(void)
{
	return fault;
}

/* Throws when libcurl cannot be used; not being set up for want of memory, it can be
 * tried again. */
void
http_library_require(void)
{
	sigset_t	saved;

	library_complain(ERROR);
	if (initialized)
		return;
	curl_enter(&saved);
	initialized = library_initialize();
	curl_leave(&saved);
	if (!initialized)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
}

/* libcurl's version, at run time. */
const char *
http_library_version(void)
{
	return curl_version_info(CURLVERSION_NOW)->version;
}

const char *
http_library_built_with(void)
{
	return LIBCURL_VERSION;
}
