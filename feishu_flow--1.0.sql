/* feishu_flow--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION feishu_flow" to load this file. \quit

-- The schema is made here, not by CREATE EXTENSION, so that nobody can have
-- made one before and own it, and so that it goes with the extension.
CREATE SCHEMA feishu;

COMMENT ON SCHEMA feishu IS
'Start Feishu (Lark) low-code platform flows.';

-- Everybody may look into it; what its functions may do is decided by USAGE on
-- a foreign server and by user mappings.
GRANT USAGE ON SCHEMA feishu TO PUBLIC;

--
-- Credentials: a foreign server is an installation of the platform, a user
-- mapping an app's credentials.
--

CREATE FUNCTION feishu.feishu_flow_validator(text[], oid)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_flow_validator'
LANGUAGE C STRICT;

REVOKE ALL ON FUNCTION feishu.feishu_flow_validator(text[], oid) FROM PUBLIC;

COMMENT ON FUNCTION feishu.feishu_flow_validator(text[], oid) IS
'Checks the options of servers and user mappings of the wrapper feishu_flow.';

CREATE FOREIGN DATA WRAPPER feishu_flow
  VALIDATOR feishu.feishu_flow_validator;

COMMENT ON FOREIGN DATA WRAPPER feishu_flow IS
'Feishu (Lark) platform; its servers hold addresses, its user mappings app credentials.';

--
-- Calls.  Everybody may execute them: they need USAGE on the server and use
-- the credentials of the current user.
--

CREATE FUNCTION feishu.execute_flow(
    namespace text,
    flow_id text,
    operator jsonb DEFAULT NULL,
    params jsonb DEFAULT NULL,
    is_async boolean DEFAULT false,
    idempotent_key text DEFAULT NULL,
    loop_masks jsonb DEFAULT NULL,
    server name DEFAULT NULL,
    timeout interval DEFAULT NULL,
    raise_error boolean DEFAULT true)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'feishu_execute_flow'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;

COMMENT ON FUNCTION feishu.execute_flow(text, text, jsonb, jsonb, boolean, text, jsonb, name, interval, boolean) IS
'Starts a flow now and returns the platform''s whole answer. Raises an error of class LK when the flow was refused or failed.';

CREATE FUNCTION feishu.out_params(response jsonb)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'feishu_out_params'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION feishu.out_params(jsonb) IS
'Output parameters in an answer of execute_flow as one object; NULL when there are none.';

CREATE FUNCTION feishu.check_server(
    server name DEFAULT NULL,
    OUT token_ok boolean,
    OUT http_status integer,
    OUT code bigint,
    OUT latency interval,
    OUT message text,
    OUT hint text)
RETURNS record
AS 'MODULE_PATHNAME', 'feishu_check_server'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;

COMMENT ON FUNCTION feishu.check_server(name) IS
'Obtains an access token from the platform, past the cache, and says what is wrong; starts no flow.';
