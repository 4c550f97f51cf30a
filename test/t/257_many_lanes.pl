
# The bounds of a dispatcher hold, whatever the number of lanes (a server and a role), and whatever it runs short of:
# never more requests at once than max_in_flight, little memory, no restart, no attempt for nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $LANES = 1500;
my $MOST_AT_ONCE = 256;                                           # the default of max_in_flight
my $MOST_MEMORY = 64 * 1024 * ($FeishuFlow::SLOW > 1 ? 4 : 1);    # what watches memory takes some
my $AT_ONCE = 10 * $FeishuFlow::SLOW;

# A disk that can be full is a shared library, put before the C library's.
my $library = PostgreSQL::Test::Utils::tempdir() . '/full_disk.so';
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/full_disk.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for a disk that can be full';

# All of 127.0.0.0/8 is this machine: a host for each server.
my $mock = FeishuFlow::Mock->start('--host', '0.0.0.0');
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	$node = queue_cluster('main', conf => "max_files_per_process = 1000\njit = off\n");
}
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
make_lanes($session, $LANES);
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

# Waits until all that match have ended: well, with the first attempt, sent by the dispatcher that there was.
sub all_succeed
{
	my ($name, $n, $condition) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	until_ended($session, $condition);
	is(ends($session, "attempts = 1 AND $condition"), "succeeded $n", "$name: all succeed with the first attempt")
	  or diag('there are: ' . ends($session, $condition));
	is(dispatcher($session), $pid, '... with one dispatcher');
	return;
}

# So many requests at most are open on the platform's side, of all since this was asked last.
sub at_once_is_at_most
{
	my ($most) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = $mock->stats->{max_concurrent_executes};
	cmp_ok($seen, '<=', $most, "... at most $most at once");
	begin_anew($mock, $session, 'feishu');
	return $seen;
}

sub setting
{
	my ($line) = @_;
	$node->append_conf('postgresql.conf', "feishu_flow.$line");
	$node->reload;
	my ($name, $value) = split / = /, $line;
	until_true($session, "$name is $value", "current_setting('feishu_flow.$name') = '$value'");
	return;
}

# ---- lanes ----

$mock->fault(type => 'latency', ms => 400);
enqueue_lanes($session, $LANES, flow_id => 'many');
my $memory = until_ended_watching($session, $pid);
all_succeed("$LANES lanes", $LANES, q{flow_id = 'many'});
my $seen = at_once_is_at_most($MOST_AT_ONCE);
cmp_ok($seen, '>', $MOST_AT_ONCE / 2, '... and no less than that allows');
note("$seen at once, $memory kB at most");
cmp_ok($memory, '<', $MOST_MEMORY, '... with little memory');

$mock->fault(type => 'latency', ms => 1500);
enqueue_many($session, 1, 300, flow_id => 'beside');
enqueue_lanes($session, 180, flow_id => 'beside');
all_succeed('300 flows of a role, and one each of 180', 480, q{flow_id = 'beside'});
at_once_is_at_most($MOST_AT_ONCE);

setting('max_in_flight = 1000');
$mock->fault(type => 'latency', ms => 1500);
enqueue_many($session, 1, 1000, flow_id => 'thousand');
all_succeed('a thousand at once', 1000, q{flow_id = 'thousand'});
at_once_is_at_most(1000);
setting("max_in_flight = $MOST_AT_ONCE");

# ---- lanes of a server that hangs ----

create_server($node, 'hanging', { base_url => 'http://127.0.0.2:' . $mock->port });
$mock->rules([ { kind => 'execute', flow_id => 'stuck' }, { type => 'hold' } ]);
enqueue_lanes($session, 300, flow_id => 'stuck', server => 'hanging');
$mock->wait_for($MOST_AT_ONCE / 2, kind => 'execute', flow_id => 'stuck');
my $begun = time();
enqueue_many($session, 1, 50, flow_id => 'other');
until_ended($session, q{flow_id = 'other'});
cmp_ok(time() - $begun, '<', $AT_ONCE, '300 lanes whose server hangs do not hold up another');
$mock->well;
all_succeed('they are answered at last', 350, q{flow_id IN ('stuck', 'other')});
at_once_is_at_most($MOST_AT_ONCE);

# ---- no descriptors ----

# A dispatcher that keeps no connection yet but one.
$session->value("SELECT pg_terminate_backend($pid)");
$pid = until_dispatcher($session, $pid);
until_state($session, enqueue($session), 'succeeded');

# What was queued under this name and has failed, or was tried for nothing.
sub tried_in_vain
{
	my ($flow_id) = @_;
	return $session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = '$flow_id' "
		  . q{AND (state IN ('failed', 'unconfirmed') OR attempts > (finished_at IS NOT NULL)::int)});
}

# What the process may open is what it has open, and two more.
my %open = map { m{(\d+)$} ? ($1 => 1) : () } glob("/proc/$pid/fd/*");
my $limit = 0;
for (my $free = 2; $free > 0; $limit++)
{
	$free-- if !$open{$limit};
}
my ($usual) = slurp_file("/proc/$pid/limits") =~ /^Max open files\s+(\d+)/m;
system('prlimit', '--pid', $pid, "--nofile=$limit:") == 0 or die "prlimit: $?";
$mock->fault(type => 'latency', ms => 100);
enqueue_many($session, 1, 100, flow_id => 'starved');
enqueue_lanes($session, 100, flow_id => 'starved');
wait_until('it has noticed', sub { slurp_file($node->logfile) =~ /could not prepare flow \d+, and tries again/ });
is(tried_in_vain('starved'), '0', 'without descriptors nothing fails, and no attempt is counted');
is(dispatcher($session), $pid, '... and the dispatcher goes on');
system('prlimit', '--pid', $pid, "--nofile=$usual:") == 0 or die "prlimit: $?";
all_succeed('when there are some again', 200, q{flow_id = 'starved'});

# ---- a full disk ----

create_server($node, 'next', { base_url => 'http://127.0.0.3:' . $mock->port });
$session->value(q{SELECT feishu.pause_server('next')});
enqueue_many($session, 1, 10, server => 'next', flow_id => 'next');
$mock->rules([ { kind => 'execute', flow_id => 'echoParams' }, { type => 'hold' } ]);
$mock->mark;

# answers that take new pages to be recorded
my $noise = q{SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100 + g)};
enqueue_many($session, 1, 50, flow_id => 'echoParams', params => \"jsonb_build_object('n', g, 'text', ($noise))");
$mock->wait_for(50, kind => 'execute', flow_id => 'echoParams');
my $full = $node->data_dir . '.full';
my $log_size = -s $node->logfile;
append_to_file($full, '');
$mock->release;
$mock->wait_for(50, kind => 'execute', flow_id => 'echoParams', state => 'done');
wait_until('the disk is full', sub { slurp_file($node->logfile, $log_size) =~ /could not extend file/ });
$session->value(q{SELECT feishu.resume_server('next')});
# it has tried again since, more than once
my $rolled_back = q{SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()};
my $tries = $session->value($rolled_back);
wait_until('it tries again', sub { $session->value($rolled_back) >= $tries + 2 });
like($session->value('SELECT feishu.dispatch_problem()'), qr/the dispatcher fails/, 'a full disk is told');
is($mock->count(kind => 'execute', flow_id => 'next'), 0, 'while the disk is full, no more is sent');
is(tried_in_vain('echoParams'), '0', '... and what was answered is not given up');
is(dispatcher($session), $pid, '... and the dispatcher goes on');
$mock->well;
unlink $full;
all_succeed('when there is room again', 60, q{flow_id IN ('echoParams', 'next')});

# ---- servers that are dead ----

# One lane each, for more than all of the room.
setting('max_in_flight = 64');
my $TIMEOUT = 2;
$mock->rules([ { kind => 'execute', flow_id => 'dead' }, { type => 'hang' } ]);
$mock->mark;
foreach my $i (1 .. 100)
{
	my $url = "http://127.0.1.$i:" . $mock->port;
	$session->value(
			"CREATE SERVER dead$i FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '$url', timeout '${TIMEOUT}s');"
		  . "CREATE USER MAPPING FOR PUBLIC SERVER dead$i OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
	enqueue_many($session, 1, 3, server => "dead$i", flow_id => 'dead');
}
$mock->wait_for(48, kind => 'execute', flow_id => 'dead');
$begun = time();
enqueue_many($session, 1, 20, flow_id => 'healthy');
until_ended($session, q{flow_id = 'healthy'});
cmp_ok(time() - $begun, '<', $TIMEOUT + 2 * $FeishuFlow::SLOW, 'dead servers hold up another for one timeout at most');
all_succeed('... whose flows', 20, q{flow_id = 'healthy'});

done_testing();
