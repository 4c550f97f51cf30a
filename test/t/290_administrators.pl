
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
$replica->value('CREATE SUBSCRIPTION all_of_it CONNECTION '
	  . FeishuFlow::quote($node->connstr('postgres'))
	  . q{ PUBLICATION everything WITH (slot_name = 'all', create_slot = false)});
# (each table by a worker of its own)
until_true(
	$replica,
	'the flows and the pause are replicated',
	'SELECT count(*) = 3 AND EXISTS (SELECT FROM feishu_internal.paused_server) FROM feishu_internal.outbox '
	  . 'WHERE id IN ('
	  . join(', ', @waiting) . ')');
$replica->value('ALTER SUBSCRIPTION all_of_it DISABLE');
my $worker = until_dispatcher($replica);
$replica->value("DELETE FROM feishu_internal.paused_server; SELECT pg_terminate_backend($worker)");
until_dispatcher($replica, $worker);
until_ended($replica);
is( $replica->value("SELECT DISTINCT state || ': ' || error FROM feishu.flows WHERE id >= $waiting[0]"),
	'cancelled: the database was copied while this flow was waiting; the original sends it',
	'flows that were replicated from another database are not sent');
is($replica->value("SELECT bool_and(feishu.retry_flow(id)) FROM feishu.flows WHERE id = $waiting[0]"),
	't', '... unless one says so');
until_ended($replica);
is($replica->value("SELECT state FROM feishu.flows WHERE id = $waiting[0]"), 'succeeded', '... which is done');
$replica->value('ALTER SUBSCRIPTION all_of_it SET (slot_name = NONE); DROP SUBSCRIPTION all_of_it');
$session->value(
	"SELECT pg_drop_replication_slot('all'); DROP PUBLICATION everything; SELECT feishu.resume_server('feishu')");
until_ended($session);

# a table's rows are applied in a database that has the trigger: it fires if it is told to
$_->value('CREATE TABLE note (id int PRIMARY KEY, body text)') foreach $session, $replica;
$session->value("CREATE PUBLICATION notes FOR TABLE note; INSERT INTO note VALUES (0, 'was there before')");
$session->value("SELECT pg_create_logical_replication_slot('notes', 'pgoutput')");
$replica->value(
	q{CREATE TRIGGER tell AFTER INSERT OR UPDATE ON note FOR EACH ROW
	EXECUTE FUNCTION feishu.flow_trigger('app', 'fromReplica', '{"_id": 1}', '{"n": "$.new.id"}')});
$replica->value('CREATE SUBSCRIPTION notes CONNECTION '
	  . FeishuFlow::quote($node->connstr('postgres'))
	  . q{ PUBLICATION notes WITH (slot_name = 'notes', create_slot = false, copy_data = false)});
my $told = "SELECT count(*) FROM feishu.flows WHERE flow_id = 'fromReplica'";
$session->value("INSERT INTO note VALUES (1, 'silent')");
until_true($replica, 'the row is replicated', 'EXISTS (SELECT FROM note WHERE id = 1)');
is($replica->value($told), 0, 'a trigger does not fire for rows that a subscription applies');
$replica->value('ALTER TABLE note ENABLE REPLICA TRIGGER tell');
$session->value("INSERT INTO note VALUES (2, 'told'); UPDATE note SET body = 'told again' WHERE id = 1");
until_true($replica, 'the rows are replicated', "(SELECT count(*) = 2 FROM note WHERE body LIKE 'told%')");
is($replica->value($told), 2, '... unless it is ENABLE REPLICA: then flows are queued where they arrive');
until_ended($replica);
is( $replica->value("SELECT string_agg(state, ' ') FROM feishu.flows WHERE flow_id = 'fromReplica'"),
	'succeeded succeeded',
	'... and sent from there');
is($session->value($told), 0, '... and nowhere else');
$replica->value('DROP SUBSCRIPTION notes');
$session->value('DROP PUBLICATION notes');
$replica->quit;

# ---- columns and indexes of their own ----

$session->value("ALTER TABLE feishu_internal.outbox ADD COLUMN note text DEFAULT 'none', ADD COLUMN more numeric");
$id = is_sent('a table with more columns is filled');
is($session->value("SELECT note, more IS NULL FROM feishu_internal.outbox WHERE id = $id"),
	'none|t', '... these by their defaults');
is_sent('... in a session that knew it before') foreach 1 .. 2;
$session->value('ALTER TABLE feishu_internal.outbox DROP COLUMN note, DROP COLUMN more');
is_sent('... and without them');
$session->value("CREATE INDEX mine ON feishu_internal.outbox USING $_; SET enable_seqscan = off"),
  $id = is_sent("a table with an index using $_ is filled"),
  $session->value('DROP INDEX feishu_internal.mine; RESET enable_seqscan')
  foreach ('gin (params)', 'brin (created_at)', 'hash (flow_id)');

# ---- what holds back flows ----

my $mapping = "USER MAPPING FOR postgres SERVER lonely";
$session->value(
	'CREATE SERVER lonely FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url ' . FeishuFlow::quote($mock->url) . ')');

# A flow that waits for a user mapping.
sub held_flow
{
	$session->value("CREATE $mapping OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
	$session->value('BEGIN');
	my $held = enqueue($session, server => 'lonely', params => '{"n": ' . ++$n . '}');
	$session->value("DROP $mapping; COMMIT");
	until_true(
		$session,
		'the flow is held',
		"EXISTS (SELECT FROM feishu.dispatch_status WHERE server = 'lonely' AND pause_reason ~ 'no user mapping')");
	return $held;
}

sub dispatch
{
	my ($on) = @_;
	$session->value("ALTER SYSTEM SET feishu_flow.dispatch = $on");
	$session->value('SELECT pg_reload_conf()');
	wait_until("dispatch is $on", sub { (dispatcher($session) ne '') == ($on eq 'on') });
	return;
}

$id = held_flow();
dispatch('off');
$session->value("CREATE $mapping OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
dispatch('on');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a flow that was held is sent by another dispatcher');
is($session->value("SELECT count(*) FROM feishu.dispatch_status WHERE server = 'lonely'"),
	'0', '... and dispatch_status does not say that the server is paused');
$session->value("DROP $mapping");
$id = held_flow();
is($session->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow that is held is cancelled');
$session->value('CREATE SERVER another FOREIGN DATA WRAPPER feishu_flow');    # have all lanes looked at
until_true(
	$session,
	'dispatch_status says no more of it',
	"NOT EXISTS (SELECT FROM feishu.dispatch_status WHERE server = 'lonely')");

# ---- settings of the database ----

$session->value('ALTER DATABASE postgres SET lock_timeout = 1; ALTER DATABASE postgres SET synchronous_commit = off');
dispatch('off');
dispatch('on');
$before = dispatcher($session);
my $other = FeishuFlow::Session->new($node);
$session->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE');
enqueue($other);
until_true(
	$session,
	'the dispatcher waits for a lock',
	"EXISTS (SELECT FROM pg_locks WHERE pid = $before AND NOT granted)");
$session->value("SELECT pg_sleep(0.2)");    # longer than lock_timeout
$session->value('ROLLBACK');
is_sent('with a lock_timeout of the database flows are sent');
is(dispatcher($session), $before, '... by the dispatcher that had to wait');

# the WAL writer does not write in this test
$session->value('SET synchronous_commit = on');
$id = is_sent('with synchronous_commit = off for the database flows are sent');
$node->stop('immediate');
$node->start;
$session = FeishuFlow::Session->new($node);
until_dispatcher($session);
until_ended($session);
is(look($session, $id, 'state, attempts'), 'succeeded|1', '... and their ends are not lost in a crash');

# ---- default privileges ----

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE DATABASE generous');
$node->safe_psql(
	'generous',
	join(';',
		(map { "ALTER DEFAULT PRIVILEGES GRANT ALL ON $_ TO app, PUBLIC" } qw(TABLES SEQUENCES SCHEMAS)),
		'CREATE EXTENSION feishu_flow'));
is( $node->safe_psql('generous', <<'SQL'),
SELECT string_agg(DISTINCT o || ' ' || privilege_type, ', ' ORDER BY o || ' ' || privilege_type)
FROM (SELECT relname, relowner, (aclexplode(relacl)).* FROM pg_class
    WHERE relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace)
  UNION ALL SELECT nspname, nspowner, (aclexplode(nspacl)).* FROM pg_namespace
    WHERE nspname IN ('feishu', 'feishu_internal')) AS g (o, owner)
WHERE grantee <> owner
SQL
	'attempts SELECT, dispatch_status SELECT, feishu USAGE, flows SELECT, problems SELECT, stat_flows SELECT',
	"default privileges give nobody rights on the queue's tables");

done_testing();
