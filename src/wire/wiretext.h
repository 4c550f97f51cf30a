/*-------------------------------------------------------------------------
 *
 * wiretext.h
 *	  UTF-8 of the wire to text of this database, without throwing.
 *
 * wire_to_utf8 and wire_printable, which wire.h declares, are in wiretext.c
 * too.
 *
 * Private to src/wire/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/wire/wiretext.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_WIRETEXT_H
#define FEISHU_WIRETEXT_H

#include "fmgr.h"
#include "mb/pg_wchar.h"

/* Room for one converted character and a NUL byte. */
#define WIRETEXT_CHAR_SIZE	(MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1)

/* How to get from UTF-8 to the database encoding. */
typedef enum WireConversionKind
{
	CONVERT_NOTHING,			/* UTF8 and SQL_ASCII take it as it is */
	CONVERT_BY_FUNCTION,
	CONVERT_ASCII_ONLY			/* there is no conversion, or no transaction
								 * in which to find it */
} WireConversionKind;

typedef struct WireConversion
{
	WireConversionKind kind;
	FmgrInfo	function;		/* allocated in the context that was current */
} WireConversion;

extern void wiretext_conversion_init(WireConversion *conversion);

/*
 * Convert as much of src, valid UTF-8, as the encoding can represent.  dst has
 * room for len * MAX_CONVERSION_GROWTH + 1 bytes and ends up NUL-terminated.
 * Returns how many bytes of src were converted: it stopped at a character that
 * the encoding lacks if these are fewer than len.
 */
extern size_t wiretext_convert(WireConversion *conversion, const char *src,
							   size_t len, char *dst);

/*
 * Valid UTF-8 as text in the database encoding, palloc'd.  Characters that it
 * lacks become "?", and then *lossy is set to true.
 */
extern char *wiretext_from_utf8(const char *src, size_t len, size_t *result_len,
								bool *lossy);

/*
 * Text in the database encoding made fit for a message, as wire_printable
 * does it.
 */
extern char *wiretext_fit(const char *text, int len, int max);

/* Text that one of both made, perhaps larger, cut in the same way: itself, or a copy. */
extern char *wiretext_cut(char *text, int max);

#endif							/* FEISHU_WIRETEXT_H */
