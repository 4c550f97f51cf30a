
# Flows are sent where they were queued: not by a subscriber that has them by logical replication, though its database
# may have the same OID; but by the cluster that the one they were queued in was upgraded to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $other_mock = FeishuFlow::Mock->start;
my %node =
  map { $_ => queue_cluster($_, streaming => 1, conf => "wal_level = logical\nfeishu_flow.poll_interval = '500ms'\n") }
  qw(publisher subscriber);
create_server($node{publisher}, 'feishu', { base_url => $mock->url });
create_server($node{subscriber}, 'feishu', { base_url => $other_mock->url });
my ($publisher, $subscriber) = map { FeishuFlow::Session->new($_) } @node{qw(publisher subscriber)};
is( $publisher->value('SELECT oid FROM pg_database WHERE datname = current_database()'),
	$subscriber->value('SELECT oid FROM pg_database WHERE datname = current_database()'),
	'two clusters have a database of the same OID');

# Rows of which nobody told are seen at the start of a dispatcher, else now and then.
sub see_all
{
	my ($session) = @_;
	my $dispatcher = until_dispatcher($session);
	$session->value("SELECT pg_terminate_backend($dispatcher)");
	until_dispatcher($session, $dispatcher);
	return;
}

# ---- a subscriber ----

# its ids are others, or rows would not arrive
$subscriber->value('UPDATE feishu_internal.last_id SET id = 1000000');
$publisher->value("SELECT feishu.pause_server('feishu')");
enqueue_many($publisher, 1, 10);
$publisher->value('CREATE PUBLICATION everything FOR ALL TABLES');
$subscriber->value('CREATE SUBSCRIPTION everything CONNECTION '
	  . FeishuFlow::quote($node{publisher}->connstr('postgres'))
	  . ' PUBLICATION everything');
until_true($subscriber, 'the tables are copied',
	"NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')");
is($subscriber->value('SELECT count(*), max(id) FROM feishu_internal.last_id'),
	'1|1000000', '... but not the id that the publisher drew last');
see_all($subscriber);
$subscriber->value("SELECT feishu.resume_server('feishu')");
my $theirs = 'id < 1000000';
until_ended($subscriber, $theirs);
is(ends($subscriber, $theirs),
	'cancelled 10', 'flows that are there when a table is replicated are not sent by the subscriber');
enqueue_many($publisher, 11, 20);
until_true($subscriber, 'rows are replicated', "(SELECT count(*) = 20 FROM feishu.flows WHERE $theirs)");
see_all($subscriber);
until_ended($subscriber, $theirs);
is(ends($subscriber, $theirs), 'cancelled 20', 'nor those that come later');
my $id = enqueue($subscriber, params => '{"n": 100}');
succeeds($subscriber, "SELECT feishu.wait_flow($id)", '... which sends what was queued there');
is($other_mock->started, 1, '... and nothing else');
see_all($subscriber);
$id = enqueue($subscriber, params => '{"n": 101}');
succeeds($subscriber, "SELECT feishu.wait_flow($id)", '... another dispatcher, too');

$mock->fault(type => 'hold');
$publisher->value("SELECT feishu.resume_server('feishu')");
$mock->wait_for(20, kind => 'execute');
until_true(
	$subscriber,
	'what the publisher sends is replicated',
	'EXISTS (SELECT FROM feishu_internal.claim WHERE cardinality(ids) = 20)');
$mock->well;
until_ended($publisher);
started_once($mock, 20, 'the publisher sends its own, each once');
until_true(
	$subscriber,
	'their ends are replicated',
	"(SELECT count(*) = 20 FROM feishu.flows WHERE $theirs AND state = 'succeeded')");
is($subscriber->value('SELECT count(*) FROM feishu_internal.claim'), 2,
	'the subscriber has a row of claims of its own');

# what another's row of claims says of an id
$subscriber->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($subscriber);
$subscriber->value("UPDATE feishu_internal.claim SET ids = ARRAY[$id] "
	  . "WHERE system_identifier <> (SELECT system_identifier FROM pg_control_system())");
is(look($subscriber, $id, 'state'),
	'queued', 'what another cluster is sending has nothing to do with a flow of the same id');
is($subscriber->value('SELECT sum(sending) FROM feishu.dispatch_status'), 0, '... in dispatch_status, too');
is($subscriber->value("SELECT feishu.cancel_flow($id)"), 't', '... which can be cancelled');
$subscriber->value("SELECT feishu.resume_server('feishu')");

# another's row where one's own was
$other_mock->mark;
$subscriber->value(
		q{INSERT INTO feishu_internal.claim (system_identifier, database, major_version, ids) SELECT g, 5, 15, '{}' }
	  . q{FROM generate_series(1, 500) g});
$subscriber->value('VACUUM FULL feishu_internal.claim');
$other_mock->fault(type => 'hold');
$id = enqueue($subscriber);
$other_mock->wait_for(1, kind => 'execute');
is( $subscriber->value(
		"SELECT string_agg((system_identifier < 1000)::text, ' ') FROM feishu_internal.claim WHERE $id = ANY (ids)"),
	'false',
	"a claim is not written to another's row");
$other_mock->well;
until_ended($subscriber);
$subscriber->value('DELETE FROM feishu_internal.claim WHERE system_identifier < 1000');

# ---- another cluster with the same database ----

# Makes a cluster look as if it had another system identifier until now; returns the ids of flows that wait.
sub moved
{
	my ($session, $major, @arguments) = @_;
	$session->value("ALTER SYSTEM SET feishu_flow.dispatch = off; SELECT pg_reload_conf()");
	wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
	my @ids = map { enqueue($session, @arguments) } 1 .. 5;
	$session->value("DELETE FROM feishu_internal.claim WHERE system_identifier <> (SELECT system_identifier "
		  . "FROM pg_control_system())");
	$session->value("UPDATE feishu_internal.outbox SET system_identifier = 1 WHERE id >= $ids[0]");
	$session->value(
		"UPDATE feishu_internal.claim SET system_identifier = 1, major_version = $major, ids = ARRAY[$ids[0]]");
	is(look($session, $ids[0], 'state'), 'sending', 'it is seen what was under way');
	is($session->value("SELECT feishu.cancel_flow($ids[0])"), 'f', '... and cannot be cancelled');
	$session->value("ALTER SYSTEM SET feishu_flow.dispatch = on; SELECT pg_reload_conf()");
	until_dispatcher($session);
	until_ended($session);
	return "id BETWEEN $ids[0] AND $ids[-1]";
}

my $major = int($publisher->value('SHOW server_version_num') / 10000);
$publisher->value('DROP PUBLICATION everything');

my $waited = moved($publisher, $major - 1);
is(ends($publisher, $waited), 'succeeded 5', 'after an upgrade, what was waiting is sent');
is($publisher->value("SELECT string_agg(attempts::text, ' ' ORDER BY id) FROM feishu.flows WHERE $waited"),
	'2 1 1 1 1', '... and what was under way has had an attempt');
$waited = moved($publisher, $major);
is(ends($publisher, $waited), 'succeeded 5', '... also to the same major version');
is( $publisher->value(
			"SELECT string_agg((system_identifier = (SELECT system_identifier FROM pg_control_system()))::text || ' ' "
		  . "|| major_version, ',') FROM feishu_internal.claim"),
	"true $major",
	'... and that is noted');

$waited = moved($subscriber, $major);
is(ends($subscriber, $waited),
	'cancelled 5', 'a subscriber that was made of a standby sends nothing of what was waiting');
$waited = moved($subscriber, $major - 1);
is(ends($subscriber, $waited), 'succeeded 5', '... but a subscriber that was upgraded does');
$subscriber->value('ALTER SUBSCRIPTION everything DISABLE; ALTER SUBSCRIPTION everything SET (slot_name = NONE); '
	  . 'DROP SUBSCRIPTION everything');

# ---- the row is lost ----

$publisher->value('TRUNCATE feishu_internal.claim');
my $restarted = dispatcher($publisher);
$publisher->value("SELECT pg_terminate_backend($restarted)");
$id = enqueue($publisher);
until_dispatcher($publisher, $restarted);
ok(until_state($publisher, $id, 'succeeded'), 'without a row of claims, flows are sent');

done_testing();
