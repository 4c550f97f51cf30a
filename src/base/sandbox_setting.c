/*-------------------------------------------------------------------------
 *
 * src/base/sandbox_setting.c
 *	  The setting feishu_flow.sandbox_response: how it is written, and who set it.
 *
 * A value is the body of an answer, or the status of an answer and what there is of a
 * body, as in "400 {"code": 2320001}".  A body alone begins as a JSON object: the
 * platform's others come with a status that says so.
 *
 * Everybody may set it, so that the owner of a server can, and it counts where who set
 * it may say what the server answers (app/sandbox_response.c).  That is a superuser for
 * the configuration and for ALTER ROLE ALL, the database's owner for ALTER DATABASE,
 * and else the session's user: not the role that a function has for the moment.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/nls.h"
#include "base/sandbox_setting.h"

char	   *feishu_guc_sandbox_response = NULL;

static GucSource setting_source = PGC_S_DEFAULT;

/* The last value that came from the configuration; malloc, for a hook cannot throw. */
static char *configured = NULL;

/*
 * Read a value; false if it is none.
 *
 * The status (200 without one), and the body, which may be empty; with an empty value it
 * is NULL.  False when the value is written otherwise.
 */
bool
sandbox_setting_split(const char *value, int *http_status, const char **body)
{
	*http_status = 200;
	*body = value;
	if (value[0] == '\0')
		*body = NULL;
	else if (strspn(value, "0123456789") == 3 && (value[3] == ' ' || value[3] == '\0'))
	{
		*http_status = atoi(value);
		*body = value + (value[3] == ' ' ? 4 : 3);
		/* libcurl answers none but a final status */
		return *http_status >= 200 && *http_status < 600;
	}
	else
		return value[strspn(value, " \t\r\n")] == '{';
	return true;
}

bool
sandbox_setting_check(char **newval, void **extra, GucSource source)
{
	int			http_status;
	const char *body;
	GucSource  *kept;

	if (!sandbox_setting_split(*newval, &http_status, &body))
	{
		GUC_check_errdetail("%s", _("It is neither a JSON object nor an HTTP status with what follows."));
		GUC_check_errhint("%s", _("Write it like '{\"code\": 1121, \"msg\": \"error\"}' or '429 {\"code\": 99991400}'."));
		return false;
	}
	kept = guc_malloc(LOG, sizeof(GucSource));
	if (kept == NULL)
		return false;
	*kept = source;
	*extra = kept;
	return true;
}

void
sandbox_setting_assign(const char *newval, void *extra)
{
	setting_source = *(GucSource *) extra;
	if (setting_source >= PGC_S_GLOBAL)
		return;
	free(configured);
	configured = newval[0] != '\0' ? strdup(newval) : NULL;
}

/*
 * What the configuration says (NULL: nothing), also where a role's or a database's value hides it.  As
 * long as it is hidden, a change of it is not seen: then what it said before holds.
 */
const char *
sandbox_setting_configured(void)
{
	return configured;
}

/* The owner of this database.  Needs a transaction. */
Oid
sandbox_database_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/* Whose value this session has.  Needs a transaction. */
Oid
sandbox_setting_owner(void)
{
	if (setting_source <= PGC_S_GLOBAL)
		return BOOTSTRAP_SUPERUSERID;
	if (setting_source == PGC_S_DATABASE)
		return sandbox_database_owner();
	return GetSessionUserId();
}
