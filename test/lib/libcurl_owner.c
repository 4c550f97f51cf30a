/*
 * A library for PostgreSQL that sets libcurl up with memory of its transaction, as some extensions do. Loaded by LOAD
 * in a transaction, it does so at once, until the transaction's end. Preloaded, it does so only if OWNER_IS_EARLY is in
 * the environment, and with memory that lasts.
 *
 *   cc -shared -fPIC -I$(pg_config --includedir-server) -o libcurl_owner.so libcurl_owner.c -lcurl
 */
#include "postgres.h"

#include <curl/curl.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/memutils.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static MemoryContext context = NULL;

static void *
my_malloc(size_t size)
{
	return MemoryContextAlloc(context, size);
}

static void
my_free(void *pointer)
{
	if (pointer != NULL)
		pfree(pointer);
}

static void *
my_realloc(void *pointer, size_t size)
{
	return pointer != NULL ? repalloc(pointer, size) : my_malloc(size);
}

static char *
my_strdup(const char *text)
{
	return MemoryContextStrdup(context, text);
}

static void *
my_calloc(size_t number, size_t size)
{
	return MemoryContextAllocZero(context, number * size);
}

static void
at_end(void *arg)
{
	context = NULL;
	curl_global_cleanup();
}

void
_PG_init(void)
{
	static MemoryContextCallback callback = {.func = at_end};

	if (process_shared_preload_libraries_in_progress)
	{
		if (getenv("OWNER_IS_EARLY") != NULL)
			curl_global_init(CURL_GLOBAL_ALL);
		return;
	}
	context = TopTransactionContext;
	MemoryContextRegisterResetCallback(context, &callback);
	curl_global_init_mem(CURL_GLOBAL_ALL, my_malloc, my_free, my_realloc, my_strdup, my_calloc);
}
