-- Runs when the platform is back.

\set ON_ERROR_STOP on

\echo
\echo '== The platform is back: all that has waited is sent =='

CALL wait_for_queue();

SELECT 'after the outage' AS "when", state, count(*), max(attempts) > 1 AS was_retried
    FROM feishu.flows WHERE params ->> 'item' LIKE 'shelf %' GROUP BY state;

\echo
\echo '== What went wrong with one of them, an attempt a row; and what is wrong now: nothing =='

SELECT 'first attempt' AS "when", attempt, sqlstate, error FROM feishu.attempts
    WHERE flow = (SELECT min(id) FROM feishu.flows WHERE params ->> 'item' LIKE 'shelf %') AND attempt = 1;

SELECT 'after the outage' AS "when", count(*) AS problems FROM feishu.problems;
