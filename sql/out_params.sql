-- feishu.out_params(response): the flow's output parameters as one object.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
RESET client_min_messages;

-- The answer as documented: out_params is a string that holds a JSON array.
SELECT feishu.out_params($${
  "code": 0,
  "msg": "success",
  "data": {
    "code": "0",
    "error_msg": "",
    "execution_id": "1816970091484211",
    "out_params": "[{\"api_name\":\"output_1\",\"value\":\"value_1\"},{\"api_name\":\"output_2\",\"value\":2}]",
    "status": "end"
  }
}$$);

-- An answer whose out_params is this text, or this JSON.
CREATE FUNCTION pg_temp.with_text(out_params text) RETURNS jsonb LANGUAGE sql
AS $$ SELECT jsonb_build_object('code', 0, 'msg', 'success', 'data', jsonb_build_object('out_params', out_params)) $$;
CREATE FUNCTION pg_temp.with_json(out_params jsonb) RETURNS jsonb LANGUAGE sql
AS $$ SELECT jsonb_build_object('code', 0, 'msg', 'success', 'data', jsonb_build_object('out_params', out_params)) $$;

-- None there: NULL, however the platform says so.
\pset null '(null)'
SELECT what, feishu.out_params(response)
FROM (VALUES
  (1, 'SQL null', NULL),
  (2, 'empty object', '{}'::jsonb),
  (3, 'no data', '{"code": 0, "msg": "success"}'),
  (4, 'data is null', '{"code": 0, "data": null}'),
  (5, 'data is empty', '{"code": 0, "data": {}}'),
  (6, 'out_params is null', pg_temp.with_text(NULL)),
  (7, 'out_params is empty', pg_temp.with_text('')),
  (8, 'text null', pg_temp.with_text('null')),
  (9, 'text []', pg_temp.with_text('[]')),
  (10, 'text [] in blanks', pg_temp.with_text(E' [ ]\n')),
  (11, 'array []', pg_temp.with_json('[]')),
  (12, 'a refusal', '{"code": 2320001, "msg": "param is invalid", "data": {}, "error": {"log_id": "20240601"}}')
) AS v(n, what, response)
ORDER BY n;

-- One parameter or more: text as documented, and an array or an object, should the platform ever send one.
SELECT what, feishu.out_params(response)
FROM (VALUES
  (1, 'one', pg_temp.with_text('[{"api_name": "a", "value": "x"}]')),
  (2, 'value null', pg_temp.with_text('[{"api_name": "a", "value": null}]')),
  (3, 'no value', pg_temp.with_text('[{"api_name": "a"}]')),
  (4, 'further members', pg_temp.with_text('[{"api_name": "a", "value": 1, "type": "number", "label": "A"}]')),
  (5, 'duplicates: the last', pg_temp.with_text('[{"api_name": "a", "value": 1}, {"api_name": "b", "value": 2}, {"api_name": "a", "value": 3}]')),
  (6, 'booleans and ""', pg_temp.with_text('[{"api_name": "a", "value": true}, {"api_name": "b", "value": false}, {"api_name": "c", "value": ""}]')),
  (7, 'nested', pg_temp.with_text('[{"api_name": "a", "value": {"list": [1, [2, {"x": null}]], "empty": {}}}, {"api_name": "b", "value": []}]')),
  (8, 'JSON inside of text', pg_temp.with_text('[{"api_name": "a", "value": "{\"x\": 1}"}]')),
  (9, 'empty name', pg_temp.with_text('[{"api_name": "", "value": 1}]')),
  (10, 'array', pg_temp.with_json('[{"api_name": "a", "value": 1}, {"api_name": "b", "value": {"x": [1]}}]')),
  (11, 'object', pg_temp.with_json('{"a": 1, "b": {"x": [1]}}')),
  (12, 'text of an object', pg_temp.with_text('{"a": 1, "b": {"x": [1]}}')),
  (13, 'object with api_name', pg_temp.with_json('{"api_name": "a", "value": 1}'))
) AS v(n, what, response)
ORDER BY n;

-- Chinese and emoji, as they are or escaped.
\pset format unaligned
SELECT feishu.out_params(pg_temp.with_text('[{"api_name": "结果", "value": "审批通过 😀"}, {"api_name": "\u72b6\u6001", "value": "\ud83d\ude00"}]'));
\pset format aligned

-- Numbers are exact: ids are int64 and beyond what a double holds, amounts keep their digits.
SELECT feishu.out_params(pg_temp.with_text('[
  {"api_name": "id", "value": 1816970091484211},
  {"api_name": "max", "value": 9223372036854775807},
  {"api_name": "min", "value": -9223372036854775808},
  {"api_name": "odd", "value": 9007199254740993},
  {"api_name": "amount", "value": 1234567890123456789012345.1234567890},
  {"api_name": "text_id", "value": "1816970091484211"}]'));
SELECT (feishu.out_params(pg_temp.with_text('[{"api_name": "id", "value": 9007199254740993}]')) ->> 'id')::bigint AS id;

-- How it is used.
SELECT o.* FROM jsonb_to_record(feishu.out_params(pg_temp.with_text(
  '[{"api_name": "approved", "value": true}, {"api_name": "amount", "value": 12.50}, {"api_name": "rows", "value": [1, 2]}]')))
  AS o(approved boolean, amount numeric, rows bigint[]);

-- Many.
SELECT count(*), sum(value::bigint)
FROM jsonb_each_text(feishu.out_params(pg_temp.with_text(
  (SELECT jsonb_agg(jsonb_build_object('api_name', 'p' || i, 'value', i))::text FROM generate_series(1, 10000) i))));

-- Text that cannot be read is not the same as none: LK502, with the reason.
SELECT feishu.out_params(pg_temp.with_text('[{"api_name": "a"'));
\echo :LAST_ERROR_SQLSTATE

CREATE FUNCTION pg_temp.attempt(response jsonb, OUT state text, OUT message text, OUT detail text) LANGUAGE plpgsql
AS $$
BEGIN
  state := '00000';
  message := feishu.out_params(response)::text;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
END $$;

SELECT what, a.state AS sqlstate, a.detail
FROM (VALUES
  (1, 'not JSON', pg_temp.with_text('oops')),
  (2, 'cut off', pg_temp.with_text('[{"api_name": "a", "value": "x')),
  (3, 'more behind it', pg_temp.with_text('[] []')),
  (4, 'text of a number', pg_temp.with_text('7')),
  (5, 'text of a string', pg_temp.with_text('"a"')),
  (6, 'text of true', pg_temp.with_text('true')),
  (7, 'number', pg_temp.with_json('7')),
  (8, 'true', pg_temp.with_json('true')),
  (9, 'element is a scalar', pg_temp.with_text('[1]')),
  (10, 'element is an array', pg_temp.with_text('[{"api_name": "a", "value": 1}, []]')),
  (11, 'element is null', pg_temp.with_json('[{"api_name": "a", "value": 1}, {"api_name": "b", "value": 1}, null]')),
  (12, 'no api_name', pg_temp.with_text('[{"value": 1}]')),
  (13, 'api_name is null', pg_temp.with_text('[{"api_name": null, "value": 1}]')),
  (14, 'api_name is a number', pg_temp.with_text('[{"api_name": 1, "value": 1}]')),
  (15, 'NUL', pg_temp.with_text('[{"api_name": "a", "value": "x\u0000y"}]')),
  (16, 'NUL in a name', pg_temp.with_text('[{"api_name": "\u0000", "value": 1}]')),
  (17, 'half a character', pg_temp.with_text('[{"api_name": "a", "value": "\ud83d"}]')),
  (18, 'huge number', pg_temp.with_text('[{"api_name": "a", "value": 1e999999}]')),
  (19, 'deeply nested', pg_temp.with_text(repeat('[', 100000) || repeat(']', 100000))),
  (20, 'deep and cut off', pg_temp.with_text(repeat('[', 100000))),
  (21, 'data is text', '{"code": 0, "data": "[]"}'::jsonb),
  (22, 'data is an array', '{"code": 0, "data": []}'),
  (23, 'data is a number', '{"code": 0, "data": 7}')
) AS v(n, what, response), pg_temp.attempt(response) AS a
ORDER BY n;

-- What is no answer of execute_flow.
SELECT response, a.state AS sqlstate, a.message
FROM (VALUES (1, '[]'::jsonb), (2, '[{"data": {}}]'), (3, '7'), (4, '"text"'), (5, 'null'), (6, 'true')) AS v(n, response),
     pg_temp.attempt(response) AS a
ORDER BY n;
