
# Ids of flows rise, whatever becomes of sessions and servers; to draw one leaves lastval() and currval() of the
# session alone, and nobody can set them back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster(
	'main',
	streaming => 1,
	conf => "max_prepared_transactions = 10\nrestart_after_crash = on\nautovacuum = off\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $last = 0;

# The next flow's id is above all that were seen here.
sub rises
{
	my ($name, $id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$id //= enqueue($session);
	cmp_ok($id, '>', $last, $name);
	$last = $id;
	return;
}

# ---- lastval() and currval() are the user's ----

$session->value(<<'SQL');
CREATE ROLE app LOGIN;
CREATE ROLE reader LOGIN IN ROLE pg_read_all_data;
CREATE TABLE by_row (id bigint GENERATED ALWAYS AS IDENTITY (START 700), status text);
CREATE TABLE by_statement (id bigint GENERATED ALWAYS AS IDENTITY (START 800), status text);
CREATE TABLE plain (status text);
CREATE SEQUENCE own START 900;
GRANT ALL ON ALL TABLES IN SCHEMA public TO app, reader;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app, reader;
CREATE TRIGGER queue_flow AFTER INSERT ON by_row FOR EACH ROW
    EXECUTE FUNCTION feishu.flow_trigger('app', 'flow', '{"_id": 1}', '{"order": "$.new.id"}');
CREATE TRIGGER queue_flow AFTER INSERT ON by_statement REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
    EXECUTE FUNCTION feishu.flow_trigger('app', 'flow', '{"_id": 1}', '{"orders": "$.new_rows[*].id"}');
CREATE TRIGGER queue_flow AFTER INSERT ON plain FOR EACH ROW
    EXECUTE FUNCTION feishu.flow_trigger('app', 'flow', '{"_id": 1}', '{}');
SQL
my $flows = $session->value('SELECT count(*) FROM feishu.flows');
foreach my $role (qw(postgres app reader))
{
	my $as = FeishuFlow::Session->new($node, user => $role);
	enqueue($as);
	fails_with($as, 'SELECT lastval()', '55000', "$role: after an enqueue there is no lastval() where there was none");
	$as->value("INSERT INTO plain VALUES ('submitted')");
	fails_with($as, 'SELECT lastval()', '55000', '... nor after one by a trigger');
	my $value = $as->value("SELECT nextval('own')");
	enqueue($as);
	is($as->value("SELECT lastval(), currval('own')"), "$value|$value", '... and what there was stays');
	$as->value('BEGIN; SELECT ' . enqueue_call() . '; ROLLBACK');
	is($as->value("SELECT lastval(), currval('own')"), "$value|$value", '... also when it is rolled back');

	foreach my $table (qw(by_row by_statement))
	{
		my $id = $as->value("INSERT INTO $table (status) VALUES ('submitted') RETURNING id");
		is($as->value("SELECT lastval(), currval('${table}_id_seq')"),
			"$id|$id", "... it is the id of the row whose trigger ($table) queues");
	}
	is($as->value("SELECT nextval('own')"), $value + 1, '... and the next one follows');
	$as->quit;
}
is($session->value('SELECT count(*) FROM feishu.flows') - $flows, 15, 'all of these queue');

# ---- nobody sets ids back ----

$session->value('CREATE ROLE clerk LOGIN IN ROLE pg_read_all_data, pg_write_all_data');
rises('a flow has an id');
my $clerk = FeishuFlow::Session->new($node, user => 'clerk');
is( $clerk->value(
		q{SELECT string_agg(setval(c.oid, 1)::text, '')
	FROM pg_class c JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass
	WHERE c.relkind = 'S' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'feishu_flow')}),
	'',
	'a member of pg_write_all_data finds no sequence to set');
$clerk->ask('UPDATE feishu_internal.last_id SET id = 0');
$clerk->ask('DELETE FROM feishu_internal.last_id');
fails_with($clerk, 'INSERT INTO feishu_internal.last_id VALUES (1000000)', '42501', '... and no table to write to');
fails_with($clerk, 'TRUNCATE feishu_internal.last_id', '42501', '... or to empty');
$session->value('VACUUM feishu_internal.last_id');
rises('... ids go on');
$clerk->quit;

# ---- who has drawn holds the lock by which the dispatcher looks for late rows ----

# the dispatcher locks all tables of the queue, now and then
my $holds =
	q{SELECT count(*) FROM pg_locks WHERE relation = 'feishu_internal.last_id'::regclass AND mode = 'RowExclusiveLock'}
  . q{ AND pid IS DISTINCT FROM (SELECT pid FROM pg_stat_activity }
  . q{WHERE backend_type = 'feishu_flow dispatcher' AND datname = current_database())};
my $other = FeishuFlow::Session->new($node);
$other->value('BEGIN; SAVEPOINT a; SELECT ' . enqueue_call());
is($session->value($holds), '1', 'who has drawn an id in a savepoint is known');
$other->value('RELEASE a; SAVEPOINT b; SELECT ' . enqueue_call() . '; ROLLBACK TO b');
is($session->value($holds), '1', '... after another is rolled back, too');
$other->value("PREPARE TRANSACTION 'drawn'");
is($session->value($holds), '1', '... and while it is prepared');
rises('ids go on meanwhile');
$session->value("COMMIT PREPARED 'drawn'");
is($session->value($holds), '0', '... and no longer when it has ended');

# ... a row of which nobody tells, in a transaction that others overtake
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
my $like = enqueue($session);
until_ended($session);
$other->value('BEGIN; SAVEPOINT a; SELECT ' . enqueue_call() . '; ROLLBACK TO a');
until_ended($session, 'id = ' . enqueue_unheard($session, $like));
# as a draw does, with the lock held
$other->value('LOCK TABLE feishu_internal.last_id IN ROW EXCLUSIVE MODE');
my $late = enqueue_unheard($other, $like, id => $session->value('BEGIN; SELECT ' . enqueue_call() . '; ROLLBACK'));
# (the poll that finds one of them has seen who holds the lock)
until_ended($session, 'id = ' . enqueue_unheard($session, $like)) foreach 1 .. 3;
$other->value('COMMIT');
until_ended($session, "id = $late");
is(look($session, $late, 'state'), 'succeeded', 'a row below later ones, of which nobody told, is found by the poll');
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '10min'");
$node->reload;

# ---- sessions at once ----

my $bench = pgbench_start(
	$node,
	'SELECT '
	  . enqueue_call()
	  . " AS first \\gset\nSELECT "
	  . enqueue_call()
	  . " AS second \\gset\n"
	  . "SELECT 1 / (:second > :first)::int;\n",
	'-c',
	'6',
	'-j',
	'2',
	'-t',
	'100');
ok($bench->finish, '6 sessions draw ids, which rise in each');
rises('... and go on', $session->value('SELECT max(id) FROM feishu.flows'));
rises('... and on');

# ---- the table is rewritten, frozen, changed by hand ----

foreach my $what ('VACUUM', 'VACUUM FULL', 'VACUUM FREEZE', 'ANALYZE')
{
	$session->value("$what feishu_internal.last_id");
	rises("ids go on after $what");
	is($session->value('SELECT count(*), max(id) FROM feishu_internal.last_id'),
		"1|$last", '... and the table has the last one');
}
$session->value('BEGIN; UPDATE feishu_internal.last_id SET id = 5; ROLLBACK');
rises('... after an UPDATE that was rolled back');
$session->value('UPDATE feishu_internal.last_id SET id = 5');
rises('... after one that sets it lower');
$session->value('VACUUM FULL feishu_internal.last_id');
rises('... and when that was vacuumed');
$other->value('BEGIN; UPDATE feishu_internal.last_id SET id = 7');
rises('... while one is under way');
$other->value('COMMIT');
rises('... and after it');
my $raised = $last + 1000;
$session->value("UPDATE feishu_internal.last_id SET id = $raised");
is(enqueue($session), $raised + 1, 'an UPDATE can raise it');
$last = $raised + 1;
rises('... for good');
$session->value('VACUUM FULL feishu_internal.last_id');
rises('... and after a VACUUM');

$session->value('DELETE FROM feishu_internal.last_id');
# a VACUUM leaves it to somebody's snapshot
wait_until(
	'the row is gone',
	sub {
		$session->value('VACUUM feishu_internal.last_id');
		return $session->value("SELECT pg_relation_size('feishu_internal.last_id')") eq '0';
	});
my $result = fails_with($session, 'SELECT ' . enqueue_call(), '55000', 'without its row no flow is queued');
is($result->{message}, 'could not assign an id to a flow', '... which is said');
like(
	$result->{hint},
	qr/TRUNCATE feishu_internal\.last_id; INSERT INTO feishu_internal\.last_id/,
	'... with how to mend it');
my $dispatcher = until_dispatcher($session);
$session->value("SELECT pg_terminate_backend($dispatcher)");
until_dispatcher($session, $dispatcher);
$session->value("TRUNCATE feishu_internal.last_id; INSERT INTO feishu_internal.last_id VALUES ($last)");
rises('... after that ids go on');
until_ended($session);
$session->value('BEGIN; ALTER TABLE feishu_internal.last_id ALTER id TYPE integer');
fails_with($session, 'SELECT ' . enqueue_call(), '55000', 'nor in a table that was altered');
$session->value('ROLLBACK');
$session->value('TRUNCATE feishu_internal.last_id; INSERT INTO feishu_internal.last_id VALUES (9223372036854775807)');
fails_with($session, 'SELECT ' . enqueue_call(), '55000', 'there is none above the highest bigint');
$session->value("TRUNCATE feishu_internal.last_id; INSERT INTO feishu_internal.last_id VALUES ($last)");
rises('... which can be mended as well');

# ---- crashes ----

foreach my $before (
	'SELECT 1', 'CHECKPOINT',
	'VACUUM FULL feishu_internal.last_id',
	'UPDATE feishu_internal.last_id SET id = id + 1')
{
	$session->value($before);
	$other->value('BEGIN; SELECT ' . enqueue_call());
	rises("ids before a crash, after $before") foreach 1 .. 3;
	kill_postmaster($node);
	$node->start;
	$_->quit foreach $session, $other;
	$_ = FeishuFlow::Session->new($node) foreach $session, $other;
	is($session->value('SELECT max(id) FROM feishu.flows'), $last, '... those of committed flows are there after it');
	rises('... and ids go on');
}

# ---- a standby, a copy ----

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
rises('ids are drawn with a standby') foreach 1 .. 50;
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres', 'SELECT id FROM feishu_internal.last_id'), $last, '... which has the last one');
$_->quit foreach $session, $other;
$node->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
my $copy = FeishuFlow::Session->new($node, database => 'copy');
is(enqueue($copy), $last + 1, 'a copy of the database goes on with ids as well');
$copy->quit;
kill_postmaster($node);
$standby->promote;
$session = FeishuFlow::Session->new($standby);
rises('after a failover, ids go on');

# ---- where the extension is created, at once ----

# what is made in a transaction is written at its end then, and not logged
$session->quit;
$standby->append_conf('postgresql.conf', "wal_level = minimal\nmax_wal_senders = 0\n");
$standby->restart;
$standby->safe_psql('postgres', 'CREATE DATABASE fresh');
my $fresh = FeishuFlow::Session->new($standby, database => 'fresh');
my $url = $mock->url;
$fresh->value(<<SQL);
BEGIN;
CREATE EXTENSION feishu_flow;
CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '$url');
CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_mock', app_secret 'mock-secret');
SQL
is(enqueue($fresh), '1', 'the transaction that creates the extension queues the first flow');
$fresh->value('COMMIT');
kill_postmaster($standby);
$standby->start;
$fresh->quit;
$fresh = FeishuFlow::Session->new($standby, database => 'fresh');
is(enqueue($fresh), '2', '... and the next one follows, after a crash, too');
until_ended($fresh);
is(ends($fresh), 'succeeded 2', '... both are sent');
$fresh->quit;

done_testing();
