
# Large rows: operator, params and masks of all that is under way are bounded in memory together, however many lanes
# have some; and each large flow gets its turn.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# What watches memory takes some of its own.
my $MOST_MEMORY = 128 * 1024 * ($FeishuFlow::SLOW > 1 ? 4 : 1);
my $LANES = 30;

my $mock = FeishuFlow::Mock->start('--cut', 100);
# The last ones are larger than may be sent by default.
my $node = queue_cluster('main', conf => "feishu_flow.max_request_size = '64MB'\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
make_lanes($session, $LANES);
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

# A flow of each lane and some of one, with so many megabytes in one column; the dispatcher's memory at most until all
# have ended, each answered after a while.
sub most_memory
{
	my ($column, $value) = @_;
	begin_anew($mock, $session, 'feishu');
	$session->value('SELECT feishu.purge_flows(now())');
	$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 300 } ]);
	my %large = ($column => \$value, server => 'feishu');
	$session->value("SELECT feishu.pause_server('feishu')");
	enqueue_lanes($session, $LANES, params => \'NULL', %large);
	enqueue($session, %large) for 1 .. 10;
	my $before = private_kilobytes($pid);
	$session->value("SELECT feishu.resume_server('feishu')");
	my $most = until_ended_watching($session, $pid);
	is(ends($session, 'attempts = 1'), 'succeeded ' . ($LANES + 10), "large $column: all are sent, with one attempt");
	cmp_ok($most, '<', $MOST_MEMORY, '... with bounded memory');
	note("$column: $most kB at most, $before before");
	cmp_ok($mock->stats->{max_concurrent_executes}, '>', 1, '... side by side');
	return;
}

my $text = "repeat(md5(random()::text), 5 * 32768)";
most_memory(operator => "jsonb_build_object('_id', 1, 'text', $text)");
most_memory(params => "jsonb_build_object('text', $text)");
most_memory(loop_masks => "(SELECT jsonb_agg(repeat(md5(random()::text), 8 * 1024)) FROM generate_series(1, 20))");

# One that is larger than the bound is sent all the same, alone.
begin_anew($mock, $session, 'feishu');
my @ids = map { enqueue($session, params => \"jsonb_build_object('text', repeat('x', 40 * 1024 * 1024))") } 1 .. 2;
push @ids, enqueue($session, params => \"jsonb_build_object('text', $text)");
until_ended($session);
is(look($session, $_, 'state, attempts'), 'succeeded|1', 'a flow larger than the bound has its turn') foreach @ids;
is(dispatcher($session), $pid, '... with one dispatcher');

done_testing();
