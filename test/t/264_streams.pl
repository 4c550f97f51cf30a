
# The streams of a connection of HTTP/2 cannot be paused. So what their answers may have at once is bounded, and no role
# takes it from the others by answers that do not end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuFront;
use FeishuQueue;
use Test::More;

my $STALLED = 60;

my $mock = FeishuFlow::Mock->start;
my $front = FeishuFront->start($mock, 'none', 'stall');
my $node = queue_cluster('main');
create_server($node, 'feishu', $front->options('none'));
create_server(
	$node,
	'hostile',
	$front->options(
		'stall',
		timeout => '10min',
		token_url => $mock->url . '/open-apis/auth/v3/tenant_access_token/internal'));
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN');
my $eve = FeishuFlow::Session->new($node, user => 'eve');
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

$mock->rules([ { kind => 'execute' }, { type => 'big', bytes => 2_000_000 } ]);
enqueue_many($eve, 1, $STALLED, server => 'hostile', flow_id => 'huge', max_attempts => \1);
$mock->wait_for($STALLED, kind => 'execute', flow_id => 'huge');
wait_until(
	'some find no memory',
	sub { $session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'huge' AND finished_at IS NOT NULL") > 0 }
);
my $id = enqueue($session, max_attempts => \1);
until_ended($session, "id = $id");
is(look($session, $id, 'state, error'),
	'succeeded|', "another role's large answer comes while streams of one role hang");
cmp_ok($session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'huge' AND finished_at IS NULL"),
	'>', 10, '... many of them');
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
