
# Handlers reach no further than their role, and what they do to their session holds up no flow and no other role.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => <<'CONF');
feishu_flow.handler_attempts = 3
feishu_flow.handler_timeout = '300ms'
max_prepared_transactions = 5
CONF
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE third LOGIN;
CREATE SCHEMA app;
GRANT ALL ON SCHEMA app TO app, other, third;
CREATE TABLE app.journal (n serial, id bigint, what text);
GRANT ALL ON app.journal, app.journal_n_seq TO app, other, third;
CREATE FUNCTION app.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO app.journal (id, what) VALUES ((f).id, current_user)$$;
SQL
my $app = FeishuFlow::Session->new($node, user => 'app');
my $other = FeishuFlow::Session->new($node, user => 'other');
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

# Queues a flow with such a handler; what became of it.
sub with_handler
{
	my ($body, %arguments) = @_;
	$id = enqueue($app, on_end => function($body), %arguments);
	return handled($id);
}

sub error_of { return look($session, $id, 'on_end_error'); }
sub noted    { return $session->value("SELECT string_agg(what, ' ' ORDER BY n) FROM app.journal WHERE id = $id"); }

# ---- what a handler may not ----

my $note = "INSERT INTO app.journal (id, what) VALUES ((f).id, ";
is(with_handler("PERFORM app.note(f); SET ROLE postgres"), 'failed|3', 'a handler cannot become another role');
like(error_of(), qr/permission denied to set role/, '... and is told so');
is(with_handler("SET SESSION AUTHORIZATION postgres"), 'failed|3', 'nor its session');
is(with_handler("PERFORM count(*) FROM feishu_internal.outbox"), 'failed|3', 'it cannot read the tables of the queue');
like(error_of(), qr/permission denied for schema feishu_internal/, '... as nobody can');
is(with_handler("$note session_user || current_user || current_setting('is_superuser'))"),
	'succeeded|1', 'its session is that of its role');
is(noted(), 'appappoff', '... and of no superuser');
$session->value('CREATE FUNCTION app.definer() RETURNS text SECURITY DEFINER '
	  . 'LANGUAGE sql AS \'SELECT current_user || session_user\'');
is(with_handler("$note app.definer())"), 'succeeded|1', 'SECURITY DEFINER works as in any session');
is(noted(), 'postgresapp', '... and the session is still the role\'s');
is( with_handler(
			"CREATE TEMP TABLE t (i int); CREATE FUNCTION pg_temp.up() RETURNS trigger LANGUAGE plpgsql AS \$\$BEGIN "
		  . "SET ROLE postgres; RETURN NULL; END\$\$; CREATE CONSTRAINT TRIGGER later AFTER INSERT ON t DEFERRABLE "
		  . "INITIALLY DEFERRED "
		  . "FOR EACH ROW EXECUTE FUNCTION pg_temp.up(); INSERT INTO t VALUES (1)"),
	'failed|3',
	'a deferred trigger of a temporary table cannot become another role');
like(error_of(), qr/permission denied to set role/, '... and is told so');
$session->value(<<'SQL');
CREATE FUNCTION app.secret(f feishu.flows) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION app.secret(feishu.flows) FROM PUBLIC;
SQL
fails_with($app, 'SELECT ' . enqueue_call(on_end => 'app.secret'), '42501', 'a role cannot name another\'s function');
$session->value('GRANT EXECUTE ON FUNCTION app.secret(feishu.flows) TO app');
$id = $app->value('BEGIN; SELECT ' . enqueue_call(on_end => 'app.secret'));
$session->value('REVOKE EXECUTE ON FUNCTION app.secret(feishu.flows) FROM app');
$app->value('COMMIT');
is(handled($id), 'failed|3', '... nor have one called that it may not execute any more');
like(error_of(), qr/permission denied for function secret/, '... and is told so');
my $foreign = enqueue($other, on_end => 'app.note');
handled($foreign);
is(with_handler("$note (SELECT count(*) FROM feishu.flows WHERE role <> 'app'))"),
	'succeeded|1', 'it sees no rows of others');
is(noted(), '0', '... in the view');
$session->value('CREATE SCHEMA evil AUTHORIZATION app; ALTER ROLE other SET search_path = evil, public');
$app->value('CREATE FUNCTION evil.eq(bigint, bigint) RETURNS boolean '
	  . 'LANGUAGE plpgsql AS $$BEGIN INSERT INTO app.journal (what) VALUES (\'evil\'); RETURN true; END$$; '
	  . 'CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq); '
	  . 'CREATE OPERATOR evil.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq)');
$session->value('GRANT USAGE ON SCHEMA evil TO PUBLIC');
$foreign = enqueue(FeishuFlow::Session->new($node, user => 'other'), on_end => 'app.note');
is(handled($foreign), 'succeeded|1', 'a search_path with operators of others');
is($session->value("SELECT count(*) FROM app.journal WHERE what = 'evil'"), '0', '... has none of them called');

# ---- what it leaves ----

is( with_handler(
			"SET work_mem = '1MB'; SET LOCAL lock_timeout = '7s'; SET TIME ZONE 'Asia/Shanghai'; "
		  . "PERFORM pg_advisory_lock(42); "
		  . "PREPARE p AS SELECT 1; CREATE TEMP TABLE left_over (i int); SET search_path = evil"),
	'succeeded|1',
	'a handler leaves things in the session');
is( with_handler(
			"$note concat_ws(',', current_setting('work_mem'), current_setting('lock_timeout'), "
		  . "current_setting('TimeZone'), current_setting('search_path'), "
		  . "(SELECT count(*) FROM pg_prepared_statements), to_regclass('left_over') IS NULL))"),
	'succeeded|1',
	'... of which the next');
is(noted(), '4MB,0,Etc/UTC,"$user", public,0,t', '... finds nothing');
is($session->value('SELECT pg_try_advisory_lock(42)'), 't', '... nor has anybody else to wait for');
$session->value('SELECT pg_advisory_unlock(42)');

# ---- deferred constraints ----

$app->value(
	'CREATE TABLE app.parent (id int PRIMARY KEY); CREATE TABLE app.child (parent int REFERENCES app.parent DEFERRABLE '
	  . 'INITIALLY DEFERRED)');
is(with_handler("INSERT INTO app.child VALUES (1)"),
	'failed|3', 'a constraint that fails at the commit is a failure of the handler');
like(error_of(), qr/violates foreign key constraint/, '... with its error');
is($session->value('SELECT count(*) FROM app.child'), '0', '... and without effect');
is(with_handler("INSERT INTO app.child VALUES (1); INSERT INTO app.parent VALUES (1)"),
	'succeeded|1', '... one that holds then is none');

# Many in one transaction, some of which fail at its commit.
my $sometimes = function(
	'IF (f).params->>\'n\' IN (\'100\', \'150\') THEN INSERT INTO app.child VALUES (0); END IF; PERFORM app.note(f)');
$session->value('TRUNCATE app.journal');
$app->value("BEGIN; SELECT count(*) FROM (SELECT 1) s");
enqueue_many($app, 1, 200, on_end => $sometimes);
$app->value('COMMIT');
until_true(
	$session,
	'all were called',
	"SELECT count(*) = 0 FROM feishu.flows WHERE on_end = '$sometimes' "
	  . "AND coalesce(on_end_state, 'waiting') NOT IN ('succeeded', 'failed')");
is( $session->value(
			"SELECT string_agg(params->>'n', ' ' ORDER BY id) FROM feishu.flows "
		  . "WHERE on_end = '$sometimes' AND on_end_state = 'failed'"),
	'100 150',
	'of many in one transaction those fail that fail at its commit, and no other');
is($session->value('SELECT count(*) || \' \' || count(DISTINCT id) FROM app.journal'),
	'198 198', '... and all others have one effect');
is( $session->value(
			'SELECT count(*) FROM (SELECT o.end_number, lag(o.end_number) OVER (ORDER BY j.n) AS before '
		  . 'FROM app.journal j JOIN feishu_internal.outbox o USING (id)) s WHERE end_number <= before'),
	0,
	'... in the order of the ends');

# ---- those that hang, throw, leave ----

is(with_handler("PERFORM app.note(f); PERFORM pg_sleep(60)"), 'failed|3', 'a handler that takes too long is given up');
like(error_of(), qr/handler_timeout/, '... with the reason');
is( with_handler(
		"CREATE TEMP TABLE slow (i int); CREATE FUNCTION pg_temp.slow() RETURNS trigger LANGUAGE plpgsql AS \$\$BEGIN "
		  . "PERFORM pg_sleep(60); RETURN NULL; END\$\$; "
		  . "CREATE CONSTRAINT TRIGGER later AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED "
		  . "FOR EACH ROW EXECUTE FUNCTION pg_temp.slow(); INSERT INTO slow VALUES (1)"),
	'failed|3',
	'one whose deferred trigger takes too long is given up');
like(error_of(), qr/handler_timeout/, '... with the reason');
is(with_handler("BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(0.01); END"),
	'succeeded|1', 'one that catches that, and then ends, is called');

# It may clean up for a second, and has its session for no longer. One call more may be made than are counted: that of
# a session in which handlers share a transaction.
my $begun = time();
is( with_handler(
		'PERFORM app.note(f); LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP'),
	'failed|3',
	'one that catches it for ever is given up');
cmp_ok(
	time() - $begun,
	'<',
	4 * (0.3 + 1) + 3 * $FeishuFlow::SLOW,
	'... and has had handler_timeout, and a second, for each call');
like(error_of(), qr/the session ended.*handler_timeout/, '... with the reason');
is(noted(), '', '... and without an effect');
$session->value("ALTER ROLE app SET statement_timeout = '20ms'");
is(with_handler("PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1)"),
	'failed|3', 'one that ends its session is given up');
like(error_of(), qr/the session ended/, '... with the reason');
is(with_handler("PERFORM pg_sleep(0.1); $note current_setting('statement_timeout'))"),
	'succeeded|1', 'statement_timeout of the role does not hold for its handlers');
is(noted(), '20ms', '... though the session has it as it has all settings of the role');
$session->value('ALTER ROLE app RESET ALL');
is(with_handler("PERFORM 1/0"), 'failed|3', 'one that throws is given up');
is(with_handler("PERFORM repeat('x', 1000000000) || repeat('x', 1000000000)"),
	'failed|3', 'one that asks for too much memory is given up');

$session->value('CREATE ROLE guise; GRANT guise TO app; ALTER ROLE app SET role = guise');
$session->value(
	"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
is(with_handler("PERFORM app.note(f)"), 'succeeded|1', 'a role that becomes another at login');
is(noted(), 'app', '... is itself in its handlers');
$session->value('ALTER ROLE app RESET ALL');

# Somebody keeps the row of a handler locked for which no session can be had: nobody else waits for that.
$session->value(
	'CREATE ROLE locked LOGIN; GRANT ALL ON SCHEMA app TO locked; GRANT ALL ON app.journal, app.journal_n_seq TO locked'
);
my $locked = FeishuFlow::Session->new($node, user => 'locked');
$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($locked, on_end => 'app.note');
$node->append_conf('postgresql.conf', "feishu_flow.retry_base_delay = '200ms'");
$node->reload;
$session->value(
	'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO app, other, third');
$locked->value("SELECT feishu.cancel_flow($id)");
$locked->value("BEGIN; SELECT feishu.retry_flow($id)");
$session->value("SELECT feishu.resume_server('feishu')");
my ($sent, $until) = (0, time() + 1);

while (time() < $until)
{
	$next = enqueue($app);
	$sent += $app->value("SELECT count(feishu.wait_flow($next, '10 s'))");
}
cmp_ok($sent, '>', 5, 'who has locked a flow whose handler cannot be called holds up no flow');
$locked->value('ROLLBACK');
is(handled($id), 'failed|3', '... and it is given up then');
$node->append_conf('postgresql.conf', "feishu_flow.retry_base_delay = '20ms'");
$node->reload;
$session->value('GRANT CONNECT ON DATABASE postgres TO PUBLIC');

# One that hangs, and flows and handlers of others meanwhile.
$node->append_conf('postgresql.conf', "feishu_flow.handler_timeout = '1min'");
$node->reload;
$id = enqueue($app, on_end => function("PERFORM pg_sleep(600)"));
until_true($session, 'it hangs', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
$next = enqueue($app);
is($app->value("SELECT feishu.wait_flow($next) IS NOT NULL"), 't', 'a handler that hangs holds up no flow of its role');
$foreign = enqueue($other, on_end => 'app.note');
is(handled($foreign), 'succeeded|1', '... and no handler of another role');
like(
	$session->value("SELECT query FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
	qr/^handler app\.f\d+ of flow $id$/,
	'... and pg_stat_activity says which it is');
# a third role has to have the session that another does not use
my $third = FeishuFlow::Session->new($node, user => 'third');
$foreign = enqueue($third, on_end => 'app.note');
is(handled($foreign), 'succeeded|1', '... and of a third, where there are two sessions');
is($session->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'"),
	'2', '... and no more');
is($session->value("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
	't', 'it is cancelled by hand');
until_true(
	$session,
	'that is an attempt',
	"SELECT on_end_attempts >= 1 AND on_end_error ~ 'cancel' FROM feishu.flows WHERE id = $id");
pass('... which is an attempt that failed');
$app->value(
	"CREATE OR REPLACE FUNCTION " . look($session, $id, 'on_end') . "(f feishu.flows) RETURNS void LANGUAGE sql AS ''");
$session->value("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
like(handled($id), qr/^succeeded\|[23]$/, '... and one that was replaced meanwhile is called as it is now');

# Three roles that always have handlers, and two sessions. They end at once, so that all wait together.
$session->value('TRUNCATE app.journal; CREATE FUNCTION app.slowly(f feishu.flows) RETURNS void LANGUAGE sql '
	  . "AS 'SELECT pg_sleep(0.02); SELECT app.note(f)'");
$session->value("SELECT feishu.pause_server('feishu')");
my %sessions = (app => $app, other => $other, third => $third);
enqueue_many($sessions{$_}, 1, 50, on_end => 'app.slowly') foreach sort keys %sessions;
$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");
until_true($session, 'all were called', 'SELECT count(*) = 150 FROM app.journal');
is( $session->value(
			'SELECT string_agg(what || count, \' \' ORDER BY what) '
		  . 'FROM (SELECT what, count(DISTINCT id) FROM app.journal GROUP BY what) s'),
	'app50 other50 third50',
	'more roles than sessions have theirs called');
is( $session->value(
			'SELECT bool_and(first < 75 AND last > 75) FROM (SELECT min(place) AS first, max(place) AS last '
		  . 'FROM (SELECT what, row_number() OVER (ORDER BY n) AS place FROM app.journal) j GROUP BY what) s'),
	't',
	'... in turn');

done_testing();
