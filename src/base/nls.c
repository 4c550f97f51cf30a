/*-------------------------------------------------------------------------
 *
 * nls.c
 *	  Messages in the user's language.
 *
 * gettext has to be told where a catalog is and in which encoding its texts are
 * wanted: that of the database.  A preloaded library is initialised in the
 * postmaster, where there is no database yet, so this is done at the first
 * message, and again should the encoding be another one.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/base/nls.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/nls.h"

const char *
feishu_text_domain(void)
{
	static const char *const domain = PG_TEXTDOMAIN("feishu_flow");
	static int	encoding = -1;

	if (encoding != GetDatabaseEncoding())
	{
		pg_bindtextdomain(domain);
		encoding = GetDatabaseEncoding();
	}
	return domain;
}
