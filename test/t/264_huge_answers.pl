
# Answers that are large, or unpack to what is large, are bounded in memory, however many come at once: those that find
# no room wait, and so does nobody else.

use strict;
use warnings;

use Compress::Zlib ();
use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use List::Util   qw(max);
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What watches memory takes some of its own.
my $MOST_MEMORY = 128 * 1024 * ($FeishuFlow::SLOW > 1 ? 4 : 1);
my $AT_ONCE = 15 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $hostile = FeishuFlow::Mock->start('--accept-hang');
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'hostile', { base_url => $hostile->url, timeout => '10min' });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN; CREATE ROLE app LOGIN');
my $eve = FeishuFlow::Session->new($node, user => 'eve');
my $app = FeishuFlow::Session->new($node, user => 'app');
enqueue($app);
until_ended($session);
my $pid = until_dispatcher($session);

# So many flows of the hostile server, whose answers are like this; and one of another role that ends at once. Returns
# the most memory until then, and the time when it had ended.
sub attack
{
	my ($name, $n, $fault) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->value('SELECT feishu.purge_flows(now())');
	$hostile->mark;
	$hostile->rules([ { kind => 'execute', flow_id => 'huge' }, $fault ]);
	$session->value("SELECT feishu.pause_server('hostile')");
	enqueue_many($eve, 1, $n, server => 'hostile', flow_id => 'huge', max_attempts => \1);
	$session->value("SELECT feishu.resume_server('hostile')");
	$hostile->wait_for(1, kind => 'execute', flow_id => 'huge');
	my $begun = time();
	my $others = enqueue($app, params => '{"n": 1}');
	my $most = until_ended_watching($session, $pid, "id = $others");
	cmp_ok(time() - $begun, '<', $AT_ONCE, sprintf("$name: another role's flow ends at once: %.1f s", time() - $begun));
	is(look($session, $others, 'state, attempts'), 'succeeded|1', '... well');
	return $most;
}

sub until_all_ended
{
	my ($name, $n, $most) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $later = until_ended_watching($session, $pid);
	$most = $later if $later > $most;
	is(ends($session, "flow_id = 'huge' AND attempts = 1 AND length(response::text) > 10000000"),
		"succeeded $n", "$name: all have their answers");
	cmp_ok($most, '<', $MOST_MEMORY, sprintf('... with bounded memory: %d kB', $most));
	is(dispatcher($session), $pid, '... and one dispatcher');
	return;
}

sub response
{
	my ($body, @headers) = @_;
	return join("\r\n",
		'HTTP/1.1 200 OK',
		'Content-Type: application/json',
		'Content-Length: ' . length($body),
		'Connection: close',
		@headers, '', $body);
}

# ---- what is packed ----

my $json = '{"code": 0, "data": {}, "padding": "' . 'x' x (15 << 20) . '"}';
my $packed = Compress::Zlib::memGzip($json);
my $most = attack('gzip of 15 MB',
	30, { type => 'raw', bytes_b64 => encode_base64(response($packed, 'Content-Encoding: gzip')) });
until_all_ended('gzip of 15 MB', 30, $most);

# as an encoding of the transfer, which nobody asked for
$most = attack('another encoding',
	10, { type => 'raw', bytes_b64 => encode_base64("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n$packed") });
$most = max($most, until_ended_watching($session, $pid));
is(ends($session, "flow_id = 'huge' AND sqlstate = 'LK502'"), 'failed 10', 'another encoding is no answer');
cmp_ok($most, '<', $MOST_MEMORY, sprintf('... and takes no memory: %d kB', $most));

# ---- what is not ----

$most = attack('12 MB', 16, { type => 'big', bytes => 12 << 20 });
until_all_ended('12 MB', 16, $most);

# ---- what does not end ----

# All but the last byte of 15 MB each, for ten minutes.
$most = attack('what stalls', 30,
	{ type => 'raw', close => JSON::PP::false, bytes_b64 => encode_base64(substr(response($json), 0, -1)) });
$mock->rules([ { kind => 'execute', flow_id => 'mine' }, { type => 'big', bytes => 3 << 20 } ]);
my $begun = time();
my $mine = enqueue($app, flow_id => 'mine');
$most = max($most, until_ended_watching($session, $pid, "id = $mine"));
is(look($session, $mine, 'state, attempts'), 'succeeded|1', 'a large answer of another role comes, too');
cmp_ok(time() - $begun, '<', $AT_ONCE, sprintf('... at once: %.1f s', time() - $begun));
wait_until(
	'who keeps others waiting has had his turn',
	sub { $session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'huge' AND finished_at IS NOT NULL") > 0 }
);
is($session->value("SELECT DISTINCT sqlstate FROM feishu.flows WHERE flow_id = 'huge' AND finished_at IS NOT NULL"),
	'LK502', 'who keeps others waiting ends after his turn');
cmp_ok($most, '<', $MOST_MEMORY, sprintf('... with bounded memory: %d kB', $most));
is(dispatcher($session), $pid, '... and one dispatcher');

# ---- max_response_size ----

$mock->rules([ { kind => 'execute', flow_id => 'large' }, { type => 'big', bytes => 100_000 } ]);

sub large
{
	my ($as) = @_;
	my $id = enqueue($as, flow_id => 'large', max_attempts => \1);
	until_ended($session, "id = $id");
	return look($session, $id, 'state, sqlstate');
}

is(large($app), 'succeeded|', 'an answer of 100 kB is taken');
foreach my $set ('ROLE app', 'DATABASE postgres', 'ROLE app IN DATABASE postgres', 'ROLE ALL')
{
	$session->value("ALTER $set SET feishu_flow.max_response_size = '64kB'");
	wait_until("max_response_size of $set binds the dispatcher", sub { large($app) eq 'failed|LK502' });
	is(large($app), 'failed|LK502', "max_response_size of $set binds the dispatcher");
	$session->value("ALTER $set RESET feishu_flow.max_response_size");
	wait_until("... until it is reset", sub { large($app) eq 'succeeded|' });
}
$session->value("ALTER DATABASE postgres SET feishu_flow.max_response_size = '64kB'");
$app->value("ALTER ROLE app SET feishu_flow.max_response_size = '128MB'");
wait_until('it is seen', sub { large($app) eq 'failed|LK502' });
is(large($app), 'failed|LK502', 'a role cannot raise it for the queue');
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
