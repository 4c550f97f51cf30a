
# The clock of the machine is set while a call is under way: the call ends in its time all the same; and while a
# dispatcher is at work: it does not wait for the clock.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# The clock that can be set is a shared library, put before the C library's.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $library = "$dir/set_clock.so";
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/set_clock.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for a clock that can be set';

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{SET_CLOCK} = "$dir/an_hour_earlier";
	$node = queue_cluster('main', conf => "feishu_flow.poll_interval = '1s'\n");
}
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

succeeds($session, flow(), 'a call');
my $now = $session->value('SELECT clock_timestamp()');
$mock->mark;
$mock->fault(type => 'hang');
$session->send(flow(timeout => '1s'));
$mock->wait_for(1, kind => 'execute');
append_to_file("$dir/an_hour_earlier", '');
my $result = fails_with($session, $session->result, 'LK504', 'a call that hangs while the clock is set back ends in its time');
is($session->value('SELECT clock_timestamp() < ' . quote($now)), 't', '... and it was set back');
cmp_ok($result->{seconds}, '<', 30 * $FeishuFlow::SLOW, '... it did not wait for the clock');
$mock->well;
succeeds($session, flow(), '... and the next call works');

$mock->fault(type => 'latency', ms => 1000);
$mock->mark;
$session->send(flow());
$mock->wait_for(1, kind => 'execute');
unlink "$dir/an_hour_earlier";
$result = $session->result;
like($result->{sqlstate}, qr/^(?:00000|LK504)$/, 'a call while the clock is set forward ends');
$mock->well;
succeeds($session, flow(), '... and the next call works');

# ---- the slow poll finds what nobody told of ----

my $id = enqueue($session);
until_state($session, $id, 'succeeded');
append_to_file("$dir/an_hour_earlier", '');
my $unheard = $session->value('INSERT INTO feishu.outbox (id, roleid, database, is_async, own_key, created_at, run_at, expires_at, server, namespace, '
	  . q{flow_id, operator, idempotent_key) SELECT nextval('feishu.outbox_id_seq'), roleid, database, is_async, own_key, clock_timestamp(), }
	  . q{clock_timestamp(), clock_timestamp() + interval '1 hour', server, namespace, flow_id, operator, gen_random_uuid() }
	  . "FROM feishu.outbox WHERE id = $id RETURNING id");
ok(until_state($session, $unheard, 'succeeded'), 'what nobody told of is sent after the clock was set back, with the next poll');
unlink "$dir/an_hour_earlier";
ok(until_state($session, enqueue($session), 'succeeded'), '... and a flow after it was set forward');

done_testing();
