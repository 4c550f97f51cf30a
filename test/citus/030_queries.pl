
# Where a call of enqueue_flow or execute_flow in a query runs in a cluster of Citus, with whose mapping, and what
# commits together: what docs/citus.md says of it, and that its recipes do what it says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuCitus;
use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my ($coordinator, @workers) = citus_cluster(mock => $mock);
my @nodes = ($coordinator, @workers);
my $session = FeishuFlow::Session->new($coordinator);
my @queues = map { FeishuFlow::Session->new($_) } @nodes;
until_dispatcher($_) foreach @queues;
$session->value("CREATE TABLE orders (id bigint PRIMARY KEY); SELECT create_distributed_table('orders', 'id'); "
	  . "INSERT INTO orders SELECT generate_series(1, 40)");

sub queued
{
	my ($flow) = @_;
	return map { $_->value("SELECT count(*) FROM feishu.flows WHERE flow_id = '$flow'") } @queues;
}

sub total { my ($sum) = (0); $sum += $_ foreach queued(@_); return $sum; }

my $warning = qr/WARNING:  flows are queued a shard at a time/;

# Warnings in the logs of workers since it was asked last.
my %seen;

sub warnings
{
	my $count = 0;
	foreach my $worker (@workers)
	{
		my $log = slurp_file($worker->logfile, $seen{ $worker->name } // 0);
		$seen{ $worker->name } = -s $worker->logfile;
		$count++ while $log =~ /$warning/g;
	}
	return $count;
}

sub enqueue_of
{
	my ($flow, $params) = @_;
	return "feishu.enqueue_flow('app', '$flow', params => jsonb_build_object('n', $params))";
}

# ---- a backfill ----

warnings();
$session->value('SELECT ' . enqueue_of('pushed', 'id') . ' FROM orders');
my @counts = queued('pushed');
is($counts[0], 0, 'enqueue_flow for each row of a distributed table is pushed down');
is($counts[1] + $counts[2], 40, '... and queues on the workers');
cmp_ok(warnings(), '>', 0, '... which warn in their logs');
my $told = $session->ask(
	'SET client_min_messages = debug1; SELECT ' . enqueue_of('told', 'id') . ' FROM orders; RESET client_min_messages');
like(
	$told->{err},
	qr/flows are queued a shard at a time.*Run the query in a transaction block/s,
	'... and the client, if it asks for it, with the hint');
fails_with($session, 'SELECT ' . enqueue_of('halves', '1 / (id - 7)') . ' FROM orders',
	'22012', 'when one shard has an error');
cmp_ok(total('halves'), '>', 0, '... flows of others stay queued');
warnings();

fails_with($session, 'BEGIN; SELECT ' . enqueue_of('whole', '1 / (id - 7)') . ' FROM orders',
	'22012', 'in a transaction block');
$session->value('ROLLBACK');
is(total('whole'), 0, '... none does');
$session->value('BEGIN; SELECT ' . enqueue_of('whole', 'id') . ' FROM orders; COMMIT');
is(total('whole'), 40, '... and all do when there is no error');
is(warnings(), 0, '... without a warning');

my $rows = 'WITH rows AS MATERIALIZED (SELECT id FROM orders) SELECT %s FROM rows';
fails_with($session, sprintf($rows, enqueue_of('gathered', '1 / (id - 7)')), '22012', 'of rows that are read first');
is(total('gathered'), 0, '... none is queued, either');
$session->value(sprintf($rows, enqueue_of('gathered', 'id')));
is(join(' ', queued('gathered')), '40 0 0', '... and all are on the coordinator');
is(warnings(), 0, '... without a warning');

# ---- calls ----

until_ended($_) foreach @queues;
$mock->mark;
$session->value("SELECT feishu.execute_flow('app', 'called') FROM orders");
my $callers = callers($mock);
ok( !$callers->{coordinator} && $callers->{worker1} && $callers->{worker2},
	'execute_flow for each row is called by the workers, with their mappings') or diag(explain($callers));
$mock->mark;
$session->value(
	"SELECT feishu.execute_flow('app', 'limited', params => jsonb_build_object('n', id)) FROM orders LIMIT 3");
cmp_ok($mock->executes, '>', 3, 'LIMIT makes more calls than there are rows: ' . $mock->executes);
$mock->mark;
is( $session->value(
		"WITH rows AS MATERIALIZED (SELECT id FROM orders LIMIT 3) SELECT count(feishu.execute_flow('app', 'limited')) "
		  . "FROM rows"),
	3,
	'of rows that are read first');
is_deeply(callers($mock), { coordinator => 3 }, '... there are as many calls as rows, by the coordinator');

# ---- functions ----

$session->value(<<'SQL');
CREATE FUNCTION submit(key bigint, fails boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE flow bigint;
BEGIN
	INSERT INTO orders VALUES (key);
	flow := feishu.enqueue_flow('app', 'delegated', params => jsonb_build_object('n', key),
		idempotent_key => 'order-' || key);
	IF fails THEN RAISE EXCEPTION 'no'; END IF;
	RETURN flow;
END $$;
SELECT create_distributed_function('submit(bigint, boolean)', 'key', colocate_with => 'orders');
SQL
$session->value("SELECT submit($_)") foreach 101 .. 110;
@counts = queued('delegated');
is($counts[0], 0, 'a delegated function queues on the worker that has its row');
is($counts[1] + $counts[2], 10, '... once');
fails_with($session, 'SELECT submit(111, true)', 'P0001', 'when it fails');
is(total('delegated') . ' ' . $session->value('SELECT count(*) FROM orders WHERE id = 111'),
	'10 0', '... there is neither row nor flow');
is(warnings(), 0, '... and nobody is warned of it');

# ---- ids and keys ----

my @ids = map { $_->value("SELECT min(id) FROM feishu.flows WHERE flow_id = 'pushed'") } @queues[ 1, 2 ];
is($ids[0], $ids[1], 'two nodes give the same id');
$session->value('BEGIN');
fails_with($session, 'SELECT feishu.wait_flow(99999)', '42704', 'a flow of another node is not waited for');
$session->value('ROLLBACK');
$_->safe_psql('postgres',
		"SET citus.enable_ddl_propagation = off; ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS "
	  . "(SET app_id 'cli_coordinator')")
  foreach @workers;
$mock->mark;

foreach my $queue (@queues[ 1, 2 ])
{
	enqueue($queue, flow_id => 'keyed', idempotent_key => 'one-key');
	until_ended($queue, "flow_id = 'keyed'");
}
is(scalar(grep { ($_->{flow_id} // '') eq 'keyed' } @{ $mock->control('GET', 'started') }),
	1, 'a key that two nodes have queued starts one flow');
is($queues[2]->value("SELECT state || ' ' || sqlstate FROM feishu.flows WHERE flow_id = 'keyed'"),
	'failed LK409', '... what the platform refuses of it is told on the other');

# ---- beside a write on one worker ----

$session->value("CREATE TABLE a (n int); CREATE TABLE b (n int); CREATE TABLE two_phase (n int); "
	  . "SELECT citus_add_local_table_to_metadata('two_phase')");
my $other = FeishuFlow::Session->new($coordinator);

# The coordinator cannot commit after the worker was told to: it finds a conflict then.  A crash does the same.
sub commit_late
{
	my ($key, $first) = @_;
	$session->value("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM a; INSERT INTO b VALUES (1); $first"
		  . "INSERT INTO orders VALUES ($key); SELECT "
		  . enqueue_of('beside', $key));
	$other->value('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM b; INSERT INTO a VALUES (1); COMMIT');
	fails_with($session, 'COMMIT', '40001', 'the coordinator cannot commit');
	return total('beside') . ' ' . $other->value("SELECT count(*) FROM orders WHERE id = $key");
}
is(commit_late(201, ''), '0 1', '... what it queued beside a write on one worker is lost, the row is there');
is(commit_late(202, 'DELETE FROM two_phase; '), '0 0', '... with two-phase commit, neither is there');
$session->value(
	'BEGIN; DELETE FROM two_phase; INSERT INTO orders VALUES (203); SELECT ' . enqueue_of('beside', 203) . '; COMMIT');
is(total('beside') . ' ' . $session->value('SELECT count(*) FROM orders WHERE id = 203'), '1 1', '... or both are');

# ---- the coordinator goes down in a two-phase commit ----

until_ended($_) foreach @queues;
$session->value(q[SET citus.enable_unsafe_triggers = on; CREATE TRIGGER queue AFTER INSERT ON orders FOR EACH ROW ]
	  . q[EXECUTE FUNCTION feishu.flow_trigger('app', 'prepared', '{"_id": 1}', '{"n": "$.new.id"}', ]
	  . q['{"server": "feishu"}')]);
$coordinator->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'\n");
$coordinator->reload;
wait_until('it waits for a standby', sub { $other->value('SHOW synchronous_standby_names') eq 'nobody' });
$mock->mark;
$session->send('INSERT INTO orders SELECT generate_series(301, 320)');
wait_until(
	'the workers are prepared',
	sub {
		2 == grep { $_->value('SELECT count(*) > 0 FROM pg_prepared_xacts') eq 't' } @queues[ 1, 2 ];
	});
$coordinator->stop('immediate');
is($mock->executes, 0, 'nothing that is prepared is sent');
foreach my $queue (@queues[ 1, 2 ])
{
	enqueue($queue, flow_id => 'meanwhile');
	until_ended($queue, "flow_id = 'meanwhile'");
}
is($mock->executes, 2, '... and it holds up no other flow');
$coordinator->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
$coordinator->start;
wait_until(
	'all are there',
	sub {
		20 == $queues[1]->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'prepared'") +
		  $queues[2]->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'prepared'");
	});
until_ended($_, "flow_id = 'prepared'") foreach @queues[ 1, 2 ];
is($mock->executes, 22, 'once Citus has recovered the transaction, all of it is sent, each once');

# ---- order across a move ----

$session = FeishuFlow::Session->new($coordinator);
$session->value('SET citus.enable_unsafe_triggers = on; DROP TRIGGER queue ON orders');
$session->value(q[CREATE TRIGGER queue AFTER INSERT OR DELETE ON orders FOR EACH ROW ]
	  . q[EXECUTE FUNCTION feishu.flow_trigger('app', 'ordered', '{"_id": 1}', '{"op": "$.op"}', ]
	  . q['{"server": "feishu", "ordering_key": "order"}')]);
my $from = worker_of($coordinator, 'orders', 401, @workers);
my ($to) = grep { $_ != $from } @workers;
my %queue = map { $nodes[$_]->name => $queues[$_] } 0 .. 2;
$from->safe_psql('postgres', "SELECT feishu.pause_server('feishu')");
$mock->mark;
$session->value('INSERT INTO orders VALUES (401)');
$session->value('SELECT citus_move_shard_placement('
	  . shard_of($coordinator, 'orders', 401)
	  . ", '127.0.0.1', "
	  . $from->port
	  . ", '127.0.0.1', "
	  . $to->port
	  . ", 'block_writes')");
$session->value('DELETE FROM orders WHERE id = 401');
until_ended($queue{ $to->name }, "flow_id = 'ordered'");
is($queue{ $from->name }->value("SELECT state FROM feishu.flows WHERE flow_id = 'ordered'"),
	'queued', 'flows of one ordering_key on two nodes do not wait for each other');
$from->safe_psql('postgres', "SELECT feishu.resume_server('feishu')");
until_ended($queue{ $from->name }, "flow_id = 'ordered'");

# ---- a node without a mapping ----

my $third = citus_node('worker3');
citus_add($coordinator, $third);
$session->value("SELECT replicate_reference_tables('block_writes')");
my $shard = shard_of($coordinator, 'orders', 402);
my $holder = worker_of($coordinator, 'orders', 402, @workers);
$session->value("SELECT citus_move_shard_placement($shard, '127.0.0.1', "
	  . $holder->port
	  . ", '127.0.0.1', "
	  . $third->port
	  . ", 'block_writes')");
fails_with(
	$session, 'INSERT INTO orders VALUES (402)',
	'42704',
	'a shard on a node without a user mapping takes no row',
	message => qr/user mapping/);
map_user($third);
$session->value('INSERT INTO orders VALUES (402)');
is($third->safe_psql('postgres', "SELECT count(*) FROM feishu.flows"), 1, '... until it has one');

done_testing();
