
# wait_flow is woken at once by the end of its flow, whoever writes that end, and
# by nothing else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# Who waits looks by itself every 2 s.  So many waits that are ended by that look
# alone take twice as many seconds.
my $LOOK = 2;
my $WAITS = 5;

my $mock = FeishuFlow::Mock->start('--app', 'cli_mock:mock-secret', '--app', 'cli_narrow:narrow-secret');
my $node = queue_cluster('main', conf => "max_prepared_transactions = 2\nautovacuum = off\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server(
	$node, 'narrow',
	{ base_url => $mock->url, max_concurrency => 1 },
	{ app_id => 'cli_narrow', app_secret => 'narrow-secret' });
my $session = FeishuFlow::Session->new($node);
my $waiter = FeishuFlow::Session->new($node);
my $later = "now() + interval '1 hour'";
my $never = '{"never": true}';
until_dispatcher($session);

# Waits until the process sleeps: it does not wake for a while.
sub until_asleep
{
	my ($pid) = @_;
	my ($before, $since) = (-1, time());
	return wait_until(
		'it sleeps',
		sub {
			my $now = wakes($pid);
			($before, $since) = ($now, time()) if $now != $before;
			return time() - $since > 0.05;
		});
}

sub until_waiting
{
	my ($who) = @_;
	my $waits = 'SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $who->pid;
	return wait_until('a session waits', sub { $session->value($waits) eq 'Extension' });
}

# The waiter waits for a flow, and has gone to sleep.
sub wait_for
{
	my ($id) = @_;
	$waiter->send("SELECT feishu.wait_flow($id, '1 h')");
	until_waiting($waiter);
	until_asleep($waiter->pid);
	return;
}

# A flow is queued by the first function and ended by the second, while somebody
# waits for it, who is woken at once.
sub is_woken
{
	my ($name, $sqlstate, $queue, $end, $waits) = @_;
	$waits //= $WAITS;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($seconds, @states) = (0);
	for (1 .. $waits)
	{
		my $id = $queue->();
		wait_for($id);
		$end->($id);
		my $ended = time();
		push @states, $waiter->result->{sqlstate};
		$seconds += time() - $ended;
	}
	is("@states", "@{[ ($sqlstate) x $waits ]}", "$name: wait_flow ends");
	cmp_ok($seconds, '<', $LOOK * $waits / 2, '... at once');
	return;
}

sub queue_paused
{
	my (%arguments) = @_;
	$session->value("SELECT feishu.pause_server('feishu')");
	return enqueue($session, params => '{"n": 1}', %arguments);
}

sub resume { $session->value("SELECT feishu.resume_server('feishu')"); return; }

sub queue_later { return enqueue($session, run_at => \$later, params => $never); }

# ---- ends ----

is_woken('succeeded', '00000', sub { queue_paused() }, \&resume);
is_woken('refused', 'LK400', sub { queue_paused(flow_id => 'refusedFlow') }, \&resume);
is_woken(
	'cancelled by another session',
	'55000',
	\&queue_later,
	sub {
		$session->value("SELECT feishu.cancel_flow($_[0])");
	});
is_woken(
	'cancelled in a subtransaction',
	'55000',
	\&queue_later,
	sub {
		$session->value(
			"BEGIN; SAVEPOINT a; SELECT feishu.cancel_flow($_[0]); RELEASE a; SAVEPOINT b; ROLLBACK TO b; COMMIT");
	});
is_woken(
	'cancelled and purged in one transaction',
	'42704',
	\&queue_later,
	sub {
		$session->value("BEGIN; SELECT feishu.cancel_flow($_[0]); SELECT feishu.purge_flows('infinity'); COMMIT");
	});
is_woken(
	'cancelled by a prepared transaction',
	'55000',
	\&queue_later,
	sub {
		$session->value(
			"BEGIN; SELECT feishu.cancel_flow($_[0]); PREPARE TRANSACTION 'cancel'; COMMIT PREPARED 'cancel'");
	});
is_woken(
	'retried, and refused again',
	'LK400',
	sub {
		my $id = enqueue($session, flow_id => 'refusedFlow');
		until_ended($session, "id = $id");
		$session->value("SELECT feishu.pause_server('feishu')");
		$session->value("SELECT feishu.retry_flow($id)");
		return $id;
	},
	\&resume);
is_woken(
	'cancelled with 1100 others',
	'55000',
	sub { enqueue_many($session, 1, 1100, run_at => \$later, params => $never); queue_later() },
	sub { $session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'") });

# What nobody's call is for: the dispatcher ends it by itself.
$session->value('CREATE SEQUENCE number; CREATE ROLE leaving; GRANT USAGE ON FOREIGN SERVER feishu TO leaving');
is_woken(
	'failed with its role',
	'42704',
	sub {
		my $role = $session->value("SELECT 'gone' || nextval('number')");
		$session->value(
			"CREATE ROLE $role; GRANT leaving TO $role; SELECT feishu.pause_server('feishu'); SET ROLE $role");
		my $id = enqueue($session, params => $never);
		$session->value("RESET ROLE; DROP ROLE $role");
		return $id;
	},
	\&resume);

# The dispatcher is told to end, and waits for an answer a little.
is_woken(
	'recorded by a dispatcher on its way out',
	'00000',
	sub {
		until_dispatcher($session);
		$mock->fault(type => 'hold');
		$mock->mark;
		my $id = enqueue($session, params => '{"n": 2}');
		$mock->wait_for(1, kind => 'execute');
		return $id;
	},
	sub {
		my ($id) = @_;
		my $pid = dispatcher($session);
		$session->value("SELECT pg_terminate_backend($pid)");
		$mock->well;
		until_ended($session, "id = $id");
	},
	2);

# Held lanes are looked at by the slow poll.
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
is_woken(
	'expired in a paused lane',
	'LK504',
	sub { queue_paused(expires_at => \"clock_timestamp() + interval '300 ms'") },
	sub { until_ended($session, "id = $_[0]") });
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '10min'");
$node->reload;
resume();

# ---- who is not woken ----

# How often they have woken, the one that did most often, while $work is done,
# beyond their own looks.
sub wakes_beyond_looks
{
	my ($work, @pids) = @_;
	until_asleep($_) foreach @pids;
	my $started = time();
	my %before = map { $_ => wakes($_) } @pids;
	$work->();
	my $most = (sort { $a <=> $b } map { wakes($_) - $before{$_} } @pids)[-1];
	return $most - (time() - $started) / $LOOK;
}

# Sessions that wait for flows, until they are ended.
my $groups = 0;

sub start_waiters
{
	my ($clients, $sql, $database) = @_;
	local $ENV{PGAPPNAME} = 'waiters' . ++$groups;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/wait.sql';
	append_to_file($file, $sql);
	my $output = '';
	my @command =
	  ('pgbench', '-n', '-f', $file, '-h', $node->host, '-p', $node->port, '-c', $clients, '-t', 1, $database);
	my $run = IPC::Run::start(\@command, '>', \$output, '2>', \$output, IPC::Run::timeout(2 * $FeishuFlow::PATIENCE));
	my $pids;
	wait_until(
		'they wait',
		sub {
			$pids = $session->value("SELECT string_agg(pid::text, ' ') FILTER (WHERE wait_event_type = 'Extension') "
				  . "FROM pg_stat_activity WHERE application_name = 'waiters$groups' HAVING count(*) = $clients");
			return (() = $pids =~ /\d+/g) == $clients;
		});
	return ($run, split / /, $pids);
}

# One end after the other.
sub end_flows
{
	my ($number) = @_;
	for my $n (1 .. $number)
	{
		my $id = enqueue($session, params => "{\"n\": 1$n}");
		$session->value("SELECT feishu.wait_flow($id)");
	}
	return;
}

# In another database flows have the same ids.
$session->value('CREATE DATABASE second');
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'second');
my $second = FeishuFlow::Session->new($node, database => 'second');
my $last = $session->value('SELECT id FROM feishu_internal.last_id');
$second->value("UPDATE feishu_internal.last_id SET id = $last");
enqueue_many($second, 1, 220, run_at => \$later, params => $never);
my $idle = enqueue($session, run_at => \$later, params => $never);
my ($here, @here) = start_waiters(10, "SELECT feishu.wait_flow($idle, '1 h');", 'postgres');
my ($there, @there) = start_waiters(10, "SELECT feishu.wait_flow($last + 10 + :client_id * 20, '1 h');", 'second');

cmp_ok(wakes_beyond_looks(sub { end_flows(200) }, @here, @there),
	'<', 20, 'who waits is not woken by the ends of 200 other flows');
is( $session->value(
			'SELECT count(*) FROM feishu.flows JOIN generate_series(0, 9) AS g '
		  . "ON id = $last + 10 + g * 20 WHERE state = 'succeeded'"),
	'10',
	'... whose ids are waited for in another database');

# Places at a server are passed on: who waits for one is woken by that.
my $called;
my $calls = sub { $called = pgbench_start($node, flow(server => 'narrow') . ';', '-c', '4', '-t', '50')->finish };
cmp_ok(wakes_beyond_looks($calls, @here, @there), '<', 20, '... nor by 200 calls that wait for each other');
ok($called, '... all of which succeed');

$mock->rules([ { kind => 'execute', flow_id => 'heldFlow' }, { type => 'hold' } ]);
$mock->mark;
my ($first, $next) = map { FeishuFlow::Session->new($node) } 1 .. 2;
$first->send(flow(server => 'narrow', flow_id => 'heldFlow'));
$mock->wait_for(1, kind => 'execute');
$next->send(flow(server => 'narrow'));
until_waiting($next);
cmp_ok(wakes_beyond_looks(sub { end_flows(100) }, $next->pid),
	'<', 10, 'who waits for a place is not woken by the ends of 100 flows');
$mock->well;
succeeds($_, $_->result, '... but by the place') foreach $first, $next;

$session->value("SELECT feishu.cancel_flow($idle)");
$second->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");
my $ended = time();
$_->finish foreach $here, $there;
cmp_ok(time() - $ended, '<', $LOOK / 2 * $FeishuFlow::SLOW, 'all are woken by the ends of theirs, in both databases');
$second->quit;

# ---- who waits no longer ----

# A wait is ended in some way; then the flow ends, and a session that does nothing
# is not woken by it.
foreach my $case (
	[
		'a wait was cancelled',
		sub {
			my ($id, $idler) = @_;
			$session->value('SELECT pg_cancel_backend(' . $idler->pid . ')');
			is($idler->result->{sqlstate}, '57014', 'a wait is cancelled');
			return $idler;
		}
	],
	[
		'a wait was too long',
		sub {
			my ($id, $idler) = @_;
			is($idler->result->{sqlstate}, 'LK504', 'a wait is too long');
			return $idler;
		}
	],
	[
		'a waiting session was terminated',
		sub {
			my ($id, $idler) = @_;
			$session->value('SELECT pg_terminate_backend(' . $idler->pid . ', 10000)');
			$idler->result;
			# has the number of that process
			return FeishuFlow::Session->new($node);
		}
	])
{
	my ($name, $end) = @$case;
	my $wakes = 0;
	for my $round (1 .. $WAITS)
	{
		my $id = queue_later();
		my $idler = FeishuFlow::Session->new($node);
		$idler->send("SELECT feishu.wait_flow($id, '" . ($name =~ /too long/ ? '50 ms' : '1 h') . "')");
		until_waiting($idler) if $name !~ /too long/;
		$idler = $end->($id, $idler);
		until_asleep($idler->pid);
		my $before = wakes($idler->pid);
		$session->value("SELECT feishu.cancel_flow($id)");
		end_flows(2);
		$wakes += wakes($idler->pid) - $before;
		$idler->quit;
	}
	cmp_ok($wakes, '<', $WAITS / 2, "$name: no end wakes the session any more");
}

# ---- a row that cannot be read ----

my @servers = map { "damaged$_" } 1 .. $WAITS;
create_server($node, $_, { base_url => $mock->url }) foreach @servers;
$session->value("SELECT feishu.pause_server('$_')")  foreach @servers;
my $large = "(SELECT jsonb_build_object('text', string_agg(md5(random()::text), '')) FROM generate_series(1, 700))";
my @damaged = map { enqueue($session, server => $_, params => \$large) } @servers;
my $file = $session->value(
	'SELECT pg_relation_filepath(reltoastrelid) ' . "FROM pg_class WHERE oid = 'feishu_internal.outbox'::regclass");
$_->quit foreach $session, $waiter;
$node->stop;
my $size = -s $node->data_dir . "/$file";
open my $handle, '+<', $node->data_dir . "/$file" or die "$file: $!";
print $handle "\0" x $size;
close $handle;
$node->start;
$session = FeishuFlow::Session->new($node);
$waiter = FeishuFlow::Session->new($node);
until_dispatcher($session);
is_woken(
	'failed because it cannot be read',
	'XX001',
	sub { shift @damaged },
	sub { $session->value("SELECT feishu.resume_server('" . shift(@servers) . "')") });

done_testing();
