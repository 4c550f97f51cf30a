/*-------------------------------------------------------------------------
 *
 * src/base/compat.h
 *	  Every PostgreSQL-version and libcurl-version shim of feishu_flow.
 *
 * The code is written against the newest names; older servers get them from
 * here.  No other file tests PG_VERSION_NUM or LIBCURL_VERSION_NUM.
 *
 * The libcurl part takes effect only in the file that included
 * <curl/curl.h> first, which are those of http_internal.h.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_COMPAT_H
#define FEISHU_COMPAT_H

#include "postgres.h"

#if PG_VERSION_NUM < 150000
#error "feishu_flow needs PostgreSQL 15 or later"
#endif

#include "fmgr.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/jsonb.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

/*
 * CreateWaitEventSet: 17 replaced the memory context argument by a resource
 * owner.  The sets of feishu_flow live as long as the process and belong to
 * no resource owner.
 */
#if PG_VERSION_NUM >= 170000
#define feishu_create_wait_event_set(nevents) CreateWaitEventSet(NULL, (nevents))
#else
#define feishu_create_wait_event_set(nevents) CreateWaitEventSet(TopMemoryContext, (nevents))
#endif

/* ShmemInitHash: 19 has one number of entries. */
#if PG_VERSION_NUM >= 190000
#define feishu_shmem_hash(name, nelems, control, flags) ShmemInitHash(name, nelems, control, flags)
#else
#define feishu_shmem_hash(name, nelems, control, flags) ShmemInitHash(name, nelems, nelems, control, flags)
#endif

/*
 * Wait events: 17 lets an extension name its own.  Before, all of them show
 * as "Extension".
 */
#if PG_VERSION_NUM >= 170000
#include "utils/wait_event.h"
#define feishu_wait_event_new(name) WaitEventExtensionNew(name)
#else
#include "utils/wait_event.h"
#define feishu_wait_event_new(name) PG_WAIT_EXTENSION
#endif

/*
 * May one role act as another, as SET ROLE would let it?  16 tells that from
 * membership, as a function and as a privilege of pg_has_role.
 */
#if PG_VERSION_NUM >= 160000
#define feishu_role_may_act(member, role) member_can_set_role((member), (role))
#define FEISHU_ROLE_MAY_ACT "SET"
#else
#define feishu_role_may_act(member, role) is_member_of_role((member), (role))
#define FEISHU_ROLE_MAY_ACT "MEMBER"
#endif

extern bool feishu_input(PGFunction function, char *text, Datum *result,
						 ErrorData **error);
extern bool feishu_jsonb_from_cstring(char *json, Jsonb **result);

/*
 * Building a JsonbValue: 19 keeps the result in a JsonbInState, to be zeroed
 * by the caller, where before pushJsonbValue returned it.
 */
#if PG_VERSION_NUM >= 190000
#define feishu_jsonb_push(state, token, value) pushJsonbValue((state), (token), (value))
#else
typedef struct JsonbInState
{
	JsonbValue *result;
	JsonbParseState *parseState;
} JsonbInState;

#define feishu_jsonb_push(state, token, value) \
	((void) ((state)->result = pushJsonbValue(&(state)->parseState, (token), (value))))
#endif

/* Intervals can be infinite since 17. */
#ifndef INTERVAL_NOT_FINITE
#define INTERVAL_NOT_FINITE(interval) (false)
#endif

/*
 * Syscache callbacks: 19 gives them the cache as an enum with this name, not
 * as int.
 */
#if PG_VERSION_NUM < 190000
typedef int SysCacheIdentifier;
#endif

/*
 * Expression of a virtual generated column, or NULL: 18 has them, and does
 * not compute them for triggers.
 */
#if PG_VERSION_NUM >= 180000
#include "catalog/pg_attribute.h"
#include "rewrite/rewriteHandler.h"
#define feishu_virtual_expression(rel, attno) \
	(TupleDescAttr(RelationGetDescr(rel), (attno) - 1)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL ? \
	 (Expr *) build_generation_expression((rel), (attno)) : NULL)
#else
#define feishu_virtual_expression(rel, attno) ((Expr *) NULL)
#endif

/*
 * AFTER triggers are run as the role that was current_user when the change
 * was made: 18 and later.  Before, as whoever is current_user when they fire.
 */
#if PG_VERSION_NUM >= 180000
#define FEISHU_TRIGGERS_KEEP_ROLE	true
#else
#define FEISHU_TRIGGERS_KEEP_ROLE	false
#endif

/*
 * USAGE on a foreign server: 16 replaced the functions of each kind of object
 * by one.
 */
#if PG_VERSION_NUM >= 160000
#define feishu_server_aclcheck(serverid, userid) \
	object_aclcheck(ForeignServerRelationId, (serverid), (userid), ACL_USAGE)
#define feishu_server_ownercheck(serverid, userid) \
	object_ownercheck(ForeignServerRelationId, (serverid), (userid))
#else
#define feishu_server_aclcheck(serverid, userid) \
	pg_foreign_server_aclcheck((serverid), (userid), ACL_USAGE)
#define feishu_server_ownercheck(serverid, userid) \
	pg_foreign_server_ownercheck((serverid), (userid))
#endif

/* Memory of what a check hook leaves to an assign hook: malloc's before 16. */
#if PG_VERSION_NUM < 160000
#define guc_malloc(elevel, size)	malloc(size)
#endif

/*
 * USAGE on a schema, EXECUTE on a function, CONNECT to this database: likewise.
 */
#if PG_VERSION_NUM >= 160000
#define feishu_may_use_schema(schemaid, roleid) \
	(object_aclcheck(NamespaceRelationId, (schemaid), (roleid), ACL_USAGE) == ACLCHECK_OK)
#define feishu_may_execute(functionid, roleid) \
	(object_aclcheck(ProcedureRelationId, (functionid), (roleid), ACL_EXECUTE) == ACLCHECK_OK)
#define feishu_may_connect(roleid) \
	(object_aclcheck(DatabaseRelationId, MyDatabaseId, (roleid), ACL_CONNECT) == ACLCHECK_OK)
#else
#define feishu_may_use_schema(schemaid, roleid) \
	(pg_namespace_aclcheck((schemaid), (roleid), ACL_USAGE) == ACLCHECK_OK)
#define feishu_may_execute(functionid, roleid) \
	(pg_proc_aclcheck((functionid), (roleid), ACL_EXECUTE) == ACLCHECK_OK)
#define feishu_may_connect(roleid) \
	(pg_database_aclcheck(MyDatabaseId, (roleid), ACL_CONNECT) == ACLCHECK_OK)
#endif

/*
 * Background workers of a role that may not log in: 17 has a flag for that.
 */
#include "postmaster/bgworker.h"
#ifdef BGWORKER_BYPASS_ROLELOGINCHECK
#define FEISHU_WORKERS_NEED_LOGIN	0
#define FEISHU_ROLE_WORKER			BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define FEISHU_WORKERS_NEED_LOGIN	1
#define FEISHU_ROLE_WORKER			0
#endif

/*
 * Set-returning functions in one go: 15.0 knows the function by its first
 * name only, which later releases of 15 keep.
 */
#include "funcapi.h"
#if PG_VERSION_NUM < 160000
#define InitMaterializedSRF(fcinfo, flags) SetSingleFuncCall((fcinfo), (flags))
#endif

/*
 * ExecutorRun and its hook: before 18 they are told, too, whether it is for the only
 * time.
 */
#if PG_VERSION_NUM >= 180000
#define FEISHU_EXECUTOR_RUN_PARAMETERS \
	QueryDesc *queryDesc, ScanDirection direction, uint64 count
#define FEISHU_EXECUTOR_RUN_ARGUMENTS queryDesc, direction, count
#else
#define FEISHU_EXECUTOR_RUN_PARAMETERS \
	QueryDesc *queryDesc, ScanDirection direction, uint64 count, bool execute_once
#define FEISHU_EXECUTOR_RUN_ARGUMENTS queryDesc, direction, count, execute_once
#endif

/*
 * IGNORE NULLS: 19 has it for window functions, and each says whether it takes it.
 */
#if PG_VERSION_NUM >= 190000
#define feishu_window_refuse_null_treatment(window, fcinfo) \
	WinCheckAndInitializeNullTreatment((window), false, (fcinfo))
#else
#define feishu_window_refuse_null_treatment(window, fcinfo) ((void) 0)
#endif

/*
 * Ownership: 16 replaced the functions of each kind of object by one.
 */
#if PG_VERSION_NUM >= 160000
#define feishu_database_ownercheck(databaseid, userid) \
	object_ownercheck(DatabaseRelationId, (databaseid), (userid))
#else
#define feishu_database_ownercheck(databaseid, userid) \
	pg_database_ownercheck((databaseid), (userid))
#endif

/*
 * May the current user create databases?  16 exports its function; 15 does so
 * from some release on that is newer than 15.18.  See compat.c for 15.
 */
#if PG_VERSION_NUM >= 160000
#include "commands/dbcommands.h"
#define feishu_have_createdb() have_createdb_privilege()
#else
extern bool feishu_have_createdb(void);
#endif

/*
 * Number of a process: 17 gave it a type, and the own one a variable.
 */
#if PG_VERSION_NUM < 170000
typedef int ProcNumber;

#define INVALID_PROC_NUMBER		(-1)
#define MyProcNumber			(MyProc->pgprocno)
#endif

/*
 * 19 lets DDL statements on a database end the background workers in it that
 * allow it.  Before, and for a quick answer after, see launcher_ddl.c.
 */
#if PG_VERSION_NUM < 190000
#define BGWORKER_INTERRUPTIBLE	0
#endif

/*
 * A database whose DROP was interrupted: known since 15.4.
 */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB	(-2)
#endif

/*
 * Closest match to a misspelt option: 16 has it.  For 15, the same rule: the
 * smallest Levenshtein distance, at most max_d and less than half of the
 * source's length.
 */
#include "utils/varlena.h"
#if PG_VERSION_NUM < 160000
typedef struct ClosestMatchState
{
	const char *source;
	int			min_d;
	int			max_d;
	const char *match;
} ClosestMatchState;

static inline void
initClosestMatch(ClosestMatchState *state, const char *source, int max_d)
{
	state->source = source;
	state->min_d = -1;
	state->max_d = max_d;
	state->match = NULL;
}

static inline void
updateClosestMatch(ClosestMatchState *state, const char *candidate)
{
	int			dist;

	if (state->source == NULL || state->source[0] == '\0' ||
		strlen(state->source) > 255)
		return;
	dist = varstr_levenshtein_less_equal(state->source, strlen(state->source),
										 candidate, strlen(candidate), 1, 1, 1,
										 state->max_d, true);
	if (dist <= state->max_d && dist <= (int) strlen(state->source) / 2 &&
		(state->min_d == -1 || dist < state->min_d))
	{
		state->min_d = dist;
		state->match = candidate;
	}
}

static inline const char *
getClosestMatch(ClosestMatchState *state)
{
	return state->match;
}
#endif

#ifdef LIBCURL_VERSION_NUM

#if LIBCURL_VERSION_NUM < 0x074a00
#error "feishu_flow needs libcurl 7.74 or later"
#endif

/*
 * CURLOPT_PROTOCOLS_STR came with 7.85, and the bit mask it replaces is
 * deprecated since.
 */
#if LIBCURL_VERSION_NUM >= 0x075500
#define FEISHU_CURLOPT_PROTOCOLS	CURLOPT_PROTOCOLS_STR
#define FEISHU_CURL_PROTOCOLS		"http,https"
#else
#define FEISHU_CURLOPT_PROTOCOLS	CURLOPT_PROTOCOLS
#define FEISHU_CURL_PROTOCOLS		((long) (CURLPROTO_HTTP | CURLPROTO_HTTPS))
#endif

/*
 * CURLOPT_QUICK_EXIT came with 7.87: without it, giving up a transfer whose
 * host name is still being resolved waits for the resolver thread.
 */
#if LIBCURL_VERSION_NUM >= 0x075700
#define FEISHU_HAVE_CURL_QUICK_EXIT 1
#endif

/*
 * CURLOPT_CA_CACHE_TIMEOUT came with 7.87, and with it that the authorities
 * are kept for a day: before, each new connection reads them.
 */
#if LIBCURL_VERSION_NUM >= 0x075700
#define FEISHU_HAVE_CURL_CA_CACHE 1
#endif

/*
 * What a libcurl at run time has to know of the options above and below.
 */
#if LIBCURL_VERSION_NUM >= 0x075700
#define FEISHU_CURL_NEEDED	0x075700
#elif LIBCURL_VERSION_NUM >= 0x075500
#define FEISHU_CURL_NEEDED	0x075500
#elif LIBCURL_VERSION_NUM >= 0x075000
#define FEISHU_CURL_NEEDED	0x075000
#else
#define FEISHU_CURL_NEEDED	0x074a00
#endif

/*
 * CURLOPT_PREREQFUNCTION came with 7.80: without it, a request that must not
 * be sent twice cannot use a kept-alive connection.
 */
#if LIBCURL_VERSION_NUM >= 0x075000
#define FEISHU_HAVE_CURL_PREREQ 1
#endif

#endif							/* LIBCURL_VERSION_NUM */

#endif							/* FEISHU_COMPAT_H */
