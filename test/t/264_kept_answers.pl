
# Answers over kept connections that have to wait for memory come whole: nobody takes their connections for idle ones, on
# which nothing may come.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $FLOWS = 12;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# So many connections that have brought an answer.
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
enqueue_many($session, 1, $FLOWS);
$mock->wait_for($FLOWS, kind => 'execute');
$mock->well;
until_ended($session);
my $pid = until_dispatcher($session);
is(ends($session), "succeeded $FLOWS", 'connections are kept');

$session->value('SELECT feishu.purge_flows(now())');
$session->value("SELECT feishu.pause_server('feishu')");
$mock->rules([ { kind => 'execute', flow_id => 'large' }, { type => 'big', bytes => 4 << 20 } ]);
$mock->mark;
enqueue_many($session, 1, $FLOWS, flow_id => 'large', max_attempts => \1);
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
is(ends($session, 'attempts = 1 AND length(response::text) > 4000000'), "succeeded $FLOWS", 'large answers over kept connections come whole');
is($session->value('SELECT DISTINCT error FROM feishu.flows WHERE error IS NOT NULL'), '', '... all of them');
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
