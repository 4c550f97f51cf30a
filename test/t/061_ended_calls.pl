
# However a call ends, nothing of it lives on: its request is not sent later, and its place, its duty to fetch a token
# and its connection are free at once, also while its transaction, cursor or function goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

# Who would have to wait for something that has ended waits for its transaction, or three seconds for a token.
my $AT_ONCE = 1.5 * $FeishuFlow::SLOW;

# A call gets to where it hangs before that, in ms.
my $TIMEOUT = 250 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.timeout = '10min'\n");
create_server($node, 'feishu', { base_url => $mock->url, max_concurrency => 1 });

my ($holder, $other, $watch) = map { FeishuFlow::Session->new($node) } 1 .. 3;
$watch->value(<<'SQL');
CREATE FUNCTION call_it(flow text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN feishu.execute_flow('a', flow, '{"_id": 1}');
END $$;

CREATE FUNCTION call_in_sql(flow text) RETURNS jsonb LANGUAGE sql VOLATILE AS
	$$ SELECT feishu.execute_flow('a', flow, '{"_id": 1}') $$;

CREATE TABLE orders (flow text);
CREATE FUNCTION call_in_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM feishu.execute_flow('a', NEW.flow, '{"_id": 1}');
	RETURN NEW;
END $$;
CREATE TRIGGER call_in_trigger AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION call_in_trigger();

CREATE PROCEDURE call_in_procedure(flow text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM feishu.execute_flow('a', flow, '{"_id": 1}');
END $$;

CREATE FUNCTION call_in_cursor(flow text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	answers CURSOR FOR SELECT feishu.execute_flow('a', flow, '{"_id": 1}');
	answer jsonb;
BEGIN
	OPEN answers;
	FETCH answers INTO answer;
	RETURN answer;
END $$;

CREATE FUNCTION check_it() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT message FROM feishu.check_server('feishu', 'a'));
END $$;

-- these two go on when the call has ended, until somebody gives the lock back
CREATE FUNCTION call_and_go_on(flow text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM feishu.execute_flow('a', flow, '{"_id": 1}');
EXCEPTION WHEN query_canceled THEN
	PERFORM pg_advisory_xact_lock(1);
	RETURN 'caught';
END $$;

CREATE PROCEDURE commit_call_and_go_on(flow text) LANGUAGE plpgsql AS $$
BEGIN
	COMMIT;
	BEGIN
		PERFORM feishu.execute_flow('a', flow, '{"_id": 1}');
	EXCEPTION WHEN query_canceled THEN
		PERFORM pg_advisory_xact_lock(1);
	END;
	COMMIT;
END $$;
SQL

# Where a call can be: its statement, what comes before it (BEGIN) and behind it (ROLLBACK), and whether the statement
# goes on after the call's end.
my @forms = (
	{ name => 'in a statement', call => q{SELECT feishu.execute_flow('a', 'GHOST', '{"_id": 1}')} },
	{ name => 'in a PL/pgSQL function', call => q{SELECT call_it('GHOST')} },
	{ name => 'in an SQL function', call => q{SELECT call_in_sql('GHOST')} },
	{ name => 'in a trigger', call => q{INSERT INTO orders VALUES ('GHOST')} },
	{
		name => 'in a cursor',
		before => q{BEGIN; DECLARE c CURSOR FOR SELECT feishu.execute_flow('a', 'GHOST', '{"_id": 1}'); SAVEPOINT s},
		call => 'FETCH c',
		after => 'ROLLBACK TO s'
	},
	{ name => 'in a cursor of PL/pgSQL', call => q{SELECT call_in_cursor('GHOST')} },
	{ name => 'in DO', call => q{DO $$ BEGIN PERFORM feishu.execute_flow('a', 'GHOST', '{"_id": 1}'); END $$} },
	{ name => 'in a procedure', call => q{CALL call_in_procedure('GHOST')} },
	{ name => 'in check_server', call => 'SELECT check_it()', flow => 'feishu_flow_check_server' },
	{ name => 'in an EXCEPTION block', call => q{SELECT call_and_go_on('GHOST')}, goes_on => 1 },
	{
		name => 'in a procedure that commits',
		before => '',
		call => q{CALL commit_call_and_go_on('GHOST')},
		goes_on => 1
	});

my $victim;

sub call_of { return flow(namespace => 'a', flow_id => $_[0]); }

sub victim_hangs
{
	my ($type) = @_;
	wait_until("the victim waits: $type",
		sub { $watch->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $victim->pid) eq $type });
	return;
}

# The platform is to see that the one request that matches is given up.
sub hung_up
{
	my ($name, %filters) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( eval {
			wait_until('it is given up', sub { ($mock->log(%filters))[0]{aborted} }, 5 * $FeishuFlow::SLOW);
		},
		$name);
	return;
}

# What a call can be at when it ends. Each sends the victim's statement and returns when it hangs.
my %phases = (
	'waiting for a place' => sub {
		my ($form) = @_;
		$mock->rules([ { flow_id => 'HELD' }, { type => 'hold' } ]);
		$holder->send(call_of('HELD'));
		$mock->wait_for(1, flow_id => 'HELD');
		$victim->send($form->{call});
		victim_hangs('Extension');
		return;
	},
	'waiting for the answer' => sub {
		my ($form) = @_;
		$mock->rules([ { flow_id => $form->{flow} // 'GHOST' }, { type => 'hang' } ]);
		$victim->send($form->{call});
		$mock->wait_for(1, flow_id => $form->{flow} // 'GHOST');
		return;
	},
	'fetching a token' => sub {
		my ($form) = @_;
		$mock->revoke;
		$mock->rules([ { kind => 'token' }, { type => 'hang' }, times => 1 ]);
		$victim->send($form->{call});
		$mock->wait_for(1, kind => 'token');
		return;
	});

my %ends = (
	'statement_timeout' => [ '57014', sub { } ],
	'cancelled' => [ '57014', sub { $watch->value('SELECT pg_cancel_backend(' . $victim->pid . ')') } ],
	'terminated' => [ '57P01', sub { $watch->value('SELECT pg_terminate_backend(' . $victim->pid . ')') } ]);

# One call that ends, with all that must not be left of it.
sub ends_wholly
{
	my ($form, $phase, $end) = @_;
	my $name = "$form->{name}, $phase, $end";
	my ($sqlstate, $deed) = @{ $ends{$end} };
	my $flow = $form->{flow} // 'GHOST';
	my $goes_on = $form->{goes_on} && $end ne 'terminated';

	$mock->mark;
	$watch->value('SELECT pg_advisory_lock(1)') if $goes_on;
	$victim->value($form->{before} // 'BEGIN');
	$victim->value("SET statement_timeout = $TIMEOUT") if $end eq 'statement_timeout';
	$phases{$phase}->($form);
	$deed->();
	if ($goes_on)
	{
		victim_hangs('Lock');
	}
	else
	{
		is($victim->result->{sqlstate}, $sqlstate, "$name: $sqlstate");
	}

	# now the transaction is open still
	if ($phase eq 'waiting for a place')
	{
		$mock->well;
		$holder->result;
	}
	else
	{
		hung_up("$name: the connection is closed",
			$phase eq 'fetching a token' ? (kind => 'token') : (flow_id => $flow));
	}
	my $result = $other->ask(flow(namespace => 'a', flow_id => 'other', timeout => '10s'));
	is($result->{sqlstate}, '00000', "$name: another session may call") or diag($result->{err});
	cmp_ok($result->{seconds}, '<', $AT_ONCE, '... at once');
	$mock->well;

	# nor is it sent by the next call of its own session
	if ($end eq 'terminated')
	{
		$victim->quit;
		$victim = FeishuFlow::Session->new($node);
	}
	elsif ($goes_on)
	{
		$watch->value('SELECT pg_advisory_unlock(1)');
		succeeds($victim, $victim->result, "$name: it goes on");
	}
	else
	{
		$victim->value($form->{after} // 'ROLLBACK');
		$victim->value('SET statement_timeout = 0');
	}
	succeeds($victim, call_of('next'), "$name: the next call");
	is( $mock->count(flow_id => $flow),
		$phase eq 'waiting for the answer' ? 1 : $phase eq 'fetching a token' && $flow eq 'GHOST' ? 1 : 0,
		'... and the one that has ended is not sent any more');
	$victim->ask('ROLLBACK; RESET statement_timeout') if $end ne 'terminated';
	return;
}

$victim = FeishuFlow::Session->new($node);
succeeds($_, call_of('first'), 'a call') foreach $holder, $other, $victim;

foreach my $form (@forms)
{
	foreach my $phase (sort keys %phases)
	{
		ends_wholly($form, $phase, $_) foreach 'cancelled', 'terminated';
	}
	ends_wholly($form, 'waiting for the answer', 'statement_timeout');
}

# ---- errors ----

# What a statement fails with, after the platform has done this.
my $hang = [ { flow_id => 'GHOST' }, { type => 'hang' } ];
foreach my $case (
	[ 'LK504', q{SELECT feishu.execute_flow('a', 'GHOST', '{"_id": 1}', timeout => '50ms')}, $hang ],
	[ 'LK500', q{SELECT call_it('GHOST')}, [ { flow_id => 'GHOST' }, { type => 'status', status => 500 } ] ],
	[ 'LK503', q{SELECT call_it('GHOST')}, [ { flow_id => 'GHOST' }, { type => 'reset' } ] ],
	[ 'LK502', q{SELECT call_in_cursor('GHOST')}, [ { flow_id => 'GHOST' }, { type => 'garbage' } ] ],
	[ '22012', q{SELECT 1 / length(call_it('GHOST') ->> 'msg') - 1 / (call_it('GHOST') IS NULL)::int} ],
	[ '22012', q{DO $$ BEGIN PERFORM call_it('GHOST'); PERFORM 1 / 0; END $$} ],
	[ '22023', q{SELECT feishu.execute_flow('a', '', '{"_id": 1}')} ])
{
	my ($sqlstate, $sql, @rules) = @$case;
	$mock->mark;
	$mock->rules(@rules);
	$victim->value('BEGIN; SAVEPOINT s');
	fails_with($victim, $sql, $sqlstate, "a statement that fails with $sqlstate");
	my $sent = $mock->count(flow_id => 'GHOST');
	my $result = $other->ask(call_of('other'));
	is($result->{sqlstate}, '00000', '... another session may call') or diag($result->{err});
	cmp_ok($result->{seconds}, '<', $AT_ONCE, '... at once');
	succeeds($victim, 'ROLLBACK TO s; ' . call_of('next') . '; COMMIT', '... and so may its own');
	is($mock->count(flow_id => 'GHOST'), $sent, '... and nothing is sent again');
	$mock->well;
}

# ---- many of them ----

# A transaction is not charged for calls that have ended in it.
$mock->rules($hang);
my $sockets = open_sockets($victim->pid);
$victim->value('BEGIN');
foreach my $n (1 .. 5)
{
	$victim->value(
		qq{DECLARE c$n CURSOR FOR SELECT feishu.execute_flow('a', 'GHOST', '{"_id": 1}');
		SAVEPOINT s; SET LOCAL statement_timeout = 100});
	fails_with($victim, "FETCH c$n", '57014', "cursor $n is cancelled");
	$victim->value('ROLLBACK TO s');
}
is( $victim->value(
		q{SELECT count(*) FROM pg_backend_memory_contexts WHERE name ~ '^feishu_flow (call|call scope|execute_flow)$'}),
	'0',
	'calls that ended in a transaction leave no memory in it');
cmp_ok(open_sockets($victim->pid), '<=', $sockets, '... and no connection');
$victim->value('ROLLBACK');
$mock->well;

# ---- processes that end while they fetch a token ----

# The dispatcher has the duty, and is terminated.
$mock->mark;
$mock->revoke;
$mock->rules([ { kind => 'token' }, { type => 'hang' }, times => 1 ]);
my $id = enqueue($watch);
$mock->wait_for(1, kind => 'token');
$watch->value('SELECT pg_terminate_backend(' . dispatcher($watch) . ')');
hung_up('a dispatcher that is terminated hangs up', kind => 'token');
my $result = $other->ask(call_of('other'));
is($result->{sqlstate}, '00000', 'the dispatcher is terminated while it fetches a token: a session may call')
  or diag($result->{err});
cmp_ok($result->{seconds}, '<', $AT_ONCE, '... at once');

# Whoever refreshes a token ahead of its expiry is terminated: the dispatcher, or a session where there is none.
foreach my $who ('dispatcher', 'session')
{
	if ($who eq 'session')
	{
		$watch->value('ALTER SYSTEM SET feishu_flow.dispatch = off');
		$watch->value('SELECT pg_reload_conf()');
		wait_until('there is no dispatcher', sub { !dispatcher($watch) });
	}
	else
	{
		until_dispatcher($watch);
	}
	$mock->rules;
	$mock->config(token_expire => 4);
	$mock->revoke;
	$mock->mark;
	succeeds($other, call_of('other'), 'a call with a token of 4 seconds');
	my $due = ($mock->log(kind => 'token'))[-1]{time} + 3;
	$mock->mark;
	$mock->rules([ { kind => 'token' }, { type => 'hang' }, times => 1 ]);
	wait_until('the token is due', sub { time() > $due });
	$victim->send(call_of('next'));
	$mock->wait_for(1, kind => 'token');
	my $pid = $who eq 'session' ? $victim->pid : dispatcher($watch);
	$watch->value("SELECT pg_terminate_backend($pid)");
	hung_up("a $who that is terminated hangs up", kind => 'token');
	$victim->result;
	$victim = FeishuFlow::Session->new($node) if $who eq 'session';
	succeeds($other, call_of('other'), "a $who is terminated that had begun to refresh a token: others may call");
	succeeds($other, call_of('other'), '... once more');
	is($mock->wait_for(2, kind => 'token'), 2, '... and it is refreshed in its stead');
}

done_testing();
