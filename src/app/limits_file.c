/*-------------------------------------------------------------------------
 *
 * src/app/limits_file.c
 *	  The file in which limits of apps outlive shared memory.
 *
 * A header and a record for each app.  It is written beside, flushed and
 * renamed, so it is whole at any time, whoever is killed; what a process that
 * was killed leaves beside it is overwritten.  Each cluster has its own: a copy
 * of a data directory tells at most of limits that are no longer.
 *
 * Nothing here throws: there may be a call under way, or it is the postmaster
 * that runs.  So it uses neither the functions of fd.c that do, nor palloc.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "app/limits_file.h"
#include "base/guc.h"
#include "base/nls.h"

#define LIMITS_FILE_TEMP		LIMITS_FILE ".tmp"
#define LIMITS_FILE_DIR			"pg_stat"

#define LIMITS_FILE_MAGIC		0x4c4b4c46
#define LIMITS_FILE_VERSION		1	/* changes with LimitsRecord */

typedef struct LimitsHeader
{
	uint32		magic;
	uint32		version;
	uint32		record_size;
	uint32		num_records;
	pg_crc32c	crc;			/* of the records, and of what is above */
	uint32		unused;
} LimitsHeader;

static pg_crc32c
limits_crc(const LimitsHeader *header, const LimitsRecord *records)
{
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, header, offsetof(LimitsHeader, crc));
	COMP_CRC32C(crc, records, header->num_records * sizeof(LimitsRecord));
	FIN_CRC32C(crc);
	return crc;
}

/* Write all of it; 0 or an errno. */
static int
write_all(int fd, const void *data, size_t size)
{
	const char *next = data;

	while (size > 0)
	{
		ssize_t		written;

		errno = 0;
		written = write(fd, next, size);
		if (written <= 0)
		{
			if (errno == EINTR)
				continue;
			return errno != 0 ? errno : ENOSPC;
		}
		next += written;
		size -= written;
	}
	return 0;
}

/* Read all of it, or as much as there is; the length or -1. */
static ssize_t
read_all(int fd, void *data, size_t size)
{
	size_t		length = 0;

	while (length < size)
	{
		ssize_t		got = read(fd, (char *) data + length, size - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (got == 0)
			break;
		length += got;
	}
	return length;
}

/* So that the new name outlives the machine, too.  Best effort. */
static void
flush_directory(void)
{
	int			fd = BasicOpenFile(LIMITS_FILE_DIR, O_RDONLY | PG_BINARY);

	if (fd < 0)
		return;
	(void) pg_fsync(fd);
	close(fd);
}

/* Replace the file; 0 or an errno.  Does not throw.  One process at a time. */
int
limits_file_write(const LimitsRecord *records, int num_records)
{
	LimitsHeader header = {
		.magic = LIMITS_FILE_MAGIC,
		.version = LIMITS_FILE_VERSION,
		.record_size = sizeof(LimitsRecord),
		.num_records = num_records
	};
	int			fd;
	int			error;

	header.crc = limits_crc(&header, records);
	fd = BasicOpenFilePerm(LIMITS_FILE_TEMP, O_CREAT | O_TRUNC | O_WRONLY | PG_BINARY,
						   pg_file_create_mode);
	if (fd < 0)
		return errno;
	error = write_all(fd, &header, sizeof(header));
	if (error == 0)
		error = write_all(fd, records, num_records * sizeof(LimitsRecord));
	if (error == 0 && pg_fsync(fd) != 0)
		error = errno;
	if (close(fd) != 0 && error == 0)
		error = errno;
	if (error == 0 && rename(LIMITS_FILE_TEMP, LIMITS_FILE) != 0)
		error = errno;
	if (error != 0)
	{
		(void) unlink(LIMITS_FILE_TEMP);
		return error;
	}
	flush_directory();
	return 0;
}

/* Is this what limits_file_write writes, by its length? */
static bool
header_is_ours(const LimitsHeader *header, off_t file_size)
{
	return header->magic == LIMITS_FILE_MAGIC &&
		header->version == LIMITS_FILE_VERSION &&
		header->record_size == sizeof(LimitsRecord) &&
		header->num_records <= MAX_APPS_LIMIT &&
		file_size == (off_t) (sizeof(LimitsHeader) +
							  header->num_records * sizeof(LimitsRecord));
}

/*
 * Read the file; *records is allocated unless there are none.  What cannot be
 * used is told to the log.  Does not throw.
 */
int
limits_file_read(LimitsRecord **records)
{
	LimitsHeader header;
	LimitsRecord *list = NULL;
	struct stat st;
	ssize_t		length = 0;
	int			num_records = -1;
	int			error = 0;
	int			fd = BasicOpenFile(LIMITS_FILE, O_RDONLY | PG_BINARY);

	if (fd < 0 && errno == ENOENT)
		return 0;				/* nearly always */
	if (fd < 0 || fstat(fd, &st) != 0 ||
		(length = read_all(fd, &header, sizeof(header))) < 0)
		error = errno;
	else if (length == sizeof(header) && header_is_ours(&header, st.st_size))
	{
		Size		size = header.num_records * sizeof(LimitsRecord);

		list = MemoryContextAllocExtended(TopMemoryContext, Max(size, 1), MCXT_ALLOC_NO_OOM);
		if (list == NULL)
			error = ENOMEM;
		else if ((length = read_all(fd, list, size)) < 0)
			error = errno;
		else if ((Size) length == size && header.crc == limits_crc(&header, list))
			num_records = header.num_records;
	}
	if (fd >= 0)
		close(fd);

	if (num_records > 0)
	{
		*records = list;
		return num_records;
	}
	if (list != NULL)
		pfree(list);
	if (num_records == 0)
		return 0;
	errno = error;
	ereport(LOG,
			(error != 0 ?
			 (errcode_for_file_access(), errmsg("could not read file \"%s\": %m", LIMITS_FILE)) :
			 (errcode(ERRCODE_DATA_CORRUPTED), errmsg("file \"%s\" is damaged or of another version", LIMITS_FILE)),
			 errdetail("feishu_flow does not know what its apps have sent before the restart, nor which pauses the platform has asked for."),
			 errhint("Nothing needs to be done. The file is replaced when there is something to be kept.")));
	return 0;
}

/* No app has anything to keep. */
void
limits_file_remove(void)
{
	(void) unlink(LIMITS_FILE);
}
