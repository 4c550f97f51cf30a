
# A token that the platform refuses, and grants again: a few token requests a second, whatever the calls. What is sent
# once more with another token is a request like any other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('shared', connections => 60);
my $plain = new_cluster('plain', preload => 0, connections => 60);
create_server($_, 'feishu', { base_url => $mock->url }) foreach $node, $plain;

my $SECONDS = 3;

# Sessions that call all the time. Returns what they got: SQLSTATEs with their counts, and the seconds it took.
sub call_on
{
	my ($on, $clients) = @_;
	my $sql = q{DO $$ DECLARE until timestamptz := clock_timestamp() + '} . $SECONDS . q{s'; got jsonb := '{}'; BEGIN
		WHILE clock_timestamp() < until LOOP
			BEGIN
				PERFORM feishu.execute_flow('a', 'b', '{"_id": 1}');
				got := jsonb_set(got, '{00000}', to_jsonb(coalesce((got ->> '00000')::int, 0) + 1));
			EXCEPTION WHEN OTHERS THEN
				got := jsonb_set(got, ARRAY[SQLSTATE], to_jsonb(coalesce((got ->> SQLSTATE)::int, 0) + 1));
			END;
		END LOOP;
		PERFORM set_config('test.got', got::text, false);
	END $$};
	my @sessions = map { FeishuFlow::Session->new($on) } 1 .. $clients;
	my $began = time();
	$_->send($sql) foreach @sessions;
	$_->result foreach @sessions;
	my $took = time() - $began;
	my %got;

	foreach my $session (@sessions)
	{
		my $one = JSON::PP->new->decode($session->value(q{SELECT current_setting('test.got')}));
		$got{$_} += $one->{$_} foreach keys %$one;
		$session->quit;
	}
	return (\%got, $took);
}

foreach my $case ([ 'all sessions together', $node, 1 ], [ 'each of them without shared_preload_libraries', $plain, 8 ])
{
	my ($name, $on, $caches) = @$case;
	foreach my $kind ('the same', 'another')
	{
		$mock->reset;
		$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99991663 } ]) if $kind eq 'another';
		my $session = FeishuFlow::Session->new($on);
		$session->ask(flow());
		$mock->revoke(keep_issuing_same => JSON::PP::true) if $kind eq 'the same';
		$mock->mark;
		my ($got, $took) = call_on($on, 8);
		my $requests = $mock->token_requests;
		is_deeply([ keys %$got ], ['LK401'], "$name get the platform's refusal of the token, then of $kind");
		cmp_ok($got->{LK401}, '>', 20 * $caches, '... many calls');
		cmp_ok($requests, '<=', $caches * (2 + 3 * $took), '... and few token requests');
		cmp_ok($requests, '>=', 2, '... but some');
		fails_with($session, flow(), 'LK401', '... as the platform says it', detail => qr/\b99991663\b/);
		$mock->reset;
		$session->quit;
	}
}

my $session = FeishuFlow::Session->new($node);
wait_until('calls work', sub { $session->ask(flow())->{sqlstate} eq '00000' });

# What refuses one token for good takes the next.
foreach my $round (1 .. 3)
{
	$mock->mark;
	$mock->revoke;
	succeeds($session, flow(), 'a token that is refused once is replaced at once');
	is($mock->executes . ' ' . $mock->token_requests, '2 1', '... by one request');
}

# Now and then it is accepted.
$mock->reset;
succeeds($session, flow(), 'a call');
$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99991663 }, every => 2 ]);
my ($got, $took) = call_on($node, 1);
cmp_ok($mock->token_requests, '<=', 10 + 5 * $took, 'a token that is refused now and then: few token requests');
is_deeply([ keys %$got ], ['00000'], '... and calls work, at the second go');
cmp_ok($got->{'00000'} // 0, '>', 100, '... many');
$mock->well;
wait_until('calls work', sub { $session->ask(flow())->{sqlstate} eq '00000' });

# ---- limits ----

my $least = 450 / 1000;    # of half a second between two requests
create_server(
	$node, 'limited',
	{ base_url => $mock->url, max_rate => '1.5', max_concurrency => 1 },
	{ app_id => 'cli_limited', app_secret => 'limited' });
$mock->config(apps => { cli_limited => 'limited' });
my $limited = FeishuFlow::Session->new($node);
$mock->reset;
succeeds($limited, flow(server => 'limited'), 'a call of a server with a max_rate');
$mock->revoke;
succeeds($limited, flow(server => 'limited'), 'a call whose token is refused');
my @sent = map { $_->{time} } $mock->log(kind => 'execute');
is(scalar(@sent), 3, '... is sent twice');
my @gaps = sort { $a <=> $b } map { $sent[$_] - $sent[ $_ - 1 ] } 1 .. $#sent;
cmp_ok($gaps[0], '>', $least, '... which counts for max_rate') or diag("@gaps");

$mock->mark;
$mock->revoke;
fails_with(
	$limited, flow(server => 'limited', timeout => '900ms'),
	'LK429',
	'a call whose token is refused, and for whose second request there is no time',
	hint => qr/max_rate/);
is($mock->executes, 1, '... is sent once');

# Queued flows, too; and more of them than one.
$mock->mark;
$mock->revoke;
my $id = enqueue($session, server => 'limited');
my $next = enqueue($session, server => 'limited');
until_ended($session);
is( join(' ', map { $session->value("SELECT state FROM feishu.flows WHERE id = $_") } $id, $next),
	'succeeded succeeded',
	'queued flows whose token is refused succeed');
is($session->value("SELECT attempts FROM feishu.flows WHERE id = $id"), '1', '... by one attempt');
@sent = sort { $a <=> $b } map { $_->{time} } $mock->log(kind => 'execute');
cmp_ok(scalar(@sent), '>=', 3, '... the first of them sent twice');
@gaps = sort { $a <=> $b } map { $sent[$_] - $sent[ $_ - 1 ] } 1 .. $#sent;
cmp_ok($gaps[0], '>', $least, '... which counts for max_rate') or diag("@gaps");

# One for whose second request there is no time is not sent, and so not ended: it waits for its place.
create_server(
	$node, 'waiting',
	{ base_url => $mock->url, max_rate => '2/min', timeout => '2s' },
	{ app_id => 'cli_waiting', app_secret => 'waiting' });
$mock->config(apps => { cli_limited => 'limited', cli_waiting => 'waiting' });
succeeds($session, flow(server => 'waiting'), 'a call of a server with a max_rate');
$mock->mark;
$mock->revoke;
$id = enqueue($session, server => 'waiting');
my $waiting = "SELECT concat_ws(' ', state, attempts, execution_id IS NOT NULL) FROM feishu.flows WHERE id = $id";
wait_until('the token of a queued flow is refused', sub { $mock->executes > 0 });
wait_until('... and got anew', sub { $mock->token_requests > 0 });
alter_server($session, 'waiting', 'SET', 'timeout', '30s');
is($session->value($waiting), 'queued 0 f',
	'... and without time for a second request it waits, as if not tried');
alter_server($session, 'waiting', 'SET', 'max_rate', '600/min');
until_ended($session);
is($session->value($waiting), 'succeeded 1 t', '... until it is sent');
is($mock->executes, 2, '... which it is once more');

# All at once: while one waits for its token, another may go, and never two.
alter_server($session, 'limited', 'DROP', 'max_rate');
$mock->reset;
$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 20 } ]);
my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 6;
foreach my $round (1 .. 3)
{
	$mock->revoke;
	$_->send(flow(server => 'limited')) foreach @sessions;
	is_deeply(
		[ map { $_->result->{sqlstate} } @sessions ],
		[ ('00000') x @sessions ],
		'sessions whose token is refused');
}
is($mock->stats->{max_concurrent_executes}, 1, '... keep to max_concurrency');

done_testing();
