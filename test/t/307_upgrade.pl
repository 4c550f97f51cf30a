
# pg_upgrade from an older major version takes the queue along as it is, and
# all of it is sent there; pg_dumpall takes what is not the queue.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# An older installation with the extension: the folder of its bin.
my $older = $ENV{FEISHU_OLDER_PG};
plan skip_all => 'no older PostgreSQL, see script/test' if !defined $older;

my $mock = FeishuFlow::Mock->start;
$mock->config(apps => { map { ("cli_$_" => "$_-secret") } qw(mock alice bob) });

my $conf = "max_worker_processes = 20\nfeishu_flow.handler_attempts = 3\n";
my @checksums = (extra => ['--data-checksums']);
my $old = queue_cluster('old', install_path => $older, conf => $conf, @checksums);
my $new = queue_cluster('new', conf => $conf, @checksums);
my $bare = queue_cluster('bare', conf => $conf);
note(   'from '
	  . $old->safe_psql('postgres', 'SHOW server_version') . ' to '
	  . $new->safe_psql('postgres', 'SHOW server_version'));
$new->stop;

# ---- the old cluster, whose roles and databases were not made in one go ----

$old->safe_psql('postgres', $_)
  foreach (
	(map { ("CREATE ROLE gone$_", "CREATE DATABASE gone$_", "DROP ROLE gone$_", "DROP DATABASE gone$_") } 1 .. 3),
	'CREATE ROLE alice',
	'CREATE ROLE gone',
	'CREATE ROLE bob',
	'DROP ROLE gone',
	'CREATE DATABASE app');
foreach my $database (qw(postgres app))
{
	create_server($old, 'feishu', { base_url => $mock->url }, undef, $database);
}
create_server($old, 'paused', { base_url => $mock->url }, undef, 'app');
create_server($old, 'away', { base_url => 'http://127.0.0.1:' . closed_port() }, undef, 'app');
$old->safe_psql('app', <<SQL);
ALTER DATABASE app SET feishu_flow.server = 'feishu';
CREATE SERVER apps FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '@{[ $mock->url ]}', max_rate '1000');
CREATE USER MAPPING FOR alice SERVER apps OPTIONS (app_id 'cli_alice', app_secret 'alice-secret');
CREATE USER MAPPING FOR bob SERVER apps OPTIONS (app_id 'cli_bob', app_secret 'bob-secret');
GRANT USAGE ON FOREIGN SERVER apps TO alice, bob;
CREATE TABLE orders (id int PRIMARY KEY);
CREATE TRIGGER queue_flow AFTER INSERT ON orders FOR EACH ROW
    EXECUTE FUNCTION feishu.flow_trigger('app', 'fromTrigger', '{"_id": 1}', '{"n": "\$.new.id"}',
        '{"ordering_key": "orders"}');
SQL
# Handlers: one whose name needs quotes, and has an overloaded one beside it; one that waits; one that fails until
# something is mended.
$old->safe_psql('app', <<'SQL');
CREATE ROLE carol LOGIN;
CREATE SCHEMA handling AUTHORIZATION carol;
SET ROLE carol;
CREATE TABLE handling.journal (n serial, flow bigint, what text);
CREATE TABLE handling.let_go (at timestamptz);
CREATE TABLE handling.mended (at timestamptz);
CREATE FUNCTION handling."At the ""end"""(text) RETURNS void LANGUAGE sql AS 'SELECT 1 / 0';
CREATE FUNCTION handling."At the ""end"""(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO handling.journal (flow, what) VALUES ((f).id, current_user || ' has ' || (f).state)$$;
CREATE FUNCTION handling.waits(f feishu.flows) RETURNS void LANGUAGE plpgsql
AS $$BEGIN
    WHILE NOT EXISTS (SELECT FROM handling.let_go) LOOP PERFORM pg_sleep(0.02); END LOOP;
    PERFORM handling."At the ""end"""(f);
END$$;
CREATE FUNCTION handling.fails(f feishu.flows) RETURNS void LANGUAGE plpgsql
AS $$BEGIN
    IF NOT EXISTS (SELECT FROM handling.mended) THEN RAISE EXCEPTION 'not mended yet'; END IF;
    PERFORM handling."At the ""end"""(f);
END$$;
SQL
my ($elsewhere, $session) = map { FeishuFlow::Session->new($old, database => $_) } qw(postgres app);

sub handlers
{
	my ($session, $condition) = @_;
	return $session->value("SELECT string_agg(state || ' ' || n, ', ' ORDER BY state) "
		  . "FROM (SELECT on_end_state AS state, count(*) AS n FROM feishu.flows WHERE $condition GROUP BY 1) s");
}

# The flows whose handlers have had an effect, in order.
sub journal
{
	my ($session) = @_;
	return $session->value("SELECT string_agg(flow::text, ' ' ORDER BY n) FROM handling.journal");
}

# Flows that have ended, whose handler was given up, is being called, and has not been called yet.
$session->value('SET ROLE carol');
my $given_up = enqueue($session, params => '{"n": 361}', on_end => 'handling.fails');
until_true($session, 'a handler is given up', "SELECT on_end_state = 'failed' FROM feishu.flows WHERE id = $given_up");
my $in_it = enqueue($session, params => '{"n": 362}', on_end => 'handling.waits');
until_true(
	$session,
	'a handler is being called',
	"SELECT on_end_state = 'waiting' AND EXISTS (SELECT FROM pg_stat_activity "
	  . "WHERE backend_type = 'feishu_flow handler' AND wait_event = 'PgSleep') FROM feishu.flows WHERE id = $in_it");
enqueue_many($session, 363, 367, on_end => 'handling."At the ""end"""');
until_ended($session);
my @handled = split / /,
  $session->value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM feishu.flows WHERE id >= $in_it");
$session->value('RESET ROLE');

# What has ended, and has no handler.
enqueue_many($session, 1, 20);
my $refused = enqueue($session, flow_id => 'refusedFlow');
my $cancelled = enqueue($session, run_at => \"now() + interval '1 day'");
$session->value("SELECT feishu.cancel_flow($cancelled)");
$session->value('INSERT INTO orders SELECT generate_series(21, 25)');
until_ended($session);

# What is to be tried again, and what waits for its time.
enqueue_many($session, 101, 103, server => 'away');
until_true($session, 'all were tried', "SELECT bool_and(attempts > 0) FROM feishu.flows WHERE server = 'away'");
$session->value("SELECT feishu.pause_server('away')");
my $delayed = enqueue($session, params => '{"n": 200}', run_at => \"'2040-01-01'");

# What waits, for a pause and for those of its ordering key.
$session->value("SELECT feishu.pause_server('paused')");
$session->value("SELECT feishu.pause_flow('paused', 'app', 'other')");
enqueue_many($session, 301, 350, server => 'paused');
enqueue_many($session, 351, 360, server => 'paused', ordering_key => 'one by one');
$session->value('SET ROLE carol');
enqueue_many($session, 368, 370, server => 'paused', on_end => 'handling."At the ""end"""', ordering_key => 'handled');
push @handled, split / /,
  $session->value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM feishu.flows WHERE state = 'queued'");
$session->value('RESET ROLE');

# What is under way: answers of these are lost, the platform has not got those.
my @started = ([ 401, 405, 'alice' ], [ 411, 415, 'bob' ]);
my @not_started = ([ 421, 425, 'alice' ], [ 431, 435, 'bob' ]);
$mock->rules([ { kind => 'execute', params_regex => '"n": ?4[01]' }, { type => 'headers_hang' } ],
	[ { kind => 'execute' }, { type => 'hang' } ]);
$mock->mark;
foreach my $range (@started, @not_started)
{
	my ($from, $to, $role) = @$range;
	$session->value("SET ROLE $role");
	enqueue_many($session, $from, $to, server => 'apps');
	$session->value('RESET ROLE');
}
enqueue_many($elsewhere, 441, 450);
$mock->wait_for(30, kind => 'execute');
$session->value('INSERT INTO orders SELECT generate_series(501, 505)');
is( handlers($session, "role = 'carol' AND finished_at IS NOT NULL"),
	'failed 1, waiting 6',
	'handlers are given up, and wait, when the old server ends');
is(journal($session), '', '... and none has had an effect');
$_->quit foreach $session, $elsewhere;
$old->stop('fast');

# ---- what is there, by each cluster with its dispatch off ----

my $mappings = 'SELECT srvname, umoptions, srvoptions, usename '
  . 'FROM pg_user_mappings JOIN pg_foreign_server USING (srvname) ORDER BY srvname, usename';

# What must not change, by a name.
sub inventory
{
	my ($node, $database) = @_;
	my $session = FeishuFlow::Session->new($node, database => $database);
	my %found = (
		'flows' => 'SELECT f FROM feishu.flows f ORDER BY id',
		'rows of the queue' => 'SELECT o FROM feishu_internal.outbox o ORDER BY id',
		'claims' => 'SELECT c FROM feishu_internal.claim c',
		'database of the claims' =>
		  'SELECT datname FROM feishu_internal.claim c JOIN pg_database d ON d.oid = c.database',
		'pauses' => 'SELECT p FROM feishu_internal.paused_server p',
		'pauses of flows' => 'SELECT p FROM feishu_internal.paused_flow p',
		'dispatch_status' =>
		  'SELECT server, queued, sending, oldest_queued, paused, pause_reason FROM feishu.dispatch_status '
		  . 'ORDER BY server',
		'effects of handlers' =>
		  "SELECT count(*) FROM pg_class WHERE relname = 'journal' AND pg_relation_size(oid) > 0",
		'the last id' => 'SELECT id FROM feishu_internal.last_id',
		'servers and mappings' => $mappings,
		'objects of the extension' =>
		  'SELECT pg_describe_object(classid, objid, 0) FROM pg_depend WHERE deptype = \'e\' '
		  . "AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'feishu_flow') "
		  . "AND classid <> 'pg_type'::regclass ORDER BY 1",
		'rights' => 'SELECT relname, relacl, relrowsecurity FROM pg_class '
		  . "WHERE relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace) AND relkind <> 'i' "
		  . "AND relname !~ '^pg_toast' ORDER BY 1",
		'rights of functions' => 'SELECT oid::regprocedure, proacl FROM pg_proc '
		  . "WHERE pronamespace = 'feishu'::regnamespace ORDER BY oid::regprocedure::text");
	$_ = $session->value($_) foreach values %found;
	foreach my $role (qw(alice bob))
	{
		$session->value("SET ROLE $role");
		$found{"flows that $role sees"} = $session->value('SELECT f FROM feishu.flows f ORDER BY id');
		$session->value('RESET ROLE');
	}
	$session->quit;
	return \%found;
}

$old->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$old->start;

# Whoever calls the handlers from now on has an effect.
$old->safe_psql('app', 'INSERT INTO handling.let_go VALUES (now())');

# A copy must not send, and has not cancelled its flows yet.
$old->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE app');
my @databases = qw(postgres app copy);
my %before = map { $_ => inventory($old, $_) } @databases;
cmp_ok(scalar(() = $before{app}{flows} =~ /,sending,/g), '>=', 20, 'flows are under way when the old server ends');
$old->stop;
$old->adjust_conf('postgresql.conf', 'feishu_flow.dispatch', 'on');
$mock->well;
$mock->mark;

# ---- pg_upgrade ----

chdir PostgreSQL::Test::Utils::tempdir();
command_ok(
	[
		'pg_upgrade', '--no-sync',
		'--old-datadir', $old->data_dir,
		'--new-datadir', $new->data_dir,
		'--old-bindir', "$older/bin",
		'--new-bindir', $new->config_data('--bindir'),
		'--socketdir', PostgreSQL::Test::Utils::tempdir_short(),
		'--old-port', $old->port,
		'--new-port', $new->port
	],
	'pg_upgrade');
$new->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$new->start;
foreach my $database (@databases)
{
	my $after = inventory($new, $database);
	foreach my $what (sort keys %$after)
	{
		is($after->{$what}, $before{$database}{$what}, "in database $database as before: $what");
	}
}
is(scalar($mock->log), 0, 'while pg_upgrade runs, nothing is sent');

# ---- all of it is sent ----

$new->adjust_conf('postgresql.conf', 'feishu_flow.dispatch', 'on');
$new->reload;
($elsewhere, $session) = map { FeishuFlow::Session->new($new, database => $_) } qw(postgres app);
until_ended($elsewhere);
until_ended($session, "server IN ('feishu', 'apps') AND id <> $delayed");
foreach my $role (qw(alice bob))
{
	my @apps = map { $_->{app_id} } grep { $_->{json}{params} =~ /"n": ?4/ } arrivals($mock, app_id => "cli_$role");
	is(scalar(@apps), 10, "what was under way of $role is sent again, with the credentials of $role");
}
is( ends($session, "server = 'apps' AND role IN ('alice', 'bob')"),
	'succeeded 10, unconfirmed 10',
	'... and starts, unless it had');
is(ends($session, "server = 'paused'"), 'queued 63', 'a paused server stays paused');
until_true(
	$session,
	'the handlers that had not been called are called',
	"NOT EXISTS (SELECT FROM feishu.flows WHERE on_end_state IN ('waiting', 'retrying'))");
is( journal($session),
	join(' ', @handled[ 0 .. 5 ]),
	'... each once, and in the order of the ends, with the one that was being called');
is(look($session, $given_up, 'on_end_state, on_end_attempts'), 'failed|3', '... and one that was given up is not');
is(look($session, $delayed, 'state, attempts'), 'queued|0', 'what is to be sent later waits');
is(ends($session, "server = 'away'"), 'retrying 3', 'what is to be tried again, too');
is($session->value("SELECT feishu.cancel_flow($delayed)"), 't', 'a flow of the old queue can be cancelled');
alter_server($session, 'away', 'SET', base_url => $mock->url);
$session->value("SELECT feishu.resume_server('$_')") foreach qw(paused away);
until_ended($session);
until_true(
	$session,
	'... and their handlers are called',
	"NOT EXISTS (SELECT FROM feishu.flows WHERE on_end_state IN ('waiting', 'retrying'))");
is(journal($session), join(' ', @handled), '... those of flows that had waited, too');
$session->value('SET ROLE carol; INSERT INTO handling.mended VALUES (now())');
is($session->value("SELECT feishu.retry_handler($given_up)"), 't', 'one that was given up can be called again');
until_true($session, '... and is', "SELECT on_end_state = 'succeeded' FROM feishu.flows WHERE id = $given_up");
is(journal($session), join(' ', @handled, $given_up), '... once, as all others');
is( $session->value("SELECT string_agg(DISTINCT what, ', ') FROM handling.journal"),
	'carol has succeeded',
	'... each as the role, with its flow as it has ended');
$session->value('RESET ROLE');
is( join(' ', grep { $_ > 350 && $_ <= 360 } started_numbers($mock)),
	join(' ', 351 .. 360),
	'flows of an ordering key are sent in their order');
is(join(' ', grep { $_ > 500 } started_numbers($mock)), join(' ', 501 .. 505), '... those of a trigger, too');
my $copy = FeishuFlow::Session->new($new, database => 'copy');
until_ended($copy);
is( ends($copy),
	'cancelled 93, failed 1, succeeded 32',
	'a copy of the database, made before, cancels what it has of the other');
is(journal($copy), '', '... and calls none of its handlers');
started_once($mock, 25 + 3 + 60 + 20 + 10 + 5 + 10, 'each flow of the old queue has started once, and none is lost');
is(ends($session, "state NOT IN ('succeeded', 'unconfirmed')"), 'cancelled 2, failed 1', '... none has failed for it');

my $last = $session->value('SELECT max(id) FROM feishu.flows');
$session->value('INSERT INTO orders VALUES (601)');
until_ended($session);
is($session->value("SELECT state, id > $last FROM feishu.flows ORDER BY id DESC LIMIT 1"),
	'succeeded|t', 'the trigger and the queue go on');
is($session->value("SELECT feishu.retry_flow($refused)"), 't', 'what had failed before can be retried');
until_ended($session);
like($session->value(flow(server => 'feishu')), qr/execution_id/, 'a call is answered');
succeeds($session, 'DROP EXTENSION feishu_flow CASCADE', 'the extension can be dropped');
succeeds($session, 'CREATE EXTENSION feishu_flow', '... and created');
$_->quit foreach $session, $elsewhere, $copy;
$new->stop;

# ---- pg_dumpall ----

$old->adjust_conf('postgresql.conf', 'feishu_flow.dispatch', 'off');
$old->start;
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$new->command_ok([ 'pg_dumpall', '-f', $dump, '-d', $old->connstr('postgres') ],
	'pg_dumpall of the new version dumps the old one');
my ($out, $err) = run_command([ 'psql', '-Xq', '-f', $dump, '-d', $bare->connstr('postgres') ]);
is(join("\n", grep { /ERROR/ && !/role ".*" already exists/ } split /\n/, $err), '', '... and the new one takes it');
$session = FeishuFlow::Session->new($bare, database => 'app');
until_dispatcher($session);
is($session->value('SELECT count(*) FROM feishu.flows'), '0', '... without the queue');
is($session->value('SELECT count(*) FROM orders'), '10', '... and without a flow for each row that it loads');
is($session->value($mappings), $before{app}{'servers and mappings'}, '... with servers and mappings');
$mock->mark;
$session->value('INSERT INTO orders VALUES (701)');
my $own = $session->value("SET ROLE alice; SELECT " . enqueue_call(server => 'apps', params => '{"n": 702}'));
$session->value('RESET ROLE');
until_ended($session);
is(ends($session), 'succeeded 2', '... the trigger and the queue work there');
is(scalar(arrivals($mock, app_id => 'cli_alice')), 1, '... with the roles\' credentials');
$session->quit;

foreach my $cluster ($old, $new, $bare)
{
	my ($bad) =
	  slurp_file($cluster->logfile) =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP|does not have one row).*)$/m;
	is($bad, undef, 'no process of ' . $cluster->name . ' failed by itself');
}

done_testing();
