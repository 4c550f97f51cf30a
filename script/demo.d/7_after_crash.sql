-- Runs after the restart.

\set ON_ERROR_STOP on

\echo
\echo '== The server is up again and has gone on. "unconfirmed": sent before the crash, so that the answer is lost;'
\echo '== sent again with the same key, which the platform refused as used =='

CALL wait_for_queue();

SELECT 'after the crash' AS "when", state, sqlstate, count(*) FROM feishu.flows
    WHERE flow_id = 'shipOrder' GROUP BY state, sqlstate ORDER BY state;

SELECT 'after the crash' AS "when", count(*) AS finished FROM feishu.flows
    WHERE flow_id = 'shipOrder' AND state IN ('succeeded', 'unconfirmed');
