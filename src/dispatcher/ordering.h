/*-------------------------------------------------------------------------
 *
 * src/dispatcher/ordering.h
 *	  Who is next of an ordering key.
 *
 * Private to src/dispatcher/.
 *
 * Copyright (c) 2026, feishu_flow contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef FEISHU_ORDERING_H
#define FEISHU_ORDERING_H

/*
 * In SQL: is row o first of its ordering key (of one server and role), or has none?
 * among: rows, of which it is one, as the end of a query of k; floors: a parameter
 * that is ordering_floors().  Which is first is asked once for each key of them,
 * and not before a row has a key.
 */
#define ORDERING_IS_FIRST(among, floors) \
	"(o.ordering_key IS NULL OR o.id IN (SELECT f.id" \
	" FROM (SELECT DISTINCT k.server, k.roleid, k.ordering_key " among ") k, LATERAL" \
	" (SELECT p.id FROM feishu_internal.outbox p WHERE p.server = k.server AND p.roleid = k.roleid" \
	" AND p.ordering_key = k.ordering_key AND p.state = 'q'" \
	" AND p.id >= COALESCE((" floors " ->> (k.roleid || E'\\n' || k.ordering_key" \
	" || E'\\n' || k.server))::bigint, '-9223372036854775808'::bigint)" \
	" ORDER BY p.id LIMIT 1) f))"

/* A row with an ordering key that has ended. */
typedef struct OrderingKey
{
	const char *server;
	Oid			roleid;
	const char *key;
	int64		id;
} OrderingKey;

extern Datum ordering_floors(void);
extern void ordering_expect(int64 min_id);
extern void ordering_find_successors(OrderingKey *keys, int num);

#endif							/* FEISHU_ORDERING_H */
