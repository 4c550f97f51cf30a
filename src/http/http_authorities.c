/*-------------------------------------------------------------------------
 *
 * src/http/http_authorities.c
 *	  The authorities that a peer's certificate is checked against: where they
 *	  are, and when they have changed.
 *
 * To parse a system's authorities takes longer than all else of a first request.
 * Where there is a folder of them by the hash of their names, OpenSSL reads just the
 * one that it needs.  Elsewhere they are a file, as with ca_file, and libcurl keeps
 * what it has parsed, by the file's name, as long as no folder is to be looked into.
 * It does not look whether the file is still the same.  So we do, before a request,
 * and name a file that has changed in another way: "/./etc/ca.crt".  Then libcurl
 * reads it, and uses no connection and no TLS session of the former authorities.
 *
 * A folder may lack what an administrator has put into the file alone, as is often
 * done in containers.  So it is used only if it has all of the file.  It may have
 * more, as the certificate that Debian makes for a host itself.
 *
 * Nothing here throws; signals are blocked by the caller, see http_loop.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/hashfn.h"

#include "http/http_internal.h"

/* Files known at a time.  What is no longer known counts as changed, and no more
 * than one is kept by libcurl anyway. */
#define MAX_KNOWN				8

/* Of a name of eight hexadecimal digits, a point and a number. */
#define HASH_DIGITS				8

/* By what a file is seen to be another; all zero: there is none. */
typedef struct FileState
{
	dev_t		device;
	ino_t		inode;
	off_t		size;
	struct timespec modified;
	struct timespec changed;
} FileState;

/* A file of authorities. */
typedef struct KnownFile
{
	char	   *path;
	char	   *name;			/* that libcurl gets */
	FileState	state;
} KnownFile;

static KnownFile known[MAX_KNOWN];
static int	next_known = 0;
static unsigned int num_changes = 0;

static FileState
state_of(const char *path)
{
	FileState	state;
	struct stat st;

	memset(&state, 0, sizeof(state));	/* padding, too */
	if (path == NULL || stat(path, &st) != 0)
		return state;
	state.device = st.st_dev;
	state.inode = st.st_ino;
	state.size = st.st_size;
	state.modified = st.st_mtim;
	state.changed = st.st_ctim;
	return state;
}

static bool
same_state(const FileState *one, const FileState *other)
{
	return memcmp(one, other, sizeof(FileState)) == 0;
}

/* One more name of a file by its absolute path, another for each number; malloc'ed. */
static char *
name_create(const char *path, unsigned int number)
{
	char	   *name = malloc(strlen(path) + 3 + 2 * sizeof(number) * BITS_PER_BYTE);
	char	   *end = name;

	if (name == NULL)
		return NULL;
	*end++ = '/';
	if (number > 0)
	{
		*end++ = '.';
		*end++ = '/';
	}
	for (; number > 0; number >>= 1)
	{
		if (number & 1)
			*end++ = '.';
		*end++ = '/';
	}
	strcpy(end, path + 1);
	return name;
}

/* What libcurl has to be told for a file as it is now, or NULL without memory. */
static const char *
file_name(const char *path)
{
	FileState	state = state_of(path);
	KnownFile  *file = NULL;
	char	   *name;
	char	   *copy;

	for (int i = 0; i < MAX_KNOWN && file == NULL; i++)
	{
		if (known[i].path != NULL && strcmp(known[i].path, path) == 0)
			file = &known[i];
	}
	if (file != NULL && same_state(&file->state, &state))
		return file->name;

	/* the first ones that are seen need no other name */
	if (file != NULL || known[next_known].path != NULL)
		num_changes++;
	if (file == NULL)
		file = &known[next_known];
	name = name_create(path, num_changes);
	copy = strdup(path);
	if (name == NULL || copy == NULL)
	{
		free(name);
		free(copy);
		return NULL;
	}
	if (file == &known[next_known])
		next_known = (next_known + 1) % MAX_KNOWN;
	free(file->path);
	free(file->name);
	file->path = copy;
	file->name = name;
	file->state = state;
	return file->name;
}


/* ---------- The system's ---------- */

/* A name by which OpenSSL finds an authority? */
static bool
is_hashed_name(const char *name)
{
	const char *number = name + HASH_DIGITS + 1;

	if (strspn(name, "0123456789abcdef") != HASH_DIGITS || name[HASH_DIGITS] != '.')
		return false;
	return number[0] != '\0' && number[strspn(number, "0123456789")] == '\0';
}

/* Authorities, each by a hash of its text; malloc'ed. */
typedef struct Authorities
{
	uint64	   *hashes;
	int			count;
	int			room;
} Authorities;

static bool
authorities_add(Authorities *all, uint64 hash)
{
	if (all->count == all->room)
	{
		int			room = Max(2 * all->room, 256);
		uint64	   *hashes = realloc(all->hashes, room * sizeof(uint64));

		if (hashes == NULL)
			return false;
		all->hashes = hashes;
		all->room = room;
	}
	all->hashes[all->count++] = hash;
	return true;
}

static int
compare_hashes(const void *one, const void *other)
{
	uint64		left = *(const uint64 *) one;
	uint64		right = *(const uint64 *) other;

	return left < right ? -1 : left > right;
}

/* Add the authorities of a file, but the first alone if it is one of a folder, and
 * close it.  False: that cannot be done. */
static bool
add_of_file(Authorities *all, FILE *file, bool first_alone)
{
	char		line[256];
	bool		inside = false;
	bool		ok = file != NULL;
	uint64		hash = 0;

	while (ok && fgets(line, sizeof(line), file) != NULL)
	{
		if (strncmp(line, "-----BEGIN ", 11) == 0)
		{
			inside = strstr(line, "CERTIFICATE-----") != NULL;
			hash = 0;
		}
		else if (inside && strncmp(line, "-----END ", 9) == 0)
		{
			ok = authorities_add(all, hash);
			inside = false;
			if (first_alone)
				break;
		}
		else if (inside)
		{
			/* files differ in how they break lines */
			for (const char *p = line; *p != '\0'; p++)
			{
				if (!isspace((unsigned char) *p))
					hash = hash_combine64(hash, (unsigned char) *p);
			}
		}
	}
	if (file != NULL)
		fclose(file);
	return ok;
}

/* Add what OpenSSL finds in a folder. */
static bool
add_of_folder(Authorities *all, const char *path)
{
	DIR		   *folder = opendir(path);
	struct dirent *entry;
	bool		ok = folder != NULL;

	while (ok && (entry = readdir(folder)) != NULL)
	{
		FILE	   *file;
		int			fd;

		if (!is_hashed_name(entry->d_name))
			continue;
		/* it may be a link to what is not there */
		fd = openat(dirfd(folder), entry->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd < 0)
		{
			ok = errno != EMFILE && errno != ENFILE && errno != ENOMEM;
			continue;
		}
		file = fdopen(fd, "r");
		if (file == NULL)
			close(fd);
		ok = add_of_file(all, file, true);
	}
	if (folder != NULL)
		closedir(folder);
	return ok;
}

/* Has a folder all that a file has?  It may have more.  False: that cannot be said. */
static bool
compare_with_file(const char *folder, const char *file, bool *has_all)
{
	Authorities of_folder = {0};
	Authorities of_file = {0};
	bool		ok = add_of_folder(&of_folder, folder) &&
		add_of_file(&of_file, fopen(file, "re"), false);

	*has_all = ok && of_file.count > 0;
	if (*has_all)
		qsort(of_folder.hashes, of_folder.count, sizeof(uint64), compare_hashes);
	for (int i = 0; i < of_file.count && *has_all; i++)
		*has_all = of_folder.count > 0 &&
			bsearch(&of_file.hashes[i], of_folder.hashes, of_folder.count, sizeof(uint64),
					compare_hashes) != NULL;
	free(of_folder.hashes);
	free(of_file.hashes);
	return ok;
}

/* Has the folder all that the file has?  If either cannot be read: no. */
static bool
folder_is_whole(const curl_version_info_data *info)
{
	static bool is_known = false;
	static bool is_whole = false;
	static FileState folder;
	static FileState file;
	FileState	folder_now = state_of(info->capath);
	FileState	file_now = state_of(info->cainfo);

	if (is_known && same_state(&folder, &folder_now) && same_state(&file, &file_now))
		return is_whole;

	/* maybe there was no descriptor or memory to look with */
	is_known = compare_with_file(info->capath, info->cainfo, &is_whole);
	folder = folder_now;
	file = file_now;
	return is_whole;
}

static const char *
system_name(void)
{
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);

	/* of the others, some read the whole folder */
	if (info->capath != NULL && info->cainfo != NULL && info->ssl_version != NULL &&
		strncmp(info->ssl_version, "OpenSSL/", 8) == 0 && folder_is_whole(info))
		return HTTP_AUTHORITIES_FOLDER;
	if (info->cainfo != NULL && is_absolute_path(info->cainfo) && access(info->cainfo, R_OK) == 0)
		return file_name(info->cainfo);
	return HTTP_AUTHORITIES_DEFAULT;
}

/* Look at the system's, for all processes that are forked from this one. */
void
http_authorities_look(void)
{
	(void) system_name();
}

/*
 * The authorities for a request as they are now, valid until the next call: a name
 * of their file, or one of HTTP_AUTHORITIES_.  NULL without memory.
 */
const char *
http_authorities_get(const char *ca_file)
{
	return ca_file != NULL ? file_name(ca_file) : system_name();
}

/* Make an easy handle trust them, and no others.  That cannot be undone, since
 * libcurl's default cannot be set back. */
bool
http_authorities_set(CURL *easy, const char *authorities)
{
	const curl_version_info_data *info = curl_version_info(CURLVERSION_NOW);
	bool		by_folder = strcmp(authorities, HTTP_AUTHORITIES_FOLDER) == 0;
	const char *file = by_folder ? NULL : authorities;
	const char *folder = by_folder ? info->capath : NULL;
	bool		ok = true;

	if (strcmp(authorities, HTTP_AUTHORITIES_DEFAULT) == 0)
		return true;
	SET(CURLOPT_CAINFO, file);
	if ((info->features & CURL_VERSION_HTTPS_PROXY) != 0)
		SET(CURLOPT_PROXY_CAINFO, file);
	/* not every TLS library knows folders */
	(void) curl_easy_setopt(easy, CURLOPT_CAPATH, folder);
	(void) curl_easy_setopt(easy, CURLOPT_PROXY_CAPATH, folder);
	return ok;
}
