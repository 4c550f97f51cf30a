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

#include "mb/pg_wchar.h"

/* Room for one converted character and a NUL byte. */
#define WIRETEXT_CHAR_SIZE	(MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1)

extern Oid	wiretext_conversion(void);
extern size_t wiretext_convert(Oid conversion, const char *src, size_t len, char *dst);
extern char *wiretext_from_utf8(const char *src, size_t len, size_t *result_len,
								bool *lossy);
extern char *wiretext_fit(const char *text, int len, int max);
extern char *wiretext_cut(char *text, int max);

#endif							/* FEISHU_WIRETEXT_H */
