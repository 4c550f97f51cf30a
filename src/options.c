/*-------------------------------------------------------------------------
 *
 * options.c
 *	  SQL/MED options: the validator, and the lookup of a FlowServer.
 *
 * One table says which options there are, on which object, and how each is
 * checked and stored.  The validator runs the checks when an object is made or
 * altered; the lookup parses the same text again.  Each process remembers the
 * server it looked up last, until the catalogs say that a server, a user
 * mapping or a wrapper has changed: so an ALTER takes effect at the next call,
 * and a loop of calls need not parse and hash the same options each time.
 *
 * Secrets are options of user mappings, whose text PostgreSQL shows to nobody
 * but their user and the server's owner.  No error here quotes the value of
 * such an option.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/options.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <math.h>

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "guc.h"
#include "options.h"
#include "request.h"

PG_FUNCTION_INFO_V1(feishu_flow_validator);

#define DEFAULT_BASE_URL	"https://open.feishu.cn"
#define LEGACY_TOKEN_PATH	"/open-apis/auth/v3/tenant_access_token/internal"
#define OAUTH_TOKEN_SUFFIX	"/oauth/v3/token"

/* The wrapper is ours if its validator is; wrappers can be renamed. */
#define VALIDATOR_NAME		"feishu_flow_validator"

/*
 * Check one value and, unless server is NULL, store it.  Returns NULL, or
 * what is wrong as the end of the sentence "option "x" ...".
 */
typedef const char *(*OptionParser) (const char *value, FlowServer *server);

typedef struct FlowOption
{
	const char *name;
	Oid			catalog;		/* of the objects that have it */
	OptionParser parse;
	const char *hint;			/* how to write it */
} FlowOption;


/* ---------- Parsers ---------- */

/* RFC 3986's characters of a path, "%" included. */
static bool
is_path_char(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') || (c != '\0' && strchr("-._~!$&'()*+,;=:@%/", c) != NULL);
}

/*
 * Check "scheme://host[:port]" with, where allowed, a path.  User info, query
 * and fragment never are: secrets belong into user mappings, and the path of
 * the API is appended.
 */
static const char *
check_url(const char *url, const char *const *schemes, bool path_allowed)
{
	const char *p = NULL;
	const char *host;
	const char *authority_end;
	size_t		host_len;

	for (int i = 0; schemes[i] != NULL; i++)
	{
		size_t		len = strlen(schemes[i]);

		if (pg_strncasecmp(url, schemes[i], len) == 0 && strncmp(url + len, "://", 3) == 0)
			p = url + len + 3;
	}
	if (p == NULL)
		return gettext_noop("must begin with a supported scheme");

	authority_end = p + strcspn(p, "/?#");
	if (memchr(p, '@', authority_end - p) != NULL)
		return gettext_noop("must not contain user info");
	if (strchr(url, '?') != NULL || strchr(url, '#') != NULL)
		return gettext_noop("must not contain a query or a fragment");

	host = p;
	if (*p == '[')
	{
		host++;
		p++;
		host_len = strspn(p, "0123456789abcdefABCDEF:.");
		p += host_len;
		if (*p++ != ']')
			return gettext_noop("has a malformed IPv6 address");
	}
	else
	{
		host_len = strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._");
		p += host_len;
	}
	if (host_len == 0 || host_len > 253)
		return gettext_noop("must name a host");
	if (*p == ':')
	{
		size_t		digits = strspn(p + 1, "0123456789");
		int			port = digits >= 1 && digits <= 5 ? atoi(p + 1) : 0;

		if (port < 1 || port > 65535)
			return gettext_noop("has a malformed port");
		p += 1 + digits;
	}
	if (p != authority_end)
		return gettext_noop("has a malformed host name");
	if (!path_allowed && *p != '\0' && strcmp(p, "/") != 0)
		return gettext_noop("must not contain a path");
	for (; *p != '\0'; p++)
	{
		if (!is_path_char(*p))
			return gettext_noop("contains a character that must be percent-encoded");
	}
	return NULL;
}

static const char *const http_schemes[] = {"http", "https", NULL};
static const char *const proxy_schemes[] = {"http", "https", "socks5", "socks5h", NULL};

static const char *
parse_base_url(const char *value, FlowServer *server)
{
	const char *problem = check_url(value, http_schemes, true);

	if (problem == NULL && server != NULL)
	{
		size_t		len = strlen(value);

		while (len > 0 && value[len - 1] == '/')
			len--;
		server->base_url = pnstrdup(value, len);
	}
	return problem;
}

static const char *
parse_token_url(const char *value, FlowServer *server)
{
	const char *problem = check_url(value, http_schemes, true);

	if (problem == NULL && server != NULL)
		server->token_url = pstrdup(value);
	return problem;
}

static const char *
parse_proxy(const char *value, FlowServer *server)
{
	const char *problem = check_url(value, proxy_schemes, false);

	if (problem == NULL && server != NULL)
		server->proxy = pstrdup(value);
	return problem;
}

static const char *
parse_operator(const char *value, FlowServer *server)
{
	Jsonb	   *operator_id;

	if (server != NULL)
	{
		server->operator_json = pstrdup(value);
		return NULL;
	}
	if (!feishu_jsonb_from_cstring(pstrdup(value), &operator_id))
		return gettext_noop("is not valid JSON");
	return request_check_operator(operator_id);
}

/* A positive time, in ms when no unit is given. */
static const char *
parse_duration(const char *value, int *ms)
{
	int			result;

	if (!parse_int(value, &result, GUC_UNIT_MS, NULL) || result < 1)
		return gettext_noop("is not a positive length of time");
	if (ms != NULL)
		*ms = result;
	return NULL;
}

static const char *
parse_timeout(const char *value, FlowServer *server)
{
	return parse_duration(value, server ? &server->timeout_ms : NULL);
}

static const char *
parse_connect_timeout(const char *value, FlowServer *server)
{
	return parse_duration(value, server ? &server->connect_timeout_ms : NULL);
}

/* "50", "0.5", "50/s", "1000/min", "5000/h" */
static const char *
parse_max_rate(const char *value, FlowServer *server)
{
	static const struct
	{
		const char *unit;
		int			window_ms;
	}			units[] =
	{
		{"", 1000},
		{"/s", 1000},
		{"/sec", 1000},
		{"/min", 60 * 1000},
		{"/h", 60 * 60 * 1000}
	};
	const char *problem = gettext_noop("is not a rate");
	double		requests;
	char	   *end;

	if (!(value[0] >= '0' && value[0] <= '9'))
		return problem;
	requests = strtod(value, &end);
	for (int i = 0; i < (int) lengthof(units); i++)
	{
		if (strcmp(end, units[i].unit) != 0)
			continue;
		if (isinf(requests) || isnan(requests) || requests > 1e6 ||
			requests * 1000 / units[i].window_ms < 1e-5)
			return gettext_noop("is out of range");
		if (server != NULL)
		{
			server->max_rate.requests = requests;
			server->max_rate.window_ms = units[i].window_ms;
		}
		return NULL;
	}
	return problem;
}

static const char *
parse_max_concurrency(const char *value, FlowServer *server)
{
	int			result;

	if (!parse_int(value, &result, 0, NULL) || result < 1)
		return gettext_noop("is not a positive integer");
	if (server != NULL)
		server->max_concurrency = result;
	return NULL;
}

static const char *
parse_ca_file(const char *value, FlowServer *server)
{
	if (!is_absolute_path(value))
		return gettext_noop("is not an absolute path");
	if (server != NULL)
		server->ca_file = pstrdup(value);
	return NULL;
}

/* A credential: visible ASCII, so that it fits into a header or JSON as is. */
static const char *
check_credential(const char *value, size_t max_len)
{
	size_t		len = strlen(value);

	if (len == 0)
		return gettext_noop("must not be empty");
	if (len > max_len)
		return gettext_noop("is too long");
	for (size_t i = 0; i < len; i++)
	{
		if (value[i] <= ' ' || value[i] >= 0x7f)
			return gettext_noop("contains a blank or a character that is not ASCII");
	}
	return NULL;
}

static const char *
parse_app_id(const char *value, FlowServer *server)
{
	if (server != NULL)
		server->app_id = pstrdup(value);
	return check_credential(value, CREDENTIAL_MAX_LENGTH);
}

static const char *
parse_app_secret(const char *value, FlowServer *server)
{
	if (server != NULL)
		server->app_secret = pstrdup(value);
	return check_credential(value, CREDENTIAL_MAX_LENGTH);
}

static const char *
parse_tenant_access_token(const char *value, FlowServer *server)
{
	if (server != NULL)
		server->fixed_token = pstrdup(value);
	return check_credential(value, TOKEN_MAX_LENGTH);
}

static const FlowOption flow_options[] =
{
	{"base_url", ForeignServerRelationId, parse_base_url,
	gettext_noop("Write it like \"https://open.feishu.cn\" or \"https://open.larksuite.com\".")},
	{"token_url", ForeignServerRelationId, parse_token_url,
	gettext_noop("Write it like \"https://accounts.feishu.cn/oauth/v3/token\".")},
	{"operator", ForeignServerRelationId, parse_operator,
	gettext_noop("Write it like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}'.")},
	{"timeout", ForeignServerRelationId, parse_timeout,
	gettext_noop("Write it like \"30s\" or \"500ms\".")},
	{"connect_timeout", ForeignServerRelationId, parse_connect_timeout,
	gettext_noop("Write it like \"5s\" or \"500ms\".")},
	{"max_rate", ForeignServerRelationId, parse_max_rate,
	gettext_noop("Write requests per second like \"50\" or \"0.5\", or with a unit like \"1000/min\".")},
	{"max_concurrency", ForeignServerRelationId, parse_max_concurrency,
	gettext_noop("Write the number of requests that may be under way at once.")},
	{"ca_file", ForeignServerRelationId, parse_ca_file,
	gettext_noop("Write the absolute path of a PEM file on the database host.")},
	{"proxy", ForeignServerRelationId, parse_proxy,
	gettext_noop("Write it like \"http://proxy.example.com:3128\"; schemes are http, https, socks5 and socks5h.")},
	{"app_id", UserMappingRelationId, parse_app_id, NULL},
	{"app_secret", UserMappingRelationId, parse_app_secret, NULL},
	{"tenant_access_token", UserMappingRelationId, parse_tenant_access_token, NULL}
};


/* ---------- Validator ---------- */

/* Throw that there is no such option, with the nearest one or all of them. */
static void
report_unknown_option(const char *name, Oid catalog)
{
	ClosestMatchState match;
	const char *closest;
	bool		has_any = false;

	initClosestMatch(&match, name, 4);
	for (int i = 0; i < (int) lengthof(flow_options); i++)
	{
		if (flow_options[i].catalog == catalog)
		{
			has_any = true;
			updateClosestMatch(&match, flow_options[i].name);
		}
	}
	closest = getClosestMatch(&match);

	for (int i = 0; closest == NULL && i < (int) lengthof(flow_options); i++)
	{
		if (strcmp(flow_options[i].name, name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", name),
					 flow_options[i].catalog == UserMappingRelationId ?
					 errhint("It is an option of user mappings: CREATE USER MAPPING ... OPTIONS (%s '...').", name) :
					 errhint("It is an option of servers: CREATE SERVER ... OPTIONS (%s '...').", name)));
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 !has_any ? errhint("There are no valid options in this context.") :
			 closest ? errhint("Perhaps you meant the option \"%s\".", closest) :
			 catalog == ForeignServerRelationId ?
			 errhint("Options of a server are base_url, token_url, operator, timeout, connect_timeout, max_rate, max_concurrency, ca_file and proxy.") :
			 errhint("Options of a user mapping are app_id, app_secret and tenant_access_token.")));
}

static const FlowOption *
find_option(const char *name, Oid catalog)
{
	for (int i = 0; i < (int) lengthof(flow_options); i++)
	{
		if (flow_options[i].catalog == catalog && strcmp(flow_options[i].name, name) == 0)
			return &flow_options[i];
	}
	return NULL;
}

/* A user mapping has either an app's id and secret or a token. */
static void
check_credentials_complete(List *options)
{
	bool		has_id = false;
	bool		has_secret = false;
	bool		has_token = false;
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		has_id |= strcmp(option->defname, "app_id") == 0;
		has_secret |= strcmp(option->defname, "app_secret") == 0;
		has_token |= strcmp(option->defname, "tenant_access_token") == 0;
	}
	if (has_token && (has_id || has_secret))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("a user mapping cannot have tenant_access_token together with app_id or app_secret"),
				 errhint("Give app_id and app_secret, from which tokens are obtained, or a fixed tenant_access_token.")));
	if (!has_token && !(has_id && has_secret))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 has_id ? errmsg("option \"app_secret\" is missing") :
				 has_secret ? errmsg("option \"app_id\" is missing") :
				 errmsg("options \"app_id\" and \"app_secret\" are missing"),
				 errhint("Write OPTIONS (app_id 'cli_...', app_secret '...').")));
}

/*
 * feishu_flow_validator(options, catalog): throws an error of class HV when
 * an option is unknown, malformed or missing.
 */
Datum
feishu_flow_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = lfirst_node(DefElem, cell);
		const FlowOption *option = find_option(def->defname, catalog);
		const char *problem;

		if (option == NULL)
			report_unknown_option(def->defname, catalog);
		problem = option->parse(defGetString(def), NULL);
		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("option \"%s\" %s", def->defname, _(problem)),
					 option->hint ? errhint("%s", _(option->hint)) : 0));
	}
	if (catalog == UserMappingRelationId)
		check_credentials_complete(options);

	PG_RETURN_VOID();
}


/* ---------- Lookup ---------- */

/* Store the options of one object into a FlowServer. */
static void
store_options(List *options, Oid catalog, FlowServer *server)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = lfirst_node(DefElem, cell);
		const FlowOption *option = find_option(def->defname, catalog);

		/* unchecked options can come from a wrapper without its validator */
		if (option == NULL)
			report_unknown_option(def->defname, catalog);
		if (option->parse(defGetString(def), server) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("option \"%s\" of server \"%s\" is invalid",
							def->defname, server->name)));
	}
}

static bool
has_suffix(const char *text, const char *suffix)
{
	size_t		text_len = strlen(text);
	size_t		suffix_len = strlen(suffix);

	return text_len >= suffix_len &&
		strcmp(text + text_len - suffix_len, suffix) == 0;
}

/* Throw unless the user has credentials on the server. */
static void
check_user_mapping(const FlowServer *server)
{
	if (SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							  ObjectIdGetDatum(server->userid),
							  ObjectIdGetDatum(server->serverid)) ||
		SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							  ObjectIdGetDatum(InvalidOid),
							  ObjectIdGetDatum(server->serverid)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("role \"%s\" has no user mapping for server \"%s\"",
					GetUserNameFromId(server->userid, false), server->name),
			 errhint("Create one: CREATE USER MAPPING FOR %s SERVER %s OPTIONS (app_id 'cli_...', app_secret '...').",
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

static void
compute_app_key(FlowServer *server)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
	bool		ok;

	ok = hash != NULL && pg_cryptohash_init(hash) >= 0 &&
		hash_part(hash, server->base_url) &&
		hash_part(hash, server->token_url) &&
		hash_part(hash, server->app_id) &&
		hash_part(hash, server->app_secret) &&
		pg_cryptohash_final(hash, server->app_key.bytes, APP_KEY_LENGTH) >= 0;
	if (hash != NULL)
		pg_cryptohash_free(hash);
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute a SHA-256 hash")));
}

/* Throw unless the server belongs to our wrapper. */
static void
check_wrapper(const ForeignServer *foreign_server)
{
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(foreign_server->fdwid);
	char	   *validator = NULL;

	if (OidIsValid(wrapper->fdwvalidator))
		validator = get_func_name(wrapper->fdwvalidator);
	if (validator == NULL || strcmp(validator, VALIDATOR_NAME) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" does not belong to the wrapper feishu_flow",
						foreign_server->servername),
				 errdetail("Its foreign-data wrapper is \"%s\".", wrapper->fdwname)));
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

/* Read a server and a role's credentials from the catalogs. */
static FlowServer *
read_server(const char *name, Oid userid, bool by_setting)
{
	FlowServer *server = palloc0(sizeof(FlowServer));
	ForeignServer *foreign_server;

	server->name = pstrdup(name);
	server->userid = userid;
	server->timeout_ms = -1;
	server->connect_timeout_ms = -1;
	server->max_concurrency = -1;

	foreign_server = GetForeignServerByName(name, true);
	if (foreign_server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 by_setting ?
				 errhint("Create it: CREATE SERVER %s FOREIGN DATA WRAPPER feishu_flow; or name another by the server argument or the setting feishu_flow.server.",
						 quote_identifier(name)) :
				 errhint("Create it: CREATE SERVER %s FOREIGN DATA WRAPPER feishu_flow.",
						 quote_identifier(name))));
	server->serverid = foreign_server->serverid;
	check_wrapper(foreign_server);
	check_usage(server->serverid, name, userid);
	check_user_mapping(server);

	store_options(foreign_server->options, ForeignServerRelationId, server);
	store_options(GetUserMapping(userid, server->serverid)->options,
				  UserMappingRelationId, server);

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
	if (server->protocol != TOKEN_FIXED)
		compute_app_key(server);
	return server;
}

/* A copy in the current memory context. */
static FlowServer *
copy_server(const FlowServer *server)
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
	COPY_STRING(app_id);
	COPY_STRING(app_secret);
	COPY_STRING(fixed_token);
	return copy;
}

/* The server looked up last, in memory_of_last; NULL: none. */
static FlowServer *last_server = NULL;
static MemoryContext memory_of_last = NULL;

/*
 * Syscache callback: a server, a user mapping or a wrapper has changed.  The
 * memory is freed at the next lookup, for this may come while it is copied.
 */
static void
forget_last_server(Datum arg, int cacheid, uint32 hashvalue)
{
	last_server = NULL;
}

static void
remember_server(const FlowServer *server)
{
	MemoryContext old_context;

	if (memory_of_last == NULL)
	{
		memory_of_last = AllocSetContextCreate(TopMemoryContext, "feishu_flow server",
											   ALLOCSET_SMALL_SIZES);
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget_last_server, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, forget_last_server, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, forget_last_server, (Datum) 0);
	}
	last_server = NULL;
	MemoryContextReset(memory_of_last);
	old_context = MemoryContextSwitchTo(memory_of_last);
	last_server = copy_server(server);
	MemoryContextSwitchTo(old_context);
}

FlowServer *
options_lookup_server(const char *name, Oid userid)
{
	FlowServer *server;
	bool		by_setting = name == NULL;

	if (by_setting)
		name = feishu_guc_server;

	if (last_server != NULL && last_server->userid == userid &&
		strcmp(last_server->name, name) == 0)
	{
		/* rights can change by role membership, too: look each time */
		Oid			serverid = last_server->serverid;

		check_usage(serverid, name, userid);
		if (last_server != NULL)
			return copy_server(last_server);
	}

	server = read_server(name, userid, by_setting);
	remember_server(server);
	return server;
}

void
options_forget_secrets(FlowServer *server)
{
	if (server->app_secret != NULL)
		explicit_bzero(server->app_secret, strlen(server->app_secret));
	if (server->fixed_token != NULL)
		explicit_bzero(server->fixed_token, strlen(server->fixed_token));
}
