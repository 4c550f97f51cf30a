/*-------------------------------------------------------------------------
 *
 * pauses.c
 *	  What owners of servers have paused: servers, by pause_server, and single flows,
 *	  by pause_flow.
 *
 * Both are read with the snapshot that a claim reads its rows with.  Of a server that is
 * paused no lane has a turn.  Rows of a paused flow are passed over (page.c), and are
 * taken from the index of what is to be sent (park.c).
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/dispatcher/pauses.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "base/sqlrun.h"
#include "dispatcher/dispatcher_internal.h"
#include "dispatcher/lane.h"
#include "dispatcher/pauses.h"

typedef struct PausedFlow
{
	char	   *server;
	char	   *name;			/* as PAUSES_FLOW has it */
} PausedFlow;

/* All of them, sorted, as read last, and for how many lanes. */
static PausedFlow *paused = NULL;
static char **names = NULL;		/* theirs, in the same order */
static int	num_paused = 0;
static int	num_lanes = 0;
static MemoryContext context = NULL;	/* of these */


static int
compare_paused(const void *a, const void *b)
{
	const PausedFlow *left = a;
	const PausedFlow *right = b;
	int			order = strcmp(left->server, right->server);

	return order != 0 ? order : strcmp(left->name, right->name);
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Lanes are paused if their servers are among these; so many are paused by hand: few. */
static void
pause_lanes(char *const *servers, int num)
{
	for (int i = 0; i < lane_count(); i++)
	{
		Lane	   *lane = lane_all()[i];
		bool		is_paused = false;

		for (int j = 0; j < num && !is_paused; j++)
			is_paused = strcmp(lane->key.server, servers[j]) == 0;
		lane_set_paused(lane, is_paused);
	}
}

/* Those of the lanes' servers, some of which may have been found since. */
static void
set_sites(void)
{
	for (int i = 0; i < lane_count(); i++)
	{
		Site	   *site = lane_all()[i]->site;

		site->paused = (PausedFlows) {0};
		for (int j = 0; j < num_paused; j++)
		{
			if (strcmp(paused[j].server, site->name) != 0)
				continue;
			if (site->paused.num++ == 0)
				site->paused.names = names + j;
		}
	}
	num_lanes = lane_count();
}

/*
 * A flow is not paused any more.  What was passed over, and not parked, may be anywhere
 * in the lanes of its server; park.c finds what was.  What they have listed is found again,
 * too, and in its order.
 */
static void
reopen_lanes(const char *server)
{
	for (int i = 0; i < lane_count(); i++)
	{
		Lane	   *lane = lane_all()[i];

		if (strcmp(lane->key.server, server) != 0)
			continue;
		lane_close(lane);
		lane_reopen(lane, 0, 0);
	}
}

/* These flows are paused, and no others. */
static void
set_flows(PausedFlow *flows, int num)
{
	MemoryContext made;
	MemoryContext old_context;
	PausedFlow *copies;
	char	  **names_of_copies;
	bool		same = num == num_paused;

	qsort(flows, num, sizeof(PausedFlow), compare_paused);
	for (int i = 0; i < num && same; i++)
		same = compare_paused(&flows[i], &paused[i]) == 0;
	if (same)
	{
		if (num > 0 && num_lanes != lane_count())
			set_sites();
		return;
	}

	/* what may throw comes before anything has changed */
	made = AllocSetContextCreate(CurrentMemoryContext, "feishu_flow paused flows", ALLOCSET_SMALL_SIZES);
	old_context = MemoryContextSwitchTo(made);
	copies = palloc(Max(num, 1) * sizeof(PausedFlow));
	names_of_copies = palloc(Max(num, 1) * sizeof(char *));
	for (int i = 0; i < num; i++)
	{
		copies[i] = (PausedFlow) {pstrdup(flows[i].server), pstrdup(flows[i].name)};
		names_of_copies[i] = copies[i].name;
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextSetParent(made, TopMemoryContext);
	for (int i = 0; i < num_paused; i++)
	{
		if (bsearch(&paused[i], copies, num, sizeof(PausedFlow), compare_paused) == NULL)
			reopen_lanes(paused[i].server);
	}
	paused = copies;
	names = names_of_copies;
	num_paused = num;
	set_sites();
	if (context != NULL)
		MemoryContextDelete(context);
	context = made;
}

/* Read what is paused, as a snapshot has it, or NULL. */
void
pauses_read(Snapshot snapshot)
{
	static SqlStatement statement = SQL_STATEMENT(
		"SELECT server, NULL FROM feishu_internal.paused_server"
		" UNION ALL SELECT p.server, " PAUSES_FLOW("p") " FROM feishu_internal.paused_flow p",
		0, InvalidOid);
	uint64		num = sql_run(&statement, NULL, NULL, SPI_OK_SELECT, snapshot);
	char	  **servers = palloc(Max(num, 1) * sizeof(char *));
	PausedFlow *flows = palloc(Max(num, 1) * sizeof(PausedFlow));
	int			num_servers = 0;
	int			num_flows = 0;

	for (uint64 row = 0; row < num; row++)
	{
		char	   *server = TextDatumGetCString(sql_value(row, 1, NULL));
		bool		whole;
		Datum		name = sql_value(row, 2, &whole);

		if (whole)
			servers[num_servers++] = server;
		else
			flows[num_flows++] = (PausedFlow) {server, TextDatumGetCString(name)};
	}
	pause_lanes(servers, num_servers);
	set_flows(flows, num_flows);
}

/* Is any flow of a lane's server paused? */
bool
pauses_any(const Lane *lane)
{
	return lane->site->paused.num > 0;
}

/* Is this one, of a row of a lane? */
bool
pauses_hold(const Lane *lane, Datum namespace_name, Datum flow_id)
{
	const PausedFlows *flows = &lane->site->paused;
	char	   *name;

	if (flows->num == 0)
		return false;
	name = psprintf("%s\n%s", TextDatumGetCString(namespace_name), TextDatumGetCString(flow_id));
	return bsearch(&name, flows->names, flows->num, sizeof(char *), compare_names) != NULL;
}

/* Likewise one of a server that may have no lane yet. */
bool
pauses_hold_flow(const char *server, const char *namespace_name, const char *flow_id)
{
	PausedFlow	flow = {
		unconstify(char *, server), psprintf("%s\n%s", namespace_name, flow_id)
	};

	return num_paused > 0 &&
		bsearch(&flow, paused, num_paused, sizeof(PausedFlow), compare_paused) != NULL;
}

/* Those of a lane's server, as text[]. */
Datum
pauses_flows(const Lane *lane)
{
	const PausedFlows *flows = &lane->site->paused;
	Datum	   *values = palloc(Max(flows->num, 1) * sizeof(Datum));

	for (int i = 0; i < flows->num; i++)
		values[i] = CStringGetTextDatum(flows->names[i]);
	return array_of(values, flows->num, TEXTOID);
}
