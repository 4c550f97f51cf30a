
# A role with servers of its own, however many, whose flows hang for as long as it says, leaves room for those of
# others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

my $AT_ONCE = 10 * $FeishuFlow::SLOW;
my ($SERVERS, $PLACES) = (40, 16);

my $mock = FeishuFlow::Mock->start;
my $hostile = FeishuFlow::Mock->start;
$hostile->fault(type => 'hang');
my $node = queue_cluster('main', conf => "feishu_flow.max_in_flight = $PLACES\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN; CREATE ROLE app LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO eve; '
	  . 'GRANT USAGE ON FOREIGN SERVER feishu TO app');
my $eve = FeishuFlow::Session->new($node, user => 'eve');
my $app = FeishuFlow::Session->new($node, user => 'app');

foreach my $n (1 .. $SERVERS)
{
	$eve->value("CREATE SERVER evil_$n FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url "
		  . FeishuFlow::quote($hostile->url)
		  . ", timeout '10min'); "
		  . "CREATE USER MAPPING FOR eve SERVER evil_$n OPTIONS (tenant_access_token 't-$n')");
}
my $pid = until_dispatcher($session);

# Flows that hang on each of the servers, of which nothing is known yet.
$eve->value('BEGIN');
enqueue_many($eve, 1, 3, server => "evil_$_") foreach 1 .. $SERVERS;
$eve->value('COMMIT');
$hostile->wait_for($PLACES * 3 / 4, kind => 'execute');

my $begun = time();
foreach my $n (1 .. 20)
{
	my $id = enqueue($app, params => "{\"n\": $n}");
	succeeds($app, "SELECT feishu.wait_flow($id, '$AT_ONCE s')", "a flow of another role is sent, $n") or last;
}
cmp_ok(time() - $begun, '<', $AT_ONCE, sprintf('... at once: %.1f s for all', time() - $begun));
cmp_ok(scalar(arrivals($hostile)), '<', $PLACES, '... the hanging ones have not all places');
is(dispatcher($session), $pid, '... and one dispatcher');

done_testing();
