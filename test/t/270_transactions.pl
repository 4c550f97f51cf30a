
# A flow is part of its transaction: savepoints, two-phase commit, long and late
# ones, exceptions, isolation levels.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "max_prepared_transactions = 10\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($node);

# What arrives must be these numbers, and no others.  They come by what the commit itself says, and are waited for
# first: a later flow has the dispatcher look at all of the queue, and so proves that nothing else is sent.
my $marker = 1000;

# Waits until so many have come; returns how many there are then, or that they have not.
sub heard_of
{
	my ($count) = @_;
	return eval { $mock->wait_for($count, kind => 'execute', timeout => 10 * $FeishuFlow::SLOW) } // 'not all are';
}

sub arrived
{
	my ($name, @numbers) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $heard = heard_of(scalar(@numbers));
	my $id = enqueue($other, params => '{"n": ' . ++$marker . '}');
	$other->value("SELECT feishu.wait_flow($id)");
	until_ended($other);
	is("$heard heard of: " . join(' ', sort { $a <=> $b } numbers($mock)),
		@numbers . ' heard of: ' . join(' ', @numbers, $marker), $name);
	$mock->mark;
	return;
}

sub queue { return 'SELECT ' . enqueue_call(params => "{\"n\": $_[0]}") . ';'; }

# ---- commit and rollback ----

$session->value('BEGIN;' . queue(1) . queue(2) . 'COMMIT');
arrived('what is committed is sent', 1, 2);
$session->value('BEGIN;' . queue(3) . queue(4) . 'ROLLBACK');
arrived('what is rolled back is not');
fails_with($session, 'BEGIN;' . queue(5) . 'SELECT 1/0; COMMIT', '22012', 'an error in the transaction');
$session->value('ROLLBACK');
arrived('... nothing is sent');
$session->ask(queue(6) . 'SELECT 1/0');
arrived('statements of their own: those before an error are sent', 6);
fails_with($session, 'SELECT 1 / (' . enqueue_call(params => '{"n": 7}') . ' * 0)',
	'22012', 'an error in the same statement');
arrived('... nothing is sent');
$session->value('BEGIN;' . queue(8) . 'COMMIT AND CHAIN;' . queue(9) . 'ROLLBACK AND CHAIN;' . queue(10) . 'COMMIT');
arrived('COMMIT AND CHAIN, ROLLBACK AND CHAIN', 8, 10);

# nothing arrives before the commit
$session->value('BEGIN;' . queue(11));
my $probe = enqueue($other, params => '{"n": 12}');
$other->value("SELECT feishu.wait_flow($probe)");
is(join(' ', numbers($mock)), '12', 'nothing is sent before the commit');
$session->value('COMMIT');
arrived('... but after it, though its id is lower', 11, 12);

my $victim = FeishuFlow::Session->new($node);
$victim->value('BEGIN;' . queue(13));
$session->value('SELECT pg_terminate_backend(' . $victim->pid . ', 10000)');
arrived('a session that is terminated has sent nothing');

# ---- savepoints ----

$session->value('BEGIN; SAVEPOINT a;' . queue(20) . 'RELEASE a;' . queue(21) . 'COMMIT');
arrived('a savepoint that is released', 20, 21);
$session->value('BEGIN;' . queue(22) . 'SAVEPOINT a;' . queue(23) . 'ROLLBACK TO a;' . queue(24) . 'COMMIT');
arrived('a savepoint that is rolled back', 22, 24);
$session->value('BEGIN; SAVEPOINT a;'
	  . queue(25)
	  . 'SAVEPOINT b;'
	  . queue(26)
	  . 'RELEASE b; ROLLBACK TO a;'
	  . queue(27)
	  . 'COMMIT');
arrived('one in another that is rolled back', 27);
$session->value('BEGIN; SAVEPOINT a;' . queue(28) . 'SAVEPOINT b;' . queue(29) . 'ROLLBACK TO b; RELEASE a; COMMIT');
arrived('one rolled back in another that is released', 28);
$session->value(
	q{DO $$BEGIN
	FOR i IN 30..39 LOOP
		BEGIN
			PERFORM feishu.enqueue_flow('app', 'flow', '{"_id": 1}', jsonb_build_object('n', i));
			IF i % 2 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL; END;
	END LOOP; END$$});
arrived('exceptions in plpgsql', 31, 33, 35, 37, 39);
$session->value(
	q{DO $$BEGIN
	FOR i IN 40..45 LOOP
		PERFORM feishu.enqueue_flow('app', 'flow', '{"_id": 1}', jsonb_build_object('n', i));
		IF i % 3 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
	END LOOP; END$$});
arrived('COMMIT and ROLLBACK in plpgsql', 40, 41, 43, 44);

# A flow becomes due while it is cancelled; the dispatcher passes it over, and a
# flow that is sent proves it.
sub due_while_cancelled
{
	my ($n, $cancel, $before) = @_;
	$before //= 'SAVEPOINT a';
	my $id = enqueue($other, run_at => \"clock_timestamp() + interval '300 ms'", params => "{\"n\": $n}");
	$session->value("BEGIN; $before; SELECT feishu.cancel_flow($id); $cancel");
	$other->value("SELECT pg_sleep_until(run_at) FROM feishu.flows WHERE id = $id");
	my $probe = enqueue($other, params => '{"n": ' . ($n + 1) . '}');
	$other->value("SELECT feishu.wait_flow($probe)");
	is(join(' ', numbers($mock)), $n + 1, 'a flow is not sent while it is being cancelled');
	return;
}

foreach my $case (
	[ 'SAVEPOINT a', '', 'to a savepoint' ],
	[ 'SAVEPOINT a; SAVEPOINT b; SAVEPOINT c', 'RELEASE c; RELEASE b;', 'to one outside of those that were released' ],
	[
		'SAVEPOINT a; SAVEPOINT b',
		'RELEASE b; SAVEPOINT d; ROLLBACK TO d;',
		'to one outside of another that was rolled back'
	])
{
	my ($before, $after, $name) = @$case;
	due_while_cancelled(46, $after, $before);
	$session->value('ROLLBACK TO a');
	is(heard_of(2), 2, "... but when that is rolled back $name, before the transaction ends");
	$session->value('COMMIT');
	arrived('... once', 46, 47);
}

# Of several that are cancelled in a transaction, each is sent when that is undone, whichever was cancelled last.
foreach my $case (
	[ 'C1; C2', 'ROLLBACK' ],
	[ 'C2; C1', 'ROLLBACK' ],
	[ 'C1; SAVEPOINT a; C2; ROLLBACK TO a', 'ROLLBACK' ],
	[ 'SAVEPOINT a; C2; SAVEPOINT b; C1; RELEASE b', 'ROLLBACK TO a; COMMIT' ])
{
	my ($deeds, $end) = @$case;
	my @ids = map { enqueue($other, run_at => \"clock_timestamp() + interval '300 ms'", params => "{\"n\": $_}") } 1, 2;
	$session->value('BEGIN; ' . ($deeds =~ s/C(\d)/"SELECT feishu.cancel_flow($ids[$1 - 1])"/ger));
	$other->value("SELECT pg_sleep_until(run_at) FROM feishu.flows WHERE id = $ids[1]");
	my $probe = enqueue($other, params => '{"n": 3}');
	$other->value("SELECT feishu.wait_flow($probe)");
	$session->value($end);
	arrived("$deeds; $end", 1, 2, 3);
}

# What an outer level has put back is below all that the dispatcher looks at by itself: it has to be told.
foreach my $inner (
	'SAVEPOINT a; ROLLBACK TO a',
	'SAVEPOINT a; SELECT 1; RELEASE a',
	'SAVEPOINT a; SELECT feishu.cancel_flow(%d); ROLLBACK TO a',
	'SAVEPOINT a; SELECT feishu.retry_flow(%d); ROLLBACK TO a',
	'SAVEPOINT a; SAVEPOINT b; SELECT feishu.retry_flow(%d); RELEASE b; ROLLBACK TO a')
{
	my ($first, $second) = map { enqueue($other, run_at => \"now() + interval '1 hour'", params => "{\"n\": $_}") } 56,
	  57;
	$other->value("SELECT feishu.cancel_flow($_)") foreach $first, $second;
	my $passed = enqueue($other, params => '{"n": 58}');
	$other->value("SELECT feishu.wait_flow($passed)");
	$mock->mark;
	$session->value("BEGIN; SELECT feishu.retry_flow($first); " . sprintf($inner, $second) . '; COMMIT');
	arrived("what is put back before: $inner", 56);
}
foreach my $inner ('SAVEPOINT a; ROLLBACK TO a', "SAVEPOINT a; SELECT feishu.pause_server('feishu'); ROLLBACK TO a")
{
	$session->value("SELECT feishu.pause_server('feishu');"
		  . queue(59)
		  . "BEGIN; SELECT feishu.resume_server('feishu'); $inner; COMMIT");
	arrived("a server that is resumed before: $inner", 59);
}

# ---- two-phase commit ----

# (its end is heard of: the slow poll would take ten minutes)
# A second after a COMMIT PREPARED the dispatcher looks again: so this comes before the first one.
due_while_cancelled(53, "PREPARE TRANSACTION 'cancel'");
$session->value("ROLLBACK PREPARED 'cancel'");
is(heard_of(2), 2, '... but when that is rolled back');
arrived('... once', 53, 54);

$session->value('BEGIN;' . queue(50) . "PREPARE TRANSACTION 'one'");
$session->value('BEGIN;' . queue(51) . "PREPARE TRANSACTION 'two'");
$session->value('BEGIN;' . queue(52) . "PREPARE TRANSACTION 'three'");
arrived('what is prepared is not sent');
$session->value("COMMIT PREPARED 'one'");
$mock->wait_for(1, kind => 'execute');
arrived('... but what is committed then', 50);
$session->value("ROLLBACK PREPARED 'two'");
arrived('... and not what is rolled back');
$session->quit;
$other->quit;
$node->restart;
$_ = FeishuFlow::Session->new($node) foreach $session, $other;
arrived('... nor what stays prepared over a restart');
$session->value("COMMIT PREPARED 'three'");
$mock->wait_for(1, kind => 'execute');
arrived('... and is committed after it', 52);

# Nobody is there to hear of it.
$node->append_conf('postgresql.conf', "feishu_flow.dispatch = off");
$node->reload;
wait_until('there is no dispatcher', sub { dispatcher($other) eq '' });
$session->value('BEGIN;' . queue(55) . "PREPARE TRANSACTION 'unheard'");
$session->value("COMMIT PREPARED 'unheard'");
$node->append_conf('postgresql.conf', "feishu_flow.dispatch = on");
$node->reload;
until_dispatcher($other);
arrived('what is committed while there is no dispatcher is sent by the next one', 55);

# ---- long transactions ----

# The ids of a long transaction are lower than those sent meanwhile.
$mock->mark;
$session->value('BEGIN;' . queue(60));
enqueue_many($other, 100, 599);
until_ended($other);
$session->value(queue(61) . 'COMMIT');
$other->value('SELECT 1');
until_ended($other);
is(scalar(grep { $_ == 60 || $_ == 61 } numbers($mock)),
	2, 'what a long transaction has queued is sent when it commits');
is(scalar(numbers($mock)), 502, '... like what was committed meanwhile, once');
$mock->mark;

# An old snapshot keeps dead rows.
my $old = FeishuFlow::Session->new($node);
$old->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
for my $round (1 .. 3)
{
	enqueue_many($other, 2000 * $round, 2000 * $round + 1999);
	until_ended($other);
}
is($mock->executes, 6000, 'an old snapshot does not matter');
is($old->value("SELECT count(*) FROM feishu.flows WHERE (params->>'n')::int BETWEEN 2000 AND 7999"),
	'0', '... to which the flows are not there');
$old->value('COMMIT');
$mock->mark;

# No transaction is open while a request is under way.
$mock->fault(type => 'hold');
enqueue($other, params => '{"n": 70}');
$mock->wait_for(1, kind => 'execute');
wait_until(
	'the dispatcher waits',
	sub {
		$other->value(
			"SELECT wait_event IS NOT NULL FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'") eq 't';
	});
is( $other->value(
			"SELECT backend_xmin IS NULL AND backend_xid IS NULL AND xact_start IS NULL FROM pg_stat_activity "
		  . "WHERE backend_type = 'feishu_flow dispatcher'"),
	't',
	'no transaction and no snapshot is held while a request is under way');
is( $other->value(
			'SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) '
		  . "WHERE backend_type = 'feishu_flow dispatcher' AND locktype <> 'advisory'"),
	'0',
	'... no lock');
$mock->well;
arrived('... and it ends', 70);

# ---- isolation levels and modes ----

foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$session->value("BEGIN ISOLATION LEVEL $level;" . queue(80) . 'COMMIT');
	arrived("$level", 80);
}
# it cannot say that a flow which its snapshot does not have is past being cancelled
foreach my $function (qw(cancel_flow retry_flow))
{
	$session->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
	my $unseen = enqueue($other, run_at => \"now() + interval '1 hour'", params => '{"n": 83}');
	$other->value("SELECT feishu.cancel_flow($unseen)") if $function eq 'retry_flow';
	fails_with($session, "SELECT feishu.$function($unseen)",
		'40001', "$function of a flow that is newer than the snapshot");
	$session->value('ROLLBACK');
	$other->value("SELECT feishu.cancel_flow($unseen)");
}
# and who resumes need not have seen the pause
foreach my $what ([ 'server', "'feishu'" ], [ 'flow', "'feishu', 'app', 'none'" ])
{
	my ($kind, $arguments) = @$what;
	$session->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
	$other->value("SELECT feishu.pause_$kind($arguments)");
	succeeds($session, "SELECT feishu.resume_$kind($arguments); COMMIT", "resume_$kind of a newer pause");
	is($session->value("SELECT count(*) FROM feishu_internal.paused_$kind"), '0', '... ends it');
	$session->value("SELECT feishu.resume_$kind($arguments)");
}
fails_with($session, 'BEGIN READ ONLY;' . queue(81), '25006', 'a read-only transaction cannot queue');
$session->value('ROLLBACK');
arrived('... and has not');
$session->value("SET synchronous_commit = off;" . queue(82));
arrived('synchronous_commit = off', 82);
$session->value('SET synchronous_commit = on; SET default_transaction_read_only = on');
$session->value('SET default_transaction_read_only = off');

# somebody's defaults do not stop the dispatcher
$session->value("ALTER DATABASE postgres SET default_transaction_read_only = on");
$session->value("BEGIN READ WRITE; ALTER DATABASE postgres SET lock_timeout = '1ms'; "
	  . "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable';"
	  . "ALTER DATABASE postgres SET statement_timeout = '1ms'; "
	  . "ALTER DATABASE postgres SET idle_session_timeout = '1ms'; COMMIT");
my $pid = until_dispatcher($session);
$session->value("SELECT pg_terminate_backend($pid)");
until_dispatcher($session, $pid);
$other->value('SET default_transaction_read_only = off');
arrived('settings of the database do not stop the dispatcher');
enqueue_many($other, 90, 99);
arrived('... at all', 90 .. 99);
$session->value('BEGIN READ WRITE; ALTER DATABASE postgres RESET ALL; COMMIT');

# ---- an error in the midst of a session's first enqueue ----

# It finds out which indexes there are, and is interrupted at the first one:
# the next one must not believe that there are none.
my $first = FeishuFlow::Session->new($node);
$other->value('BEGIN; ALTER INDEX feishu_internal.outbox_pkey SET TABLESPACE pg_default');
fails_with($first, "SET lock_timeout = '100ms';" . queue(600), '55P03', 'a first enqueue that is interrupted');
$other->value('ROLLBACK');
$first->value(queue(601));
arrived('... what is queued after it is sent', 601);
$first->quit;

# ---- the trigger, from the row to the platform ----

$session->value(
	q{CREATE TABLE watched (id int PRIMARY KEY, amount numeric);
	CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON watched FOR EACH ROW
		EXECUTE FUNCTION feishu.flow_trigger('app', 'changed', '{"_id": 1111}',
			'{"n": "$.new.id", "was": "$.old.id", "op": "$.op", "amount": "$.new.amount"}',
			'{"ordering_key": "$.new.id"}');
	CREATE TRIGGER s AFTER INSERT ON watched REFERENCING NEW TABLE AS loaded FOR EACH STATEMENT
		EXECUTE FUNCTION feishu.flow_trigger('app', 'loaded', '{"_id": 1111}',
			'{"n": "$.new_rows.size()", "ids": "$.new_rows[*].id"}')}
);
$session->value('BEGIN; INSERT INTO watched SELECT g, g + 0.50 FROM generate_series(650, 652) g; ROLLBACK');
$session->value(
		'BEGIN; INSERT INTO watched VALUES (653, 1.10), (654, 2); SAVEPOINT a; INSERT INTO watched VALUES (655); '
	  . 'ROLLBACK TO a;'
	  . 'UPDATE watched SET amount = 1816970091484211.10 WHERE id = 653; COMMIT');
until_ended($other);
is( join('; ', sort map { "$_->{flow_id} $_->{json}{params}" =~ s/[ "]//gr } arrivals($mock)),
	join('; ',
		sort 'changed{n:653,op:INSERT,was:null,amount:1.10}', 'changed{n:654,op:INSERT,was:null,amount:2}',
		'changed{n:653,op:UPDATE,was:653,amount:1816970091484211.10}', 'loaded{n:2,ids:[653,654]}'),
	'what rows became arrives, once for each row and once for the statement; nothing of what was rolled back');
is( join(' ', map { $_->{json}{params} =~ /"op": "(\w+)"/ } grep { $_->{json}{params} =~ /"n": 653/ } arrivals($mock)),
	'INSERT UPDATE',
	'... in order');
$session->value('DROP TABLE watched');
$mock->mark;

# ---- triggers, cursors, deferred ----

$session->value(
	q{CREATE TABLE orders (id int);
	CREATE FUNCTION deferred() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
		PERFORM feishu.enqueue_flow('app', 'flow', '{"_id": 1}', jsonb_build_object('n', NEW.id)); RETURN NULL; END$$;
	CREATE CONSTRAINT TRIGGER t AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
		EXECUTE FUNCTION deferred()}
);
$session->value('BEGIN; INSERT INTO orders VALUES (700), (701); COMMIT');
arrived('a deferred trigger', 700, 701);
$session->value('BEGIN; INSERT INTO orders VALUES (702); ROLLBACK');
arrived('... that is rolled back');

# ---- many sessions, half of which roll back ----

$session->value('CREATE TABLE wanted (n bigint); CREATE SEQUENCE number START 10000');
$mock->reset;
my $script =
	"SELECT nextval('number') AS n \\gset\nBEGIN;\nINSERT INTO wanted VALUES (:n);\n"
  . 'SELECT '
  . enqueue_call(params => \q{jsonb_build_object('n', :n::bigint)})
  . ";\nSAVEPOINT a;\nSELECT "
  . enqueue_call(params => \q{jsonb_build_object('n', - :n::bigint)})
  . ";\nROLLBACK TO a;\n"
  . "\\set fate random(1, 2)\n\\if :fate = 1\nROLLBACK;\n\\else\nCOMMIT;\n\\endif\n";
my $bench = pgbench_start($node, $script, '-c', '8', '-j', '2', '-t', '200');
ok($bench->finish, '8 sessions commit and roll back');
until_ended($other);
my $wanted = $other->value('SELECT count(*) FROM wanted');
started_once($mock, $wanted, "... the $wanted that were committed start once");
my %started = map { $_ => 1 } started_numbers($mock);
is(scalar(grep { !$started{$_} } split /\n/, $other->value('SELECT n FROM wanted')), 0, '... and no others');

done_testing();
