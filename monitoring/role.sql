-- A role for the exporter.  pg_monitor shows all servers and all statistics of
-- feishu_flow, and may reset these; it shows no credentials, and no parameters
-- and answers in the queue.  Of PostgreSQL it shows what sessions are doing, and
-- with that the statements that they run.
CREATE ROLE feishu_flow_monitor LOGIN;
GRANT pg_monitor TO feishu_flow_monitor;
