/*-------------------------------------------------------------------------
 *
 * src/base/worker_settings.c
 *	  Settings of PostgreSQL that a background worker has as its own.
 *
 * A worker gets what is set for its database, for the superuser it runs as, and
 * in the configuration files.  There it is meant for users' sessions: a timeout,
 * a read-only default, a planner switch or exit_on_error would stop or slow the
 * dispatcher.  So whatever has a say in whether and how fast its SQL works has a
 * value of its own here.  The source PGC_S_OVERRIDE outranks all of those, a
 * reload included, and is outranked by what the dispatcher sets for one
 * transaction.
 *
 * They are set before the worker connects, as autovacuum does it: a setting
 * could prevent that, too.
 *
 * Left to the administrator are:
 *	- what is logged, tracked and shown, and in which language;
 *	- how data is written and kept: synchronous_commit (see end_work in
 *	  dispatcher.c), wal_*, *_flush_after, io concurrency and method,
 *	  default_toast_compression, default_tablespace, zero_damaged_pages and
 *	  other means of repair;
 *	- the settings of feishu_flow.
 * Of no effect on a dispatcher are: how values are read from and written as text
 * (DateStyle, TimeZone, bytea_output, xmloption, lc_*), which its SQL never does;
 * what concerns a client, DDL, large objects, passwords, VACUUM, temporary tables,
 * partitions, replication, or libraries loaded by sessions.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "base/worker_settings.h"

typedef struct WorkerSetting
{
	const char *name;
	const char *value;
} WorkerSetting;

static const WorkerSetting worker_settings[] = {
	/* who, and whose names */
	{"role", "none"},
	{"search_path", "pg_catalog, pg_temp"},
	{"session_replication_role", "origin"},
	{"restrict_nonsystem_relation_kind", ""},
	/* rather an error than rows that are not seen */
	{"row_security", "off"},

	/* errors and timeouts */
	{"exit_on_error", "off"},
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"transaction_timeout", "0"},	/* since 17 */
	{"idle_in_transaction_session_timeout", "0"},
	{"idle_session_timeout", "0"},
	/* also the time until autovacuum gives way */
	{"deadlock_timeout", "1s"},

	/* transactions */
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"commit_delay", "0"},

	/* what SQL means */
	{"array_nulls", "on"},
	{"standard_conforming_strings", "on"},
	{"transform_null_equals", "off"},
	/* any other might not be convertible, which ends a worker as it connects */
	{"client_encoding", "SQL_ASCII"},

	/* memory and files */
	{"work_mem", "4MB"},
	{"hash_mem_multiplier", "2"},
	{"max_stack_depth", "2MB"},
	{"temp_file_limit", "-1"},
	{"temp_tablespaces", ""},

	/* autovacuum has to know of what we update and delete */
	{"track_counts", "on"},

	/* a plan made while the table was small must do when it is large */
	{"enable_seqscan", "off"},
	{"enable_hashjoin", "off"},
	{"enable_mergejoin", "off"},
	{"enable_bitmapscan", "on"},
	{"enable_indexscan", "on"},
	{"enable_indexonlyscan", "on"},
	{"enable_tidscan", "on"},
	{"enable_nestloop", "on"},
	{"enable_material", "on"},
	{"enable_memoize", "on"},
	{"enable_sort", "on"},
	{"enable_incremental_sort", "on"},
	{"enable_hashagg", "on"},
	{"enable_presorted_aggregate", "on"},	/* since 16 */
	{"enable_group_by_reordering", "on"},	/* since 17 */
	{"enable_distinct_reordering", "on"},	/* since 18 */
	{"enable_self_join_elimination", "on"}, /* since 18 */
	{"enable_eager_aggregate", "on"},	/* since 19 */
	{"plan_cache_mode", "auto"},
	{"constraint_exclusion", "partition"},
	{"cursor_tuple_fraction", "0.1"},
	{"from_collapse_limit", "8"},
	{"join_collapse_limit", "8"},
	{"geqo", "off"},
	{"jit", "off"},
	{"seq_page_cost", "1"},
	{"random_page_cost", "4"},
	{"cpu_tuple_cost", "0.01"},
	{"cpu_index_tuple_cost", "0.005"},
	{"cpu_operator_cost", "0.0025"},
	{"effective_cache_size", "4GB"},
	{"recursive_worktable_factor", "10"},
	{"max_parallel_workers_per_gather", "0"},
	{"force_parallel_mode", "off"}, /* until 15 */
	{"debug_parallel_query", "off"},	/* since 16 */
	{"debug_discard_caches", "0"}
};

/*
 * First of all, before the worker connects to a database.
 *
 * A name that this version does not have is skipped, and so is what the machine does not
 * allow (max_stack_depth where its limit is low).
 */
void
worker_settings_apply(void)
{
	for (int i = 0; i < (int) lengthof(worker_settings); i++)
		(void) set_config_option(worker_settings[i].name, worker_settings[i].value,
								 PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET,
								 true, DEBUG2, false);
}
