-- feishu.flow_trigger(): what becomes of data changes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS feishu_flow;
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow
  OPTIONS (base_url 'http://127.0.0.1:1', operator '{"_id": 7}');
CREATE SERVER regress_other FOREIGN DATA WRAPPER feishu_flow
  OPTIONS (base_url 'http://127.0.0.1:1', operator '{"_id": 8}');
CREATE ROLE regress_feishu_clerk;
CREATE ROLE "regress feishu stranger";
GRANT USAGE ON FOREIGN SERVER feishu TO regress_feishu_clerk;
CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (tenant_access_token 't-x');
CREATE USER MAPPING FOR PUBLIC SERVER regress_other OPTIONS (tenant_access_token 't-x');
SET timezone = 'UTC';
CREATE SCHEMA regress_trigger;
SET search_path = regress_trigger;

-- All in one transaction, rolled back, so that no dispatcher sees any of it; an error costs only its own statement.
\set ON_ERROR_ROLLBACK on
BEGIN;

-- What was queued since it was asked last.
CREATE FUNCTION pg_temp.queued() RETURNS TABLE (flow_id text, operator jsonb, params jsonb) LANGUAGE plpgsql
AS $$
DECLARE
  seen bigint := COALESCE(NULLIF(current_setting('regress.seen', true), ''), '0');
BEGIN
  PERFORM set_config('regress.seen', COALESCE(max(f.id), seen)::text, false) FROM feishu.flows f;
  RETURN QUERY SELECT f.flow_id, f.operator, f.params FROM feishu.flows f WHERE f.id > seen ORDER BY f.id;
END $$;

-- Without preload there is a warning, once in a session.
SET client_min_messages = error;
SELECT feishu.enqueue_flow('package_x__c', 'first') > 0 AS queued;
RESET client_min_messages;
SELECT flow_id FROM pg_temp.queued();

-- A trigger with all three templates.
CREATE TABLE orders (id bigint PRIMARY KEY, gone int, status text, amount numeric(12,2), owner_email varchar(50));
ALTER TABLE orders DROP COLUMN gone;
CREATE TRIGGER order_approval AFTER INSERT OR UPDATE OF status ON orders
  FOR EACH ROW WHEN (NEW.status = 'submitted')
  EXECUTE FUNCTION feishu.flow_trigger(
    'package_7344545d87__c', 'approveOrder_99c656599f',
    '{"email": "$.new.owner_email"}',
    '{"order": {"_id": "$.new.id"}, "amount": "$.new.amount"}',
    '{"ordering_key": "$.new.id"}');
INSERT INTO orders VALUES (9007199254740993, 'submitted', 10.50, 'a@example.com'), (2, 'draft', 1, 'b@example.com');
SAVEPOINT s;
UPDATE orders SET status = 'submitted' WHERE id = 2;
ROLLBACK TO s;
UPDATE orders SET amount = 5;
SELECT state, server, role = CURRENT_USER AS own, namespace, flow_id, operator, params, is_async, length(idempotent_key), loop_masks,
  ordering_key, max_attempts FROM feishu.flows WHERE flow_id LIKE 'approve%' \gx
DROP TRIGGER order_approval ON orders;

-- Row triggers: the whole event is the params; rows are as to_jsonb shows them.
CREATE TYPE pair AS (a int, b text[]);
CREATE DOMAIN code AS varchar(10);
CREATE TABLE kinds (
  id smallint, i int, b bigint, n numeric, r real, f float8, ok boolean, t text, v varchar, c char(5), co code, name name,
  ts timestamptz, tsn timestamp, d date, iv interval, u uuid, ba bytea, j json, jb jsonb, p pair, arr int[], pa pair[], rng int4range,
  gone text, twice numeric GENERATED ALWAYS AS (n * 2) STORED, "Odd ""name" text);
ALTER TABLE kinds DROP COLUMN gone;
ALTER TABLE kinds ADD COLUMN later int DEFAULT 7;
CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, op text, new_row jsonb, old_row jsonb);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO seen (op, new_row, old_row) VALUES (TG_OP, to_jsonb(NEW), to_jsonb(OLD));
  RETURN NULL;
END $$;
CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON kinds FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON kinds FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'kinds');
INSERT INTO kinds VALUES (-1, 2, -9223372036854775808, 123456789012345678901234567890.1234500, 1.5, 1e100, true, 'text', 'v', 'c', 'co', 'name',
  '2026-01-02 03:04:05.678+00', '2026-01-02 03:04:05', '2026-01-02', '1 day 2 hours', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\x00ff',
  '{"b": 1, "a": [1.500]}', '{"b": {"c": [true, null, "x", 1.500]}}', '(1,"{x,""y z""}")', '{1,NULL,3}', '{"(1,{x})",NULL}', '[1,5)');
INSERT INTO kinds DEFAULT VALUES;
INSERT INTO kinds (n, f, jb, j, t) VALUES ('NaN', '-Infinity', '5', '"x"', repeat('long ', 100000)), ('Infinity', 'NaN', '[]', 'null', '');
UPDATE kinds SET t = left(t, 3) || '是', "Odd ""name" = E'"\\', n = n + 1;
DELETE FROM kinds WHERE id = -1;
SELECT count(*), bool_and(params - 'new' - 'old' = jsonb_build_object('op', op, 'schema', 'regress_trigger', 'table', 'kinds')) AS heads,
  bool_and((params -> 'new')::text = COALESCE(new_row, 'null')::text) AS news,
  bool_and((params -> 'old')::text = COALESCE(old_row, 'null')::text) AS olds
FROM (SELECT row_number() OVER () AS n, params FROM pg_temp.queued() WHERE flow_id = 'kinds') q FULL JOIN seen USING (n);

-- A template's strings that begin with $ are jsonpaths; keys are not.
CREATE TABLE docs (id int, title text, doc jsonb, tags text[], amount numeric);
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'docs', '',
  '{"plain": ["$.op", "$.schema", "$.table", "$.new.id", "$.new.amount", "$.new.title", "$.old.title"],
    "rows": {"new": "$.new", "old": "$.old"},
    "found": {"none": "$.new.doc.x.y", "no member": "$.new.amount.nothing", "one": "$.new.doc.list[0]", "several": "$.new.doc.list[*]",
              "array": "$.new.doc.list", "into arrays": "$.new.doc.items.n", "filter": "$.new.doc.items[*] ? (@.n > 1).s",
              "of old": "$.new.doc.items[*] ? (@.n == $.old.id)", "any": "$.new.*.a.**.b"},
    "computed": {"size": "$.new.tags.size()", "sum": "$.new.id + 1", "bool": "$.new.id > 3", "type": "$.new.tags.type()"},
    "literal": ["$$", "$$.new.id", "$$5", "a $.new.id", "", 1.50, true, null, [], {}],
    "$.new.id": {"$$": "$.new.\"id\""}}');
INSERT INTO docs VALUES (1, 'one', '{"list": [1, "two", {"three": 3.00}], "items": [{"n": 1}, {"n": 2, "s": "x"}, {"n": 3, "s": "y"}], "a": {"z": {"b": 5}}}', '{a,b}', 1.50);
SELECT flow_id, operator, jsonb_pretty(params) FROM pg_temp.queued();
UPDATE docs SET id = 5, title = NULL, doc = NULL;
SELECT params -> 'plain' AS plain, params -> 'found' AS found, params -> 'computed' AS computed FROM pg_temp.queued();
DELETE FROM docs;
SELECT params -> 'plain' AS plain, params -> 'rows' AS rows FROM pg_temp.queued();
DROP TRIGGER t ON docs;

-- In a text, ${} is replaced by the one scalar that is found; of dollars before a brace each pair stands for one.
CREATE TRIGGER t AFTER INSERT OR DELETE ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '{"email": "u${$.new.id}@example.com"}',
  '{"of kinds": ["doc-${$.new.id}", "${$.new.id}", "${$.new.title}!", "${$.op} ${$.schema}.${$.table}", "${$.new.doc.ok}", "${$.new.amount}", "是${$.new.title}是"],
    "braces": ["$${$.new.id}", "a $${b", "$$${$.new.amount}", "a $$${$.new.amount}", "$$$${", "a $$$${", "{$.new.id}", "a } {", "$$ ${$.new.id}", "a $ {$.new.id}", "$$$"],
    "paths": ["${ $.new.id + 1 }", "${$.new.tags[0]}", "${$.new.tags[*] ? (@ like_regex \"^b{1}$\")}", "${$.**{3}.ok}", "${\"}$\"}", "${lax $.new.\"title\"}", "${strict $.new.id}",
              "${$.new.doc.\"}\\\"{\"}"],
    "${$.new.id}": 1}',
  '{"idempotent_key": "doc-${$.new.id}", "ordering_key": "${$.table}-${$.new.id}"}');
INSERT INTO docs VALUES (7, 'one', '{"ok": true, "}\"{": "odd", "in": {"ok": "it"}}', '{a,b}', 12.50);
SELECT f.operator, idempotent_key, ordering_key, jsonb_pretty(f.params) FROM feishu.flows f JOIN pg_temp.queued() q ON q.params = f.params;
DELETE FROM docs;
INSERT INTO docs VALUES (NULL, 'one', '{"ok": true}', '{a,b}', 12.50);
CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '', '{"a": "tags ${$.new.tags[*]}"}');
INSERT INTO docs VALUES (1, 'one', '{}', '{a,b}');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '', '{"a": "doc ${$.new.doc}"}');
INSERT INTO docs VALUES (1, 'one', '{}');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '', '{"a": "doc ${$.new.id"}');
INSERT INTO docs VALUES (1, 'one', '{}');
\set VERBOSITY terse
CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '', '{"a": "doc ${new.id}"}');
INSERT INTO docs VALUES (1, 'one', '{}');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'text', '', '{"a": "doc ${}"}');
INSERT INTO docs VALUES (1, 'one', '{}');
\set VERBOSITY default
SELECT * FROM pg_temp.queued();
SELECT count(*) FROM docs;
DROP TRIGGER t ON docs;

-- What the event or its rows cannot have is an error, with what was meant.
CREATE TABLE named (id int, "Quoted ""col" int, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED, owner_email text, doc jsonb);
ALTER TABLE named DROP COLUMN gone;
CREATE FUNCTION pg_temp.look(path text, timing text DEFAULT 'AFTER INSERT OR UPDATE ON named FOR EACH ROW') RETURNS text LANGUAGE plpgsql
AS $$
DECLARE
  hint text;
BEGIN
  EXECUTE format('CREATE OR REPLACE TRIGGER t %s EXECUTE FUNCTION feishu.flow_trigger(''package_x__c'', ''named'', '''', %L)', timing,
    jsonb_build_object('a', path));
  INSERT INTO named (id, "Quoted ""col", owner_email) VALUES (1, 2, 'x@example.com');
  RETURN (SELECT (params -> 'a')::text FROM pg_temp.queued());
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
  RETURN concat_ws(' | ', SQLSTATE, SQLERRM, hint);
END $$;
\t on
\a
SELECT path, pg_temp.look(path) FROM (VALUES ('$.new.id'), ('$.new."Quoted \"col"'), ('$.new.twice'), ('$.old.id'), ('$.new.doc.anything'), ('$.new.id.anything'), ('$.new.*.anything'),
  ('$.**.anything'), ('$.new.type()'), ('$.new.owner_email ? (@ starts with "x")'), ('$.root_table'), ('id ${$.new.id}'), ('$.new.ID'), ('$.new.gone'), ('$.new.owner_mail'),
  ('$.new.ownerEmail'), ('$.new.quoted'), ('$.new.ctid'), ('$.old.idd'), ('strict $.new.nothing'), ('lax $.new.nothing'), ('$.new[*].nothing'), ('$.new ? (@.nothing > 1).id'),
  ('$.new.id ? ($.new.nothing > @)'), ('$.new.id + $.new.nothing'), ('exists($.new.nothing)'), ('-$.new.nothing'), ('id ${$.new.nothing}'), ('$.New.id'), ('$.id'), ('$.new_rows[*].id'),
  ('$.tabel')) p (path);
SELECT path, pg_temp.look(path, 'AFTER INSERT ON named REFERENCING NEW TABLE AS n FOR EACH STATEMENT')
FROM (VALUES ('$.new_rows[*].id'), ('$.new_rows.twice'), ('$.new_rows[0]."Quoted \"col"'), ('$.old_rows'), ('$.new_rows[*].idd'), ('$.old_rows.nothing'), ('$.new.id'), ('$.new_row')) p (path);
SELECT path, pg_temp.look(path, 'AFTER INSERT ON named FOR EACH STATEMENT') FROM (VALUES ('$.op'), ('$.new_rows')) p (path);
\t off
\a
-- At the first firing after the table was changed.
CREATE OR REPLACE TRIGGER t AFTER UPDATE ON named FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'named', '{"email": "$.new.owner_email"}');
DELETE FROM named WHERE ctid > (SELECT min(ctid) FROM named);
UPDATE named SET id = 2;
ALTER TABLE named RENAME owner_email TO owners_email;
UPDATE named SET id = 3;
ALTER TABLE named DROP COLUMN owners_email;
UPDATE named SET id = 3;
SELECT flow_id, operator FROM pg_temp.queued();
DROP TABLE named;

-- Templates that are empty or null are as good as absent; one may be a single jsonpath.
CREATE TRIGGER a AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'a', 'null', 'null', 'null');
CREATE TRIGGER b AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'b', ' ', '', '');
CREATE TRIGGER c AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'c', '"$.new.doc.operator"', '"$.new"');
CREATE TRIGGER d AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'd', '{"_id": 9}', '{}');
CREATE TRIGGER e AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'e', '{"_id": "$.new.id"}', '"$.new.doc.nothing"');
INSERT INTO docs (id, doc) VALUES (1, '{"operator": {"email": "x@example.com"}}');
SELECT * FROM pg_temp.queued();
INSERT INTO docs (id) VALUES (2);
SELECT operator FROM pg_temp.queued() WHERE flow_id = 'c';
DROP TRIGGER a ON docs; DROP TRIGGER b ON docs; DROP TRIGGER c ON docs; DROP TRIGGER d ON docs; DROP TRIGGER e ON docs;

-- Options: every other argument of enqueue_flow.
CREATE TABLE jobs (k text, n bigint, at timestamptz, ok boolean, doc jsonb);
CREATE TRIGGER t AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'jobs', '', '{}',
  '{"is_async": "$.new.ok", "idempotent_key": "$.new.k", "loop_masks": "$.new.doc", "server": "regress_other", "run_at": "$.new.at",
    "ordering_key": "$.new.n", "max_attempts": "$.new.n", "expires_at": "2999-12-31 00:00+00"}');
INSERT INTO jobs VALUES ('key', 3, '2100-01-02 03:04:05+00', false, '["a", "b"]'), (NULL, NULL, NULL, NULL, NULL);
SELECT server, operator, is_async, COALESCE(NULLIF(length(idempotent_key), 36)::text, 'random') AS key, loop_masks, run_at = now() AS at_once,
  NULLIF(run_at, now()) AS run_at, ordering_key, max_attempts, expires_at FROM feishu.flows WHERE flow_id = 'jobs' ORDER BY id;
CREATE OR REPLACE TRIGGER t AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'jobs2', '', '{}',
  '{"is_async": "$.new.k", "ordering_key": "$.new.ok", "max_attempts": "5", "loop_masks": ["$.new.k", "$$x"]}');
INSERT INTO jobs VALUES ('off', 3, NULL, true);
SELECT server, operator, is_async, loop_masks, ordering_key, max_attempts FROM feishu.flows WHERE flow_id = 'jobs2' ORDER BY id;

-- Statement triggers: one flow for the whole statement, none for a statement that changed no row.
CREATE TABLE lines (id int, v text);
CREATE TRIGGER i AFTER INSERT ON lines REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'i');
CREATE TRIGGER u AFTER UPDATE ON lines REFERENCING NEW TABLE AS n OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'u');
CREATE TRIGGER v AFTER UPDATE ON lines REFERENCING NEW TABLE AS n OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'v', '',
  '{"ids": "$.new_rows[*].id", "old": "$.old_rows.v", "n": "$.new_rows.size()", "first": "$.new_rows[0]", "last": "$.old_rows[last].id"}');
CREATE TRIGGER w AFTER UPDATE ON lines REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'w');
CREATE TRIGGER d AFTER DELETE ON lines REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'd', '', '{"ids": "$.old_rows[*].id"}');
CREATE TRIGGER t AFTER TRUNCATE ON lines FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 't');
INSERT INTO lines VALUES (1, 'a'), (2, NULL), (3, 'c');
SELECT * FROM pg_temp.queued();
UPDATE lines SET v = v || 'x' WHERE id > 1;
SELECT * FROM pg_temp.queued();
DELETE FROM lines WHERE id = 1;
DELETE FROM lines WHERE id > 1;
SELECT * FROM pg_temp.queued();
TRUNCATE lines;
SELECT * FROM pg_temp.queued();
INSERT INTO lines SELECT 1 WHERE false;
UPDATE lines SET id = 1;
DELETE FROM lines;
SELECT * FROM pg_temp.queued();
-- Without transition tables nothing is known of the rows, nor whether there were any.
CREATE OR REPLACE TRIGGER d AFTER INSERT OR DELETE ON lines FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'd');
DELETE FROM lines;
SELECT * FROM pg_temp.queued();
-- Another trigger reads the same transition table; more rows than work_mem holds.
SET LOCAL work_mem = '64kB';
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE NOTICE '%: % rows', TG_NAME, (SELECT count(*) FROM n);
  RETURN NULL;
END $$;
CREATE TRIGGER h AFTER INSERT ON lines REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER j AFTER INSERT ON lines REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
CREATE TRIGGER k AFTER INSERT ON lines REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'k');
INSERT INTO lines SELECT g, 'line ' || g FROM generate_series(1, 5000) g;
SELECT flow_id, jsonb_array_length(params -> 'new_rows') AS rows,
  params -> 'new_rows' = (SELECT jsonb_agg(to_jsonb(l) ORDER BY id) FROM lines l) AS same FROM pg_temp.queued();
RESET work_mem;

-- Partitions: row triggers name the partition, statement triggers the table of the statement.
CREATE TABLE parts (id int, k int, v text) PARTITION BY LIST (k);
CREATE TABLE parts_1 (v text, gone int, k int, id int);
ALTER TABLE parts_1 DROP COLUMN gone;
ALTER TABLE parts ATTACH PARTITION parts_1 FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
CREATE TRIGGER r AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'r');
CREATE TRIGGER s AFTER UPDATE ON parts REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 's');
INSERT INTO parts VALUES (1, 1, 'a'), (2, 2, 'b');
UPDATE parts SET v = 'z' WHERE id = 1;
UPDATE parts SET k = 2 WHERE id = 1;
DELETE FROM parts_2 WHERE id = 1;
SELECT flow_id, params FROM pg_temp.queued();
-- ... and the root, by the names that it has then, for partitions of partitions, too.
DROP TRIGGER s ON parts;
CREATE OR REPLACE TRIGGER r AFTER INSERT ON parts FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'r', '',
  '{"table": "${$.schema}.${$.table}", "root": "${$.root_schema}.${$.root_table}"}');
CREATE TABLE parts_3 PARTITION OF parts FOR VALUES IN (3) PARTITION BY LIST (id);
CREATE TABLE parts_3_1 PARTITION OF parts_3 FOR VALUES IN (1);
INSERT INTO parts VALUES (1, 1, 'a'), (1, 3, 'a');
ALTER TABLE parts RENAME TO portions;
INSERT INTO parts_1 (id, k) VALUES (1, 1);
INSERT INTO portions VALUES (1, 3, 'a');
CREATE SCHEMA regress_trigger3;
ALTER TABLE portions SET SCHEMA regress_trigger3;
INSERT INTO parts_3_1 VALUES (1, 3, 'a');
ALTER TABLE regress_trigger3.portions DETACH PARTITION parts_3;
CREATE TRIGGER r AFTER INSERT ON parts_3 FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'r', '', '{"root": "$.root_table"}');
INSERT INTO parts_3 VALUES (1, 3, 'a');
SELECT params FROM pg_temp.queued();
DROP SCHEMA regress_trigger3 CASCADE;
DROP TABLE parts_3;

-- Inheritance, COPY, a conflict, a deferred constraint trigger.
CREATE TABLE parent (id int);
CREATE TABLE child (extra text) INHERITS (parent);
CREATE TRIGGER u AFTER UPDATE ON parent REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'u');
CREATE TRIGGER u AFTER UPDATE ON child FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'u');
INSERT INTO child VALUES (1, 'x');
UPDATE parent SET id = 2;
SELECT params FROM pg_temp.queued();
CREATE TABLE uniq (id int PRIMARY KEY, n int);
CREATE TRIGGER i AFTER INSERT OR UPDATE ON uniq FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'uniq');
COPY uniq FROM stdin;
1	1
\.
INSERT INTO uniq VALUES (1, 2) ON CONFLICT DO NOTHING;
INSERT INTO uniq VALUES (1, 3) ON CONFLICT (id) DO UPDATE SET n = excluded.n;
SELECT params FROM pg_temp.queued();
DROP TRIGGER i ON uniq;
CREATE CONSTRAINT TRIGGER i AFTER DELETE ON uniq DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'deferred');
DELETE FROM uniq;
SELECT flow_id, params FROM pg_temp.queued();
SET CONSTRAINTS ALL IMMEDIATE;
SELECT flow_id, params FROM pg_temp.queued();

-- What the session remembers of a trigger follows its changes.
CREATE TABLE memo (a int, b int);
CREATE TRIGGER t AFTER INSERT ON memo FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'one', '', '{"a": "$.new.a", "t": "$.table"}');
INSERT INTO memo VALUES (1, 2);
CREATE OR REPLACE TRIGGER t AFTER INSERT ON memo FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'two', '', '{"b": "$.new.b"}');
INSERT INTO memo VALUES (1, 2);
ALTER TABLE memo RENAME b TO c;
INSERT INTO memo VALUES (1, 2);
ALTER TABLE memo RENAME a TO b;
INSERT INTO memo VALUES (1, 2);
ALTER TABLE memo ALTER b TYPE text USING 'text ' || b;
INSERT INTO memo VALUES (1, 2);
DROP TRIGGER t ON memo;
CREATE TRIGGER t AFTER INSERT ON memo FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'three', '', '{"t": ["$.schema", "$.table"]}');
INSERT INTO memo VALUES (1, 2);
ALTER TABLE memo RENAME TO memory;
INSERT INTO memory VALUES (1, 2);
ALTER SCHEMA regress_trigger RENAME TO regress_trigger2;
INSERT INTO regress_trigger2.memory VALUES (1, 2);
ALTER SCHEMA regress_trigger2 RENAME TO regress_trigger;
SELECT flow_id, params FROM pg_temp.queued();

-- A cast to json that writes to the table, while its trigger is firing, and makes it forget.
CREATE TYPE odd AS ENUM ('a');
CREATE TABLE nest (id int, o odd);
CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
  IF (SELECT count(*) FROM regress_trigger.nest) < 4 THEN
    CREATE SCHEMA regress_nest;
    INSERT INTO regress_trigger.nest SELECT count(*), 'a' FROM regress_trigger.nest;
    DROP SCHEMA IF EXISTS regress_nest;
  END IF;
  RETURN '{"by": "cast"}';
EXCEPTION WHEN duplicate_schema THEN
  INSERT INTO regress_trigger.nest VALUES (50, 'a'), (51, 'a');
  RETURN '{"by": "handler"}';
END $$;
CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
CREATE TRIGGER t AFTER INSERT ON nest FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'nest');
INSERT INTO nest VALUES (0, 'a');
SELECT params -> 'new' AS new FROM pg_temp.queued();
DROP CAST (odd AS json);

-- Errors name the trigger, the argument, and what to do.
CREATE TABLE wrong (id bigint, t text);
CREATE FUNCTION pg_temp.attempt(VARIADIC arguments text[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
  EXECUTE 'CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('
    || (SELECT string_agg(quote_literal(a), ', ') FROM unnest(arguments) a) || ')';
  INSERT INTO wrong VALUES (1, 'text');
END $$;
\set VERBOSITY terse
SELECT pg_temp.attempt('package_x__c');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '', '');
SELECT pg_temp.attempt('', 'x');
SELECT pg_temp.attempt('package_x__c', '..');
SELECT pg_temp.attempt('package_x__c', 'x', '{"_id": "$.new.id.nothing"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"ordering_key": "$.new.nothing"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"idempotent_key": "order-${$.new.t[1]}"}');
SELECT pg_temp.attempt('package_x__c', 'x', '"$.new.t"');
SELECT pg_temp.attempt('package_x__c', 'x', '', '"$.new.t"');
SELECT pg_temp.attempt('package_x__c', 'x', '', '[]');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"idempotent_key": ""}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"idempotent_key": ["x"]}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"loop_masks": "$.new.t"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"loop_masks": [1]}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"is_async": "$.new.t"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"is_async": 1}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"max_attempts": 0}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"max_attempts": "$.new.t"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"run_at": 5}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"expires_at": "2000-01-01"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '', '{"server": "regress_none"}');
SELECT pg_temp.attempt('package_x__c', 'x', '', '{"x": "$.new.id + $y"}');
\set VERBOSITY default
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger();
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '{"_id": $.new.id}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '{"a": 1');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '{"a": ["$.new.[id"]}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '{"price": "$5"}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '{"a": "$.new.t + 1"}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '', '["ordering_key"]');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '', '{"orderingkey": 1}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '', '{"timeout": "5 s"}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '', '', '{"run_at": "$.new.t"}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t AFTER INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x', '{"_id": "$.new.t"}');
INSERT INTO wrong VALUES (1, 'text');
CREATE OR REPLACE TRIGGER t BEFORE INSERT ON wrong FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x');
INSERT INTO wrong VALUES (1, 'text');
\echo :LAST_ERROR_SQLSTATE
DROP TRIGGER t ON wrong;
CREATE TRIGGER t BEFORE TRUNCATE ON wrong FOR EACH STATEMENT EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x');
TRUNCATE wrong;
CREATE VIEW wrong_view AS SELECT * FROM wrong;
CREATE TRIGGER t INSTEAD OF INSERT ON wrong_view FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'x');
INSERT INTO wrong_view VALUES (1, 'text');
SELECT feishu.flow_trigger();
SELECT count(*) FROM wrong;
SELECT * FROM pg_temp.queued();

-- It is the current user who queues, and needs USAGE on the server.
CREATE TABLE shared (id int);
CREATE TRIGGER t AFTER INSERT ON shared FOR EACH ROW EXECUTE FUNCTION feishu.flow_trigger('package_x__c', 'shared');
GRANT USAGE ON SCHEMA regress_trigger TO PUBLIC;
GRANT INSERT ON shared TO PUBLIC;
SET ROLE regress_feishu_clerk;
INSERT INTO shared VALUES (1);
SELECT role, params -> 'new' AS new FROM feishu.flows;
SET ROLE "regress feishu stranger";
INSERT INTO shared VALUES (2);
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT role, params -> 'new' AS new FROM feishu.flows WHERE flow_id = 'shared';

ROLLBACK;
\unset ON_ERROR_ROLLBACK
SELECT count(*) FROM feishu.flows WHERE namespace = 'package_x__c' AND flow_id IN ('kinds', 'docs', 'shared');
SET client_min_messages = warning;
DROP SCHEMA regress_trigger CASCADE;
DROP SERVER feishu CASCADE;
DROP SERVER regress_other CASCADE;
DROP ROLE regress_feishu_clerk, "regress feishu stranger";
