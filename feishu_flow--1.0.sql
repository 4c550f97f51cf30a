/* feishu_flow--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION feishu_flow" to load this file. \quit

-- The schemas are made here, not by CREATE EXTENSION, so that nobody can have
-- made one before and own it, and so that they go with the extension.  That one
-- is there already would be an error without a hint.
CREATE FUNCTION pg_catalog.feishu_flow_check_schema(text)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_check_schema'
LANGUAGE C STRICT;

SELECT pg_catalog.feishu_flow_check_schema('feishu');
SELECT pg_catalog.feishu_flow_check_schema('feishu_internal');

DROP FUNCTION pg_catalog.feishu_flow_check_schema(text);

CREATE SCHEMA feishu;

COMMENT ON SCHEMA feishu IS
'Start Feishu (Lark) low-code platform flows.';

-- The queue's tables.  Nobody has USAGE on it, for PostgreSQL waits for the lock of
-- some commands (CREATE RULE, ...) before it looks whose the table is.
CREATE SCHEMA feishu_internal;

COMMENT ON SCHEMA feishu_internal IS
'Tables of the queue, for the extension alone. See the view feishu.flows.';

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
-- COST: enough for the planner to make other conditions come first, and so little
-- that it does not compile a query of some thousand calls (jit_above_cost).
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
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION feishu.execute_flow(text, text, jsonb, jsonb, boolean, text, jsonb, name, interval, boolean) IS
'Starts a flow now and returns the platform''s whole answer. Raises an error of class LK when the flow was refused or failed.';

CREATE TYPE feishu.flow_result AS (
    response jsonb,
    sqlstate text,
    error text,
    detail text,
    hint text);

COMMENT ON TYPE feishu.flow_result IS
'Result of one call of execute_flows. sqlstate is NULL after a success; otherwise error, detail and hint are those that execute_flow would raise.';

CREATE FUNCTION feishu.execute_flows(
    namespace text,
    flow_id text,
    operator jsonb DEFAULT NULL,
    params jsonb DEFAULT NULL,
    is_async boolean DEFAULT false,
    idempotent_key text DEFAULT NULL,
    loop_masks jsonb DEFAULT NULL,
    server name DEFAULT NULL,
    timeout interval DEFAULT NULL)
RETURNS feishu.flow_result
AS 'MODULE_PATHNAME', 'feishu_execute_flows'
LANGUAGE C WINDOW VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION feishu.execute_flows(text, text, jsonb, jsonb, boolean, text, jsonb, name, interval) IS
'Starts the flows of all rows of the partition now, feishu_flow.max_concurrent_calls at once, and returns the result of each.';

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
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION feishu.check_server(name) IS
'Obtains a new access token from the platform, and says what is wrong; starts no flow.';

-- No default for the namespace: check_server('feishu') has to mean the function above.
CREATE FUNCTION feishu.check_server(
    server name,
    namespace text,
    OUT token_ok boolean,
    OUT http_status integer,
    OUT code bigint,
    OUT latency interval,
    OUT message text,
    OUT hint text)
RETURNS record
AS 'MODULE_PATHNAME', 'feishu_check_server'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;

COMMENT ON FUNCTION feishu.check_server(name, text) IS
'The same, and checks whether the app may call the low-code application "namespace", by asking it for a flow that does not exist.';

--
-- The queue.  Nobody but the owner may touch its tables, TRIGGER included; the
-- functions and views below show and change what the caller's roles own.
--
-- USING heap: default_table_access_method of whoever runs this may be one that does
-- not update rows, and insert.c writes to heaps.  No other setting has a say in what
-- is made here: names are looked up in pg_catalog (schema in the control file), and
-- of the tablespace everybody may decide.
--

-- Not a sequence: see flow_id.c.
CREATE TABLE feishu_internal.last_id (
    id bigint NOT NULL
) USING heap;

INSERT INTO feishu_internal.last_id VALUES (0);

COMMENT ON TABLE feishu_internal.last_id IS
'The id of the flow queued last.';

-- A subscriber with FOR ALL TABLES draws its own.
CREATE FUNCTION feishu_internal.leave_out_row()
RETURNS trigger
AS 'MODULE_PATHNAME', 'feishu_leave_out_row'
LANGUAGE C;

REVOKE ALL ON FUNCTION feishu_internal.leave_out_row() FROM PUBLIC;

COMMENT ON FUNCTION feishu_internal.leave_out_row() IS
'Keeps rows of logical replication out of feishu_internal.last_id and feishu_internal.last_end.';

CREATE TRIGGER leave_out_row BEFORE INSERT OR UPDATE OR DELETE ON feishu_internal.last_id
  FOR EACH ROW EXECUTE FUNCTION feishu_internal.leave_out_row();
ALTER TABLE feishu_internal.last_id ENABLE REPLICA TRIGGER leave_out_row;

-- NULL for a flow without a handler, and for one that was queued in another database.
CREATE FUNCTION feishu_internal.draw_end(on_end text, roleid oid, database oid, system_identifier bigint)
RETURNS bigint
AS 'MODULE_PATHNAME', 'feishu_draw_end'
LANGUAGE C VOLATILE STRICT;

REVOKE ALL ON FUNCTION feishu_internal.draw_end(text, oid, oid, bigint) FROM PUBLIC;

COMMENT ON FUNCTION feishu_internal.draw_end(text, oid, oid, bigint) IS
'The number of the end of a flow with a handler, whose role is then notified.';

-- Columns that are never NULL come first, those of a fixed width before the others: an
-- UPDATE finds them without looking at what is before, and compares those of each index.
CREATE TABLE feishu_internal.outbox (
    id bigint PRIMARY KEY,
    roleid oid NOT NULL,                -- in whose name, with whose credentials
    database oid NOT NULL,              -- in which it was queued, and of which cluster:
    system_identifier bigint NOT NULL,  -- a copy has rows of another
    attempts integer NOT NULL DEFAULT 0,
    server_owner oid NOT NULL,          -- whose the server was: another may make one of its name
    created_at timestamptz NOT NULL,
    run_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    priority smallint NOT NULL DEFAULT 0, -- higher ones first
    state "char" NOT NULL DEFAULT 'q',  -- queued, succeeded, failed, unconfirmed, cancelled
    is_async boolean NOT NULL,
    own_key boolean NOT NULL,           -- the key was made here: nobody else has it
    unanswered boolean NOT NULL DEFAULT false, -- an attempt may have reached the platform
    replaceable boolean NOT NULL DEFAULT false, -- it has a replace_key, and was never claimed
    server text COLLATE "C" NOT NULL,
    namespace text NOT NULL,
    flow_id text NOT NULL,
    idempotent_key text NOT NULL,
    operator jsonb NOT NULL,
    next_at timestamptz,                -- not to be sent before; NULL: at once
    finished_at timestamptz,
    end_number bigint,                  -- handlers of a role are called in this order, see draw_end()
    code bigint,
    handler_next_at timestamptz,        -- not to be called before; NULL: at once; -infinity: is being called
    handler_at timestamptz,             -- when it was called last
    max_attempts integer,               -- NULL: feishu_flow.max_attempts
    handler_attempts integer,           -- NULL: none
    failures integer,                   -- attempts that went wrong, retry_flow or not: see feishu_internal.attempt
    handler_state "char",               -- succeeded, failed; NULL: it waits if there is an end_number
    params jsonb,
    loop_masks jsonb,
    ordering_key text COLLATE "C",
    replace_key text COLLATE "C",
    execution_id text,
    flow_status text,
    flow_code text,
    log_id text,
    sqlstate text,
    error text,
    report text,                        -- for wait_flow: its message, and on the next lines its DETAIL
    hint text,
    response jsonb,
    on_end text,                        -- the handler, qualified and quoted
    handler_error text
) USING heap;

-- Statistics are kept of what the dispatcher's plans look at, and of nothing else: who
-- may read all data can read them, and EXPLAIN of the view tells what they say.
ALTER TABLE feishu_internal.outbox
    ALTER namespace SET STATISTICS 0,
    ALTER flow_id SET STATISTICS 0,
    ALTER operator SET STATISTICS 0,
    ALTER params SET STATISTICS 0,
    ALTER idempotent_key SET STATISTICS 0,
    ALTER loop_masks SET STATISTICS 0,
    ALTER replace_key SET STATISTICS 0,
    ALTER code SET STATISTICS 0,
    ALTER execution_id SET STATISTICS 0,
    ALTER flow_status SET STATISTICS 0,
    ALTER flow_code SET STATISTICS 0,
    ALTER log_id SET STATISTICS 0,
    ALTER sqlstate SET STATISTICS 0,
    ALTER error SET STATISTICS 0,
    ALTER report SET STATISTICS 0,
    ALTER hint SET STATISTICS 0,
    ALTER response SET STATISTICS 0,
    ALTER on_end SET STATISTICS 0,
    ALTER handler_attempts SET STATISTICS 0,
    ALTER handler_next_at SET STATISTICS 0,
    ALTER handler_at SET STATISTICS 0,
    ALTER handler_error SET STATISTICS 0,
    ALTER failures SET STATISTICS 0;

COMMENT ON TABLE feishu_internal.outbox IS
'Flows queued and finished. See the view feishu.flows.';

-- what to send next, by priority and lane (role and server); dead entries of sent rows are
-- stepped over by starting where the last claim ended.  An enqueue compares columns of a
-- fixed width faster when they come before the text.
CREATE INDEX outbox_ready_idx ON feishu_internal.outbox (priority, roleid, server, id)
    WHERE state = 'q' AND next_at IS NULL;
CREATE INDEX outbox_delayed_idx ON feishu_internal.outbox (priority, roleid, server, next_at, id)
    WHERE state = 'q' AND next_at IS NOT NULL;
-- who is next of an ordering key, which belongs to a server and a role
CREATE INDEX outbox_ordering_idx ON feishu_internal.outbox (server, roleid, ordering_key, id)
    WHERE state = 'q' AND ordering_key IS NOT NULL;
-- parked rows of paused flows, which have no other next_at: by flow, in the order in which they go back
CREATE INDEX outbox_parked_idx ON feishu_internal.outbox (server, namespace COLLATE "C", flow_id COLLATE "C", id)
    WHERE next_at = 'infinity' AND state = 'q';
-- what has waited for too long; what never does is no part of it, so that the
-- planner takes it for nothing else
CREATE INDEX outbox_expires_idx ON feishu_internal.outbox (expires_at, id)
    WHERE state = 'q' AND expires_at < 'infinity';
-- a key of the user's is queued once, until its flow has failed or is cancelled; no
-- other query means this index, which has no row of a key that was made here
CREATE UNIQUE INDEX outbox_key_idx ON feishu_internal.outbox (server, roleid, idempotent_key)
    WHERE NOT own_key AND state IN ('q', 's', 'u');
-- the flow that an enqueue with its key replaces: one that waits, and that the
-- dispatcher has never begun with
CREATE UNIQUE INDEX outbox_replace_idx ON feishu_internal.outbox (server, roleid, replace_key)
    WHERE replaceable AND state = 'q';
-- what to purge
CREATE INDEX outbox_finished_idx ON feishu_internal.outbox (finished_at)
    WHERE finished_at IS NOT NULL;
-- what went wrong, which is kept longer, and looked at
CREATE INDEX outbox_failed_idx ON feishu_internal.outbox (finished_at)
    WHERE state IN ('f', 'u');
-- handlers that wait, and those that were given up
CREATE INDEX outbox_handler_idx ON feishu_internal.outbox (roleid, end_number)
    WHERE end_number IS NOT NULL AND handler_state IS NULL;
CREATE INDEX outbox_handler_failed_idx ON feishu_internal.outbox (server)
    WHERE handler_state = 'f';

-- Nor is this one a sequence: the order in which flows with a handler have ended.  It
-- is made after the outbox, for who ends a flow locks them in this order, and DROP
-- EXTENSION locks them in that in which they were made.
CREATE TABLE feishu_internal.last_end (
    number bigint NOT NULL
) USING heap;

INSERT INTO feishu_internal.last_end VALUES (0);

COMMENT ON TABLE feishu_internal.last_end IS
'The number of the last end of a flow with a handler.';

CREATE TRIGGER leave_out_row BEFORE INSERT OR UPDATE OR DELETE ON feishu_internal.last_end
  FOR EACH ROW EXECUTE FUNCTION feishu_internal.leave_out_row();
ALTER TABLE feishu_internal.last_end ENABLE REPLICA TRIGGER leave_out_row;

-- What went wrong with flows, the last 100 attempts of each.  One that succeeds has no
-- row here, so that a queue in which nothing fails does not write here.  It is made after
-- last_end for the same reason as that one after the outbox.
CREATE TABLE feishu_internal.attempt (
    flow bigint,
    attempt integer,                    -- retry_flow or not, the first is 1
    started_at timestamptz,             -- NULL: nobody knows, or the flow ended without one
    duration interval,
    sqlstate text,
    code bigint,
    flow_code text,
    http_status integer,
    log_id text,
    error text,
    hint text,
    repaired_at timestamptz,            -- when retry_flow gave its flow others than these:
    params jsonb,
    operator jsonb,
    PRIMARY KEY (flow, attempt)
) USING heap;

ALTER TABLE feishu_internal.attempt
    ALTER started_at SET STATISTICS 0,
    ALTER duration SET STATISTICS 0,
    ALTER sqlstate SET STATISTICS 0,
    ALTER code SET STATISTICS 0,
    ALTER flow_code SET STATISTICS 0,
    ALTER http_status SET STATISTICS 0,
    ALTER log_id SET STATISTICS 0,
    ALTER error SET STATISTICS 0,
    ALTER hint SET STATISTICS 0,
    ALTER repaired_at SET STATISTICS 0,
    ALTER params SET STATISTICS 0,
    ALTER operator SET STATISTICS 0;

COMMENT ON TABLE feishu_internal.attempt IS
'Attempts of flows that went wrong. See the view feishu.attempts.';

CREATE FUNCTION feishu_internal.forget_attempts()
RETURNS trigger
AS 'MODULE_PATHNAME', 'feishu_forget_attempts'
LANGUAGE C;

REVOKE ALL ON FUNCTION feishu_internal.forget_attempts() FROM PUBLIC;

COMMENT ON FUNCTION feishu_internal.forget_attempts() IS
'Deletes the attempts of flows that are deleted.';

-- Not a foreign key, which would have a part in each insert, and look at the attempts of
-- each flow that is deleted.
CREATE TRIGGER forget_attempts AFTER DELETE ON feishu_internal.outbox
  FOR EACH ROW WHEN (OLD.failures IS NOT NULL) EXECUTE FUNCTION feishu_internal.forget_attempts();
CREATE TRIGGER forget_all_attempts AFTER TRUNCATE ON feishu_internal.outbox
  FOR EACH STATEMENT EXECUTE FUNCTION feishu_internal.forget_attempts();

-- Flows that are being sent, in one row for each database: its own, and those that
-- came with a copy or by replication.  A copy of the database must not send what
-- waits in the original, but what was upgraded must (origin.c decides which it is).
-- An OID alone does not tell: postgres has the same in all clusters.  The key is for
-- publications FOR ALL TABLES, too: in them, rows of tables without one cannot be
-- updated.
CREATE TABLE feishu_internal.claim (
    system_identifier bigint,
    database oid,
    major_version integer NOT NULL,     -- of the server
    ids bigint[] NOT NULL,
    PRIMARY KEY (system_identifier, database)
) USING heap;

INSERT INTO feishu_internal.claim (system_identifier, database, major_version, ids)
SELECT c.system_identifier, d.oid, pg_catalog.current_setting('server_version_num')::integer / 10000, '{}'
FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database();

COMMENT ON TABLE feishu_internal.claim IS
'Flows that the dispatcher is sending, in one row for each database; after a crash it tells which attempts got no answer.';

CREATE TABLE feishu_internal.paused_server (
    server text COLLATE "C" PRIMARY KEY,
    paused_by text NOT NULL,
    paused_at timestamptz NOT NULL
) USING heap;

COMMENT ON TABLE feishu_internal.paused_server IS
'Servers whose dispatch was stopped by feishu.pause_server().';

CREATE TABLE feishu_internal.paused_flow (
    server text COLLATE "C" NOT NULL,
    namespace text COLLATE "C" NOT NULL,
    flow_id text COLLATE "C" NOT NULL,
    paused_by text NOT NULL,
    paused_at timestamptz NOT NULL,
    PRIMARY KEY (server, namespace, flow_id)
) USING heap;

COMMENT ON TABLE feishu_internal.paused_flow IS
'Flows whose dispatch was stopped by feishu.pause_flow().';

-- Lanes that are held back, and why; kept by the dispatcher.
CREATE TABLE feishu_internal.held_lane (
    server text COLLATE "C" NOT NULL,
    roleid oid NOT NULL,
    reason text NOT NULL,
    resume_at timestamptz,
    pause text CHECK (pause IN ('credentials', 'quota')),   -- of the app
    since timestamptz NOT NULL,                             -- of that, or of the hold
    PRIMARY KEY (server, roleid)
) USING heap;

COMMENT ON TABLE feishu_internal.held_lane IS
'Servers and roles whose flows wait for the platform or for an administrator; see the view feishu.dispatch_status.';

-- Row security without a policy: for nobody but the owner there is any row, not
-- even for members of pg_read_all_data and pg_write_all_data.  Who may write
-- rows has flows sent with anybody's credentials.
ALTER TABLE feishu_internal.outbox ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.attempt ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.claim ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.paused_server ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.paused_flow ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.held_lane ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.last_id ENABLE ROW LEVEL SECURITY;
ALTER TABLE feishu_internal.last_end ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION feishu.enqueue_flow(
    namespace text,
    flow_id text,
    operator jsonb DEFAULT NULL,
    params jsonb DEFAULT NULL,
    is_async boolean DEFAULT true,
    idempotent_key text DEFAULT NULL,
    loop_masks jsonb DEFAULT NULL,
    server name DEFAULT NULL,
    run_at timestamptz DEFAULT now(),
    ordering_key text DEFAULT NULL,
    max_attempts integer DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    on_end text DEFAULT NULL,
    replace_key text DEFAULT NULL,
    priority integer DEFAULT 0)
RETURNS bigint
AS 'MODULE_PATHNAME', 'feishu_enqueue_flow'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.enqueue_flow(text, text, jsonb, jsonb, boolean, text, jsonb, name, timestamptz, text, integer, timestamptz, text, text, integer) IS
'Queues a flow in the current transaction, to be started after it commits. Returns its id, or the id of the flow that has the idempotent key already, or that it replaces.';

CREATE FUNCTION feishu.cancel_flow(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'feishu_cancel_flow'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.cancel_flow(bigint) IS
'Cancels a queued flow; true when it had not been sent and now never will be.';

CREATE FUNCTION feishu.retry_flow(
    id bigint,
    new_key boolean DEFAULT false,
    params jsonb DEFAULT NULL,
    operator jsonb DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'feishu_retry_flow'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.retry_flow(bigint, boolean, jsonb, jsonb) IS
'Puts a finished flow that did not succeed back into the queue, with the same idempotent key or a new one, and with new params or a new operator if given; true when it did.';

CREATE FUNCTION feishu.retry_handler(id bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'feishu_retry_handler'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.retry_handler(bigint) IS
'Has a handler that was given up called again; true when it is.';

CREATE FUNCTION feishu.wait_flow(id bigint, timeout interval DEFAULT '30 s')
RETURNS jsonb
AS 'MODULE_PATHNAME', 'feishu_wait_flow'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.wait_flow(bigint, interval) IS
'Waits for a queued flow to end and returns the platform''s answer.';

CREATE FUNCTION feishu.purge_flows(before timestamptz)
RETURNS bigint
AS 'MODULE_PATHNAME', 'feishu_purge_flows'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.purge_flows(timestamptz) IS
'Deletes flows of the caller''s roles that finished before a time; returns how many.';

CREATE FUNCTION feishu.pause_server(server name)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_pause_server'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.pause_server(name) IS
'Stops the dispatch of queued flows to a server until resume_server; for the server''s owner.';

CREATE FUNCTION feishu.resume_server(server name)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_resume_server'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.resume_server(name) IS
'Resumes the dispatch to a server, also when it is held back for credentials, a quota or missing answers; for the server''s owner.';

CREATE FUNCTION feishu.pause_flow(server name, namespace text, flow_id text)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_pause_flow'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.pause_flow(name, text, text) IS
'Stops the dispatch of one flow, by its API name, until resume_flow; for the server''s owner.';

CREATE FUNCTION feishu.resume_flow(server name, namespace text, flow_id text)
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_resume_flow'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.resume_flow(name, text, text) IS
'Resumes the dispatch of one flow; for the server''s owner.';

CREATE VIEW feishu.flows WITH (security_barrier) AS
SELECT o.id,
    CASE o.state
        WHEN 's' THEN 'succeeded'
        WHEN 'f' THEN 'failed'
        WHEN 'u' THEN 'unconfirmed'
        WHEN 'c' THEN 'cancelled'
        ELSE CASE
            WHEN (o.id, o.system_identifier, o.database) IN
                (SELECT unnest(c.ids), c.system_identifier, c.database FROM feishu_internal.claim c) THEN 'sending'
            WHEN o.attempts > 0 THEN 'retrying'
            ELSE 'queued'
        END
    END AS state,
    o.server::name AS server,
    pg_get_userbyid(o.roleid) AS role,
    o.namespace, o.flow_id, o.operator, o.params, o.is_async, o.idempotent_key,
    o.loop_masks, o.ordering_key, o.replace_key, o.priority, o.created_at,
    COALESCE(NULLIF(o.next_at, 'infinity'), o.run_at) AS run_at, o.expires_at, o.attempts, o.max_attempts,
    o.finished_at, o.execution_id, o.flow_status, o.code, o.flow_code, o.log_id,
    o.sqlstate, o.error, o.hint, o.response,
    o.on_end,
    CASE o.handler_state
        WHEN 's' THEN 'succeeded'
        WHEN 'f' THEN 'failed'
        ELSE CASE
            WHEN o.end_number IS NULL THEN NULL
            WHEN o.handler_attempts > COALESCE((NOT isfinite(o.handler_next_at))::integer, 0) THEN 'retrying'
            ELSE 'waiting'
        END
    END AS on_end_state,
    o.handler_attempts AS on_end_attempts, o.handler_error AS on_end_error, o.handler_at AS on_end_at
FROM feishu_internal.outbox o
WHERE pg_has_role(o.roleid, 'USAGE');

COMMENT ON VIEW feishu.flows IS
'Queued and finished flows of the roles whose privileges the current user has.';
-- Short, so that \d+ fits into 120 columns.
COMMENT ON COLUMN feishu.flows.id IS 'From enqueue_flow';
COMMENT ON COLUMN feishu.flows.state IS 'Waits, under way, or its end';
COMMENT ON COLUMN feishu.flows.server IS 'Foreign server';
COMMENT ON COLUMN feishu.flows.role IS 'Who queued it';
COMMENT ON COLUMN feishu.flows.namespace IS 'Namespace of the application';
COMMENT ON COLUMN feishu.flows.flow_id IS 'API name of the flow';
COMMENT ON COLUMN feishu.flows.operator IS 'In whose name it runs';
COMMENT ON COLUMN feishu.flows.params IS 'Input parameters by API name';
COMMENT ON COLUMN feishu.flows.is_async IS 'Without waiting for its end';
COMMENT ON COLUMN feishu.flows.idempotent_key IS 'Started at most once with it';
COMMENT ON COLUMN feishu.flows.loop_masks IS 'Masks against endless loops';
COMMENT ON COLUMN feishu.flows.ordering_key IS 'One after the other with it';
COMMENT ON COLUMN feishu.flows.replace_key IS 'The last one with it counts';
COMMENT ON COLUMN feishu.flows.priority IS 'Higher ones are sent first';
COMMENT ON COLUMN feishu.flows.created_at IS 'When it was queued';
COMMENT ON COLUMN feishu.flows.run_at IS 'Not to be sent before';
COMMENT ON COLUMN feishu.flows.expires_at IS 'Fails if it waits until then';
COMMENT ON COLUMN feishu.flows.attempts IS 'Requests so far that count';
COMMENT ON COLUMN feishu.flows.max_attempts IS 'NULL: as the setting says';
COMMENT ON COLUMN feishu.flows.finished_at IS 'NULL until it has ended';
COMMENT ON COLUMN feishu.flows.execution_id IS 'Its run on the platform';
COMMENT ON COLUMN feishu.flows.flow_status IS 'data.status of last answer';
COMMENT ON COLUMN feishu.flows.code IS 'code of the last answer';
COMMENT ON COLUMN feishu.flows.flow_code IS 'data.code of last answer';
COMMENT ON COLUMN feishu.flows.log_id IS 'For the platform''s support';
COMMENT ON COLUMN feishu.flows.sqlstate IS 'SQLSTATE of the last attempt';
COMMENT ON COLUMN feishu.flows.error IS 'What went wrong';
COMMENT ON COLUMN feishu.flows.hint IS 'What to do about it';
COMMENT ON COLUMN feishu.flows.response IS 'The last answer, as it came';
COMMENT ON COLUMN feishu.flows.on_end IS 'Function called at the end';
COMMENT ON COLUMN feishu.flows.on_end_state IS 'What became of that call';
COMMENT ON COLUMN feishu.flows.on_end_attempts IS 'How often it was called';
COMMENT ON COLUMN feishu.flows.on_end_error IS 'Why it failed';
COMMENT ON COLUMN feishu.flows.on_end_at IS 'When it was called last';

CREATE VIEW feishu.attempts WITH (security_barrier) AS
SELECT a.flow, a.attempt, a.started_at, a.duration, a.sqlstate, a.code, a.flow_code, a.http_status,
    a.log_id, a.error, a.hint, a.repaired_at, a.params, a.operator
FROM feishu_internal.outbox o
JOIN feishu_internal.attempt a ON a.flow = o.id
WHERE pg_has_role(o.roleid, 'USAGE');

COMMENT ON VIEW feishu.attempts IS
'Failed attempts, the last 100 of each flow in feishu.flows.';
COMMENT ON COLUMN feishu.attempts.flow IS 'Its id in feishu.flows';
COMMENT ON COLUMN feishu.attempts.attempt IS 'Number of the attempt';
COMMENT ON COLUMN feishu.attempts.started_at IS 'NULL if not known';
COMMENT ON COLUMN feishu.attempts.duration IS 'Time until it failed';
COMMENT ON COLUMN feishu.attempts.sqlstate IS 'As of execute_flow';
COMMENT ON COLUMN feishu.attempts.code IS 'code of its answer';
COMMENT ON COLUMN feishu.attempts.flow_code IS 'data.code of its answer';
COMMENT ON COLUMN feishu.attempts.http_status IS 'NULL without an answer';
COMMENT ON COLUMN feishu.attempts.log_id IS 'For the platform''s support';
COMMENT ON COLUMN feishu.attempts.error IS 'What went wrong';
COMMENT ON COLUMN feishu.attempts.hint IS 'What to do about it';
COMMENT ON COLUMN feishu.attempts.repaired_at IS 'When it got new values';
COMMENT ON COLUMN feishu.attempts.params IS 'Its params until then';
COMMENT ON COLUMN feishu.attempts.operator IS 'Its operator until then';

CREATE FUNCTION feishu.dispatch_problem()
RETURNS text
AS 'MODULE_PATHNAME', 'feishu_dispatch_problem'
LANGUAGE C VOLATILE PARALLEL SAFE;

COMMENT ON FUNCTION feishu.dispatch_problem() IS
'Why queued flows of this database are not sent, or may not be; NULL when a dispatcher sends them.';

CREATE VIEW feishu.dispatch_status WITH (security_barrier) AS
SELECT COALESCE(q.server, h.server, p.server, e.server, f.server, b.server)::name AS server,
    COALESCE(q.queued, 0) AS queued,
    COALESCE(q.sending, 0) AS sending,
    q.oldest_queued,
    p.server IS NOT NULL OR h.server IS NOT NULL AS paused,
    CASE WHEN p.server IS NOT NULL THEN 'paused by ' || p.paused_by
         WHEN d.only_warns THEN concat_ws('; ', h.reason, d.problem)    -- flows may be sent all the same
         ELSE COALESCE(d.problem, h.reason) END AS pause_reason,
    CASE WHEN p.server IS NULL AND (d.problem IS NULL OR d.only_warns) THEN h.resume_at END AS resume_at,
    COALESCE(q.due, 0) AS due,
    q.oldest_due,
    COALESCE(e.waiting, 0) AS handlers_waiting,
    COALESCE(e.failed, 0) AS handlers_failed,
    e.oldest AS oldest_handler,
    b.server IS NOT NULL AS sandbox,
    COALESCE(f.flows, '{}') AS paused_flows
FROM (SELECT o.server,
        count(*) FILTER (WHERE NOT o.sending) AS queued,
        count(*) FILTER (WHERE o.sending) AS sending,
        min(o.created_at) FILTER (WHERE NOT o.sending) AS oldest_queued,
        count(*) FILTER (WHERE NOT o.sending AND o.run_at <= now()) AS due,
        min(GREATEST(o.run_at, o.created_at)) FILTER (WHERE NOT o.sending AND o.run_at <= now()) AS oldest_due
      FROM (SELECT server, created_at, run_at,
              (id, system_identifier, database) IN
                (SELECT unnest(c.ids), c.system_identifier, c.database FROM feishu_internal.claim c) AS sending
            FROM (SELECT id, system_identifier, database, server, created_at, run_at FROM feishu_internal.outbox
                  WHERE state = 'q' AND next_at IS NULL     -- each by its own index
                  UNION ALL
                  SELECT id, system_identifier, database, server, created_at, run_at FROM feishu_internal.outbox
                  WHERE state = 'q' AND next_at IS NOT NULL) w) o
      GROUP BY o.server) q
FULL JOIN (SELECT server, string_agg(DISTINCT reason, '; ') AS reason, min(resume_at) AS resume_at
      FROM feishu_internal.held_lane
      GROUP BY server) h ON h.server = q.server
FULL JOIN feishu_internal.paused_server p ON p.server = COALESCE(q.server, h.server)
FULL JOIN (SELECT server,
        count(*) FILTER (WHERE waits) AS waiting,
        count(*) FILTER (WHERE NOT waits) AS failed,
        min(finished_at) FILTER (WHERE waits) AS oldest
      FROM (SELECT server, finished_at, true AS waits FROM feishu_internal.outbox
            WHERE end_number IS NOT NULL AND handler_state IS NULL      -- each by its own index
            UNION ALL
            SELECT server, finished_at, false FROM feishu_internal.outbox
            WHERE handler_state = 'f') f
      GROUP BY server) e ON e.server = COALESCE(q.server, h.server, p.server)
FULL JOIN (SELECT server, array_agg(namespace || '/' || flow_id ORDER BY namespace, flow_id) AS flows
      FROM feishu_internal.paused_flow
      GROUP BY server) f ON f.server = COALESCE(q.server, h.server, p.server, e.server)
FULL JOIN (SELECT s.srvname::text COLLATE "C" AS server
      FROM pg_foreign_server s
        JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
      WHERE w.fdwvalidator = 'feishu.feishu_flow_validator(text[], oid)'::regprocedure
        AND 'sandbox=true' = ANY (s.srvoptions)) b ON b.server = COALESCE(q.server, h.server, p.server, e.server, f.server)
CROSS JOIN (SELECT problem, problem ~ '^(table|handlers) ' AS only_warns
            FROM feishu.dispatch_problem() AS problem) AS d
WHERE (pg_has_role('pg_monitor', 'USAGE') AND COALESCE(q.server, e.server) IS NOT NULL)
   OR EXISTS (SELECT FROM pg_foreign_server s
              WHERE s.srvname = COALESCE(q.server, h.server, p.server, e.server, f.server, b.server)
                AND (pg_has_role('pg_monitor', 'USAGE') OR has_server_privilege(s.oid, 'USAGE')));

COMMENT ON VIEW feishu.dispatch_status IS
'Servers with queued flows, pauses, or handlers that wait or were given up, and sandboxes, for roles with USAGE on them and for pg_monitor.';
COMMENT ON COLUMN feishu.dispatch_status.server IS 'Foreign server';
COMMENT ON COLUMN feishu.dispatch_status.queued IS 'Flows that wait';
COMMENT ON COLUMN feishu.dispatch_status.sending IS 'Flows under way';
COMMENT ON COLUMN feishu.dispatch_status.oldest_queued IS 'When the first was queued';
COMMENT ON COLUMN feishu.dispatch_status.paused IS 'Paused or held back';
COMMENT ON COLUMN feishu.dispatch_status.pause_reason IS 'Why nothing is sent';
COMMENT ON COLUMN feishu.dispatch_status.resume_at IS 'Next attempt, if any';
COMMENT ON COLUMN feishu.dispatch_status.due IS 'Flows whose run_at has come';
COMMENT ON COLUMN feishu.dispatch_status.oldest_due IS 'When the first fell due';
COMMENT ON COLUMN feishu.dispatch_status.handlers_waiting IS 'Handlers that wait';
COMMENT ON COLUMN feishu.dispatch_status.handlers_failed IS 'Handlers given up';
COMMENT ON COLUMN feishu.dispatch_status.oldest_handler IS 'When the first ended';
COMMENT ON COLUMN feishu.dispatch_status.sandbox IS 'Nothing is sent';
COMMENT ON COLUMN feishu.dispatch_status.paused_flows IS 'By pause_flow';

--
-- The trigger.
--

CREATE FUNCTION feishu.flow_trigger()
RETURNS trigger
AS 'MODULE_PATHNAME', 'feishu_flow_trigger'
LANGUAGE C VOLATILE PARALLEL UNSAFE;

COMMENT ON FUNCTION feishu.flow_trigger() IS
'Queues a flow for a changed row or statement: flow_trigger(namespace, flow_id [, operator template [, params template [, options template]]]), in an AFTER trigger.';

--
-- Statistics.  Of flows on servers that the role may use, or of all for those
-- who may read all statistics: the function decides.
--

CREATE FUNCTION feishu.stat_flows(
    OUT server name,
    OUT namespace text,
    OUT flow_id text,
    OUT calls bigint,
    OUT successes bigint,
    OUT refused bigint,
    OUT credentials bigint,
    OUT permission bigint,
    OUT not_found bigint,
    OUT key_used bigint,
    OUT rate_limited bigint,
    OUT platform bigint,
    OUT bad_answer bigint,
    OUT no_connection bigint,
    OUT timeout bigint,
    OUT retries bigint,
    OUT unsent bigint,
    OUT total_time double precision,
    OUT min_time double precision,
    OUT max_time double precision,
    OUT mean_time double precision,
    OUT stddev_time double precision,
    OUT stats_since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'feishu_stat_flows'
LANGUAGE C VOLATILE PARALLEL SAFE;

COMMENT ON FUNCTION feishu.stat_flows() IS
'Rows of the view feishu.stat_flows.';

CREATE VIEW feishu.stat_flows AS
  SELECT server, namespace, flow_id, calls, successes, refused, credentials, permission, not_found, key_used,
         rate_limited, platform, bad_answer, no_connection, timeout, retries, unsent,
         total_time, min_time, max_time, mean_time, stddev_time, stats_since
  FROM feishu.stat_flows();

COMMENT ON VIEW feishu.stat_flows IS
'Attempts to start flows of this database, by server and flow, since stats_since: how they ended, and how long they took in milliseconds.';
COMMENT ON COLUMN feishu.stat_flows.server IS 'Foreign server';
COMMENT ON COLUMN feishu.stat_flows.namespace IS 'Namespace of the application';
COMMENT ON COLUMN feishu.stat_flows.flow_id IS 'API name of the flow';
COMMENT ON COLUMN feishu.stat_flows.calls IS 'Attempts that have ended';
COMMENT ON COLUMN feishu.stat_flows.successes IS 'Accepted by the platform';
COMMENT ON COLUMN feishu.stat_flows.refused IS 'LK400: parameters, or the flow';
COMMENT ON COLUMN feishu.stat_flows.credentials IS 'LK401: credentials or token';
COMMENT ON COLUMN feishu.stat_flows.permission IS 'LK403: scope or permission';
COMMENT ON COLUMN feishu.stat_flows.not_found IS 'LK404: no such flow or address';
COMMENT ON COLUMN feishu.stat_flows.key_used IS 'LK409: key already used';
COMMENT ON COLUMN feishu.stat_flows.rate_limited IS 'LK429: rate limit or quota';
COMMENT ON COLUMN feishu.stat_flows.platform IS 'LK500: failure on its side';
COMMENT ON COLUMN feishu.stat_flows.bad_answer IS 'LK502: answer cannot be used';
COMMENT ON COLUMN feishu.stat_flows.no_connection IS 'LK503: no connection, or lost';
COMMENT ON COLUMN feishu.stat_flows.timeout IS 'LK504: no answer in time';
COMMENT ON COLUMN feishu.stat_flows.retries IS 'Attempts after the first';
COMMENT ON COLUMN feishu.stat_flows.unsent IS 'Failed without an attempt';
COMMENT ON COLUMN feishu.stat_flows.total_time IS 'Of all attempts, in ms';
COMMENT ON COLUMN feishu.stat_flows.min_time IS 'Of the shortest, in ms';
COMMENT ON COLUMN feishu.stat_flows.max_time IS 'Of the longest, in ms';
COMMENT ON COLUMN feishu.stat_flows.mean_time IS 'Mean, in ms';
COMMENT ON COLUMN feishu.stat_flows.stddev_time IS 'Standard deviation, in ms';
COMMENT ON COLUMN feishu.stat_flows.stats_since IS 'When counting began';

CREATE FUNCTION feishu.stat_evictions()
RETURNS bigint
AS 'MODULE_PATHNAME', 'feishu_stat_evictions'
LANGUAGE C VOLATILE PARALLEL SAFE;

COMMENT ON FUNCTION feishu.stat_evictions() IS
'How often the statistics of a flow were dropped for those of another since the server started, in all databases. If it grows, raise feishu_flow.track_flows.';

CREATE FUNCTION feishu.clocks_apart(
    OUT serverid oid,
    OUT behind bigint,
    OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'feishu_clocks_apart'
LANGUAGE C VOLATILE PARALLEL SAFE ROWS 10;

COMMENT ON FUNCTION feishu.clocks_apart() IS
'Servers whose platform says another time than the database host, and by how many seconds the host is behind; for the view feishu.problems.';

CREATE FUNCTION feishu.stat_reset()
RETURNS void
AS 'MODULE_PATHNAME', 'feishu_stat_reset'
LANGUAGE C VOLATILE PARALLEL SAFE;

COMMENT ON FUNCTION feishu.stat_reset() IS
'Resets the statistics of flows of this database.';

REVOKE ALL ON FUNCTION feishu.stat_reset() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION feishu.stat_reset() TO pg_monitor;

--
-- What is wrong.
--

-- A row for each thing that needs somebody.  What is of a server is seen by who sees it
-- in dispatch_status; counts of flows by pg_monitor, too; what is said of a flow by
-- who sees it in flows.  What the dispatcher writes is in the server's language, so
-- causes are looked up in the catalogs.
CREATE VIEW feishu.problems WITH (security_barrier) AS
WITH status AS MATERIALIZED (SELECT * FROM feishu.dispatch_status),
backlog AS MATERIALIZED
    (SELECT s.server, s.due, s.oldest_due, r.rate, now() + s.due / r.rate * interval '1 s' AS last_at
     FROM status s JOIN
        (SELECT f.server, count(*) / GREATEST(extract(epoch FROM now() - f.since), 1) AS rate
         FROM (SELECT o.server, min(o.finished_at) OVER () AS since
               FROM (SELECT server, finished_at FROM feishu_internal.outbox
                     WHERE finished_at > now() - interval '10 min' AND state <> 'c'
                     ORDER BY finished_at DESC LIMIT 10000) o) f
         GROUP BY f.server, f.since) r ON r.server = s.server
     WHERE s.due > 0 AND s.due / r.rate < 1e9),
-- the first flow to be sent of each priority, role and server, from one to the next
tier AS MATERIALIZED
    (WITH RECURSIVE t AS (
        (SELECT priority, roleid, server, id, server_owner FROM feishu_internal.outbox
         WHERE state = 'q' AND next_at IS NULL
         ORDER BY priority, roleid, server, id LIMIT 1)
        UNION ALL
        SELECT n.* FROM t CROSS JOIN LATERAL
            (SELECT o.priority, o.roleid, o.server, o.id, o.server_owner FROM feishu_internal.outbox o
             WHERE o.state = 'q' AND o.next_at IS NULL AND (o.priority, o.roleid, o.server) > (t.priority, t.roleid, t.server)
             ORDER BY o.priority, o.roleid, o.server, o.id LIMIT 1) n)
     SELECT * FROM t),
held AS MATERIALIZED
    (SELECT l.server, pg_get_userbyid(l.roleid)::text AS role, l.reason, f.oid AS serverid, s.oldest_due AS since,
        has_server_privilege(l.roleid, f.oid, 'USAGE') AS usage, m.mapping,
        w.server_owner <> f.srvowner AS of_another, s.queued AS count, w.id AS example, l.since AS paused_since,
        CASE WHEN has_server_privilege(l.roleid, f.oid, 'USAGE') AND m.mapping IS NOT NULL
                  AND w.server_owner = f.srvowner THEN l.pause END AS pause
     FROM feishu_internal.held_lane l JOIN status s ON s.server = l.server
     LEFT JOIN pg_foreign_server f ON f.srvname = l.server
     LEFT JOIN LATERAL (SELECT max(umuser) AS mapping FROM pg_user_mapping
         WHERE umserver = f.oid AND umuser IN (0, l.roleid)) m ON true
     LEFT JOIN (SELECT DISTINCT ON (server, roleid) server, roleid, id, server_owner FROM tier
         ORDER BY server, roleid, id) w ON w.server = l.server AND w.roleid = l.roleid
     WHERE l.reason NOT LIKE '%the platform limits the rate%')
SELECT 'not dispatching' AS problem, current_database()::text AS object, d.since, d.count,
    (SELECT min(t.id) FROM status s JOIN tier t ON t.server = s.server) AS example,
    d.problem AS detail,
    CASE WHEN d.problem LIKE '%feishu_flow.dispatch is off%' THEN
             'ALTER SYSTEM SET feishu_flow.dispatch = on; SELECT pg_reload_conf()'
         WHEN d.problem LIKE '%without feishu_flow in shared_preload_libraries%' THEN
             'add feishu_flow to shared_preload_libraries in postgresql.conf, and restart the server'
         WHEN d.problem LIKE '%there is no background worker%' THEN
             'raise max_worker_processes, and restart the server'
         WHEN d.problem LIKE '%is a template, or allows no connections%' THEN
             format('ALTER DATABASE %I ALLOW_CONNECTIONS true IS_TEMPLATE false', current_database())
         WHEN d.problem LIKE '%has row security forced%' THEN
             format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', substring(d.problem FROM 'feishu_internal[.][a-z_]+'))
         WHEN d.problem LIKE '%has a trigger%' OR d.problem LIKE '%has a rule%' THEN
             format('drop what somebody put on table %s', substring(d.problem FROM 'feishu_internal[.][a-z_]+'))
         ELSE 'see the server log, and errors.md in the documentation'
    END AS cure
FROM (SELECT feishu.dispatch_problem() AS problem, min(s.oldest_due) AS since, COALESCE(sum(s.queued), 0)::bigint AS count
      FROM status s) AS d
WHERE d.problem IS NOT NULL
UNION ALL
SELECT 'server paused', s.server::text, p.paused_at, s.queued,
    (SELECT min(t.id) FROM tier t WHERE t.server = p.server),
    'paused by ' || p.paused_by,
    CASE WHEN f.oid IS NOT NULL THEN format('SELECT feishu.resume_server(%L)', p.server)
         ELSE format('SELECT feishu.cancel_flow(id) FROM feishu.flows WHERE finished_at IS NULL AND server = %L', p.server) END
FROM feishu_internal.paused_server p JOIN status s ON s.server = p.server LEFT JOIN pg_foreign_server f ON f.srvname = p.server
UNION ALL
-- what waits is counted at once for all, and if there are any
SELECT 'flow paused', format('%s, %s/%s', p.server, p.namespace, p.flow_id), p.paused_at, COALESCE(w.count, 0), w.example,
    'paused by ' || p.paused_by,
    CASE WHEN f.oid IS NOT NULL THEN format('SELECT feishu.resume_flow(%L, %L, %L)', p.server, p.namespace, p.flow_id)
         ELSE format('SELECT feishu.cancel_flow(id) FROM feishu.flows WHERE finished_at IS NULL AND server = %L', p.server) END
FROM feishu_internal.paused_flow p JOIN status s ON s.server = p.server LEFT JOIN pg_foreign_server f ON f.srvname = p.server
LEFT JOIN (SELECT o.server, o.namespace, o.flow_id, count(*) AS count, min(o.id) AS example
      FROM (SELECT id, server, namespace, flow_id FROM feishu_internal.outbox
            WHERE state = 'q' AND next_at IS NULL       -- each by its own index
            UNION ALL
            SELECT id, server, namespace, flow_id FROM feishu_internal.outbox
            WHERE state = 'q' AND next_at IS NOT NULL) o
      WHERE EXISTS (SELECT FROM feishu_internal.paused_flow)
      GROUP BY o.server, o.namespace, o.flow_id) w
    ON w.server = p.server AND w.namespace = p.namespace AND w.flow_id = p.flow_id
UNION ALL
-- a limit of the rate, or the wait for a token, needs nobody
SELECT 'flows held', format('%s, role %s', h.server, h.role), h.since, h.count, h.example, h.reason,
    CASE WHEN h.serverid IS NULL THEN
             format('SELECT feishu.cancel_flow(id) FROM feishu.flows WHERE finished_at IS NULL AND server = %L AND role = %L', h.server, h.role)
         WHEN NOT h.usage THEN format('GRANT USAGE ON FOREIGN SERVER %I TO %I', h.server, h.role)
         WHEN h.mapping IS NULL THEN
             format('give the role %s credentials: CREATE USER MAPPING FOR %I SERVER %I OPTIONS (app_id ..., app_secret ...)',
                    h.role, h.role, h.server)
         WHEN h.of_another THEN format('SELECT feishu.resume_server(%L)', h.server)
         ELSE format('see what SELECT * FROM feishu.check_server(%L) says; flows are sent again when the platform answers', h.server)
    END
FROM held h
WHERE h.pause IS NULL
UNION ALL
-- of roles that share a user mapping, so an app, one row
SELECT 'app paused', CASE h.mapping WHEN 0 THEN h.server ELSE format('%s, role %s', h.server, min(h.role)) END,
    min(h.paused_since), max(h.count), min(h.example), min(h.reason),
    CASE h.pause
        WHEN 'credentials' THEN
            format('correct app_id and app_secret: ALTER USER MAPPING FOR %s SERVER %I OPTIONS (SET app_secret ...)',
                   CASE h.mapping WHEN 0 THEN 'PUBLIC' ELSE quote_ident(min(h.role)) END, h.server)
        ELSE format('have the quota raised, then SELECT feishu.resume_server(%L)', h.server)
    END
FROM held h
WHERE h.pause IS NOT NULL
GROUP BY h.server, h.mapping, h.pause
UNION ALL
SELECT 'flows ' || g.state, format('%s, %s/%s', g.server, g.namespace, g.flow_id), g.since, g.count, g.example,
    CASE WHEN g.is_seen THEN (SELECT concat_ws('; ', o.error, o.hint) FROM feishu_internal.outbox o WHERE o.id = g.example)
         ELSE g.sqlstate END,
    CASE g.state
        WHEN 'failed' THEN
            -- of flows with one key the last may go back to the queue, unless another has the key by now
            format('SELECT feishu.retry_flow(%s) FROM feishu.flows f WHERE state = %L AND server = %L AND namespace = %L AND flow_id = %L AND sqlstate IS NOT DISTINCT FROM %L%s',
                   CASE WHEN g.have_keys THEN 'max(id)' ELSE 'id' END,
                   g.state, g.server, g.namespace, g.flow_id, g.sqlstate,
                   CASE WHEN g.have_keys THEN format(' AND NOT EXISTS (SELECT FROM feishu.flows k WHERE k.server = f.server AND k.role = f.role AND k.idempotent_key = f.idempotent_key AND k.state NOT IN (%L, %L)) GROUP BY role, idempotent_key',
                                                     'failed', 'cancelled') END)
        ELSE 'see on the platform which have run; start one that has not by feishu.retry_flow with new_key => true'
    END
FROM (SELECT CASE o.state WHEN 'f' THEN 'failed' ELSE 'unconfirmed' END AS state, o.server, o.namespace, o.flow_id,
        o.sqlstate, min(o.finished_at) AS since, count(*) AS count, max(o.id) AS example,
        bool_and(pg_has_role(o.roleid, 'USAGE')) AS is_seen, bool_or(NOT o.own_key) AS have_keys
      FROM feishu_internal.outbox o
      WHERE o.state IN ('f', 'u') AND (pg_has_role(o.roleid, 'USAGE') OR pg_has_role('pg_monitor', 'USAGE'))
        -- one whose key was queued again needs nobody
        AND NOT (o.state = 'f' AND NOT o.own_key AND EXISTS
            (SELECT FROM feishu_internal.outbox k
             WHERE k.server = o.server AND k.roleid = o.roleid AND k.idempotent_key = o.idempotent_key
               AND NOT k.own_key AND k.state IN ('q', 's', 'u')))
      GROUP BY o.state, o.server, o.namespace, o.flow_id, o.sqlstate) g
UNION ALL
SELECT 'handlers given up', format('%s, %s', g.server, g.on_end), g.since, g.count, g.example,
    CASE WHEN g.is_seen THEN (SELECT o.handler_error FROM feishu_internal.outbox o WHERE o.id = g.example) END,
    format('SELECT feishu.retry_handler(id) FROM feishu.flows WHERE on_end_state = %L AND server = %L AND on_end = %L',
           'failed', g.server, g.on_end)
FROM (SELECT o.server, o.on_end, min(o.handler_at) AS since, count(*) AS count, max(o.id) AS example,
        bool_and(pg_has_role(o.roleid, 'USAGE')) AS is_seen
      FROM feishu_internal.outbox o
      WHERE o.handler_state = 'f' AND (pg_has_role(o.roleid, 'USAGE') OR pg_has_role('pg_monitor', 'USAGE'))
      GROUP BY o.server, o.on_end) g
UNION ALL
-- whose turn comes, at the rate of the last ends, after they have expired; looked for if
-- the first expires before the last one's turn
SELECT 'backlog expires', b.server::text, b.oldest_due, count(*), min(w.id),
    format('%s flows are due, and %s a minute have ended of late', b.due, round(60 * b.rate)),
    format('raise max_rate or max_concurrency of server %s, if they bound it; else ask what makes the platform slow', b.server)
FROM backlog b JOIN
    (SELECT o.server, o.id, o.expires_at, row_number() OVER (PARTITION BY o.server ORDER BY o.priority DESC, o.id) AS place
     FROM feishu_internal.outbox o
     WHERE o.state = 'q' AND o.next_at IS NULL
       AND (SELECT e.expires_at FROM feishu_internal.outbox e WHERE e.state = 'q' AND e.expires_at < 'infinity'
            ORDER BY e.expires_at, e.id LIMIT 1) < (SELECT max(last_at) FROM backlog)) w ON w.server = b.server
WHERE w.expires_at < now() + w.place / b.rate * interval '1 s'
GROUP BY b.server, b.oldest_due, b.due, b.rate
UNION ALL
SELECT 'clock apart', f.srvname::text, c.since, 1, NULL,
    format('the clock of the database host is %s s %s that of the platform', abs(c.behind), CASE WHEN c.behind > 0 THEN 'behind' ELSE 'ahead of' END),
    format('set the clock of the database host, best by NTP; SELECT * FROM feishu.check_server(%L) tells whether it agrees', f.srvname)
FROM feishu.clocks_apart() c JOIN pg_foreign_server f ON f.oid = c.serverid
WHERE pg_has_role('pg_monitor', 'USAGE') OR has_server_privilege(f.oid, 'USAGE')
UNION ALL
SELECT 'statistics incomplete', 'feishu_flow.track_flows', pg_postmaster_start_time(), e.evictions, NULL,
    'flows'' statistics have made room for others',
    format('ALTER SYSTEM SET feishu_flow.track_flows = %s, and restart the server',
           (SELECT LEAST(2 * s.setting::bigint, s.max_val::bigint) FROM pg_settings s WHERE s.name = 'feishu_flow.track_flows'))
FROM (SELECT feishu.stat_evictions() AS evictions WHERE pg_has_role('pg_monitor', 'USAGE')
      AND feishu.dispatch_problem() IS DISTINCT FROM 'PostgreSQL was started without feishu_flow in shared_preload_libraries') e
WHERE e.evictions > 0;

COMMENT ON VIEW feishu.problems IS
'Problems that somebody has to solve, and what to do; empty when all is well.';
COMMENT ON COLUMN feishu.problems.problem IS 'Kind of problem';
COMMENT ON COLUMN feishu.problems.object IS 'What has the problem';
COMMENT ON COLUMN feishu.problems.since IS 'When it began, if known';
COMMENT ON COLUMN feishu.problems.count IS 'How many flows, or objects';
COMMENT ON COLUMN feishu.problems.example IS 'The id of one of the flows';
COMMENT ON COLUMN feishu.problems.detail IS 'Details';
COMMENT ON COLUMN feishu.problems.cure IS 'What to do: SQL, or a step';

--
-- Rights.  Default privileges of whoever runs this apply to what was made above:
-- a role that they give TRIGGER or INSERT on tables could run code as the owner,
-- or have flows sent with anybody's credentials.
--

DO $$
DECLARE
  command text;
BEGIN
  FOR command IN
    SELECT format('REVOKE ALL ON %s %s FROM %s', kind, name,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
    FROM (SELECT 'TABLE' AS kind, oid::regclass::text AS name, relowner AS owner, (aclexplode(relacl)).grantee
          FROM pg_class WHERE relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace)
          UNION
          SELECT 'SCHEMA', nspname, nspowner, (aclexplode(nspacl)).grantee
          FROM pg_namespace WHERE nspname IN ('feishu', 'feishu_internal')) granted
    WHERE grantee <> owner
  LOOP
    EXECUTE command;
  END LOOP;
END $$;

-- Everybody may look into it; what its functions may do is decided by USAGE on
-- a foreign server and by user mappings.
GRANT USAGE ON SCHEMA feishu TO PUBLIC;
GRANT SELECT ON feishu.flows, feishu.attempts, feishu.dispatch_status, feishu.problems, feishu.stat_flows TO PUBLIC;
