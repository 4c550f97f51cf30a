
# What is done to databases: dump and restore, copies, renames, drops, the
# extension dropped and created under load.

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
my $node = queue_cluster('main', conf => "max_worker_processes = 50\nmax_connections = 60\n");
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(one two);
create_server($node, 'feishu', { base_url => $mock->url }, undef, $_) foreach qw(postgres one);
my $admin = FeishuFlow::Session->new($node);
my $session;
my ($id, $begun);

# Statements about a database must not wait for its dispatcher.
sub gets_through
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = $admin->ask("SET statement_timeout = '20s'; $sql");
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	cmp_ok($result->{seconds}, '<', 10, sprintf('... at once (%.1f s)', $result->{seconds}));
	$admin->value('RESET statement_timeout');
	return;
}

sub in_database { return FeishuFlow::Session->new($node, database => $_[0]); }

sub dispatcher_in
{
	return $admin->value(
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' AND datname = '$_[0]'");
}

# ---- dump and restore ----

$session = in_database('one');
enqueue_many($session, 1, 10);
until_ended($session);
$session->value("SELECT feishu.pause_server('feishu')");
enqueue_many($session, 11, 20);
$session->quit;
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, $node->connstr('one') ], 'a database with waiting flows is dumped');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('two'), $dump ], '... and restored');
my $two = in_database('two');
until_dispatcher($two);
is($two->value('SELECT count(*) FROM feishu.flows'), '0', 'no flow is in a dump: none is sent twice');
is($two->value("SELECT count(*) FROM pg_foreign_server JOIN pg_user_mappings USING (srvname)"),
	'1', '... servers and mappings are');
$id = enqueue($two, params => '{"n": 21}');
succeeds($two, "SELECT feishu.wait_flow($id)", '... and the queue works');
is(ends($two), 'succeeded 1', '... with what is queued there');
$two->quit;

# A role that is no superuser sees the options of its own mapping, and of others that there is one.
$node->safe_psql('postgres',
	'CREATE ROLE plain LOGIN; CREATE ROLE other; CREATE DATABASE theirs OWNER plain; CREATE DATABASE restored');
$node->safe_psql(
	'theirs', q{CREATE EXTENSION feishu_flow; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO plain; SET ROLE plain;
	CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '}
	  . $mock->url . q{'); GRANT USAGE ON FOREIGN SERVER feishu TO other;
	CREATE USER MAPPING FOR other SERVER feishu OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')});
my $plain = PostgreSQL::Test::Utils::tempdir() . '/plain';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $plain, '-d', $node->connstr('theirs') . ' user=plain' ],
	'a role that is no superuser dumps its database');
$node->command_ok([ 'pg_restore', '-e', '-d', $node->connstr('restored'), $plain ], '... it is restored');
my $restored = in_database('restored');
$restored->value('SET ROLE other');
fails_with(
	$restored, q{SELECT feishu.execute_flow('app', 'flow', '{"_id": 1}')}, '42704',
	'... without what that role must not see',
	message => qr/user mapping for server "feishu" has no credentials/,
	hint => qr/ALTER USER MAPPING FOR other SERVER feishu OPTIONS \(ADD app_id/);
my $credentials =
  q{ALTER USER MAPPING FOR other SERVER feishu OPTIONS (ADD app_id 'cli_mock', ADD app_secret 'mock-secret')};
$restored->value("RESET ROLE; $credentials; BEGIN; SET LOCAL ROLE other");
$id = enqueue($restored, params => '{"n": 22}');
$restored->value(
	'RESET ROLE; ALTER USER MAPPING FOR other SERVER feishu OPTIONS (DROP app_id, DROP app_secret); COMMIT');
until_true($restored, 'a flow waits', q{SELECT EXISTS (SELECT FROM feishu.dispatch_status WHERE paused)});
$restored->value($credentials);
succeeds($restored, "SELECT feishu.wait_flow($id)", '... until there are credentials');
$restored->quit;

$session = in_database('one');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
started_once($mock, 22, 'the flows that waited are sent from where they are');
my $sql = "$dump.sql";
$node->command_ok([ 'pg_dumpall', '-f', $sql, '-d', $node->connstr('postgres') ], 'pg_dumpall');
unlike(slurp_file($sql), qr/^COPY feishu\./m, '... has no data of the queue');

# ---- copies ----

begin_anew($mock, $session);
$session->value("SELECT feishu.pause_server('feishu')");
enqueue_many($session, 1, 50);
enqueue_many($session, 51, 60, idempotent_key => \"'key' || g");
$session->quit;
gets_through('CREATE DATABASE copy TEMPLATE one', 'a database with a dispatcher is a template');
my $copy = in_database('copy');
$session = in_database('one');
until_dispatcher($_) foreach $copy, $session;
note('in the copy: ' . ($copy->value('SELECT count(*) FROM feishu.flows WHERE finished_at IS NULL')) . ' queued');
$_->value("SELECT feishu.resume_server('feishu')") foreach $copy, $session;
until_ended($_) foreach $copy, $session;
started_once($mock, 60, 'flows that waited while their database was copied start once');
note('copy: ' . (ends($copy) // 'nothing') . '; original: ' . ends($session, "params->>'n' IS NOT NULL"));
$id = enqueue($copy, params => '{"n": 61}');
succeeds($copy, "SELECT feishu.wait_flow($id)", 'the queue of the copy works');
$_->quit foreach $copy, $session;

# ---- with flows under way ----

sub under_way
{
	my ($database) = @_;
	begin_anew($mock, $admin);
	$mock->fault(type => 'hold');
	my $in = in_database($database);
	until_dispatcher($in);
	enqueue_many($in, 1, 20);
	$mock->wait_for(20, kind => 'execute');
	$in->quit;
	return;
}

under_way('copy');
gets_through('ALTER DATABASE copy RENAME TO renamed', 'a database whose flows are under way is renamed');
$mock->well;
$copy = in_database('renamed');
until_dispatcher($copy);
until_ended($copy);
started_once($mock, 20, '... and they start once');
$copy->quit;
under_way('renamed');
gets_through("ALTER DATABASE renamed SET TABLESPACE pg_default",
	'a database whose flows are under way gets a tablespace');
$mock->well;
$copy = in_database('renamed');
until_ended($copy);
$copy->quit;
under_way('renamed');
gets_through('DROP DATABASE renamed', 'a database whose flows are under way is dropped');
$mock->well;
is( $admin->value(
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' AND datname IS NULL"),
	'0',
	'... its dispatcher is gone');

# ---- the extension dropped and created again ----

$session = in_database('one');
begin_anew($mock, $session);
$mock->fault(type => 'hold');
enqueue_many($session, 1, 20);
$mock->wait_for(20, kind => 'execute');
my $old = dispatcher($session);
$begun = time();
succeeds(
	$session,
	"SET statement_timeout = '20s'; DROP EXTENSION feishu_flow CASCADE; RESET statement_timeout",
	'the extension is dropped while flows are under way');
cmp_ok(time() - $begun, '<', 10, '... at once');
wait_until('the dispatcher is gone', sub { dispatcher_in('one') eq '' });
wait_until('its process is, too', sub { !alive($old) });
$mock->well;
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'one');
$id = enqueue($session, params => '{"n": 21}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'it is created again, and works in a session that knew the old one');
$session->value('BEGIN; DROP EXTENSION feishu_flow CASCADE; ROLLBACK');
$id = enqueue($session, params => '{"n": 22}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a DROP that is rolled back is none');

# under load: sessions queue what they can
my $load = forked(
	'load',
	sub {
		my $in = in_database('one');
		my $end = time() + 30;
		for (my $n = 100; time() < $end; $n++)
		{
			$in->ask('SELECT ' . enqueue_call(params => "{\"n\": $n}"));
		}
	});
for my $round (1 .. 5)
{
	begin_anew($mock, $admin);
	$mock->wait_for(10, kind => 'execute');
	my $result = $session->ask("SET statement_timeout = '20s'; DROP EXTENSION feishu_flow CASCADE");
	is($result->{sqlstate}, '00000', "round $round: the extension is dropped under load") or diag($result->{err});
	$session->value('RESET statement_timeout');
	next if $result->{sqlstate} ne '00000';
	create_server($node, 'feishu', { base_url => $mock->url }, undef, 'one');
}
$mock->mark;
$mock->wait_for(50, kind => 'execute');
stop_process($load);
until_ended($session);
is(scalar @{ summary($mock)->{keys_started_twice} }, 0, 'no flow has started twice');
is($session->value("SELECT count(*) FROM feishu.flows WHERE state <> 'succeeded'"),
	'0', '... and all that is there has succeeded');
$session->quit;

# ---- a worker process for each ----

$node->safe_psql('postgres', "CREATE DATABASE d$_ STRATEGY file_copy") foreach 1 .. 30;
foreach my $n (1 .. 30)
{
	$node->safe_psql("d$n", "CREATE EXTENSION feishu_flow") if $n % 2;
}
wait_until(
	'15 databases have dispatchers',
	sub {
		$admin->value("SELECT count(DISTINCT datname) FROM pg_stat_activity "
			  . "WHERE backend_type = 'feishu_flow dispatcher' AND datname ~ '^d'") == 15;
	});
is($admin->value("SELECT count(*) FROM pg_stat_activity WHERE datname IN ('d2', 'd4', 'd30')"),
	'0', 'of 30 databases those with the extension have dispatchers, and no others');
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'd15');
$session = in_database('d15');
$id = enqueue($session, params => '{"n": 1}');
succeeds($session, "SELECT feishu.wait_flow($id)", '... which work');
$session->quit;
$begun = time();
$admin->value("DROP DATABASE d$_") foreach 1 .. 30;
cmp_ok(time() - $begun, '<', 30, sprintf('... they are dropped (%.1f s)', time() - $begun));

my $log = slurp_file($node->logfile);
my ($bad) = $log =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP|does not have one row).*)$/m;
is($bad, undef, 'no process failed by itself');

done_testing();
