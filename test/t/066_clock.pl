
# The clock of the machine is set while a call is under way: the call ends in its time all the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
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
	$node = new_cluster('main');
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

done_testing();
