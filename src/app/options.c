/*-------------------------------------------------------------------------
 *
 * options.c
 *	  SQL/MED options: which there are, and how each is checked and stored.
 *
 * One table says which options there are, on which object, and how each is
 * checked and stored.  validator.c runs the checks when an object is made or
 * altered; server.c has the same parsers store the values.
 *
 * Secrets are options of user mappings, whose text PostgreSQL shows to nobody
 * but their user and the server's owner.  No error here quotes the value of
 * such an option.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/options.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <limits.h>
#include <math.h>

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"

#include "app/options.h"
#include "base/compat.h"
#include "base/nls.h"
#include "wire/wire_check.h"

/* A fixed token may have TOKEN_MAX_LENGTH; nothing else comes near. */
#define OPTION_MAX_LENGTH		8192

#define CREDENTIAL_MAX_LENGTH	255 /* app_id, app_secret */

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
 * Labels of at most 63 characters with a dot between each two, and maybe one at
 * the end.  If the last one is a number, they must be an IPv4 address: as a
 * name none of that kind is ever found.
 */
static bool
is_host_name(const char *host, size_t len)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";
	char		text[INET_ADDRSTRLEN];
	struct in_addr address;
	size_t		label_len = 0;
	size_t		digits = 0;

	if (strspn(host, chars) < len)
		return false;
	if (len > 1 && host[len - 1] == '.')
		len--;
	for (size_t i = 0; i < len; i++)
	{
		if (host[i] == '.')
		{
			if (label_len == 0)
				return false;
			label_len = digits = 0;
			continue;
		}
		if (++label_len > 63)
			return false;
		digits += isdigit((unsigned char) host[i]) != 0;
	}
	if (label_len == 0 || digits < label_len)
		return label_len > 0;
	if (len >= sizeof(text))
		return false;
	memcpy(text, host, len);
	text[len] = '\0';
	return inet_pton(AF_INET, text, &address) == 1;
}

/*
 * Check "scheme://host[:port]" with, where allowed, a path.  User info, query
 * and fragment never are: secrets belong into user mappings, and the path of
 * the API is appended.
 */
static const char *
check_url(const char *text, const char *const *schemes, bool path_allowed)
{
	HttpUrl		url;
	HttpUrlFault fault;

	while (*schemes != NULL && !http_url_has_scheme(text, *schemes))
		schemes++;
	if (*schemes == NULL)
		return path_allowed ? gettext_noop("must begin with \"http://\" or \"https://\"") :
			gettext_noop("must begin with a supported scheme");
	fault = http_url_check(text, &url);
	if ((fault == HTTP_URL_FINE || fault == HTTP_URL_PORT) && url.host[0] != '[')
	{
		if (url.host_len > 253)
			return gettext_noop("has a host name that is too long");
		if (!is_host_name(url.host, url.host_len))
			fault = HTTP_URL_HOST;
	}
	switch (fault)
	{
		case HTTP_URL_FINE:
			break;
		case HTTP_URL_MEMORY:
			ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
			break;
		case HTTP_URL_USER:
			return gettext_noop("must not contain user info");
		case HTTP_URL_QUERY:
			return gettext_noop("must not contain a query or a fragment");
		case HTTP_URL_NO_HOST:
			return gettext_noop("must name a host");
		case HTTP_URL_HOST:
			return gettext_noop("has a malformed host name");
		case HTTP_URL_IPV6:
			return gettext_noop("has a malformed IPv6 address");
		case HTTP_URL_PORT:
			return gettext_noop("has a malformed port");
	}
	if (!path_allowed && url.path[0] != '\0' && strcmp(url.path, "/") != 0)
		return gettext_noop("must not contain a path");
	for (const char *p = url.path; *p != '\0'; p++)
	{
		if (!is_path_char(*p) ||
			(*p == '%' && !(isxdigit((unsigned char) p[1]) && isxdigit((unsigned char) p[2]))))
			return gettext_noop("contains a character that must be percent-encoded");
	}
	return NULL;
}

static const char *const http_schemes[] = {"http", "https", NULL};
static const char *const proxy_schemes[] = {"http", "https", "socks5", "socks5h", NULL};

/* A copy of a URL without slashes at its end. */
static char *
without_slashes(const char *url)
{
	size_t		len = strlen(url);

	while (len > 0 && url[len - 1] == '/')
		len--;
	return pnstrdup(url, len);
}

/* Check a URL and, unless field is NULL, store it without slashes at its end. */
static const char *
parse_url(const char *value, const char *const *schemes, bool path_allowed, char **field)
{
	const char *problem = check_url(value, schemes, path_allowed);

	if (problem == NULL && field != NULL)
		*field = without_slashes(value);
	return problem;
}

#define API_PATH	"/open-apis"

static const char *
parse_base_url(const char *value, FlowServer *server)
{
	const char *problem = parse_url(value, http_schemes, true,
									server ? &server->base_url : NULL);
	char	   *url = without_slashes(value);
	size_t		len = strlen(url);

	/* what the platform's documents print in front of each path: ours begin with it */
	if (problem == NULL && len > strlen(API_PATH) &&
		strcmp(url + len - strlen(API_PATH), API_PATH) == 0)
		problem = gettext_noop("must not contain the path \"/open-apis\"");
	return problem;
}

static const char *
parse_token_url(const char *value, FlowServer *server)
{
	return parse_url(value, http_schemes, true, server ? &server->token_url : NULL);
}

static const char *
parse_proxy(const char *value, FlowServer *server)
{
	return parse_url(value, proxy_schemes, false, server ? &server->proxy : NULL);
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
	const char *range_hint = NULL;
	int			result;

	/* parse_int gives a hint if the value is a number beyond int */
	if (!parse_int(value, &result, GUC_UNIT_MS, &range_hint))
		return range_hint && strstr(range_hint, "integer range") ?
			gettext_noop("is out of range") :
			gettext_noop("is not a positive length of time");
	if (result < 1)
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
	size_t		len;
	char	   *end;

	/* digits with at most one point, of all that strtod would take */
	len = strspn(value, "0123456789");
	if (len == 0)
		return problem;
	if (value[len] == '.')
	{
		size_t		digits = strspn(value + len + 1, "0123456789");

		if (digits == 0)
			return problem;
		len += 1 + digits;
	}
	requests = strtod(value, &end);
	if (end != value + len)
		return problem;
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

	if (value[strspn(value, "0123456789")] != '\0' ||
		!parse_int(value, &result, 0, NULL) || result < 1)
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

static const char *
parse_http_version(const char *value, FlowServer *server)
{
	bool		is_2 = strcmp(value, "2") == 0;

	if (!is_2 && strcmp(value, "1.1") != 0)
		return gettext_noop("is not a version of HTTP");
	if (server != NULL)
		server->http_version = is_2 ? HTTP_VERSION_2 : HTTP_VERSION_1_1;
	return NULL;
}

/* Just these two: feishu.dispatch_status looks for them, too. */
static const char *
parse_sandbox(const char *value, FlowServer *server)
{
	bool		is_true = strcmp(value, "true") == 0;

	if (!is_true && strcmp(value, "false") != 0)
		return gettext_noop("is neither \"true\" nor \"false\"");
	if (server != NULL)
		server->is_sandbox = is_true;
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

#define DURATION_HINT \
	gettext_noop("Write it like \"30s\" or \"500ms\". Units are us, ms, s, min, h and d; a number without one is milliseconds.")

static const FlowOption flow_options[] =
{
	{"base_url", ForeignServerRelationId, parse_base_url,
	gettext_noop("Write it like \"https://open.feishu.cn\" or \"https://open.larksuite.com\".")},
	{"token_url", ForeignServerRelationId, parse_token_url,
	gettext_noop("Write it like \"https://accounts.feishu.cn/oauth/v3/token\".")},
	{"operator", ForeignServerRelationId, parse_operator,
	gettext_noop("Write it like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}'.")},
	{"timeout", ForeignServerRelationId, parse_timeout,
	DURATION_HINT},
	{"connect_timeout", ForeignServerRelationId, parse_connect_timeout,
	DURATION_HINT},
	{"max_rate", ForeignServerRelationId, parse_max_rate,
	gettext_noop("Write requests per second like \"50\" or \"0.5\", or with a unit, /s, /min or /h, like \"1000/min\".")},
	{"max_concurrency", ForeignServerRelationId, parse_max_concurrency,
	gettext_noop("Write the number of requests that may be under way at once.")},
	{"ca_file", ForeignServerRelationId, parse_ca_file,
	gettext_noop("Write the absolute path of a PEM file on the database host.")},
	{"proxy", ForeignServerRelationId, parse_proxy,
	gettext_noop("Write it like \"http://proxy.example.com:3128\"; schemes are http, https, socks5 and socks5h.")},
	{"http_version", ForeignServerRelationId, parse_http_version,
	gettext_noop("Write \"1.1\" or \"2\"; without the option, 2 is used over https where it is offered.")},
	{"sandbox", ForeignServerRelationId, parse_sandbox,
	gettext_noop("With \"true\", calls and queued flows are answered by the extension itself, and nothing is sent.")},
	{"app_id", UserMappingRelationId, parse_app_id, NULL},
	{"app_secret", UserMappingRelationId, parse_app_secret, NULL},
	{"tenant_access_token", UserMappingRelationId, parse_tenant_access_token, NULL}
};


/*
 * Read an option's value into a server, or (NULL) only check it.  NULL, or what is
 * wrong with it.  Each call under way has a copy of its server.
 */
static const char *
option_read(const FlowOption *option, const char *value, FlowServer *server)
{
	if (strlen(value) > OPTION_MAX_LENGTH)
		return gettext_noop("is longer than 8 kB");
	return option->parse(value, server);
}


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
			 errhint("Options of a server are base_url, token_url, operator, timeout, connect_timeout, max_rate, max_concurrency, ca_file, proxy, http_version and sandbox.") :
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

/*
 * A user mapping has either an app's id and secret or a token.  Without any options
 * it is as pg_dump writes it for a role that may not see them; a call says then
 * that there are no credentials.
 */
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
				 errhint("Give app_id and app_secret, from which tokens are obtained, or a fixed tenant_access_token. To change from one to the other, DROP the old options in the same ALTER USER MAPPING.")));
	if (has_id != has_secret)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 has_id ? errmsg("option \"app_secret\" is missing") :
				 errmsg("option \"app_id\" is missing"),
				 errhint("Write OPTIONS (app_id 'cli_...', app_secret '...') or OPTIONS (tenant_access_token '...').")));
}

/*
 * Say how a length of time was read that looks as if it were meant in seconds.
 */
static void
warn_of_unit(const FlowOption *option, const char *value)
{
	int			ms;

	if (option->parse != parse_timeout && option->parse != parse_connect_timeout)
		return;
	if (value[strspn(value, "0123456789")] != '\0' || parse_duration(value, &ms) != NULL ||
		ms >= 1000)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("option \"%s\" is %d ms", option->name, ms),
			 errhint("%s", _(option->hint))));
}

/*
 * Read one option into a server, or, with NULL, look at it alone.  Throws class HV when
 * it is unknown or malformed.
 */
static const FlowOption *
read_or_refuse(DefElem *def, Oid catalog, FlowServer *server)
{
	const FlowOption *option = find_option(def->defname, catalog);
	const char *problem;

	if (option == NULL)
		report_unknown_option(def->defname, catalog);
	problem = option_read(option, defGetString(def), server);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 server == NULL ?
				 errmsg("option \"%s\" %s", def->defname, _(problem)) :
				 catalog == UserMappingRelationId ?
				 errmsg("option \"%s\" of the user mapping for server \"%s\" %s",
						def->defname, server->name, _(problem)) :
				 errmsg("option \"%s\" of server \"%s\" %s",
						def->defname, server->name, _(problem)),
				 option->hint ? errhint("%s", _(option->hint)) : 0));
	return option;
}

/* Throws an error of class HV when an option of a catalog is unknown, malformed or missing. */
void
options_check(List *options, Oid catalog)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *def = lfirst_node(DefElem, cell);

		warn_of_unit(read_or_refuse(def, catalog, NULL), defGetString(def));
	}
	if (catalog == UserMappingRelationId)
		check_credentials_complete(options);
}

/*
 * Throws class HV on an option that the validator would refuse: unchecked options can
 * come from a wrapper without its validator.
 */
void
options_store(List *options, Oid catalog, FlowServer *server)
{
	ListCell   *cell;

	foreach(cell, options)
		(void) read_or_refuse(lfirst_node(DefElem, cell), catalog, server);
}
