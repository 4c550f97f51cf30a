
# Memory and descriptors of a dispatcher stay flat, however many flows it sends
# and however they end.
#
# FEISHU_TEST_FLOWS: flows of each round after the first ones (default 2,000; script/bench
# sends a million).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $FIRST = 4000;
my $flows = $ENV{FEISHU_TEST_FLOWS} // 2_000;

# What the server may take in any case, and what it may still grow by: bytes that are counted, less than two for each
# flow; or in kB, where they cannot be counted.  With few flows under way it keeps the same handles all the time.
my $MOST = 64 * 1024;
my ($node, $measure, $pid);
my $TOLERANCE = 512;
{
	local %ENV = %ENV;
	if (count_memory())
	{
		$TOLERANCE = 3000;
		$measure = sub { my ($malloced, $used) = memory_in_use($node, $pid); return $malloced + $used; };
	}
	$node = queue_cluster('main', conf => "jit = off\nfeishu_flow.max_in_flight = 8\n");
}

my $mock = FeishuFlow::Mock->start('--log-limit', '1000');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'closed', { base_url => 'http://127.0.0.1:' . closed_port() });
my $session = FeishuFlow::Session->new($node);

# Of all ends that there are: success, refusal, retry, lost answer, large params
# and answers, flows of a key.
$mock->rules(
	[ { kind => 'execute', flow_id => 'retried' }, { type => 'inner', code => 'k_ec_000001' }, every => 2 ],
	[ { kind => 'execute', flow_id => 'lost' }, { type => 'half_answer' }, every => 2 ],
	[ { kind => 'execute', flow_id => 'big' }, { type => 'big', bytes => 100_000 } ]);

sub send_flows
{
	my ($n) = @_;
	while ($n > 0)
	{
		enqueue_many($session, 1, 1400, flow_id => \"'flow' || g");
		enqueue_many($session, 1, 200, flow_id => 'refusedFlow');
		enqueue_many($session, 1, 200, flow_id => 'retried');
		enqueue_many($session, 1, 20, flow_id => 'lost');
		enqueue_many(
			$session, 1, 20,
			flow_id => 'big',
			params => \"jsonb_build_object('n', g, 'text', repeat(md5(g::text), 10000))");
		enqueue_many($session, 1, 160, ordering_key => \"'key' || g % 40");
		until_ended($session, "server = 'feishu'");
		$session->value("SELECT feishu.purge_flows('infinity')");
		$n -= 2000;
	}
	return;
}

$pid = until_dispatcher($session);
send_flows($FIRST);
my $files = open_files($pid);
my $growth = least_growth($pid, $TOLERANCE, sub { send_flows($flows); }, $measure, 8);
is(dispatcher($session), $pid, 'one dispatcher sends all');
cmp_ok($growth, '<=', $TOLERANCE, "memory of the dispatcher stays flat over $flows flows");
cmp_ok(private_kilobytes($pid), '<', $MOST, '... below 64 MB');
cmp_ok(open_files($pid), '<=', $files + 8, '... and so do descriptors');

# Attempts without a connection.
$session->value(
		"SELECT count(feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => 'closed', max_attempts => 1000)) "
	  . "FROM generate_series(1, 5)");
my $attempts = sub { return $session->value("SELECT coalesce(sum(no_connection), 0) FROM feishu.stat_flows"); };
wait_until('it is tried', sub { $attempts->() >= 10 });
$files = open_files($pid);
my $tried = sub {
	my $before = $attempts->();
	wait_until('it is tried', sub { $attempts->() >= $before + 20 });
};
cmp_ok(least_growth($pid, $TOLERANCE, $tried, $measure), '<=', $TOLERANCE, 'memory stays flat while nobody answers');
cmp_ok(open_files($pid), '<=', $files + 1, '... and so do descriptors');

done_testing();
