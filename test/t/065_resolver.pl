
# A name server that never answers: calls end in connect_timeout, cancel and shutdown are heard at once, and nothing
# else is held up, though libcurl's resolver is a thread that cannot be interrupted.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# The resolver that hangs is a shared library, put before the C library's.
my $library = PostgreSQL::Test::Utils::tempdir() . '/hanging_resolver.so';
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/hanging_resolver.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for a resolver that hangs';

# An older one waits for its resolver when a call is given up: src/compat.h.
my ($version) = `curl-config --vernum` =~ /^([0-9a-f]{6})$/;
plan skip_all => 'libcurl is older than 7.87' if !defined $version || hex($version) < 0x075700;

# What would not be heard would last as long as the resolver: for ever.
my $AT_ONCE = 5;

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	$node = queue_cluster('main', conf => "feishu_flow.connect_timeout = '10min'\nfeishu_flow.timeout = '10min'\n");
}
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'slow', { base_url => 'http://platform.slow:' . $mock->port });
create_server($node, 'hang', { base_url => 'http://platform.hang' });
create_server($node, 'token', { base_url => 'http://platform.hang' }, { tenant_access_token => 't-x' });
create_server($node, 'proxy', { base_url => $mock->url, proxy => 'http://proxy.hang:3128' });

my ($session, $watch);

sub connect_again
{
	$_ = FeishuFlow::Session->new($node) foreach $session, $watch;
	succeeds($session, flow(), 'a call');
	return;
}

# Threads of a process.
sub threads
{
	my ($pid) = @_;
	opendir(my $dir, "/proc/$pid/task") or return 0;
	return scalar(grep { /^\d/ } readdir($dir));
}

# A call that hangs in the resolver's thread, a new one or (libcurl 8.20 and later) one that hangs already.
sub hang
{
	my ($server) = @_;
	$session->send(flow(server => $server));
	wait_until(
		'the resolver hangs',
		sub {
			threads($session->pid) > 1
			  && $watch->value(
				"SELECT state = 'active' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = "
				  . $session->pid) eq 't';
		});
	return;
}

# The signals that a thread of a process does not take, as /proc has them.
sub blocked
{
	my ($pid, $thread) = @_;
	my ($mask) = slurp_file("/proc/$pid/task/$thread/status") =~ /^SigBlk:\s+(\w+)$/m;
	return grep { hex($mask) >> $_ - 1 & 1 } 1 .. 31;
}

sub ends_at_once
{
	my ($sqlstate, $name, $deed) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $started = time();
	$deed->();
	my $result = $session->result;
	my $seconds = time() - $started;
	is($result->{sqlstate}, $sqlstate, $name);
	cmp_ok($seconds, '<', $AT_ONCE, sprintf('... at once: %.0f ms', 1000 * $seconds));
	return;
}

$session = FeishuFlow::Session->new($node);
my $slow = $session->ask(flow(server => 'slow'));
plan skip_all => 'this libcurl does not resolve names by getaddrinfo()' if $slow->{sqlstate} eq 'LK503';
is($slow->{sqlstate}, '00000', 'a name that takes its time to be resolved is waited for');
cmp_ok($slow->{seconds}, '>', 1.4, '... in a thread');
$session->quit;
connect_again();

# ---- signals ----

# A thread is given none that is meant for the process.
hang('hang');
my $hung = $session->pid;
my @threads = map { m{(\d+)$} && $1 != $hung ? $1 : () } glob("/proc/$hung/task/*");
cmp_ok(scalar(@threads), '>=', 1, 'a thread resolves a name');
my @meant = (
	POSIX::SIGHUP, POSIX::SIGINT, POSIX::SIGUSR1, POSIX::SIGUSR2,
	POSIX::SIGPIPE, POSIX::SIGALRM, POSIX::SIGTERM, POSIX::SIGCHLD);
foreach my $thread (@threads)
{
	my %blocked = map { $_ => 1 } blocked($hung, $thread);
	is(join(' ', grep { !$blocked{$_} } @meant), '', '... which takes no signal of PostgreSQL\'s');
	ok(!$blocked{ POSIX::SIGQUIT() }, '... but for SIGQUIT, by which all ends at once');
}
my %waits = map { $_ => 1 } blocked($hung, $hung);
is(join(' ', grep { $waits{$_} } @meant), '', '... and the process takes them');
ends_at_once('57014', 'it can be cancelled', sub { $watch->value("SELECT pg_cancel_backend($hung)") });

# ---- calls ----

foreach my $server (qw(hang token proxy))
{
	hang($server);
	ends_at_once(
		'57014',
		"cancel while the name is resolved ($server)",
		sub { $watch->value('SELECT pg_cancel_backend(' . $session->pid . ')') });
	succeeds($session, flow(), '... and the next call works');

	my $result = fails_with($session, "SET statement_timeout = '200ms';" . flow(server => $server),
		'57014', 'statement_timeout', message => qr/statement timeout/);
	cmp_ok($result->{seconds}, '<', $AT_ONCE, sprintf('... in time: %.0f ms', 1000 * $result->{seconds}));
	$session->value('RESET statement_timeout');

	$result = fails_with($session, "SET feishu_flow.connect_timeout = '200ms';" . flow(server => $server),
		'LK504', 'connect_timeout', detail => qr/resolving/);
	cmp_ok($result->{seconds}, '<', $AT_ONCE, sprintf('... in time: %.0f ms', 1000 * $result->{seconds}));
	$session->value('RESET feishu_flow.connect_timeout');

	$result = fails_with($session, flow(server => $server, timeout => '200ms'), 'LK504', 'the timeout of a call');
	cmp_ok($result->{seconds}, '<', $AT_ONCE, sprintf('... in time: %.0f ms', 1000 * $result->{seconds}));
}
succeeds($session, flow(), 'after all that a call works');
hang('hang');
ends_at_once(
	'57P01',
	'terminated while the name is resolved',
	sub { $watch->value('SELECT pg_terminate_backend(' . $session->pid . ')') });
my $gone = $session->pid;
wait_until('the process is gone', sub { !alive($gone) }, $AT_ONCE);
pass('... and the process is gone');
connect_again();

# ---- the dispatcher ----

enqueue_many($session, 1, 10, server => 'hang');
until_true(
	$session,
	'the dispatcher hangs in the resolver',
	"SELECT sending > 0 FROM feishu.dispatch_status WHERE server = 'hang'");
begin_anew($mock, $session);
my $started = time();
enqueue_many($session, 1, 200, server => 'feishu');
until_ended($session, "server = 'feishu'");
cmp_ok(
	time() - $started,
	'<',
	2 * $AT_ONCE,
	sprintf('flows of other servers are sent meanwhile: 200 in %.0f ms', 1000 * (time() - $started)));
started_once($mock, 200, '... each once');

my $pid = dispatcher($session);
$started = time();
$session->value("SELECT pg_terminate_backend($pid)");
wait_until('it is gone', sub { !alive($pid) });
cmp_ok(time() - $started, '<', $AT_ONCE, sprintf('the dispatcher ends at once: %.0f ms', 1000 * (time() - $started)));
until_dispatcher($session, $pid);
alter_server($session, 'hang', 'ADD', connect_timeout => '100ms');
my $waits = enqueue($session, server => 'hang', max_attempts => \'1');
$session->value("SELECT feishu.cancel_flow(id) FROM feishu.flows WHERE server = 'hang' AND id <> $waits");
fails_with($session, "SELECT feishu.wait_flow($waits)", 'LK504', 'a queued flow fails in connect_timeout');

alter_server($session, 'hang', 'SET', connect_timeout => '10min');
enqueue_many($session, 11, 20, server => 'hang');
until_true(
	$session,
	'the dispatcher hangs in the resolver',
	"SELECT sending > 0 FROM feishu.dispatch_status WHERE server = 'hang'");
hang('hang');
$started = time();
$node->stop('fast');
cmp_ok(time() - $started,
	'<', $AT_ONCE, sprintf('a fast shutdown with resolvers that hang takes %.0f ms', 1000 * (time() - $started)));

done_testing();
