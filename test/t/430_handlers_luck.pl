
# Bad luck: handlers that call functions of the queue, odd settings, no worker to be had, promotion.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', streaming => 1, conf => "feishu_flow.handler_attempts = 3\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value(<<'SQL');
CREATE ROLE app LOGIN;
CREATE SCHEMA app AUTHORIZATION app;
CREATE TABLE app.journal (n serial, id bigint, what text);
ALTER TABLE app.journal OWNER TO app;
CREATE FUNCTION app.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO app.journal (id, what) VALUES ((f).id, (f).state)$$;
SQL
my $app = FeishuFlow::Session->new($node, user => 'app');
my ($id, $next);

# A handler of app of this body, in PL/pgSQL.
my $functions = 0;

sub function
{
	my ($body) = @_;
	$functions++;
	my $result = $app->ask(
			"CREATE FUNCTION app.f$functions(f feishu.flows) RETURNS void LANGUAGE plpgsql AS \$body\$BEGIN $body; "
		  . "END\$body\$");
	die $result->{err} if $result->{sqlstate} ne '00000';
	return "app.f$functions";
}

sub handled
{
	my ($flow) = @_;
	until_true(
		$session,
		"the handler of flow $flow was called",
		"SELECT on_end_state IN ('succeeded', 'failed') FROM feishu.flows WHERE id = $flow");
	return look($session, $flow, 'on_end_state, on_end_attempts');
}

sub with_handler
{
	my ($body, %arguments) = @_;
	$id = enqueue($app, on_end => function($body), %arguments);
	return handled($id);
}

my $note = "INSERT INTO app.journal (id, what) VALUES ((f).id, ";
sub noted { return $session->value("SELECT string_agg(what, ' ' ORDER BY n) FROM app.journal WHERE id = $id"); }

# ---- functions of the queue ----

my $chain =
  "feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', idempotent_key => 'after ' || (f).id, on_end => 'app.note')";
is(with_handler("$note $chain)"), 'succeeded|1', 'a handler that queues a flow');
$next = noted();
is(handled($next), 'succeeded|1', '... which is sent, and its handler called');
$mock->mark;
is(with_handler("PERFORM $chain; PERFORM 1/0"), 'failed|3', 'one that queues a flow, and fails');
is($session->value("SELECT count(*) FROM feishu.flows WHERE idempotent_key = 'after $id'"), 0, '... has queued none');

$next = enqueue($app, run_at => \"now() + interval '1 hour'");
is(with_handler("$note feishu.cancel_flow($next))"), 'succeeded|1', 'one that cancels a flow');
is(look($session, $next, 'state') . noted(), 'cancelledtrue', '... does');
is(with_handler("$note feishu.cancel_flow((f).id))"), 'succeeded|1', 'one that cancels its own flow');
is(noted(), 'false', '... which has ended');
is(with_handler("$note coalesce((feishu.wait_flow((f).id)->>'code'), 'none'))"),
	'succeeded|1', 'one that waits for its own flow');
is(noted(), '0', '... which has ended');
is(with_handler("$note feishu.retry_handler((f).id))"), 'succeeded|1', 'one that has itself called again');
is(noted(), 'false', '... which has not been given up');

$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99992402 }, times => 1 ]);
$id = enqueue($app,
	on_end => function("$note (f).state); IF (f).state = 'failed' THEN PERFORM feishu.retry_flow((f).id); END IF"));
until_true(
	$session,
	'it has succeeded at last',
	"SELECT state = 'succeeded' AND on_end_state = 'succeeded' FROM feishu.flows WHERE id = $id");
is(noted(), 'failed succeeded', 'one that retries its own flow is called at each end');
is(with_handler("$note (feishu.execute_flow('app', 'flow', '{\"_id\": 1}')->>'code'))"),
	'succeeded|1', 'one that calls execute_flow');
is(noted(), '0', '... gets its answer');

# ---- settings ----

$session->value("ALTER DATABASE postgres SET default_transaction_read_only = on");
$session->value(
	"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
$id = enqueue($app, on_end => 'app.note');
is(handled($id), 'succeeded|1', 'default_transaction_read_only of the database');
$session->value("SET default_transaction_read_only = off; ALTER DATABASE postgres RESET default_transaction_read_only");
$session->value(
		"ALTER ROLE app SET default_transaction_isolation = serializable; ALTER ROLE app SET exit_on_error = on; "
	  . "ALTER ROLE app SET client_encoding = 'latin1'; ALTER ROLE app SET synchronous_commit = off; "
	  . "ALTER ROLE app SET enable_indexscan = off");
$session->value(
	"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
is(with_handler("$note current_setting('transaction_isolation') || current_setting('synchronous_commit'))"),
	'succeeded|1', 'a serializable default, and other settings of the role');
is(noted(), 'serializableoff', '... which hold in its session');
is(with_handler("PERFORM 1/0"), 'failed|3', '... exit_on_error does not');
# two write what the other reads: a conflict that is over at the next attempt
$app->value('CREATE TABLE app.counter (n int); INSERT INTO app.counter VALUES (0)');
$session->value("ALTER SYSTEM SET feishu_flow.$_ = '20s'") foreach 'retry_base_delay', 'retry_max_delay';
$session->value('SELECT pg_reload_conf()');
my $rival = FeishuFlow::Session->new($node, user => 'app');
$rival->value('BEGIN; SELECT n FROM app.counter; UPDATE app.counter SET n = n + 1');
$id = enqueue($app, on_end => function("UPDATE app.counter SET n = n + 1"));
until_true(
	$session,
	'the handler waits for a row',
	"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler' AND wait_event_type = 'Lock'"
);
$rival->value('COMMIT');
my $committed = time();
like(handled($id), qr/^succeeded\|[23]$/, 'a serialization failure is tried again');
cmp_ok(time() - $committed, '<', 2 * $FeishuFlow::SLOW, '... soon, and not after the delay that others have');
$session->value("ALTER SYSTEM RESET feishu_flow.$_") foreach 'retry_base_delay', 'retry_max_delay';
$session->value('SELECT pg_reload_conf()');
is($session->value('SELECT n FROM app.counter'), 2, '... with one effect');
$rival->quit;
$session->value('ALTER ROLE app RESET ALL');
$session->value(
	"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");

# ---- promotion ----

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$id = enqueue($app, on_end => function("PERFORM pg_sleep(600)"));
until_true($session, 'it hangs', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
$app->value('CREATE OR REPLACE FUNCTION '
	  . look($session, $id, 'on_end')
	  . '(f feishu.flows) RETURNS void LANGUAGE sql AS $$SELECT app.note(f)$$');
$next = enqueue($app, on_end => 'app.note');
until_ended($session, "id = $next");
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
my $reader = FeishuFlow::Session->new($standby);
is($reader->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'"),
	0, 'there is no session on a standby');
$_->quit foreach $session, $app;
$node->stop('immediate');
$standby->promote;
$session = $reader;
like(handled($next), qr/^succeeded/, 'after its promotion handlers are called');
like(handled($id), qr/^succeeded/, '... also the one that was being called');
is($session->value("SELECT string_agg(id::text, ' ' ORDER BY n) FROM app.journal WHERE id IN ($id, $next)"),
	"$id $next", '... each once, in the order of the ends');
$session->quit;
$standby->stop('immediate');

# ---- no worker ----

my $small = queue_cluster('small', conf => "max_worker_processes = 3\nmax_logical_replication_workers = 0\n");
create_server($small, 'feishu', { base_url => $mock->url });
$session = FeishuFlow::Session->new($small);
$session->value('CREATE DATABASE other; CREATE TABLE journal (id bigint); '
	  . 'CREATE FUNCTION note(f feishu.flows) RETURNS void LANGUAGE sql AS $$INSERT INTO journal VALUES ((f).id)$$');
$small->safe_psql('other', 'CREATE EXTENSION feishu_flow');
until_true(
	$session,
	'there are two dispatchers',
	"SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'");
$id = enqueue($session, on_end => 'note');
is($session->value("SELECT feishu.wait_flow($id) IS NOT NULL"),
	't', 'flows are sent when there is no worker for handlers');
until_true($session, 'that is told', "SELECT feishu.dispatch_problem() LIKE 'handlers wait%'");
pass('... and dispatch_problem tells that handlers wait');
is($session->value("SELECT handlers_waiting, pause_reason ~ 'handlers wait', paused FROM feishu.dispatch_status"),
	'1|t|f', '... and dispatch_status');
$small->safe_psql('other', 'DROP EXTENSION feishu_flow');
until_true($session, 'the handler was called', "SELECT on_end_state = 'succeeded' FROM feishu.flows WHERE id = $id");
until_true($session, 'that is told', 'SELECT feishu.dispatch_problem() IS NULL');
pass('... until there is a worker again');

done_testing();
