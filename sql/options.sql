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
  FROM unnest(vals) WITH ORDINALITY AS u(v, n), pg_temp.attempt(format(command || ' OPTIONS (%I %L)', option, v)) AS a
  ORDER BY n
$$;
CREATE FUNCTION pg_temp.try_server(option text, VARIADIC vals text[])
RETURNS TABLE (value text, sqlstate text, message text) LANGUAGE sql
AS $$ SELECT * FROM pg_temp.try('ALTER SERVER regress_options', option, VARIADIC vals) $$;
CREATE FUNCTION pg_temp.try_mapping(option text, VARIADIC vals text[])
RETURNS TABLE (value text, sqlstate text, message text) LANGUAGE sql
AS $$
  SELECT t.* FROM pg_temp.try('CREATE USER MAPPING FOR CURRENT_USER SERVER regress_options', option, VARIADIC vals) AS t
$$;

--
-- base_url
--
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
    'http://proxy.example.com:3128/path', 'http://proxy.example.com:0', 'http://');

-- Options of user mappings. No message says what the value was.
SELECT * FROM pg_temp.try('ALTER USER MAPPING FOR PUBLIC SERVER regress_options', 'SET app_id', 'x');
X_MAPPING
