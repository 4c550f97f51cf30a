
# The limits of an app hold for all sessions together: max_rate,
# max_concurrency, and what the platform says.  Nobody waits in vain, no place
# gets lost, and no other app is concerned.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What is refused at once has minutes to wait otherwise.
my $AT_ONCE = 1 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main', connections => 60, conf => "restart_after_crash = on\n");
my $secret = 'secret-of-another-app';
$mock->config(apps => { map { ("cli_$_" => $secret) } 1 .. 40 });

# A server with an app, so limits, of its own.  Returns its name.
my $servers = 0;

sub new_server
{
	my (%options) = @_;
	my $name = 'limited_' . ++$servers;
	create_server(
		$node, $name,
		{ base_url => $mock->url, %options },
		{ app_id => "cli_$servers", app_secret => $secret });
	return $name;
}

my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 10;
my ($session, $other, $third) = @sessions;
my $watch = FeishuFlow::Session->new($node);

# So many calls of a server by each of some sessions at the same time.
sub all_call
{
	my ($server, $calls, @callers) = @_;
	my $sql = "SELECT count(feishu.execute_flow('a', 'b', '{\"_id\": 1}', server => '$server'))"
	  . " FROM generate_series(1, $calls)";
	$_->send($sql) foreach @callers;
	return map { $_->result } @callers;
}

# The most requests that arrived within so many seconds.
sub busiest
{
	my ($seconds) = @_;
	my @times = sort { $a <=> $b } map { $_->{time} } $mock->log(kind => 'execute');
	my ($most, $first) = (0, 0);
	foreach my $last (0 .. $#times)
	{
		$first++ while $times[$last] - $times[$first] >= $seconds;
		$most = $last - $first + 1 if $last - $first + 1 > $most;
	}
	return $most;
}

sub is_waiting
{
	my ($who) = @_;
	return $watch->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $who->pid) =~ /^Extension$/;
}

sub log_lines
{
	my ($expression) = @_;
	return scalar(grep { /$expression/ } split /\n/, slurp_file($node->logfile));
}

# ---- max_rate ----

# On a machine that is busy with something else, a request may leave late or its
# arrival be seen late. A rate that is not kept is so each time: make the calls
# again, on a new server, if not all was well.
sub until_kept
{
	my ($max_rate, $calls, $callers, $kept) = @_;
	my (@results, $seconds);
	foreach (1 .. 8)
	{
		my $server = new_server(max_rate => $max_rate);
		succeeds($session, flow(server => $server), 'a call');
		my $called = time();
		wait_until('that call is in no window any more, also not the mock\'s', sub { time() - $called > 1.2 });
		$mock->mark;
		my $started = time();
		@results = all_call($server, $calls, @sessions[ 0 .. $callers - 1 ]);
		$seconds = time() - $started;
		last if $kept->();
		note("busiest second: " . busiest(1));
	}
	return ($seconds, @results);
}

$mock->config(rate => '20/1');
my ($seconds, @results) = until_kept(
	'20', 10, 8,
	sub {
		busiest(1) <= 20 && !grep { $_->{status} != 200 } $mock->log(kind => 'execute');
	});
is( join(' ', map { $_->{sqlstate} } @results),
	join(' ', ('00000') x 8),
	'max_rate 20 and a platform that allows 20/s: 8 sessions get no error') or diag($results[0]{err});
cmp_ok(busiest(1), '<=', 20, '... no second has more than 20 requests');
is(scalar(grep { $_->{status} != 200 } $mock->log(kind => 'execute')), 0, '... and the platform refuses none');
cmp_ok($seconds, '>', 2.9, '... so 80 calls take some time');
cmp_ok($seconds, '<', 10, '... but not for ever');
note(sprintf('80 calls at 20/s took %.2f s', $seconds));
$mock->config(rate => '');

(undef, @results) = until_kept('2.5', 3, 2, sub { busiest(0.35) <= 1 && busiest(2) <= 6 });
is(join(' ', map { $_->{sqlstate} } @results), '00000 00000', 'max_rate 2.5: no error');
cmp_ok(busiest(0.35), '<=', 1, '... one request after the other');
cmp_ok(busiest(2), '<=', 6, '... at that rate');

(undef, @results) = until_kept('300/min', 5, 5, sub { busiest(1) <= 15 });
is(join(' ', map { $_->{sqlstate} } @results), join(' ', ('00000') x 5), 'max_rate 300/min: no error');
cmp_ok(busiest(1), '<=', 15, '... and no burst of all of them');
cmp_ok(busiest(1), '>=', 6, '... but one');

# A call whose time does not suffice learns it at once, and who waits still gets
# its turn.
my $server = new_server(max_rate => '0.5');
$mock->mark;
my $begun = time();
succeeds($session, flow(server => $server), 'max_rate 0.5: a first call goes at once');
$other->send(flow(server => $server));
wait_until('the second waits', sub { is_waiting($other) });
my $result = fails_with(
	$third, flow(server => $server, timeout => '3s'),
	'LK429', 'a third that has less time than both need',
	message => qr/max_rate/,
	detail => qr/No request was sent.* after \d/,
	hint => qr/timeout.*max_rate.*enqueue_flow/);
cmp_ok($result->{seconds}, '<', $AT_ONCE, '... learns it at once');
fails_with($third, flow(server => $server, timeout => '500ms', raise_error => 'false'),
	'LK429', '... an error in any case');
is($other->result->{sqlstate}, '00000', '... and the second goes in its turn');
is($mock->executes, 2, '... nothing but these two was sent');
# the first may have arrived late
cmp_ok(($mock->log(kind => 'execute'))[1]{time} - $begun, '>', 1.95, '... two seconds apart');

# Turns that are given up are nobody's loss.
foreach my $round (1 .. 5)
{
	$_->send(flow(server => $server)) foreach $other, $third;
	wait_until('they wait', sub { is_waiting($other) && is_waiting($third) });
	$watch->value('SELECT pg_cancel_backend(' . $_->pid . ')') foreach $other, $third;
	$_->result foreach $other, $third;
}
succeeds($session, flow(server => $server, timeout => '5s'), 'turns that are given up delay nobody');

# ---- max_concurrency ----

$server = new_server(max_concurrency => '2');
succeeds($session, flow(server => $server), 'a call');
$mock->reset;
$mock->config(apps => { map { ("cli_$_" => $secret) } 1 .. 40 });
$mock->fault(type => 'latency', ms => 50);
@results = all_call($server, 5, @sessions[ 0 .. 7 ]);
is(join(' ', map { $_->{sqlstate} } @results), join(' ', ('00000') x 8), 'max_concurrency 2: 8 sessions get no error');
is($mock->stats->{max_concurrent_executes}, 2, '... and two calls at a time are under way');

$server = new_server(max_concurrency => '1');
$mock->fault(type => 'hold');
$mock->mark;
$session->send(flow(server => $server));
$mock->wait_for(1, kind => 'execute');
$result = fails_with(
	$other, flow(server => $server, timeout => '300ms'),
	'LK429', 'max_concurrency 1: a second call whose time is up',
	message => qr/max_concurrency/,
	hint => qr/max_concurrency/);
cmp_ok($result->{seconds}, '>', 0.25, '... has waited for it');
cmp_ok($result->{seconds}, '<', 0.3 + $AT_ONCE, '... and no longer');
$other->send(flow(server => $server));
wait_until('the second waits', sub { is_waiting($other) });
is($mock->executes, 1, 'a second call waits');
$mock->well;
$mock->release;
is($session->result->{sqlstate}, '00000', '... until the first is answered');
$result = $other->result;
is($result->{sqlstate}, '00000', '... then it is sent');
is($mock->executes, 2, '... once');

# No place gets lost: calls that are cancelled, terminated, or end in error,
# while they wait for a place and while they have it.
$mock->fault(type => 'hang');
foreach my $round (1 .. 20)
{
	my $victim = $round % 2 ? $session : $other;
	my $waiter = $round % 2 ? $other : $session;
	$mock->mark;
	$victim->send(flow(server => $server));
	$mock->wait_for(1, kind => 'execute');
	$waiter->send(flow(server => $server));
	wait_until('the other waits', sub { is_waiting($waiter) });
	my $how = $round % 4 < 2 ? 'pg_cancel_backend' : 'pg_terminate_backend';
	$watch->value("SELECT $how(" . $waiter->pid . ')');
	$waiter->result;
	$watch->value("SELECT $how(" . $victim->pid . ')');
	$victim->result;

	if ($how eq 'pg_terminate_backend')
	{
		$_->quit foreach $session, $other;
		$_ = FeishuFlow::Session->new($node) foreach $session, $other;
	}
}
foreach my $fault (
	{ type => 'reset_after' },
	{ type => 'status', status => 502 },
	{ type => 'code', code => 2320001 },
	{ type => 'garbage' },
	{ type => 'hang' })
{
	$mock->fault(%$fault);
	$session->ask(flow(server => $server, timeout => '300ms'));
	$session->ask("DO \$\$ BEGIN PERFORM feishu.execute_flow('a', 'b', '{\"_id\": 1}', server => '$server', "
		  . "timeout => '300ms'); EXCEPTION WHEN OTHERS THEN NULL; END \$\$");
}
$mock->well;
@sessions[ 0, 1 ] = ($session, $other);
$result = $session->ask(flow(server => $server, timeout => '5s'));
is($result->{sqlstate}, '00000', 'after calls of all fates there still is a place')
  or diag($result->{err});
@results = all_call($server, 20, @sessions[ 0 .. 7 ]);
is(join(' ', map { $_->{sqlstate} } @results), join(' ', ('00000') x 8), '... and sessions that take turns all get it');

# A call whose token is refused keeps its place.
$mock->revoke;
succeeds($session, flow(server => $server), 'a call with a refused token, and a single place');
succeeds($other, flow(server => $server), '... which it gives back');

# More of them at a time by an ALTER, at once.
alter_server($session, $server, 'SET', max_concurrency => '3');
$mock->fault(type => 'hold');
$mock->mark;
$_->send(flow(server => $server)) foreach @sessions[ 0 .. 2 ];
is($mock->wait_for(3, kind => 'execute'), 3, 'a limit that was raised holds from the next call on');
$mock->well;
$_->result foreach @sessions[ 0 .. 2 ];

# ---- the platform's 429 ----

$server = new_server();
my $app_of_its_own = new_server();
succeeds($_, flow(server => $server), 'a call') foreach $session, $other;
$mock->fault(type => 'code', code => 99991400, reset => 2);
fails_with($session, flow(server => $server), 'LK429', 'the platform limits the rate');
my $started = time();
$mock->well;
$mock->mark;
$result = fails_with(
	$third, flow(server => $server, timeout => '500ms'),
	'LK429', 'a call of another session that has less time than the platform demands',
	message => qr/rate limit/,
	detail => qr/No request was sent/,
	hint => qr/enqueue_flow/);
cmp_ok($result->{seconds}, '<', 0.4, '... ends at once');
is($mock->executes, 0, '... and is not sent');
succeeds($session, flow(server => $app_of_its_own, timeout => '1s'), '... another app goes on');
succeeds($other, flow(server => $server), 'a call of another session that has time');
cmp_ok(time() - $started, '>', 1.8, '... waits for as long as the platform said');
cmp_ok(time() - $started, '<', 10, '... and not much longer');

# ---- a quota that is used up ----

$mock->fault(type => 'code', code => 99991403);
fails_with($session, flow(server => $server), 'LK429', 'the quota is used up');
$mock->mark;
$result = fails_with(
	$other, flow(server => $server, timeout => '500ms'),
	'LK429', '... for all sessions',
	message => qr/quota/,
	hint => qr/resume_server/);
cmp_ok($result->{seconds}, '<', 0.4, '... at once');
is($mock->executes, 0, '... and nothing is sent');
@results = all_call($server, 1, @sessions[ 0 .. 5 ]);
is(join(' ', map { $_->{sqlstate} } @results), join(' ', ('LK429') x 6), '... of many sessions that have time');
is($mock->executes, 1, '... one tries');
$mock->well;
succeeds($other, flow(server => $app_of_its_own, timeout => '500ms'), '... but another app goes on');
succeeds($other, flow(server => $server), 'a quota that was raised is noticed');
succeeds($session, flow(server => $server, timeout => '500ms'), '... for all sessions');
is(log_lines(qr/LOG:.*"$server": app is paused/), 1, '... one line of the log says that the app was paused');
is(log_lines(qr/LOG:.*"$server": app is no longer paused/), 1, '... and one that it no longer is');

# ---- refused credentials, and no answers, do not hold synchronous calls ----

$server = new_server();
$mock->mark;
$mock->fault(type => 'code', code => 10003);
fails_with($session, flow(server => $server), 'LK401', 'credentials are refused') foreach 1 .. 3;
is($mock->executes, 3, '... and a synchronous call may try again');
$mock->well;
succeeds($other, flow(server => $server), '... until it goes well');
is(log_lines(qr/LOG:.*"$server": app is paused/), 1, '... one line says that the app was paused');
is(log_lines(qr/LOG:.*"$server": app is no longer paused/), 1, '... and one that it no longer is');

$mock->mark;
$mock->fault(type => 'reset_before');
fails_with($session, flow(server => $server), 'LK503', 'the platform does not answer') foreach 1 .. 8;
cmp_ok($mock->executes, '>=', 8, '... synchronous calls go on trying');
$mock->well;
succeeds($other, flow(server => $server), '... until it does');
is(log_lines(qr/LOG:.*"$server" does not answer/), 1, '... one line says that it did not answer');
is(log_lines(qr/LOG:.*"$server" answers again/), 1, '... and one that it does');
is(log_lines(qr/$secret/), log_lines(qr/CREATE USER MAPPING.*$secret/), 'no secret is in the log');

# ---- crashes ----

$server = new_server(max_concurrency => '1');
$mock->fault(type => 'hang');
$mock->mark;
$session->send(flow(server => $server));
$mock->wait_for(1, kind => 'execute');
kill 'KILL', $session->pid;
$session->result;
$mock->well;
wait_until('the cluster is up again', sub { $node->psql('postgres', 'SELECT 1') == 0 });
$_->quit foreach @sessions, $watch;
$session = FeishuFlow::Session->new($node);
succeeds($session, flow(server => $server, timeout => '5s'), 'a backend that was killed with its place leaves it');
$session->quit;

# ---- more apps than slots ----

$node->append_conf('postgresql.conf', 'feishu_flow.max_apps = 2');
$node->restart;
$session = FeishuFlow::Session->new($node);
my @limited = map { new_server(max_rate => '1/min') } 1 .. 4;
foreach my $name (@limited)
{
	succeeds($session, flow(server => $name), 'more apps than the limiter has room for');
}
fails_with($session, flow(server => $limited[3], timeout => '1s'), 'LK429', '... and the last one is limited');
$session->quit;

# ---- without shared_preload_libraries ----

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$session = FeishuFlow::Session->new($node);
$server = $limited[0];
succeeds($session, flow(server => $server), 'not preloaded: a call');
fails_with($session, flow(server => $server, timeout => '1s'), 'LK429', '... a process keeps the limits by itself');
$session->quit;

done_testing();
