-- Runs while the flow payInvoice refuses its parameters.

\set ON_ERROR_STOP on

\echo
\echo '== A flow that is refused has failed at once, and says why =='

SELECT feishu.enqueue_flow('package_7344545d87__c', 'payInvoice', params => '{"invoice": 4711}') AS id \gset

CALL wait_for_queue();

SELECT state, attempts, code, sqlstate, error FROM feishu.flows WHERE id = :id \gx
