
# A dispatcher that runs out of memory for an answer: that flow fails or is tried again, and the dispatcher goes on as
# before; it can be told to end, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What watches memory takes some of its own.
plan skip_all => 'memory is not limited when it is watched' if $FeishuFlow::SLOW > 1;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
enqueue($session);
until_ended($session);

# Room for 26 MB more, where an answer of 15 MB takes its size several times.
my $pid = until_dispatcher($session);
my ($size) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+) kB/m;
my $limit = ($size + 26 * 1024) * 1024;
system('prlimit', '--pid', $pid, "--as=$limit:$limit") == 0 or die "prlimit: $?";
$mock->fault(type => 'big', bytes => 15_000_000);
my $id = enqueue($session, max_attempts => \1);
until_ended($session, "id = $id");
like(
	look($session, $id, 'state, sqlstate, error'),
	qr/^failed\|LK502\|there was no memory to read the answer/,
	'there is no memory for an answer');
is(dispatcher($session), $pid, '... and the dispatcher goes on');
$mock->well;
$id = enqueue($session);
until_ended($session, "id = $id");
is(look($session, $id, 'state'), 'succeeded', '... with the next flow');

# It waits for a lock now.
my $locker = FeishuFlow::Session->new($node);
$locker->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE');
enqueue($session);
until_true($session, 'it waits for a lock', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
my $started = time();
$session->value("SELECT pg_terminate_backend($pid)");
wait_until('it ends', sub { !alive($pid) });
cmp_ok(time() - $started,
	'<', 5, sprintf('it ends when it is told to, even so: after %.0f ms', 1000 * (time() - $started)));
$locker->value('COMMIT');
until_ended($session);
pass('... and the next one goes on');

done_testing();
