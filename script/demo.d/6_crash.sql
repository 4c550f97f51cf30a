-- The server is killed while it sends these.

\set ON_ERROR_STOP on

\echo
\echo '== 100 flows, a few at a time, and the server is killed in the middle of them =='

ALTER SYSTEM SET feishu_flow.max_in_flight = 10;
SELECT pg_reload_conf();

SELECT count(feishu.enqueue_flow('package_7344545d87__c', 'shipOrder', params => jsonb_build_object('order', n))) AS queued
    FROM generate_series(1, 100) AS n;
