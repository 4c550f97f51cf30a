
# Names are resolved in threads, and connections have local ports. When there is none to be had, a call says what is
# short; a dispatcher waits, fails no flow, counts no attempt, and does not hold it against the platform.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# The resolver knows platform.slow; libcurl needs no thread for localhost.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $scarce = "$dir/scarce";
my $ports = "$dir/scarce_ports_now";
foreach my $library ('hanging_resolver', 'scarce_threads', 'scarce_ports')
{
	system('cc', '-shared', '-fPIC', '-o', "$dir/$library.so", "$FindBin::RealBin/../lib/$library.c", '-ldl') == 0
	  or plan skip_all => 'no C compiler for threads that cannot be started';
}
chmod 0755, $dir;

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = "$dir/hanging_resolver.so:$dir/scarce_threads.so:$dir/scarce_ports.so";
	local $ENV{SCARCE_THREADS} = $scarce;
	local $ENV{SCARCE_PORTS} = $ports;
	$node = queue_cluster('main');
}
create_server($node, 'feishu', { base_url => 'http://platform.slow:' . $mock->port });
my $session = FeishuFlow::Session->new($node);
my $pid = until_dispatcher($session);

sub waits_for
{
	my ($what, $file, $server) = @_;
	my $before = -s $node->logfile;
	append_to_file($file, '');
	fails_with(
		$session, flow(server => $server), 'LK503', "a call without a $what",
		message => qr/the database host ran short/,
		hint => qr/^Check that the database host.* ${what}s/);
	my $waits = FeishuFlow::Session->new($node);
	my $ended = $waits->value('SELECT count(*) FROM feishu.flows');
	enqueue_many($waits, $ended + 1, $ended + 10, server => $server);
	wait_until('the dispatcher has noticed',
		sub { slurp_file($node->logfile, $before) =~ /could not prepare flow \d+, and tries again/ });
	is($waits->value('SELECT DISTINCT attempts FROM feishu.flows WHERE finished_at IS NULL'),
		'0', 'flows wait, and no attempt is counted');
	unlink $file;
	until_ended($waits);
	is(ends($waits), 'succeeded ' . ($ended + 10), '... and are sent when it can');
	is($waits->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... at their first attempt');
	is(dispatcher($waits), $pid, '... by the same dispatcher');
	unlike(slurp_file($node->logfile, $before), qr/does not answer/, '... and nothing is said of the platform');
	return;
}

# A newer libcurl keeps threads, and has names wait for one until connect_timeout.
my ($version) = `curl-config --vernum` =~ /^([0-9a-f]{6})$/;
SKIP:
{
	skip 'libcurl is newer than 8.19', 1 if !defined $version || hex($version) >= 0x081400;
	waits_for('thread', $scarce, 'feishu');
}
create_server($node, 'near', { base_url => $mock->url });
waits_for('local port', $ports, 'near');

# ---- a token request that others wait for ----

create_server($node, 'shared', { base_url => 'http://other.slow:' . $mock->port });
my $other = FeishuFlow::Session->new($node);
my $watch = FeishuFlow::Session->new($node);
append_to_file($ports, POSIX::EADDRNOTAVAIL . ' ' . $session->pid);
$session->send(flow(server => 'shared'));
wait_until(
	'a session asks for the token',
	sub {
		$watch->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $session->pid) eq 'Extension';
	});
$other->send(flow(server => 'shared'));
is($session->result->{sqlstate}, 'LK503', 'a session without a local port gets no token');
is($other->result->{sqlstate}, '00000', '... and one that waits for that asks by itself');
unlink $ports;

done_testing();
