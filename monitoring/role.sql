-- A role for the exporter.  pg_monitor shows all servers and all statistics;
-- it shows no parameters, no answers, no credentials, and may change nothing.
CREATE ROLE feishu_flow_monitor LOGIN CONNECTION LIMIT 5;
GRANT pg_monitor TO feishu_flow_monitor;
