
# To read an answer, and to record it, takes its size a few times, and not many times what is in it, whatever that is.

use strict;
use warnings;

use Compress::Zlib ();
use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

# What watches memory takes some of its own.
plan skip_all => 'memory is not limited when it is watched' if $FeishuFlow::SLOW > 1;

my $token = 'u-a-token-that-is-fixed-0123456789';

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url }, { tenant_access_token => $token });
my $session = FeishuFlow::Session->new($node);
$mock->rules([ { kind => 'execute' }, { type => 'status', status => 200, body => { code => 0, data => {} } } ]);
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);
my ($size) = slurp_file("/proc/$pid/status") =~ /^VmSize:\s+(\d+) kB/m;

# An answer with this member comes, where there is so much room.
sub answer
{
	my ($what, $megabytes, $member) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $packed = Compress::Zlib::memGzip("{\"code\": 0, \"data\": {}, $member}");
	my $answer = join("\r\n",
		'HTTP/1.1 200 OK',
		'Content-Type: application/json',
		'Content-Encoding: gzip',
		'Connection: close',
		'Content-Length: ' . length($packed),
		'', $packed);
	$mock->rules([ { kind => 'execute' }, { type => 'raw', bytes_b64 => encode_base64($answer) } ]);
	my $limit = ($size + $megabytes * 1024) * 1024;
	system('prlimit', '--pid', $pid, "--as=$limit:") == 0 or die "prlimit: $?";
	my $id = enqueue($session, max_attempts => \1);
	until_ended($session, "id = $id");
	is(look($session, $id, 'state, error'), 'succeeded|', "$what: there is enough memory in $megabytes MB");
	return $id;
}

# Twice the size for a buffer that grows, and as much again.
answer('a text of 15 MB', 80, '"text": "' . 'x' x 15_000_000 . '"');
answer('many values', 64, '"many": [' . join(',', ('1') x 250_000) . ']');
answer('many objects', 64, '"many": [' . join(',', ('{"a":1}') x 125_000) . ']');
answer('many empty objects', 48, '"many": [' . join(',', ('{}') x 125_000) . ']');

(my $echoed = $token) =~ s/-/\\u002d/g;
my $id = answer('secrets in values', 80, '"many": [' . join(',', ('"' . 'x' x 100 . $echoed . '"') x 60_000) . ']');
is( $session->value(
			"SELECT count(*) FROM feishu.flows, jsonb_array_elements_text(response -> 'many') v "
		  . "WHERE id = $id AND v = repeat('x', 100) || repeat('*', length('$token'))"),
	60_000,
	'... and none is left');
$id =
  answer('secrets in names', 80, '"many": [' . join(',', ("{\"$echoed\": 1, \"" . 'x' x 100 . '": 2}') x 60_000) . ']');
is( $session->value(
			"SELECT count(*) FROM feishu.flows, jsonb_array_elements(response -> 'many') v "
		  . "WHERE id = $id AND v ->> repeat('*', length('$token')) = '1' AND v ->> repeat('x', 100) = '2'"),
	60_000,
	'... and none is left');
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
