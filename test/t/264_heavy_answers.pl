
# Answers that take long to read come one at a time, and between two of them all others are heard: who has many of
# them holds up nobody else.

use strict;
use warnings;

use Compress::Zlib ();
use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use MIME::Base64 qw(encode_base64);
use Test::More;

my $HEAVY = 45;

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $hostile = FeishuFlow::Mock->start('--accept-hang');
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'hostile', { base_url => $hostile->url, timeout => '10min' });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN');
my $eve = FeishuFlow::Session->new($node, user => 'eve');
enqueue($session);
until_ended($session);

# Blanks: much to read, and nothing to keep.
my $packed = Compress::Zlib::memGzip('{"code": 0, ' . ' ' x (15 << 20) . '"data": {}}');
my $head = join("\r\n",
	'HTTP/1.1 200 OK',
	'Content-Type: application/json',
	'Content-Length: ' . length($packed),
	'Content-Encoding: gzip',
	'Connection: close',
	'', '');
$hostile->rules([ { kind => 'execute' }, { type => 'raw', bytes_b64 => encode_base64($head . $packed) } ]);
enqueue_many($eve, 1, $HEAVY, server => 'hostile', flow_id => 'huge', max_attempts => \1);
$hostile->wait_for($HEAVY, kind => 'execute');

sub ended
{
	return $session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'huge' AND finished_at IS NOT NULL");
}

# One turn each to claim it, to send it and to read its answer, and some by chance.
my $most = 0;
for (1 .. 5)
{
	my $before = ended();
	my $id = enqueue($session);
	until_ended($session, "id = $id");
	my $meanwhile = ended() - $before;
	$most = $meanwhile if $meanwhile > $most;
}
cmp_ok($most, '<=', 8, "another role's flow ends while $most that are heavy to read do");
until_ended($session);
is(ends($session, "flow_id = 'huge'"), "succeeded $HEAVY", 'all have their answers');

done_testing();
