/*-------------------------------------------------------------------------
 *
 * src/base/nls.c
 *	  Messages in the user's language.
 *
 * gettext has to be told where a catalog is and in which encoding its texts are
 * wanted: that of the database.  A preloaded library is initialised in the
 * postmaster, where there is no database yet, so this is done at the first
 * message, and again should the encoding be another one.
 *
 * PostgreSQL looks for catalogs where its own are.  A library that was installed
 * elsewhere (extension_control_path) has its catalogs there, too: where they
 * would be if PostgreSQL was, or in ../share/locale.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/nls.h"

#ifdef ENABLE_NLS

static bool
is_folder(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The folder with the catalogs of a library that is not among PostgreSQL's. */
static bool
find_catalogs(char *path)
{
	Dl_info		library;
	char		folder[MAXPGPATH];
	char		of_server[MAXPGPATH];
	size_t		length;
	size_t		length_of_server = strlen(pkglib_path);

	if (dladdr((const void *) find_catalogs, &library) == 0 || !is_absolute_path(library.dli_fname))
		return false;
	strlcpy(folder, library.dli_fname, sizeof(folder));
	get_parent_directory(folder);
	canonicalize_path(folder);
	length = strlen(folder);
	if (strcmp(folder, pkglib_path) == 0)
		return false;

	/* "make install DESTDIR=/somewhere" */
	get_locale_path(my_exec_path, of_server);
	if (length > length_of_server && strcmp(folder + length - length_of_server, pkglib_path) == 0)
	{
		folder[length - length_of_server] = '\0';
		snprintf(path, MAXPGPATH, "%s%s", folder, of_server);
		return is_folder(path);
	}
	snprintf(path, MAXPGPATH, "%s/../share/locale", folder);
	return is_folder(path);
}

#endif							/* ENABLE_NLS */

/* The name of our catalog, which is ready to be looked into.  Does not throw. */
const char *
feishu_text_domain(void)
{
	static const char *const domain = PG_TEXTDOMAIN("feishu_flow");
	static int	encoding = -1;

	if (encoding != GetDatabaseEncoding())
	{
#ifdef ENABLE_NLS
		char		path[MAXPGPATH];
#endif

		pg_bindtextdomain(domain);
#ifdef ENABLE_NLS
		if (find_catalogs(path))
			bindtextdomain(domain, path);
#endif
		encoding = GetDatabaseEncoding();
	}
	return domain;
}
