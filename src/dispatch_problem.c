/*-------------------------------------------------------------------------
 *
 * dispatch_problem.c
 *	  Why nothing sends what is queued in a database.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatch_problem.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "guc.h"
#include "launcher_internal.h"
#include "nls.h"

PG_FUNCTION_INFO_V1(feishu_dispatch_problem);

/* Is this a database that gets no dispatcher? */
static bool
database_is_closed(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		closed = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		closed = form->datistemplate || !form->datallowconn;
		ReleaseSysCache(tuple);
	}
	return closed;
}

DispatchProblem
launcher_problem(void)
{
	SlotView	view;
	int			place;
	bool		known;

	if (!launcher_present())
		return DISPATCH_NOT_PRELOADED;
	if (!feishu_guc_dispatch)
		return DISPATCH_OFF;
	if (RecoveryInProgress())
		return DISPATCH_NO_PROBLEM;

	/* the slot may become another database's meanwhile */
	place = slots_find(MyDatabaseId);
	known = place >= 0 && slots_view(place, &view) && view.database == MyDatabaseId;
	if (known && view.worker != WORKER_NONE)
		return view.failing ? DISPATCH_FAILS : DISPATCH_NO_PROBLEM;
	if (database_is_closed())
		return DISPATCH_CLOSED;
	if (!slots_may_start())
		return DISPATCH_NO_WORKER;
	return known && !view.ended_well ? DISPATCH_FAILS : DISPATCH_NO_PROBLEM;
}

const char *
launcher_problem_text(DispatchProblem problem)
{
	switch (problem)
	{
		case DISPATCH_NO_PROBLEM:
			break;
		case DISPATCH_NOT_PRELOADED:
			return gettext_noop("feishu_flow is not in shared_preload_libraries");
		case DISPATCH_OFF:
			return gettext_noop("feishu_flow.dispatch is off");
		case DISPATCH_CLOSED:
			return gettext_noop("the database is a template, or allows no connections");
		case DISPATCH_NO_WORKER:
			return gettext_noop("there is no background worker for the dispatcher");
		case DISPATCH_FAILS:
			return gettext_noop("the dispatcher fails, see the server log");
	}
	return NULL;
}

/*
 * dispatch_problem(): why nothing sends what is queued in this database; NULL
 * when a dispatcher does.
 */
Datum
feishu_dispatch_problem(PG_FUNCTION_ARGS)
{
	const char *problem = launcher_problem_text(launcher_problem());

	if (problem == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(problem));
}
