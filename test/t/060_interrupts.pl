
# A call that hangs, in whatever phase, can be cancelled, timed out, terminated
# and shut down at once, and leaves nothing behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;
use Time::HiRes qw(time usleep);

# On the other side of each of these waits are ten minutes.
my $AT_ONCE = 1 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $node = new_cluster('main', conf => "feishu_flow.timeout = '10min'\nfeishu_flow.connect_timeout = '10min'\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'full_queue', { base_url => 'http://127.0.0.1:' . full_port() });
create_server($node, 'silent', { base_url => 'https://127.0.0.1:' . $mock->silent_port });

my ($session, $watch);

# What a call hangs in: server, fault of the token, fault of the execute.
my @phases = (
	[ 'making the connection', 'full_queue' ],
	[ 'the TLS handshake', 'silent' ],
	[ 'fetching the token', 'feishu', { type => 'hang' } ],
	[ 'waiting for the answer', 'feishu', undef, { type => 'hang' } ],
	[ 'in the middle of the headers', 'feishu', undef, { type => 'half_headers_hang' } ],
	[ 'in the middle of the body', 'feishu', undef, { type => 'chunked_endless' } ]);

# Sends a call that hangs, and waits until it does.
sub hang
{
	my ($victim, $phase) = @_;
	my (undef, $server, $token, $execute) = @$phase;
	$mock->mark;
	$mock->revoke if $token;
	$mock->rules($token ? [ { kind => 'token' }, $token ] : (), $execute ? [ { kind => 'execute' }, $execute ] : ());
	$victim->send(flow(server => $server));
	$mock->wait_for(1, kind => $token ? 'token' : 'execute') if $token || $execute;
	wait_until(
		'the call hangs',
		sub {
			# 17 and later have a name for it
			$watch->value("SELECT wait_event_type = 'Extension' AND "
				  . "(wait_event = 'FeishuFlowCall' OR current_setting('server_version_num')::int < 170000) "
				  . 'FROM pg_stat_activity WHERE pid = '
				  . $victim->pid) eq 't';
		});
	return;
}

# Seconds from the deed until the session's result.
sub result_after
{
	my ($victim, $deed) = @_;
	my $started = time();
	$deed->();
	my $result = $victim->result;
	return ($result, time() - $started);
}

sub milliseconds { return sprintf('%.0f ms', $_[0] * 1000); }

sub restart_sessions
{
	$_ = FeishuFlow::Session->new($node) foreach $session, $watch;
	succeeds($session, flow(), 'a call');
	return;
}
restart_sessions();

# ---- cancel ----

# what they took, in seconds
my %took;

# what a call opens once and keeps is open now
hang($session, $phases[3]);
$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
$session->result;
$mock->well;
succeeds($session, flow(), 'the call after the first cancelled one');
my ($files, $sockets) = (open_files($session->pid), open_sockets($session->pid));
my $connections = $mock->stats->{connections_open};

foreach my $phase (@phases)
{
	my $name = $phase->[0];
	hang($session, $phase);
	my ($result, $seconds) =
	  result_after($session, sub { $watch->value('SELECT pg_cancel_backend(' . $session->pid . ')') });
	is($result->{sqlstate}, '57014', "cancelled while $name: 57014");
	my $started = $phase->[3] ? 'may have started' : 'has not started';
	like(
		$result->{err},
		qr{CONTEXT:  call of flow "package_7344545d87__c/\w+", which $started},
		'... names the flow and says whether it may have started');
	cmp_ok($seconds, '<', $AT_ONCE, '... at once');
	note('cancelled after ' . milliseconds($seconds));
	push @{ $took{cancel} }, $seconds;

	if ($phase->[2] || $phase->[3])
	{
		$mock->wait_for(1, kind => $phase->[2] ? 'token' : 'execute', state => 'aborted');
		pass('... and the connection is closed');
	}
	$mock->well;
	succeeds($session, flow(), '... and the next call works');
	is( open_files($session->pid) . ' ' . open_sockets($session->pid),
		"$files $sockets",
		'... and no descriptor is left');
	is($mock->stats->{connections_open}, $connections, '... nor a connection');
}

# ---- statement_timeout ----

foreach my $phase (@phases)
{
	my $name = $phase->[0];
	my ($what, $server, $token, $execute) = @$phase;
	$mock->revoke if $token;
	$mock->rules($token ? [ { kind => 'token' }, $token ] : (), $execute ? [ { kind => 'execute' }, $execute ] : ());
	my $result = fails_with(
		$session, "SET statement_timeout = '300ms';" . flow(server => $server),
		'57014',
		"statement_timeout while $name: 57014",
		message => qr/statement timeout/);
	cmp_ok($result->{seconds}, '<', 0.3 + $AT_ONCE, '... at once');
	note('statement_timeout of 300 ms: ' . milliseconds($result->{seconds}));
	push @{ $took{statement_timeout} }, $result->{seconds} - 0.3;
	$mock->well;
	$session->value('RESET statement_timeout');
	succeeds($session, flow(), '... and the next call works');
	is( open_files($session->pid) . ' ' . open_sockets($session->pid),
		"$files $sockets",
		'... and no descriptor is left');
}

# a savepoint, and lock_timeout and others that have no say
fails_with($session, "BEGIN; SAVEPOINT a; SET LOCAL statement_timeout = '200ms'; " . "SELECT pg_sleep(600);",
	'57014', 'a cancelled statement in a transaction');
succeeds($session, 'ROLLBACK TO a; ' . flow() . '; COMMIT;', '... and a call after it');

# ---- inside an EXCEPTION block ----

my $rounds = 15;
$mock->mark;
$mock->fault(type => 'hang');
$session->send(<<"SQL");
DO \$\$
DECLARE
	caught int := 0;
BEGIN
	FOR i IN 1 .. $rounds LOOP
		BEGIN
			PERFORM feishu.execute_flow('a', 'b', '{"_id": 1}');
		EXCEPTION WHEN query_canceled THEN
			caught := caught + 1;
		END;
	END LOOP;
	RAISE NOTICE 'caught %', caught;
END
\$\$;
SQL
for my $round (1 .. $rounds)
{
	$mock->wait_for($round, kind => 'execute');
	$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
}
like(
	$session->result->{err},
	qr/caught $rounds$/m,
	'cancelled in an EXCEPTION block in a loop: each time, and it goes on');
$mock->wait_for($rounds, kind => 'execute', state => 'aborted');
$mock->well;
succeeds($session, flow(), '... and the next call works');
is(open_files($session->pid) . ' ' . open_sockets($session->pid), "$files $sockets", '... and no descriptor is left');

$mock->fault(type => 'hang');
my $result = $session->ask(<<"SQL");
DO \$\$
DECLARE
	caught int := 0;
BEGIN
	FOR i IN 1 .. $rounds LOOP
		BEGIN
			PERFORM feishu.execute_flow('a', 'b', '{"_id": 1}', timeout => '20ms');
		EXCEPTION WHEN SQLSTATE 'LK504' THEN
			caught := caught + 1;
		END;
	END LOOP;
	RAISE NOTICE 'caught %', caught;
END
\$\$;
SQL
like($result->{err}, qr/caught $rounds$/m, 'timeouts in an EXCEPTION block in a loop are caught');
$mock->well;
succeeds($session, flow(), '... and the next call works');
is(open_files($session->pid) . ' ' . open_sockets($session->pid), "$files $sockets", '... and no descriptor is left');

# A call inside of a call's statement: a trigger that calls while a query calls.
$session->value(<<'SQL');
CREATE TABLE orders (id int, execution_id text);
CREATE FUNCTION start_flow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.execution_id := feishu.execute_flow('a', 'inTrigger', '{"_id": 1}') -> 'data' ->> 'execution_id';
	RETURN NEW;
END $$;
CREATE TRIGGER start_flow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION start_flow();
SQL
succeeds(
	$session,
	"INSERT INTO orders SELECT n FROM generate_series(1, 3) n "
	  . "WHERE feishu.execute_flow('a', 'inQuery', '{\"_id\": 1}') IS NOT NULL",
	'a call in a trigger of a statement that calls');
is($session->value('SELECT count(DISTINCT execution_id) FROM orders'), '3', '... and each row has its execution_id');
fails_with($session, "DECLARE c CURSOR WITH HOLD FOR SELECT feishu.execute_flow('a', 'b', '{}')",
	'22023', 'a call that fails in a cursor');
succeeds(
	$session,
	"BEGIN; DECLARE c CURSOR FOR SELECT feishu.execute_flow('a', 'b', '{\"_id\": 1}') FROM generate_series(1, 10); "
	  . 'FETCH 2 FROM c; CLOSE c; COMMIT;',
	'a cursor over calls that is closed half-way');

# ---- a client that goes ----

SKIP:
{
	my $leaver = FeishuFlow::Session->new($node);
	$leaver->value("SET client_connection_check_interval = '100ms'");
	hang($leaver, $phases[3]);
	$leaver->{run}->kill_kill;
	wait_until('the backend has noticed', sub { !alive($leaver->pid) }, 20);
	pass('client_connection_check_interval ends the call of a client that is gone');
	$mock->well;
}

# ---- terminate ----

foreach my $phase (@phases)
{
	my $name = $phase->[0];
	my $victim = FeishuFlow::Session->new($node);
	hang($victim, $phase);
	my ($result, $seconds) =
	  result_after($victim, sub { $watch->value('SELECT pg_terminate_backend(' . $victim->pid . ')') });
	is($result->{sqlstate}, '57P01', "terminated while $name: 57P01");
	cmp_ok($seconds, '<', $AT_ONCE, '... at once');
	wait_until('the backend is gone', sub { !alive($victim->pid) });
	note('terminated after ' . milliseconds($seconds));
	push @{ $took{terminate} }, $seconds;
	$mock->wait_for(1, kind => $phase->[2] ? 'token' : 'execute', state => 'aborted')
	  if $phase->[2] || $phase->[3];
	$mock->well;
	$victim->quit;
}
succeeds($session, flow(), 'other sessions are not concerned');

# Each may be late on a busy machine, but not most of them.
foreach my $what (sort keys %took)
{
	my @sorted = sort { $a <=> $b } @{ $took{$what} };
	cmp_ok($sorted[ @sorted / 2 ], '<', 0.1 * $FeishuFlow::SLOW,
		"$what is heard within 100 ms, whatever the call does");
}

# ---- shutdown ----

sub all_hang
{
	my @victims;

	# whoever fetches the token holds up all others: last
	foreach my $phase (sort { !!$a->[2] <=> !!$b->[2] } @phases)
	{
		my $victim = FeishuFlow::Session->new($node);
		succeeds($victim, flow(), 'a call') if $phase->[3];
		hang($victim, $phase);
		push @victims, $victim;
		$mock->well;
	}
	return @victims;
}

my @victims = all_hang();
my $started = time();
$node->stop('fast');
my $seconds = time() - $started;
cmp_ok($seconds, '<', 10, 'a fast shutdown does not wait for calls');
note('fast shutdown with calls in all phases: ' . milliseconds($seconds));
is_deeply([ map { $_->result->{sqlstate} } @victims ], [ ('57P01') x @victims ], '... and all calls end with 57P01');
$_->quit foreach @victims;

$node->start;
restart_sessions();
@victims = all_hang();
my @pids = map { $_->pid } @victims;
my ($postmaster) = PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
$started = time();
$node->kill9;
my %gone;
wait_until(
	'all backends are gone',
	sub {
		$gone{$_} //= time() - $started foreach grep { !alive($_) } @pids;
		keys %gone == @pids;
	},
	20);
$seconds = time() - $started;
cmp_ok($seconds, '<', $AT_ONCE, 'backends in a call notice the death of the postmaster');
note('gone after ' . join(', ', map { milliseconds($gone{$_}) } @pids));
$_->quit foreach @victims;

# PostgreSQL takes a dead postmaster that nobody has taken note of for a live one
wait_until(
	'init has taken note of the deaths',
	sub {
		!grep { kill 0, $_ } $postmaster, @pids;
	});
$node->start;
restart_sessions();
pass('the cluster starts again');

# ---- while a long answer is read ----

# Wherever in the reading the time is up.
$mock->rules([ { kind => 'execute' }, { type => 'big', bytes => 15 << 20 } ]);
$session->value(flow());
my $pid = $session->pid;

sub sockets
{
	return scalar(grep { (readlink($_) // '') =~ /^socket/ } glob("/proc/$pid/fd/*"));
}
my $sockets = sockets();
my (%ends, $latest);
foreach my $ms (map { 15 * $_ } 1 .. 20)
{
	my $result = $session->ask("BEGIN; SET LOCAL statement_timeout = $ms; SELECT (" . flow() . ') IS NULL');
	# the time of this one may be up, too
	$session->ask('ROLLBACK') for 1 .. 2;
	$ends{ $result->{sqlstate} }++;
	next if $result->{sqlstate} ne '57014';
	my $late = 1000 * $result->{seconds} - $ms;
	$latest = $late if !defined $latest || $late > $latest;
}
is(join(' ', sort grep { !/^(?:00000|57014)$/ } keys %ends),
	'', 'a call whose answer is being read ends when it is told to');
cmp_ok($ends{'57014'}, '>', 0, '... wherever it is');
note(sprintf('up to %.0f ms late', $latest));
$mock->well;
succeeds($session, flow(), '... and the next call works');
is($session->pid, $pid, '... in the same session');
is(sockets(), $sockets, '... which has no connection left of the others');

done_testing();
