
# Memory and descriptors of a session stay flat, however many calls it makes and
# however they end.
#
# FEISHU_TEST_CALLS: calls of each kind after the first 500 (default 2,000).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

my $calls = $ENV{FEISHU_TEST_CALLS} // 2000;

# What it may still grow by: bytes that are counted, so that the least leak of some hundred calls shows; or in kB, where
# they cannot be counted.
my ($node, $session, $measure);
my $tolerance = 128;
{
	local %ENV = %ENV;
	if (count_memory())
	{
		$tolerance = 1000;
		$measure = sub { my ($malloced, $used) = memory_in_use($node, $session->pid); return $malloced + $used; };
	}
	$node = new_cluster('main', conf => "jit = off\n");
}

my $mock = FeishuFlow::Mock->start('--log-limit', '1000');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'oauth', { base_url => $mock->url, token_url => $mock->url . '/oauth/v3/token' });
create_server($node, 'refused', { base_url => 'http://127.0.0.1:' . closed_port() });

$session = FeishuFlow::Session->new($node);
my $watch = FeishuFlow::Session->new($node);
$session->value(<<'SQL');
CREATE FUNCTION many(n int, statement text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	failures bigint := 0;
	answer jsonb;
BEGIN
	FOR i IN 1 .. n LOOP
		BEGIN
			EXECUTE statement INTO answer;
		EXCEPTION WHEN OTHERS THEN
			failures := failures + 1;
		END;
	END LOOP;
	RETURN failures;
END $$;
SQL

sub in_loop
{
	my ($n, $sql) = @_;
	return $session->value("SELECT many($n, " . quote($sql) . ')');
}

# $run makes so many calls; after the first 500 (or the number given) memory and
# descriptors must not grow any more.
sub stays_flat
{
	my ($what, $run, %options) = @_;
	my $first = $options{first} // 500;
	my $more = $options{more} // $calls;
	$run->($first);
	my $files = open_files($session->pid);
	my $growth = least_growth($session->pid, $tolerance, sub { $run->($more); }, $measure, 6);
	cmp_ok($growth, '<=', $tolerance, "memory stays flat over $more calls: $what");
	is(open_files($session->pid), $files, "descriptors stay flat over $more calls: $what");
	return;
}

my $params = '{"order": {"_id": 7}, "text": "some text to send", "list": [1, 2, 3]}';

# A thousand in each statement: more would only measure generate_series.
stays_flat(
	'a thousand in one statement',
	sub {
		my ($n) = @_;
		my $done = 0;
		$done += $session->value(
			'SELECT count(r) FROM (SELECT '
			  . function_call(
				'feishu.execute_flow',
				namespace => 'a',
				flow_id => 'echoParams',
				operator => \"jsonb_build_object('_id', n)",
				params => $params)
			  . ' AS r FROM generate_series(1, 1000) n) s') while $done < $n;
		cmp_ok($done, '>=', $n, "$n calls, a thousand in each statement");
	});
stays_flat(
	'many at once',
	sub {
		my ($n) = @_;
		my $done = 0;
		$done += $session->value(
			q{SELECT count((r).response) FROM (SELECT feishu.execute_flows('a', 'echoParams',
		jsonb_build_object('_id', n), params => }
			  . quote($params)
			  . q{) OVER () AS r FROM generate_series(1, 1000) n) s}) while $done < $n;
		cmp_ok($done, '>=', $n, "$n calls, a thousand in each statement");
	});
stays_flat(
	'many at once, partition by partition, in a loop that goes on',
	sub {
		my ($n) = @_;
		is( in_loop(
				$n / 20,
				q{SELECT to_jsonb(count((r).response))
		FROM (SELECT feishu.execute_flows('a', CASE WHEN n % 3 > 0 THEN 'echoParams' END,
		jsonb_build_object('_id', n)) OVER (PARTITION BY n % 5) AS r FROM generate_series(1, 20) n) s}),
			0,
			"$n calls");
	});
stays_flat(
	'statement by statement',
	sub {
		my ($n) = @_;
		my $sql = flow(params => $params);
		$session->value(join("\n", map { "$sql \\g /dev/null" } 1 .. $n));
	},
	first => 500,
	more => 1000);
stays_flat(
	'ever other URLs',
	sub {
		my ($n) = @_;
		is( $session->value(
				'SELECT count(r) FROM (SELECT '
				  . function_call(
					'feishu.execute_flow',
					namespace => 'a',
					flow_id => \"'flow' || n",
					operator => '{"_id": 1}')
				  . " AS r FROM generate_series(1, $n) n) s"),
			$n,
			"$n calls");
	},
	first => 200,
	more => int($calls / 10));
stays_flat(
	'refused calls',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow(flow_id => 'noScope')), $n, "$n refused calls");
	},
	more => int($calls / 2));
stays_flat(
	'refusals that are returned',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow(flow_id => 'refusedFlow', raise_error => 'false')), 0, "$n refusals");
	},
	more => int($calls / 2));
stays_flat(
	'arguments that are refused',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow(operator => '{}')), $n, "$n bad arguments");
	},
	more => int($calls / 2));

foreach my $fault (
	[ 'reset connections', { type => 'reset_after' } ],
	[ 'answers that break off', { type => 'raw', text => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{" } ],
	[ 'HTML with 502', { type => 'status', status => 502 } ],
	[ 'gzip', { type => 'gzip' }, 0 ])
{
	my ($what, $how, $failures) = @$fault;
	$mock->fault(%$how);
	stays_flat(
		$what,
		sub {
			my ($n) = @_;
			is(in_loop($n, flow()), $failures // $n, "$n calls");
		},
		first => 100,
		more => int($calls / 20));
	$mock->well;
}
$mock->fault(type => 'big', bytes => 1 << 20);
stays_flat('answers of 1 MB', sub { in_loop($_[0], flow()); }, first => 20, more => int($calls / 100));
$mock->well;
stays_flat(
	'connections that are refused',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow(server => 'refused')), $n, "$n calls");
	},
	first => 200,
	more => int($calls / 5));

$mock->fault(type => 'hang');
stays_flat(
	'timeouts',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow(timeout => '3ms')), $n, "$n calls");
	},
	first => 200,
	more => int($calls / 5));

# cancelled again and again, in a loop that goes on
$session->value(<<'SQL');
CREATE FUNCTION cancelled(n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	caught int := 0;
BEGIN
	WHILE caught < n LOOP
		BEGIN
			PERFORM feishu.execute_flow('a', 'b', '{"_id": 1}');
		EXCEPTION WHEN query_canceled THEN
			caught := caught + 1;
		END;
	END LOOP;
	RETURN caught;
END $$;
SQL
stays_flat(
	'cancelled calls',
	sub {
		my ($n) = @_;
		$mock->mark;
		$session->send("SELECT cancelled($n)");
		foreach my $round (1 .. $n)
		{
			$mock->wait_for($round, kind => 'execute');
			$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
		}
		is($session->result->{out}, $n, "$n cancelled calls");
	},
	first => 50,
	more => int($calls / 25));
$mock->well;

# a token for each call
$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99991663 }, every => 2 ]);
stays_flat(
	'tokens that are refused and replaced',
	sub {
		my ($n) = @_;
		is(in_loop($n, flow()), 0, "$n calls");
		is(in_loop($n, flow(server => 'oauth')), 0, "$n calls with OAuth");
	},
	first => 200,
	more => int($calls / 10));
$mock->well;
stays_flat(
	'check_server',
	sub {
		my ($n) = @_;
		$session->value("SELECT count(*) FROM generate_series(1, $n) n, "
			  . "LATERAL feishu.check_server(CASE WHEN n > 0 THEN 'feishu' END) c");
	},
	first => 200,
	more => int($calls / 10));

is($mock->stats->{connections_open}, 1, 'in the end one connection is open');

# A hundred thousand rows, of which one in fifty makes a call: memory is that of what is under way.
$session->value("CREATE TABLE many AS SELECT n, CASE WHEN n % 50 = 0 THEN 'echoParams' END AS flow "
	  . "FROM generate_series(1, 100000) n");
my $many = q{SELECT count(*) || ' ' || count((r).response) || ' ' || count((r).error)
	FROM (SELECT feishu.execute_flows('a', flow, '{"_id": 1}',
		params => jsonb_build_object('text', repeat('x', 200))) OVER () AS r
	FROM many WHERE n <= %d) AS s};
is($session->value(sprintf $many, 1000), '1000 20 980', 'a thousand rows at once');
my ($kilobytes, $most) = (private_kilobytes($session->pid)) x 2;
my $files = open_files($session->pid);
$session->send(sprintf $many, 100000);

while ($watch->value(q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid = } . $session->pid))
{
	my $now = private_kilobytes($session->pid);
	$most = $now if $now > $most;
}
is($session->result->{out}, '100000 2000 98000', 'a hundred thousand');
cmp_ok($most - $kilobytes, '<=', 32 * 1024, '... in bounded memory');
cmp_ok(open_files($session->pid), '<=', $files, '... and no more descriptors');

# Flows that are queued: each statement, and each transaction, has news for the dispatcher.
$session->value("SELECT feishu.pause_server('refused')");
my $queued = "SELECT to_jsonb(feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => 'refused'))";
stays_flat('flows that are queued in one transaction', sub { in_loop($_[0], $queued); }, first => 100, more => 300);
stays_flat(
	'flows that are queued in one each',
	sub { $session->value(join('; ', ($queued) x $_[0])); },
	first => 100,
	more => 100);

done_testing();
