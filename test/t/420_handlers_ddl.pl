
# Sessions for handlers leave for DDL and shutdown, copies of a database call none, and what befalls function or role
# between enqueue and end is told.

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
max_prepared_transactions = 5
restart_after_crash = on
CONF
$node->safe_psql('postgres', 'CREATE DATABASE work; CREATE ROLE app LOGIN');
my $maintenance = FeishuFlow::Session->new($node);
my ($session, $app, $id);

# A database with the extension and a journal, to which we are connected.
sub open_work
{
	create_server($node, 'feishu', { base_url => $mock->url }, undef, 'work');
	$node->safe_psql('work', <<'SQL');
DROP TABLE IF EXISTS public.journal;
CREATE TABLE public.journal (n serial, id bigint, what text);
GRANT ALL ON public.journal, public.journal_n_seq TO PUBLIC;
CREATE FUNCTION public.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO public.journal (id, what) VALUES ((f).id, current_user)$$;
CREATE FUNCTION public.hang(f feishu.flows) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
SQL
	connect_work();
	return;
}

sub connect_work
{
	$session = FeishuFlow::Session->new($node, database => 'work');
	$app = FeishuFlow::Session->new($node, database => 'work', user => 'app');
	return;
}

sub close_work
{
	$_->quit foreach $session, $app;
	return;
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

sub hang
{
	$id = enqueue($app, on_end => 'public.hang');
	until_true($maintenance, 'it hangs', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	return;
}

# Has what hangs, and would when it is called again, called.
sub let_go
{
	my $set = "FUNCTION public.hang(f feishu.flows) RETURNS void LANGUAGE sql AS";
	$session->value("CREATE OR REPLACE $set 'SELECT public.note(f)'");
	$session->value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	handled($id);
	$session->value("CREATE OR REPLACE $set 'SELECT pg_sleep(600)'");
	return;
}

# A statement that wants the database, or something in it, for itself.
sub is_quick
{
	my ($asked, $sql, $name) = @_;
	my $result = $asked->ask($sql);
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	cmp_ok($result->{seconds}, '<', 5 * $FeishuFlow::SLOW, '... soon');
	return;
}

open_work();

# ---- DDL on the database ----

foreach my $case ([ 'an idle session', sub { $id = enqueue($app, on_end => 'public.note'); handled($id); } ],
	[ 'a handler that hangs', \&hang ])
{
	my ($name, $prepare) = @$case;
	$prepare->();
	close_work();
	is_quick(
		$maintenance,
		'ALTER DATABASE work RENAME TO work2; ALTER DATABASE work2 RENAME TO work',
		"$name leaves for ALTER DATABASE");
	connect_work();
	let_go();
	$prepare->();
	close_work();
	is_quick($maintenance, 'CREATE DATABASE copy TEMPLATE work', "$name leaves for a copy of the database");
	connect_work();
	let_go();
	$maintenance->value('DROP DATABASE copy');
	$prepare->();
	is_quick($session, 'DROP EXTENSION feishu_flow CASCADE', "$name leaves for DROP EXTENSION");
	until_true($maintenance, 'it has left',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
	close_work();
	open_work();
	$prepare->();
	like(look($session, $id, "coalesce(on_end_error, 'none')"),
		qr/^none$/, '... and handlers are called when it is there again');
	close_work();
	is_quick($maintenance, 'DROP DATABASE work', "$name leaves for DROP DATABASE");
	$maintenance->value('CREATE DATABASE work');
	open_work();
}

# ---- a copy ----

$session->value("ALTER ROLE app NOSUPERUSER");
$id = enqueue($app, on_end => 'public.note', run_at => \"now() + interval '1 hour'");
my $ended = enqueue($app, on_end => 'public.hang');
until_true($maintenance, 'it hangs', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
my $waits = enqueue($app, on_end => 'public.note');
until_ended($session, "id = $waits");
close_work();
$maintenance->value('CREATE DATABASE copy TEMPLATE work');
my $copy = FeishuFlow::Session->new($node, database => 'copy');
until_true($copy, 'the copy is known for one', "SELECT state = 'cancelled' FROM feishu.flows WHERE id = $id");
is( $copy->value("SELECT string_agg(coalesce(on_end_state, 'none'), ' ' ORDER BY id) FROM feishu.flows"),
	'none failed failed',
	'handlers of a copy are not called');
like($copy->value("SELECT on_end_error FROM feishu.flows WHERE id = $waits"), qr/copied/, '... which says why');
is($copy->value('SELECT count(*) FROM public.journal'), 0, '... and have no effect');
$copy->quit;
$maintenance->value('DROP DATABASE copy');
connect_work();
$session->value(
	'CREATE OR REPLACE FUNCTION public.hang(f feishu.flows) RETURNS void LANGUAGE sql AS $$SELECT public.note(f)$$');
$session->value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
like(handled($waits), qr/^succeeded/, '... those of the original are');
is( $session->value('SELECT string_agg(id::text, \' \' ORDER BY n) FROM public.journal'),
	"$ended $waits",
	'... in the order of the ends');

# ---- between enqueue and end ----

# Queues a flow, does something before it is sent, and returns what became of its handler.
sub meanwhile
{
	my ($sql, $on_end, $who) = @_;
	$session->value("SELECT feishu.pause_server('feishu')");
	$id = enqueue($who // $app, on_end => $on_end // 'public.mine');
	$session->value($sql);
	$session->value("SELECT feishu.resume_server('feishu')");
	my $what = handled($id);
	note(look($session, $id, 'on_end_error'));
	return $what;
}

my $mine = 'FUNCTION public.mine(f feishu.flows) RETURNS void LANGUAGE sql AS';
$session->value("CREATE $mine 'SELECT public.note(f)'");
is(meanwhile("CREATE OR REPLACE $mine \$\$INSERT INTO public.journal (id, what) VALUES ((f).id, 'new')\$\$"),
	'succeeded|1', 'a function that is replaced');
is($session->value("SELECT what FROM public.journal WHERE id = $id"), 'new', '... is called as it is then');
is(meanwhile('ALTER FUNCTION public.mine RENAME TO yours'), 'failed|3', 'a function that is renamed is not found');
like(
	look($session, $id, 'on_end_error'),
	qr/function public.mine\(feishu.flows\) does not exist/,
	'... and that is told');
$session->value('ALTER FUNCTION public.yours RENAME TO mine');
is($session->value("SELECT feishu.retry_handler($id)"), 't', '... until it is there again');
is(handled($id), 'succeeded|1', '... and retried');
is(meanwhile('DROP FUNCTION public.mine'), 'failed|3', 'a function that is dropped');
$session->value("CREATE $mine 'SELECT public.note(f)'");
is(meanwhile('REVOKE EXECUTE ON FUNCTION public.mine FROM PUBLIC'),
	'failed|3', 'a function that may not be executed any more');
$session->value('GRANT EXECUTE ON FUNCTION public.mine TO PUBLIC');
is(meanwhile('ALTER ROLE app RENAME TO renamed'), 'succeeded|1', 'a role that is renamed');
is($session->value("SELECT what FROM public.journal WHERE id = $id"), 'renamed', '... has its handlers called');
$session->value('ALTER ROLE renamed RENAME TO app');
$session->value(
	"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
is(meanwhile('REVOKE CONNECT ON DATABASE work FROM PUBLIC'), 'failed|3', 'a role that may not connect any more');
like(look($session, $id, 'on_end_error'), qr/may not connect/, '... and that is told');
$session->value('GRANT CONNECT ON DATABASE work TO PUBLIC');
is(meanwhile("ALTER ROLE app SET session_preload_libraries = 'nothing'"), 'failed|3',
	'a role that can have no session');
like(look($session, $id, 'on_end_error'), qr/could not start a session/, '... and that is told');
$session->value('ALTER ROLE app RESET ALL');
$session->value('CREATE ROLE short LOGIN');
my $short = FeishuFlow::Session->new($node, database => 'work', user => 'short');
is(meanwhile('DROP ROLE short', 'public.note', $short), 'failed|', 'a role that is dropped');
like(look($session, $id, 'on_end_error'), qr/no longer exists/, '... and that is told');
$id = enqueue($app, on_end => 'public.mine');
is(handled($id), 'succeeded|1', 'after all that a handler is called as ever');

# ---- two-phase commit ----

$id = $app->value('BEGIN; SELECT ' . enqueue_call(on_end => 'public.mine'));
$app->value("PREPARE TRANSACTION 'p'");
$session->value("COMMIT PREPARED 'p'");
is(handled($id), 'succeeded|1', 'a flow that was queued by a prepared transaction');
$id = enqueue($app, on_end => 'public.mine', run_at => \"now() + interval '1 hour'");
$app->value("BEGIN; SELECT feishu.cancel_flow($id); PREPARE TRANSACTION 'p'");
$session->value("COMMIT PREPARED 'p'");
is(handled($id), 'succeeded|1', 'one that was cancelled by a prepared transaction');

# ---- handlers that end the server ----

$session->value('CREATE ROLE root SUPERUSER LOGIN');
$session->value(q{CREATE FUNCTION public.crash(f feishu.flows) RETURNS void LANGUAGE plpgsql AS }
	  . q{$$BEGIN PERFORM public.note(f); COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID; sleep 10'; END$$});
my $root = FeishuFlow::Session->new($node, database => 'work', user => 'root');
$id = enqueue($root, on_end => 'public.crash');
wait_until(
	'the handler is given up',
	sub {
		my ($result, $out) =
		  $node->psql('work', "SELECT on_end_state, on_end_attempts FROM feishu.flows WHERE id = $id");
		return ($out // '') eq 'failed|3';
	});
pass('a handler that brings down the server is given up after its attempts');
connect_work();
$maintenance = FeishuFlow::Session->new($node);
like(look($session, $id, 'on_end_error'), qr/the session ended/, '... with the reason');
is($session->value("SELECT count(*) FROM public.journal WHERE id = $id"), 0, '... and without effect');

# ---- shutdown ----

$session->value(
	"CREATE OR REPLACE FUNCTION public.hang(f feishu.flows) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'");
hang();
my $begun = time();
$node->stop('fast');
cmp_ok(time() - $begun, '<', 10 * $FeishuFlow::SLOW, 'a fast shutdown does not wait for a handler');
$node->start;
connect_work();
$session->value(
	'CREATE OR REPLACE FUNCTION public.hang(f feishu.flows) RETURNS void LANGUAGE sql AS $$SELECT public.note(f)$$');
$session->value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
like(handled($id), qr/^succeeded/, '... and it is called after the start');

done_testing();
