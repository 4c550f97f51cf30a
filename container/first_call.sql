\echo '== Is the platform there, and are the credentials good? =='

SELECT token_ok, message, hint FROM feishu.check_server();

\echo '== A call: start a flow and wait for its answer =='

SELECT feishu.execute_flow('package_7344545d87__c', 'echoParams', params => '{"total": 12.50}') AS response;

\echo '== A queued flow: this order starts its approval once it is committed =='

INSERT INTO orders (item, owner_email, status) VALUES ('desk', 'li@example.com', 'submitted');

SELECT feishu.wait_flow(max(id)) ->> 'msg' AS msg FROM feishu.flows;

SELECT id, flow_id, state, execution_id FROM feishu.flows ORDER BY id DESC LIMIT 1;
