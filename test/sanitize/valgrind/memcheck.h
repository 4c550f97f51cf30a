/*-------------------------------------------------------------------------
 *
 * memcheck.h
 *	  PostgreSQL's memory annotations for valgrind, said to AddressSanitizer.
 *
 * palloc takes its chunks from large blocks, of which AddressSanitizer knows
 * nothing: a byte read beyond a chunk, or in one that was freed, is a byte
 * inside the block.  PostgreSQL tells valgrind what is a chunk, what is padding
 * and what is free.  script/sanitize builds a PostgreSQL that finds this file
 * in place of valgrind's own, and the same reports come from AddressSanitizer,
 * without valgrind's slowness.
 *
 * A freed chunk needs nothing here: AllocSetFree wipes it, which makes it
 * inaccessible.  What is not initialised is not tracked; that is left to
 * valgrind.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * test/sanitize/valgrind/memcheck.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ASAN_MEMCHECK_H
#define FEISHU_ASAN_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define RUNNING_ON_VALGRIND		0

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size)	ASAN_POISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MAKE_MEM_DEFINED(addr, size)	ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size)	((void) 0)
#define VALGRIND_GET_VBITS(addr, bits, size)	0
#define VALGRIND_COUNT_ERRORS	0

#define VALGRIND_CREATE_MEMPOOL(pool, redzones, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(pool)			((void) 0)
#define VALGRIND_MEMPOOL_ALLOC(pool, addr, size)	ASAN_UNPOISON_MEMORY_REGION((addr), (size))
#define VALGRIND_MEMPOOL_FREE(pool, addr)		((void) 0)
#define VALGRIND_MEMPOOL_CHANGE(pool, from, to, size)	ASAN_UNPOISON_MEMORY_REGION((to), (size))

#endif							/* FEISHU_ASAN_MEMCHECK_H */
