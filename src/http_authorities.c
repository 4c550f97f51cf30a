/*-------------------------------------------------------------------------
 *
 * http_authorities.c
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
 * done in containers.  So it is used only if it has as many authorities.
 *
 * Nothing here throws; signals are blocked by the caller, see http.c.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/http_authorities.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "http_internal.h"

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

/* How many authorities can be found in a folder; -1: it cannot be read. */
static int
count_in_folder(const char *path)
{
	DIR		   *folder = opendir(path);
	struct dirent *entry;
	int			count = 0;

	if (folder == NULL)
		return -1;
	while ((entry = readdir(folder)) != NULL)
	{
		/* not a link to what is not there */
		if (is_hashed_name(entry->d_name) &&
			faccessat(dirfd(folder), entry->d_name, R_OK, 0) == 0)
			count++;
	}
	closedir(folder);
	return count;
}

/* How many are in a file; -1: it cannot be read. */
static int
count_in_file(const char *path)
{
	FILE	   *file = fopen(path, "r");
	char		line[256];
	int			count = 0;

	if (file == NULL)
		return -1;
	while (fgets(line, sizeof(line), file) != NULL)
	{
		if (strncmp(line, "-----BEGIN ", 11) == 0 && strstr(line, "CERTIFICATE-----") != NULL)
			count++;
	}
	fclose(file);
	return count;
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
	int			in_folder;

	if (is_known && same_state(&folder, &folder_now) && same_state(&file, &file_now))
		return is_whole;

	in_folder = count_in_folder(info->capath);
	is_whole = in_folder > 0 && in_folder == count_in_file(info->cainfo);
	/* maybe there was no descriptor to look with */
	is_known = in_folder >= 0;
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
