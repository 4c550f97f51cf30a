
# What has nothing to do costs nothing: an idle dispatcher writes nothing and
# sleeps until the slow poll, whatever waits in its queue, and a database
# without the extension is looked into once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

# So long nothing may happen: a loop that looks now and then would have done so.
my $WATCHED = 3;

my $mock = FeishuFlow::Mock->start;
# nobody else is to write or to look into a database
my $node = queue_cluster('main',
	conf => "autovacuum = off\ncheckpoint_timeout = '1h'\nwal_level = minimal\nmax_wal_senders = 0\n");
my $session = FeishuFlow::Session->new($node);
my @bare = map { "none$_" } 1 .. 3;
$session->value("CREATE DATABASE $_") foreach @bare;
create_server($node, $_, { base_url => $mock->url }) foreach qw(feishu paused refused);

# Bytes that a process has had written to disk.
sub written
{
	my ($pid) = @_;
	my ($bytes) = slurp_file("/proc/$pid/io") =~ /^write_bytes: (\d+)$/m;
	return $bytes;
}

sub wal_end { return $session->value('SELECT pg_current_wal_insert_lsn()'); }

# Nothing happens: neither process wakes, nothing is written.
sub is_quiet
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %process = (
		dispatcher => until_dispatcher($session),
		launcher => $session->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow launcher'"));
	until_true(
		$session,
		'the dispatcher is idle',
		"SELECT bool_and(query = 'idle') FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'");
	foreach my $who (sort keys %process)
	{
		my $pid = $process{$who};
		my $before = -1;
		wait_until("the $who sleeps",
			sub { my $last = $before; $before = wakes($pid); usleep(500_000); $last == $before });
	}
	my $wal = wal_end();
	my %before = map { $_ => [ wakes($process{$_}), written($process{$_}) ] } keys %process;
	usleep($WATCHED * 1_000_000);
	foreach my $who (sort keys %process)
	{
		my ($wakes, $written) = map { $_->[0] - $_->[1] }[ wakes($process{$who}), $before{$who}[0] ],
		  [ written($process{$who}), $before{$who}[1] ];
		cmp_ok($wakes, '<=', 1, "$name: the $who sleeps all the time");
		is($written, 0, '... and writes nothing');
	}
	is(wal_end(), $wal, '... nor does anybody');
	return;
}

# ---- nothing queued ----

is_quiet('at first');
enqueue_many($session, 1, 200);
until_ended($session);
started_once($mock, 200, 'flows are sent');
is_quiet('when all have been sent');

# ---- flows that wait for something ----

my $later = "now() + interval '1 hour'";
enqueue($session, run_at => \$later, params => '{"never": true}');
enqueue($session, run_at => '2999-01-01', params => '{"never": true}');
enqueue($session, run_at => '294276-12-01', expires_at => 'infinity', params => '{"never": true}');
enqueue($session, ordering_key => 'blocked', run_at => \$later, params => '{"never": true}');
enqueue($session, ordering_key => 'blocked', params => '{"never": true}') foreach 1 .. 3;
$session->value("SELECT feishu.pause_server('paused')");
enqueue_many($session, 1, 300, server => 'paused', params => '{"never": true}');
$session->value("ALTER USER MAPPING FOR PUBLIC SERVER refused OPTIONS (SET app_secret 'wrong')");
enqueue_many($session, 1, 300, server => 'refused', params => '{"never": true}');
until_true(
	$session,
	'the app is paused',
	"SELECT paused AND sending = 0 FROM feishu.dispatch_status WHERE server = 'refused'");
my $open = FeishuFlow::Session->new($node);
$open->value('BEGIN');
enqueue($open, params => '{"n": 201}');
is_quiet('while flows wait for their time, others of their key, a pause, other credentials, a commit');
$open->value('COMMIT');
until_ended($session, "params ? 'n'");
started_once($mock, 201, '... and the commit is heard of');

# ---- the slow poll ----

# Transactions of a database, that of whoever looks for the extension included.
sub transactions
{
	return $session->value('SELECT string_agg(xact_commit::text, $$ $$ ORDER BY datname) FROM pg_stat_database '
		  . "WHERE datname = ANY ('{"
		  . join(',', @bare)
		  . "}')");
}

$open->quit;
until_true(
	$session,
	'databases were looked into',
	"SELECT min(xact_commit) > 0 FROM pg_stat_database WHERE datname = ANY ('{" . join(',', @bare) . "}')");
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
my @pids = (
	until_dispatcher($session),
	$session->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow launcher'"));
foreach my $pid (@pids)
{
	my $before = wakes($pid);
	wait_until('it polls', sub { wakes($pid) > $before + 5 });
}
# The first one may tidy a page up behind the flows. What polls write or look into, each of them does.
my ($transactions, $wal, $started, $dispatcher, $launcher);
foreach (1 .. 4)
{
	($transactions, $wal, $started) = (transactions(), wal_end(), time());
	($dispatcher, $launcher) = map { wakes($_) } @pids;
	wait_until('both have polled', sub { wakes($pids[0]) > $dispatcher + 20 && wakes($pids[1]) > $launcher + 20 });
	last if wal_end() eq $wal && transactions() eq $transactions;
}
is(wal_end(), $wal, 'polls write nothing');
is(transactions(), $transactions, '... and look into no database without the extension');
cmp_ok(
	wakes($_) - ($_ == $pids[0] ? $dispatcher : $launcher),
	'<=',
	20 + 2 * 10 * (time() - $started),
	'... nor more often than asked to') foreach @pids;
is($session->value("SELECT count(*) FROM pg_stat_activity WHERE datname = ANY ('{" . join(',', @bare) . "}')"),
	'0', '... where nobody is');

done_testing();
