
# Whose turn it is among lanes (a server and a role).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
make_lanes($session, 1000);
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

# Seconds of a processor that a process has used.
sub processor_seconds
{
	my @fields = split ' ', slurp_file("/proc/$_[0]/stat");
	return ($fields[13] + $fields[14]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# How often the dispatcher has written what is under way.
sub claims
{
	my $before = dispatcher($session);
	$session->value("SELECT pg_terminate_backend($before)");
	until_dispatcher($session, $before);
	return $session->value("SELECT n_tup_upd FROM pg_stat_user_tables WHERE relid = 'feishu_internal.claim'::regclass");
}

# ---- lanes that have nothing to do any more ----

my $claims = claims();
enqueue_lanes($session, 300, run_at => \"now() + '100 ms'");
until_ended($session);
enqueue_many($session, 1, 200);
until_ended($session);
$claims = claims() - $claims;
note("feishu_internal.claim was written $claims times for 300 flows of as many lanes, and 200 of one");
cmp_ok($claims, '<', 170, 'lanes whose delayed flows were sent take no room from others');

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
	enqueue_lanes($session, 5, server => $name);
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

# ---- lanes of a server that does not answer ----

my $slow = FeishuFlow::Mock->start;
create_server($node, 'slow', { base_url => $slow->url });
$session->value('SELECT feishu.purge_flows(now())');
enqueue($session, server => 'slow');
until_ended($session);
$slow->fault(type => 'reset');
enqueue_lanes($session, 1000, server => 'slow');
until_true(
	$session,
	'its breaker is open',
	"SELECT pause_reason IS NOT NULL FROM feishu.dispatch_status WHERE server = 'slow'");
$slow->mark;
$slow->fault(type => 'hang');
$slow->wait_for(1, kind => 'execute');
$pid = until_dispatcher($session);
my $used = processor_seconds($pid);

for (1 .. 50)
{
	my $id = enqueue($session);
	$session->value("SELECT feishu.wait_flow($id)");
}
$used = processor_seconds($pid) - $used;
note("$used s of a processor for 50 flows beside lanes that wait for a probe");
cmp_ok(
	$used, '<',
	0.5 * $FeishuFlow::SLOW,
	'lanes that wait for the probe of a breaker are not asked about at each turn');
$slow->well;
$session->value("SELECT pg_terminate_backend($pid)");
until_ended($session);
is(ends($session, "server = 'slow'"), 'succeeded 1001', '... and all are sent when it answers');

done_testing();
