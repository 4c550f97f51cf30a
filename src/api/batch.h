/*-------------------------------------------------------------------------
 *
 * src/api/batch.h
 *	  Many calls of one statement, whose results are asked for in turn.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_BATCH_H
#define FEISHU_BATCH_H

#include "access/tupdesc.h"
#include "fmgr.h"

typedef struct CallBatch CallBatch;

/*
 * Reads the arguments of the next row, as execute_read_arguments takes them, into the
 * current memory context; false when there is none any more.
 */
typedef bool (*BatchSource) (void *arg, FunctionCallInfo fcinfo);
extern CallBatch *batch_create(MemoryContext owner, TupleDesc rows);
extern Datum batch_next(CallBatch *batch, BatchSource source, void *arg);
extern void batch_install_hooks(void);

#endif							/* FEISHU_BATCH_H */
