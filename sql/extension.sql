-- The extension itself: its objects, what everybody may do with them, its settings.
CREATE EXTENSION feishu_flow;

-- Every object has a comment (but the row types of tables and views, which some versions count as objects).
SELECT pg_describe_object(classid, objid, objsubid) AS object,
       obj_description(objid, classid::regclass::text) AS comment
FROM pg_depend
WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'feishu_flow')
  AND classid <> 'pg_type'::regclass
ORDER BY pg_describe_object(classid, objid, objsubid) COLLATE "C";

-- What PUBLIC may do. To call the platform takes more: USAGE on a server, and a user mapping.
SELECT object, privilege_type AS public_may
FROM (
  SELECT 'schema ' || nspname, coalesce(nspacl, acldefault('n', nspowner))
  FROM pg_namespace WHERE nspname IN ('feishu', 'feishu_internal')
  UNION ALL
  SELECT 'foreign-data wrapper ' || fdwname, coalesce(fdwacl, acldefault('F', fdwowner))
  FROM pg_foreign_data_wrapper WHERE fdwname = 'feishu_flow'
  UNION ALL
  SELECT 'function ' || oid::regproc, coalesce(proacl, acldefault('f', proowner))
  FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace
  UNION ALL
  SELECT 'relation ' || oid::regclass, coalesce(relacl, acldefault('r', relowner))
  FROM pg_class WHERE relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace) AND relkind IN ('r', 'v', 'm', 'p')
) AS v(object, acl) LEFT JOIN aclexplode(acl) ON grantee = 0
ORDER BY object COLLATE "C", privilege_type COLLATE "C";

-- Signatures are a contract: names and defaults of arguments too.
\pset format unaligned
\pset tuples_only on
SELECT format(E'%s(%s)\n  RETURNS %s\n', oid::regproc,
              E'\n    ' || replace(pg_get_function_arguments(oid), ', ', E',\n    '),
              pg_get_function_result(oid))
FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace
ORDER BY oid::regprocedure::text COLLATE "C";
\pset tuples_only off
\pset format aligned

-- No function runs with the rights of its owner, or with settings of its own.
SELECT oid::regproc AS function,
       CASE provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       proisstrict AS strict, prosecdef AS security_definer, proconfig AS settings
FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace
ORDER BY oid::regprocedure::text COLLATE "C";

-- Settings. (Context postmaster is for a preloaded library; in one loaded later it is sighup.)
LOAD 'feishu_flow';
SELECT name, vartype, CASE context WHEN 'user' THEN 'user' ELSE 'server' END AS set_by, boot_val, unit, min_val, max_val
FROM pg_settings WHERE name ~ '^feishu_flow\.'
ORDER BY name COLLATE "C";

-- Each is described by a sentence, and each number but a count has a unit.
SELECT name, short_desc, extra_desc
FROM pg_settings
WHERE name ~ '^feishu_flow\.'
  AND (short_desc !~ '^[A-Z].*\.$' OR extra_desc !~ '^[A-Z].*\.$'
       OR vartype IN ('integer', 'real') AND unit IS NULL AND name !~ '\.(max|track)_|_attempts$|_share$');

SET feishu_flow.timeout = '1min';
SHOW feishu_flow.timeout;
SET feishu_flow.timeout = '250ms';
SHOW feishu_flow.timeout;
SET feishu_flow.connect_timeout = 1500;
SHOW feishu_flow.connect_timeout;
SET feishu_flow.max_response_size = '1MB';
SHOW feishu_flow.max_response_size;
\set VERBOSITY sqlstate
SET feishu_flow.timeout = 0;
SET feishu_flow.timeout = '30 parsecs';
SET feishu_flow.connect_timeout = -1;
SET feishu_flow.max_response_size = 0;
SET feishu_flow.max_response_size = '1GB';
\set VERBOSITY default
RESET ALL;
SHOW feishu_flow.server;
SHOW feishu_flow.timeout;

-- A misspelt setting is an error.
SET feishu_flow.time_out = '1s';
SET feishu_flow.app_secret = 'not here';

-- The functions are where they are.
ALTER EXTENSION feishu_flow SET SCHEMA public;
\set VERBOSITY terse

-- Servers and user mappings depend on the extension.
CREATE SERVER regress_feishu FOREIGN DATA WRAPPER feishu_flow;
CREATE USER MAPPING FOR PUBLIC SERVER regress_feishu OPTIONS (tenant_access_token 't-x');
DROP EXTENSION feishu_flow;
SET client_min_messages = warning;
DROP EXTENSION feishu_flow CASCADE;
RESET client_min_messages;
SELECT count(*) FROM pg_foreign_server WHERE srvname = 'regress_feishu';
SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'feishu';
SELECT count(*) FROM pg_foreign_data_wrapper WHERE fdwname = 'feishu_flow';

CREATE EXTENSION feishu_flow SCHEMA public;
CREATE EXTENSION feishu_flow;
CREATE EXTENSION feishu_flow;
SELECT feishu.out_params('{}');
