
# The queue when all is well: what is committed is sent once and its end is
# recorded; the functions that wait, cancel, retry, purge and pause.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);

my $UUID = qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'second', { base_url => $mock->url, operator => '{"email": "a@b.c"}' });
my $session = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($node);
my ($id, $second, $row);

# A flow as the view shows it.
sub row_of
{
	return JSON::PP->new->utf8->decode($session->value("SELECT to_jsonb(f) FROM feishu.flows f WHERE id = $_[0]"));
}

# ---- committed is sent ----

$mock->mark;
$id = enqueue($session, params => '{"n": 1, "text": "\u6d41\u7a0b"}');
like($id, qr/^\d+$/, 'enqueue_flow returns an id');
like($session->value("SELECT feishu.wait_flow($id)"), qr/"execution_id": "\d+"/, 'wait_flow returns the response');
$row = row_of($id);
is( "@$row{qw(id state server role namespace flow_id attempts code)}",
	"$id succeeded feishu " . $session->value('SELECT current_user') . ' app flow 1 0',
	'the view shows what became of it');
is($row->{is_async}, JSON::PP::true, 'a queued flow is asynchronous unless asked otherwise');
like($row->{idempotent_key}, $UUID, 'a key is made');
my $key_of = 'SELECT idempotent_key FROM feishu.flows WHERE id = ';
my @keys;

foreach my $one ($session, FeishuFlow::Session->new($node))
{
	$one->value('BEGIN');
	push @keys, map { $one->value($key_of . enqueue($one)) } 1 .. 40;
	$one->value('ROLLBACK');
}
is_deeply([ grep { $_ !~ $UUID } @keys ], [], '... for each flow');
is(scalar(keys %{ { map { $_ => 1 } @keys } }), 80, '... its own, also in another session');
is($session->value("SELECT expires_at - run_at = '1 day' FROM feishu.flows WHERE id = $id"),
	't', 'it expires max_age after its run_at');
is_deeply($row->{operator}, { _id => 1111 }, '... the operator is there');
is_deeply($row->{params}, { n => 1, text => "\x{6d41}\x{7a0b}" }, '... the params');
ok(defined $row->{$_}, "... $_") foreach qw(created_at run_at expires_at finished_at execution_id flow_status response);
ok(!defined $row->{$_}, "... no $_") foreach qw(sqlstate error ordering_key loop_masks max_attempts);
is($row->{response}{data}{execution_id}, $row->{execution_id}, '... the execution id is that of the response');
my ($request) = arrivals($mock);
is($mock->executes, 1, 'one request was made');
is($request->{key}, $row->{idempotent_key}, '... with this key');
is("$request->{namespace} $request->{flow_id}", 'app flow', '... to this flow');
is_deeply(JSON::PP->new->decode($request->{json}{params}), $row->{params}, '... with these params');
is($request->{json}{is_async}, JSON::PP::true, '... asynchronous');
started_once($mock, 1, '... which started once');

$mock->mark;
$id = enqueue(
	$session,
	params => '{"n": 2}',
	idempotent_key => 'my-key',
	loop_masks => '["a", "b"]',
	is_async => \'false',
	ordering_key => 'ok',
	max_attempts => \7,
	server => 'second',
	operator => undef,
	expires_at => '2100-01-01');
$session->value("SELECT feishu.wait_flow($id)");
$row = row_of($id);
is( "@$row{qw(state server idempotent_key ordering_key max_attempts)}",
	'succeeded second my-key ok 7',
	'arguments are kept');
is_deeply($row->{operator}, { email => 'a@b.c' }, '... the operator of the server where none is given');
like($row->{expires_at}, qr/^2100-01-01|^2099-12-31/, '... expires_at');
($request) = arrivals($mock);
is($request->{key}, 'my-key', 'the key given goes to the platform');
is_deeply($request->{json}{loop_masks}, [ 'a', 'b' ], '... the loop masks');
ok(!$request->{json}{is_async}, '... and that it is synchronous');

is(enqueue_many($session, 1001, 1500), 500, '500 flows in one transaction');
until_ended($session);
is(ends($session), 'succeeded 502', '... all end');
started_once($mock, 502, '... and start once');

# ---- arguments ----

foreach my $case (
	[ '22023', { namespace => '' } ],
	[ '22023', { flow_id => undef } ],
	[ '22023', { operator => undef } ],
	[ '22023', { operator => '{}' } ],
	[ '22023', { params => '[]' } ],
	[ '22023', { loop_masks => '{}' } ],
	[ '22023', { max_attempts => \0 } ],
	[ '22023', { max_attempts => \-1 } ],
	[ '22023', { expires_at => '2000-01-01' } ],
	[ '22023', { run_at => '2100-01-02', expires_at => '2100-01-01' } ],
	[ '22023', { run_at => '1999-01-01', expires_at => '2000-01-01' } ],
	[ '22023', { expires_at => '-infinity' } ],
	[ '22023', { run_at => 'infinity', expires_at => 'infinity' } ],
	[ '22023', { ordering_key => '' } ],
	[ '22023', { idempotent_key => '' } ],
	[ '42704', { server => 'nowhere' } ])
{
	my ($sqlstate, $arguments) = @$case;
	my $names = join '|', sort keys %$arguments;
	fails_with($session, 'SELECT ' . enqueue_call(%$arguments),
		$sqlstate, "wrong $names", $names eq 'server' ? () : (message => qr/\b(?:$names)\b/));
}
fails_with(
	$session, 'SELECT ' . enqueue_call(run_at => 'infinity'),
	'22023',
	'run_at infinity is refused',
	message => qr/\brun_at\b/);
$id = enqueue($session, run_at => '294276-12-31 00:00+00', params => '{"never": true}');
is(look($session, $id, 'state'), 'queued', 'a flow may wait until the end of time');
$session->value("SELECT feishu.cancel_flow($id)");
$id = enqueue($session, run_at => '-infinity', params => '{"n": 3}');
$second = enqueue($session, run_at => undef, params => '{"n": 4}');
$session->value("SELECT feishu.wait_flow($_)") foreach $id, $second;
started_once($mock, 504, 'run_at of the past, and none, is now');
$id = enqueue($session, run_at => '2000-01-01', params => '{"n": 3000}');
succeeds($session, "SELECT feishu.wait_flow($id)", '... and has not expired by its age');
is(look($session, $id, "expires_at - created_at = '1 day'"), 't', '... which begins now');

# ---- wait_flow ----

$mock->fault(type => 'hold');
$mock->mark;
$id = enqueue($session, params => '{"n": 5}');
$mock->wait_for(1, kind => 'execute');
until_state($session, $id, 'sending');
pass('a flow under way is "sending"');
is( $session->value(
		"SELECT queued || ' ' || sending || ' ' || paused FROM feishu.dispatch_status WHERE server = 'feishu'"),
	'0 1 false',
	'... in dispatch_status, too');
my $activity = "SELECT state || ': ' || query FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'";
wait_until('pg_stat_activity says so', sub { $session->value($activity) eq 'active: sending 1 flows' });
pass('... and pg_stat_activity says what the dispatcher does');
fails_with($session, "SELECT feishu.wait_flow($id, '50 ms')", 'LK504', 'wait_flow gives up in time');
fails_with($session, "SET statement_timeout = '50ms'; SELECT feishu.wait_flow($id)",
	'57014', 'wait_flow can be cancelled');
$session->value('RESET statement_timeout');
$session->send("SELECT feishu.wait_flow($id)");
wait_until('a session waits',
	sub { $other->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->pid) eq 'Extension' });

# 17 and later have names for what an extension waits for.
sub waits_for
{
	my ($pid, $name) = @_;
	wait_until(
		"it waits for $name",
		sub {
			$other->value(
					"SELECT wait_event = CASE WHEN current_setting('server_version_num')::int >= 170000 THEN '$name' "
				  . "ELSE 'Extension' END "
				  . "FROM pg_stat_activity WHERE pid = $pid") eq 't';
		});
	return pass("pg_stat_activity says so: $name");
}
waits_for($session->pid, 'FeishuFlowWait');
waits_for(dispatcher($other), 'FeishuFlowDispatch');
$mock->well;
succeeds($session, $session->result, 'wait_flow returns when the flow ends');
wait_until('the dispatcher is idle', sub { $session->value($activity) eq 'idle: idle' });

# It looks by itself every 2 s, which 20 waits would show.
my $started = time();
for my $n (1 .. 20)
{
	my $waited = enqueue($session, params => "{\"n\": 1$n}");
	$session->value("SELECT feishu.wait_flow($waited)");
}
cmp_ok(time() - $started, '<', 5 * $FeishuFlow::SLOW, '... and at once, not when it next looks');

$id = enqueue($session, flow_id => 'refusedFlow');
fails_with(
	$session, "SELECT feishu.wait_flow($id)", 'LK400', 'wait_flow raises what the flow failed with',
	detail => qr/\w/,
	message => qr{^could not execute flow "\w+/refusedFlow": },
	err => qr/wait_flow\(\) of flow $id\b/);
is( look($session, $id, "state || ' ' || sqlstate || ' ' || code || ' ' || attempts"),
	'failed LK400 2320001 1',
	'... which is recorded');
isnt(look($session, $id, 'error'), '', '... with the reason');
fails_with($session, 'SELECT feishu.wait_flow(123456789)', '42704', 'wait_flow of no flow');
is($session->value('SELECT feishu.wait_flow(NULL) IS NULL'), 't', 'wait_flow of NULL');
fails_with($session, "SELECT feishu.wait_flow($id, NULL)", 'LK400', 'a timeout of NULL is the default, and no success');
is($session->value("SELECT feishu.retry_flow($id, NULL)"), 't', '... and so is a new_key of NULL');
until_ended($session, "id = $id");

foreach my $how ('', 'SAVEPOINT a;')
{
	$session->value("BEGIN; $how");
	$id = enqueue($session, params => '{"never": true}');
	my $result = $session->ask("SELECT feishu.wait_flow($id)");
	fails_with($session, $result, '55000',
		'wait_flow in the transaction that queued it' . ($how ? ', in a subtransaction' : ''));
	cmp_ok($result->{seconds}, '<', 5, '... at once');
	$session->value('ROLLBACK');
}
my $result = $session->ask('SELECT feishu.wait_flow(' . enqueue_call(params => '{"never": true}') . ')');
is($result->{sqlstate}, '55000', '... in the same statement');
cmp_ok($result->{seconds}, '<', 5, '... at once');
$session->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
$id = enqueue($other, params => '{"n": 6}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'wait_flow sees the end whatever the snapshot says');
$session->value('COMMIT');

# A flow that is retried keeps the answer of its last attempt, of 4 MB here.  Who
# waits looks at it whenever it is told, as of a cancel that was rolled back to a
# savepoint.
$id = enqueue($session, run_at => \"now() + interval '1 hour'", params => '{"never": true}');
$session->value(
	"UPDATE feishu_internal.outbox SET response = to_jsonb(repeat('0123456789abcdef', 262144)) WHERE id = $id");
$other->send("SELECT feishu.wait_flow($id, '1 h')");
wait_until('a session waits',
	sub { $session->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $other->pid) eq 'Extension' });
my $memory = private_kilobytes($other->pid);
for (1 .. 30)
{
	my $looks = wakes($other->pid);
	$session->value("BEGIN; SAVEPOINT a; SELECT feishu.cancel_flow($id); ROLLBACK TO a; COMMIT");
	wait_until('it looks', sub { wakes($other->pid) > $looks });
}
cmp_ok(private_kilobytes($other->pid) - $memory, '<', 30_000, 'the memory of who waits does not grow with the looks');
$session->value("SELECT feishu.cancel_flow($id)");
fails_with($other, $other->result, '55000', '... until the flow ends');

# ---- cancel_flow ----

my $later = "now() + interval '1 hour'";
$mock->mark;
$id = enqueue($session, run_at => \$later, params => '{"never": true}');
is(look($session, $id, 'state'), 'queued', 'a flow of later is queued');
is($session->value("SELECT feishu.cancel_flow($id)"), 't', '... and can be cancelled');
is(look($session, $id, 'state, attempts, finished_at IS NOT NULL'), 'cancelled|0|t', '... which is recorded');
is($session->value("SELECT feishu.cancel_flow($id)"), 'f', '... but once');
fails_with(
	$session, "SELECT feishu.wait_flow($id)",
	'55000',
	'... and is an error to whoever waits for it',
	message => qr/cancelled/);
$started = time();

for (1 .. 5)
{
	$id = enqueue($session, run_at => \$later, params => '{"never": true}');
	$other->send("SELECT feishu.wait_flow($id)");
	wait_until(
		'a session waits',
		sub {
			$session->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $other->pid) eq 'Extension';
		});
	$session->value("SELECT feishu.cancel_flow($id)");
	fails_with($other, $other->result, '55000', '... who waits already');
}
cmp_ok(time() - $started, '<', 5 * $FeishuFlow::SLOW, '... and is told at once');
fails_with($session, 'SELECT feishu.cancel_flow(123456789)', '42704', 'there is no such flow to cancel');

$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($session, params => '{"never": true}');
is($session->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow of a paused server can be cancelled');
$id = enqueue($session, params => '{"n": 7}');
$session->value("BEGIN; SELECT feishu.cancel_flow($id)");
$other->value("SELECT feishu.resume_server('feishu')");
$second = enqueue($other, params => '{"n": 8}');
$other->value("SELECT feishu.wait_flow($second)");
is(look($other, $id, 'state'), 'queued', 'a flow is not sent while it is being cancelled');
$session->value('ROLLBACK');
succeeds($session, "SELECT feishu.wait_flow($id)", '... but when that is rolled back');
is(look($session, $id, 'state'), 'succeeded', '... after all');
is($session->value("SELECT feishu.cancel_flow($id)"), 'f', 'what was sent cannot be cancelled');
$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($session, params => '{"n": 9}');
$session->value("BEGIN; SAVEPOINT a; SELECT feishu.cancel_flow($id); ROLLBACK TO a");
$other->value("SELECT feishu.resume_server('feishu')");
$session->value('COMMIT');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a cancel is rolled back to a savepoint: the flow is sent');
is_deeply([ sort { $a <=> $b } numbers($mock) ], [ 7, 8, 9 ], 'nothing that was cancelled was sent');

$mock->fault(type => 'hold');
$mock->mark;
$id = enqueue($session, params => '{"n": 10}');
$mock->wait_for(1, kind => 'execute');
is($session->value("SELECT feishu.cancel_flow($id)"), 'f', 'what is being sent cannot be cancelled');
$mock->well;
succeeds($session, "SELECT feishu.wait_flow($id)", '... and ends as it would');

# What waits for another attempt, and what the one before was.
foreach my $case (
	[ 'reset_after', 'f', 'unconfirmed', 1, 'may have reached the platform' ],
	[ 'reset_before', 'f', 'unconfirmed', 0, 'got no answer' ],
	[ undef, 't', 'cancelled', 0, 'never reached it' ])
{
	my ($fault, $true, $state, $started, $what) = @$case;
	begin_anew($mock, $session);
	$mock->fault(type => $fault) if defined $fault;
	alter_server($session, 'feishu', 'SET', base_url => 'http://127.0.0.1:' . closed_port()) if !defined $fault;
	$id = enqueue($session, params => '{"n": 11}', run_at => \"now()");
	until_true(
		$session,
		'it is tried again later',
		"SELECT state = 'retrying' AND attempts > 0 FROM feishu.flows WHERE id = $id");
	$session->value("SELECT feishu.pause_server('feishu')");
	# another attempt may have begun before the dispatcher heard of the pause
	my $cancelled;
	wait_until(
		'no attempt is under way',
		sub {
			until_state($session, $id, 'retrying');
			$cancelled = $session->value("SELECT feishu.cancel_flow($id)");
			return look($session, $id, 'finished_at IS NOT NULL') eq 't';
		});
	is($cancelled, $true, "a flow is cancelled after an attempt that $what");
	is(look($session, $id, 'state'), $state, "... and is $state");
	like(
		look($session, $id, 'error'),
		$state eq 'unconfirmed' ? qr/\w; cancelled after it was sent$/ : qr/\w(?<!after it was sent)$/,
		'... and says why');
	alter_server($session, 'feishu', 'SET', base_url => $mock->url);
	$mock->well;
	$session->value("SELECT feishu.resume_server('feishu')");
	$second = enqueue($session, params => '{"n": 12}');
	$session->value("SELECT feishu.wait_flow($second)");
	is(scalar(grep { $_ == 11 } started_numbers($mock)), $started, '... and not sent again');
}

# Sessions that enqueue and cancel at once: never cancelled and sent.
begin_anew($mock, $session);
$session->value("CREATE SEQUENCE number; CREATE TABLE cancelled (id bigint, yes boolean)");
my $script =
	"SELECT "
  . enqueue_call(params => \q{jsonb_build_object('n', nextval('number'))})
  . " AS id \\gset\n"
  . "\\set pause random(0, 2)\n\\if :pause\n\\set us random(1, 4000)\n\\sleep :us us\n\\endif\n"
  . "INSERT INTO cancelled SELECT :id, feishu.cancel_flow(:id);\n";
my $bench = pgbench_start($node, $script, '-c', '6', '-j', '2', '-t', '250');
ok($bench->finish, '1500 flows are queued and cancelled by 6 sessions');
until_ended($session);
my ($yes, $no) = split /\|/,
  $session->value('SELECT count(*) FILTER (WHERE yes), count(*) FILTER (WHERE NOT yes) FROM cancelled');
note("$yes cancelled, $no sent");
is( $session->value(
			"SELECT count(*) FROM cancelled c JOIN feishu.flows f USING (id) "
		  . "WHERE f.state <> CASE WHEN yes THEN 'cancelled' ELSE 'succeeded' END"),
	'0',
	'... each is either cancelled or succeeded, as it was told');
started_once($mock, $no, '... and none was cancelled and sent');
cmp_ok($yes, '>', 0, '... some were cancelled');

# ---- retry_flow ----

$mock->mark;
$mock->fault(type => 'code', code => 2320001);
$id = enqueue($session, params => '{"n": 20}');
until_ended($session);
my ($key) = look($session, $id, 'idempotent_key');
$mock->well;
is($session->value("SELECT feishu.retry_flow($id)"), 't', 'a failed flow can be retried');
succeeds($session, "SELECT feishu.wait_flow($id)", '... and succeeds');
is(look($session, $id, 'state, attempts, sqlstate IS NULL, error IS NULL'),
	'succeeded|1|t|t', '... with nothing left of the failure');
is_deeply([ map { $_->{key} } arrivals($mock) ], [ $key, $key ], '... with the same key');
is($session->value("SELECT feishu.retry_flow($id)"), 'f', 'what succeeded is not retried');

$mock->mark;
$mock->fault(type => 'code', code => 2320001);
$id = enqueue($session, params => '{"n": 21}', idempotent_key => 'mine');
until_ended($session);
$mock->well;
is($session->value("SELECT feishu.retry_flow($id, new_key => true)"),
	't', 'a failed flow can be retried with a new key');
succeeds($session, "SELECT feishu.wait_flow($id)", '... and succeeds');
($key, $second) = map { $_->{key} } arrivals($mock);
is($key, 'mine', '... the first time with the one it was given');
like($second, $UUID, '... then with a new one');
is(look($session, $id, 'idempotent_key'), $second, '... which is shown');

$id = enqueue($session, run_at => \$later, params => '{"n": 22}');
is($session->value("SELECT feishu.retry_flow($id)"), 'f', 'what is queued is not retried');
$session->value("SELECT feishu.cancel_flow($id)");
$session->value("BEGIN; SELECT feishu.retry_flow($id); ROLLBACK");
is(look($session, $id, 'state'), 'cancelled', 'a retry that is rolled back is none');
is($session->value("SELECT feishu.retry_flow($id)"), 't', 'what was cancelled can be retried');
succeeds($session, "SELECT feishu.wait_flow($id)", '... at once');
fails_with($session, 'SELECT feishu.retry_flow(123456789)', '42704', 'there is no such flow to retry');

# ---- run_at, expires_at ----

$mock->mark;
my %due;
foreach my $n (30 .. 34)
{
	my $in = 0.3 * ($n - 30) + 0.3;
	$due{$n} = $session->value("SELECT extract(epoch FROM clock_timestamp()) + $in");
	enqueue($session, run_at => \"to_timestamp($due{$n})", params => "{\"n\": $n}");
}
until_ended($session);
foreach my $arrived (arrivals($mock))
{
	my ($n) = $arrived->{json}{params} =~ /(\d+)/;
	cmp_ok($arrived->{time}, '>=', $due{$n} - 0.001, "flow $n is not sent before its run_at");
	cmp_ok($arrived->{time}, '<', $due{$n} + 5, '... nor long after it');
}
is_deeply([ numbers($mock) ], [ 30 .. 34 ], '... in this order');
$id = enqueue($session, run_at => '2999-01-01', params => '{"never": true}');
is(look($session, $id, "state, expires_at > '2999-01-01'"),
	'queued|t', 'a run_at of the far future waits, and its age begins then');
$session->value("SELECT feishu.cancel_flow($id)");
$id = enqueue($session, run_at => '2999-01-01', expires_at => 'infinity', params => '{"never": true}');
is(look($session, $id, 'state, expires_at'), 'queued|infinity', 'a flow that is never to expire does not');
$session->value("SELECT feishu.cancel_flow($id); SET feishu_flow.max_age = '20000d'");
$id = enqueue($session, run_at => '294276-12-01', params => '{"never": true}');
is(look($session, $id, 'state, expires_at'), 'queued|infinity', '... nor one that would do so after the end of time');
$session->value("SELECT feishu.cancel_flow($id); RESET feishu_flow.max_age");

# ---- pause_server and resume_server ----

$mock->mark;
$session->value("BEGIN; SELECT feishu.pause_server('feishu'); ROLLBACK");
$id = enqueue($session, params => '{"n": 40}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a pause that is rolled back is none');
$session->value("SELECT feishu.pause_server('feishu'); SELECT feishu.pause_server('feishu')");
$id = enqueue($session, params => '{"n": 41}');
$second = enqueue($session, params => '{"n": 42}', server => 'second');
succeeds($session, "SELECT feishu.wait_flow($second)", 'while a server is paused the others are not');
like(
	$session->value(
			"SELECT queued || ' ' || sending || ' ' || paused || ' ' || pause_reason FROM feishu.dispatch_status "
		  . "WHERE server = 'feishu'"),
	qr/^1 0 true paused by \w+/,
	'... dispatch_status says so');
is( $session->value(
			"SELECT oldest_queued = created_at FROM feishu.dispatch_status, feishu.flows "
		  . "WHERE dispatch_status.server = 'feishu' AND id = $id"),
	't',
	'... and since when a flow waits');
$node->restart;
$_ = FeishuFlow::Session->new($node) foreach $session, $other;
until_dispatcher($session);
$second = enqueue($session, params => '{"n": 43}', server => 'second');
succeeds($session, "SELECT feishu.wait_flow($second)", 'after a restart the queue is served');
is(look($session, $id, 'state'), 'queued', '... but for the server that is paused');
$session->value("SELECT feishu.resume_server('feishu')");
succeeds($session, "SELECT feishu.wait_flow($id)", '... until it is resumed');
is($session->value("SELECT count(*) FROM feishu.dispatch_status WHERE paused"), '0', '... and nothing is paused');
is_deeply([ sort(numbers($mock)) ], [ 40 .. 43 ], '... all were sent once');
$session->value("CREATE SERVER dropped FOREIGN DATA WRAPPER feishu_flow; SELECT feishu.pause_server('dropped')");
is($session->value("SELECT paused FROM feishu.dispatch_status WHERE server = 'dropped'"),
	't', 'a server without flows is paused');
$session->value('DROP SERVER dropped');
is($session->value("SELECT count(*) FROM feishu.dispatch_status WHERE server = 'dropped'"),
	'0', '... until it is dropped, which no resume_server could undo');
my $long = 'l' x 100;
create_server($node, $long, { base_url => $mock->url });
$session->value("SELECT feishu.pause_server('$long'); SET feishu_flow.server = '$long'");
$id = enqueue($session);
is( $session->value(
			'SELECT length(o.server) FROM feishu_internal.outbox o JOIN feishu_internal.paused_server p USING (server) '
		  . "WHERE o.id = $id"),
	'63',
	'a name that is too long is cut in the queue, too, and so is found by its pause');
$session->value("SELECT feishu.cancel_flow($id); RESET feishu_flow.server; SELECT feishu.resume_server('$long'); "
	  . "DROP SERVER $long CASCADE");
$session->value('CREATE FOREIGN DATA WRAPPER other; CREATE SERVER others FOREIGN DATA WRAPPER other');

foreach my $function (qw(pause_server resume_server))
{
	fails_with($session, "SELECT feishu.$function('nowhere')", '42704', "$function of no server");
	fails_with($session, "SELECT feishu.$function('others')", '42809', '... and of one of another wrapper');
}

# ---- a role that is dropped ----

# Its flows fail some thousand at a time, those of a later time, too.
$session->value('CREATE ROLE leaving; GRANT USAGE ON FOREIGN SERVER feishu TO leaving; '
	  . "SELECT feishu.pause_server('feishu'); SET ROLE leaving");
enqueue_many($session, 1, 5010, flow_id => 'left');
enqueue($session, flow_id => 'left', run_at => \$later);
$session->value("RESET ROLE; DROP OWNED BY leaving; DROP ROLE leaving; SELECT feishu.resume_server('feishu')");
until_ended($session, "flow_id = 'left'");
is($session->value("SELECT sqlstate, count(*) FROM feishu.flows WHERE flow_id = 'left' GROUP BY 1"),
	'42704|5011', 'all flows of a role that is dropped fail');
$session->value("DELETE FROM feishu_internal.outbox WHERE flow_id = 'left'");

# ---- dispatch switched off ----

$mock->mark;
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->reload;
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
$id = enqueue($session, params => '{"n": 50}');
is($mock->executes, 0, 'nothing is sent with feishu_flow.dispatch = off');
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
$node->reload;
succeeds($session, "SELECT feishu.wait_flow($id)", '... but when it is on again');

# ---- purge_flows and retention ----

$id = enqueue($session, run_at => \$later);
my $finished = $session->value('SELECT count(*) FROM feishu.flows WHERE finished_at IS NOT NULL');
is($session->value("SELECT feishu.purge_flows(now() - interval '1 day')"), '0', 'nothing is old enough to be purged');
is($session->value('SELECT feishu.purge_flows(now())'), $finished, 'purge_flows drops finished flows');
is(ends($session), 'queued 1', '... and no others');
$node->append_conf('postgresql.conf', "feishu_flow.retention = '2s'\nfeishu_flow.poll_interval = '100ms'");
$node->reload;
my $failed = enqueue($session, flow_id => 'refusedFlow');
$second = enqueue($session, params => '{"n": 60}');
until_ended($session, "id IN ($failed, $second)");
$finished = look($session, $second, 'finished_at');
until_true(
	$session,
	'a flow is dropped after the retention',
	"NOT EXISTS (SELECT FROM feishu.flows WHERE id = $second)");
my $kept = $session->value("SELECT extract(epoch FROM clock_timestamp() - '$finished')");
cmp_ok($kept, '>=', 2, "a finished flow is kept for the retention: $kept s");
cmp_ok($kept, '<', 2 + 5 * $FeishuFlow::SLOW, '... and not for much longer');
is(ends($session), 'failed 1, queued 1', '... and no others are dropped: one that failed is kept');
$node->append_conf('postgresql.conf', "feishu_flow.retention = '7d'\nfeishu_flow.retention_failed = '1s'");
$node->reload;
until_true(
	$session,
	'what failed is dropped after retention_failed',
	"NOT EXISTS (SELECT FROM feishu.flows WHERE id = $failed)");
is(ends($session), 'queued 1', '... and no others are dropped');
$node->append_conf('postgresql.conf', "feishu_flow.retention_failed = '30d'");
$node->reload;

# ---- expires_at ----

$mock->mark;
$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($session, expires_at => \"clock_timestamp() + interval '300 ms'", params => '{"never": true}');
fails_with($session, "SELECT feishu.wait_flow($id)", 'LK504', 'a flow that waited too long fails');
is(look($session, $id, 'state, sqlstate, attempts'), 'failed|LK504|0', '... which is recorded');
like(look($session, $id, 'error'), qr/expired/, '... with the reason');
$session->value("SELECT feishu.resume_server('feishu')");
$second = enqueue($session, params => '{"n": 70}');
$session->value("SELECT feishu.wait_flow($second)");
is_deeply([ numbers($mock) ], [70], '... and it was never sent');

# ---- without preloading ----

$node->stop;
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
$session = FeishuFlow::Session->new($node);
$mock->mark;
$result = $session->ask('SELECT ' . enqueue_call(params => '{"n": 80}'));
is($result->{sqlstate}, '00000', 'without preloading a flow can be queued');
like($result->{err}, qr/WARNING:.*nothing will send them.*HINT:.*shared_preload_libraries/s, '... with a warning');
$result = $session->ask('SELECT ' . enqueue_call(params => '{"n": 81}'));
unlike($result->{err}, qr/WARNING/, '... once a session');
is($mock->executes, 0, '... and it is not sent');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'feishu_flow'");
$node->reload;
is( $session->value('SELECT feishu.dispatch_problem()'),
	'PostgreSQL was started without feishu_flow in shared_preload_libraries',
	'... what is said is true of a server that was not restarted, too');
$node->restart;
$session = FeishuFlow::Session->new($node);
until_ended($session, "params ? 'n'");
is_deeply([ sort(numbers($mock)) ], [ 80, 81 ], '... until it is preloaded');

done_testing();
