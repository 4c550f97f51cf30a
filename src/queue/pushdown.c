/*-------------------------------------------------------------------------
 *
 * src/queue/pushdown.c
 *	  Warn of flows that Citus queues a shard at a time.
 *
 * The coordinator of a Citus cluster sends a query of a distributed table to
 * the workers, one query a shard.  Functions in it run there.  Outside of a
 * transaction block the shards' queries are so many transactions: after an
 * error in one, the flows that others have queued are sent all the same.
 *
 * Nothing of Citus is linked.  A session that it opens on a worker tells so in
 * its application_name.  What runs in it is the query of one shard if it reads
 * a table; a call of a distributed function does not, and is a transaction that
 * is meant.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/portal.h"

#include "base/nls.h"
#include "queue/pushdown.h"

/* As Citus begins the application_name of its sessions that run queries. */
#define CITUS_SESSION_PREFIX	"citus_internal gpid="

/* Does the client's statement read a table, and change none? */
static bool
statement_reads_table(void)
{
	PlannedStmt *statement;

	if (ActivePortal == NULL || list_length(ActivePortal->stmts) != 1)
		return false;
	statement = linitial_node(PlannedStmt, ActivePortal->stmts);
	return statement->commandType == CMD_SELECT && statement->relationOids != NIL;
}

/*
 * To be called when enqueue_flow has queued a flow.
 *
 * Once a statement: it may queue a flow for each row, and the session serves many
 * statements of many sessions of the coordinator.
 */
void
pushdown_warn(void)
{
	static TimestampTz warned_at = 0;

	if (application_name == NULL ||
		strncmp(application_name, CITUS_SESSION_PREFIX, strlen(CITUS_SESSION_PREFIX)) != 0 ||
		IsTransactionBlock() || warned_at == GetCurrentStatementStartTimestamp() ||
		!statement_reads_table())
		return;
	warned_at = GetCurrentStatementStartTimestamp();
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("flows are queued a shard at a time"),
			 errdetail("The query was pushed down to this worker outside of a transaction block. After an error in one shard, flows that others have queued are sent all the same."),
			 errhint("Run the query in a transaction block, or have the coordinator queue the flows: WITH rows AS MATERIALIZED (SELECT ...) SELECT feishu.enqueue_flow(...) FROM rows.")));
}
