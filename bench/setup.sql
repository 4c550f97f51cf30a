-- The database of script/bench. Variable: base_url.

CREATE EXTENSION feishu_flow;
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url :'base_url');
CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_bench', app_secret 'bench-secret');
