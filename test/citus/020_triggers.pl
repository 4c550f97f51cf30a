
# Triggers on distributed tables queue where the row is and with it: once a row, in its transaction, and never because
# Citus moves, splits or copies a shard. The dispatcher of the worker sends.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuCitus;
use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my ($coordinator, @workers) = citus_cluster(mock => $mock);
my @nodes = ($coordinator, @workers);
my $session = FeishuFlow::Session->new($coordinator);
my @queues = map { FeishuFlow::Session->new($_) } @nodes;
until_dispatcher($_) foreach @queues;
my $template =
	q{EXECUTE FUNCTION feishu.flow_trigger('app', 'flow', '{"_id": 1}', '{"n": "$.new.id", "table": "$.table"}', }
  . q{'{"server": "feishu", "ordering_key": "${$.new.id}"}')};

# How many flows are on each node.
sub queued
{
	my ($where) = @_;
	return join(' ', map { $_->value('SELECT count(*) FROM feishu.flows WHERE ' . ($where // 'true')) } @queues);
}

# ---- once a row, with it ----

$session->value("CREATE TABLE orders (id bigint PRIMARY KEY, status text DEFAULT 'new'); "
	  . "SELECT create_distributed_table('orders', 'id')");
fails_with(
	$session, "CREATE TRIGGER queue AFTER INSERT OR UPDATE ON orders FOR EACH ROW $template",
	'XX000',
	'Citus has to be told that triggers are wanted',
	message => qr/triggers are not supported/);
$session->value("SET citus.enable_unsafe_triggers = on; CREATE TRIGGER queue AFTER INSERT OR UPDATE ON orders "
	  . "FOR EACH ROW $template");
$mock->mark;
$session->value('INSERT INTO orders SELECT generate_series(1, 40)');
my @counts = split / /, queued();
is($counts[0], 0, 'none of the flows of 40 rows is on the coordinator');
is($counts[1] + $counts[2], 40, '... one a row on the workers');
ok($counts[1] > 0 && $counts[2] > 0, "... where the rows are: @counts");
until_ended($_) foreach @queues;
is_deeply(
	callers($mock),
	{ worker1 => $counts[1], worker2 => $counts[2] },
	'the workers send them, with their own mappings');
is(join(',', sort { $a <=> $b } started_numbers($mock)), join(',', 1 .. 40), '... each once');
like($queues[1]->value("SELECT params ->> 'table' FROM feishu.flows LIMIT 1"),
	qr/^orders_\d+$/, '$.table is the name of the shard');

# Sending is off, so that rows of the queue are as they were written.
$_->append_conf('postgresql.conf', "feishu_flow.dispatch = off\n") foreach @nodes;
$_->reload foreach @nodes;
wait_until(
	'no dispatcher runs',
	sub {
		!grep { $_->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'") }
		  @queues;
	});
$session->value('INSERT INTO orders SELECT generate_series(101, 120)');
my $same = 0;
foreach my $key (101 .. 120)
{
	my $node = worker_of($coordinator, 'orders', $key, @workers);
	my $shard = shard_of($coordinator, 'orders', $key);
	$same += $node->safe_psql('postgres',
			"SELECT count(*) FROM orders_$shard r JOIN feishu_internal.outbox o ON (o.params ->> 'n')::bigint = r.id "
		  . "AND o.xmin = r.xmin WHERE r.id = $key");
}
is($same, 20, 'each row and its flow are of one transaction');

my $before = queued();
$session->value(
	'BEGIN; INSERT INTO orders SELECT generate_series(201, 220); UPDATE orders SET status = $$x$$; ROLLBACK');
is(queued(), $before, 'a transaction that is rolled back queues none');
fails_with(
	$session, 'INSERT INTO orders SELECT g FROM generate_series(201, 220) g UNION ALL SELECT 120',
	'XX000',
	'a statement that fails in one shard',
	message => qr/duplicate key/);
is(queued(), $before, '... queues none in any');
$session->value(
	'BEGIN; INSERT INTO orders VALUES (301); SAVEPOINT s; INSERT INTO orders VALUES (302); ROLLBACK TO s; COMMIT');
is(queued("params ->> 'n' IN ('301', '302')") =~ tr/1//, 1, 'nor does a savepoint that is rolled back');

# ---- shards that are moved, split and copied ----

$before = queued();
my $target = sub {
	my ($key) = @_;
	my $from = worker_of($coordinator, 'orders', $key, @workers);
	my ($to) = grep { $_ != $from } @workers;
	return (shard_of($coordinator, 'orders', $key), $from, $to);
};
foreach my $mode ('force_logical', 'block_writes')
{
	my ($shard, $from, $to) = $target->(101);
	$session->value("SELECT citus_move_shard_placement($shard, '127.0.0.1', "
		  . $from->port
		  . ", '127.0.0.1', "
		  . $to->port
		  . ", '$mode')");
	is(worker_of($coordinator, 'orders', 101, @workers)->name, $to->name, "a shard is moved, $mode");
	is(queued(), $before, '... and queues nothing');
}
foreach my $mode ('force_logical', 'block_writes')
{
	my ($shard, $from, $to) = $target->(101);
	my ($nodes, $middle) = split /\|/,
	  $coordinator->safe_psql('postgres',
			"SELECT (SELECT nodeid || ',' || nodeid FROM pg_dist_node WHERE nodeport = "
		  . $from->port
		  . "), (shardminvalue::bigint + shardmaxvalue::bigint) / 2 FROM pg_dist_shard WHERE shardid = $shard");
	$session->value("SELECT citus_split_shard_by_split_points($shard, ARRAY['$middle'], ARRAY[$nodes], '$mode')");
	isnt(shard_of($coordinator, 'orders', 101), $shard, "a shard is split, $mode");
	is(queued(), $before, '... and queues nothing');
}
my $third = citus_node('worker3');
citus_add($coordinator, $third);
map_user($third);
$session->value("SELECT rebalance_table_shards('orders')");
cmp_ok(
	$coordinator->safe_psql(
		'postgres',
		'SELECT count(*) FROM citus_shards WHERE table_name = $$orders$$::regclass AND nodeport = ' . $third->port),
	'>', 0,
	'shards are rebalanced to a new node');
is(queued(), $before, '... and queue nothing');
is($third->safe_psql('postgres', 'SELECT count(*) FROM feishu.flows'), 0, '... there, either');

# Work goes on after it: trigger and all.
push @nodes, $third;
push @queues, FeishuFlow::Session->new($third);
$session->value('INSERT INTO orders SELECT generate_series(1001, 1050)');
is(eval(queued("(params ->> 'n')::bigint > 1000") =~ s/ /+/gr), 50, 'rows that come later queue one flow each');
cmp_ok($queues[3]->value('SELECT count(*) FROM feishu.flows'), '>', 0, '... some of them on the new node');

# ---- a table that is distributed when it has rows ----

$session->value(
		"CREATE TABLE filled (id bigint PRIMARY KEY); INSERT INTO filled SELECT generate_series(5001, 5020); "
	  . "SET citus.enable_unsafe_triggers = on; CREATE TRIGGER queue AFTER INSERT ON filled FOR EACH ROW $template");
$session->value("SELECT create_distributed_table('filled', 'id')");
is(eval(queued("(params ->> 'n')::bigint BETWEEN 5001 AND 5020") =~ s/ /+/gr),
	20, 'a table with rows and a trigger that is distributed fires it for every row');
$session->value(
		"CREATE TABLE filled2 (id bigint PRIMARY KEY); INSERT INTO filled2 SELECT generate_series(6001, 6020); "
	  . "SELECT create_distributed_table('filled2', 'id'); "
	  . "CREATE TRIGGER queue AFTER INSERT ON filled2 FOR EACH ROW $template");
is(eval(queued("(params ->> 'n')::bigint BETWEEN 6001 AND 6020") =~ s/ /+/gr),
	0, 'the trigger that is made after it does not');

# ---- reference tables ----

$session->value("CREATE TABLE rates (id bigint PRIMARY KEY); SELECT create_reference_table('rates'); "
	  . "CREATE TRIGGER queue AFTER INSERT ON rates FOR EACH ROW $template");
$session->value('INSERT INTO rates VALUES (7001)');
my $copies = eval(queued("params ->> 'n' = '7001'") =~ s/ /+/gr);
is( $copies,
	$coordinator->safe_psql('postgres', "SELECT count(*) FROM citus_shards WHERE table_name = 'rates'::regclass"),
	"a trigger of a reference table fires on each copy: $copies");
cmp_ok($copies, '>', 1, '... more than once');
$session->value("DROP TRIGGER queue ON rates; CREATE TRIGGER queue AFTER INSERT ON rates "
	  . "FOR EACH ROW WHEN (citus_is_coordinator()) $template");
$session->value('INSERT INTO rates VALUES (7002)');
is(queued("params ->> 'n' = '7002'"), '1 0 0 0', 'WHEN (citus_is_coordinator()): once, on the coordinator');
my $fourth = citus_node('worker4');
citus_add($coordinator, $fourth);
$session->value('SELECT replicate_reference_tables()');
is($fourth->safe_psql('postgres', 'SELECT count(*) FROM rates'), 2, 'a node that comes later gets a copy');
is($fourth->safe_psql('postgres', 'SELECT count(*) FROM feishu.flows'), 0, '... which queues nothing');

done_testing();
