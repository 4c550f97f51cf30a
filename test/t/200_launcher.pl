
# Every database that has the extension has a dispatcher, and nothing that is
# done to databases waits for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# PostgreSQL itself waits 100 ms and more when it finds a database in use, up to
# 5 s; all that is done here takes a small part of a second.
my $AT_ONCE = 3 * $FeishuFlow::SLOW;

my $node = new_cluster('launcher',
	conf => "max_worker_processes = 60\nwal_level = minimal\nmax_wal_senders = 0\n"
	  . "max_prepared_transactions = 4\nrestart_after_crash = on\n");

# pid of a database's dispatcher, '' when there is none
sub dispatcher
{
	my ($database, $on) = @_;
	return ($on // $node)
	  ->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' AND datname = '$database'");
}

sub dispatchers
{
	my ($on) = @_;
	return ($on // $node)->safe_psql('postgres',
			"SELECT coalesce(string_agg(datname, ' ' ORDER BY datname), '') FROM pg_stat_activity"
		  . " WHERE backend_type = 'feishu_flow dispatcher'");
}

sub dispatcher_comes
{
	my ($database, $name, $not) = @_;
	my $pid = '';
	$not //= '';
	eval {
		wait_until("$database has a dispatcher", sub { ($pid = dispatcher($database)) ne '' && $pid ne $not });
	};
	ok($pid ne '' && $pid ne $not, $name) or diag(dispatchers());
	return $pid;
}

sub dispatcher_goes
{
	my ($database, $name) = @_;
	my $gone = eval {
		wait_until("$database has no dispatcher", sub { dispatcher($database) eq '' });
	};
	ok($gone, $name);
	return;
}

# The number of lines of the server's log, since a place in it, that match.
sub logged
{
	my ($pattern, $since, $on) = @_;
	my $text = substr(slurp_file(($on // $node)->logfile), $since // 0);
	return scalar(() = $text =~ /$pattern/g);
}

sub log_end { return -s (($_[0] // $node)->logfile); }

# A statement that must be done at once.
sub at_once
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = $session->ask($sql);
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	cmp_ok($result->{seconds}, '<', $AT_ONCE, "... at once");
	note(sprintf('%s: %.0f ms', $name, $result->{seconds} * 1000));
	return;
}

my $session = FeishuFlow::Session->new($node);

# ---- the extension comes and goes ----

my $launchers = '';
wait_until(
	'the launcher has begun',
	sub {
		$launchers = $session->value(
			"SELECT count(*), count(datname) FROM pg_stat_activity WHERE backend_type = 'feishu_flow launcher'");
		$launchers ne '0|0';
	});
is($launchers, '1|0', 'the launcher runs, connected to no database');
is(dispatchers(), '', 'no database has the extension, none has a dispatcher');

$session->value('BEGIN; CREATE EXTENSION feishu_flow; ROLLBACK');
$session->value('BEGIN; CREATE EXTENSION feishu_flow');
is(dispatchers(), '', 'no dispatcher before CREATE EXTENSION is committed');
my $start = time();
$session->value('COMMIT');
dispatcher_comes('postgres', 'CREATE EXTENSION starts a dispatcher');
cmp_ok(time() - $start, '<', $AT_ONCE, '... at once');
wait_until('that is logged', sub { logged(qr/LOG:  feishu_flow dispatcher for database "postgres" started/) });

at_once($session, 'DROP EXTENSION feishu_flow', 'DROP EXTENSION does not wait for the dispatcher');
dispatcher_goes('postgres', '... which goes away');
wait_until(
	'that is logged',
	sub { logged(qr/LOG:  feishu_flow dispatcher for database "postgres" stopped\n.*DETAIL:  The extension is gone/) });

at_once($session, 'CREATE EXTENSION feishu_flow', 'CREATE EXTENSION again');
my $pid = dispatcher_comes('postgres', '... starts a dispatcher again');
at_once(
	$session,
	'BEGIN; DROP EXTENSION feishu_flow; CREATE EXTENSION feishu_flow; COMMIT',
	'dropped and created again in one transaction');
dispatcher_comes('postgres', '... it has a new dispatcher', $pid);
at_once($session, 'BEGIN; DROP EXTENSION feishu_flow; ROLLBACK', 'a DROP that is rolled back');
ok(dispatcher('postgres'), '... leaves the dispatcher there');
at_once($session, 'DROP EXTENSION feishu_flow', 'DROP EXTENSION');
dispatcher_goes('postgres', '... takes the dispatcher away');

$session->value('CREATE ROLE owner SUPERUSER');
$session->value('SET ROLE owner; CREATE EXTENSION feishu_flow; RESET ROLE');
dispatcher_comes('postgres', 'the extension of another owner has a dispatcher');
at_once($session, 'DROP OWNED BY owner', 'DROP OWNED');
dispatcher_goes('postgres', '... takes the dispatcher away, too');

at_once(
	$session,
	"BEGIN; CREATE EXTENSION feishu_flow; PREPARE TRANSACTION 'create'",
	'CREATE EXTENSION in a prepared transaction');
at_once($session, "COMMIT PREPARED 'create'", '... which is committed later');
dispatcher_comes('postgres', '... starts a dispatcher then');
at_once(
	$session,
	"BEGIN; DROP EXTENSION feishu_flow; PREPARE TRANSACTION 'drop'",
	'DROP EXTENSION in a prepared transaction');
at_once($session, "COMMIT PREPARED 'drop'", '... which is committed later');
dispatcher_goes('postgres', '... takes the dispatcher away then');

# ---- the end of a worker ----

$session->value('CREATE EXTENSION feishu_flow');
$pid = dispatcher_comes('postgres', 'a dispatcher');
$session->value("SELECT pg_terminate_backend($pid)");
$pid = dispatcher_comes('postgres', 'a dispatcher that was terminated is started again', $pid);

# One that ends at once is started again after a second, the next time after two, ...
my ($ended, $lived, $took) = time();
for (1 .. 5)
{
	$lived = time() - $ended;
	$ended = time();
	$session->value("SELECT pg_terminate_backend($pid)");
	$pid = dispatcher_comes('postgres', 'a dispatcher that was terminated at once is started again', $pid);
	$took = time() - $ended;
	last if $lived < 0.9;
}
cmp_ok($took, '>', 0.9, '... after a second');
$session->value('SELECT pg_sleep(1.1)');
$ended = time();
$session->value("SELECT pg_terminate_backend($pid)");
$pid = dispatcher_comes('postgres', 'one that has lived for a second', $pid);
cmp_ok(time() - $ended, '<', 1.8, '... at once');

my $launcher = $session->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow launcher'");
$session->value("SELECT pg_terminate_backend($launcher)");
wait_until(
	'there is another launcher',
	sub {
		$session->value(
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow launcher' AND pid <> $launcher");
	});
is(dispatcher('postgres'), $pid, 'a new launcher leaves the dispatchers alone');
$session->value("SELECT pg_terminate_backend($pid)");
$pid = dispatcher_comes('postgres', '... but starts them when they end', $pid);
my $place = log_end();
at_once($session, 'DROP EXTENSION feishu_flow', 'DROP EXTENSION under a new launcher');
dispatcher_goes('postgres', '... takes the dispatcher away');
$session->value('CREATE EXTENSION feishu_flow');
$pid = dispatcher_comes('postgres', '... and CREATE EXTENSION brings it');

$place = log_end();
kill 'KILL', $pid;
wait_until('the server has recovered', sub { logged(qr/database system is ready to accept connections/, $place) });
$session->quit;
$session = FeishuFlow::Session->new($node);
dispatcher_comes('postgres', 'after kill -9 of a dispatcher there is another', $pid);

# the pause before one that failed is started again doubles: it is 8 s by then
$place = log_end();
$session->value('CREATE ROLE nobody LOGIN');
$session->value('ALTER TABLE feishu_internal.claim ADD CONSTRAINT broken CHECK (false) NOT VALID');
$session->value('SELECT pg_terminate_backend(' . dispatcher('postgres') . ')');
wait_until('a dispatcher fails again and again', sub { logged(qr/violates check constraint "broken"/, $place) >= 4 });
$place = log_end();
my $nobody = FeishuFlow::Session->new($node, user => 'nobody');
$start = time();

while (time() - $start < 3)
{
	$nobody->value($_)
	  foreach "BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'p'", "COMMIT PREPARED 'p'", 'SELECT pg_sleep(0.1)';
}
$nobody->quit;
cmp_ok(logged(qr/violates check constraint "broken"/, $place),
	'<=', 1, '... not more often for transactions that are prepared');
$session->value('DROP EXTENSION feishu_flow; CREATE EXTENSION feishu_flow');
$start = time();
dispatcher_comes('postgres', 'after CREATE EXTENSION there is a dispatcher');
cmp_ok(time() - $start, '<', 5, '... which does not wait for what failed before');

# ---- databases come and go ----

at_once($session, 'CREATE DATABASE one', 'CREATE DATABASE');
$node->safe_psql('one', 'CREATE EXTENSION feishu_flow; CREATE TABLE t AS SELECT 1');
dispatcher_comes('one', 'a dispatcher in another database');
my $template1 = $session->value("SELECT oid FROM pg_database WHERE datname = 'one'");

at_once($session, 'CREATE DATABASE two TEMPLATE one', 'a database with a dispatcher is copied');
dispatcher_comes('two', '... the copy has a dispatcher');
dispatcher_comes('one', '... and the original, again');
at_once($session, 'CREATE DATABASE three TEMPLATE one STRATEGY file_copy', 'copied by files');
dispatcher_comes('three', '... the copy has a dispatcher');
dispatcher_comes('one', '... and the original, again');
at_once($session, 'ALTER DATABASE two RENAME TO zwei', 'a database with a dispatcher is renamed');
dispatcher_comes('zwei', '... it has a dispatcher');
is( $session->value(
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' AND datname = 'zwei'"),
	1,
	'... one');

my $directory = PostgreSQL::Test::Utils::tempdir;
$session->value("CREATE TABLESPACE space LOCATION '$directory'");
at_once($session, 'ALTER DATABASE zwei SET TABLESPACE space', 'a database with a dispatcher is moved');
$pid = dispatcher_comes('zwei', '... it has a dispatcher');

$session->value('BEGIN; ALTER DATABASE zwei RENAME TO deux');
dispatcher_goes('zwei', 'no dispatcher while a rename is not committed');
$session->value('ROLLBACK');
dispatcher_comes('zwei', '... it comes back with the rollback');
fails_with($session, 'ALTER DATABASE zwei RENAME TO one', '42P04', 'a rename that fails');
$pid = dispatcher_comes('zwei', '... gives the dispatcher back');
my $fresh = FeishuFlow::Session->new($node);
$fresh->value("SET statement_timeout = '300ms'");
kill 'STOP', $pid;
fails_with($fresh, 'ALTER DATABASE zwei RENAME TO deux', '57014', 'a rename that is cancelled before it can begin');
kill 'CONT', $pid;
dispatcher_comes('zwei', '... gives the dispatcher back', $pid);
$fresh->quit;

at_once($session, 'DROP DATABASE zwei', 'a database with a dispatcher is dropped');
at_once($session, 'DROP DATABASE three WITH (FORCE)', '... by force');
is(dispatcher('zwei') . dispatcher('three'), '', '... no dispatchers are left');
at_once($session, 'CREATE DATABASE three TEMPLATE one', 'created again');
dispatcher_comes('three', '... it has a dispatcher');

# Straight after CREATE, when it is being looked into.
for my $round (1 .. 5)
{
	$start = time();
	$session->value('CREATE DATABASE quick TEMPLATE one');
	$session->value('CREATE DATABASE quicker TEMPLATE quick');
	$session->value('DROP DATABASE quick');
	$session->value('DROP DATABASE quicker');
	cmp_ok(time() - $start, '<', 2 * $AT_ONCE, "copied, copied and dropped at once, round $round");
	note(sprintf('%.0f ms', (time() - $start) * 1000));
}

# Who may not do it does not stop a dispatcher, who may does.
$session->value('CREATE ROLE somebody LOGIN CREATEDB');
$session->value('ALTER DATABASE three OWNER TO somebody');
$pid = dispatcher_comes('one', 'a dispatcher');
my $pid3 = dispatcher_comes('three', 'another');
$nobody = FeishuFlow::Session->new($node, user => 'nobody');
my $somebody = FeishuFlow::Session->new($node, user => 'somebody');
fails_with($nobody, 'DROP DATABASE one', '42501', 'a stranger drops');
fails_with($nobody, 'ALTER DATABASE one RENAME TO eins', '42501', 'a stranger renames');
fails_with($somebody, 'CREATE DATABASE copy TEMPLATE one', '42501', 'a stranger copies');
is(dispatcher('one'), $pid, '... the dispatcher does not notice');
at_once($somebody, 'CREATE DATABASE copy TEMPLATE three', 'the owner copies');
at_once($somebody, 'ALTER DATABASE three RENAME TO drei', 'the owner renames');
dispatcher_comes('drei', '... it has a dispatcher');
at_once($somebody, 'DROP DATABASE drei WITH (FORCE)', 'the owner drops');
at_once($somebody, 'DROP DATABASE copy', '... the copy, too');
$_->quit foreach $nobody, $somebody;

# Templates, and databases closed to everybody, are left alone.
$place = log_end();
at_once($session, 'ALTER DATABASE one IS_TEMPLATE true', 'a database becomes a template');
dispatcher_goes('one', '... and has no dispatcher any more');
at_once($session, 'ALTER DATABASE one IS_TEMPLATE false', 'it is none any more');
dispatcher_comes('one', '... and has a dispatcher');
at_once($session, 'ALTER DATABASE one ALLOW_CONNECTIONS false', 'a database is closed');
dispatcher_goes('one', '... and has no dispatcher any more');
at_once($session, 'ALTER DATABASE one ALLOW_CONNECTIONS true', 'it is opened');
dispatcher_comes('one', '... and has a dispatcher');

# ---- the switch ----

$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->reload;
wait_until('there are no dispatchers', sub { dispatchers() eq '' });
is(dispatchers(), '', 'dispatch = off stops them all');
$node->restart;
$session->quit;
$session = FeishuFlow::Session->new($node);
is(dispatchers(), '', '... also after a restart');
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
$node->reload;
dispatcher_comes('one', 'dispatch = on starts them');
dispatcher_comes('postgres', '... all');

# ---- many, and restarts ----

$session->value("CREATE DATABASE many$_ TEMPLATE one") foreach 1 .. 28;
$session->value("CREATE DATABASE none$_")              foreach 1 .. 3;
wait_until('all have dispatchers', sub { scalar(my @list = split / /, dispatchers()) == 30 });
pass('30 databases have dispatchers');
$start = time();
$node->stop('fast');
cmp_ok(time() - $start, '<', $AT_ONCE, 'a fast shutdown with 30 dispatchers is fast');
note(sprintf('%.0f ms', (time() - $start) * 1000));
$place = log_end();
$node->start;
wait_until('all have dispatchers', sub { scalar(my @list = split / /, dispatchers()) == 30 });
pass('... all are back after a restart');
is(logged(qr/dispatcher for database "\w+" started/, $place), 30, '... each was started once');
is(logged(qr/FATAL|ERROR|stopped/, $place), 0, '... without trouble');

# ---- too few workers ----

$node->append_conf('postgresql.conf', 'max_worker_processes = 10');
$place = log_end();
$node->restart;
wait_until('somebody is told', sub { logged(qr/no background worker/, $place) });
is(logged(qr/HINT:  Increase max_worker_processes, currently 10/, $place),
	1, 'too few workers: the log tells what to raise');
wait_until('as many as there may be run', sub { scalar(my @list = split / /, dispatchers()) >= 8 });
$session->quit;
$session = FeishuFlow::Session->new($node);
my %served = map { $_ => 1 } split / /, dispatchers();
my @unserved = grep { !$served{$_} } map { "many$_" } 1 .. 28;
my @served = grep { /^many/ } keys %served;
is(scalar(keys %served), 8, 'as many dispatchers as there is room for');

foreach my $case ([ $unserved[0], 'there is no background worker for the dispatcher' ], [ $served[0], 'none' ])
{
	my $other = FeishuFlow::Session->new($node, database => $case->[0]);
	is($other->value("SELECT coalesce(feishu.dispatch_problem(), 'none')"),
		$case->[1], "... which dispatch_problem tells ($case->[1])");
	$other->quit;
}
at_once($session, "DROP DATABASE $served[0]", 'a database with a dispatcher is dropped then');
at_once($session, "DROP DATABASE $unserved[0]", 'one without a dispatcher, too');
wait_until('another database is served', sub { scalar(my @list = split / /, dispatchers()) == 8 });
pass('... and another database gets the worker');
foreach my $database (grep { /^many|^one/ } map { "many$_" } 1 .. 28)
{
	$session->value("DROP DATABASE IF EXISTS $database");
}
wait_until('it is logged that there are enough', sub { logged(qr/background workers for all/, $place) });
is(logged(qr/no background worker/, $place), 1, 'the shortage was logged once');
is(logged(qr/background workers for all/, $place), 1, '... and its end');
dispatcher_comes($_, "... and $_ has its dispatcher") foreach 'postgres', 'one';
$node->stop;

# ---- a standby ----

my $primary = new_cluster('primary', streaming => 1, conf => "max_worker_processes = 16\n");
$primary->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
wait_until('the primary has a dispatcher', sub { dispatcher('postgres', $primary) });
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', 'CREATE TABLE something ()');
$primary->wait_for_catchup('standby');
is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'feishu_flow%'"),
	0, 'a standby has neither launcher nor dispatcher');
$standby->promote;
wait_until('the standby has a dispatcher', sub { dispatcher('postgres', $standby) });
pass('... it has them after its promotion');
$primary->stop('immediate');
$standby->stop('fast');

done_testing();
