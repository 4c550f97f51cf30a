/*-------------------------------------------------------------------------
 *
 * src/app/server.c
 *	  Lookup of a foreign server together with the credentials of a role.
 *
 * Each process remembers the server it looked up last, until the catalogs say
 * that a server, a user mapping or a wrapper has changed: so an ALTER takes
 * effect at the next call, and a loop of calls need not parse and hash the
 * same options each time.  Rights are looked at each time.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/stat.h>

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "common/cryptohash.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "parser/scansup.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "app/options.h"
#include "base/compat.h"
#include "base/guc.h"
#include "base/nls.h"

#define DEFAULT_BASE_URL	"https://open.feishu.cn"
#define LEGACY_TOKEN_PATH	"/open-apis/auth/v3/tenant_access_token/internal"
#define OAUTH_TOKEN_SUFFIX	"/oauth/v3/token"

/* Does text end so? */
static bool
has_suffix(const char *text, const char *suffix)
{
	size_t		text_len = strlen(text);
	size_t		suffix_len = strlen(suffix);

	return text_len >= suffix_len &&
		strcmp(text + text_len - suffix_len, suffix) == 0;
}

/* Throw that the user has no credentials on the server. */
static void
report_no_mapping(const FlowServer *server)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("role \"%s\" has no user mapping for server \"%s\"",
					GetUserNameFromId(server->userid, false), server->name),
			 errhint("Create one: CREATE USER MAPPING FOR %s SERVER %s OPTIONS (app_id 'cli_...', app_secret '...'). One for PUBLIC serves all roles that have none of their own.",
					 quote_identifier(GetUserNameFromId(server->userid, false)),
					 quote_identifier(server->name))));
}

/* Add one part to a hash, with its length, so that parts cannot run together. */
static bool
hash_part(pg_cryptohash_ctx *hash, const char *part)
{
	uint32		len = strlen(part);

	return pg_cryptohash_update(hash, (uint8 *) &len, sizeof(len)) >= 0 &&
		pg_cryptohash_update(hash, (const uint8 *) part, len) >= 0;
}

/* The identity of an app. */
static bool
hash_credentials(pg_cryptohash_ctx *hash, const FlowServer *server)
{
	return hash_part(hash, server->base_url) &&
		hash_part(hash, server->proxy != NULL ? server->proxy : "") &&
		hash_part(hash, server->ca_file != NULL ? server->ca_file : "") &&
		(server->protocol == TOKEN_FIXED ?
		 hash_part(hash, "fixed") &&
		 hash_part(hash, server->fixed_token) :
		 hash_part(hash, server->token_url) &&
		 hash_part(hash, server->app_id) &&
		 hash_part(hash, server->app_secret));
}

/* The identity of a sandbox: pauses that one is tried out with are its own. */
static bool
hash_sandbox(pg_cryptohash_ctx *hash, const FlowServer *server)
{
	char		oids[32];

	snprintf(oids, sizeof(oids), "%u/%u", MyDatabaseId, server->serverid);
	return hash_part(hash, "sandbox") && hash_part(hash, oids);
}

static void
compute_app_key(FlowServer *server)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	bool		ok;

	ok = hash != NULL && pg_cryptohash_init(hash) >= 0 &&
		(server->is_sandbox ? hash_sandbox(hash, server) : hash_credentials(hash, server)) &&
		pg_cryptohash_final(hash, server->app_key.bytes, APP_KEY_LENGTH) >= 0;
	if (hash != NULL)
		pg_cryptohash_free(hash);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a SHA-256 hash")));
}

/* Throw 42809 unless a server's wrapper is ours. */
void
server_check_wrapper(Oid wrapperid, const char *server_name)
{
	ForeignDataWrapper *wrapper = GetForeignDataWrapperExtended(wrapperid, FDW_MISSING_OK);

	if (wrapper == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", server_name)));
	if (!server_wrapper_is_ours(wrapper))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" does not belong to the wrapper feishu_flow",
						server_name),
				 errdetail("Its foreign-data wrapper is \"%s\".", wrapper->fdwname),
				 errhint("Name a server that was made with FOREIGN DATA WRAPPER feishu_flow.")));
}

/* Throw unless the user has USAGE on the server. */
static void
check_usage(Oid serverid, const char *name, Oid userid)
{
	if (feishu_server_aclcheck(serverid, userid) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", name),
				 errhint("Let its owner run: GRANT USAGE ON FOREIGN SERVER %s TO %s.",
						 quote_identifier(name),
						 quote_identifier(GetUserNameFromId(userid, false)))));
}

/* Fill in what follows from the options. */
static void
complete_server(FlowServer *server)
{
	if (server->base_url == NULL)
		server->base_url = pstrdup(DEFAULT_BASE_URL);
	if (server->token_url == NULL)
		server->token_url = psprintf("%s" LEGACY_TOKEN_PATH, server->base_url);
	if (server->fixed_token != NULL)
		server->protocol = TOKEN_FIXED;
	else if (has_suffix(server->token_url, OAUTH_TOKEN_SUFFIX))
		server->protocol = TOKEN_OAUTH;
	else
		server->protocol = TOKEN_LEGACY;
	if (server->is_sandbox)
	{
		server->max_rate.requests = 0;
		server->max_concurrency = -1;
	}
	compute_app_key(server);
}

/*
 * userid may be InvalidOid, for PUBLIC.  Whatever anybody's rights.
 */
bool
server_app_key(ForeignServer *foreign_server, Oid userid, AppKey *key)
{
	FlowServer	server = {0};

	server.name = foreign_server->servername;
	options_store(foreign_server->options, ForeignServerRelationId, &server);
	options_store(GetUserMapping(userid, foreign_server->serverid)->options,
				  UserMappingRelationId, &server);
	if (server.fixed_token == NULL && (server.app_id == NULL || server.app_secret == NULL))
	{
		server_forget_secrets(&server);
		return false;
	}
	complete_server(&server);
	*key = server.app_key;
	server_forget_secrets(&server);
	return true;
}

/*
 * The same of a server that is a sandbox, which needs no mapping; false: it is none.
 */
bool
server_sandbox_key(ForeignServer *foreign_server, AppKey *key)
{
	FlowServer	server = {0};

	server.serverid = foreign_server->serverid;
	server.name = foreign_server->servername;
	options_store(foreign_server->options, ForeignServerRelationId, &server);
	if (!server.is_sandbox)
		return false;
	complete_server(&server);
	*key = server.app_key;
	return true;
}

/*
 * libcurl opens the file itself, with signals blocked: it must not be one that
 * can make it wait.  Whether it can be read is seen, and told, then.
 */
static void
check_ca_file(const FlowServer *server)
{
	struct stat st;

	if (server->is_sandbox || server->ca_file == NULL || stat(server->ca_file, &st) != 0 || S_ISREG(st.st_mode))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("option \"%s\" of server \"%s\" does not name a regular file",
					"ca_file", server->name),
			 errhint("Set it to the PEM file of a CA.")));
}

/* Throw that there is a user mapping without an app or a token. */
static void
report_no_credentials(const FlowServer *server, bool is_own)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("user mapping for server \"%s\" has no credentials", server->name),
			 errdetail("It was created without OPTIONS, or by a dump of a role that may not see them."),
			 errhint("Add them: ALTER USER MAPPING FOR %s SERVER %s OPTIONS (ADD app_id 'cli_...', ADD app_secret '...').",
					 is_own ? quote_identifier(GetUserNameFromId(server->userid, false)) : "PUBLIC",
					 quote_identifier(server->name))));
}

/* Read a server and a role's credentials from the catalogs. */
static FlowServer *
read_server(const char *name, Oid userid, bool by_setting, Snapshot snapshot)
{
	FlowServer *server = palloc0(sizeof(FlowServer));
	ServerRows	rows;

	server->name = pstrdup(name);
	server->userid = userid;
	server->timeout_ms = -1;
	server->connect_timeout_ms = -1;
	server->max_concurrency = -1;

	if (!server_read_catalogs(name, userid, snapshot, &rows))
		server_report_unknown(name, by_setting);
	server->serverid = rows.serverid;
	server->owner = rows.owner;
	server_check_wrapper(rows.wrapperid, name);
	check_usage(server->serverid, name, userid);
	options_store(rows.server_options, ForeignServerRelationId, server);
	if (server->is_sandbox)
	{
		/* whatever the mapping says: with no secret at hand none can be sent */
		server->payer = rows.owner;
		complete_server(server);
		return server;
	}

	if (rows.mapping == MAPPING_NONE)
		report_no_mapping(server);
	server->payer = rows.mapping == MAPPING_OWN ? userid : rows.owner;
	options_store(rows.mapping_options, UserMappingRelationId, server);

	check_ca_file(server);

	if (server->fixed_token == NULL &&
		(server->app_id == NULL || server->app_secret == NULL))
		report_no_credentials(server, rows.mapping == MAPPING_OWN);

	complete_server(server);
	return server;
}

/* A copy in the current memory context, secrets included. */
FlowServer *
server_copy(const FlowServer *server)
{
	FlowServer *copy = palloc(sizeof(FlowServer));

	*copy = *server;
#define COPY_STRING(field) \
	if (copy->field != NULL) \
		copy->field = pstrdup(copy->field)
	COPY_STRING(name);
	COPY_STRING(base_url);
	COPY_STRING(token_url);
	COPY_STRING(operator_json);
	COPY_STRING(ca_file);
	COPY_STRING(proxy);
	COPY_STRING(sandbox_response);
	COPY_STRING(app_id);
	COPY_STRING(app_secret);
	COPY_STRING(fixed_token);
	return copy;
}

/* The server looked up last, in memory_of_last; NULL: none. */
static FlowServer *last_server = NULL;
static MemoryContext memory_of_last = NULL;

/* Counts changes of servers, user mappings and wrappers. */
static uint64 catalog_changes = 0;

/*
 * Syscache callback.  The memory is freed at the next lookup, for this may
 * come while it is copied.
 */
static void
forget_last_server(Datum arg, SysCacheIdentifier cacheid, uint32 hashvalue)
{
	last_server = NULL;
	catalog_changes++;
}

/* Reset callback of memory_of_last. */
static void
wipe_server(void *arg)
{
	server_forget_secrets(arg);
}

static void
remember_server(const FlowServer *server)
{
	MemoryContext old_context;
	MemoryContextCallback *wipe;

	last_server = NULL;
	MemoryContextReset(memory_of_last);
	old_context = MemoryContextSwitchTo(memory_of_last);
	wipe = palloc0(sizeof(MemoryContextCallback));
	last_server = server_copy(server);
	wipe->func = wipe_server;
	wipe->arg = last_server;
	MemoryContextRegisterResetCallback(memory_of_last, wipe);
	MemoryContextSwitchTo(old_context);
}

/* A copy, with what is of the session. */
static FlowServer *
server_for_session(const FlowServer *server)
{
	FlowServer *copy = server_copy(server);

	copy->sandbox_response = sandbox_response_of_session(copy);
	return copy;
}

/*
 * The server of this name, and a role's credentials, in the catalogs, now.
 *
 * name may be NULL: that of the setting feishu_flow.server.
 *
 * Throws 42704 when there is no such server, 42809 when it belongs to another wrapper,
 * 42501 without USAGE, 42704 without a user mapping or when the mapping lacks app_id,
 * app_secret and tenant_access_token; each with a HINT that says what to type.  A
 * sandbox needs none.
 */
FlowServer *
server_lookup(const char *name, Oid userid)
{
	FlowServer *server;
	uint64		changes;
	bool		by_setting = name == NULL;

	if (memory_of_last == NULL)
	{
		memory_of_last = AllocSetContextCreate(TopMemoryContext, "feishu_flow server",
											   ALLOCSET_SMALL_SIZES);
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget_last_server, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, forget_last_server, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, forget_last_server, (Datum) 0);
	}

	/* one statement may make many calls: hear of an ALTER or a REVOKE between
	 * them */
	AcceptInvalidationMessages();

	if (by_setting)
		name = feishu_guc_server;
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no server was named"),
				 errhint("Name one by the server argument or the setting feishu_flow.server.")));
	if (strlen(name) >= NAMEDATALEN)
	{
		/* as CREATE SERVER has cut it: else pauses, and keys, would be another name's */
		name = pstrdup(name);
		truncate_identifier(unconstify(char *, name), strlen(name), false);
	}

	if (last_server != NULL && last_server->userid == userid &&
		strcmp(last_server->name, name) == 0)
	{
		/* rights can change by role membership, too: look each time */
		check_usage(last_server->serverid, name, userid);
		/* looking may have told of a change */
		if (last_server != NULL)
		{
			check_ca_file(last_server);
			return server_for_session(last_server);
		}
	}

	changes = catalog_changes;
	server = read_server(name, userid, by_setting, NULL);
	/* what changed while it was read may have been read before the change */
	if (changes == catalog_changes)
		remember_server(server);
	server->sandbox_response = sandbox_response_of_session(server);
	return server;
}

/* server_lookup, as a snapshot has it, which is to be registered. */
FlowServer *
server_lookup_at(const char *name, Oid userid, Snapshot snapshot)
{
	FlowServer *server;

	AcceptInvalidationMessages();
	server = read_server(name, userid, false, snapshot);
	server->sandbox_response = sandbox_response_of_role(server);
	return server;
}

/* Wipe the secrets of a FlowServer.  It cannot be used afterwards. */
void
server_forget_secrets(FlowServer *server)
{
	if (server->app_secret != NULL)
		explicit_bzero(server->app_secret, strlen(server->app_secret));
	if (server->fixed_token != NULL)
		explicit_bzero(server->fixed_token, strlen(server->fixed_token));
}
