
# A request goes on the wire only after the transaction that claimed its flow has committed; that of a flow whose key is
# the user's own, only after the claim is as durable as any other commit. So a claim that comes to nothing leaves no
# trace on the platform: the flow is sent as if for the first time.

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
# max_wal_senders, for commits that wait for a standby; and no alarm after a lock was waited for, which would wake the
# dispatcher
my $node = queue_cluster('main', streaming => 1, conf => "restart_after_crash = on\ndeadlock_timeout = '10min'\n");
create_server($node, 'feishu', { base_url => $mock->url });
my ($session, $gate);
my $count = 20;

sub connect_again
{
	wait_until(
		'the server is there again',
		sub {
			$session = eval { FeishuFlow::Session->new($node) };
			defined $session && eval { $gate = FeishuFlow::Session->new($node); until_dispatcher($session); 1 };
		});
	return;
}

# The dispatcher has a token, and connections that a request could be written to at once.
sub warm_up
{
	$mock->well;
	begin_anew($mock, $session);
	$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 20 } ]);
	enqueue_many($session, 1, $count);
	until_ended($session);
	$mock->well;
	$session->value("SELECT feishu.purge_flows('infinity')");
	begin_anew($mock, $session);
	return;
}

# Waits until the dispatcher waits for something.
sub until_waiting
{
	my ($event) = @_;
	wait_until(
		"the dispatcher waits: $event",
		sub {
			$session->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' "
				  . "AND wait_event = '$event'");
		});
	return;
}

# From now on the dispatcher waits when it writes which flows it has claimed, until the gate opens.
sub shut_gate { $gate->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE'); return; }
sub open_gate { my $now = time(); $gate->value('COMMIT'); return $now; }

# All were sent once, after this time, and not for the second time.
sub sent_after
{
	my ($time, $attempts, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	until_ended($session);
	is(ends($session), "succeeded $count", "$name: all succeed");
	is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), $attempts, "... attempts: $attempts");
	my @requests = arrivals($mock);
	is(scalar(@requests), $count, '... with one request each');
	is(scalar(grep { $_->{time} <= $time } @requests), 0, '... none of which came before');
	started_once($mock, $count, '... and each started once');
	return;
}

connect_again();
foreach my $own (0, 1)
{
	my $whose = $own ? "the user's" : 'ours';
	my @key = $own ? (idempotent_key => \"'own-' || clock_timestamp()::text || g") : ();

	# ---- a claim that takes its time ----

	warm_up();
	shut_gate();
	enqueue_many($session, 1, $count, @key);
	until_waiting('transactionid');
	is($mock->executes, 0, "while the claim is under way, nothing is sent (the key is $whose)");
	sent_after(open_gate(), 1, 'when it has committed');

	# ---- one that ends with its process ----

	warm_up();
	shut_gate();
	enqueue_many($session, 1, $count, @key);
	until_waiting('transactionid');
	my $pid = dispatcher($session);
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	is($mock->executes, 0, "the dispatcher is terminated in a claim: nothing was sent (the key is $whose)");
	sent_after(open_gate(), 1, 'another one claims them');

	warm_up();
	shut_gate();
	enqueue_many($session, 1, $count, @key);
	until_waiting('transactionid');
	my $killed = time();
	kill 'KILL', dispatcher($session);
	$_->quit foreach $session, $gate;
	connect_again();
	sent_after($killed, 1, "kill -9 in a claim (the key is $whose)");
}

# ---- a commit that waits for a standby ----

# Commits wait from now on: proved by one that does.
my $attempt = 0;

sub standby_missing
{
	$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
	$node->reload;
	$session->value('SET synchronous_commit = local');
	wait_until(
		'commits wait',
		sub {
			$attempt++;
			$gate->send("SELECT pg_logical_emit_message(true, 'attempt $attempt.', '')");
			my $how = wait_until(
				'it waits, or has ended',
				sub {
					$session->value(
							"SELECT CASE WHEN wait_event = 'SyncRep' THEN 'waits' WHEN state = 'idle' THEN 'ended' END "
						  . "FROM pg_stat_activity WHERE pid = "
						  . $gate->pid
						  . " AND query LIKE '%attempt $attempt.%'");
				});
			return 1 if $how eq 'waits';
			$gate->result;
			return 0;
		});
	return;
}

sub standby_there
{
	my $now = time();
	$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	$node->reload;
	$gate->result;
	return $now;
}

my @key = (idempotent_key => \"'own-' || clock_timestamp()::text || g");

foreach my $own (0, 1)
{
	warm_up();
	standby_missing();
	enqueue_many($session, 1, $count, $own ? @key : ());
	until_waiting('SyncRep');
	is($mock->executes, 0,
		'a flow is not sent before a standby has its claim, whose key is ' . ($own ? "the user's" : 'ours'));
	sent_after(standby_there(), 1, 'when it has');
}

warm_up();
standby_missing();
enqueue_many($session, 1, $count, @key);
until_waiting('SyncRep');
my $crashed = time();
$node->stop('immediate');
$_->quit foreach $session, $gate;
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->start;
connect_again();
sent_after($crashed, 2, 'a crash while it waits: the claim was written, and counts as an attempt');

# A claim in the transaction that records an end.
warm_up();
alter_server($session, 'feishu', 'ADD', max_concurrency => 1);
$mock->fault(type => 'hold');
enqueue_many($session, 1, 2);
$mock->wait_for(1, kind => 'execute');
standby_missing();
$mock->well;
until_waiting('SyncRep');
is($mock->executes, 1, 'while the end of a flow commits, the next one is not sent');
my $released = standby_there();
until_ended($session);
is(scalar(grep { $_->{time} > $released } arrivals($mock)), 1, '... but when it has');
started_once($mock, 2, '... and each started once');

# ---- a place that becomes free meanwhile ----

$mock->config(apps => { cli_narrow => 'narrow-secret' });
create_server(
	$node, 'narrow',
	{ base_url => $mock->url, max_concurrency => 1 },
	{ app_id => 'cli_narrow', app_secret => 'narrow-secret' });
warm_up();
my $caller = FeishuFlow::Session->new($node);
$mock->fault(type => 'hold');
$caller->send(flow(server => 'narrow'));
$mock->wait_for(1, kind => 'execute');
shut_gate();
$session->value('BEGIN');
my $waits = enqueue($session, server => 'narrow');
enqueue($session, flow_id => 'stays');
$session->value('COMMIT');
until_waiting('transactionid');
$mock->rules([ { kind => 'execute', flow_id => 'stays' }, { type => 'hold' } ]);
$mock->release;
succeeds($caller, $caller->result, 'a call has the only place while flows are claimed, and ends');
open_gate();
succeeds($session, "SELECT feishu.wait_flow($waits, '10 s')", '... then the flow that waits for its place is sent');
$mock->well;
until_ended($session);

# ---- a claim that fails ----

alter_server($session, 'feishu', 'DROP', 'max_concurrency');
warm_up();
$session->value('ALTER TABLE feishu_internal.claim ADD CONSTRAINT none CHECK (cardinality(ids) = 0)');
my $pid = until_dispatcher($session);
enqueue_many($session, 1, $count);
wait_until(
	'it has failed',
	sub {
		slurp_file($node->logfile) =~
		  /could not work on the queue, and tries again: .* violates check constraint "none"/;
	});
until_true($session, 'that is told', q{feishu.dispatch_problem() LIKE 'the dispatcher fails%'});
is($mock->executes, 0, 'a claim fails: nothing was sent');
is(dispatcher($session), $pid, '... and the dispatcher goes on');
my $mended = time();
$session->value('ALTER TABLE feishu_internal.claim DROP CONSTRAINT none');
sent_after($mended, 1, 'when it does not');

# ---- a commit that waits for the disk ----

# Whose is put before the C library.  Without a standby nothing else has the claim wait.
SKIP:
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my ($library, $slow) = ("$dir/slow_flush.so", "$dir/slow");
	skip 'no C compiler for a slow disk', 1
	  if system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/slow_flush.c", '-ldl') != 0;
	skip 'the C library is not replaced when memory is watched', 1 if $FeishuFlow::SLOW > 1;
	chmod 0755, $dir;
	$_->quit foreach $session, $gate;
	$node->stop;
	{
		local $ENV{LD_PRELOAD} = $library;
		local $ENV{SLOW_FLUSH} = $slow;
		$node = queue_cluster('slow', conf => "fsync = on\nwal_sync_method = fdatasync\nautovacuum = off\n");
	}
	create_server($node, 'feishu', { base_url => $mock->url });
	connect_again();
	my $flushes =
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' "
	  . "AND wait_event IN ('WALSync', 'WalSync', 'WALWrite', 'WalWrite')";
	foreach my $own (0, 1)
	{
		warm_up();
		# what was written until then is on disk
		$session->value('CHECKPOINT; SET synchronous_commit = off');
		append_to_file($slow, '');
		# one key of the user's among ours is enough; and no end is written meanwhile
		$mock->fault(type => 'hold') if !$own;
		enqueue_many($session, 1, $count,
			$own ? (idempotent_key => \"CASE WHEN g = 3 THEN 'own-' || clock_timestamp()::text END") : ());
		if (!$own)
		{
			$mock->wait_for($count, kind => 'execute');
			pass('a flow whose key is ours is sent before its claim is on disk');
		}
		# before an answer is given up, whose end would wait
		wait_until(
			'the dispatcher waits for the disk',
			sub { $session->value($flushes) eq 't' },
			10 * $FeishuFlow::SLOW);
		is( $mock->executes,
			$own ? 0 : $count,
			$own
			? "a flow with the user's key is not sent before its claim is on disk"
			: '... where it is written at once');
		my $written = time();
		unlink $slow;
		$session->value('RESET synchronous_commit');
		$mock->well;
		if   ($own) { sent_after($written, 1, 'when it is'); }
		else        { until_ended($session); }
	}
}

done_testing();
