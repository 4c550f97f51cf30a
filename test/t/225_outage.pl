
# The platform is gone for a while, with 10,000 flows queued: single probes, at
# growing intervals, find out when it is back, and nothing is lost, nothing
# starts twice and no flow pays for it.
#
# FEISHU_TEST_PROBES: how many times it is tried in vain (default 4: some
# seconds; with 30 the platform is gone for a minute).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $FLOWS = 10_000;
my $PROBES = $ENV{FEISHU_TEST_PROBES} // 4;

# The mock remembers in a file what it has started, and comes back to its port.
my $state = PostgreSQL::Test::Utils::tempdir() . '/state';
my $mock = FeishuFlow::Mock->start('--state-file', $state);
my $port = $mock->port;
my $node =
  queue_cluster('main', conf => "feishu_flow.retry_base_delay = '500ms'\nfeishu_flow.retry_max_delay = '2s'\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# Attempts that found nobody there.
sub tried_in_vain
{
	return $session->value("SELECT coalesce(sum(no_connection), 0) FROM feishu.stat_flows WHERE flow_id = 'flow'");
}

# ---- it goes, with flows under way ----

$mock->fault(type => 'reset_after');
enqueue_many($session, 1, 100);
$mock->wait_for(100, kind => 'execute');
$mock->stop;
my $begun = time();
enqueue_many($session, 101, $FLOWS);
until_true($session, 'the breaker is open', "SELECT paused AND sending <= 1 FROM feishu.dispatch_status");
like(
	$session->value('SELECT pause_reason FROM feishu.dispatch_status'),
	qr/does not answer/,
	'a platform that is gone opens the breaker');
my $first = tried_in_vain();
wait_until('it is probed', sub { tried_in_vain() >= $first + $PROBES });
my $probed = tried_in_vain() - $first;

# Delays of 0.5, 1, 2, 2, ... seconds.
my $least = ($PROBES > 1 ? 1 : 0) + 2 * ($PROBES > 2 ? $PROBES - 2 : 0);
cmp_ok(time() - $begun, '>=', $least, sprintf('%d probes at growing intervals: %.1f s', $probed, time() - $begun));
cmp_ok($first, '<=', 100 + 256, '... before them no more was tried than was under way');
is($session->value('SELECT count(*) FROM feishu.flows WHERE finished_at IS NOT NULL'), '0', '... all flows wait');
is($session->value('SELECT max(attempts) <= 3 FROM feishu.flows'), 't', '... few attempts are used up');
is($session->value('SELECT count(*) <= 400 FROM feishu.flows WHERE attempts > 0'), 't', '... and of few flows');

# ---- it comes back ----

my $back = FeishuFlow::Mock->start('--state-file', $state, '--port', $port);
$begun = time();
until_true($session, 'the platform is found', 'SELECT NOT EXISTS (SELECT FROM feishu.dispatch_status WHERE paused)');
cmp_ok(
	time() - $begun,
	'<',
	2 + 5 * $FeishuFlow::SLOW,
	sprintf('it is noticed in the time of a probe: %.1f s', time() - $begun));
until_ended($session);
note(ends($session) . ', ' . sprintf('%.1f s', time() - $begun));
started_once($back, $FLOWS, "all $FLOWS start, each once");
is($session->value("SELECT count(*) FROM feishu.flows WHERE state = 'unconfirmed'"),
	'100', 'those whose answers were lost are unconfirmed');
is( $session->value("SELECT count(*) FROM feishu.flows WHERE state = 'succeeded'"),
	$FLOWS - 100,
	'... all others succeed');
is(scalar(() = slurp_file($node->logfile) =~ /LOG:.*"feishu" does not answer/g),
	1, 'one line of the log says that it did not answer');
is(scalar(() = slurp_file($node->logfile) =~ /LOG:.*"feishu" answers again/g), 1, '... and one that it does');

done_testing();
