/*-------------------------------------------------------------------------
 *
 * src/api/execute_flows.c
 *	  SQL function execute_flows: the calls of all rows of a partition at once.
 *
 * A window function is asked for the result of one row after the other, and may look at
 * any row of the partition meanwhile.  So it reads the arguments of rows ahead, each
 * once, and has their calls under way when their turn comes (batch.c).
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "windowapi.h"

#include "api/batch.h"
#include "api/execute.h"
#include "base/compat.h"

PG_FUNCTION_INFO_V1(feishu_execute_flows);

/* What is known of a call of execute_flows in a query, in fn_extra. */
typedef struct FlowsFunction
{
	TupleDesc	rows;			/* type of the results */
	bool		is_constant[EXECUTE_NUM_ARGUMENTS]; /* the same in all rows */
	int16		lengths[EXECUTE_NUM_ARGUMENTS];
	bool		by_value[EXECUTE_NUM_ARGUMENTS];
} FlowsFunction;

/* State of a partition, which begins zeroed. */
typedef struct FlowsPartition
{
	CallBatch  *batch;
	int64		num_read;		/* rows, from the beginning of the partition */
} FlowsPartition;

/* See source_read. */
typedef struct FlowsSource
{
	const FlowsFunction *function;
	FlowsPartition *partition;
	WindowObject window;
} FlowsSource;

static FlowsFunction *
function_describe(FunctionCallInfo fcinfo)
{
	MemoryContext old_context = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	FlowsFunction *function = palloc0(sizeof(FlowsFunction));

	if (get_call_result_type(fcinfo, NULL, &function->rows) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	function->rows = BlessTupleDesc(function->rows);
	for (int i = 0; i < EXECUTE_NUM_ARGUMENTS; i++)
	{
		Oid			type = get_fn_expr_argtype(fcinfo->flinfo, i);

		/* the first one tells where the partition ends */
		function->is_constant[i] = i > 0 && get_fn_expr_arg_stable(fcinfo->flinfo, i);
		get_typlenbyval(type, &function->lengths[i], &function->by_value[i]);
	}
	MemoryContextSwitchTo(old_context);
	return function;
}

/*
 * One argument of a row, so far from the current one, copied: the next row that is read
 * may take its place.  False: there is no such row.
 */
static bool
source_read_argument(const FlowsSource *source, int number, int row, NullableDatum *argument)
{
	bool		is_out = false;
	Datum		value;

	if (source->function->is_constant[number])
		value = WinGetFuncArgCurrent(source->window, number, &argument->isnull);
	else
		value = WinGetFuncArgInPartition(source->window, number, row, WINDOW_SEEK_CURRENT, false,
										 &argument->isnull, &is_out);
	if (is_out)
		return false;
	if (argument->isnull)
		argument->value = (Datum) 0;
	else if (source->function->lengths[number] == -1)
		argument->value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	else
		argument->value = datumCopy(value, source->function->by_value[number],
									source->function->lengths[number]);
	return true;
}

/* A BatchSource. */
static bool
source_read(void *arg, FunctionCallInfo fcinfo)
{
	const FlowsSource *source = arg;
	int64		number = source->partition->num_read;
	int			row = (int) (number - WinGetCurrentPosition(source->window));

	for (int i = 0; i < EXECUTE_NUM_ARGUMENTS; i++)
	{
		if (!source_read_argument(source, i, row, &fcinfo->args[i]))
			return false;
	}
	/* rows that were read and returned need not be kept */
	WinSetMarkPosition(source->window, number);
	source->partition->num_read++;
	return true;
}

/*
 * execute_flows(namespace, flow_id, operator, params, is_async, idempotent_key,
 * loop_masks, server, timeout) OVER (...): call now, return what became of it.
 */
Datum
feishu_execute_flows(PG_FUNCTION_ARGS)
{
	FlowsSource source = {.window = PG_WINDOW_OBJECT()};
	Datum		result;

	feishu_window_refuse_null_treatment(source.window, fcinfo);
	if (fcinfo->flinfo->fn_extra == NULL)
		fcinfo->flinfo->fn_extra = function_describe(fcinfo);
	source.function = fcinfo->flinfo->fn_extra;
	source.partition = WinGetPartitionLocalMemory(source.window, sizeof(FlowsPartition));
	if (source.partition->batch == NULL)
		source.partition->batch = batch_create(GetMemoryChunkContext(source.partition),
											   source.function->rows);
	result = batch_next(source.partition->batch, source_read, &source);
	/* what came while the answer was read is not for the next statement */
	CHECK_FOR_INTERRUPTS();
	PG_RETURN_DATUM(result);
}
