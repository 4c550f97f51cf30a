
# Processes killed, servers shut down in all ways: what was committed starts
# once, what was not never does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "restart_after_crash = on\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# Each transaction writes what it wants beside what it queues: so it can be
# told afterwards what was committed.
$session->value('CREATE SEQUENCE number; CREATE TABLE wanted (n bigint)');
my $script =
	"SELECT nextval('number') AS n \\gset\n"
  . "BEGIN;\nINSERT INTO wanted VALUES (:n);\nSELECT "
  . enqueue_call(params => \q{jsonb_build_object('n', :n::bigint)}) . ";\n"
  . "\\set fate random(1, 10)\n\\if :fate = 1\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n";

sub connect_again
{
	wait_until(
		'the server is there again',
		sub {
			$session = eval { FeishuFlow::Session->new($node) };
			defined $session && eval { until_dispatcher($session); 1 };
		});
	return;
}

sub start_again
{
	$node->start;
	connect_again();
	return;
}

# Everything that was committed has started once, and nothing else has.
sub settle
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$mock->well;
	until_ended($session);
	my $wanted = $session->value('SELECT count(*) FROM wanted');
	note(ends($session) . ", $wanted committed, " . $mock->executes . ' requests');
	is($session->value("SELECT count(*) FROM feishu.flows WHERE state NOT IN ('succeeded', 'unconfirmed')"),
		'0', "$name: all end well");
	is( $session->value(
				"SELECT count(*) FROM feishu.flows f FULL JOIN wanted w ON w.n = (f.params->>'n')::bigint "
			  . "WHERE f.id IS NULL OR w.n IS NULL"),
		'0',
		'... they are those that were committed');
	started_once($mock, $wanted, '... each started once');
	my %wanted = map { $_ => 1 } split /\n/, $session->value('SELECT n FROM wanted');
	my @never = grep { !$wanted{$_} } started_numbers($mock);
	is("@never", '', '... and what was rolled back never');
	return;
}

sub anew
{
	$session->value("TRUNCATE wanted; SELECT feishu.purge_flows(now() + interval '1 day')");
	begin_anew($mock, $session);
	return;
}

# ---- the dispatcher ----

until_dispatcher($session);
$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => [ 0, 30 ] } ]);
my $bench = pgbench_start($node, $script, '-c', '4', '-j', '2', '-T', '20', '-R', '400', '--max-tries=1');
my $killed = 0;
for my $round (1 .. 4)
{
	# a kill of any process has all sessions of the server end
	$mock->mark;
	$mock->wait_for(100, kind => 'execute');
	my $pid = until_dispatcher($session);
	kill 'KILL', $pid;
	$killed++;
	wait_until('it is gone', sub { !alive($pid) });
	$session->quit;
	connect_again();
	$bench->kill_kill;
	$bench = pgbench_start($node, $script, '-c', '4', '-j', '2', '-T', '20', '-R', '400') if $round < 4;
}
settle("kill -9 of the dispatcher, $killed times under load");

# in the middle of a request, at once after it has arrived
foreach my $own (0, 1)
{
	my $whose = $own ? 'given' : 'made';
	anew();
	$mock->fault(type => 'headers_hang');
	$session->value("INSERT INTO wanted SELECT generate_series(1000001, 1000020)");
	enqueue_many($session, 1000001, 1000020, $own ? (idempotent_key => \"'own-' || g") : ());
	$mock->wait_for(20, kind => 'execute');
	kill 'KILL', dispatcher($session);
	$session->quit;
	$mock->well;
	connect_again();
	settle('kill -9 of the dispatcher while 20 requests are under way');
	is(ends($session), 'unconfirmed 20', "... whose answers are lost (the key was $whose): unconfirmed");
	is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), '2', '... at the second attempt');
}

# what has arrived cannot be cancelled after a crash
anew();
$mock->fault(type => 'headers_hang');
my $sent = enqueue($session, params => '{"n": 1}');
$session->value("INSERT INTO wanted VALUES (1)");
$mock->wait_for(1, kind => 'execute');
$session->quit;
kill_postmaster($node);
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->start;
$session = FeishuFlow::Session->new($node);
is($session->value("SELECT feishu.cancel_flow($sent)"),
	'f', 'a flow that was sent before a crash is not cancelled after it');
$mock->well;
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
$node->reload;
until_dispatcher($session);
settle('kill -9 of the postmaster while a request is under way');

# terminated, as an administrator might
anew();
$mock->fault(type => 'latency', ms => 20);
$session->value("INSERT INTO wanted SELECT generate_series(1000001, 1001000)");
enqueue_many($session, 1000001, 1001000);
for (1 .. 2)
{
	my $pid = until_dispatcher($session);
	$mock->mark;
	$mock->wait_for(20, kind => 'execute');
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
}
settle('pg_terminate_backend of the dispatcher, twice');
my $logged = -s $node->logfile;
my $idle = until_dispatcher($session);
wait_until('it is idle',
	sub { $session->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $idle") eq 'Extension' });
$session->value("SELECT pg_terminate_backend($idle)");
until_dispatcher($session, $idle);
unlike(
	slurp_file($node->logfile, $logged),
	qr/FATAL: .*feishu_flow dispatcher/,
	'... which is nothing to log, of an idle one');
anew();
my $worker = until_dispatcher($session);
$session->value("SELECT pg_cancel_backend($worker)");
enqueue_many($session, 1000001, 1000001);
$session->value("INSERT INTO wanted VALUES (1000001)");
settle('pg_cancel_backend of the dispatcher');

# ---- a backend in the middle of an enqueue ----

anew();
my $victim = FeishuFlow::Session->new($node);
$victim->value('BEGIN; INSERT INTO wanted VALUES (1)');
enqueue_many($victim, 1, 10);
kill 'KILL', $victim->pid;
wait_until('it is gone', sub { !alive($victim->pid) });
$session->quit;
connect_again();
$session->value('INSERT INTO wanted VALUES (11)');
enqueue_many($session, 11, 11);
settle('kill -9 of a backend that had queued and not committed');

anew();
for my $round (1 .. 3)
{
	$bench = pgbench_start($node, $script, '-c', '4', '-j', '2', '-T', '20');
	$mock->mark;
	$mock->wait_for(100, kind => 'execute');
	my $pid;
	wait_until(
		'a backend is there to be killed',
		sub {
			($pid) = split /\n/,
			  $session->value("SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench' ORDER BY random()");
		});
	kill 'KILL', $pid;
	wait_until('it is gone', sub { !alive($pid) });
	$session->quit;
	$bench->kill_kill;
	connect_again();
}
settle('kill -9 of backends that queue, three times');

# ---- the server ----

anew();
my $rows = 0;
foreach my $how (qw(kill9 immediate kill9 immediate kill9))
{
	$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => [ 0, 30 ] } ]);
	$bench = pgbench_start($node, $script, '-c', '4', '-j', '2', '-T', '20', '-R', '800');
	$mock->mark;
	$mock->wait_for(150, kind => 'execute');
	$session->quit;
	if   ($how eq 'kill9') { kill_postmaster($node); }
	else                   { $node->stop('immediate'); }
	$bench->kill_kill;
	start_again();
}
settle('kill -9 of the postmaster and immediate shutdowns, in a loop under load');

# ---- a shutdown in good order ----

# of which one server may have three quarters: 256
$node->append_conf('postgresql.conf', 'feishu_flow.max_in_flight = 342');
$node->reload;
my $quickest;
foreach my $fault ({ type => 'hang' }, { type => 'hold' })
{
	anew();
	$mock->fault(%$fault);
	$session->value("INSERT INTO wanted SELECT generate_series(1, 500)");
	enqueue_many($session, 1, 500);
	$mock->wait_for(256, kind => 'execute');
	my $requests = $mock->stats->{max_concurrent_executes};
	is($requests, 256, "256 requests are under way ($fault->{type})");
	$session->quit;
	my $begun = time();
	$node->stop('fast');
	my $seconds = time() - $begun;
	cmp_ok($seconds, '<', 5, sprintf('... a fast shutdown takes %.2f s', $seconds));
	$quickest = $seconds if !defined $quickest || $seconds < $quickest;
	$mock->well;
	$node->start;
	connect_again();
	settle('... and the flows are sent after the restart');
}
cmp_ok($quickest, '<', 1 * $FeishuFlow::SLOW, '... and less than a second when the machine has nothing else to do');

# ---- the state of a crash survives ----

anew();
$session->value("SELECT feishu.pause_server('feishu')");
enqueue_many($session, 1, 5);
$session->value("INSERT INTO wanted SELECT generate_series(1, 5)");
my ($cancel) = split /\n/, $session->value('SELECT id FROM feishu.flows ORDER BY id');
is($session->value("SELECT feishu.cancel_flow($cancel)"), 't', 'a flow is cancelled');
$session->value("DELETE FROM wanted WHERE n = 1");
$session->quit;
$node->stop('immediate');
start_again();
is($session->value("SELECT paused FROM feishu.dispatch_status"), 't', 'a pause survives a crash');
is(look($session, $cancel, 'state'), 'cancelled', '... and what was cancelled stays so');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
started_once($mock, 4, '... all others are sent');

my $log = slurp_file($node->logfile);
my ($bad) = $log =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP).*)$/m;
is($bad, undef, 'no process failed by itself');

done_testing();
