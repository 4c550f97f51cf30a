-- Who may call the platform, and with whose credentials.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;

CREATE ROLE regress_feishu_app;
CREATE ROLE regress_feishu_token;
CREATE ROLE regress_feishu_unmapped;
CREATE ROLE "regress feishu stranger";
CREATE ROLE regress_feishu_group;
RESET client_min_messages;

-- Port 1 refuses connections. An app's call ends when it asks for a token, one with a fixed token when it is sent:
-- so the message tells whose credentials were used.
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow
  OPTIONS (base_url 'http://127.0.0.1:1', operator '{"email": "wang@example.com"}');
CREATE USER MAPPING FOR regress_feishu_app SERVER feishu OPTIONS (app_id 'cli_x', app_secret 'secret_of_app');
CREATE USER MAPPING FOR regress_feishu_token SERVER feishu OPTIONS (tenant_access_token 't-token_of_token');
GRANT USAGE ON FOREIGN SERVER feishu TO regress_feishu_app, regress_feishu_token, regress_feishu_unmapped;

CREATE FUNCTION pg_temp.attempt(command text, OUT state text, OUT message text) LANGUAGE plpgsql
AS $$
BEGIN
  EXECUTE command;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END $$;
PREPARE call AS SELECT * FROM pg_temp.attempt($$SELECT feishu.execute_flow('package_x__c', 'approve')$$);
PREPARE check_it AS SELECT * FROM pg_temp.attempt($$SELECT token_ok FROM feishu.check_server()$$);

-- A role with USAGE and a mapping calls; each with its own credentials.
SET ROLE regress_feishu_app;
EXECUTE call;
SET ROLE regress_feishu_token;
EXECUTE call;
EXECUTE check_it;

-- Without a mapping.
SET ROLE regress_feishu_unmapped;
EXECUTE call;
EXECUTE check_it;
SELECT feishu.execute_flow('package_x__c', 'approve');

-- Without USAGE.
SET ROLE "regress feishu stranger";
EXECUTE call;
EXECUTE check_it;
SELECT feishu.execute_flow('package_x__c', 'approve');
SELECT feishu.check_server('feishu');

-- What needs no server, everybody may.
SELECT feishu.out_params('{"data": {"out_params": "[{\"api_name\": \"a\", \"value\": 1}]"}}');

-- Nor may everybody make servers, or mappings on those of others.
CREATE SERVER regress_feishu_mine FOREIGN DATA WRAPPER feishu_flow;
CREATE USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (app_id 'cli_y', app_secret 'y');
SET ROLE regress_feishu_unmapped;
CREATE USER MAPPING FOR regress_feishu_group SERVER feishu OPTIONS (app_id 'cli_y', app_secret 'y');
ALTER SERVER feishu OPTIONS (SET base_url 'http://127.0.0.1:2');
ALTER USER MAPPING FOR regress_feishu_app SERVER feishu OPTIONS (SET app_secret 'y');
RESET ROLE;

-- A superuser needs a mapping too.
SELECT rolsuper AS superuser FROM pg_roles WHERE rolname = CURRENT_USER;
SELECT state, message LIKE 'role "%" has no user mapping for server "feishu"' AS no_mapping
FROM pg_temp.attempt($$SELECT feishu.execute_flow('package_x__c', 'approve')$$);

-- What one sees of the credentials of others.
SET ROLE regress_feishu_unmapped;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'feishu' ORDER BY usename COLLATE "C";
SELECT count(*) FROM pg_user_mapping;
SELECT authorization_identifier, option_name, option_value FROM information_schema.user_mapping_options
WHERE foreign_server_name = 'feishu' ORDER BY 1, 2;
SET ROLE regress_feishu_token;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'feishu' ORDER BY usename COLLATE "C";
RESET ROLE;

-- A mapping for PUBLIC is for whoever has USAGE and none of their own.
CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (tenant_access_token 't-token_of_public');
SET ROLE regress_feishu_unmapped;
EXECUTE call;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'feishu' ORDER BY usename COLLATE "C";
SET ROLE regress_feishu_app;
EXECUTE call;
SET ROLE "regress feishu stranger";
EXECUTE call;
RESET ROLE;
DROP USER MAPPING FOR PUBLIC SERVER feishu;

-- USAGE may come from a group. Credentials do not.
GRANT USAGE ON FOREIGN SERVER feishu TO regress_feishu_group;
CREATE USER MAPPING FOR regress_feishu_group SERVER feishu OPTIONS (app_id 'cli_g', app_secret 'g');
GRANT regress_feishu_group TO "regress feishu stranger";
SET ROLE "regress feishu stranger";
EXECUTE call;
SELECT feishu.execute_flow('package_x__c', 'approve');
RESET ROLE;
REVOKE regress_feishu_group FROM "regress feishu stranger";
SET ROLE "regress feishu stranger";
EXECUTE call;
RESET ROLE;

-- current_user counts: a SECURITY DEFINER function calls with the credentials of its owner, for those who have none.
CREATE SCHEMA regress_feishu;
GRANT USAGE ON SCHEMA regress_feishu TO PUBLIC;
CREATE FUNCTION regress_feishu.approve() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM feishu.execute_flow('package_x__c', 'approve');
EXCEPTION WHEN SQLSTATE 'LK503' THEN
  RETURN CURRENT_USER || ': ' || SQLERRM;
END $$;
ALTER FUNCTION regress_feishu.approve() OWNER TO regress_feishu_token;
SET ROLE "regress feishu stranger";
SELECT regress_feishu.approve();
EXECUTE call;
SET ROLE regress_feishu_app;
SELECT regress_feishu.approve();
EXECUTE call;
RESET ROLE;
ALTER FUNCTION regress_feishu.approve() OWNER TO regress_feishu_app;
SET ROLE regress_feishu_token;
SELECT regress_feishu.approve();
RESET ROLE;

-- A trigger function calls as who changes the row; one that is SECURITY DEFINER as its owner.
CREATE TABLE regress_feishu.orders (id int, note text);
GRANT ALL ON regress_feishu.orders TO PUBLIC;
CREATE FUNCTION regress_feishu.on_order() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM feishu.execute_flow('package_x__c', 'approve', params => jsonb_build_object('id', NEW.id));
  RETURN NEW;
EXCEPTION WHEN SQLSTATE 'LK503' THEN
  NEW.note := CURRENT_USER || ': ' || SQLERRM;
  RETURN NEW;
END $$;
CREATE TRIGGER call BEFORE INSERT ON regress_feishu.orders FOR EACH ROW EXECUTE FUNCTION regress_feishu.on_order();
SET ROLE regress_feishu_app;
INSERT INTO regress_feishu.orders VALUES (1) RETURNING *;
SET ROLE regress_feishu_token;
INSERT INTO regress_feishu.orders VALUES (2) RETURNING *;
RESET ROLE;
ALTER FUNCTION regress_feishu.on_order() OWNER TO regress_feishu_app;
ALTER FUNCTION regress_feishu.on_order() SECURITY DEFINER;
SET ROLE regress_feishu_token;
INSERT INTO regress_feishu.orders VALUES (3) RETURNING *;
RESET ROLE;

-- Whatever changes takes effect with the next call of the session.
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER feishu FROM regress_feishu_app;
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER feishu TO regress_feishu_app;
ALTER USER MAPPING FOR regress_feishu_app SERVER feishu OPTIONS (DROP app_id, DROP app_secret, tenant_access_token 't-x');
SET ROLE regress_feishu_app;
EXECUTE call;
BEGIN;
ALTER USER MAPPING FOR regress_feishu_app SERVER feishu OPTIONS (DROP tenant_access_token, app_id 'x', app_secret 'x');
EXECUTE call;
SAVEPOINT s;
DROP USER MAPPING FOR regress_feishu_app SERVER feishu;
EXECUTE call;
ROLLBACK TO s;
EXECUTE call;
ROLLBACK;
EXECUTE call;
RESET ROLE;
ALTER SERVER feishu OPTIONS (DROP operator);
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
ALTER SERVER feishu OPTIONS (operator '{"_id": 1}');
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
ALTER SERVER feishu RENAME TO regress_feishu_old;
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url 'http://127.0.0.1:1');
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
DROP SERVER feishu;
ALTER SERVER regress_feishu_old RENAME TO feishu;
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
DROP USER MAPPING FOR regress_feishu_app SERVER feishu;
SET ROLE regress_feishu_app;
EXECUTE call;
-- Whoever has USAGE may bring credentials of their own.
CREATE USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (app_id 'cli_x', app_secret 'x');
EXECUTE call;

-- Which server: the argument, else the setting.
SET feishu_flow.server = 'regress_feishu_none';
SELECT feishu.execute_flow('package_x__c', 'approve');
SELECT feishu.check_server();
SELECT * FROM pg_temp.attempt($$SELECT feishu.execute_flow('package_x__c', 'approve', server => 'feishu')$$);
RESET feishu_flow.server;
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_feishu_none');
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'Regress Feishu');
SELECT feishu.execute_flow('package_x__c', 'approve', server => repeat('x', 100));
-- One that is like it, if it is ours.
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'fieshu');
SELECT feishu.enqueue_flow('package_x__c', 'approve', server => 'FEISHU');
SELECT feishu.pause_server('feishu ');
RESET ROLE;

-- A server of another wrapper.
CREATE FOREIGN DATA WRAPPER regress_feishu_other;
CREATE SERVER regress_feishu_other FOREIGN DATA WRAPPER regress_feishu_other;
CREATE USER MAPPING FOR PUBLIC SERVER regress_feishu_other OPTIONS (password 'x');
GRANT USAGE ON FOREIGN SERVER regress_feishu_other TO regress_feishu_app;
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_feishu_othr');
SET ROLE regress_feishu_app;
SELECT feishu.execute_flow('package_x__c', 'approve', server => 'regress_feishu_other');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
-- Our wrapper under another name is still ours.
ALTER FOREIGN DATA WRAPPER feishu_flow RENAME TO regress_feishu_renamed;
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
ALTER FOREIGN DATA WRAPPER regress_feishu_renamed RENAME TO feishu_flow;

-- A call changes nothing in the database, so a read-only transaction may: LK503 and not 25006.
SET ROLE regress_feishu_app;
BEGIN READ ONLY;
EXECUTE call;
EXECUTE check_it;
SELECT feishu.out_params('{}') IS NULL AS out_params;
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE;
EXECUTE call;
ROLLBACK;
RESET ROLE;

-- EXECUTE can be taken away from PUBLIC.
REVOKE EXECUTE ON FUNCTION feishu.execute_flow FROM PUBLIC;
SET ROLE regress_feishu_app;
EXECUTE call;
RESET ROLE;
GRANT EXECUTE ON FUNCTION feishu.execute_flow TO PUBLIC;

SET client_min_messages = warning;
DROP FOREIGN DATA WRAPPER regress_feishu_other CASCADE;
DROP SERVER feishu CASCADE;
DROP SCHEMA regress_feishu CASCADE;
DROP ROLE regress_feishu_app, regress_feishu_token, regress_feishu_unmapped, "regress feishu stranger", regress_feishu_group;
