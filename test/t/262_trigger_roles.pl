
# A flow by trigger is queued in the name of the role that ran the statement
# which made the change: whenever the trigger fires, and whoever it is run as.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

# Nothing is to be sent.
my $node = queue_cluster('main', conf => "feishu_flow.dispatch = off\nmax_prepared_transactions = 5\n");
create_server($node, 'feishu', { base_url => 'http://127.0.0.1:1' });
my $session = FeishuFlow::Session->new($node);
my $app = "OPTIONS (app_id 'cli_x', app_secret 'x')";
$session->value(<<"SQL");
DROP USER MAPPING FOR PUBLIC SERVER feishu;
CREATE ROLE writer LOGIN; CREATE ROLE other LOGIN; CREATE ROLE owner LOGIN; CREATE ROLE definer;
CREATE ROLE pool LOGIN NOINHERIT;
GRANT writer, other TO pool;
GRANT CREATE ON SCHEMA public TO owner, definer;
CREATE USER MAPPING FOR writer SERVER feishu $app;
CREATE USER MAPPING FOR other SERVER feishu $app;
CREATE USER MAPPING FOR definer SERVER feishu $app;
SQL

# Tables of somebody without credentials, with a trigger of each kind; the
# flow's id is the trigger's name.
my $operator = '{"_id": 1}';

sub triggers
{
	my ($table) = @_;
	return join ';', (
		map {
				"CREATE CONSTRAINT TRIGGER $_->[0] AFTER INSERT OR UPDATE OR DELETE ON $table $_->[1] FOR EACH ROW "
			  . "EXECUTE FUNCTION feishu.flow_trigger('app', '$_->[0]', '$operator', '{\"op\": \"\$.op\"}')"
		} ([ 'deferred', 'DEFERRABLE INITIALLY DEFERRED' ], [ 'delayable', 'DEFERRABLE' ])),
	  "CREATE TRIGGER atonce AFTER INSERT OR UPDATE OR DELETE ON $table FOR EACH ROW "
	  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'atonce', '$operator', '{\"op\": \"\$.op\"}')",
	  "CREATE TRIGGER statement AFTER INSERT OR UPDATE OR DELETE ON $table FOR EACH STATEMENT "
	  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'statement', '$operator', '{\"op\": \"\$.op\"}')";
}

FeishuFlow::Session->new($node, user => 'owner')
  ->value('CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE plain (id int PRIMARY KEY, v int);'
	  . 'CREATE TABLE child (id int, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);'
	  . 'CREATE TABLE loose (id int, parent int REFERENCES parent ON DELETE SET NULL);'
	  . 'CREATE TABLE grandparent (id int PRIMARY KEY); '
	  . 'CREATE TABLE middle (id int PRIMARY KEY REFERENCES grandparent ON DELETE CASCADE);'
	  . 'CREATE TABLE grandchild (id int REFERENCES middle ON DELETE CASCADE) PARTITION BY RANGE (id);'
	  . 'CREATE TABLE grandchild_1 PARTITION OF grandchild FOR VALUES FROM (0) TO (1000);'
	  . 'GRANT ALL ON parent, plain, child, grandparent TO PUBLIC;'
	  . join(';', map { triggers($_) } qw(plain child loose))
	  . ";CREATE TRIGGER atonce AFTER DELETE ON grandchild FOR EACH ROW "
	  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'atonce', '$operator', '{\"op\": \"\$.op\"}')");
$session->value(<<'SQL');
CREATE FUNCTION definers_insert(int) RETURNS int LANGUAGE sql SECURITY DEFINER AS
	'INSERT INTO public.plain VALUES ($1) RETURNING id';
CREATE FUNCTION definers_delete(int) RETURNS int LANGUAGE sql SECURITY DEFINER AS
	'DELETE FROM public.parent WHERE id = $1 RETURNING id';
ALTER FUNCTION definers_insert OWNER TO definer;
ALTER FUNCTION definers_delete OWNER TO definer;
SQL
my $pool = FeishuFlow::Session->new($node, user => 'pool');

# The flows of a script, as "trigger:OP:role", each with how many there are.
sub queues
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->value('DELETE FROM feishu_internal.outbox');
	succeeds($pool, "$sql; RESET ROLE", $name);
	is( $session->value(
				"SELECT string_agg(f, ' ' ORDER BY f COLLATE \"C\") "
			  . "FROM (SELECT concat_ws(':', flow_id, params ->> 'op', role, NULLIF(count(*), 1)) AS f"
			  . " FROM feishu.flows GROUP BY flow_id, params, role) AS s"),
		$expected,
		"... $name: in whose name");
	return;
}

sub each_kind
{
	my ($what) = @_;
	return join ' ', map { "$_:$what" } qw(atonce deferred delayable statement);
}

queues('SET ROLE writer; INSERT INTO plain VALUES (1)', each_kind('INSERT:writer'), 'a statement of its own');
queues(
	'BEGIN; SET ROLE writer; INSERT INTO plain VALUES (2); SET ROLE other; COMMIT',
	each_kind('INSERT:writer'),
	'another role commits');
queues(
	'BEGIN; SET ROLE writer; INSERT INTO plain VALUES (3); SET ROLE other; SET CONSTRAINTS ALL IMMEDIATE; '
	  . 'SET ROLE writer; COMMIT',
	each_kind('INSERT:writer'),
	'another role sets constraints immediate');
queues(
	'BEGIN; SET ROLE writer; UPDATE plain SET v = 1 WHERE id = 3; SAVEPOINT s; SET ROLE other; '
	  . 'DELETE FROM plain WHERE id = 3; RELEASE s; RESET ROLE; COMMIT',
	join(' ', map { ("$_:DELETE:other", "$_:UPDATE:writer") } qw(atonce deferred delayable statement)),
	'two roles change one row in turn');
queues('SET ROLE writer; SELECT definers_insert(5)', each_kind('INSERT:definer'), 'a SECURITY DEFINER function');
queues(
	'SET ROLE writer; INSERT INTO plain SELECT definers_insert(6) + 1',
	join(' ', map { ("$_:INSERT:definer", "$_:INSERT:writer") } qw(atonce deferred delayable statement)),
	'a statement with such a function in it');
queues(
	'BEGIN; SET ROLE writer; INSERT INTO plain SELECT definers_insert(n) + 10 FROM generate_series(10, 12) AS n; '
	  . 'SET ROLE other; COMMIT',
	join(
		' ',
		map {
			$_ eq 'statement'
			  ? ("$_:INSERT:definer:3", "$_:INSERT:writer")
			  : ("$_:INSERT:definer:3", "$_:INSERT:writer:3")
		} qw(atonce deferred delayable statement)),
	'... once a row');

# ... more of them than one looks through in turn
queues(
	q{DO $$BEGIN FOR i IN 1..90 LOOP PERFORM set_config('role', CASE WHEN i % 3 = 0 THEN 'writer' }
	  . q{ELSE 'other' END, false); INSERT INTO plain VALUES (100 + i); END LOOP; END$$},
	join(' ', map { ("$_:INSERT:other:60", "$_:INSERT:writer:30") } qw(atonce deferred delayable statement)),
	'roles that take turns');

# What only looks as if it wrote is nobody's change.
queues(
	'BEGIN; SET ROLE writer; DO $$BEGIN EXECUTE \'EXPLAIN INSERT INTO plain VALUES (901)\'; END$$; SET ROLE other; '
	  . 'INSERT INTO plain VALUES (902); COMMIT',
	each_kind('INSERT:other'),
	'one role has a statement explained, another runs one');
queues(
	'BEGIN; SET ROLE writer; DO $$BEGIN INSERT INTO loose VALUES (1); '
	  . 'EXCEPTION WHEN insufficient_privilege THEN END$$; SET ROLE other; INSERT INTO plain VALUES (903); COMMIT',
	each_kind('INSERT:other'),
	'one role may not run a statement, another runs one');

# ... nor is what an error has undone.
my $n = 903;
foreach my $error (
	'INSERT INTO loose VALUES (1)',
	'INSERT INTO plain VALUES (900, 1/0)',
	'INSERT INTO nowhere VALUES (1)',
	"COPY plain FROM '/nowhere'")
{
	$session->value('DELETE FROM feishu_internal.outbox');
	$n++;
	$pool->ask(
		"BEGIN; SET ROLE writer; SAVEPOINT s; $error; ROLLBACK TO s; SET ROLE other; INSERT INTO plain VALUES ($n); "
		  . "COMMIT; RESET ROLE");
	is( $session->value("SELECT string_agg(flow_id || ' ' || role, ', ' ORDER BY flow_id) FROM feishu.flows"),
		'atonce other, deferred other, delayable other, statement other',
		"one role has an error, another runs a statement: $error");
}

# ---- what foreign keys do ----

my $rows =
	'SET ROLE owner; INSERT INTO parent SELECT generate_series(1, 9); '
  . 'INSERT INTO child SELECT n, n FROM generate_series(1, 9) AS n; '
  . 'INSERT INTO loose SELECT n, n FROM generate_series(1, 9) AS n;'
  . 'INSERT INTO grandparent VALUES (1), (2); INSERT INTO middle VALUES (1), (2); '
  . 'INSERT INTO grandchild VALUES (1), (1), (2);';
$session->value("SET session_replication_role = replica; $rows RESET ROLE; RESET session_replication_role");
my $cascade = sub {
	my ($who) = @_;
	return join ' ', map { ("$_:DELETE:$who", "$_:UPDATE:$who") } qw(atonce deferred delayable statement);
};
queues('SET ROLE writer; DELETE FROM parent WHERE id = 1', $cascade->('writer'), 'DELETE of what others refer to');
queues('BEGIN; SET ROLE writer; DELETE FROM parent WHERE id = 2; SET ROLE other; COMMIT',
	$cascade->('writer'), '... and another role commits');
queues('SET ROLE writer; SELECT definers_delete(3)', $cascade->('definer'), '... by a SECURITY DEFINER function');
queues('SET ROLE writer; WITH gone AS (DELETE FROM parent WHERE id = 4 RETURNING id) SELECT * FROM gone',
	$cascade->('writer'), '... in a WITH');
queues('SET ROLE writer; DELETE FROM grandparent', 'atonce:DELETE:writer:3', '... over two tables, into a partition');
$session->value('CREATE TABLE chain (id int); GRANT ALL ON chain TO PUBLIC; '
	  . 'CREATE FUNCTION chained() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS'
	  . ' $$BEGIN DELETE FROM public.parent WHERE id = OLD.id; RETURN NULL; END$$; '
	  . 'ALTER FUNCTION chained OWNER TO definer;'
	  . 'CREATE TRIGGER chained AFTER DELETE ON chain FOR EACH ROW EXECUTE FUNCTION chained(); '
	  . 'INSERT INTO chain VALUES (7)');
queues('SET ROLE writer; DELETE FROM chain', $cascade->('definer'), '... by a trigger of another role');
queues(
	'SET ROLE other; DO $$BEGIN BEGIN DELETE FROM parent WHERE id = 5; RAISE division_by_zero; '
	  . 'EXCEPTION WHEN division_by_zero THEN END; DELETE FROM parent WHERE id = 6; END$$',
	$cascade->('other'),
	'... after an error that was caught');

$session->value('CREATE TABLE noted (id int); GRANT ALL ON noted TO PUBLIC; '
	  . 'CREATE FUNCTION note_first() RETURNS trigger LANGUAGE plpgsql AS'
	  . ' $$BEGIN INSERT INTO public.noted VALUES (OLD.id); RETURN NULL; END$$;'
	  . 'CREATE TRIGGER "A first one" AFTER DELETE ON parent FOR EACH ROW EXECUTE FUNCTION note_first()');
queues('SET ROLE writer; DELETE FROM parent WHERE id = 8', $cascade->('writer'),
	'... after a trigger that writes, too');

# ---- COPY ----

$session->value('DELETE FROM feishu_internal.outbox');
$session->value("COPY (SELECT 40) TO '" . $node->data_dir . "/copied'; GRANT pg_read_server_files TO writer");
queues(
	"BEGIN; SET ROLE other; UPDATE plain SET v = 2 WHERE id = 1; SET ROLE writer; COPY plain (id) FROM '"
	  . $node->data_dir
	  . "/copied'; SET ROLE other; COMMIT",
	join(' ', map { ("$_:INSERT:writer", "$_:UPDATE:other") } qw(atonce deferred delayable statement)),
	'COPY');

# ---- whose code is called ----

# The search_path of who commits is not that of the function that made the change.
$session->value(<<"SQL");
ALTER ROLE definer LOGIN;
CREATE SCHEMA lure AUTHORIZATION writer;
GRANT USAGE ON SCHEMA lure TO PUBLIC;
CREATE FUNCTION lure.note(feishu.flows) RETURNS void LANGUAGE sql AS '';
ALTER FUNCTION lure.note OWNER TO writer;
CREATE FUNCTION public.note(feishu.flows) RETURNS void LANGUAGE sql AS '';
CREATE TABLE noting (id int);
GRANT ALL ON noting TO definer;
CREATE FUNCTION definers_note() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS
	'INSERT INTO noting VALUES (1)';
ALTER FUNCTION definers_note OWNER TO definer;
SQL

sub trigger_with_handler
{
	my ($table, $on_end, $event) = @_;
	$session->value("DROP TRIGGER IF EXISTS handled ON $table; "
		  . "CREATE CONSTRAINT TRIGGER handled AFTER $event ON $table DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
		  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'f', '$operator', '', '{\"on_end\": \"$on_end\"}')");
	return;
}

my $lured = 'SET ROLE writer; SET search_path = lure, public; SELECT definers_note(); RESET ROLE';
trigger_with_handler('noting', 'note', 'INSERT');
fails_with(
	$pool, $lured, '22023', 'a deferred trigger does not look for a handler in the search_path of who commits',
	message => qr/must name the function with its schema: "note"/,
	hint => qr/public\.order_approved/);
trigger_with_handler('noting', 'public.note', 'INSERT');
succeeds($pool, $lured, '... but calls the one that it names');
is($session->value("SELECT role, on_end FROM feishu.flows WHERE on_end IS NOT NULL"),
	'definer|public.note', '... as who made the change');
$pool->value('RESET search_path');

# Who deletes a row does not let the owner of a table that refers to it run code: PostgreSQL does, before 18.
$session->value('DELETE FROM feishu_internal.outbox');
$session->value('DROP TRIGGER deferred ON child; DROP TRIGGER delayable ON child; DROP TRIGGER atonce ON child; '
	  . 'DROP TRIGGER statement ON child');
trigger_with_handler('child', 'public.note', 'DELETE');
my $delete = 'SET ROLE writer; DELETE FROM parent WHERE id = 9; RESET ROLE';
if ($session->value('SHOW server_version_num') >= 180000)
{
	fails_with(
		$pool, $delete, '42501', 'the action of a foreign key has no handler called as who deletes',
		message => qr/trigger "handled" cannot have a handler called as role "writer"/,
		detail => qr/run as role "owner"/);
	$session->value('GRANT writer TO owner');
}
succeeds($pool, $delete, 'the action of a foreign key has a handler if its table\'s owner may act so anyway');
is($session->value('SELECT role, on_end FROM feishu.flows WHERE on_end IS NOT NULL'),
	'writer|public.note', '... called as who deletes');

# ---- many statements in a transaction ----

$session->value('CREATE TABLE known (id int PRIMARY KEY); INSERT INTO known VALUES (1); '
	  . 'CREATE TABLE many (known int REFERENCES known)');
is( $session->value(
			"BEGIN; DO 'BEGIN FOR i IN 1..20000 LOOP INSERT INTO many VALUES (1); END LOOP; END';"
		  . "SELECT sum(total_bytes) < 65536 FROM pg_backend_memory_contexts WHERE name = 'TopTransactionContext'"),
	't',
	'statements of one role take no memory each');
$session->value('COMMIT');

# ---- a session that loads the library late ----

my $late = FeishuFlow->can('new_cluster')->('late', preload => 0);
create_server($late, 'feishu', { base_url => 'http://127.0.0.1:1' });
$session = FeishuFlow::Session->new($late);
$session->value('CREATE TABLE plain (id int); CREATE TABLE atonce (id int);'
	  . triggers('plain')
	  . "; DROP TRIGGER delayable ON plain; DROP TRIGGER atonce ON plain; DROP TRIGGER statement ON plain;"
	  . "CREATE TRIGGER t AFTER INSERT OR UPDATE ON atonce FOR EACH ROW "
	  . "EXECUTE FUNCTION feishu.flow_trigger('app', 't', '$operator')");
if ($session->value('SHOW server_version_num') < 180000)
{
	fails_with(
		FeishuFlow::Session->new($late), 'INSERT INTO plain VALUES (1)', '55000',
		'a deferred trigger for a statement that was not watched',
		message => qr/could not determine which role made the change/,
		hint => qr/without DEFERRABLE/);
}
else
{
	$session->value("CREATE ROLE owner; CREATE TABLE parent (id int PRIMARY KEY); "
		  . "CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE); ALTER TABLE child OWNER TO owner;"
		  . "GRANT ALL ON parent TO owner; CREATE TRIGGER t AFTER DELETE ON child FOR EACH ROW "
		  . "EXECUTE FUNCTION feishu.flow_trigger('app', 't', '$operator');"
		  . "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)");
	fails_with(
		FeishuFlow::Session->new($late), 'DELETE FROM parent', '55000',
		'the action of a foreign key for a statement that was not watched',
		message => qr/could not determine which role made the change/,
		hint => qr/shared_preload_libraries/);
}
my $fresh = FeishuFlow::Session->new($late);
succeeds($fresh, 'INSERT INTO atonce VALUES (1)', 'a trigger that is not deferrable needs no watching');
succeeds($fresh, 'INSERT INTO plain VALUES (1)', '... and a deferred one works once the library is there');
is($session->value('SELECT count(*) FROM feishu.flows'), '2', '... both queue their flows');

done_testing();
