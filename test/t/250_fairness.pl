
# One slow or dead server, one huge backlog, one role, one row never holds up
# the others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $slow = FeishuFlow::Mock->start;
my $node = queue_cluster('main',
	conf => "feishu_flow.max_in_flight = 32\nfeishu_flow.connect_timeout = '10min'\nfeishu_flow.timeout = '10min'\n");
create_server($node, 'quick', { base_url => $mock->url });
create_server($node, 'slow', { base_url => $slow->url });
my $session = FeishuFlow::Session->new($node);

# What hangs or waits elsewhere would do so for ten minutes.
my $AT_ONCE = 10 * $FeishuFlow::SLOW;

# So many flows of the quick server get through, within seconds.
sub gets_through
{
	my ($name, $n, %arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	begin_anew($mock, $session, 'quick');
	my $begun = time();
	enqueue_many($session, 1, $n, server => 'quick', %arguments);
	until_ended($session, "server = 'quick'");
	cmp_ok(time() - $begun, '<', $AT_ONCE, $name);
	started_once($mock, $n, '... each once');
	return;
}

sub forget
{
	my ($server) = @_;
	$session->value(
		"SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE server = '$server' AND finished_at IS NULL");
	return;
}

# The flows under way to servers that hang, and all others to them, are no more.
sub give_up
{
	my (@servers) = @_;
	$slow->well;
	$session->value("SELECT feishu.pause_server('$_')") foreach @servers;
	my $pid = until_dispatcher($session);
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	until_true($session, 'none is under way', "SELECT coalesce(sum(sending), 0) = 0 FROM feishu.dispatch_status");
	forget($_) foreach @servers;
	until_ended($session);
	$session->value("SELECT feishu.resume_server('slow'); SELECT feishu.purge_flows(now())");
	return;
}

# Seconds of a processor that a process has used.
sub processor_seconds
{
	my ($pid) = @_;
	my @fields = split ' ', slurp_file("/proc/$pid/stat");
	return ($fields[13] + $fields[14]) / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# ---- a server that hangs ----

$slow->fault(type => 'hang');
enqueue_many($session, 1, 500, server => 'slow');
$slow->wait_for(20, kind => 'execute');
gets_through('a server that hangs with a backlog does not hold up another', 500);
is(scalar(arrivals($slow)), 24, '... it has three quarters of the room');

create_server($node, 'silent', { base_url => 'https://127.0.0.1:' . $mock->silent_port });
create_server($node, 'full_queue', { base_url => 'http://127.0.0.1:' . full_port() });
create_server($node, 'closed', { base_url => 'http://127.0.0.1:' . closed_port() });
enqueue_many($session, 1, 100, server => $_) foreach qw(silent full_queue closed);
gets_through('four servers that hang, each in its way, do not, either', 200);
gets_through('... nor for flows that must wait for each other', 50, ordering_key => 'one');

give_up(qw(slow silent full_queue closed));

# Two at a time, one of each role: they go to the same host.
$node->append_conf('postgresql.conf', 'feishu_flow.max_in_flight = 2');
$node->reload;
$session->value('CREATE ROLE first LOGIN');
my $first = FeishuFlow::Session->new($node, user => 'first');
$mock->rules([ { kind => 'execute', flow_id => 'stuck' }, { type => 'hold' } ]);
$mock->mark;
my $stuck = enqueue($first, server => 'quick', flow_id => 'stuck');
$mock->wait_for(1, kind => 'execute', flow_id => 'stuck');
my $next = enqueue($session, server => 'quick');
succeeds(
	$session,
	"SELECT feishu.wait_flow($next, '$AT_ONCE s')",
	'with a max_in_flight of 2, a flow that hangs does not hold up those of another role');
$mock->well;
succeeds($first, "SELECT feishu.wait_flow($stuck)", '... and ends when it is answered');
$node->append_conf('postgresql.conf', 'feishu_flow.max_in_flight = 32');
$node->reload;

# ---- large params ----

$slow->fault(type => 'hang');
my $megabyte = \q{jsonb_build_object('n', g, 'text', repeat(md5(g::text), 32768))};
is(enqueue_many($session, 1, 60, server => 'slow', params => $megabyte), 60, 'a server that hangs has 60 MB of params');
$slow->wait_for(20, kind => 'execute');
gets_through('... which does not hold up large ones of another', 10, params => $megabyte);

# Numbers that are short as stored, and very long when written out: at most that row fails, if it is queued at all.
my $endless =
	q{(SELECT jsonb_build_object('a', jsonb_agg((floor(random() * 1e9)::text || 'e131000')::numeric)) }
  . q{FROM generate_series(1, %d))};
fails_with($session,
	'SELECT ' . enqueue_call(server => 'quick', flow_id => 'endless', params => \sprintf($endless, 20000)),
	'22023', 'params that cannot be written are not queued');
$session->value("SET feishu_flow.max_request_size = '512MB'");
my $id = enqueue($session, server => 'quick', flow_id => 'endless', params => \sprintf($endless, 1000));
$session->value('RESET feishu_flow.max_request_size');
my $pid = until_dispatcher($session);
until_state($session, $id, 'failed');
like(look($session, $id, 'sqlstate'), qr/^22023$/, '... and fail by themselves where they are');
gets_through('... and do not hold up others', 100);
is(until_dispatcher($session), $pid, '... nor end the dispatcher');
give_up('slow');

# ---- a backlog ----

begin_anew($slow, $session, 'slow');
$slow->rules([ { kind => 'execute' }, { type => 'latency', ms => 50 } ]);
enqueue_many($session, 1, 20000, server => 'slow');
gets_through('a backlog of 20000 does not hold up another server', 500);
cmp_ok($session->value("SELECT count(*) FROM feishu.flows WHERE server = 'slow' AND finished_at IS NULL"),
	'>', 5000, '... it is still there');

$session->value('CREATE ROLE other LOGIN');
my $other = FeishuFlow::Session->new($node, user => 'other');
my $begun = time();
$id = enqueue($other, server => 'slow', params => '{"n": 100000}');
succeeds($other, "SELECT feishu.wait_flow($id)", 'a backlog of one role does not hold up another role');
cmp_ok(time() - $begun, '<', $AT_ONCE, '... at once');
cmp_ok($session->value("SELECT count(*) FROM feishu.flows WHERE server = 'slow' AND finished_at IS NULL"),
	'>', 5000, '... the backlog is still there');
$session->value("SELECT feishu.pause_server('slow')");
gets_through('a paused server with a backlog does not hold up another', 200);
$session->value("SELECT feishu.resume_server('slow')");
forget('slow');
until_ended($session);

# Behind many of another server in one transaction; nothing but the commit tells
# of them.
$id = enqueue($session, server => 'slow', params => '{"n": 200000}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a server that was idle for a while');
$session->value('BEGIN');
enqueue_many($session, 1000, 1999, server => 'quick');
$id = enqueue($session, server => 'slow', params => '{"n": 200001}');
my $soon =
  enqueue($session, server => 'slow', params => '{"n": 200002}', run_at => \"clock_timestamp() + interval '2 s'");
$session->value('COMMIT');
succeeds($session, "SELECT feishu.wait_flow($id, '$AT_ONCE s')", '... is not forgotten behind many of another');
succeeds($session, "SELECT feishu.wait_flow($soon, '$AT_ONCE s')", '... nor what is due a little later');
until_ended($session);

# The same of servers and roles that are new: before, between and behind known ones, several in one place.
my %lane;
create_server($node, $_, { base_url => $mock->url }) foreach qw(a_first a_second r_between z_last);
$session->value("CREATE ROLE $_") foreach qw(role_1 role_2 role_3);
$session->value('BEGIN');
enqueue_many($session, 2000, 2999, server => 'quick');
foreach my $server (qw(a_first a_second r_between slow z_last quick))
{
	foreach my $role (qw(role_1 role_2 role_3))
	{
		$session->value("SET LOCAL ROLE $role");
		$lane{"$server, $role"} = enqueue($session, server => $server, params => '{"n": 200003}');
		$session->value('RESET ROLE');
	}
}
$session->value('COMMIT');
my @forgotten =
  grep { $session->ask("SELECT feishu.wait_flow($lane{$_}, '$AT_ONCE s')")->{sqlstate} ne '00000' } sort keys %lane;
is("@forgotten", '', '... and new servers and roles are found behind many of another');
until_ended($session);

# ---- flows that may not go yet ----

$session->value("SELECT feishu.purge_flows(now() + interval '1 day')");
enqueue_many($session, 1, 20000, server => 'quick', run_at => \"now() + interval '1 hour'", flow_id => 'later');
begin_anew($mock, $session, 'quick');
$begun = time();
enqueue_many($session, 1, 200, server => 'quick');
until_ended($session, "flow_id = 'flow'");
cmp_ok(time() - $begun, '<', $AT_ONCE, '20000 flows that are due later hold up no others');
started_once($mock, 200, '... each once');
$session->value("SELECT feishu.cancel_flow(min(id)) FROM feishu.flows WHERE flow_id = 'later'");

enqueue(
	$session,
	server => 'quick',
	ordering_key => 'blocked',
	run_at => \"now() + interval '1 hour'",
	flow_id => 'later');
enqueue_many($session, 1, 20000, server => 'quick', ordering_key => 'blocked', flow_id => 'later');
begin_anew($mock, $session, 'quick');

foreach my $round (1 .. 5)
{
	$begun = time();
	enqueue_many($session, 100 * $round, 100 * $round + 99, server => 'quick');
	until_ended($session, "flow_id = 'flow'");
	cmp_ok(time() - $begun, '<', $AT_ONCE, "20000 flows that wait for another hold up no others, round $round");
}
started_once($mock, 500, '... each once');

# All due at the same time, as the flows of one transaction are; the first does
# not end.
begin_anew($mock, $session, 'quick');
$mock->rules([ { kind => 'execute', flow_id => 'head' }, { type => 'hold' } ],
	[ { kind => 'execute', flow_id => 'second' }, { type => 'latency', ms => 2000 } ]);
my @together = (server => 'quick', run_at => \"now() + interval '3 s'");
$session->value('BEGIN');
enqueue($session, @together, ordering_key => 'together', flow_id => 'head');
enqueue_many($session, 1, 1000, @together, ordering_key => 'together', flow_id => 'behind');
$id = enqueue($session, @together, flow_id => 'free');
$session->value('COMMIT');
$mock->wait_for(1, kind => 'execute', flow_id => 'head');
succeeds(
	$session,
	"SELECT feishu.wait_flow($id, '$AT_ONCE s')",
	'1000 flows of one time that wait for another hold up no others of that time');
$pid = until_dispatcher($session);
my $used = processor_seconds($pid);
$id = enqueue($session, server => 'quick', flow_id => 'second');
succeeds($session, "SELECT feishu.wait_flow($id)", '... nor later ones');
cmp_ok(processor_seconds($pid) - $used, '<', 1, '... and keep no processor busy');
$mock->well;
until_ended($session, "flow_id = 'behind'");
is( join(' ', numbers($mock, flow_id => 'behind')),
	join(' ', 1 .. 1000),
	'... until it is their turn, one after the other');

# ---- a rate ----

$mock->config(apps => { cli_rate => 'rate-secret' });
create_server(
	$node, 'rated',
	{ base_url => $mock->url, max_rate => '1/min' },
	{ app_id => 'cli_rate', app_secret => 'rate-secret' });
enqueue_many($session, 1, 200, server => 'rated');
begin_anew($mock, $session, 'quick');
$begun = time();
enqueue_many($session, 1000, 1199, server => 'quick');
until_ended($session, "flow_id = 'flow' AND server = 'quick'");
cmp_ok(time() - $begun, '<', $AT_ONCE, 'a server with a low max_rate holds up no other');
cmp_ok($mock->count(kind => 'execute', app_id => 'cli_rate'), '<=', 1, '... its rate is kept');

# It waits for its turn, and is paused: others need not wait for that.
$mock->config(apps => { cli_turn => 'turn-secret' });
create_server(
	$node, 'turn',
	{ base_url => $mock->url, max_rate => '0.5' },
	{ app_id => 'cli_turn', app_secret => 'turn-secret' });
enqueue_many($session, 1, 3, server => 'turn');
$mock->wait_for(1, kind => 'execute', app_id => 'cli_turn');
until_true($session, 'the next one waits', "SELECT sending = 0 FROM feishu.dispatch_status WHERE server = 'turn'");
$session->value("SELECT feishu.pause_server('turn')");
$id = enqueue($session, server => 'quick');
$session->value("SELECT feishu.wait_flow($id)");
succeeds(
	$session,
	flow(server => 'turn', timeout => '3s'),
	'a paused server keeps no turn that a call would have to wait for');

# ---- databases, and a long history ----

$node->safe_psql('postgres', 'CREATE DATABASE second');
create_server($node, 'quick', { base_url => $mock->url }, undef, 'second');
my $second = FeishuFlow::Session->new($node, database => 'second');
$begun = time();
enqueue_many($second, 1, 100, server => 'quick');
until_ended($second);
cmp_ok(time() - $begun, '<', $AT_ONCE, 'the queue of one database does not hold up that of another');

# What a dispatcher has read it tells when it ends.  One that ended within its
# first second is not replaced at once.
sub end_dispatcher
{
	my $worker = until_dispatcher($second);
	until_true(
		$second,
		'it has lived for a while',
		"SELECT clock_timestamp() - backend_start > '1.2 s' FROM pg_stat_activity WHERE pid = $worker");
	$second->value("SELECT pg_terminate_backend($worker)");
	until_dispatcher($second, $worker);
	return;
}

# Entries of the index on ids that dispatchers have read.
sub entries_read
{
	end_dispatcher();
	return $second->value("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'");
}

# An old snapshot keeps the rows of flows that were sent, and their entries in
# the indexes.  They are read when a dispatcher looks for what there is, and not
# by each claim.
sub entries_of_indexes
{
	end_dispatcher();
	return $second->value("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'outbox'");
}

my $keeper = FeishuFlow::Session->new($node, database => 'second');
$keeper->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
enqueue_many($second, 1, 6000, server => 'quick');
until_ended($second);
my $entries = entries_of_indexes();
for my $round (1 .. 40)
{
	my $waited = enqueue($second, server => 'quick');
	$second->value("SELECT feishu.wait_flow($waited)");
}
enqueue_many($second, 1, 3000, server => 'quick');
until_ended($second);
$entries = entries_of_indexes() - $entries;
note("$entries entries of indexes read for 3040 flows, with those of 6000 kept by an old snapshot");
cmp_ok($entries, '<', 100_000, 'what an old snapshot keeps is not read by each claim');

# Hundreds of flows behind one of their ordering key, and before that one what
# the snapshot keeps of it.
$entries = entries_of_indexes();
my %later = (server => 'quick', ordering_key => 'crowd', run_at => \"now() + '1 hour'");
enqueue_many($second, 1, 300, %later);
$second->value(q{SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE ordering_key = 'crowd'});
my $leader = enqueue($second, %later);
enqueue_many($second, 1, 600, server => 'quick', ordering_key => 'crowd');
my $beside = enqueue($second, server => 'quick');
$second->value("SELECT feishu.wait_flow($beside)");
is($second->value(q{SELECT count(*) FROM feishu.flows WHERE ordering_key = 'crowd' AND state = 'queued'}),
	'601', 'flows wait for the first of their ordering key');
$entries = entries_of_indexes() - $entries;
note("$entries entries of indexes read with 600 flows behind one of their key, and 300 kept before it");
cmp_ok($entries, '<', 60_000, 'which flow of an ordering key is first is not asked for each of them');
$second->value("SELECT feishu.cancel_flow($leader)");
until_ended($second);
is($second->value(q{SELECT count(*) FROM feishu.flows WHERE ordering_key = 'crowd' AND state = 'succeeded'}),
	'600', '... and all are sent when that one is gone');
$keeper->value('COMMIT');
$keeper->quit;

# The same with flows that were to be sent later, on a server that takes one call
# at a time.
sub lookups_by_id
{
	end_dispatcher();
	return $second->value("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'");
}
$second->value('CREATE SERVER narrow FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '
	  . quote($mock->url)
	  . ", max_concurrency '1');"
	  . "CREATE USER MAPPING FOR PUBLIC SERVER narrow OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
$second->value("SELECT feishu.pause_server('narrow')");
%later = (server => 'narrow', ordering_key => 'crowd');
$leader = enqueue($second, %later, run_at => \"now() + '1 hour'");
enqueue_many($second, 1, 1500, %later, run_at => \"clock_timestamp() + '1 ms'");
$beside = enqueue($second, server => 'narrow', run_at => \"clock_timestamp() + '1 ms'");
my $looks = lookups_by_id();
$second->value("SELECT feishu.resume_server('narrow')");
$second->value("SELECT feishu.wait_flow($beside)");
$looks = lookups_by_id() - $looks;
note("$looks lookups by id until a flow is sent behind 1500 that wait for one of their key");
cmp_ok($looks, '<', 300, 'flows that may not be sent yet are not passed over one by one');
$second->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE server = 'narrow' AND state = 'queued'");

my $old = enqueue($second, server => 'quick', flow_id => 'refusedFlow');
until_ended($second);
my $above = $second->value('UPDATE feishu_internal.last_id SET id = id + 50000 RETURNING id - 50000');
$second->value(
		'INSERT INTO feishu_internal.outbox (id, roleid, server_owner, system_identifier, database, state, is_async, '
	  . 'own_key, created_at, run_at, expires_at, finished_at, '
	  . "server, namespace, flow_id, operator, idempotent_key) "
	  . "SELECT $above + g, roleid, server_owner, system_identifier, database, 's', is_async, own_key, "
	  . q{created_at, run_at, expires_at, now(), server, namespace, flow_id, operator, 'key' || g }
	  . q{FROM feishu_internal.outbox, generate_series(1, 50000) g }
	  . "WHERE id = $old");
my $read = entries_read();
is($second->value("SELECT feishu.retry_flow($old)"), 't', 'an old flow is put back, with 50000 after it');
until_ended($second);
is(look($second, $old, 'state, attempts'), 'failed|1', '... and tried');
$second->value("SELECT feishu.cancel_flow($old)") foreach 1 .. 20;
$second->value("BEGIN; SELECT feishu.retry_flow($old); ROLLBACK");
my $new = enqueue($second, server => 'quick');
succeeds($second, "SELECT feishu.wait_flow($new)", 'a new one is sent');
cmp_ok(entries_read() - $read, '<', 10000, '... and the dispatcher has not read what lies between');

# Rows that the dispatcher has read by any index or by none.
sub rows_read
{
	entries_read();
	return $second->value(
			"SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'outbox') "
		  . "FROM pg_stat_user_tables WHERE relname = 'outbox'");
}

# Waits until the slow poll has come, which finds a flow that nobody tells of; maybe after something else was done.
sub until_polled
{
	my ($otherwise) = @_;
	my $unheard = enqueue_unheard($second, $old);
	$otherwise->() if defined $otherwise;
	until_ended($second, "id = $unheard");
	return;
}

create_server($node, 'paused', { base_url => $mock->url }, undef, 'second');
$second->value("SELECT feishu.pause_server('paused')");
my $expiring = enqueue($second, server => 'paused', expires_at => \"clock_timestamp() + interval '1 s'");
my $expiring_later = enqueue(
	$second,
	server => 'paused',
	run_at => \"clock_timestamp() + interval '1 s'",
	expires_at => \"clock_timestamp() + interval '2 s'");
enqueue($second, server => 'paused');
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
until_ended($second, "id IN ($expiring, $expiring_later)");
is( look($second, $_, 'state, sqlstate, error'),
	'failed|LK504|expired before it could be sent',
	'flows of a paused server expire') foreach $expiring, $expiring_later;
$read = rows_read();
until_polled() foreach 1 .. 5;
cmp_ok(rows_read() - $read, '<', 20000, '... and to see if they have, finished flows are not read');

enqueue($second, server => 'quick', ordering_key => 'blocked', run_at => \"now() + interval '1 hour'");
enqueue_many($second, 1, 5000, server => 'quick', ordering_key => 'blocked');
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '10min'");
$node->reload;
# the next dispatcher polls at once, and then not for ten minutes
until_polled(sub { $second->value('SELECT pg_terminate_backend(' . until_dispatcher($second) . ')') });
$second->value(
	"UPDATE feishu_internal.outbox SET finished_at = now() - interval '30 days' WHERE finished_at IS NOT NULL");
$pid = until_dispatcher($second);
$second->value("SELECT pg_stat_reset_single_table_counters('feishu_internal.outbox_ready_idx'::regclass); "
	  . "SELECT pg_terminate_backend($pid)");
until_true(
	$second,
	'they are deleted',
	"SELECT NOT EXISTS (SELECT FROM feishu.flows WHERE finished_at < now() - interval '8 days')");
entries_read();
cmp_ok($second->value("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_ready_idx'"),
	'<', 30000, 'while old flows are deleted, the queue is not read again and again');

done_testing();
