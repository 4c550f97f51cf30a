
# Whose turn it is among lanes (a server and a role).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value("DO \$\$ BEGIN FOR i IN 1..60 LOOP EXECUTE 'CREATE ROLE lane' || i; END LOOP; END \$\$");
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

# One flow for each of so many roles, in one transaction.
sub enqueue_lanes
{
	my ($lanes, %arguments) = @_;
	my $call = enqueue_call(params => \"jsonb_build_object('n', i)", %arguments);
	$session->value("DO \$\$ BEGIN FOR i IN 1..$lanes LOOP "
		  . "PERFORM set_config('role', 'lane' || i, true); PERFORM $call; END LOOP; END \$\$");
	return;
}

# ---- lanes of one app, which has few places ----

foreach my $limit ([ max_concurrency => '1' ], [ max_concurrency => '2' ], [ max_rate => '50' ])
{
	my ($option, $value) = @$limit;
	my $name = "narrow_${option}_$value";
	create_server($node, $name, { base_url => $mock->url, $option => $value });
	$session->value('SELECT feishu.purge_flows(now())');
	begin_anew($mock, $session, 'feishu');
	$mock->fault(type => 'latency', ms => 10);
	my $begun = time();
	enqueue_many($session, 1, 150, server => $name);
	$mock->wait_for(5, kind => 'execute');
	enqueue_lanes(5, server => $name);
	until_ended($session);
	my $took = time() - $begun;
	$mock->well;
	my $before = $session->value('SELECT count(*) FROM feishu.flows WHERE role = current_user'
		  . ' AND finished_at < (SELECT max(finished_at) FROM feishu.flows WHERE role <> current_user)');
	note("$option $value: $before of the backlog ended before the last of the others");
	cmp_ok($before, '<', 100, "a backlog of a role does not hold up others of its app, with $option $value");
	# 50 at once, the others in two seconds
	cmp_ok($took, '<', 5 * $FeishuFlow::SLOW, '... and what max_rate allows is used') if $option eq 'max_rate';
}

done_testing();
