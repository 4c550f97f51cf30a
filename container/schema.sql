-- What compose.yaml makes in a new database: the extension, the mock platform as its server, and orders whose approval
-- is a flow. The secret is one that the mock has for everybody.

CREATE EXTENSION feishu_flow;

CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow
    OPTIONS (base_url 'http://mock:8080', operator '{"_id": 1111}');
CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_mock', app_secret 'mock-secret');

CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item        text NOT NULL,
    owner_email text NOT NULL,
    status      text NOT NULL DEFAULT 'draft'
);

CREATE TRIGGER order_approval AFTER INSERT ON orders
    FOR EACH ROW WHEN (NEW.status = 'submitted')
    EXECUTE FUNCTION feishu.flow_trigger(
        'package_7344545d87__c', 'approveOrder_99c656599f',
        '{"email": "$.new.owner_email"}',
        '{"order": {"_id": "$.new.id"}, "item": "$.new.item"}',
        '{"server": "feishu"}');
