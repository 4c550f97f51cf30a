
# What the TAP tests of the queue share, on top of FeishuFlow: clusters with
# short delays, enqueueing, waiting for flows to end, and counting on the mock's
# side what started.

package FeishuQueue;

use strict;
use warnings;

use Exporter 'import';
use FeishuFlow;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  queue_cluster enqueue enqueue_call enqueue_many enqueue_unheard make_lanes enqueue_lanes
  look until_true until_state until_ended until_ended_watching ends
  dispatcher until_dispatcher summary started_once started_numbers arrivals numbers begin_anew
  pgbench_start kill_postmaster
);

# A cluster whose queue loses no time.  Options as new_cluster.  The slow poll
# is slow on purpose: nothing but COMMIT PREPARED may need it.
sub queue_cluster
{
	my ($name, %options) = @_;
	my $conf = delete $options{conf} // '';
	return new_cluster($name, %options, conf => <<"CONF" . $conf);
feishu_flow.retry_base_delay = '20ms'
feishu_flow.retry_max_delay = '200ms'
feishu_flow.poll_interval = '10min'
CONF
}

# The call of enqueue_flow with these arguments, usual ones for those that must
# be.  A reference to a string is an SQL expression.
sub enqueue_call
{
	my (%arguments) = @_;
	%arguments = (
		namespace => 'app',
		flow_id => 'flow',
		operator => '{"_id": 1111}',
		%arguments);
	return function_call('feishu.enqueue_flow', map { $_ => $arguments{$_} } sort keys %arguments);
}

# Queues one flow; returns its id.
sub enqueue
{
	my ($session, %arguments) = @_;
	return $session->value('SELECT ' . enqueue_call(%arguments));
}

# Puts a copy of a flow into the queue by hand, so that nobody tells of it; returns its id.  Options: server, and an
# id that was drawn by somebody who did not use it.
sub enqueue_unheard
{
	my ($session, $like, %options) = @_;
	my $drawn =
	  defined $options{id}
	  ? "SELECT $options{id}::bigint AS id"
	  : 'UPDATE feishu_internal.last_id SET id = id + 1 RETURNING id';
	my $server = defined $options{server} ? FeishuFlow::quote($options{server}) : 'server';
	return $session->value("WITH drawn AS ($drawn) "
		  . 'INSERT INTO feishu_internal.outbox (id, roleid, server_owner, system_identifier, database, is_async, '
		  . 'own_key, created_at, run_at, expires_at, server, namespace, flow_id, operator, idempotent_key) '
		  . 'SELECT drawn.id, roleid, server_owner, system_identifier, database, is_async, own_key, '
		  . "clock_timestamp(), clock_timestamp(), clock_timestamp() + interval '1 hour', $server, namespace, flow_id, "
		  . "operator, gen_random_uuid() FROM drawn, feishu_internal.outbox o WHERE o.id = $like RETURNING id");
}

# Queues flows whose params are {"n": $from} to {"n": $to}, in one statement.
sub enqueue_many
{
	my ($session, $from, $to, %arguments) = @_;
	return $session->value('SELECT count('
		  . enqueue_call(params => \"jsonb_build_object('n', g)", %arguments)
		  . ") FROM generate_series($from, $to) g");
}

# Makes roles lane1 to lane$n: each has a lane of its own.
sub make_lanes
{
	my ($session, $n) = @_;
	$session->value("DO \$\$ BEGIN FOR i IN 1..$n LOOP EXECUTE 'CREATE ROLE lane' || i; END LOOP; END \$\$");
	return;
}

# Queues one flow for each of so many of these roles, in one transaction.
sub enqueue_lanes
{
	my ($session, $lanes, %arguments) = @_;
	my $call = enqueue_call(params => \"jsonb_build_object('n', i)", %arguments);
	$session->value("DO \$\$ BEGIN FOR i IN 1..$lanes LOOP "
		  . "PERFORM set_config('role', 'lane' || i, true); PERFORM $call; END LOOP; END \$\$");
	return;
}

# Waits until all flows that match have ended; returns the most private memory that a process had meanwhile, in kB.
sub until_ended_watching
{
	my ($session, $pid, $condition) = @_;
	$condition //= 'true';
	my $most = 0;
	wait_until(
		'all flows have ended',
		sub {
			my $now = eval { private_kilobytes($pid) } // 0;
			$most = $now if $most < $now;
			return $session->value(
				"SELECT NOT EXISTS (SELECT FROM feishu.flows WHERE finished_at IS NULL AND $condition)") eq 't';
		});
	return $most;
}

# Columns of a flow, as psql prints them.
sub look
{
	my ($session, $id, $columns) = @_;
	return $session->value("SELECT $columns FROM feishu.flows WHERE id = $id");
}

sub until_true
{
	my ($session, $what, $sql) = @_;
	return wait_until($what, sub { $session->value("SELECT ($sql)") eq 't' });
}

# Waits until a flow is in a state; it must not end in another.
sub until_state
{
	my ($session, $id, $state) = @_;
	return wait_until(
		"flow $id is $state",
		sub {
			my ($now, $ended) = split /\|/, look($session, $id, 'state, finished_at IS NOT NULL');
			return 1 if $now eq $state;
			die "flow $id is $now, not $state: " . look($session, $id, 'sqlstate, error')
			  if $ended eq 't';
			return 0;
		});
}

# Waits until all flows that match have ended.
sub until_ended
{
	my ($session, $condition) = @_;
	$condition //= 'true';
	return wait_until(
		"all flows have ended ($condition)",
		sub {
			$session->value("SELECT NOT EXISTS (SELECT FROM feishu.flows WHERE finished_at IS NULL AND $condition)") eq
			  't';
		});
}

# How many flows are in which state, as "failed 1, succeeded 9".
sub ends
{
	my ($session, $condition) = @_;
	$condition //= 'true';
	return $session->value("SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) "
		  . "FROM (SELECT state, count(*) AS n FROM feishu.flows WHERE $condition GROUP BY state) s");
}

# Process id of the dispatcher of the session's database, or ''.
sub dispatcher
{
	my ($session) = @_;
	return $session->value('SELECT pid FROM pg_stat_activity '
		  . "WHERE backend_type = 'feishu_flow dispatcher' AND datname = current_database()");
}

# Waits for a dispatcher other than $old; returns its process id.
sub until_dispatcher
{
	my ($session, $old) = @_;
	$old //= '';
	return wait_until('there is a dispatcher',
		sub { my $pid = dispatcher($session); $pid ne '' && $pid ne $old && $pid; });
}

# What started on the platform.
sub summary
{
	my ($mock) = @_;
	return $mock->control('GET', 'started?summary=1');
}

# So many flows started there, each once.
sub started_once
{
	my ($mock, $count, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = summary($mock);
	is( sprintf(
			'%d started, %d distinct, %d keys twice',
			$seen->{started},
			$seen->{distinct_params},
			scalar @{ $seen->{keys_started_twice} }),
		"$count started, $count distinct, 0 keys twice",
		$name);
	return;
}

# The params' n of what started there, in this order.
sub started_numbers
{
	my ($mock) = @_;
	return map { $_->{params}{n} } @{ $mock->control('GET', 'started') };
}

# Have the mock forget all, and the token that it has forgotten be replaced.
sub begin_anew
{
	my ($mock, $session, $server) = @_;
	$mock->reset;
	$session->value(flow(flow_id => 'refusedFlow', server => $server, raise_error => \'false'));
	$mock->mark;
	return;
}

# Requests to start flows since the mark that match, in order of arrival.
sub arrivals
{
	my ($mock, %filters) = @_;
	return $mock->log(kind => 'execute', %filters);
}

# Their params' n, in order of arrival.
sub numbers
{
	my ($mock, %filters) = @_;
	return map { $_->{json}{params} =~ /"n":\s*(\d+)/ ? $1 : '?' } arrivals($mock, %filters);
}

# kill -9 of a node's postmaster.  The others notice, and end.
sub kill_postmaster
{
	my ($node) = @_;
	my $postmaster = $node->{_pid};
	my @children = grep { parent($_) == $postmaster } map { m{(\d+)$} } glob('/proc/[0-9]*');
	$node->kill9;
	# for pg_ctl a zombie is one, too
	wait_until(
		'all its processes are gone',
		sub {
			!grep { -d "/proc/$_" } $postmaster, @children;
		});
	return;
}

# The parent of a process, or 0.
sub parent
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return 0;
	my $stat = <$file> // '';
	return $stat =~ /^\d+ \(.*\) \S (\d+)/s ? $1 : 0;
}

# Runs a script in pgbench in the background; ->finish waits for its end.
sub pgbench_start
{
	my ($node, $sql, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/load.sql';
	append_to_file($file, $sql);
	my $output = '';
	local $ENV{PGAPPNAME} = 'pgbench';
	return IPC::Run::start([ 'pgbench', '-n', '-f', $file, '-h', $node->host, '-p', $node->port, @options, 'postgres' ],
		'>', \$output, '2>', \$output, IPC::Run::timeout(2 * $FeishuFlow::PATIENCE));
}

1;
