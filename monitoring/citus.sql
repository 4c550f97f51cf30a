-- feishu.dispatch_status and feishu.flows of all nodes of a Citus cluster, with the node of each row.
-- Run it on the coordinator, as a superuser, in the database with the extension.
--
-- A row without a state or a server stands for a node that could not be asked; its error says why.

CREATE SCHEMA feishu_all;
REVOKE ALL ON SCHEMA feishu_all FROM PUBLIC;
GRANT USAGE ON SCHEMA feishu_all TO pg_monitor;

CREATE FUNCTION feishu_all.ask(query text) RETURNS TABLE (node text, error text, answer jsonb)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT n.nodename || ':' || n.nodeport, CASE WHEN NOT r.success THEN r.result END, a.value
    FROM pg_catalog.run_command_on_all_nodes(
            'SELECT coalesce(jsonb_agg(to_jsonb(q)), ''[]'') FROM (' || query || ') AS q',
            give_warning_for_connection_errors => true) AS r
        JOIN pg_catalog.pg_dist_node AS n ON n.nodeid = r.nodeid
        LEFT JOIN LATERAL jsonb_array_elements(CASE WHEN r.success THEN r.result::jsonb END) AS a ON true
    WHERE NOT r.success OR a.value IS NOT NULL
$$;

CREATE VIEW feishu_all.dispatch_status AS
SELECT a.node, a.error, d.*
FROM feishu_all.ask('SELECT * FROM feishu.dispatch_status') AS a,
    jsonb_populate_record(NULL::feishu.dispatch_status, a.answer) AS d;

-- Without params, answers and other large values: they are on the node.
CREATE VIEW feishu_all.flows AS
SELECT a.node, a.error AS node_error, f.id, f.state, f.server, f.role, f.namespace, f.flow_id, f.idempotent_key,
    f.ordering_key, f.created_at, f.run_at, f.expires_at, f.attempts, f.max_attempts, f.finished_at, f.execution_id,
    f.flow_status, f.sqlstate, f.error, f.on_end_state
FROM feishu_all.ask('SELECT id, state, server, role, namespace, flow_id, idempotent_key, ordering_key, created_at, run_at,
        expires_at, attempts, max_attempts, finished_at, execution_id, flow_status, sqlstate, error, on_end_state
        FROM feishu.flows') AS a,
    jsonb_populate_record(NULL::feishu.flows, a.answer) AS f;

GRANT SELECT ON feishu_all.dispatch_status, feishu_all.flows TO pg_monitor;
