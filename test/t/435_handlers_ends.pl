
# How ends of flows with a handler are numbered, whoever ends them, and what a handler may leave behind.

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
my $other = FeishuFlow::Session->new($node);
$session->value(<<'SQL');
CREATE TABLE public.journal (n serial, id bigint, what text);
CREATE FUNCTION public.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO public.journal (id, what) VALUES ((f).id, (f).state)$$;
SQL
my $later = \"now() + interval '1 hour'";
my $id;

sub handled
{
	my ($flow) = @_;
	until_true(
		$session,
		"the handler of flow $flow was called",
		"SELECT on_end_state IN ('succeeded', 'failed') FROM feishu.flows WHERE id = $flow");
	return look($session, $flow, 'on_end_state, on_end_attempts');
}

# ---- numbers ----

# What rewrites the table of the last number would lose one that is drawn meanwhile.
$id = enqueue($session, run_at => $later, on_end => 'public.note');
$other->value('BEGIN; LOCK TABLE feishu_internal.last_end');
is($session->ask("SET lock_timeout = '100ms'; SELECT feishu.cancel_flow($id)")->{sqlstate},
	'55P03', 'no number is drawn of a table that is being rewritten');
$other->value('COMMIT');
is($session->value("RESET lock_timeout; SELECT feishu.cancel_flow($id)"), 't', '... but afterwards');
is(handled($id), 'succeeded|1', '... and the handler is called');

# Who has looked at the queue holds a lock that DROP EXTENSION waits for.
$id = enqueue($session, run_at => $later, on_end => 'public.note');
$session->value('BEGIN; SELECT count(*) FROM feishu.flows');
$other->send('BEGIN; DROP EXTENSION feishu_flow CASCADE; ROLLBACK');
wait_until('it waits', sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_locks WHERE NOT granted') ne '0' });
is($session->ask("SELECT feishu.cancel_flow($id)")->{sqlstate},
	'00000', 'a flow with a handler is cancelled while a DROP EXTENSION waits');
$session->value('COMMIT');
is($other->result->{sqlstate}, '00000', '... which goes on then');
is(handled($id), 'succeeded|1', '... and the handler is called, as that was rolled back');

# ---- an upgrade ----

$session->value("ALTER SYSTEM SET feishu_flow.dispatch = off; SELECT pg_reload_conf()");
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
my $waits = enqueue($session, on_end => 'public.note');
$id = enqueue($session, run_at => $later, on_end => 'public.note');
my $system = $session->value('SELECT system_identifier FROM pg_control_system()');
$session->value("UPDATE feishu_internal.outbox SET system_identifier = 1; "
	  . "UPDATE feishu_internal.claim SET system_identifier = 1, major_version = 14");
is($session->value("SELECT feishu.cancel_flow($id)"),
	't', 'a flow is cancelled after an upgrade, before there is a dispatcher');
$session->value("ALTER SYSTEM SET feishu_flow.dispatch = on; SELECT pg_reload_conf()");
until_dispatcher($session);
is(handled($id), 'succeeded|1', '... and its handler is called');
is(handled($waits), 'succeeded|1', '... as that of one that was waiting');
is($session->value("SELECT count(*) FROM feishu_internal.claim WHERE system_identifier = $system"), 1, '... here');
$id = enqueue($session, run_at => $later, on_end => 'public.note');
$session->value("UPDATE feishu_internal.outbox SET system_identifier = 1 WHERE id = $id");
is($session->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow of another cluster is cancelled');
is(look($session, $id, 'on_end_state IS NULL'), 't', '... and its handler is called there, if anywhere');

# ---- what a handler may leave behind ----

sub sql_handler
{
	my ($name, $result, $body) = @_;
	$session->value(
			"CREATE FUNCTION public.$name(f feishu.flows) RETURNS $result LANGUAGE plpgsql AS \$body\$BEGIN $body; "
		  . "END\$body\$");
	return "public.$name";
}

$id = enqueue($session,
	on_end => sql_handler('leave', 'void', "EXECUTE 'EXPLAIN ANALYZE CREATE TEMP TABLE leftover AS SELECT 1'"));
is(handled($id), 'succeeded|1', 'a handler makes a temporary table by EXPLAIN ANALYZE');
$id = enqueue(
	$session,
	on_end => sql_handler(
		'find',
		'void',
		"INSERT INTO public.journal (id, what) VALUES ((f).id, "
		  . "coalesce(to_regclass('pg_temp.leftover')::text, 'nothing'))"));
handled($id);
is($session->value("SELECT what FROM public.journal WHERE id = $id"), 'nothing',
	'... and the next finds nothing of it');

$session->value('CREATE FUNCTION public.many(f feishu.flows) RETURNS SETOF text LANGUAGE sql '
	  . "AS \$\$SELECT repeat('x', 1000) || g FROM generate_series(1, 300000) g\$\$");
$id = enqueue($session, on_end => 'public.many');
is(handled($id), 'succeeded|1', 'a handler returns many rows');
my $pid = $session->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow handler'");
my ($most) = slurp_file("/proc/$pid/status") =~ /VmHWM:\s+(\d+) kB/;
cmp_ok($most, '<', 200_000, '... and its session does not keep them');

# What a trigger sets at the commit.
$session->value(<<'SQL');
CREATE ROLE member NOLOGIN;
CREATE FUNCTION public.set_late() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN SET work_mem = '1MB'; PERFORM set_config('lock_timeout', '7s', false); SET ROLE member; RETURN NULL; END$$;
CREATE TABLE public.late (id bigint);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.late DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION public.set_late();
SQL
my $settings = "concat_ws(',', current_user, current_setting('work_mem'), current_setting('lock_timeout'))";
$id = enqueue($session, on_end => sql_handler('insert_late', 'void', "INSERT INTO public.late VALUES ((f).id)"));
is(handled($id), 'succeeded|1', 'a handler has a deferred trigger that changes settings');
$id = enqueue($session,
	on_end => sql_handler('settings', 'void', "INSERT INTO public.journal (id, what) VALUES ((f).id, $settings)"));
is(handled($id), 'succeeded|1', '... and the next is called');
is($session->value("SELECT what FROM public.journal WHERE id = $id"), 'postgres,4MB,0', '... and finds nothing of it');
is($session->value('SELECT count(*) FROM public.late'), 1, '... and the row of the first is there');

# The statistics of a session that always has work.
my $busy = sql_handler('busy', 'void', 'INSERT INTO public.journal (id) VALUES ((f).id); PERFORM pg_sleep(0.1)');
$session->value('SELECT pg_stat_reset()');
my @ids = map { enqueue($session, on_end => $busy) } 1 .. 60;
until_true(
	$session,
	'what a session does is in the statistics',
	"SELECT n_tup_ins > 0 FROM pg_stat_all_tables WHERE relid = 'public.journal'::regclass");
isnt(look($session, $ids[-1], 'on_end_state'), 'succeeded', 'a session that always has work reports what it does');

done_testing;
