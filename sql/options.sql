-- Options of servers and user mappings: what the validator accepts, and what it says when it does not.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;

-- Try an option by altering a server or a user mapping: SQLSTATE and message, 'ok' when there is none.
CREATE SERVER regress_options FOREIGN DATA WRAPPER feishu_flow;
CREATE USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (app_id 'cli_x', app_secret 'x');
CREATE FUNCTION pg_temp.attempt(command text, OUT state text, OUT message text) LANGUAGE plpgsql
AS $$
BEGIN
  EXECUTE command;
  RAISE EXCEPTION 'ok' USING ERRCODE = '00001';	-- undo it
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
  IF message = 'ok' THEN state := ''; END IF;
END $$;
CREATE FUNCTION pg_temp.server_option(name text, value text) RETURNS record LANGUAGE sql
AS $$ SELECT pg_temp.attempt(format('ALTER SERVER regress_options OPTIONS (ADD %I %L)', name, value)) $$;
CREATE FUNCTION pg_temp.mapping_option(name text, value text) RETURNS record LANGUAGE sql
AS $$ SELECT pg_temp.attempt(format('ALTER USER MAPPING FOR PUBLIC SERVER regress_options OPTIONS (SET %I %L)', name, value)) $$;

--
-- base_url
--
SELECT value, state AS sqlstate, message
FROM unnest(ARRAY[
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
    'http://localhost:065',
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
    'https://' || repeat('a', 254)
  ]) WITH ORDINALITY AS u(url, n),
  substr(url, 1, 50) AS value, pg_temp.server_option('base_url', url) AS a(state text, message text)
ORDER BY n;

--
-- Other options of servers
--
\set TRY 'SELECT name, value, state AS sqlstate, message FROM unnest(ARRAY[:values]) WITH ORDINALITY AS u(value, n), LATERAL (SELECT :\'option\' AS name) AS o, pg_temp.server_option(name, value) AS a(state text, message text) ORDER BY n;'

\set option token_url
\set values '\'https://accounts.feishu.cn/oauth/v3/token\', \'http://127.0.0.1:8080/open-apis/auth/v3/tenant_access_token/internal\', \'accounts.feishu.cn/oauth/v3/token\', \'ftp://accounts.feishu.cn\', \'https://id:secret@accounts.feishu.cn/oauth/v3/token\', \'https://accounts.feishu.cn/oauth/v3/token?app_secret=x\', \'\''
:TRY
