
# Where nothing can be written a flow can still be called.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $primary = new_cluster('primary', streaming => 1);
create_server($primary, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($primary);

succeeds($session, 'BEGIN READ ONLY; ' . flow() . '; COMMIT;', 'a read-only transaction may call');
succeeds(
	$session,
	'BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; ' . flow() . '; COMMIT;',
	'a serializable one, too');
is( succeeds(
		$session,
		"SET default_transaction_read_only = on; SELECT token_ok FROM feishu.check_server()",
		'check_server in a read-only session'),
	't',
	'... obtains a token');
fails_with($session, flow(flow_id => 'refusedFlow'), 'LK400', 'a refusal in a read-only session');

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', 'CREATE TABLE something ()');
$primary->wait_for_catchup('standby');

$mock->mark;
my $on_standby = FeishuFlow::Session->new($standby);
is($on_standby->value('SELECT pg_is_in_recovery()'), 't', 'the standby is in recovery');
my $out = succeeds($on_standby, flow(), 'a standby may call');
like($out, qr/"execution_id": "18169700914/, '... and gets its answer');
is($mock->token_requests, 1, 'a standby has a token of its own');
succeeds($on_standby, flow(), 'a second call on the standby');
is($mock->token_requests, 1, '... which it keeps');
is($on_standby->value('SELECT token_ok FROM feishu.check_server()'), 't', 'check_server on a standby');
fails_with($on_standby, flow(flow_id => 'refusedFlow'), 'LK400', 'a refusal on the standby');
is( $on_standby->value(
		q{SELECT count((r).response) FROM (SELECT feishu.execute_flows('a', 'b', '{"_id": 1}') OVER () AS r
	FROM generate_series(1, 50)) AS s}),
	50,
	'many calls at once on the standby');
$mock->fault(type => 'hang');
fails_with($on_standby, flow(timeout => '200ms'), 'LK504', 'a timeout on the standby');
$mock->well;

my $why = qr/is a standby: the queue is written to on the primary/;
foreach my $call (
	"enqueue_flow('app', 'flow', '{\"_id\": 1}')", 'cancel_flow(1)',
	'retry_flow(1)', "purge_flows('now')",
	"pause_server('feishu')", "resume_server('feishu')")
{
	my ($name) = $call =~ /^(\w+)/;
	fails_with(
		$on_standby, "SELECT feishu.$call", '25006', "$name() on a standby",
		message => qr/^cannot execute $name\(\) in a read-only transaction/,
		hint => $why);
}
fails_with(
	$session, "SELECT feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}')",
	'25006',
	'in a read-only session of the primary',
	hint => qr/READ WRITE/);

# What is altered on the primary takes effect on the standby once it is replayed.
$session->value('SET default_transaction_read_only = off');
alter_server($session, 'feishu', 'ADD', operator => '{"_id": 42}');
$primary->wait_for_catchup('standby');
$mock->mark;
succeeds($on_standby, flow(operator => undef), 'a call with the operator that was set on the primary');
my ($request) = $mock->log(kind => 'execute');
like($request->{json}{operator}, qr/^\{"_id":\s*42\}$/, '... sends it');

# and a session lives on over the promotion
$standby->promote;
$standby->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
succeeds($on_standby, flow(), 'a session goes on after the promotion');

done_testing();
