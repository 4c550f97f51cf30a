/*-------------------------------------------------------------------------
 *
 * fuzz_module.c
 *	  SQL functions that run the fuzz target inside a server.
 *
 *	feishu_fuzz_replay(folder text) RETURNS integer
 *		runs each file of a folder once; the number of files.  Throws at the
 *		first that fails, naming it.
 *
 *	feishu_fuzz_run(arguments text[]) RETURNS void
 *		libFuzzer with these arguments (the first is the program's name), in
 *		this very process, which it ends.  Only when built with FUZZ=1.
 *
 * For tests alone: whoever may call these may read the server's files.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/fuzz/fuzz_module.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <signal.h>
#include <sys/stat.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "fuzz_target.h"

PG_MODULE_MAGIC;

/* The setting that wire_check.c asks for, of guc.c. */
int			feishu_guc_max_request_size = 16 * 1024;

PG_FUNCTION_INFO_V1(feishu_fuzz_replay);

/* Memory of one input. */
static MemoryContext
input_context(void)
{
	static MemoryContext context = NULL;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "fuzz input", ALLOCSET_DEFAULT_SIZES);
	return context;
}

static void
require_client_encoding(void)
{
	if (pg_get_client_encoding() != PG_LATIN1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("client_encoding must be LATIN1 here")));
}

/* A file's bytes in memory of exactly their size, to be freed with free(). */
static char *
read_file(const char *path, size_t *size)
{
	FILE	   *file = AllocateFile(path, "rb");
	struct stat st;
	char	   *data;

	if (file == NULL || fstat(fileno(file), &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	data = malloc(Max(st.st_size, 1));
	if (data == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	*size = fread(data, 1, st.st_size, file);
	FreeFile(file);
	return data;
}

static void
name_input(void *path)
{
	errcontext("input %s", (char *) path);
}

Datum
feishu_fuzz_replay(PG_FUNCTION_ARGS)
{
	char	   *folder = text_to_cstring(PG_GETARG_TEXT_PP(0));
	DIR		   *dir = AllocateDir(folder);
	struct dirent *entry;
	int32		count = 0;

	require_client_encoding();
	while ((entry = ReadDir(dir, folder)) != NULL)
	{
		char	   *path = psprintf("%s/%s", folder, entry->d_name);
		ErrorContextCallback callback = {error_context_stack, name_input, path};
		MemoryContext old_context;
		size_t		size;
		char	   *data;

		if (entry->d_name[0] == '.')
			continue;
		data = read_file(path, &size);
		error_context_stack = &callback;
		old_context = MemoryContextSwitchTo(input_context());
		fuzz_check_input(data, size);
		MemoryContextSwitchTo(old_context);
		error_context_stack = callback.previous;
		MemoryContextReset(input_context());
		free(data);
		count++;
		CHECK_FOR_INTERRUPTS();
	}
	FreeDir(dir);
	PG_RETURN_INT32(count);
}

#ifdef FEISHU_FUZZ

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*callback) (const uint8_t *data, size_t size));

PG_FUNCTION_INFO_V1(feishu_fuzz_run);

/* What throws is a finding, which libFuzzer learns by abort(). */
static int
run_input(const uint8_t *data, size_t size)
{
	MemoryContext old_context = MemoryContextSwitchTo(input_context());

	PG_TRY();
	{
		fuzz_check_input((const char *) data, size);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(input_context());
	return 0;
}

Datum
feishu_fuzz_run(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *elements;
	int			argc;
	char	  **argv;

	require_client_encoding();
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &argc);
	argv = palloc0((argc + 1) * sizeof(char *));
	for (int i = 0; i < argc; i++)
		argv[i] = TextDatumGetCString(elements[i]);

	/* libFuzzer leaves signals alone that have a handler, and needs these */
	pqsignal(SIGINT, SIG_DFL);
	pqsignal(SIGTERM, SIG_DFL);
	pqsignal(SIGALRM, SIG_DFL);
	pqsignal(SIGFPE, SIG_DFL);
	exit(LLVMFuzzerRunDriver(&argc, &argv, run_input));
}

#endif							/* FEISHU_FUZZ */
