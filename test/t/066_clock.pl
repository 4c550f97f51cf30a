
# The clock of the machine is set while a call is under way: the call ends in its time all the same; and while a
# dispatcher is at work: it does not wait for the clock. A clock that can be set shows what happens after an hour, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# The clock that can be set is a shared library, put before the C library's.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $library = "$dir/set_clock.so";
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/set_clock.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for a clock that can be set';

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{SET_CLOCK} = "$dir/an_hour_earlier";
	$node = queue_cluster('main', conf => "feishu_flow.poll_interval = '1s'\n");
}
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

succeeds($session, flow(), 'a call');
my $now = $session->value('SELECT clock_timestamp()');
$mock->mark;
$mock->fault(type => 'hang');
$session->send(flow(timeout => '1s'));
$mock->wait_for(1, kind => 'execute');
append_to_file("$dir/an_hour_earlier", '');
my $result =
  fails_with($session, $session->result, 'LK504', 'a call that hangs while the clock is set back ends in its time');
is($session->value('SELECT clock_timestamp() < ' . quote($now)), 't', '... and it was set back');
cmp_ok($result->{seconds}, '<', 30 * $FeishuFlow::SLOW, '... it did not wait for the clock');
$mock->well;
succeeds($session, flow(), '... and the next call works');

$mock->fault(type => 'latency', ms => 1000);
$mock->mark;
$session->send(flow());
$mock->wait_for(1, kind => 'execute');
unlink "$dir/an_hour_earlier";
$result = $session->result;
like($result->{sqlstate}, qr/^(?:00000|LK504)$/, 'a call while the clock is set forward ends');
$mock->well;
succeeds($session, flow(), '... and the next call works');

# ---- the slow poll finds what nobody told of ----

my $id = enqueue($session);
until_state($session, $id, 'succeeded');
append_to_file("$dir/an_hour_earlier", '');
my $unheard = enqueue_unheard($session, $id);
ok(until_state($session, $unheard, 'succeeded'),
	'what nobody told of is sent after the clock was set back, with the next poll');
unlink "$dir/an_hour_earlier";
ok(until_state($session, enqueue($session), 'succeeded'), '... and a flow after it was set forward');

# ---- a dispatcher that failed is started again ----

my $first = dispatcher($session);
my $log = -s $node->logfile;
$session->value('ALTER TABLE feishu_internal.claim ADD CONSTRAINT broken CHECK (false) NOT VALID');
$session->value("SELECT pg_terminate_backend($first)");
wait_until('another one fails', sub { slurp_file($node->logfile, $log) =~ /violates check constraint "broken"/ });
append_to_file("$dir/an_hour_earlier", '');
$session->value('ALTER TABLE feishu_internal.claim DROP CONSTRAINT broken');
ok(until_dispatcher($session, $first),
	'a dispatcher that failed is started again, and does not wait for a clock that was set back');
ok(until_state($session, enqueue($session), 'succeeded'), '... and sends');
unlink "$dir/an_hour_earlier";

# ---- a dispatcher that fails tries again ----

$first = until_dispatcher($session);
$log = -s $node->logfile;
$session->value('ALTER TABLE feishu_internal.claim ADD CONSTRAINT broken CHECK (false) NOT VALID');
$id = enqueue($session);
wait_until('it fails', sub { slurp_file($node->logfile, $log) =~ /could not work on the queue, and tries again/ });
append_to_file("$dir/an_hour_earlier", '');
$session->value('ALTER TABLE feishu_internal.claim DROP CONSTRAINT broken');
ok(until_state($session, $id, 'succeeded'),
	'a dispatcher that fails tries again, and does not wait for a clock that was set back');
is(dispatcher($session), $first, '... it goes on');
unlink "$dir/an_hour_earlier";

# ---- trials of an app that is paused ----

# Its flows are tried again at that time, and not before; there is a poll each second.
sub is_tried_after
{
	my ($server, $minutes, $reason, $repair) = @_;
	append_to_file("$dir/an_hour_earlier", '');
	create_server(
		$node, $server,
		{ base_url => $mock->url },
		{ app_id => "cli_$server", app_secret => "secret-$server" });
	enqueue_many($session, 1, 5, server => $server);
	until_true(
		$session,
		'the app is paused',
		"SELECT paused AND sending = 0 AND pause_reason ~ '$reason' FROM feishu.dispatch_status "
		  . "WHERE server = '$server'");
	is( $session->value(
				"SELECT resume_at - clock_timestamp() BETWEEN '$minutes min'::interval - '30 s' AND '$minutes min' "
			  . "FROM feishu.dispatch_status WHERE server = '$server'"),
		't',
		"$reason: the next trial is said to be after $minutes minutes");
	$repair->();
	# the dispatcher has looked since
	enqueue_many($session, 6, 6, server => $server);
	until_state($session, enqueue($session), 'succeeded');
	is($session->value("SELECT count(*) FROM feishu.flows WHERE server = '$server' AND state <> 'queued'"),
		'0', '... and none is sent meanwhile');
	unlink "$dir/an_hour_earlier";
	until_ended($session, "server = '$server'");
	is(ends($session, "server = '$server'"), 'succeeded 6', '... then one is tried, and all are sent');
	return;
}

$mock->config(apps => { cli_quota => 'secret-quota', cli_secret => 'another' });
$mock->rules(
	[ { kind => 'execute', app_id => 'cli_quota' }, { type => 'code', code => 99991403, http_status => 429 } ]);
is_tried_after('quota', 60, 'quota', sub { $mock->well });
is_tried_after('secret', 10, 'credentials', sub { $mock->config(apps => { cli_secret => 'secret-secret' }) });

done_testing();
