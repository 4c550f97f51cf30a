-- Runs while the platform is down.

\set ON_ERROR_STOP on

\echo
\echo '== The platform is down, and orders are submitted all the same =='

INSERT INTO orders (item, owner_email, amount, status)
    SELECT 'shelf ' || n, 'li@example.com', 100 + n, 'submitted' FROM generate_series(1, 20) AS n;

DO $$
BEGIN
    FOR i IN 1 .. 600 LOOP
        EXIT WHEN EXISTS (SELECT FROM feishu.dispatch_status WHERE paused);
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

SELECT server, queued, paused, pause_reason FROM feishu.dispatch_status;

SELECT state, sqlstate, error, count(*) FROM feishu.flows
    WHERE finished_at IS NULL GROUP BY state, sqlstate, error ORDER BY count(*) DESC LIMIT 1;
