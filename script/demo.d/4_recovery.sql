-- Runs when the platform is back.

\set ON_ERROR_STOP on

\echo
\echo '== The platform is back: all that has waited is sent =='

CALL wait_for_queue();

SELECT 'after the outage' AS "when", state, count(*), max(attempts) > 1 AS was_retried
    FROM feishu.flows WHERE params ->> 'item' LIKE 'shelf %' GROUP BY state;
