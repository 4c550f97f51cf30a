
# Descriptors: to wait takes none, a process that has used up its share goes slow and nothing fails, and idle
# connections give way to those that are needed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# What PostgreSQL lets a process open of its own is a third of this, and less.
my $MAX_FILES = 100;

# Hosts, each with connections of its own: more than may be open at once.
my $HOSTS = 40;

my $mock = FeishuFlow::Mock->start;
my $other = FeishuFlow::Mock->start;
my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $hosts = join '', map { "listen 127.0.1.$_:$port;\n" } 1 .. $HOSTS;
start_nginx($dir, <<"CONF", $port);
	server {
		listen 127.0.0.1:$port;
		$hosts
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF

my $node = queue_cluster('main', conf => "max_files_per_process = $MAX_FILES\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'other', { base_url => $other->url });
create_server($node, "host$_", { base_url => "http://127.0.1.$_:$port" }) foreach 1 .. $HOSTS;
my $session = FeishuFlow::Session->new($node);

# From now on a process can open nothing but in place of what it has open.  Returns its limit before.
sub starve
{
	my ($pid) = @_;
	opendir(my $open, "/proc/$pid/fd") or die "/proc/$pid/fd: $!";
	my %open = map { $_ => 1 } readdir($open);
	my $lowest = 0;
	$lowest++ while $open{$lowest};
	my ($limit) = slurp_file("/proc/$pid/limits") =~ /^Max open files\s+(\d+)/m;
	set_limit($pid, $lowest);
	return $limit;
}

sub set_limit
{
	my ($pid, $limit) = @_;
	system('prlimit', '--pid', $pid, "--nofile=$limit:") == 0 or die "prlimit: $?";
	return;
}

# ---- to wait takes no descriptor ----

my $pid = until_dispatcher($session);
foreach my $server ('feishu', 'other')
{
	succeeds($session, flow(server => $server), "a call ($server)");
	enqueue($session, server => $server);
}
until_ended($session);
my %limit = map { $_ => starve($_) } $session->pid, $pid;
succeeds($session, flow(), 'a call on a kept connection without a descriptor left');
enqueue_many($session, 1, 20);
until_ended($session);
my $sockets = open_sockets($pid);
$other->stop;
succeeds($session, flow(), '... and after another connection was closed by its peer');
enqueue_many($session, 21, 40);
until_ended($session);
is(ends($session), 'succeeded 42', '... and a dispatcher goes on, too');
is(dispatcher($session), $pid, '... the same one');
set_limit($_, $limit{$_}) foreach keys %limit;

# ---- a process that cannot even begin to wait ----

my $fresh = FeishuFlow::Session->new($node);
$fresh->value('SELECT count(*) FROM feishu.flows');
%limit = ($fresh->pid => starve($fresh->pid));
fails_with(
	$fresh, flow(), '53000', 'the first call without a descriptor left is 53000',
	message => qr/^could not prepare to wait/,
	detail => qr/./,
	hint => qr/descriptors/);
set_limit($fresh->pid, $limit{ $fresh->pid });
succeeds($fresh, flow(), '... and with one the next call of this session works');
$fresh->quit;

my $locker = FeishuFlow::Session->new($node);
$locker->value('BEGIN; LOCK TABLE feishu_internal.claim IN ACCESS EXCLUSIVE MODE');
$session->value("SELECT pg_terminate_backend($pid)");
$pid = until_dispatcher($session, $pid);
until_true($session, 'the next one begins', "feishu.dispatch_problem() LIKE 'process %'");
%limit = ($pid => starve($pid));
$locker->value('COMMIT');
wait_until('it has no descriptor',
	sub { slurp_file($node->logfile) =~ /could not work on the queue, and tries again: could not prepare to wait/ });
until_true($session, 'that is told', "feishu.dispatch_problem() LIKE 'the dispatcher fails%'");
set_limit($pid, $limit{$pid});
$session->value("SELECT feishu.purge_flows('infinity')");
enqueue_many($session, 1, 10);
until_ended($session);
is(ends($session), 'succeeded 10', 'a dispatcher that begins without a descriptor left waits for one');
is(dispatcher($session), $pid, '... and goes on then');

# ---- more transfers than descriptors ----

begin_anew($mock, $session);
$session->value("SELECT feishu.purge_flows('infinity')");
$mock->fault(type => 'latency', ms => 300);
enqueue_many($session, 1, 100);
until_ended($session);
is(ends($session), 'succeeded 100', 'more flows than there are descriptors are sent');
is($session->value('SELECT max(attempts) FROM feishu.flows'), 1, '... at the first attempt');
is(dispatcher($session), $pid, '... by one dispatcher');
started_once($mock, 100, '... and start once');
cmp_ok($mock->stats->{max_concurrent_executes}, '<=', $MAX_FILES * 3 / 4, '... not more at once than fit');

# ---- idle connections give way ----

sub one_each
{
	my ($what) = @_;
	$session->value("SELECT feishu.purge_flows('infinity')");
	$session->value("SELECT count(feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => 'host' || g)) "
		  . "FROM generate_series(1, $HOSTS) g");
	until_ended($session);
	is(ends($session), "succeeded $HOSTS", $what);
	is($session->value('SELECT max(attempts) FROM feishu.flows'), 1, '... at the first attempt');
	cmp_ok(open_sockets($pid), '<=', $MAX_FILES * 3 / 4, '... over connections that fit');
	return;
}
$mock->well;
one_each('a flow each for more hosts than may be connected to');
one_each('... and again, while most connections are of other hosts');
$mock->fault(type => 'latency', ms => 200);
one_each('... and when each takes its time');
is(dispatcher($session), $pid, '... by one dispatcher');
$mock->well;

my $result = $session->ask("SELECT count(feishu.execute_flow('app', 'flow', '{\"_id\": 1}', server => 'host' || g)) "
	  . "FROM generate_series(1, $HOSTS) g");
is($result->{out}, $HOSTS, 'a session calls one host after the other');
cmp_ok($result->{seconds}, '<', 5 * $FeishuFlow::SLOW, '... and none waits for a connection that is idle');

done_testing();
