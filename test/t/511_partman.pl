
# Row movement: rows that an UPDATE or pg_partman moves to another partition fire INSERT, and a key has their flow
# queued once.  The part of pg_partman is skipped without it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuPages;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
my $session = FeishuFlow::Session->new($node);
my $once = <<'SQL';
CREATE TRIGGER order_submitted AFTER INSERT OR UPDATE ON orders
    FOR EACH ROW WHEN (NEW.status = 'submitted')
    EXECUTE FUNCTION feishu.flow_trigger('package_7344545d87__c', 'once', NULL,
        '{"order": "$.new.id"}', '{"server": "feishu", "idempotent_key": "submitted-${$.new.id}"}');
SQL
my $each_time = <<'SQL';
CREATE TRIGGER order_WHEN AFTER WHEN ON orders FOR EACH ROW WHEN (NEW.status = 'submitted')
    EXECUTE FUNCTION feishu.flow_trigger('app', 'WHEN', NULL, '{"order": "$.new.id"}', '{"server": "feishu"}');
SQL
my $inserted = $each_time =~ s/WHEN(?! \()/insert/gr;
my $updated = $each_time =~ s/WHEN(?! \()/update/gr;

my $root = "$FindBin::RealBin/../..";
examples_are_tested($_, 4, glob("$root/test/t/51*.pl"))
  foreach "$root/docs/neighbours.md", "$root/docs/zh-CN/neighbours.md";

# ---- an UPDATE that moves the row ----

$session->value(<<'SQL' . $updated . $once);
CREATE TABLE orders (id bigint, status text, at date NOT NULL) PARTITION BY LIST (status);
CREATE TABLE orders_draft PARTITION OF orders FOR VALUES IN ('draft');
CREATE TABLE orders_rest PARTITION OF orders DEFAULT;
SQL
$session->value("INSERT INTO orders VALUES (1, 'draft', '2026-01-01')");
$session->value("UPDATE orders SET status = 'submitted' WHERE id = 1");
until_ended($session);
is(ends($session, "flow_id = 'update'"),
	'', 'a trigger for UPDATE does not fire for a row that moves to another partition');
is(ends($session, "flow_id = 'once'"), 'succeeded 1', 'one for INSERT OR UPDATE does, as INSERT');
$session->value("UPDATE orders SET at = at WHERE id = 1");
$session->value("UPDATE orders SET status = 'draft' WHERE id = 1; UPDATE orders SET status = 'submitted' WHERE id = 1");
until_ended($session);
is(ends($session, "flow_id = 'update'"), 'succeeded 1', '... the other when the row stays');
is(ends($session, "flow_id = 'once'"), 'succeeded 1', '... and a key has the flow queued once, wherever the row goes');

# ---- pg_partman moves rows out of the default partition ----

chomp(my $share = `$ENV{PG_CONFIG} --sharedir`);
SKIP:
{
	skip 'no pg_partman', 8 if !-e "$share/extension/pg_partman.control";
	$session->value('DROP TABLE orders; SELECT feishu.purge_flows(now())');
	$session->value(<<'SQL');
CREATE TABLE orders (id bigint, status text, at date NOT NULL) PARTITION BY RANGE (at);
CREATE SCHEMA partman;
CREATE EXTENSION pg_partman SCHEMA partman;
SQL
	my $version =
	  $session->value("SELECT split_part(extversion, '.', 1)::int FROM pg_extension WHERE extname = 'pg_partman'");
	my $native = $version < 5 ? ", p_type => 'native'" : '';
	my $month = $version < 5 ? 'monthly' : '1 month';
	$session->value("SELECT partman.create_parent('public.orders', 'at', p_interval => '$month'$native)");
	$session->value($inserted . $once);
	$session->value("INSERT INTO orders SELECT g, 'submitted', '2001-01-01'::date + g FROM generate_series(11, 13) g");
	until_ended($session);
	is(ends($session, 'true'), 'succeeded 6', 'flows of rows in the default partition');
	is($session->value('SELECT count(*) FROM ONLY orders_default'), 3, '... where they are');

	$session->value("SELECT partman.partition_data_time('public.orders')");
	is($session->value('SELECT count(*) FROM ONLY orders_default'), 0, 'pg_partman moves them');
	until_ended($session);
	is(ends($session, "flow_id = 'insert'"), 'succeeded 6', '... which fires INSERT again');
	is(ends($session, "flow_id = 'once'"), 'succeeded 3', '... but a key has the flow queued once');

	$session->value("INSERT INTO orders VALUES (14, 'submitted', '1999-01-01')");
	until_ended($session);
	$session->value(<<'SQL');
BEGIN;
ALTER TABLE orders DISABLE TRIGGER order_insert;
SELECT partman.partition_data_time('public.orders');
ALTER TABLE orders ENABLE TRIGGER order_insert;
COMMIT;
SQL
	is($session->value('SELECT count(*) FROM ONLY orders_default'), 0, 'it moves rows');
	until_ended($session);
	is(ends($session, "flow_id = 'insert'"), 'succeeded 7', '... and a trigger that is disabled meanwhile queues none');
	$session->value("INSERT INTO orders VALUES (15, 'submitted', '1999-01-02'), (16, 'submitted', current_date)");
	until_ended($session);
	is(ends($session, "flow_id = 'insert'"), 'succeeded 9', '... and then fires again, on new partitions too');
}

done_testing();
