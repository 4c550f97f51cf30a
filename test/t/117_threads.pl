
# Names are resolved in threads. When there is none to be had, a call says what is short; a dispatcher waits, fails no
# flow, counts no attempt, and does not hold it against the platform.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# A newer one keeps threads, and has names wait for one until connect_timeout.
my ($version) = `curl-config --vernum` =~ /^([0-9a-f]{6})$/;
plan skip_all => 'libcurl is newer than 8.19' if !defined $version || hex($version) >= 0x081400;

# The resolver knows platform.slow; libcurl needs no thread for localhost.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $scarce = "$dir/scarce";
foreach my $library ('hanging_resolver', 'scarce_threads')
{
	system('cc', '-shared', '-fPIC', '-o', "$dir/$library.so", "$FindBin::RealBin/../lib/$library.c", '-ldl') == 0
	  or plan skip_all => 'no C compiler for threads that cannot be started';
}
chmod 0755, $dir;

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = "$dir/hanging_resolver.so:$dir/scarce_threads.so";
	local $ENV{SCARCE_THREADS} = $scarce;
	$node = queue_cluster('main');
}
create_server($node, 'feishu', { base_url => 'http://platform.slow:' . $mock->port });
my $session = FeishuFlow::Session->new($node);
my $pid = until_dispatcher($session);

append_to_file($scarce, '');
fails_with($session, flow(), 'LK503', 'a call for which no thread can be started',
	message => qr/the database host ran short/, hint => qr/^See that the database host/);
my $waits = FeishuFlow::Session->new($node);
enqueue_many($waits, 1, 10);
wait_until('the dispatcher has noticed', sub { slurp_file($node->logfile) =~ /could not prepare flow \d+, and tries again/ });
is($waits->value('SELECT DISTINCT attempts FROM feishu.flows WHERE finished_at IS NULL'), '0', 'flows wait, and no attempt is counted');
unlink $scarce;
until_ended($waits);
is(ends($waits), 'succeeded 10', '... and are sent when it can');
is($waits->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... at their first attempt');
is(dispatcher($waits), $pid, '... by the same dispatcher');
unlike(slurp_file($node->logfile), qr/does not answer/, '... and nothing is said of the platform');

done_testing();
