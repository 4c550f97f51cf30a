
# Several PostgreSQL servers that send for one app keep to its limits together, each to the share of max_rate and
# max_concurrency that feishu_flow.rate_share gives it: calls and queued flows.  A reload is enough to change it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.rate_share = 0.25\n");
create_server($node, 'placed', { base_url => $mock->url, max_concurrency => 8 });
create_server(
	$node, 'small',
	{ base_url => $mock->url, max_concurrency => 2 },
	{ app_id => 'cli_small', app_secret => 's' });
create_server(
	$node, 'rated',
	{ base_url => $mock->url, max_rate => '20/h' },
	{ app_id => 'cli_rated', app_secret => 's' });
$mock->config(apps => { cli_mock => 'mock-secret', cli_small => 's', cli_rated => 's' });
my $session = FeishuFlow::Session->new($node);
my @callers = map { FeishuFlow::Session->new($node) } 1 .. 3;
my $call = sub { return flow(server => $_[0], timeout => '100ms') };

# So many flows of a server are under way, and no more go.
sub held_at
{
	my ($server, $places, $name) = @_;
	$mock->wait_for($places);
	fails_with($session, $call->($server), 'LK429', "$name: a call finds no place");
	is($mock->executes, $places, "... there are $places");
	return;
}

# ---- max_concurrency ----

$mock->fault(type => 'hold');
$mock->mark;
enqueue_many($session, 1, 6, server => 'placed');
held_at('placed', 2, 'a quarter of max_concurrency 8, for queued flows');

$node->append_conf('postgresql.conf', "feishu_flow.rate_share = 0.5\n");
$node->reload;
enqueue_many($session, 7, 7, server => 'placed');
$mock->well;
until_ended($session, "server = 'placed'");
$mock->fault(type => 'hold');
$mock->mark;
enqueue_many($session, 8, 14, server => 'placed');
held_at('placed', 4, 'half of it, once the setting is loaded again');
$mock->well;
until_ended($session, "server = 'placed'");

$node->append_conf('postgresql.conf', "feishu_flow.rate_share = 0.25\n");
$node->reload;
wait_until('it is seen', sub { $session->value('SHOW feishu_flow.rate_share') eq '0.25' });
$mock->fault(type => 'hold');
$mock->mark;
$callers[0]->send(flow(server => 'small'));
held_at('small', 1, 'a share of less than one call is one');
$mock->well;
succeeds($callers[0], $callers[0]->result, '... which is answered');

# ---- max_rate ----

$mock->mark;
succeeds(
	$session,
	"SELECT count(feishu.execute_flow('a', 'b', '{\"_id\": 1}', server => 'rated')) FROM generate_series(1, 5)",
	'of a quarter of 20/h, five go');
fails_with($session, flow(server => 'rated', timeout => '5s'), 'LK429', 'the sixth does not', message => qr/max_rate/);
is($mock->executes, 5, '... and was not sent');

foreach my $share ('0', '1.5', '-1')
{
	fails_with($session, "ALTER SYSTEM SET feishu_flow.rate_share = $share", '22023', "a share of $share is none");
}
fails_with($session, 'SET feishu_flow.rate_share = 1', '55P02', 'a session cannot take more than its server may have');

done_testing();
