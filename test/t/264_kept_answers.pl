
# Answers over kept connections that have to wait for memory come whole: nobody takes their connections for idle ones,
# on which nothing may come. Nor are more of them read than there is memory for, when they cannot be recorded.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Compress::Zlib ();
use FeishuFlow;
use FeishuQueue;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $FLOWS = 12;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# So many connections that have brought an answer.
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
enqueue_many($session, 1, $FLOWS);
$mock->wait_for($FLOWS, kind => 'execute');
$mock->well;
until_ended($session);
my $pid = until_dispatcher($session);
is(ends($session), "succeeded $FLOWS", 'connections are kept');

$session->value('SELECT feishu.purge_flows(now())');
$session->value("SELECT feishu.pause_server('feishu')");
$mock->rules([ { kind => 'execute', flow_id => 'large' }, { type => 'big', bytes => 4 << 20 } ]);
$mock->mark;
enqueue_many($session, 1, $FLOWS, flow_id => 'large', max_attempts => \1);
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
is( ends($session, 'attempts = 1 AND length(response::text) > 4000000'),
	"succeeded $FLOWS",
	'large answers over kept connections come whole');
is($session->value('SELECT DISTINCT error FROM feishu.flows WHERE error IS NOT NULL'), '', '... all of them');
is(dispatcher($session), $pid, 'one dispatcher did all');

# ---- what cannot be recorded ----

# A platform whose answers are small, and large when they are unpacked. It gives them all at once, when it is told to.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $packed = Compress::Zlib::memGzip('{"code": 0, "data": {}, "padding": "' . 'x' x (8 << 20) . '"}');
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => $FLOWS) or die "socket: $!";
forked(
	'platform',
	sub {
		my @clients;
		foreach (1 .. $FLOWS)
		{
			my $client = $listener->accept or die "accept: $!";
			my $request = '';
			sysread($client, $request, 65536, length $request) or die "read: $!" until $request =~ /\r\n\r\n.*\}/s;
			push @clients, $client;
		}
		append_to_file("$dir/asked", '');
		wait_until('it may answer', sub { -e "$dir/answer" });
		syswrite($_,
			"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: " . length($packed) . "\r\n\r\n$packed")
		  foreach @clients;
		# until all have closed their connections
		foreach my $client (@clients)
		{
			1 while sysread($client, my $rest, 65536);
		}
	});
create_server(
	$node, 'packing',
	{ base_url => 'http://127.0.0.1:' . $listener->sockport },
	{ tenant_access_token => 't-x' });
my $locker = FeishuFlow::Session->new($node);
enqueue_many($session, 1, $FLOWS, server => 'packing', flow_id => 'packed', max_attempts => \1);
wait_until('all are sent', sub { -e "$dir/asked" });
$locker->value('BEGIN; LOCK TABLE feishu_internal.outbox IN SHARE MODE');
my $before = private_kilobytes($pid);
append_to_file("$dir/answer", '');
wait_until('it reads answers', sub { private_kilobytes($pid) > $before + 4096 });
my ($most, $grown) = (0, time());
wait_until(
	'it grows no more',
	sub {
		my $now = private_kilobytes($pid) - $before;
		$grown = time() if $now > $most + 4096;
		$most = $now if $now > $most;
		return time() - $grown >= 1;
	});
is($session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'packed' AND finished_at IS NOT NULL"),
	0, 'no end can be recorded');
cmp_ok($most, '<', 40 * 1024, "... then few answers are unpacked: $most kB");
$locker->value('COMMIT');
until_ended($session);
is( ends($session, "flow_id = 'packed' AND attempts = 1 AND length(response::text) > 8000000"),
	"succeeded $FLOWS",
	'... and all when they can');
is(dispatcher($session), $pid, '... by the same dispatcher');

done_testing();
