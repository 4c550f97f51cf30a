/*-------------------------------------------------------------------------
 *
 * src/app/options.c
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
 * Check one value and, unless field is NULL, store it.  Returns NULL, or what is wrong,
 * as a sentence with %s for the option's name.
 */
typedef const char *(*OptionParser) (const char *value, void *field);

typedef struct FlowOption
{
	const char *name;
	Oid			catalog;		/* of the objects that have it */
	OptionParser parse;
	size_t		field;			/* of FlowServer */
	const char *hint;			/* how to write it */
} FlowOption;


/* ---------- Parsers ---------- */

/* RFC 3986's characters of a path, "%" included. */
static bool
is_path_char(unsigned char c)
{
	return (c < 0x80 && isalnum(c)) || (c != '\0' && strchr("-._~!$&'()*+,;=:@%/", c) != NULL);
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
		return path_allowed ? gettext_noop("option \"%s\" must begin with \"http://\" or \"https://\"") :
			gettext_noop("option \"%s\" must begin with a supported scheme");
	fault = http_url_check(text, &url);
	if ((fault == HTTP_URL_FINE || fault == HTTP_URL_PORT) && url.host[0] != '[')
	{
		if (url.host_len > 253)
			return gettext_noop("option \"%s\" has a host name that is too long");
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
			return gettext_noop("option \"%s\" must not contain user info");
		case HTTP_URL_QUERY:
			return gettext_noop("option \"%s\" must not contain a query or a fragment");
		case HTTP_URL_NO_HOST:
			return gettext_noop("option \"%s\" must name a host");
		case HTTP_URL_HOST:
			return gettext_noop("option \"%s\" has a malformed host name");
		case HTTP_URL_IPV6:
			return gettext_noop("option \"%s\" has a malformed IPv6 address");
		case HTTP_URL_PORT:
			return gettext_noop("option \"%s\" has a malformed port");
	}
	if (!path_allowed && url.path[0] != '\0' && strcmp(url.path, "/") != 0)
		return gettext_noop("option \"%s\" must not contain a path");
	for (const char *p = url.path; *p != '\0'; p++)
	{
		if (!is_path_char(*p) ||
			(*p == '%' && !(isxdigit((unsigned char) p[1]) && isxdigit((unsigned char) p[2]))))
			return gettext_noop("option \"%s\" contains a character that must be percent-encoded");
	}
	return NULL;
}

static const char *const http_schemes[] = {"http", "https", NULL};
static const char *const proxy_schemes[] = {"http", "https", "socks5", "socks5h", NULL};

static void
store_text(const char *value, void *field)
{
	if (field != NULL)
		*(char **) field = pstrdup(value);
}

/* A copy of a URL without slashes at its end. */
static char *
without_slashes(const char *url)
{
	size_t		len = strlen(url);

	while (len > 0 && url[len - 1] == '/')
		len--;
	return pnstrdup(url, len);
}

static const char *
parse_http_url(const char *value, void *field)
{
	store_text(without_slashes(value), field);
	return check_url(value, http_schemes, true);
}

static const char *
parse_proxy(const char *value, void *field)
{
	store_text(without_slashes(value), field);
	return check_url(value, proxy_schemes, false);
}

#define API_PATH	"/open-apis"

static const char *
parse_base_url(const char *value, void *field)
{
	const char *problem = parse_http_url(value, field);
	char	   *url = without_slashes(value);
	size_t		len = strlen(url);

	/* what the platform's documents print in front of each path: ours begin with it */
	if (problem == NULL && len > strlen(API_PATH) &&
		strcmp(url + len - strlen(API_PATH), API_PATH) == 0)
		problem = gettext_noop("option \"%s\" must not contain the path \"/open-apis\"");
	return problem;
}

static const char *
parse_operator(const char *value, void *field)
{
	Jsonb	   *operator_id;

	store_text(value, field);
	if (field != NULL)
		return NULL;
	if (!feishu_jsonb_from_cstring(pstrdup(value), &operator_id))
		return gettext_noop("option \"%s\" is not valid JSON");
	return request_check_operator(operator_id, true);
}

/* A positive time, in ms when no unit is given. */
static const char *
parse_duration(const char *value, void *field)
{
	const char *range_hint = NULL;
	int			result;

	/* parse_int gives a hint if the value is a number beyond int */
	if (!parse_int(value, &result, GUC_UNIT_MS, &range_hint))
		return range_hint && strstr(range_hint, "integer range") ?
			gettext_noop("option \"%s\" is out of range") :
			gettext_noop("option \"%s\" is not a positive length of time");
	if (result < 1)
		return gettext_noop("option \"%s\" is not a positive length of time");
	if (field != NULL)
		*(int *) field = result;
	return NULL;
}

/* "50", "0.5", "50/s", "1000/min", "5000/h" */
static const char *
parse_max_rate(const char *value, void *field)
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
	const char *problem = gettext_noop("option \"%s\" is not a rate");
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
			return gettext_noop("option \"%s\" is out of range");
		if (field != NULL)
			*(FlowRate *) field = (FlowRate) {.requests = requests, .window_ms = units[i].window_ms};
		return NULL;
	}
	return problem;
}

static const char *
parse_max_concurrency(const char *value, void *field)
{
	int			result;

	if (value[strspn(value, "0123456789")] != '\0' ||
		!parse_int(value, &result, 0, NULL) || result < 1)
		return gettext_noop("option \"%s\" is not a positive integer");
	if (field != NULL)
		*(int *) field = result;
	return NULL;
}

static const char *
parse_ca_file(const char *value, void *field)
{
	store_text(value, field);
	return is_absolute_path(value) ? NULL : gettext_noop("option \"%s\" is not an absolute path");
}

static const char *
parse_http_version(const char *value, void *field)
{
	bool		is_2 = strcmp(value, "2") == 0;

	if (!is_2 && strcmp(value, "1.1") != 0)
		return gettext_noop("option \"%s\" is not a version of HTTP");
	if (field != NULL)
		*(HttpVersion *) field = is_2 ? HTTP_VERSION_2 : HTTP_VERSION_1_1;
	return NULL;
}

/* Just these two: feishu.dispatch_status looks for them, too. */
static const char *
parse_sandbox(const char *value, void *field)
{
	bool		is_true = strcmp(value, "true") == 0;

	if (!is_true && strcmp(value, "false") != 0)
		return gettext_noop("option \"%s\" is neither \"true\" nor \"false\"");
	if (field != NULL)
		*(bool *) field = is_true;
	return NULL;
}

/* A credential: visible ASCII, so that it fits into a header or JSON as is. */
static const char *
check_credential(const char *value, size_t max_len)
{
	size_t		len = strlen(value);

	if (len == 0)
		return gettext_noop("option \"%s\" must not be empty");
	if (len > max_len)
		return gettext_noop("option \"%s\" is too long");
	for (size_t i = 0; i < len; i++)
	{
		if (value[i] <= ' ' || value[i] >= 0x7f)
			return gettext_noop("option \"%s\" contains a blank or a character that is not ASCII");
	}
	return NULL;
}

static const char *
parse_credential(const char *value, void *field)
{
	store_text(value, field);
	return check_credential(value, CREDENTIAL_MAX_LENGTH);
}

static const char *
parse_fixed_token(const char *value, void *field)
{
	store_text(value, field);
	return check_credential(value, TOKEN_MAX_LENGTH);
}

#define DURATION_HINT \
	gettext_noop("Write it like \"30s\" or \"500ms\". Units are us, ms, s, min, h and d; a number without one is milliseconds.")

static const FlowOption flow_options[] =
{
	{"base_url", ForeignServerRelationId, parse_base_url, offsetof(FlowServer, base_url),
	gettext_noop("Write it like \"https://open.feishu.cn\" or \"https://open.larksuite.com\".")},
	{"token_url", ForeignServerRelationId, parse_http_url, offsetof(FlowServer, token_url),
	gettext_noop("Write it like \"https://accounts.feishu.cn/oauth/v3/token\".")},
	{"operator", ForeignServerRelationId, parse_operator, offsetof(FlowServer, operator_json),
	gettext_noop("Write it like '{\"_id\": 1111}' or '{\"email\": \"user@example.com\"}'.")},
	{"timeout", ForeignServerRelationId, parse_duration, offsetof(FlowServer, timeout_ms),
	DURATION_HINT},
	{"connect_timeout", ForeignServerRelationId, parse_duration, offsetof(FlowServer, connect_timeout_ms),
	DURATION_HINT},
	{"max_rate", ForeignServerRelationId, parse_max_rate, offsetof(FlowServer, max_rate),
	gettext_noop("Write requests per second like \"50\" or \"0.5\", or with a unit, /s, /min or /h, like \"1000/min\".")},
	{"max_concurrency", ForeignServerRelationId, parse_max_concurrency, offsetof(FlowServer, max_concurrency),
	gettext_noop("Write the number of requests that may be under way at once.")},
	{"ca_file", ForeignServerRelationId, parse_ca_file, offsetof(FlowServer, ca_file),
	gettext_noop("Write the absolute path of a PEM file on the database host.")},
	{"proxy", ForeignServerRelationId, parse_proxy, offsetof(FlowServer, proxy),
	gettext_noop("Write it like \"http://proxy.example.com:3128\"; schemes are http, https, socks5 and socks5h.")},
	{"http_version", ForeignServerRelationId, parse_http_version, offsetof(FlowServer, http_version),
	gettext_noop("Write \"1.1\" or \"2\"; without the option, 2 is used over https where it is offered.")},
	{"sandbox", ForeignServerRelationId, parse_sandbox, offsetof(FlowServer, is_sandbox),
	gettext_noop("With \"true\", calls and queued flows are answered by the extension itself, and nothing is sent.")},
	{"app_id", UserMappingRelationId, parse_credential, offsetof(FlowServer, app_id), NULL},
	{"app_secret", UserMappingRelationId, parse_credential, offsetof(FlowServer, app_secret), NULL},
	{"tenant_access_token", UserMappingRelationId, parse_fixed_token, offsetof(FlowServer, fixed_token), NULL}
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

	if (option->parse != parse_duration || value[strspn(value, "0123456789")] != '\0' ||
		parse_duration(value, &ms) != NULL || ms >= 1000)
		return;
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("option \"%s\" is %d ms", option->name, ms),
			 errhint("%s", _(option->hint))));
}

/*
 * Read one option into a server, or, with NULL, look at it alone.  Throws class HV when
 * it is unknown or malformed.  Each call under way has a copy of its server.
 */
static const FlowOption *
read_or_refuse(DefElem *def, Oid catalog, FlowServer *server)
{
	const FlowOption *option = find_option(def->defname, catalog);
	const char *value;
	const char *problem;

	if (option == NULL)
		report_unknown_option(def->defname, catalog);
	value = defGetString(def);
	if (strlen(value) > OPTION_MAX_LENGTH)
		problem = gettext_noop("option \"%s\" is longer than 8 kB");
	else
		problem = option->parse(value, server != NULL ? (char *) server + option->field : NULL);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg(problem, def->defname),
				 server == NULL ? 0 :
				 catalog == UserMappingRelationId ?
				 errdetail("It is an option of the user mapping for server \"%s\".", server->name) :
				 errdetail("It is an option of server \"%s\".", server->name),
				 option->hint ? errhint("%s", _(option->hint)) : 0));
	return option;
}

/*
 * Check the options (a list of DefElem) of an object of a catalog.
 *
 * Throws an error of class HV when an option of a catalog is unknown, malformed or
 * missing.
 */
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
 * Parse the options (a list of DefElem) of a server or user mapping.
 *
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
