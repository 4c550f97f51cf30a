
# Every attempt that went wrong can be seen for as long as its flow; and a flow that failed because of what it carries
# is repaired and sent again, without what it carried being forgotten.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "restart_after_crash = on\nfeishu_flow.poll_interval = '100ms'\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'closed', { base_url => 'http://127.0.0.1:' . closed_port() });
my $session = FeishuFlow::Session->new($node);
until_dispatcher($session);

# Columns of a flow's attempts, in their order, as psql prints them.
sub attempts
{
	my ($id, $columns) = @_;
	return $session->value("SELECT $columns FROM (SELECT * FROM feishu.attempts WHERE flow = $id ORDER BY attempt) a");
}

# Queues a flow and waits for its end; returns its id.
sub run_flow
{
	my (%arguments) = @_;
	my $id = enqueue($session, %arguments);
	until_ended($session, "id = $id");
	return $id;
}

# Puts a flow back and waits for its end; returns what retry_flow did.
sub retry
{
	my ($id, @arguments) = @_;
	my $done = $session->value('SELECT feishu.retry_flow(' . join(', ', $id, @arguments) . ')');
	until_ended($session, "id = $id");
	return $done;
}

sub rows { return $session->value('SELECT count(*) FROM feishu_internal.attempt'); }

# ---- what there is to see ----

my $well = run_flow();
is( attempts($well, 'count(*)') . '|'
	  . $session->value("SELECT failures IS NULL FROM feishu_internal.outbox WHERE id = $well"),
	'0|t',
	'an attempt that succeeds has no row');

$mock->rules(
	[ { kind => 'execute' }, { type => 'status', status => 503 }, times => 1 ],
	[ { kind => 'execute' }, { type => 'code', code => 1500, http_status => 200 }, times => 1 ]);
my $id = run_flow();
is(look($session, $id, 'state, attempts'), 'succeeded|3', 'two attempts go wrong, the third does not');
is( attempts($id, 'attempt, sqlstate, http_status, code, repaired_at, params, operator'),
	"1|LK500|503||||\n2|LK500|200|1500|||",
	'... the two have a row each, with what they were answered');
is( $session->value(
			'SELECT bool_and(a.started_at BETWEEN f.created_at AND f.finished_at AND a.duration > interval \'0\''
		  . ' AND a.started_at + a.duration <= f.finished_at) '
		  . 'FROM feishu.attempts a JOIN feishu.flows f ON f.id = a.flow WHERE f.id = '
		  . $id),
	't',
	'... and when they were');
is( $session->value(
			"SELECT bool_and(log_id IS NOT NULL AND error <> '') FROM feishu.attempts "
		  . "WHERE flow = $id AND http_status = 200"),
	't',
	'... and why, and where the platform has it');
is($session->value("SELECT failures FROM feishu_internal.outbox WHERE id = $id"), '2', '... and are counted');

foreach my $case (
	[ 'a refusal', 'failed', { flow_id => 'refusedFlow' } ],
	[ 'a key that was used', 'failed', { idempotent_key => 'mine' }, { type => 'inner', code => 'k_wf_ec_2001008' } ],
	[ 'a key of our own that was used', 'unconfirmed', {}, { type => 'inner', code => 'k_wf_ec_2001008' } ],
	[ 'no answer to the last', 'failed', { max_attempts => 1 }, { type => 'reset_before' } ],
	[ 'nobody there', 'failed', { max_attempts => 1, server => 'closed' } ])
{
	my ($name, $state, $arguments, $fault) = @$case;
	$mock->fault(%$fault) if $fault;
	$id = run_flow(%$arguments);
	$mock->well;
	is(look($session, $id, 'state, attempts'), "$state|1", $name);
	is( attempts($id, 'sqlstate, code, flow_code, log_id, error, hint'),
		look($session, $id, 'sqlstate, code, flow_code, log_id, error, hint'),
		'... its row says what the flow says');
	is(attempts($id, 'http_status IS NULL'), $name =~ /last|nobody/ ? 't' : 'f', '... and whether there was an answer');
}
$session->value("SELECT feishu.resume_server('closed')");

# ---- what was no attempt ----

my $before = rows();
$session->value("SELECT feishu.pause_server('feishu')");
$id = run_flow(expires_at => \"clock_timestamp() + interval '200 ms'");
is(look($session, $id, 'state, attempts') . '|' . attempts($id, 'count(*)'),
	'failed|0|0', 'to expire without an attempt is none');
$id = enqueue($session);
$session->value("SELECT feishu.cancel_flow($id)");
is(attempts($id, 'count(*)'), '0', 'nor is a cancel');
$session->value("SELECT feishu.resume_server('feishu')");
$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99991400 }, times => 1 ]);
$id = run_flow();
is(look($session, $id, 'state, attempts') . '|' . attempts($id, 'count(*)'), 'succeeded|1|0', 'nor is a rate limit');
$mock->well;
is(rows(), $before, '... for which nothing is written');

# ---- a dispatcher that dies ----

$mock->fault(type => 'hang');
$mock->mark;
$id = enqueue($session, flow_id => 'lost');
my $pid = dispatcher($session);
$mock->wait_for(1, kind => 'execute');
until_state($session, $id, 'sending');
kill 'KILL', $pid;
wait_until('it is gone', sub { !alive($pid) });
$mock->well;
wait_until(
	'the server is there again',
	sub {
		$session = eval { FeishuFlow::Session->new($node) };
		defined $session && eval { until_dispatcher($session, $pid); 1 }
	});
until_ended($session, "id = $id");
is(look($session, $id, 'state, attempts'), 'succeeded|2', 'an attempt whose dispatcher died is followed by another');
is( attempts($id, 'attempt, sqlstate, http_status, started_at, duration, error'),
	'1|LK504||||the dispatcher ended before an answer came',
	'... and has its row');

# ---- not too many ----

my $many = run_flow(flow_id => 'refusedFlow');
retry($many) foreach 1 .. 3;
is(attempts($many, 'attempt'), "1\n2\n3\n4", 'attempts are counted on when a flow is tried again');
is(look($session, $many, 'attempts'), '1', '... which the flow has its attempts counted anew for');
$session->value("UPDATE feishu_internal.outbox SET failures = 99 WHERE id = $many");
$session->value("INSERT INTO feishu_internal.attempt (flow, attempt) SELECT $many, n FROM generate_series(5, 99) n");
retry($many) foreach 1 .. 3;
is($session->value("SELECT count(*), min(attempt), max(attempt) FROM feishu.attempts WHERE flow = $many"),
	'100|3|102', 'the last 100 are kept');

# ---- whose they are ----

$session->value(
		'CREATE ROLE owner LOGIN; CREATE ROLE stranger LOGIN; CREATE ROLE leader LOGIN; GRANT owner TO leader; '
	  . 'GRANT CREATE ON SCHEMA public TO stranger');
my %as = map { $_ => FeishuFlow::Session->new($node, user => $_) } qw(owner stranger leader);
my $theirs = enqueue($as{owner}, flow_id => 'refusedFlow', params => '{"secret": 1}');
until_ended($session, "id = $theirs");
is($as{$_}->value('SELECT DISTINCT flow FROM feishu.attempts'), $theirs, "$_ sees attempts of flows of his roles")
  foreach qw(owner leader);
is($as{stranger}->value('SELECT count(*) FROM feishu.attempts'), '0', 'others do not');
$as{stranger}->value('CREATE FUNCTION spy(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS '
	  . q{$$BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END$$});
unlike($as{stranger}->ask('SELECT count(*) FROM feishu.attempts WHERE spy(error)')->{err},
	qr/seen/, '... not even through a function in the condition');
fails_with($as{stranger}, 'SELECT FROM feishu_internal.attempt', '42501', '... nor in the table');
fails_with($as{stranger}, "SELECT feishu.retry_flow($theirs, params => '{}')",
	'42704', '... and nobody else repairs a flow');

# ---- repair ----

sub carried { return $session->value("SELECT params::text, operator::text FROM feishu.flows WHERE id = $_[0]"); }
sub kept    { return attempts($_[0], 'attempt, params, operator, repaired_at IS NOT NULL'); }

my $broken = run_flow(flow_id => 'refusedFlow', params => '{"order": "x"}', operator => '{"_id": 1}');
$mock->mark;
is(retry($broken, q{params => '{"order": 1}'}), 't', 'a flow is sent again with other params');
is(carried($broken), '{"order": 1}|{"_id": 1}', '... which it has from now on');
my ($request) = $mock->log(kind => 'execute');
is($request->{json}{params}, '{"order": 1}', '... and which are sent');
is(kept($broken), qq{1|{"order": "x"}|{"_id": 1}|t\n2|||f}, '... what it had is kept with the attempt that had it');
is(retry($broken, q{true, operator => '{"_id": 2}'}), 't', 'and with another operator');
is(carried($broken), '{"order": 1}|{"_id": 2}', '... which it has');
is( kept($broken),
	qq{1|{"order": "x"}|{"_id": 1}|t\n2|{"order": 1}|{"_id": 1}|t\n3|||f},
	'... and what it had is kept as well');
is(retry($broken), 't', 'without either');
is(kept($broken) =~ s/.*\n3/3/sr, "3|||f\n4|||f", '... it carries what it did, and nothing is to be kept');

my $own = enqueue($as{owner}, flow_id => 'refusedFlow', params => '{"a": 1}');
until_ended($session, "id = $own");
is( $as{leader}
	  ->value("SELECT feishu.retry_flow($own, params => '{\"a\": 2}', operator => '{\"email\": \"a\@example.com\"}')"),
	't', 'a member of its role repairs it');
until_ended($session, "id = $own");
is(carried($own), '{"a": 2}|{"email": "a@example.com"}', '... both at once');
is($as{owner}->value("SELECT params FROM feishu.attempts WHERE flow = $own AND repaired_at IS NOT NULL"),
	'{"a": 1}', '... and its role sees what it was');

# It never was tried, or not with what it had last.
$session->value("SELECT feishu.pause_server('feishu')");
my $never = enqueue($session, params => '{"v": 1}', operator => '{"_id": 1}');
$session->value("SELECT feishu.cancel_flow($never)");
$session->value("SELECT feishu.retry_flow($never, params => '{\"v\": 2}'); SELECT feishu.cancel_flow($never); "
	  . "SELECT feishu.retry_flow($never, params => '{\"v\": 3}')");
is(carried($never), '{"v": 3}|{"_id": 1}', 'a flow that ended without an attempt is repaired');
is(kept($never), qq{1|{"v": 1}|{"_id": 1}|t\n2|{"v": 2}|{"_id": 1}|t}, '... what it had is kept, too');
is($session->value("SELECT count(started_at) FROM feishu.attempts WHERE flow = $never"),
	'0', '... in rows of no attempt');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "id = $never");
is(look($session, $never, 'state'), 'succeeded', '... and it is sent');

$before = rows();
foreach my $case (
	[ 'params that are no object', q{params => '[1]'}, qr/argument "params"/ ],
	[ 'an operator without a member that says who', q{operator => '{"name": "x"}'}, qr/argument "operator"/ ],
	[ 'params that are too large', q{params => jsonb_build_object('a', repeat('x', 20000000))}, qr/argument "params"/ ])
{
	my ($name, $arguments, $message) = @$case;
	fails_with(
		$session, "SELECT feishu.retry_flow($broken, $arguments)",
		'22023',
		"$name are refused",
		message => $message);
	is(look($session, $broken, 'state'), 'failed', '... and the flow stays as it is');
}
is($session->value("SELECT feishu.retry_flow($well, params => '{}')"), 'f', 'a flow that succeeded is not repaired');
is($session->value("SELECT feishu.retry_flow($broken, params => 'null', operator => 'null')"),
	't', 'JSON null is as good as NULL');
until_ended($session, "id = $broken");
is(carried($broken), '{"order": 1}|{"_id": 2}', '... it carries what it did');
$session->value("BEGIN; SELECT feishu.retry_flow($broken, params => '{\"gone\": 1}'); ROLLBACK");
is(rows(), $before + 1, 'nothing is kept where nothing was changed');

# ---- they go with their flow ----

sub gone
{
	my ($flow) = @_;
	return $session->value("SELECT NOT EXISTS (SELECT FROM feishu_internal.attempt WHERE flow = $flow)");
}

$session->value("DELETE FROM feishu_internal.outbox WHERE id = $many");
is(gone($many), 't', 'attempts go when their flow is deleted by hand');
is($as{owner}->value("SELECT feishu.purge_flows('infinity')"), '2', 'a role purges its flows');
is(gone($theirs), 't', '... and their attempts');
cmp_ok(rows(), '>', 0, '... but no others');
$node->append_conf('postgresql.conf', "feishu_flow.retention = '1s'\nfeishu_flow.retention_failed = '1s'");
$node->reload;
until_true($session, 'the flows are dropped after the retention', 'NOT EXISTS (SELECT FROM feishu.flows)');
is(rows(), 0, '... and all attempts with them');
$node->append_conf('postgresql.conf', "feishu_flow.retention = '7d'\nfeishu_flow.retention_failed = '30d'");
$node->reload;
run_flow(flow_id => 'refusedFlow');
$session->value('TRUNCATE feishu_internal.outbox');
is(rows(), 0, '... and when all are thrown away');
is($session->value('SELECT feishu.dispatch_problem()'), '', 'our own triggers are no problem');

# ---- a queue in which nothing fails ----

# What a process did is counted when it ends.
sub count_all
{
	my $pid = dispatcher($session);
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	$session->value('SELECT pg_stat_force_next_flush()');
	return;
}

count_all();
$session->value('SELECT pg_stat_reset()');
enqueue_many($session, 1, 200);
until_ended($session);
$session->value("SELECT feishu.purge_flows('infinity')");
count_all();
my $USE =
	"SELECT seq_scan + idx_scan + n_tup_ins + n_tup_del FROM pg_stat_all_tables "
  . "WHERE relid = 'feishu_internal.attempt'::regclass";
is($session->value('SELECT n_tup_del FROM pg_stat_all_tables WHERE relid = \'feishu_internal.outbox\'::regclass'),
	'200', 'flows are counted');
is($session->value($USE), '0', '... a queue in which nothing fails does not touch the table, purges included');

# That the table of the queue has triggers of ours costs a flow that is queued nothing.
$session->value(
		"LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; "
	  . "SET client_min_messages = log");
my $INSERT = qr/INSERT INTO feishu_internal\.outbox/;
like($session->ask('SELECT ' . enqueue_call(idempotent_key => 'by SQL'))->{err},
	$INSERT, 'a flow with a key is queued by a statement');
unlike($session->ask('SELECT ' . enqueue_call())->{err}, $INSERT, '... a usual one is not');
done_testing();
