-- Arguments of execute_flow: what is refused before anything is sent, and what is not.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;

-- Port 1 refuses connections: LK503 says that the arguments were found good.
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url 'http://127.0.0.1:1');
CREATE USER MAPPING FOR CURRENT_USER SERVER feishu OPTIONS (tenant_access_token 't-x');

CREATE FUNCTION pg_temp.attempt(
    namespace text DEFAULT 'package_x__c', flow_id text DEFAULT 'approve', operator jsonb DEFAULT '{"_id": 1}', params jsonb DEFAULT NULL,
    is_async boolean DEFAULT false, idempotent_key text DEFAULT NULL, loop_masks jsonb DEFAULT NULL, server name DEFAULT NULL,
    timeout interval DEFAULT NULL, raise_error boolean DEFAULT true, OUT state text, OUT message text)
LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM feishu.execute_flow(namespace, flow_id, operator, params, is_async, idempotent_key, loop_masks, server, timeout, raise_error);
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END $$;

-- namespace and flow_id are one segment of a path each, whatever is in them.
CREATE TEMP TABLE segments (n int GENERATED ALWAYS AS IDENTITY, what text, value text);
INSERT INTO segments (what, value) VALUES
  ('null', NULL),
  ('empty', ''),
  ('.', '.'),
  ('..', '..'),
  ('256 bytes', repeat('x', 256)),
  ('86 characters, 258 bytes', repeat('流', 86)),
  ('a million', repeat('x', 1000000)),
  ('newline', E'a\nb'),
  ('carriage return', E'a\r'),
  ('tab', E'\ta'),
  ('U+0001', E'\x01'),
  ('DEL', E'a\x7fb'),
  ('U+0085', U&'a\0085b'),
  ('U+009F', U&'\009F'),
  ('255 bytes', repeat('x', 255)),
  ('85 characters, 255 bytes', repeat('流', 85)),
  ('...', '...'),
  ('a/b', 'a/b'),
  ('../../im/v1/messages', '../../im/v1/messages'),
  ('%2e%2e', '%2e%2e'),
  ('a?b#c', 'a?b#c'),
  ('blanks', ' a b '),
  ('quotes', $$a"b'c\d$$),
  ('U+00A0', U&'a\00A0b'),
  ('Chinese', '审批流程'),
  ('emoji', U&'\+01F600');
SELECT what, n.state AS sqlstate, n.message AS namespace, f.message AS flow_id
FROM segments, pg_temp.attempt(namespace => value) AS n, pg_temp.attempt(flow_id => value) AS f
WHERE n.state <> 'LK503' OR f.state <> 'LK503'
ORDER BY segments.n;
SELECT what, n.state AS namespace, f.state AS flow_id
FROM segments, pg_temp.attempt(namespace => value) AS n, pg_temp.attempt(flow_id => value) AS f
WHERE n.state = 'LK503' AND f.state = 'LK503'
ORDER BY segments.n;

-- operator: an object with "_id" (int64) or "email".
SELECT operator, a.state AS sqlstate, a.message
FROM (VALUES
  (1, NULL),
  (2, '{}'::jsonb),
  (3, '[]'),
  (4, '[{"_id": 1}]'),
  (5, '7'),
  (6, '"wang@example.com"'),
  (7, 'null'),
  (8, 'true'),
  (9, '{"id": 1}'),
  (10, '{"_ID": 1}'),
  (11, '{"_id": null}'),
  (12, '{"_id": null, "email": null}'),
  (13, '{"_id": "1816970091484211"}'),
  (14, '{"_id": ""}'),
  (15, '{"_id": true}'),
  (16, '{"_id": [1]}'),
  (17, '{"_id": {"_id": 1}}'),
  (18, '{"_id": 1.5}'),
  (19, '{"_id": 9223372036854775808}'),
  (20, '{"_id": -9223372036854775809}'),
  (21, '{"_id": 1e30}'),
  (22, '{"_id": 7.0}'),
  (23, '{"email": ""}'),
  (24, '{"email": "wang"}'),
  (25, '{"email": 7}'),
  (26, '{"email": ["wang@example.com"]}'),
  (27, '{"_id": 1, "email": 7}'),
  (28, '{"_id": "1", "email": "wang@example.com"}'),
  (29, '{"_id": 1816970091484211}'),
  (30, '{"_id": 9223372036854775807}'),
  (31, '{"_id": -9223372036854775808}'),
  (32, '{"_id": 0}'),
  (33, '{"_id": 1e3}'),
  (34, '{"email": "wang@example.com"}'),
  (35, '{"email": "王@example.com"}'),
  (36, '{"_id": 1, "email": "wang@example.com"}'),
  (37, '{"_id": 1, "email": ""}'),
  (38, '{"_id": null, "email": "wang@example.com"}'),
  (39, '{"_id": 1, "tenant": "x"}')
) AS v(n, operator), pg_temp.attempt(operator => operator) AS a
ORDER BY n;

-- params: an object.
SELECT params, a.state AS sqlstate, a.message
FROM (VALUES
  (1, '7'::jsonb),
  (2, '"text"'),
  (3, 'true'),
  (4, 'null'),
  (5, '[]'),
  (6, '[{"a": 1}]'),
  (7, NULL),
  (8, '{}'),
  (9, '{"order": {"_id": 1816970091484211}, "名称": ["a", null, 1.50, {"b": []}], "": "\"\\\n"}')
) AS v(n, params), pg_temp.attempt(params => params) AS a
ORDER BY n;

-- loop_masks: an array of at most 20 strings.
SELECT left(loop_masks::text, 40) AS loop_masks, a.state AS sqlstate, a.message
FROM (VALUES
  (1, '{}'::jsonb),
  (2, '{"0": "mask"}'),
  (3, '"mask"'),
  (4, '7'),
  (5, 'null'),
  (6, '[1]'),
  (7, '[null]'),
  (8, '["mask", true]'),
  (9, '["mask", ["mask"]]'),
  (10, '[{}]'),
  (11, (SELECT jsonb_agg(i::text) FROM generate_series(1, 21) i)),
  (12, NULL),
  (13, '[]'),
  (14, '["mask"]'),
  (15, (SELECT jsonb_agg(i::text) FROM generate_series(1, 20) i))
) AS v(n, loop_masks), pg_temp.attempt(loop_masks => loop_masks) AS a
ORDER BY n;

-- idempotent_key
SELECT what, a.state AS sqlstate, a.message
FROM (VALUES
  (1, 'empty', ''),
  (2, '256 bytes', repeat('x', 256)),
  (3, '86 characters, 258 bytes', repeat('钥', 86)),
  (4, 'newline', E'a\nb'),
  (5, 'U+0001', E'\x01'),
  (6, 'DEL', E'a\x7f'),
  (7, 'null', NULL),
  (8, 'UUID', 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6'),
  (9, '255 bytes', repeat('x', 255)),
  (10, 'Chinese', '订单 1')
) AS v(n, what, key), pg_temp.attempt(idempotent_key => key) AS a
ORDER BY n;

-- timeout
SELECT timeout, a.state AS sqlstate, a.message
FROM (VALUES
  (1, interval '0'),
  (2, '-1 second'),
  (3, '-1 month'),
  (4, '0.5 milliseconds'),
  (5, '1 day -24 hours'),
  (6, NULL),
  (7, '5 seconds'),
  (8, '1 day -23 hours'),
  (9, '100 years')
) AS v(n, timeout), pg_temp.attempt(timeout => timeout) AS a
ORDER BY n;

-- NULL is the default for the other arguments.
SELECT a.* FROM pg_temp.attempt(is_async => NULL, server => NULL, raise_error => NULL) AS a;

-- raise_error => false is for what the platform answers; these errors are the caller's.
SELECT a.* FROM pg_temp.attempt(namespace => '', raise_error => false) AS a;

-- Of several that are wrong, the first is named.
SELECT a.* FROM pg_temp.attempt('', '', '{}', '7', false, '', '7') AS a;

-- Hints.
SELECT feishu.execute_flow(NULL, 'approve', '{"_id": 1}');
SELECT feishu.execute_flow('package_x__c', '', '{"_id": 1}');
SELECT feishu.execute_flow('package_x__c', 'approve');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": "1"}');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"email": "wang"}');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": 1}', '[]');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": 1}', idempotent_key => '');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": 1}', idempotent_key => repeat('x', 256));
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": 1}', loop_masks => '"mask"');
SELECT feishu.execute_flow('package_x__c', 'approve', '{"_id": 1}', timeout => '0');

-- The server's operator is for calls that give none; JSON null is as good as NULL.
ALTER SERVER feishu OPTIONS (operator '{"email": "wang@example.com"}');
SELECT a.* FROM pg_temp.attempt(operator => NULL) AS a;
SELECT a.* FROM pg_temp.attempt(operator => 'null') AS a;
SELECT a.* FROM pg_temp.attempt(operator => '{}') AS a;
ALTER SERVER feishu OPTIONS (DROP operator);
SELECT a.* FROM pg_temp.attempt(operator => NULL) AS a;

SET client_min_messages = warning;
DROP SERVER feishu CASCADE;
