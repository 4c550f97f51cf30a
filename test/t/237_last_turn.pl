
# What a dispatcher that is told to end still does: it finishes what it is
# writing and waits a little for answers, but sends nothing new.

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
my $session;
my $flows = 60;

# It waits a little for what is under way, and for what it is writing: on a
# machine that is busy with something else that may be too little, once.
sub told_in_time
{
	my ($name, $deed, $more) = @_;
	my $all = $flows + ($more // 0);
	my $recorded;
	foreach my $round (1 .. 5)
	{
		$session = FeishuFlow::Session->new($node);
		my $pid = until_dispatcher($session);
		$session->value("SELECT feishu.purge_flows('infinity')");
		begin_anew($mock, $session);
		$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
		enqueue_many($session, 1, $flows);
		$mock->wait_for($flows, kind => 'execute');
		until_true($session, 'the claims are written', "SELECT sending = $flows FROM feishu.dispatch_status");
		$deed->($pid);
		wait_until('it has ended', sub { !alive($pid) });
		$mock->well;
		until_ended($session);
		$recorded = $session->value("SELECT string_agg(DISTINCT state || ' ' || attempts, ', ') FROM feishu.flows");
		$session->quit;
		note("round $round: $recorded");
		last if $recorded eq 'succeeded 1';
	}
	is($recorded, 'succeeded 1', $name);
	is($mock->executes, $all, '... and none is sent again');
	return;
}
sub tell_to_end
{
	my ($pid) = @_;
	kill 'TERM', $pid;
	wait_until('it has the signal', sub { !alive($pid) || slurp_file("/proc/$pid/status") !~ /^ShdPnd:.*4...$/m });
	return;
}

# Has answers come, and locks rows so that it waits while it records them.
sub until_it_records
{
	my ($pid, $locker, $order) = @_;
	$locker->value("BEGIN; SELECT id FROM feishu_internal.outbox ORDER BY id $order FOR UPDATE");
	$mock->release;
	until_true(
		$session,
		'it waits for a row',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'");
	return;
}

told_in_time(
	'told to end, it waits for answers that come soon',
	sub {
		my ($pid) = @_;
		tell_to_end($pid);
		$mock->release;
	});
told_in_time(
	'told to end while it records answers, it records them',
	sub {
		my ($pid) = @_;
		my $other = FeishuFlow::Session->new($node);
		until_it_records($pid, $other, 'DESC LIMIT 1');
		kill 'TERM', $pid;
		$other->value('COMMIT');
		$other->quit;
	});
# However long it has waited for something before.
told_in_time(
	'told to end when it has been quiet for long, it waits for answers that come soon',
	sub {
		my ($pid) = @_;
		until_true(
			$session,
			'it has been quiet for long',
			"SELECT clock_timestamp() - state_change > '1.2 s' FROM pg_stat_activity WHERE pid = $pid");
		tell_to_end($pid);
		$mock->release;
	});
told_in_time(
	'told to end while it records answers, when it once had to wait for long, it records them',
	sub {
		my ($pid) = @_;
		my $other = FeishuFlow::Session->new($node);
		$other->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE');
		enqueue($session, params => '{"n": 1000}');
		until_true(
			$session,
			'it waits for long',
			"SELECT wait_event_type = 'Lock' AND clock_timestamp() - xact_start > '1.2 s' FROM pg_stat_activity "
			  . "WHERE pid = $pid");
		$other->value('COMMIT');
		$mock->wait_for($flows + 1, kind => 'execute');
		until_it_records($pid, $other, 'DESC LIMIT 1');
		kill 'TERM', $pid;
		$other->value('COMMIT');
		$other->quit;
	},
	1);

# What it does not need to send any more, it does not.
sub nothing_new
{
	my ($name, $deed) = @_;
	$session = FeishuFlow::Session->new($node);
	my $pid = until_dispatcher($session);
	$session->value("SELECT feishu.purge_flows('infinity')");
	begin_anew($mock, $session);
	my $sent = $deed->($pid);
	wait_until('it has ended', sub { !alive($pid) });
	is($mock->executes, $sent, $name);
	$mock->well;
	$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
	$node->reload;
	$session->value("SELECT feishu.resume_server(srvname) FROM pg_foreign_server");
	until_ended($session);
	is($session->value("SELECT string_agg(DISTINCT state || ' ' || attempts, ', ') FROM feishu.flows"),
		'succeeded 1', '... until it is there again');
	$session->quit;
	return;
}
nothing_new(
	'told to end while it records answers, it claims nothing more',
	sub {
		my ($pid) = @_;
		$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
		enqueue_many($session, 1, $flows);
		$mock->wait_for($flows, kind => 'execute');
		until_true($session, 'the claims are written', "SELECT sending = $flows FROM feishu.dispatch_status");
		my $other = FeishuFlow::Session->new($node);
		until_it_records($pid, $other, '');
		enqueue_many($session, 1 + $flows, 2 * $flows);
		# the next one is not to send them; this one hears of it too late
		$session->value("SELECT feishu.pause_server('feishu')");
		kill 'TERM', $pid;
		$other->value('COMMIT');
		$other->quit;
		return $flows;
	});
nothing_new(
	'asked to end while it records answers, it sends nothing more',
	sub {
		my ($pid) = @_;
		$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
		enqueue_many($session, 1, 300);
		$mock->wait_for(192, kind => 'execute');
		until_true($session, 'the claims are written', "SELECT sending = 192 FROM feishu.dispatch_status");
		my $other = FeishuFlow::Session->new($node);
		until_it_records($pid, $other, '');
		my $sent = $mock->executes;
		$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
		$node->reload;
		# most likely the launcher has asked when a session knows
		until_true($session, 'the setting is known', "SELECT current_setting('feishu_flow.dispatch') = 'off'");
		$other->value('COMMIT');
		$other->quit;
		return $sent;
	});
$mock->config(apps => { map { +"cli_other$_" => 'other-secret' } 0, 1 });
foreach my $in_time (0, 1)
{
	nothing_new(
		'told to end before a token came, it sends nothing',
		sub {
			my ($pid) = @_;
			create_server(
				$node, "other$in_time",
				{ base_url => $mock->url },
				{ app_id => "cli_other$in_time", app_secret => 'other-secret' });
			$mock->rules([ { kind => 'token' }, { type => 'hold' } ]);
			enqueue_many($session, 1, $flows, server => "other$in_time");
			until_true(
				$session,
				'the claims are written',
				"SELECT sending = $flows FROM feishu.dispatch_status WHERE server = 'other$in_time'");
			$session->value("SELECT feishu.pause_server('other$in_time')");
			tell_to_end($pid);
			$mock->release if $in_time;
			return 0;
		});
}
nothing_new(
	'told to end when its token is refused, it sends nothing with another',
	sub {
		my ($pid) = @_;
		$mock->rules([ { kind => 'execute' }, { type => 'hold', started => JSON::PP::false } ]);
		enqueue_many($session, 1, $flows);
		$mock->wait_for($flows, kind => 'execute');
		until_true($session, 'the claims are written', "SELECT sending = $flows FROM feishu.dispatch_status");
		$session->value("SELECT feishu.pause_server('feishu')");
		$mock->revoke;
		tell_to_end($pid);
		$mock->release;
		return $flows;
	});
unlike(slurp_file($node->logfile), qr/FATAL:  .*background worker|ERROR:/, 'it ends in good order');

# It does not wait for ever for somebody who has locked what it writes to: a shutdown would last as long.
my $LOCKED = 'BEGIN; SELECT id FROM feishu_internal.outbox ORDER BY id FOR UPDATE';

# Each in a database, and so with a dispatcher, of its own: one that is ended by force is not replaced at once.
my $databases = 0;

sub ends_beside_a_lock
{
	my ($name, $deed) = @_;
	my $database = 'locked' . ++$databases;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	create_server($node, 'feishu', { base_url => $mock->url }, undef, $database);
	$session = FeishuFlow::Session->new($node, database => $database);
	my $other = FeishuFlow::Session->new($node, database => $database);
	my $pid = until_dispatcher($session);
	begin_anew($mock, $session);
	$mock->rules([ { kind => 'execute', params_regex => '"n": *1\D' }, { type => 'hold' } ],
		[ { kind => 'execute' }, { type => 'hang' } ]);
	enqueue_many($session, 1, 2);
	$mock->wait_for(2, kind => 'execute');
	until_true($session, 'the claims are written', 'SELECT sending = 2 FROM feishu.dispatch_status');
	$deed->($pid, $other);
	my $told = time();
	my $ended = eval {
		wait_until('it has ended', sub { !alive($pid) }, 10 * $FeishuFlow::SLOW);
	};
	my $took = time() - $told;
	ok($ended, sprintf("$name, and somebody has a lock: it ends in %.1f s", $took));
	cmp_ok($took, '<', 3 * $FeishuFlow::SLOW, '... soon');
	$_->quit foreach $session, $other;
	return;
}

sub until_waits_for_lock
{
	my ($pid) = @_;
	until_true(
		$session,
		'it waits for a row',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Lock'");
	return;
}
ends_beside_a_lock(
	'told to end while it waits for that',
	sub {
		my ($pid, $other) = @_;
		$other->value($LOCKED);
		$mock->release;
		until_waits_for_lock($pid);
		kill 'TERM', $pid;
	});
ends_beside_a_lock(
	'told to end when it has waited for long',
	sub {
		my ($pid, $other) = @_;
		$other->value($LOCKED);
		$mock->release;
		until_waits_for_lock($pid);
		until_true(
			$session,
			'it has waited for long',
			"SELECT clock_timestamp() - xact_start > '1.2 s' FROM pg_stat_activity WHERE pid = $pid");
		kill 'TERM', $pid;
	});
foreach my $lock ($LOCKED, 'BEGIN; LOCK TABLE feishu_internal.outbox')
{
	ends_beside_a_lock(
		'told to end before the answers come',
		sub {
			my ($pid, $other) = @_;
			kill 'STOP', $pid;
			wait_until('it is stopped', sub { slurp_file("/proc/$pid/status") =~ /^State:\s+T/m });
			kill 'TERM', $pid;
			$other->value($lock);
			$mock->release;
			$mock->wait_for(1, kind => 'execute', state => 'done');
			kill 'CONT', $pid;
		});
}

done_testing();
