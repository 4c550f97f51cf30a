-- A tour of feishu_flow, made for reading: "script/demo" runs these files in their order against a private server and
-- a mock of the platform. This one calls the platform; the others queue.
-- Variables: base_url, app_id, app_secret.

\set ON_ERROR_STOP on

\echo
\echo '== Install, and say where the platform is and who calls it =='

CREATE EXTENSION feishu_flow;

CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow
    OPTIONS (base_url :'base_url');

CREATE USER MAPPING FOR CURRENT_USER SERVER feishu
    OPTIONS (app_id :'app_id', app_secret :'app_secret');

\echo
\echo '== Are the credentials good? check_server obtains a token and starts no flow =='

SELECT token_ok, http_status, code, message, hint FROM feishu.check_server() \gx

\echo
\echo '== Start a flow and wait for its answer: the example of the API document =='

CREATE TEMPORARY TABLE answer AS
SELECT feishu.execute_flow(
    'package_7344545d87__c', 'deleteObject_99c656599f',
    operator => '{"_id": 1111, "email": "apaas@bytedance.com"}',
    params   => '{"variable_rgrtgqworiginal": {"_id": 5454545}}') AS response;

SELECT jsonb_pretty(response) AS response FROM answer \g (format=unaligned)

\echo
\echo '== What the flow gave back, by name =='

SELECT feishu.out_params(response) FROM answer;

\echo
\echo '== A call that the platform refuses: an error with its reason, and what to do =='

\set ON_ERROR_STOP off

SELECT feishu.execute_flow(
    'package_7344545d87__c', 'noScope',
    operator => '{"_id": 1111}');

\echo SQLSTATE :LAST_ERROR_SQLSTATE
\set ON_ERROR_STOP on

\echo
\echo '== The same call, with the refusal returned instead of raised =='

SELECT feishu.execute_flow(
    'package_7344545d87__c', 'noScope',
    operator => '{"_id": 1111}', raise_error => false) ->> 'code' AS code;

\echo
\echo '== A wrong secret: it takes effect on the next call, and check_server says what is wrong =='

ALTER USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (SET app_secret 'not-the-secret');

SELECT token_ok, http_status, code, message, hint FROM feishu.check_server() \gx

ALTER USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (SET app_secret :'app_secret');

\echo
\echo '== From a trigger: every submitted order starts a flow and keeps its execution_id =='

CREATE TABLE orders (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item         text NOT NULL,
    owner_email  text NOT NULL,
    execution_id text
);

CREATE FUNCTION start_approval() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    response jsonb;
BEGIN
    response := feishu.execute_flow(
        'package_7344545d87__c', 'approveOrder_99c656599f',
        operator => jsonb_build_object('email', NEW.owner_email),
        params   => jsonb_build_object('order', NEW.id, 'item', NEW.item));
    NEW.execution_id := response #>> '{data,execution_id}';
    RETURN NEW;
END
$$;

CREATE TRIGGER order_approval BEFORE INSERT ON orders
    FOR EACH ROW EXECUTE FUNCTION start_approval();

INSERT INTO orders (item, owner_email)
    VALUES ('desk', 'li@example.com'), ('lamp', 'wang@example.com');

SELECT * FROM orders;

\echo
\echo '== Many rows at once: 64 calls of half a second each, 32 under way at a time =='

SELECT clock_timestamp() AS began \gset

SELECT count(*) AS calls, count((r).response) AS answers, count((r).sqlstate) AS refused,
       string_agg(DISTINCT (r).error, E'\n') AS errors
FROM (SELECT feishu.execute_flows(
                 'package_7344545d87__c', CASE WHEN id = 64 THEN 'refusedFlow' ELSE 'slowFlow' END,
                 operator => '{"_id": 1111}', params => jsonb_build_object('order', id)) OVER (ORDER BY id) AS r
      FROM generate_series(1, 64) AS id) AS s;

SELECT clock_timestamp() - :'began' < '10 s' AS fast;
