-- What script/bench --dispatch needs besides setup.sql. Variables: tls_url, ca_file.

CREATE SERVER feishu_tls FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url :'tls_url', ca_file :'ca_file');
CREATE USER MAPPING FOR PUBLIC SERVER feishu_tls OPTIONS (app_id 'cli_bench', app_secret 'bench-secret');

CREATE SCHEMA bench;

-- the queue's table without the queue: same columns, same indexes
CREATE TABLE bench.plain (LIKE feishu_internal.outbox INCLUDING ALL);
SELECT format('ALTER TABLE bench.plain ALTER server_owner SET DEFAULT %s, ALTER database SET DEFAULT %s, '
  'ALTER system_identifier SET DEFAULT %s', datdba, oid, (SELECT system_identifier FROM pg_control_system()))
FROM pg_database WHERE datname = current_database() \gexec
CREATE SEQUENCE bench.plain_id_seq;

CREATE TABLE bench.orders (id bigint, status text);
CREATE TABLE bench.orders_plpgsql (LIKE bench.orders);
CREATE TABLE bench.orders_flow (LIKE bench.orders);

CREATE FUNCTION bench.insert_plain() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO bench.plain (id, roleid, is_async, own_key, created_at, run_at, expires_at, server, namespace, flow_id,
    operator, params, idempotent_key)
  VALUES (nextval('bench.plain_id_seq'), current_user::regrole, true, true, now(), now(), now() + '1 day', 'feishu',
    'package_7344545d87__c', 'deleteObject_99c656599f', '{"_id": 1111, "email": "apaas@bytedance.com"}',
    jsonb_build_object('variable_rgrtgqworiginal', jsonb_build_object('_id', NEW.id)), gen_random_uuid()::text);
  RETURN NULL;
END $$;

CREATE TRIGGER queue AFTER INSERT ON bench.orders_plpgsql FOR EACH ROW EXECUTE FUNCTION bench.insert_plain();
CREATE TRIGGER queue AFTER INSERT ON bench.orders_flow FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger(
  'package_7344545d87__c', 'deleteObject_99c656599f', '{"_id": 1111, "email": "apaas@bytedance.com"}',
  '{"variable_rgrtgqworiginal": {"_id": "$.new.id"}}');
