-- Runs after the flow payInvoice was repaired.

\set ON_ERROR_STOP on

\echo
\echo '== The flow was repaired on the platform: what it refused goes back into the queue =='

SELECT id, feishu.retry_flow(id) AS retried FROM feishu.flows
    WHERE state = 'failed' AND flow_id = 'payInvoice' AND sqlstate = 'LK400';

CALL wait_for_queue();

SELECT 'repaired' AS "when", state, attempts, error FROM feishu.flows WHERE flow_id = 'payInvoice';

\echo
\echo '== Pause for maintenance =='

SELECT feishu.pause_server('feishu');

SELECT feishu.enqueue_flow('package_7344545d87__c', 'notifyTeam', params => '{"text": "later"}') AS id \gset

SELECT * FROM feishu.dispatch_status \gx

SELECT feishu.resume_server('feishu');

SELECT feishu.wait_flow(:id) ->> 'msg' AS msg;

\echo
\echo '== All that was queued, by its end =='

SELECT flow_id, state, count(*), max(attempts) AS attempts FROM feishu.flows GROUP BY flow_id, state ORDER BY 1, 2;

\echo
\echo '== The statistics, since the restart =='

SELECT flow_id, calls, successes, refused, key_used, retries, round(mean_time::numeric, 1) AS mean_ms
    FROM feishu.stat_flows ORDER BY flow_id;

\echo
\echo '== The background workers =='

SELECT backend_type, datname, state, query FROM pg_stat_activity
    WHERE backend_type LIKE 'feishu_flow%' ORDER BY backend_type DESC;
