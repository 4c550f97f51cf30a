
# A flow that is replaced while the dispatcher claims rows is not sent as if its server had not been paused together
# with that.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, $_, { base_url => $mock->url }) foreach qw(feishu other);
my ($session, $admin) = map { FeishuFlow::Session->new($node) } 1 .. 2;
until_dispatcher($session);

# Where the dispatcher looks servers up it has a snapshot, in which the server is not paused.
my $id = enqueue($session, params => '{"n": 1}', replace_key => 'k', run_at => \"now() + interval '2 s'");
my $first = enqueue($session, params => '{"n": 0}');
succeeds($session, "SELECT feishu.wait_flow($first)", 'the dispatcher knows what waits');
$mock->mark;
$admin->value('BEGIN; SELECT 1 FROM pg_foreign_server; LOCK TABLE pg_foreign_server');
until_true($session, 'the dispatcher waits for the lock',
	q{EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' }
	  . q{AND wait_event_type = 'Lock')});
is(enqueue($admin, params => '{"n": 2}', replace_key => 'k'), $id, 'the flow is replaced');
$admin->value("SELECT feishu.pause_server('feishu'); COMMIT");
my $next = enqueue($session, server => 'other', params => '{"n": 3}');
succeeds($session, "SELECT feishu.wait_flow($next)", 'the dispatcher has gone on');
is(join(' ', numbers($mock)), '3', '... without the flow, for its server was paused together with that');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
is(join(' ', numbers($mock)), '3 2', 'it is sent when the server is resumed, as it was queued last');

done_testing();
