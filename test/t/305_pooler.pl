
# PgBouncer between the clients and the server: calls and the queue work when a
# session is lent for a transaction, or for a statement.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my ($pgbouncer) = grep { -x $_ } '/usr/sbin/pgbouncer', '/usr/local/sbin/pgbouncer', '/usr/bin/pgbouncer',
  '/usr/local/bin/pgbouncer';
plan skip_all => 'no pgbouncer, see script/bootstrap' if !defined $pgbouncer;

# On the other side of each of these waits are ten minutes.
my $AT_ONCE = 1 * $FeishuFlow::SLOW;

# Time for a call to arrive at the platform, and then to end.
my $SOON = 1000 * $FeishuFlow::SLOW . 'ms';

my $mock = FeishuFlow::Mock->start;
$mock->config(apps => { map { ("cli_$_" => "$_-secret") } qw(mock alice bob other) });

my $conf = "feishu_flow.timeout = '10min'\n";
my $node = queue_cluster('main', conf => $conf);
my $alone = new_cluster('alone', preload => 0, conf => $conf);
foreach my $cluster ($node, $alone)
{
	create_server($cluster, 'feishu', { base_url => $mock->url });
	create_server(
		$cluster, 'other',
		{ base_url => $mock->url },
		{ app_id => 'cli_other', app_secret => 'other-secret' });
	create_server($cluster, 'away', { base_url => 'http://127.0.0.1:' . closed_port() });
	$cluster->safe_psql('postgres', <<'SQL');
ALTER DATABASE postgres SET feishu_flow.server = 'feishu';
CREATE SERVER apps FOREIGN DATA WRAPPER feishu_flow;
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE nobody LOGIN;
CREATE USER MAPPING FOR alice SERVER apps OPTIONS (app_id 'cli_alice', app_secret 'alice-secret');
CREATE USER MAPPING FOR bob SERVER apps OPTIONS (app_id 'cli_bob', app_secret 'bob-secret');
GRANT USAGE ON FOREIGN SERVER apps TO alice, bob, nobody;
CREATE TABLE orders (id int);
CREATE TRIGGER queue_flow AFTER INSERT ON orders FOR EACH ROW
    EXECUTE FUNCTION feishu.flow_trigger('app', 'fromTrigger', '{"_id": 1}', '{"n": "$.new.id"}');
SQL
	$cluster->safe_psql('postgres', 'ALTER SERVER apps OPTIONS (ADD base_url ' . quote($mock->url) . ')');
}
$node->safe_psql('postgres',
		"ALTER ROLE alice SET statement_timeout = '$SOON'; ALTER ROLE bob SET feishu_flow.server = 'apps'; "
	  . "ALTER ROLE bob SET client_connection_check_interval = '100ms'");

# ---- pgbouncer, which has one server connection for each mode and role ----

package Pooler;

sub connstr { return "host=$_[0]->{dir} port=6432 dbname=$_[1]"; }

package main;

my $pooler = bless { dir => PostgreSQL::Test::Utils::tempdir_short() }, 'Pooler';
my $dir = PostgreSQL::Test::Utils::tempdir();
my $superuser = getpwuid($<);
append_to_file("$dir/users", join('', map { "\"$_\" \"\"\n" } $superuser, qw(alice bob nobody)));
my @modes = qw(session transaction statement);
append_to_file("$dir/pgbouncer.ini",
		"[databases]\n"
	  . join('', map { "$_ = host=" . $node->host . ' port=' . $node->port . " dbname=postgres pool_mode=$_\n" } @modes)
	  . 'alone = host='
	  . $alone->host
	  . ' port='
	  . $alone->port
	  . " dbname=postgres pool_mode=transaction\n"
	  . <<"CONF");
[pgbouncer]
unix_socket_dir = $pooler->{dir}
listen_port = 6432
auth_type = trust
auth_file = $dir/users
admin_users = $superuser
default_pool_size = 1
CONF
start_process('pgbouncer', $pgbouncer, "$dir/pgbouncer.ini");
wait_until('pgbouncer listens', sub { IO::Socket::UNIX->new(Peer => "$pooler->{dir}/.s.PGSQL.6432") });

sub client
{
	my ($database, $user) = @_;
	return FeishuFlow::Session->new($pooler, database => $database, user => $user);
}

# Waits until a client of the pool has to wait for its server connection.
my $watch = FeishuFlow::Session->new($node);

sub until_busy
{
	my ($database) = @_;
	wait_until(
		'a client waits for the server connection',
		sub {
			my ($out) = run_command([ 'psql', '-XAtqF', ' ', '-d', $pooler->connstr('pgbouncer'), '-c', 'SHOW POOLS' ]);
			# database, user, active clients, waiting ones
			return $out =~ /^\Q$database\E \S+ 1 1 /m;
		});
	return;
}

# A flow that is queued now arrives, and so would have what was to be sent before.
my $later = 0;

sub flow_later_arrives
{
	$later++;
	enqueue($watch, flow_id => "later$later");
	$mock->wait_for(1, kind => 'execute', flow_id => "later$later");
	return;
}

sub hang
{
	my ($client, $sql) = @_;
	$mock->fault(type => 'hold');
	$mock->mark;
	$client->send($sql // flow());
	$mock->wait_for(1, kind => 'execute');
	return;
}

# Ctrl-C in psql, which does not go on after that.  The seconds are those until it has ended.
sub interrupt
{
	my ($client) = @_;
	my $started = time();
	$client->{run}->signal('INT');
	my $result = $client->result;
	$client->quit;
	return ($result, time() - $started);
}

foreach my $mode (qw(transaction statement))
{
	my ($client, $second) = (client($mode), client($mode));
	my $backend = $client->pid;
	is($second->pid, $backend, "$mode pooling: two clients share a server connection");
	my $same_backend = sub {
		my ($name) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		is($second->value('SELECT pg_backend_pid()'), $backend, $name);
	};

	# ---- calls ----

	like(succeeds($client, flow(), 'a call is answered'), qr/execution_id/, '... with what the platform says');
	$mock->mark;
	succeeds($second, flow(), '... and that of another client');
	is($mock->token_requests, 0, '... with the same token');
	hang($client);
	$second->send('SELECT 1');
	until_busy($mode);
	pass('a call keeps its server connection until the answer is there');
	$mock->well;
	succeeds($client, $client->result, '... which comes');
	is($second->result->{out}, '1', '... and then the next client has it');

	fails_with($client, flow(flow_id => 'refusedFlow'), 'LK400', 'a flow is refused');
	fails_with($client, flow(server => 'away'), 'LK503', 'there is no connection to the platform');
	hang($client, flow(timeout => $SOON));
	fails_with($client, $client->result, 'LK504', 'there is no answer in time');
	$mock->well;
	$same_backend->('... after none of these errors the server connection is taken for broken');

	# ---- cancel ----

	my $many =
		q{SELECT count((r).response) FROM (SELECT feishu.execute_flows('a', 'b', '{"_id": 1}') OVER () AS r }
	  . q{FROM generate_series(1, 50)) AS s};
	is($client->value($many), 50, 'many calls at once');
	foreach my $case ([ 'a call', flow() ], [ 'execute_flows', $many ], [ 'wait_flow', undef ])
	{
		my ($name, $sql) = @$case;
		my $victim = client($mode);
		if ($sql)
		{
			hang($victim, $sql);
		}
		else
		{
			my $id = enqueue($victim, run_at => \"now() + interval '1 day'");
			$victim->send("SELECT feishu.wait_flow($id, '10min')");
			until_true(
				$watch,
				'wait_flow waits',
				"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $backend");
		}
		my ($result, $seconds) = interrupt($victim);
		is($result->{sqlstate}, '57014', "$name is cancelled through the pooler");
		cmp_ok($seconds, '<', $AT_ONCE, '... at once');
		note(sprintf('cancelled after %.0f ms', 1000 * $seconds));
		$mock->well;
		succeeds($second, flow(), '... and the next call works');
		$same_backend->('... on the same server connection');
	}
	$watch->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");

	# a SET is not reliable here: the setting is the role's
	my $hasty = client($mode, 'alice');
	hang($hasty, flow(server => 'apps'));
	my $result = fails_with($hasty, $hasty->result, '57014', 'statement_timeout of the role ends a call');
	cmp_ok($result->{seconds}, '<', 2 * $AT_ONCE, '... at once');
	$mock->well;
	is($hasty->value('SELECT pg_backend_pid()'), $hasty->pid, '... and the server connection stays');
	$hasty->quit;
	my $other = client($mode, 'bob');
	$mock->mark;
	succeeds($other, flow(), 'feishu_flow.server of the role is in force');
	is($mock->count(kind => 'execute', app_id => 'cli_bob'), 1, '... and its credentials are used');

	# The pooler closes the server connection of a client that is gone.
	hang($other);
	$other->{run}->kill_kill;
	$mock->wait_for(1, kind => 'execute', state => 'aborted');
	pass('client_connection_check_interval ends the call of a client that is gone');
	$mock->well;
	my $bob = client($mode, 'bob');
	succeeds($bob, flow(), '... and the next call of its role works');
	isnt($bob->pid, $other->pid, '... on a new server connection');
	$bob->quit;

	# ---- the queue ----

	begin_anew($mock, $watch);
	$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'hold' } ]);
	my $slow = enqueue($client, flow_id => 'slow', is_async => \'false');
	$mock->wait_for(1, kind => 'execute', flow_id => 'slow');
	is($second->value('SELECT 1'), '1', 'the server connection is free while a queued flow is under way');
	$client->send("SELECT feishu.wait_flow($slow, '10min')");
	until_true(
		$watch,
		'wait_flow waits',
		"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $backend");
	$mock->well;
	like(succeeds($client, $client->result, 'wait_flow returns through the pooler'), qr/execution_id/,
		'... the answer');
	my $refused = enqueue($client, flow_id => 'refusedFlow');
	fails_with($second, "SELECT feishu.wait_flow($refused)", 'LK400', '... or raises the error');
	succeeds($client, 'INSERT INTO orders VALUES (1)', 'a trigger queues');
	$mock->wait_for(1, kind => 'execute', flow_id => 'fromTrigger');
	pass('... and its flow is sent');

	# ---- transactions ----

	if ($mode eq 'transaction')
	{
		$client->value('BEGIN; SELECT ' . enqueue_call(flow_id => 'committed') . '; INSERT INTO orders VALUES (2)');
		flow_later_arrives();
		is($mock->count(kind => 'execute', flow_id => 'committed'), 0, 'nothing is sent before the commit');
		$client->value('COMMIT');
		$mock->wait_for(1, kind => 'execute', flow_id => 'committed');
		$mock->wait_for(2, kind => 'execute', flow_id => 'fromTrigger');
		pass('... and all after it');

		$client->value(
			'BEGIN; SELECT ' . enqueue_call(flow_id => 'rolledBack') . '; INSERT INTO orders VALUES (3); ROLLBACK');
		my $leaver = client($mode);
		$leaver->value('BEGIN; SELECT ' . enqueue_call(flow_id => 'rolledBack'));
		$leaver->quit;
		until_true(
			$watch,
			'the pooler has closed the connection',
			"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend");
		flow_later_arrives();
		is( $mock->count(kind => 'execute', flow_id => 'rolledBack') . ' '
			  . $mock->count(kind => 'execute', flow_id => 'fromTrigger'),
			'0 2',
			'what was rolled back is never sent, nor what a client queued that left without a commit');
		$backend = $second->value('SELECT pg_backend_pid()');

		$mock->mark;
		succeeds(
			$client,
			"BEGIN; SET LOCAL feishu_flow.server = 'other'; " . flow() . '; COMMIT',
			'a call with SET LOCAL feishu_flow.server');
		is($mock->count(kind => 'execute', app_id => 'cli_other'), 1, '... goes to that server');
		succeeds(
			$client,
			"BEGIN; SET LOCAL feishu_flow.server = 'other'; SELECT " . enqueue_call(flow_id => 'toOther') . '; COMMIT',
			'so does a flow that is queued');
		$mock->wait_for(1, kind => 'execute', app_id => 'cli_other', flow_id => 'toOther');
		$mock->mark;
		succeeds($second, flow(), '... and the call of the next client');
		is($mock->count(kind => 'execute', app_id => 'cli_mock'), 1, '... to its own');
		hang($client, "BEGIN; SET LOCAL feishu_flow.timeout = '$SOON'; " . flow());
		fails_with($client, $client->result, 'LK504', 'SET LOCAL feishu_flow.timeout is in force');
		$mock->well;
		$client->value('ROLLBACK');
		is($second->value('SHOW feishu_flow.timeout'), '10min', '... up to the end of the transaction');
		hang($client, "BEGIN; SET LOCAL statement_timeout = '$SOON'; " . flow());
		fails_with($client, $client->result, '57014', 'so is SET LOCAL statement_timeout');
		$client->value('ROLLBACK');
		$mock->well;
		succeeds($second, flow(), '... and the next call works');
		$same_backend->('... on the same server connection');
	}
	$_->quit foreach $client, $second;
}

# ---- a session for a client ----

{
	my $client = client('session');
	my $backend = $client->pid;
	$client->value("SET feishu_flow.server = 'other'");
	$mock->mark;
	succeeds($client, flow(), 'session pooling: a call');
	is($mock->count(kind => 'execute', app_id => 'cli_other'), 1, '... to the server that was SET');
	$client->quit;
	my $next = client('session');
	is($next->pid, $backend, 'the next client has the same server connection');
	$mock->mark;
	succeeds($next, flow(), '... on which a call works after DISCARD ALL');
	is($mock->count(kind => 'execute', app_id => 'cli_mock') . ' ' . $mock->token_requests,
		'1 0', '... with its own credentials, and the token that is known');
	$next->quit;
}

# ---- roles that share a server connection, with tokens of the session and with shared ones ----

sub as_role { return "BEGIN; SET LOCAL ROLE $_[0]; " . flow(server => 'apps') . '; COMMIT'; }

foreach my $database ('transaction', 'alone')
{
	my $tokens = $database eq 'alone' ? 'tokens of the session' : 'shared tokens';
	my ($client, $second) = (client($database), client($database));
	is($second->pid, $client->pid, "$tokens: two clients share a server connection");
	$mock->reset;
	$mock->revoke;
	succeeds($client, as_role('alice'), '... a role calls on it');
	succeeds($second, as_role('bob'), '... and another role');
	fails_with($second, as_role('nobody'), '42704', '... but not a role without credentials');
	$second->value('ROLLBACK');
	$mock->mark;

	foreach my $turn (1 .. 2)
	{
		succeeds($second, as_role('alice'), '... again the first');
		succeeds($client, as_role('bob'), '... the second');
	}
	is( join(' ', map { $_->{app_id} } arrivals($mock)),
		'cli_alice cli_bob cli_alice cli_bob',
		'... each with its own token');
	is($mock->token_requests, 0, '... which is kept while the server connection changes hands');
	fails_with($client, as_role('nobody'), '42704', '... and the role without credentials has nobody\'s');
	$client->value('ROLLBACK');
	$_->quit foreach $client, $second;
}

foreach my $cluster ($node, $alone)
{
	my ($bad) = slurp_file($cluster->logfile) =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP).*)$/m;
	is($bad, undef, 'no process of ' . $cluster->name . ' failed by itself');
}
$watch->quit;

done_testing();
