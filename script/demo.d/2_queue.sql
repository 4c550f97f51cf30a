-- Queue it: a trigger, a rollback, a function, a handler.

\set ON_ERROR_STOP on

\echo
\echo '== The same without waiting: a trigger that queues the flow, in the transaction of the change =='

DROP TRIGGER order_approval ON orders;
ALTER TABLE orders
    DROP COLUMN execution_id,
    ADD COLUMN amount numeric(12, 2),
    ADD COLUMN status text NOT NULL DEFAULT 'draft';

CREATE TRIGGER order_approval AFTER UPDATE OF status ON orders
    FOR EACH ROW WHEN (NEW.status = 'submitted' AND OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION feishu.flow_trigger(
        'package_7344545d87__c', 'approveOrder_99c656599f',
        '{"email": "$.new.owner_email"}',
        '{"order": {"_id": "$.new.id"}, "item": "$.new.item", "amount": "$.new.amount"}',
        '{"server": "feishu", "ordering_key": "$.new.id"}');

CREATE TRIGGER new_order_approval AFTER INSERT ON orders
    FOR EACH ROW WHEN (NEW.status = 'submitted')
    EXECUTE FUNCTION feishu.flow_trigger(
        'package_7344545d87__c', 'approveOrder_99c656599f',
        '{"email": "$.new.owner_email"}',
        '{"order": {"_id": "$.new.id"}, "item": "$.new.item", "amount": "$.new.amount"}',
        '{"server": "feishu", "ordering_key": "$.new.id"}');

INSERT INTO orders (item, owner_email, amount, status)
    VALUES ('chair', 'li@example.com', 129.90, 'submitted');

SELECT feishu.wait_flow(max(id)) #>> '{data,execution_id}' AS execution_id FROM feishu.flows;

SELECT id, state, operator, params, attempts, execution_id FROM feishu.flows \gx

\echo
\echo '== A transaction that is rolled back sends nothing =='

BEGIN;
INSERT INTO orders (item, owner_email, status) VALUES ('ghost', 'li@example.com', 'submitted');
SELECT state, params FROM feishu.flows WHERE params ->> 'item' = 'ghost';
ROLLBACK;

BEGIN;
INSERT INTO orders (item, owner_email, status) VALUES ('stool', 'li@example.com', 'submitted');
SAVEPOINT before_ghost;
INSERT INTO orders (item, owner_email, status) VALUES ('ghost', 'li@example.com', 'submitted');
ROLLBACK TO SAVEPOINT before_ghost;
COMMIT;

SELECT feishu.wait_flow(max(id)) ->> 'msg' AS msg FROM feishu.flows;

SELECT count(*) FILTER (WHERE params ->> 'item' = 'ghost') AS ghosts,
       count(*) FILTER (WHERE params ->> 'item' = 'stool') AS stools
FROM feishu.flows;

\echo
\echo '== From a query: enqueue_flow. The operator is the default of the server =='

ALTER SERVER feishu OPTIONS (ADD operator '{"email": "bot@example.com"}');

SELECT feishu.enqueue_flow('package_7344545d87__c', 'echoParams', params => '{"total": 12.50}') AS id \gset

SELECT feishu.out_params(feishu.wait_flow(:id));

\echo
\echo '== Saved twice in a moment: replace_key and run_at start one flow, with the last values =='

SELECT feishu.enqueue_flow('package_7344545d87__c', 'saveOrder', params => '{"amount": 1}', replace_key => 'order 1',
    run_at => now() + '200 ms') AS id \gset
SELECT feishu.enqueue_flow('package_7344545d87__c', 'saveOrder', params => '{"amount": 2}', replace_key => 'order 1',
    run_at => now() + '200 ms') AS again \gset

SELECT feishu.wait_flow(:id) ->> 'msg' AS msg;

SELECT 'saved' AS "when", :id = :again AS replaced, count(*) AS flows, min(params ->> 'amount') AS amount
    FROM feishu.flows WHERE flow_id = 'saveOrder';

-- what follows waits with this until nothing is queued
CREATE PROCEDURE wait_for_queue() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 600 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM feishu.flows WHERE finished_at IS NULL);
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

\echo
\echo '== The end comes back: a handler writes the execution id into the row of the order. It throws at its first call =='

ALTER TABLE orders ADD COLUMN execution_id text;
CREATE TABLE journal (order_id bigint, what text);
CREATE SEQUENCE handler_calls;      -- what it counts is not rolled back

CREATE FUNCTION order_approved(flow feishu.flows) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    order_id bigint := (flow.params ->> 'order')::bigint;
BEGIN
    INSERT INTO journal VALUES (order_id, flow.state);
    UPDATE orders SET execution_id = flow.execution_id WHERE id = order_id;
    IF nextval('handler_calls') = 1 THEN
        RAISE EXCEPTION 'not yet';
    END IF;
END
$$;

SELECT feishu.enqueue_flow('package_7344545d87__c', 'approveOrder_99c656599f',
    params => '{"order": 1}', on_end => 'order_approved') AS id \gset

DO $$
BEGIN
    FOR i IN 1 .. 600 LOOP
        EXIT WHEN EXISTS (SELECT FROM feishu.flows WHERE on_end_state = 'succeeded');
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

SELECT state, on_end, on_end_state, on_end_attempts FROM feishu.flows WHERE id = :id;

SELECT f.execution_id = o.execution_id AS written_back,
       (SELECT count(*) FROM journal) AS effects, (SELECT last_value FROM handler_calls) AS calls
FROM orders o, feishu.flows f WHERE o.id = 1 AND f.id = :id;
