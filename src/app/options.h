/*-------------------------------------------------------------------------
 *
 * options.h
 *	  FlowServer: a foreign server together with the credentials of one role,
 *	  as its SQL/MED options describe it.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 * src/app/options.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OPTIONS_H
#define FEISHU_OPTIONS_H

#include "nodes/pg_list.h"
#include "utils/snapshot.h"

#include "http/http.h"

#define CREDENTIAL_MAX_LENGTH	255 /* app_id, app_secret */
#define TOKEN_MAX_LENGTH		4096	/* an OAuth token is a JWT */

/* How a tenant_access_token is obtained. */
typedef enum TokenProtocol
{
	TOKEN_FIXED,				/* the user mapping holds the token itself */
	TOKEN_LEGACY,				/* JSON to .../tenant_access_token/internal */
	TOKEN_OAUTH					/* form to .../oauth/v3/token */
} TokenProtocol;

/* A rate "requests per seconds"; requests = 0 means unlimited. */
typedef struct FlowRate
{
	double		requests;		/* so many requests ... */
	int			window_ms;		/* ... in each window of this length */
} FlowRate;

/*
 * Identity of an app's credentials and of whom they are shown to: SHA-256 over
 * base_url, proxy, ca_file, and token_url, app_id and app_secret or the fixed token.
 * A token is never taken from, or given to, somebody who speaks with others.
 */
#define APP_KEY_LENGTH		32

typedef struct AppKey
{
	uint8		bytes[APP_KEY_LENGTH];
} AppKey;

/*
 * All strings are palloc'd in the context that was current at the lookup and
 * in the database encoding.  Values that the catalogs do not give are NULL,
 * or -1 for integers; base_url and token_url are always set.  base_url has no
 * trailing slash.
 */
typedef struct FlowServer
{
	Oid			serverid;
	Oid			owner;
	Oid			userid;			/* who calls */
	Oid			payer;			/* whose mapping it is; the server's owner, if
								 * it is that of PUBLIC */
	char	   *name;
	char	   *base_url;
	char	   *token_url;
	TokenProtocol protocol;
	char	   *operator_json;	/* text of the default operator, or NULL */
	int			timeout_ms;		/* or -1 */
	int			connect_timeout_ms; /* or -1 */
	FlowRate	max_rate;
	int			max_concurrency;	/* or -1 */
	char	   *ca_file;		/* or NULL */
	char	   *proxy;			/* or NULL */
	HttpVersion http_version;
	char	   *app_id;			/* or NULL with TOKEN_FIXED */
	char	   *app_secret;		/* or NULL with TOKEN_FIXED */
	char	   *fixed_token;	/* only with TOKEN_FIXED */
	AppKey		app_key;
} FlowServer;

/* options.c: check the options (a list of DefElem) of an object of a catalog. */
extern void options_check(List *options, Oid catalog);

/*
 * options.c: parse the options (a list of DefElem) of a server or user mapping
 * into a FlowServer.  Throws class HV on one that the validator would refuse.
 */
extern void options_store(List *options, Oid catalog, FlowServer *server);

/*
 * server.c: look up the server "name" (NULL: the setting feishu_flow.server) and the
 * credentials of userid, in the catalogs, now.
 *
 * Throws 42704 when there is no such server, 42809 when it belongs to another
 * wrapper, 42501 without USAGE, 42704 without a user mapping, 22023 when the
 * mapping lacks app_id, app_secret and tenant_access_token; each with a HINT
 * that says what to type.
 */
extern FlowServer *server_lookup(const char *name, Oid userid);

/* server.c: the same as a snapshot has it, which is to be registered. */
extern FlowServer *server_lookup_at(const char *name, Oid userid, Snapshot snapshot);

/* Whose user mapping a role's is. */
typedef enum MappingKind
{
	MAPPING_NONE,
	MAPPING_OWN,
	MAPPING_PUBLIC
} MappingKind;

/* A server and a mapping, as the catalogs had them at one time. */
typedef struct ServerRows
{
	Oid			serverid;
	Oid			owner;
	Oid			wrapperid;
	List	   *server_options; /* of DefElem */
	MappingKind mapping;
	List	   *mapping_options;
} ServerRows;

/*
 * server_catalog.c: read them for the server of this name and a role, as a snapshot has
 * them (NULL: as they are now); false if there is no such server.
 */
extern bool server_read_catalogs(const char *name, Oid userid, Snapshot snapshot,
								 ServerRows *rows);

/* Throw 42809 unless a server's wrapper is ours. */
extern void server_check_wrapper(Oid wrapperid, const char *server_name);

/*
 * The identity of the app in one user mapping (userid may be InvalidOid, for
 * PUBLIC), whatever anybody's rights; false when the mapping has no credentials.
 */
struct ForeignServer;
extern bool server_app_key(struct ForeignServer *foreign_server, Oid userid, AppKey *key);

/* A copy in the current memory context, secrets included. */
extern FlowServer *server_copy(const FlowServer *server);

/* Wipe the secrets of a FlowServer.  It cannot be used afterwards. */
extern void server_forget_secrets(FlowServer *server);

#endif							/* FEISHU_OPTIONS_H */
