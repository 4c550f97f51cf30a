
# What administrators do around the queue, and mean no harm by: publications,
# columns and indexes of their own, default privileges, settings of the database.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', streaming => 1, conf => "wal_level = logical\nwal_writer_delay = '10s'\n");
$node->safe_psql('postgres', 'CREATE DATABASE replica');
create_server($node, 'feishu', { base_url => $mock->url }, undef, $_) foreach qw(postgres replica);
my $session = FeishuFlow::Session->new($node);
my $n = 0;
my $id;

# Queues a flow and waits for it to succeed.
sub is_sent
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $queued = enqueue($session, params => '{"n": ' . ++$n . '}');
	my $result = $session->ask("SELECT feishu.wait_flow($queued, '20s')");
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	return $queued;
}

is_sent('flows are sent');

# ---- logical replication ----

my $before = dispatcher($session);
$session->value('CREATE PUBLICATION everything FOR ALL TABLES');
is_sent('flows are sent in a database that publishes all tables');
is(dispatcher($session), $before, '... by the same dispatcher');

# all tables, the queue included: the subscriber must not send them, too
$session->value("SELECT pg_create_logical_replication_slot('all', 'pgoutput')");
my $replica = FeishuFlow::Session->new($node, database => 'replica');
$session->value("SELECT feishu.pause_server('feishu')");
my @waiting = map { enqueue($session, params => '{"n": ' . ++$n . '}') } 1 .. 3;
$replica->value('CREATE SUBSCRIPTION all_of_it CONNECTION ' . FeishuFlow::quote($node->connstr('postgres'))
	  . q{ PUBLICATION everything WITH (slot_name = 'all', create_slot = false)});
until_true($replica, 'the flows are replicated', 'SELECT count(*) = 3 FROM feishu.outbox WHERE id IN (' . join(', ', @waiting) . ')');
$replica->value('ALTER SUBSCRIPTION all_of_it DISABLE');
my $worker = until_dispatcher($replica);
$replica->value("DELETE FROM feishu.paused_server; SELECT pg_terminate_backend($worker)");
until_dispatcher($replica, $worker);
until_ended($replica);
is($replica->value("SELECT DISTINCT state || ': ' || error FROM feishu.flows WHERE id >= $waiting[0]"),
	'cancelled: the database was copied while this flow was waiting; the original sends it',
	'flows that were replicated from another database are not sent');
is($replica->value("SELECT bool_and(feishu.retry_flow(id)) FROM feishu.flows WHERE id = $waiting[0]"), 't', '... unless one says so');
until_ended($replica);
is($replica->value("SELECT state FROM feishu.flows WHERE id = $waiting[0]"), 'succeeded', '... which is done');
$replica->value('ALTER SUBSCRIPTION all_of_it SET (slot_name = NONE); DROP SUBSCRIPTION all_of_it');
$session->value("SELECT pg_drop_replication_slot('all'); DROP PUBLICATION everything; SELECT feishu.resume_server('feishu')");
until_ended($session);
$replica->quit;

# ---- columns and indexes of their own ----

$session->value("ALTER TABLE feishu.outbox ADD COLUMN note text DEFAULT 'none', ADD COLUMN more numeric");
$id = is_sent('a table with more columns is filled');
is($session->value("SELECT note, more IS NULL FROM feishu.outbox WHERE id = $id"), 'none|t', '... these by their defaults');
is_sent('... in a session that knew it before') foreach 1 .. 2;
$session->value('ALTER TABLE feishu.outbox DROP COLUMN note, DROP COLUMN more');
is_sent('... and without them');
$session->value("CREATE INDEX mine ON feishu.outbox USING $_; SET enable_seqscan = off"),
  $id = is_sent("a table with an index using $_ is filled"),
  $session->value('DROP INDEX feishu.mine; RESET enable_seqscan')
  foreach ('gin (params)', 'brin (created_at)', 'hash (flow_id)');

# ---- default privileges ----

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE DATABASE generous');
$node->safe_psql('generous', join(';', (map { "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO app, PUBLIC" } qw(TABLES SEQUENCES SCHEMAS)), 'CREATE EXTENSION feishu_flow'));
is($node->safe_psql('generous', <<'SQL'), 'dispatch_status SELECT, feishu USAGE, flows SELECT, stat_flows SELECT', "default privileges give nobody rights on the queue's tables");
SELECT string_agg(DISTINCT o || ' ' || privilege_type, ', ' ORDER BY o || ' ' || privilege_type)
FROM (SELECT relname, relowner, (aclexplode(relacl)).* FROM pg_class WHERE relnamespace = 'feishu'::regnamespace
  UNION ALL SELECT nspname, nspowner, (aclexplode(nspacl)).* FROM pg_namespace WHERE nspname = 'feishu') AS g (o, owner)
WHERE grantee <> owner
SQL

done_testing();
