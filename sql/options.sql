-- Options of servers and user mappings: what the validator accepts, and what it says when it does not.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;

-- Try values of an option with ALTER, and undo it: SQLSTATE and message, or nothing when the value is accepted.
CREATE SERVER regress_options FOREIGN DATA WRAPPER feishu_flow;
CREATE USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (app_id 'cli_x', app_secret 'x');
CREATE FUNCTION pg_temp.attempt(command text, OUT state text, OUT message text) LANGUAGE plpgsql
AS $$
BEGIN
  EXECUTE command;
  RAISE EXCEPTION SQLSTATE 'UNDO0';
EXCEPTION
  WHEN SQLSTATE 'UNDO0' THEN
    NULL;
  WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END $$;
CREATE FUNCTION pg_temp.try(command text, option text, VARIADIC vals text[])
RETURNS TABLE (value text, sqlstate text, message text) LANGUAGE sql
AS $$
  SELECT CASE WHEN length(v) > 60 THEN left(v, 50) || '...' ELSE v END, a.*
  FROM unnest(vals) WITH ORDINALITY AS u(v, n), pg_temp.attempt(format(command, option, v)) AS a
  ORDER BY n
$$;
CREATE FUNCTION pg_temp.try_server(option text, VARIADIC vals text[])
RETURNS TABLE (value text, sqlstate text, message text) LANGUAGE sql
AS $$ SELECT * FROM pg_temp.try('ALTER SERVER regress_options OPTIONS (ADD %I %L)', option, VARIADIC vals) $$;
CREATE FUNCTION pg_temp.try_mapping(option text, VARIADIC vals text[])
RETURNS TABLE (value text, sqlstate text, message text) LANGUAGE sql
AS $$
  SELECT * FROM pg_temp.try('ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (SET %I %L)', option, VARIADIC vals)
$$;

-- base_url: scheme, host, port and, for a gateway, a path in front of the platform's.
SELECT * FROM pg_temp.try_server('base_url',
    'https://open.feishu.cn',
    'https://open.larksuite.com/',
    'HTTPS://OPEN.FEISHU.CN',
    'http://feishu.example.com:8080',
    'https://gateway.example.com/feishu/v1/',
    'https://gateway.example.com/a%20b/~c;d=e',
    'https://10.1.2.3',
    'https://[2001:db8::1]',
    'https://[::1]:8443/feishu',
    'https://[::ffff:10.1.2.3]',
    'https://1.2.3.4.example.com',
    'https://' || repeat('a', 63) || '.1a',
    'https://a_b-c.example.com.',
    'http://localhost:1',
    'http://localhost:65535',
    '',
    ' ',
    'open.feishu.cn',
    '//open.feishu.cn',
    'https:open.feishu.cn',
    'https:/open.feishu.cn',
    ' https://open.feishu.cn',
    'https://open.feishu.cn ',
    E'https://open.feishu.cn\n',
    E'https://open.feishu.cn\r\nX-Header: 1',
    'ftp://open.feishu.cn',
    'file:///etc/passwd',
    'gopher://open.feishu.cn',
    'https',
    'https://',
    'https:///path',
    'https://:443',
    'https://open.feishu.cn:',
    'https://open.feishu.cn:0',
    'https://open.feishu.cn:65536',
    'https://open.feishu.cn:100000',
    'https://open.feishu.cn:443x',
    'https://open.feishu.cn:-1',
    'https://open.feishu.cn/open-apis/',
    'https://open.feishu.cn:https',
    'https://user@open.feishu.cn',
    'https://user:pass@open.feishu.cn',
    'https://@open.feishu.cn',
    'https://open.feishu.cn\@evil.example.com',
    'https://open.feishu.cn?app=1',
    'https://open.feishu.cn/?',
    'https://open.feishu.cn#top',
    'https://open.feishu.cn/a#',
    'https://open.feishu.cn/a b',
    'https://open.feishu.cn/a\b',
    'https://open.feishu.cn/流程',
    'https://飞书.example.com',
    'https://open feishu.cn',
    'https://open.feishu.cn,open.larksuite.com',
    'https://[::1',
    'https://[]',
    'https://[open.feishu.cn]',
    'https://[::1]x',
    'https://::1',
    'https://[::zz]',
    'https://[1:2]',
    'https://[::1::2]',
    'https://[:::]',
    'https://[12345::1]',
    'https://[1.2.3.4]',
    'https://[::ffff:1.2.3.256]',
    'https://a..b',
    'https://.a',
    'https://a..',
    'https://.',
    'https://256.1.1.1',
    'https://1.2.3',
    'https://1.2.3.4.5',
    'https://2130706433',
    'https://' || repeat('a', 64) || '.cn',
    'https://' || repeat('a', 254));

-- The other options of servers.
SELECT * FROM pg_temp.try_server('token_url',
    'https://accounts.feishu.cn/oauth/v3/token',
    'http://127.0.0.1:8080/open-apis/auth/v3/tenant_access_token/internal',
    'accounts.feishu.cn/oauth/v3/token',
    'ftp://accounts.feishu.cn/oauth/v3/token',
    'https://id:secret@accounts.feishu.cn/oauth/v3/token',
    'https://accounts.feishu.cn/oauth/v3/token?a=b',
    'https://accounts.feishu.cn/oauth/v3/token#a',
    '');
SELECT * FROM pg_temp.try_server('operator',
    '{"_id": 1816970091484211}',
    '{"email": "wang@example.com"}',
    '{"_id": 9223372036854775807, "email": "wang@example.com"}',
    '{"_id": -9223372036854775808}',
    '{"_id": null, "email": "wang@example.com"}',
    '',
    'wang@example.com',
    '{"_id": 1',
    '{_id: 1}',
    '{"_id": 1} {}',
    '7',
    'null',
    '"wang@example.com"',
    '[{"_id": 1}]',
    '{}',
    '{"id": 1}',
    '{"_id": null}',
    '{"_id": 9223372036854775808}',
    '{"_id": 1.5}',
    '{"_id": true}',
    '{"email": ""}',
    '{"email": 7}',
    '{"email": "wang"}',
    '{"_id": 1, "email": "\u0000@"}');
SELECT * FROM pg_temp.try_server('timeout',
    '30s', '500ms', '1min', '1.5s', '1000', '2147483647', ' 5 s ',
    '', ' ', '0', '0s', '-1s', 'soon', '5 parsecs', '2147483648', '25d', '1e99h');
SELECT * FROM pg_temp.try_server('connect_timeout',
    '5s', '250ms', '', '0', '-5s', 'x');
SELECT * FROM pg_temp.try_server('max_rate',
    '50', '0.5', '50/s', '50/sec', '1000/min', '5000/h', '0.01/min', '1000000',
    '', '0', '0/min', '0.000001', '-1', '+1', '.5', 'fast', '50/', '50 /s', '50/day', '50/min ', '1000001', '1e999', 'nan', 'infinity');
SELECT * FROM pg_temp.try_server('max_concurrency',
    '1', '256', '2147483647', '', '0', '-1', 'many', '10s', '2147483648');
SELECT * FROM pg_temp.try_server('ca_file',
    '/etc/ssl/certs/private-ca.pem', '', 'private-ca.pem', './private-ca.pem', '~/private-ca.pem');
SELECT * FROM pg_temp.try_server('proxy',
    'http://proxy.example.com:3128', 'https://proxy.example.com', 'http://10.0.0.1:3128/', 'socks5://[::1]:1080', 'socks5h://localhost:1080',
    '', 'proxy.example.com:3128', 'socks4://localhost', 'ftp://localhost', 'http://user:pass@proxy.example.com:3128',
    'http://proxy.example.com:3128/path', 'http://proxy.example.com:0', 'http://', 'socks5://[::1', 'socks5://[::g]:1080', 'http://proxy..example.com:3128');

-- Options of user mappings. Messages never tell the value.
SELECT * FROM pg_temp.try_mapping('app_id',
    'cli_a1b2c3', '', ' ', 'cli a1b2c3', E'cli_a1b2c3\n', '飞书', repeat('x', 255), repeat('x', 256));
SELECT * FROM pg_temp.try_mapping('app_secret',
    'Ab1!"$%&/()=?\''', '', ' ', 'my secret', E'secret\r\n', 'sécret', repeat('x', 255), repeat('x', 256));
SELECT * FROM pg_temp.try('ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP app_id, DROP app_secret, ADD %I %L)',
    'tenant_access_token',
    't-g1044qeGEDXTB6NDJOGV4JQCYDGHRBARFTGT1234', 'eyJhbGciOiJFUzI1NiJ9.e30.c2ln', '', ' ', 't-x y', E't-x\tsecret', 't-密', repeat('x', 4096), repeat('x', 4097));

-- Nothing of that was kept.
SELECT srvoptions, umoptions FROM pg_user_mappings JOIN pg_foreign_server USING (srvname) WHERE srvname = 'regress_options';

-- Hints say how to write an option. (A secret has no particular form.)
ALTER SERVER regress_options OPTIONS (ADD base_url 'open.feishu.cn');
ALTER SERVER regress_options OPTIONS (ADD token_url 'accounts.feishu.cn');
ALTER SERVER regress_options OPTIONS (ADD operator '1111');
ALTER SERVER regress_options OPTIONS (ADD timeout 'long');
ALTER SERVER regress_options OPTIONS (ADD connect_timeout 'short');
ALTER SERVER regress_options OPTIONS (ADD max_rate 'slow');
ALTER SERVER regress_options OPTIONS (ADD max_concurrency 'few');
ALTER SERVER regress_options OPTIONS (ADD ca_file 'ca.pem');
ALTER SERVER regress_options OPTIONS (ADD proxy 'proxy.example.com');
ALTER SERVER regress_options OPTIONS (ADD http_version '1.0');
ALTER SERVER regress_options OPTIONS (ADD sandbox 'on');
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (SET app_secret 'two words');

-- An option that there is not: the one that was meant, else all of them.
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_uri 'https://open.feishu.cn');
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (time_out '30s');
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (max_rates '50');
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS ("Proxy" 'http://localhost');
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (host 'open.feishu.cn');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (app_ip 'cli_x', app_secret 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (user 'cli_x', password 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (access_token 't-x');

-- The right option on the wrong object.
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (app_id 'cli_x', app_secret 'x');
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (tenant_access_token 't-x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (base_url 'https://open.feishu.cn');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (app_id 'cli_x', app_secret 'x', timeout '5s');
ALTER FOREIGN DATA WRAPPER feishu_flow OPTIONS (ADD base_url 'https://open.feishu.cn');
ALTER FOREIGN DATA WRAPPER feishu_flow OPTIONS (ADD debug 'on');
CREATE FOREIGN TABLE regress_options_table (a int) SERVER regress_options OPTIONS (flow 'x');

-- Credentials that are not complete, or contradict each other.
-- None at all is how pg_dump writes what it may not see: a call says so.
CREATE ROLE regress_feishu_options SUPERUSER;
SET ROLE regress_feishu_options;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options;
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_options');
DROP USER MAPPING FOR CURRENT_USER SERVER regress_options;
RESET ROLE;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (app_id 'cli_x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (app_secret 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options
  OPTIONS (app_id 'cli_x', app_secret 'x', tenant_access_token 't-x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options OPTIONS (app_id 'cli_x', tenant_access_token 't-x');
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP app_secret);
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP app_id);
BEGIN;
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP app_id, DROP app_secret);
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_options');
ROLLBACK;
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (ADD tenant_access_token 't-x');

-- What is complete is accepted, and can be altered from one kind to the other.
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'regress_options';
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (SET app_secret 'y');
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'regress_options';
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP app_id, DROP app_secret, tenant_access_token 't-x');
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'regress_options';
ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (DROP tenant_access_token, app_id 'cli_z', app_secret 'z');
SELECT umoptions FROM pg_user_mappings WHERE srvname = 'regress_options';
CREATE SERVER regress_options_2 FOREIGN DATA WRAPPER feishu_flow OPTIONS (
  base_url 'https://gateway.example.com/feishu', token_url 'https://accounts.feishu.cn/oauth/v3/token',
  operator '{"_id": 1111}', timeout '30s', connect_timeout '5s', max_rate '1000/min', max_concurrency '10',
  ca_file '/etc/ssl/private-ca.pem', proxy 'http://proxy.example.com:3128');
ALTER SERVER regress_options_2 OPTIONS (SET base_url 'https://open.larksuite.com', DROP token_url, DROP proxy);
ALTER SERVER regress_options_2 OPTIONS (SET timeout 'never');
SELECT srvoptions FROM pg_foreign_server WHERE srvname = 'regress_options_2';

-- What was made while the wrapper had no validator is checked by the call.
CREATE FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER regress_unchecked FOREIGN DATA WRAPPER regress_wrapper OPTIONS (base_url 'ftp://x', extra '1');
SET ROLE regress_feishu_options;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_unchecked OPTIONS (app_id 'cli_x', app_secret 'two words');
SET client_min_messages = error;
ALTER FOREIGN DATA WRAPPER regress_wrapper VALIDATOR feishu.feishu_flow_validator;
RESET client_min_messages;
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_unchecked');
ALTER SERVER regress_unchecked OPTIONS (DROP extra);
ALTER SERVER regress_unchecked OPTIONS (DROP extra, SET base_url 'http://127.0.0.1:1');
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_unchecked');
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_unchecked OPTIONS (SET app_secret 'x');
\set VERBOSITY terse
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_unchecked');
\set VERBOSITY default
ALTER FOREIGN DATA WRAPPER regress_wrapper NO VALIDATOR;
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_unchecked OPTIONS (DROP app_id);
SET client_min_messages = error;
ALTER FOREIGN DATA WRAPPER regress_wrapper VALIDATOR feishu.feishu_flow_validator;
RESET client_min_messages;
SELECT feishu.execute_flow('a', 'b', '{"_id": 1}', server => 'regress_unchecked');
RESET ROLE;

-- No value is without bounds: each call under way has a copy.
SELECT jsonb_build_object('_id', 1, 'x', repeat('x', 9000)) AS long \gset
ALTER SERVER regress_options OPTIONS (ADD operator :'long');

SET client_min_messages = warning;
DROP FOREIGN DATA WRAPPER regress_wrapper CASCADE;
DROP SERVER regress_options CASCADE;
DROP SERVER regress_options_2 CASCADE;
DROP ROLE regress_feishu_options;
