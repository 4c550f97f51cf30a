
# The end comes back: a function is called when a flow has ended, once in effect and in the order of the ends.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $app;
my ($id, @ids);

$session->value(<<'SQL');
CREATE ROLE app LOGIN;
CREATE SCHEMA app AUTHORIZATION app;
SET ROLE app;
CREATE TABLE app.journal (n serial, id bigint, state text, execution_id text, role text, role_of_session text);
CREATE TABLE app.orders (id int PRIMARY KEY, execution_id text);
CREATE FUNCTION app.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO app.journal (id, state, execution_id, role, role_of_session)
     VALUES ((f).id, (f).state, (f).execution_id, current_user, session_user)$$;
CREATE FUNCTION app.throw(f feishu.flows) RETURNS void LANGUAGE plpgsql
AS $$BEGIN PERFORM app.note(f); RAISE EXCEPTION 'no luck with %', f.flow_id USING DETAIL = 'none at all'; END$$;
RESET ROLE;
SQL
$app = FeishuFlow::Session->new($node, user => 'app');

sub handled
{
	my ($flow) = @_;
	until_true(
		$session,
		"the handler of flow $flow was called",
		"SELECT on_end_state IN ('succeeded', 'failed') FROM feishu.flows WHERE id = $flow");
	return look($session, $flow, 'on_end_state, on_end_attempts');
}

sub journal { return $session->value("SELECT string_agg(id::text, ' ' ORDER BY n) FROM app.journal WHERE $_[0]"); }

sub sessions
{
	return $session->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
}

# ---- the plain path ----

$id = enqueue($app);
until_ended($session);
is(look($session, $id, 'on_end IS NULL, on_end_state IS NULL, on_end_attempts IS NULL'),
	't|t|t', 'a flow without a handler has none');
is(sessions(), 0, '... and no session is begun where nobody uses handlers');

$id = enqueue($app, on_end => 'app.note');
is(handled($id), 'succeeded|1', 'a handler is called when its flow has ended');
is($session->value("SELECT state, execution_id IS NOT NULL, role, role_of_session FROM app.journal WHERE id = $id"),
	'succeeded|t|app|app', '... with the row of the view, in a session of the role');
is(look($session, $id, 'on_end, on_end_error IS NULL, on_end_at >= finished_at'),
	'app.note|t|t', '... and that is in the view');
is(sessions(), 1, '... by one session, which stays');

$app->value('SET search_path = app');
$id = enqueue($app, on_end => 'note');
is(look($session, $id, 'on_end'), 'app.note',
	'a name is looked for in the search_path, and remembered with its schema');
is(handled($id), 'succeeded|1', '... and called');
$app->value('RESET search_path');

$app->value('CREATE FUNCTION app."Odd ""name"""(f feishu.flows) RETURNS SETOF int LANGUAGE sql '
	  . 'AS $$UPDATE app.orders SET execution_id = (f).execution_id WHERE id = ((f).params->>\'n\')::int RETURNING 1$$'
);
$app->value('INSERT INTO app.orders VALUES (7)');
$id = enqueue($app, params => '{"n": 7}', on_end => 'app."Odd ""name"""');
is(handled($id), 'succeeded|1', 'a name that needs quotes');
is($session->value('SELECT o.execution_id = f.execution_id FROM app.orders o, feishu.flows f WHERE f.id = ' . $id),
	't', '... and it writes the result into the row of an order');

# ---- whatever the end ----

$mock->fault(type => 'status', status => 400, body => '{}');
$id = enqueue($app, on_end => 'app.note', max_attempts => \1);
is(handled($id), 'succeeded|1', 'a handler is called of a flow that failed');
is($session->value("SELECT state FROM app.journal WHERE id = $id"), 'failed', '... and told so');
$mock->well;
$id = enqueue($app, on_end => 'app.note', run_at => \"now() + interval '1 hour'");
is($app->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow is cancelled');
is(handled($id), 'succeeded|1', '... and its handler is called');
is($session->value("SELECT state FROM app.journal WHERE id = $id"), 'cancelled', '... and told so');
$id = enqueue($app, on_end => 'app.note', run_at => \"now() + interval '1 hour'");
$app->value("BEGIN; SELECT feishu.cancel_flow($id); ROLLBACK");
is(look($session, $id, 'state, on_end_state IS NULL'),
	'queued|t', 'of a cancel that was rolled back there is no handler');
$app->value("BEGIN; SELECT feishu.cancel_flow($id)");
my $later = enqueue(FeishuFlow::Session->new($node, user => 'app'), on_end => 'app.note');
is(handled($later), 'succeeded|1', 'a cancel that is not committed holds up no handler');
$app->value('COMMIT');
is(handled($id), 'succeeded|1', '... and its own is called after the commit, though its end has a lower number');

$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($app, on_end => 'app.note', expires_at => \"clock_timestamp() + interval '300 ms'");
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '200ms'");
$node->reload;
is(handled($id), 'succeeded|1', 'a handler is called of a flow that expired');
is($session->value("SELECT state FROM app.journal WHERE id = $id"), 'failed', '... and told so');
$session->value("SELECT feishu.resume_server('feishu')");
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '10min'");
$node->reload;

# ---- the order ----

$session->value('TRUNCATE app.journal');
enqueue_many($app, 1, 500, on_end => 'app.note');
until_true($session, 'all handlers were called', 'SELECT count(*) = 500 FROM app.journal');
is( $session->value(
			'SELECT count(*) FROM (SELECT o.end_number, lag(o.end_number) OVER (ORDER BY j.n) AS before '
		  . 'FROM app.journal j JOIN feishu_internal.outbox o USING (id)) s WHERE end_number <= before'),
	0,
	'handlers are called in the order of the ends');
is($session->value('SELECT count(DISTINCT id) FROM app.journal'), 500, '... each once');
is( $session->value(
			'SELECT count(*) FROM (SELECT f.finished_at, lag(f.finished_at) OVER (ORDER BY j.n) AS before '
		  . 'FROM app.journal j JOIN feishu.flows f USING (id)) s WHERE finished_at < before'),
	0,
	'... which is that of finished_at');

# ---- failures ----

$session->value('TRUNCATE app.journal');
$node->append_conf('postgresql.conf', 'feishu_flow.handler_attempts = 3');
$node->reload;
my $old = FeishuFlow::Session->new($node);
$old->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
$id = enqueue($app, on_end => 'app.throw');
$session->value("SELECT feishu.wait_flow($id)");
$later = enqueue($app, on_end => 'app.note');
is(handled($id), 'failed|3', 'a handler that fails is given up after handler_attempts');
like(
	look($session, $id, 'on_end_error'),
	qr/^no luck with flow; none at all; PL\/pgSQL function throw/,
	'... with its error');
is(handled($later), 'succeeded|1', '... and the next of the role is called then');
is(journal('true'), $later, '... and of those that failed there is no effect');
is( $session->value(
			"SELECT handlers_waiting, handlers_failed, oldest_handler IS NULL FROM feishu.dispatch_status "
		  . "WHERE server = 'feishu'"),
	'0|1|t',
	'... which dispatch_status shows');
is($session->value("SELECT feishu.retry_handler($later)"), 'f', 'one that has succeeded is not called again');
fails_with($old, "SELECT feishu.retry_handler($id)",
	'40001', 'one that was given up after the snapshot is not said to need no retry');
$old->quit;
$app->value('CREATE OR REPLACE FUNCTION app.throw(f feishu.flows) RETURNS void LANGUAGE sql AS $$SELECT app.note(f)$$');
is($app->value("SELECT feishu.retry_handler($id)"), 't', 'one that was given up can be called again');
is(handled($id), 'succeeded|1', '... and is');
is(journal('true'), "$later $id", '... once');
fails_with($app, 'SELECT feishu.retry_handler(0)', '42704', 'retry_handler of no flow');

# ---- triggers ----

$app->value(q{CREATE TRIGGER start AFTER INSERT ON app.orders FOR EACH ROW EXECUTE FUNCTION }
	  . q{feishu.flow_trigger('app', 'flow', '{"_id": 1}', '{"n": "$.new.id"}', '{"on_end": "app.note"}')});
$app->value('INSERT INTO app.orders VALUES (8)');
$id = $session->value('SELECT max(id) FROM feishu.flows');
is(handled($id), 'succeeded|1', 'a trigger can name a handler');

# ---- purge ----

$app->value('CREATE OR REPLACE FUNCTION app.throw(f feishu.flows) RETURNS void '
	  . 'LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION \'no\'; END$$');
$node->append_conf('postgresql.conf', "feishu_flow.retry_base_delay = '1h'\nfeishu_flow.retry_max_delay = '1h'");
$node->reload;
$id = enqueue($app, on_end => 'app.throw');
until_true($session, 'the handler has failed once',
	"SELECT on_end_state = 'retrying' FROM feishu.flows WHERE id = $id");
is( $session->value(
		"SELECT handlers_waiting, oldest_handler IS NOT NULL FROM feishu.dispatch_status WHERE server = 'feishu'"),
	'1|t',
	'a handler that is called again later waits');
cmp_ok($session->value("SELECT feishu.purge_flows('infinity')"),
	'>', 500, 'purge_flows drops flows whose handlers were called');
is(look($session, $id, 'on_end_state'), 'retrying', '... and keeps those whose handlers wait');
is($app->value("SELECT feishu.retry_flow($id)"), 'f', 'a flow that succeeded is not retried for its handler');

# ---- what is refused ----

my $mark = $session->value('SELECT max(id) FROM feishu.flows');

sub refused
{
	my ($name, $on_end, $sqlstate, %parts) = @_;
	return fails_with($app, 'SELECT ' . enqueue_call(on_end => $on_end), $sqlstate, $name, %parts);
}
$session->value(<<'SQL');
CREATE FUNCTION public.private(f feishu.flows) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION public.private(feishu.flows) FROM PUBLIC;
CREATE SCHEMA hidden;
CREATE FUNCTION hidden.f(f feishu.flows) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE public.proc(f feishu.flows) LANGUAGE sql AS '';
CREATE FUNCTION public.step(i int, f feishu.flows) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE public.agg(feishu.flows) (sfunc = public.step, stype = int);
CREATE FUNCTION public.other(i int) RETURNS void LANGUAGE sql AS '';
SQL
refused('a function that is not there', 'app.nothing', '42883', hint => qr/one argument of type feishu.flows/);
refused('one of another argument', 'public.other', '42883');
refused('one that the role may not execute', 'public.private', '42501');
refused('one in a schema that the role may not use', 'hidden.f', '42501');
refused('a procedure', 'public.proc', '42883');
refused('an aggregate', 'public.agg', '22023');
refused('no name', '', '22023', message => qr/on_end/);
refused('SQL', 'app.note(NULL); DROP TABLE app.orders', '22023');
$app->value("CREATE FUNCTION pg_temp.f(f feishu.flows) RETURNS void LANGUAGE sql AS ''");
refused('a temporary function', 'pg_temp.f', '22023', message => qr/temporary/);
is($session->value('SELECT max(id) FROM feishu.flows'), $mark, '... and nothing was queued');
$session->value('CREATE ROLE nologin; GRANT nologin TO app');

if ($session->value("SELECT current_setting('server_version_num')::int < 170000") eq 't')
{
	fails_with($app, "SET ROLE nologin; SELECT " . enqueue_call(on_end => 'public.free'),
		'42883', 'a role without LOGIN, and no function');
	$session->value("CREATE FUNCTION public.free(f feishu.flows) RETURNS void LANGUAGE sql AS ''");
	fails_with(
		$app, 'SELECT ' . enqueue_call(on_end => 'public.free'),
		'55000',
		'a role without LOGIN',
		hint => qr/LOGIN/);
	$app->value('RESET ROLE');
}

done_testing();
