-- Errors of calls that get no answer, and how SQL deals with them.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;

-- Port 1 refuses connections.
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow
  OPTIONS (base_url 'http://127.0.0.1:1', operator '{"email": "wang@example.com"}');
CREATE USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (app_id 'cli_x', app_secret 'the_app_secret');
CREATE SERVER regress_fixed FOREIGN DATA WRAPPER feishu_flow
  OPTIONS (base_url 'http://127.0.0.1:1/feishu', operator '{"email": "wang@example.com"}');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_fixed OPTIONS (tenant_access_token 'the_token');

-- The message names the flow and says what went wrong; DETAIL and HINT (see below) say more.
\set VERBOSITY terse
SELECT feishu.execute_flow('package_x__c', 'approve');
\echo :LAST_ERROR_SQLSTATE
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed');
\echo :LAST_ERROR_SQLSTATE
SELECT feishu.execute_flow('50% %s', '"flow"', server => 'regress_fixed');
SELECT feishu.execute_flow('应用', '审批流程', server => 'regress_fixed');
\set VERBOSITY default

-- Nothing listens there; DETAIL says so.
CREATE FUNCTION pg_temp.diagnose(server name, OUT detail text, OUT hint text, OUT secret boolean) LANGUAGE plpgsql
AS $$
DECLARE
  message text;
  context text;
BEGIN
  PERFORM feishu.execute_flow('package_x__c', 'approve', server => server);
EXCEPTION WHEN SQLSTATE 'LK503' THEN
  GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
  secret := (message || detail || hint || context) ~ 'the_';
END $$;
SELECT * FROM pg_temp.diagnose('feishu') \gx
SELECT * FROM pg_temp.diagnose('regress_fixed') \gx

-- check_server returns what is wrong.
SELECT token_ok, http_status, code, latency >= '0' AND latency < '30 s' AS latency_ok,
       message, hint
FROM feishu.check_server() \gx
SELECT token_ok, http_status, code, latency >= '0' AND latency < '30 s' AS latency_ok,
       message, hint
FROM feishu.check_server('regress_fixed') \gx

-- Nobody answered: that is an error, whatever raise_error says.
\set VERBOSITY terse
SELECT feishu.execute_flow('package_x__c', 'approve', raise_error => false);
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed', raise_error => false);

-- plpgsql tells the classes apart.
CREATE FUNCTION pg_temp.start_flow(flow_id text) RETURNS text LANGUAGE plpgsql
AS $$
BEGIN
  RETURN feishu.execute_flow('package_x__c', flow_id) #>> '{data,execution_id}';
EXCEPTION
  WHEN invalid_parameter_value THEN
    RETURN 'mistake: ' || SQLERRM;
  WHEN SQLSTATE 'LK409' THEN
    RETURN 'started before';
  WHEN SQLSTATE 'LK503' OR SQLSTATE 'LK504' THEN
    RETURN 'later: ' || SQLSTATE;
END $$;
SELECT pg_temp.start_flow('approve');
SELECT pg_temp.start_flow('');
-- Class 08 is for a broken connection to the database, and is not used.
DO $$
BEGIN
  PERFORM feishu.execute_flow('package_x__c', 'approve');
EXCEPTION
  WHEN connection_exception THEN
    RAISE 'class 08';
  WHEN OTHERS THEN
    RAISE NOTICE 'class %', left(SQLSTATE, 2);
END $$;

-- An error takes its subtransaction with it, and no more.
CREATE TEMP TABLE orders (id int PRIMARY KEY, note text);
BEGIN;
INSERT INTO orders VALUES (1);
SAVEPOINT s;
INSERT INTO orders VALUES (2);
SELECT feishu.execute_flow('package_x__c', 'approve', params => '{"id": 2}');
SELECT 1;
ROLLBACK TO s;
INSERT INTO orders VALUES (3);
SELECT feishu.out_params('{}') IS NULL AS works;
COMMIT;
SELECT id FROM orders ORDER BY id;

-- As many as you like in one transaction, nested too.
DO $$
DECLARE
  failures int := 0;
BEGIN
  FOR i IN 1..200 LOOP
    BEGIN
      INSERT INTO orders VALUES (1000 + i);
      IF i % 2 = 0 THEN
        PERFORM feishu.execute_flow('package_x__c', 'approve');
      ELSE
        BEGIN
          PERFORM feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed');
        EXCEPTION WHEN SQLSTATE 'LK503' THEN
          failures := failures + 1;
          RAISE;
        END;
      END IF;
    EXCEPTION WHEN SQLSTATE 'LK503' THEN
      failures := failures + 1;
    END;
  END LOOP;
  RAISE NOTICE '% failures', failures;
END $$;
SELECT count(*) FROM orders WHERE id > 1000;

-- In a query over many rows; the rest is not called.
SELECT id, pg_temp.start_flow('f' || id) FROM orders ORDER BY id;
SELECT feishu.execute_flow('package_x__c', 'f' || id) FROM generate_series(1, 1000) AS id;

-- In a cursor, a trigger, a constraint trigger at commit.
BEGIN;
DECLARE calls CURSOR FOR SELECT CASE WHEN i > 2 THEN feishu.execute_flow('package_x__c', 'approve') ELSE '{}' END FROM generate_series(1, 3) i;
FETCH 2 FROM calls;
FETCH 1 FROM calls;
ROLLBACK;
CREATE FUNCTION pg_temp.on_order() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN PERFORM feishu.execute_flow('package_x__c', 'approve', params => to_jsonb(NEW)); RETURN NEW; END $$;
CREATE TRIGGER now AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_temp.on_order();
INSERT INTO orders VALUES (5);
DROP TRIGGER now ON orders;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.on_order();
BEGIN;
INSERT INTO orders VALUES (6);
COMMIT;
DROP TRIGGER later ON orders;
SELECT id FROM orders ORDER BY id;

-- A procedure that commits before it calls keeps what it had done.
CREATE PROCEDURE pg_temp.submit(id int) LANGUAGE plpgsql
AS $$
BEGIN
  INSERT INTO orders VALUES (submit.id, 'submitted');
  COMMIT;
  BEGIN
    PERFORM feishu.execute_flow('package_x__c', 'approve', params => jsonb_build_object('id', submit.id));
    UPDATE orders SET note = 'started' WHERE orders.id = submit.id;
  EXCEPTION WHEN SQLSTATE 'LK503' THEN
    UPDATE orders SET note = 'platform not reached' WHERE orders.id = submit.id;
  END;
  COMMIT;
END $$;
CALL pg_temp.submit(7);
SELECT * FROM orders WHERE id = 7;

-- Settings are in force for the calls that follow; no time is spent on a refused connection.
SET feishu_flow.timeout = '10min';
SET feishu_flow.connect_timeout = '10min';
SELECT pg_temp.start_flow('approve');
SELECT latency < '1 min' AS soon FROM feishu.check_server();
BEGIN;
SET LOCAL feishu_flow.timeout = '1s';
SHOW feishu_flow.timeout;
ROLLBACK;
SHOW feishu_flow.timeout;
RESET feishu_flow.timeout;
RESET feishu_flow.connect_timeout;
CREATE FUNCTION pg_temp.hasty() RETURNS text LANGUAGE plpgsql SET feishu_flow.timeout = '2s' SET feishu_flow.server = 'regress_fixed'
AS $$
BEGIN
  PERFORM feishu.execute_flow('package_x__c', 'approve');
EXCEPTION WHEN SQLSTATE 'LK503' THEN
  RETURN current_setting('feishu_flow.timeout') || ': ' || SQLERRM;
END $$;
SELECT pg_temp.hasty();

-- IPv6, TLS and proxies are no different when nobody listens.
ALTER SERVER regress_fixed OPTIONS (SET base_url 'http://[::1]:1');
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed', timeout => '20 s');
ALTER SERVER regress_fixed OPTIONS (SET base_url 'https://127.0.0.1:1');
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed', timeout => '20 s');
ALTER SERVER regress_fixed OPTIONS (SET base_url 'https://open.feishu.cn', proxy 'http://127.0.0.1:1');
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed', timeout => '20 s');
ALTER SERVER regress_fixed OPTIONS (SET proxy 'socks5h://127.0.0.1:1');
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_fixed', timeout => '20 s');

SET client_min_messages = warning;
DROP SERVER feishu CASCADE;
DROP SERVER regress_fixed CASCADE;
