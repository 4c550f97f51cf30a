/*-------------------------------------------------------------------------
 *
 * src/app/server.h
 *	  FlowServer: a foreign server together with the credentials of one role.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_SERVER_H
#define FEISHU_SERVER_H

#include "nodes/pg_list.h"
#include "utils/snapshot.h"

#include "http/http.h"

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
 * A token is never taken from, or given to, somebody who speaks with others.  That of
 * a sandbox is of the server in this database.
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
	bool		is_sandbox;		/* answers come from call/sandbox.c: there are no
								 * credentials and no limits */
	char	   *sandbox_response;	/* or NULL: as sandbox_setting_split reads it */
	char	   *app_id;			/* or NULL with TOKEN_FIXED */
	char	   *app_secret;		/* or NULL with TOKEN_FIXED */
	char	   *fixed_token;	/* only with TOKEN_FIXED */
	AppKey		app_key;
} FlowServer;

/* server.c */
extern FlowServer *server_lookup(const char *name, Oid userid);
extern FlowServer *server_lookup_at(const char *name, Oid userid, Snapshot snapshot);
extern void server_check_wrapper(Oid wrapperid, const char *server_name);

/* server_catalog.c: throw 42704, for there is no such server. */
extern void server_report_unknown(const char *name, bool by_setting);

/* server_catalog.c: is a wrapper ours, whatever its name? */
struct ForeignDataWrapper;
extern bool server_wrapper_is_ours(const struct ForeignDataWrapper *wrapper);

/* The identity of the app in one user mapping; false without credentials. */
struct ForeignServer;
extern bool server_app_key(struct ForeignServer *foreign_server, Oid userid, AppKey *key);
extern bool server_sandbox_key(struct ForeignServer *foreign_server, AppKey *key);
extern FlowServer *server_copy(const FlowServer *server);
extern void server_forget_secrets(FlowServer *server);

/* options.c */
extern void options_check(List *options, Oid catalog);

#endif							/* FEISHU_SERVER_H */
