-- Runs while the platform takes 20 requests a second.

\set ON_ERROR_STOP on

\echo
\echo '== The platform takes 20 requests a second. What it refuses is sent again when it says so =='

SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'notifyTeam', params => jsonb_build_object('n', n))) AS queued
    FROM generate_series(1, 60) AS n;

CALL wait_for_queue();

SELECT 'without max_rate' AS "when", successes, rate_limited > 0 AS was_refused
    FROM feishu.stat_flows WHERE flow_id = 'notifyTeam';

\echo
\echo '== With max_rate it has nothing to refuse =='

ALTER SERVER feishu OPTIONS (ADD max_rate '20');
SELECT pg_sleep(1), feishu.stat_reset();

SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'notifyTeam', params => jsonb_build_object('n', n))) AS queued
    FROM generate_series(1, 60) AS n;

CALL wait_for_queue();

SELECT 'with max_rate' AS "when", successes, rate_limited > 0 AS was_refused
    FROM feishu.stat_flows WHERE flow_id = 'notifyTeam';

ALTER SERVER feishu OPTIONS (DROP max_rate);
