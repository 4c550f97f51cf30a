
# execute_flows makes the calls of all rows of a partition at once and gives each row its own result, which is what
# execute_flow would have said.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $SLOW = $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main', conf => "max_prepared_transactions = 2\n");
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
create_server(
	$node, 'narrow',
	{ base_url => $mock->url, operator => '{"_id": 1}', max_concurrency => 2 },
	{ app_id => 'cli_narrow', app_secret => 'narrow-secret' });
create_server(
	$node, 'slow',
	{ base_url => $mock->url, operator => '{"_id": 1}', max_rate => '10' },
	{ app_id => 'cli_slow', app_secret => 'slow-secret' });
create_server($node, 'down', { base_url => 'http://127.0.0.1:' . closed_port(), operator => '{"_id": 1}' });
$mock->config(apps => { cli_narrow => 'narrow-secret', cli_slow => 'slow-secret' });
my $session = FeishuFlow::Session->new($node);
my $watch = FeishuFlow::Session->new($node);

# The calls of so many rows, as a table s(id, r).
sub flows
{
	my ($rows, $arguments, $over) = @_;
	$arguments //= q{'a', 'echoParams', params => jsonb_build_object('id', id)};
	$over      //= '';
	return "(SELECT id, feishu.execute_flows($arguments) OVER ($over) AS r FROM generate_series(1, $rows) AS id) AS s";
}

# How many requests the mock had at once, at most.
sub most_at_once
{
	my (%filters) = @_;
	my ($most, $now) = (0, 0);
	my @moments = map { [ $_->{time}, 1 ], [ $_->{done} // time(), -1 ] } $mock->log(kind => 'execute', %filters);
	foreach my $moment (sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } @moments)
	{
		$now += $moment->[1];
		$most = $now if $now > $most;
	}
	return $most;
}

# Requests that have come and were neither answered nor given up.
sub under_way
{
	return scalar grep { !defined $_->{status} && !$_->{aborted} } $mock->log(kind => 'execute');
}

sub nothing_under_way
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $begin = time();
	ok( eval {
			wait_until('nothing is under way', sub { under_way() == 0 }, 5 * $SLOW);
		},
		$name);
	cmp_ok(time() - $begin, '<', 0.5 * $SLOW, '... at once');
	return;
}


# ---- each row has its own result ----

my $all_own = q{count(*) || ' ' || count(*) FILTER (WHERE (feishu.out_params((r).response) ->> 'id')::int = id)
	|| ' ' || count((r).sqlstate)};
is(succeeds($session, "SELECT $all_own FROM " . flows(500), 'five hundred calls'),
	'500 500 0', 'each row has its answer');
is($mock->executes, 500, '... with one request each');
is($mock->token_requests, 1, '... and one token');

# So many are under way, and no more, before the first is answered.
sub at_once
{
	my ($most, $name, $sql, $result) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$mock->mark;
	$mock->fault(type => 'hold');
	$session->send($sql);
	$mock->wait_for($most, kind => 'execute');
	is($watch->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->pid),
		'Extension', "$name: it waits");
	is($mock->executes, $most, "... with $most under way");
	$mock->well;
	is($session->result->{out}, $result, '... and all are answered');
	return;
}

at_once(32, 'by default', "SELECT $all_own FROM " . flows(96), '96 96 0');
$session->value('SET feishu_flow.max_concurrent_calls = 256');
at_once(256, 'with the highest max_concurrent_calls', "SELECT $all_own FROM " . flows(300), '300 300 0');
$session->value('SET feishu_flow.max_concurrent_calls = 5');
at_once(5, 'with another max_concurrent_calls', "SELECT $all_own FROM " . flows(15), '15 15 0');
at_once(3, 'of a partition', "SELECT $all_own FROM " . flows(12, undef, 'PARTITION BY id % 4'), '12 12 0');

$mock->mark;
$mock->fault(type => 'latency', ms => 100 * $SLOW);
$session->value('SET feishu_flow.max_concurrent_calls = 32');
my $result = $session->ask("SELECT $all_own FROM " . flows(96));
is($result->{out}, '96 96 0', 'slow answers');
cmp_ok($result->{seconds}, '<', 2 * $SLOW, '... take the time of three, and not of 96');
cmp_ok(most_at_once(), '<=', 32, '... with no more than 32 under way');
$mock->well;

$mock->mark;
# over one connection, for others overtake it
$session->value('SET feishu_flow.max_concurrent_calls = 1');
$session->value('SELECT count(r) FROM ' . flows(40, q{'a', 'b', idempotent_key => 'order-' || id}, 'ORDER BY id DESC'));
my @order = map { $_->{key} =~ /(\d+)$/ } $mock->log(kind => 'execute');
is_deeply([ @order[ 0 .. 3 ], $order[-1] ], [ 40, 39, 38, 37, 1 ], 'calls begin in the order of the window')
  or diag("@order");

$session->value('RESET feishu_flow.max_concurrent_calls');

# answers that come in another order, as they like
$mock->fault(type => 'latency', ms => [ 1, 30 ]);
is($session->value("SELECT $all_own FROM " . flows(200)), '200 200 0', 'answers that come in any order');
$mock->well;

is($session->value("SELECT count(*) FROM " . flows(0)), 0, 'no rows');
is($session->value("SELECT $all_own FROM " . flows(1)), '1 1 0', 'one row');
is( $session->value(
		"SELECT $all_own FROM " . flows(100, undef, 'ORDER BY id ROWS BETWEEN 1 PRECEDING AND 1 PRECEDING')),
	'100 100 0',
	'frames do not matter');
is( $session->value(
		q{SELECT count(*) || ' ' || count(*) FILTER (WHERE (feishu.out_params((a).response) ->> 'id')::int = id
	AND (feishu.out_params((b).response) ->> 'id')::int = -id) FROM
	(SELECT id, feishu.execute_flows('a', 'echoParams', params => jsonb_build_object('id', id)) OVER w AS a,
		feishu.execute_flows('a', 'echoParams', params => jsonb_build_object('id', -id)) OVER w AS b
		FROM generate_series(1, 50) AS id WINDOW w AS (ORDER BY id)) AS s}),
	'50 50',
	'two of them in one window');

# arguments are computed once a row
$session->value('CREATE SEQUENCE computed; CREATE SEQUENCE keys');
$mock->mark;
is( $session->value(
		q{SELECT count(*) || ' ' || count((r).sqlstate) FROM } . flows(
			100,
			q{'a', 'echoParams',
			params => jsonb_build_object('n', nextval('computed')), idempotent_key => 'k' || nextval('keys')})),
	'100 0',
	'arguments that change');
is($session->value('SELECT (SELECT last_value FROM computed) || chr(32) || (SELECT last_value FROM keys)'),
	'100 100', '... are computed once a row');


# ---- what becomes of a row is a value, the same as of execute_flow ----

# The parts of an error of execute_flow, and of execute_flows, with these arguments (after the namespace).
my $catch = <<'SQL';
CREATE FUNCTION caught(VARIADIC arguments text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; hint text;
BEGIN
	EXECUTE 'SELECT feishu.execute_flow(' || array_to_string(arguments, ', ') || ')';
	RETURN 'no error';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' | ', state, message, detail, hint);
END $$;
SQL
$session->value($catch);
$session->value(q{CREATE SERVER bare FOREIGN DATA WRAPPER feishu_flow});

# Log ids differ.
sub alike { my ($text) = @_; $text =~ s/\b\d{14,}[0-9A-F]+\b/X/g; return $text; }

foreach my $case (
	[ 'a refusal', q{'a', 'refusedFlow'} ],
	[ 'an inner code', q{'a', 'rejectedFlow'} ],
	[ 'no such flow', q{'a', 'noSuchFlow'} ],
	[ 'no scope', q{'a', 'noScope'} ],
	[ 'nobody listens', q{'a', 'b', server => 'down'} ],
	[ 'no namespace', q{NULL, 'b'} ],
	[ 'an empty flow', q{'a', ''} ],
	[ 'a wrong operator', q{'a', 'b', '{"_id": "x"}'} ],
	[ 'params of another sort', q{'a', 'b', params => '"{}"'} ],
	[ 'a key that is too long', q{'a', 'b', idempotent_key => repeat('x', 256)} ],
	[ 'wrong masks', q{'a', 'b', loop_masks => '[1]'} ],
	[ 'a timeout of nothing', q{'a', 'b', timeout => '0'} ],
	[ 'no such server', q{'a', 'b', server => 'nobody'} ],
	[ 'a server without a mapping', q{'a', 'b', '{"_id": 1}', server => 'bare'} ],)
{
	my ($name, $arguments) = @$case;
	my $literal = join ', ', map { quote($_) } $arguments;
	my $wanted = $session->value("SELECT caught($literal)");
	my $got = $session->value(
		"SELECT concat_ws(' | ', (r).sqlstate, (r).error, coalesce((r).detail, ''), (r).hint)
		FROM " . flows(1, $arguments));
	is(alike($got), alike($wanted), "$name: the same as of execute_flow");
}
like(
	$session->value('SELECT (r).response FROM ' . flows(1, q{'a', 'refusedFlow'})),
	qr/"code": 2320001/,
	'a refusal comes with its answer');

$mock->mark;
is( $session->value(
		q{SELECT string_agg(coalesce((r).sqlstate, 'ok'), ' ' ORDER BY id) FROM } . flows(
			6,
			q{'a', CASE WHEN id % 2 = 0 THEN 'echoParams' WHEN id = 3 THEN 'refusedFlow' END,
			params => jsonb_build_object('id', id)})),
	'22023 ok LK400 ok 22023 ok',
	'rows that are wrong, and others');
is($mock->executes, 4, '... of which nothing was sent');

# rights are looked at for each
$session->value('CREATE ROLE nobody_special LOGIN; CREATE SERVER closed FOREIGN DATA WRAPPER feishu_flow');
is( FeishuFlow::Session->new($node, user => 'nobody_special')->value(
		q{SELECT string_agg(coalesce((r).sqlstate, 'ok'), ' ' ORDER BY id) FROM }
		  . flows(3, q{'a', 'b', server => CASE id WHEN 2 THEN 'closed' ELSE 'feishu' END})),
	'ok 42501 ok',
	'a server without USAGE');

my %stats = split /[|\n]/, $session->value(
	q{SELECT flow_id, calls
	FROM feishu.stat_flows WHERE flow_id IN ('noScope', 'noSuchFlow') ORDER BY 1});
is_deeply(\%stats, { noScope => 2, noSuchFlow => 2 }, 'each call is counted once, as that of execute_flow');


# ---- limits ----

$mock->mark;
$mock->fault(type => 'latency', ms => 30);
is( $session->value(
		"SELECT $all_own FROM " . flows(
			20, q{'a', 'echoParams',
	params => jsonb_build_object('id', id), server => 'narrow'})),
	'20 20 0',
	'under max_concurrency');
is(most_at_once(), 2, '... no more are under way');
$mock->well;

$mock->mark;
$result = $session->ask(
	"SELECT $all_own FROM " . flows(
		25,
		q{'a', 'echoParams',
		params => jsonb_build_object('id', id), server => 'slow', timeout => '} . 1500 * $SLOW . q{ms'}));
is($result->{out}, '25 25 0', 'under max_rate each waits as a call after the other would');
cmp_ok($result->{seconds}, '>', 1, '... and not the timeout of all');

$mock->mark;
$mock->rules(
	[
		{ kind => 'execute' }, { type => 'code', code => 99991400, http_status => 400, reset => 1 },
		skip => 10,
		times => 1
	]);
$result = $session->ask(q{SELECT count(*) || ' ' || string_agg((r).sqlstate, ' ') FROM } . flows(60));
is($result->{out}, '60 LK429', '429 in the middle is one row\'s') or diag($result->{err});
cmp_ok($result->{seconds}, '>', 0.8, '... and the rest waits');
$mock->well;


# ---- a platform that is down ----

$mock->mark;
$result = $session->ask(
	q{SELECT string_agg(n || ' ' || error, E'\n' ORDER BY n) FROM
	(SELECT count(*) AS n, (r).sqlstate || ' ' || regexp_replace((r).error, '/f\d+', '') AS error FROM }
	  . flows(2000, q{'a', 'f' || id, server => 'down'}) . q{ GROUP BY 2) t});
my ($tried) = $result->{out} =~ /^(\d+) LK503 .*could not be reached/m;
like($result->{out}, qr/^\d{4} LK503 .*the platform does not answer$/m, 'nobody listens: the rest is not tried')
  or diag($result->{out});
cmp_ok($tried, '<=', 40, '... after a few');

# What others have found out holds up queued flows, and no call.
create_server(
	$node, 'outage',
	{ base_url => $mock->url, operator => '{"_id": 1}' },
	{ tenant_access_token => $mock->token });
$mock->fault(type => 'reset_before');
fails_with($watch, flow(server => 'outage'), 'LK503', 'the platform does not answer others') foreach 1 .. 8;
like(slurp_file($node->logfile), qr/"outage" does not answer/, '... which is known');
$mock->well;
is( $session->value(
		q{SELECT string_agg(coalesce((r).sqlstate, 'ok'), ' ') FROM } . flows(8, q{'a', 'b', server => 'outage'})),
	join(' ', ('ok') x 8),
	'... many calls find out for themselves');

# The rest would wait for the same token.
create_server(
	$node, 'tokenless',
	{ base_url => $mock->url, operator => '{"_id": 1}' },
	{ app_id => 'cli_tokenless', app_secret => 'x' });
$mock->rules([ { kind => 'token' }, { type => 'hang' } ]);
$mock->mark;
$session->value('SET feishu_flow.max_concurrent_calls = 1');
is( $session->value(
		q{SELECT string_agg((r).sqlstate, ' ' ORDER BY id) FROM }
		  . flows(8, q{'a', 'b', server => 'tokenless', timeout => '300ms'})),
	'LK504' . ' LK503' x 7,
	'no token in time: the rest is not tried');
is($mock->token_requests, 1, '... after one request');
$session->value('RESET feishu_flow.max_concurrent_calls');

$mock->fault(type => 'hang');
$mock->mark;
$result =
  $session->ask(q{SELECT count(*) FILTER (WHERE (r).sqlstate = 'LK504') <= 40 }
	  . q{AND count(*) = count(*) FILTER (WHERE (r).sqlstate IN ('LK503', 'LK504')) FROM }
	  . flows(1000, q{'a', 'b', timeout => '} . 500 * $SLOW . q{ms'}));
is($result->{out}, 't', 'a platform that hangs');
cmp_ok($result->{seconds}, '<', 3 * $SLOW, '... costs one timeout');
cmp_ok($mock->executes, '<=', 40, '... and the requests that were under way');
$mock->well;

$mock->rules([ { kind => 'execute' }, { type => 'status', status => 502 }, times => 20 ]);
$session->value('SET feishu_flow.max_concurrent_calls = 32');
is( $session->value(
			q{SELECT count(*) FILTER (WHERE (r).sqlstate = 'LK500') || ' ' || }
		  . q{count(*) FILTER (WHERE (r).sqlstate IS NULL) FROM }
		  . flows(200)),
	'20 180',
	'a trouble that passes while others are under way stops nothing');
$mock->well;
is(succeeds($session, "SELECT $all_own FROM " . flows(10), 'it is well again'), '10 10 0', '... and all is sent');


# ---- ends ----

my $hanging = flows(100, q{'a', 'hangs'});
sub hangs { $mock->rules([ { flow_id => 'hangs' }, { type => 'hang' } ]); $mock->mark; return; }

foreach my $end (
	[ 'a cancel', '57014', sub { $watch->value('SELECT pg_cancel_backend(' . $_[0]->pid . ')') } ],
	[ 'a terminate', '57P01', sub { $watch->value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') } ])
{
	my ($name, $state, $act) = @$end;
	my $victim = FeishuFlow::Session->new($node);
	hangs();
	$victim->send("SELECT count(r) FROM $hanging");
	$mock->wait_for(32, flow_id => 'hangs');
	$act->($victim);
	nothing_under_way("$name ends all");
	$result = fails_with($victim, $victim->result, $state, '... and the statement');
	like(
		$result->{err},
		qr/^CONTEXT:  flows of feishu\.execute_flows that are under way, and may have started: 32$/m,
		'... which says what may have started') if $state eq '57014';
}

hangs();
fails_with(
	$session,
	'SET statement_timeout = '
	  . 500 * $SLOW
	  . "; SELECT count(r)
	FROM $hanging", '57014', 'statement_timeout ends the statement');
nothing_under_way('... and its calls');
$session->value('RESET statement_timeout');

hangs();
fails_with(
	$session, q{SELECT 1 / (id - 3),
	feishu.execute_flows('a', CASE WHEN id > 3 THEN 'hangs' ELSE 'echoParams' END) OVER ()
	FROM generate_series(1, 100) AS id}, '22012', 'an error elsewhere in the query');
nothing_under_way('... ends the calls');

hangs();
$result = $session->ask(
	'SELECT id FROM ' . flows(100, q{'a', CASE WHEN id > 3 THEN 'hangs' ELSE 'echoParams' END}) . ' LIMIT 3');
is($result->{out}, "1\n2\n3", 'LIMIT outside has its rows');
nothing_under_way('... and the others end');

# a function that goes on
$session->value(<<'SQL');
CREATE FUNCTION goes_on(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		EXECUTE statement;
	EXCEPTION WHEN division_by_zero OR query_canceled THEN
		NULL;
	END;
	PERFORM pg_advisory_xact_lock(1);
	RETURN 'went on';
END $$;
CREATE FUNCTION fails_in_sql() RETURNS bigint LANGUAGE sql VOLATILE AS $$
	SELECT sum(1 / (id - 3)) FROM (SELECT id,
		feishu.execute_flows('a', CASE WHEN id > 3 THEN 'hangs' ELSE 'echoParams' END) OVER () AS r
		FROM generate_series(1, 100) AS id) AS s
$$;
CREATE FUNCTION goes_on_after_sql() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	sum bigint;
BEGIN
	BEGIN
		sum := fails_in_sql();
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	PERFORM pg_advisory_xact_lock(1);
	RETURN sum;
END $$;
CREATE FUNCTION first_one() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	one text;
BEGIN
	SELECT id INTO one FROM (SELECT id,
		feishu.execute_flows('a', CASE WHEN id > 1 THEN 'hangs' ELSE 'echoParams' END) OVER () AS r
		FROM generate_series(1, 100) AS id) AS s LIMIT 1;
	PERFORM pg_advisory_xact_lock(1);
	RETURN one;
END $$;
SQL
$watch->value('SELECT pg_advisory_lock(1)');
foreach my $form (
	[
		'an error that is caught', q{SELECT goes_on($$SELECT 1 / (id - 3),
		feishu.execute_flows('a', CASE WHEN id > 3 THEN 'hangs' ELSE 'echoParams' END) OVER ()
			FROM generate_series(1, 100) AS id$$)}
	],
	[ 'one in an SQL function, whose memory stays', q{SELECT goes_on_after_sql()} ],
	[ 'a query in PL/pgSQL that needed the first row alone', q{SELECT first_one()} ])
{
	my ($name, $statement) = @$form;
	hangs();
	$session->send($statement);
	wait_until(
		'it goes on',
		sub {
			$watch->value(
				q{SELECT count(*)
		FROM pg_stat_activity WHERE wait_event_type = 'Lock'}) == 1;
		});
	nothing_under_way("$name: nothing is under way while the function goes on");
	$watch->value('SELECT pg_advisory_unlock(1)');
	succeeds($session, $session->result, '... which returns');
	$watch->value('SELECT pg_advisory_lock(1)');
}
$watch->value('SELECT pg_advisory_unlock(1)');

# In procedures, whose loops fetch row by row, so wait for what was begun ahead; before the first COMMIT in one all
# rows are taken.
$session->value(<<'SQL');
CREATE TABLE done (step int, id int);
CREATE PROCEDURE many_calls(flow_id text, commits boolean) LANGUAGE plpgsql AS $$
DECLARE
	one record;
BEGIN
	INSERT INTO done SELECT 1, id FROM (SELECT id, feishu.execute_flows('a', 'echoParams') OVER () AS r
		FROM generate_series(1, 10) AS id) AS s WHERE (r).sqlstate IS NULL;
	IF commits THEN
		COMMIT;
	END IF;
	FOR one IN SELECT id,
			feishu.execute_flows('a', CASE WHEN id > 40 THEN many_calls.flow_id ELSE 'echoParams' END) OVER ()
		FROM generate_series(1, 60) AS id
	LOOP
		INSERT INTO done VALUES (2, one.id);
		IF commits THEN
			COMMIT;
		END IF;
	END LOOP;
END $$;
SQL

foreach my $form ([ 'a procedure', 'false', 1, '' ], [ 'a procedure that commits', 'true', 20, '1 10' ])
{
	my ($name, $commits, $hanging, $kept) = @$form;
	foreach my $end ([ 'a cancel', '57014', 'pg_cancel_backend' ], [ 'a terminate', '57P01', 'pg_terminate_backend' ])
	{
		my ($what, $state, $function) = @$end;
		my $victim = FeishuFlow::Session->new($node);
		$session->value('TRUNCATE done');
		hangs();
		$victim->send("CALL many_calls('hangs', $commits)");
		$mock->wait_for($hanging, flow_id => 'hangs');
		$watch->value("SELECT $function(" . $victim->pid . ')');
		nothing_under_way("$what of $name ends all");
		my $ended = fails_with($victim, $victim->result, $state, '... and the procedure');
		is( $session->value(
				"SELECT string_agg(s, ', ') FROM (SELECT step || ' ' || count(*) AS s FROM done GROUP BY step) t"),
			$kept,
			'... of which stays what it had committed');
		next if $state ne '57014';
		like(
			$ended->{err},
			qr/^CONTEXT:  flows of feishu\.execute_flows that are under way, and may have started: \d+$/m,
			'... and it says what may have started');
		$mock->well;
		$session->value('TRUNCATE done');
		$mock->mark;
		succeeds($victim, "CALL many_calls('b', $commits)", '... the session goes on, and calls it again');
		is($mock->executes, 70, '... with one request a row');
		is($session->value('SELECT count(DISTINCT (step, id)) FROM done'), 70, '... and a row of its own for each');
	}
}

# cursors
$mock->well;
$mock->fault(type => 'latency', ms => 100);
$mock->mark;
is( $session->value(
			'BEGIN; DECLARE c CURSOR FOR SELECT id FROM '
		  . flows(100)
		  . '; FETCH 2
	FROM c'),
	"1\n2",
	'a cursor');
is(under_way(), 0, '... has nothing under way between two FETCHes');
my $executes = $mock->executes;
cmp_ok($executes, '>=', 32, '... though it read ahead');
cmp_ok($executes, '<=', 34, '... by no more than may be under way');
is($session->value('FETCH 31 FROM c'), join("\n", 3 .. 33), '... and goes on');
is($session->value('SAVEPOINT s; FETCH 1 FROM c; ROLLBACK TO s; FETCH 1 FROM c'),
	"34\n35", '... after a subtransaction is undone, too');
is(succeeds($session, 'CLOSE c; COMMIT', 'closed early'), '', '... ends');
is(under_way(), 0, '... with nothing under way');
$session->value(
		'BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT id, (r).sqlstate FROM '
	  . flows(50)
	  . '; FETCH 1
	FROM c; COMMIT');
is($session->value('MOVE 48 FROM c; FETCH ALL FROM c; CLOSE c'), '50|', 'a cursor that outlives its transaction');
$mock->mark;
is( $session->value(
			q{DO $$ DECLARE one record; n int := 0; BEGIN FOR one IN SELECT * FROM }
		  . flows(70)
		  . q{ LOOP n := n + 1; COMMIT; END LOOP; ASSERT n = 70; END $$}),
	'',
	'a procedure that commits for each row');
is($mock->executes, 70, '... sends each once');
$mock->well;

# calls of a function in the arguments, which drive what is under way further out
$session->value(
	q{CREATE FUNCTION inner_call(n int) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN
	RETURN feishu.out_params(feishu.execute_flow('a', 'echoParams', params => jsonb_build_object('n', n))); END $$});
$mock->fault(type => 'latency', ms => [ 1, 5 ]);
is( $session->value(
		q{SELECT count(*) FILTER (WHERE (feishu.out_params((r).response) ->> 'n')::int = id) FROM }
		  . flows(40, q{'a', 'echoParams', params => inner_call(id)})),
	40,
	'calls within the arguments of calls');
is( $session->value(
		q{SELECT count(*) FILTER (WHERE (feishu.out_params((r).response) ->> 'n')::int = id)
	FROM (SELECT id, feishu.execute_flows('a', 'echoParams',
	params => feishu.out_params((inside).response)) OVER () AS r FROM (SELECT id,
		feishu.execute_flows('a', 'echoParams', params => jsonb_build_object('n', id)) OVER () AS inside
	FROM generate_series(1, 100) AS id) AS s) AS s}),
	100,
	'one within the other');
$mock->well;


# ---- many rows, and large answers; memory is looked at by 110_memory.pl ----

$session->value('SELECT count(r) FROM ' . flows(100));
cmp_ok(open_sockets($session->pid), '<=', 12, 'few connections are kept');

# large answers ahead of their turn
$mock->rules([ { flow_id => 'slow' }, { type => 'hold' } ],
	[ { kind => 'execute' }, { type => 'big', bytes => 1 << 20 } ]);
$mock->mark;
$session->send(
	q{SELECT count(*)
	FROM (SELECT feishu.execute_flows('a', CASE id WHEN 1 THEN 'slow' ELSE 'large' END) OVER () AS r
		FROM generate_series(1, 80) AS id) AS s});
$mock->wait_for(32, flow_id => 'large', state => 'done');
cmp_ok($mock->count(flow_id => 'large'), '<', 60, 'large answers ahead of their turn are bounded');
$mock->well;
is($session->result->{out}, 80, '... and all come');


# ---- who takes the results takes its time ----

# The second row's turn comes when all that is under way is past its timeout, and was answered in time.
$mock->fault(type => 'latency', ms => 100 * $SLOW);
is( $session->value(
		q{SELECT count(*) || ' ' || count((r).sqlstate)
	FROM (SELECT CASE WHEN id < 3 THEN pg_sleep(}
		  . 1.5 * $SLOW
		  . q{) END, r FROM }
		  . flows(40, q{'a', 'b', timeout => '} . 1000 * $SLOW . q{ms'})
		  . q{ OFFSET 0) AS s}),
	'40 0',
	'answers that came in time are in time, whenever they are read');
$mock->well;

is($session->value("BEGIN READ ONLY; SELECT $all_own FROM " . flows(10) . '; COMMIT'),
	'10 10 0', 'in a read-only transaction');
is($session->value("BEGIN; SELECT $all_own FROM " . flows(20) . "; PREPARE TRANSACTION 'p'; ROLLBACK PREPARED 'p'"),
	'20 20 0', 'in a transaction that is prepared');


# ---- connections: one for each call over HTTP/1.1, few over HTTP/2 ----

my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;
IPC::Run::run(
	[
		qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=many -addext subjectAltName=IP:127.0.0.1),
		'-keyout', "$dir/key", '-out', "$dir/crt"
	],
	'>',
	'/dev/null',
	'2>&1') or die 'openssl';
my %site = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 'http1', 'http2';
start_nginx($dir, join('', map { my $http2 = $_ eq 'http2' ? ' http2' : ''; <<"CONF" } sort keys %site), values %site);
	server {
		listen 127.0.0.1:$site{$_} ssl$http2;
		ssl_certificate $dir/crt;
		ssl_certificate_key $dir/key;
		keepalive_requests 1000000;
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
$mock->fault(type => 'latency', ms => 100);
my %most = (http1 => 40, http2 => 3);

foreach my $site (sort keys %site)
{
	create_server($node, $site, { base_url => "https://127.0.0.1:$site{$site}", ca_file => "$dir/crt" });
	is( $session->value(
			"SELECT $all_own FROM " . flows(
				160, qq{'a', 'echoParams', '{"_id": 1}',
		params => jsonb_build_object('id', id), server => '$site'})),
		'160 160 0',
		"over $site");
	my %connections = map { /^$site{$site} \S+ (\d+) .*execute/ ? ($1 => 1) : () } split /\n/,
	  slurp_file("$dir/access.log");
	cmp_ok(scalar keys %connections, '<=', $most{$site}, '... takes no more connections than need be');
}
cmp_ok(open_sockets($session->pid), '<=', 20, '... of which few are kept');
$mock->well;


# ---- without shared_preload_libraries ----

my $alone = new_cluster('alone', preload => 0);
create_server($alone, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
create_server($alone, 'down', { base_url => 'http://127.0.0.1:' . closed_port(), operator => '{"_id": 1}' });
my $single = FeishuFlow::Session->new($alone);
$mock->mark;
is($single->value("SELECT $all_own FROM " . flows(100)), '100 100 0', 'without shared_preload_libraries');
is($mock->token_requests, 1, '... with one token');
is( $single->value(
		q{SELECT count(*) FILTER (WHERE (r).error LIKE '%does not answer') > 900 FROM }
		  . flows(1000, q{'a', 'b', server => 'down'})),
	't',
	'... the rest is not tried, either');
is($single->value('BEGIN; DECLARE c CURSOR FOR SELECT id FROM ' . flows(100) . '; FETCH 2 FROM c'),
	"1\n2", '... a cursor');
is($single->value('COMMIT; SELECT 1'), 1, '... that its transaction ends');

done_testing();
