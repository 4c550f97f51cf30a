/*-------------------------------------------------------------------------
 *
 * src/app/options.h
 *	  Options of servers and user mappings: in the catalogs, and in a FlowServer.
 *
 * Private to src/app/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_OPTIONS_H
#define FEISHU_OPTIONS_H

#include "app/server.h"

/* options.c */
extern void options_store(List *options, Oid catalog, FlowServer *server);

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

/* server_catalog.c */
extern bool server_read_catalogs(const char *name, Oid userid, Snapshot snapshot,
								 ServerRows *rows);

/* sandbox_response.c: what a sandbox is to answer; NULL: the platform's own example. */
extern char *sandbox_response_of_session(const FlowServer *server);
extern char *sandbox_response_of_role(const FlowServer *server);

#endif							/* FEISHU_OPTIONS_H */
