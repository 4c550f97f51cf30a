-- execute_flows: the surface of the window function. Nothing is sent: the arguments are wrong.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;
CREATE SERVER regress_flows FOREIGN DATA WRAPPER feishu_flow;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_flows OPTIONS (app_id 'cli_x', app_secret 'secret');
SET feishu_flow.server = 'regress_flows';

-- What PostgreSQL says of it.
SELECT feishu.execute_flows('a', 'b');
SELECT feishu.execute_flows(DISTINCT 'a', 'b') OVER ();
SELECT feishu.execute_flows('a', 'b') FILTER (WHERE true) OVER ();
SELECT 1 WHERE feishu.execute_flows('a', 'b') OVER () IS NULL;

-- Wrong arguments are values, each of its row.
\x on
SELECT id, (r).* FROM (SELECT id, feishu.execute_flows(
    CASE WHEN id > 1 THEN 'package_x__c' END, CASE WHEN id <> 2 THEN 'approve' ELSE '' END,
    operator => CASE id WHEN 3 THEN NULL WHEN 4 THEN '{"_id": "1"}'::jsonb ELSE '{"_id": 1}' END,
    params => CASE WHEN id = 5 THEN '[]'::jsonb END,
    idempotent_key => CASE WHEN id = 6 THEN '' END,
    loop_masks => CASE WHEN id = 7 THEN '"mask"'::jsonb END,
    server => CASE WHEN id = 8 THEN 'nobody' END,
    timeout => CASE WHEN id = 9 THEN interval '0' ELSE NULL END) OVER (ORDER BY id) AS r
  FROM generate_series(1, 9) AS id) AS s ORDER BY id;
\x off

-- Partitions, frames, no rows, a row type in other places.
SELECT id, (r).sqlstate FROM (SELECT id, feishu.execute_flows(NULL, 'b') OVER (PARTITION BY id % 2 ORDER BY id DESC ROWS CURRENT ROW) AS r
  FROM generate_series(1, 4) AS id) AS s;
SELECT count(*) FROM (SELECT feishu.execute_flows(NULL, 'b') OVER () FROM generate_series(1, 0)) AS s;
SELECT (feishu.execute_flows(NULL, 'b') OVER ()).error;
SELECT to_jsonb(feishu.execute_flows(NULL, 'b') OVER ()) ->> 'sqlstate' AS sqlstate;

-- An error in an argument is one of the statement.
SELECT feishu.execute_flows(NULL, (1 / (id - 2))::text) OVER () FROM generate_series(1, 3) AS id;

-- Cursors, forwards and back.
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id, (feishu.execute_flows(NULL, 'b') OVER ()).sqlstate FROM generate_series(1, 100) AS id;
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
FETCH LAST FROM c;
MOVE FIRST FROM c;
FETCH 1 FROM c;
COMMIT;

-- For each of several outer rows.
SELECT n, (SELECT count((r).error) FROM (SELECT feishu.execute_flows(NULL, n::text) OVER () AS r FROM generate_series(1, n)) AS s)
FROM generate_series(1, 3) AS n;

SET feishu_flow.max_concurrent_calls = 0;
SET feishu_flow.max_concurrent_calls = 257;
SET feishu_flow.max_concurrent_calls = 1;
SELECT count((r).error) FROM (SELECT feishu.execute_flows(NULL, 'b') OVER () AS r FROM generate_series(1, 1000)) AS s;

SET client_min_messages = warning;
DROP SERVER regress_flows CASCADE;
