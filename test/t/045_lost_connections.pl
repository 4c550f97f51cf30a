
# No message is like one by which frameworks recognise that their connection to the database is lost: they would run the
# statement again, and start the flow a second time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IO::Socket::INET;
use JSON::PP;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $root = "$FindBin::RealBin/../..";
my @phrases = lost_connections();
cmp_ok(scalar @phrases, '>', 100, 'there are phrases to look for');

# ---- what is written in the sources ----

# C strings, those that are put together from several of them whole, with something in place of each directive.
sub strings_of
{
	my ($text) = @_;
	$text =~ s{/\*.*?\*/}{}gs;
	my @strings;
	while ($text =~ /((?:"(?:[^"\\\n]|\\.)*"\s*)+)/g)
	{
		my $string = join('', $1 =~ /"((?:[^"\\]|\\.)*)"/g);
		$string =~ s/\\(.)/$1/g;
		$string =~ s/%(?:\d+\$)?[-+0 #]*[\d*]*(?:\.[\d*]+)?(?:ll|l|z)?[a-zA-Z]/1/g;
		push @strings, $string;
	}
	return @strings;
}

sub holds_none
{
	my ($name, @texts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok(scalar @texts, '>', 0, "$name: there are texts");
	is_deeply(
		[
			map {
				my $text = $_;
				map { "$_: $text" } lost_connections($text)
			} @texts
		],
		[],
		"$name: none is like that of a lost connection");
	return;
}

# phrases.c has them for a reason.
holds_none('the sources',
	map { strings_of(slurp_file($_)) } grep { !m{/phrases\.c$} } glob("$root/src/*.[ch] $root/src/*/*.[ch]"));
holds_none('the translations', strings_of(slurp_file("$root/po/zh_CN.po")));
holds_none('the SQL script', slurp_file("$root/feishu_flow--1.0.sql") =~ /'((?:[^']|'')*)'/g);

# ---- what is said of real failures ----

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $node = new_cluster('main', conf => "feishu_flow.retry_base_delay = '10ms'\nfeishu_flow.retry_max_delay = '20ms'\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# Something else than TLS, or a proxy: says so, and hangs up.
my $plain = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 16) or die "socket: $!";
forked(
	'plain',
	sub {
		while (my $client = $plain->accept)
		{
			sysread($client, my $hello, 1024);
			print $client "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
			close $client;
		}
	});

my %server = (
	refused => [ 'http://127.0.0.1:' . closed_port(), qr/nothing listens at that address and port/ ],
	refused_tls => [ 'https://127.0.0.1:' . closed_port(), qr/nothing listens at that address and port/ ],
	no_way => [
		'http://255.255.255.255', qr/while connecting: (?:the network has no route|the database host does not allow it)/
	],
	plain_as_tls => [ 'https://127.0.0.1:' . $plain->sockport, qr/does not speak TLS/ ],
	full_queue => [ 'http://127.0.0.1:' . full_port(), qr/while connecting/ ],
	silent => [ 'http://127.0.0.1:' . $mock->silent_port, qr/while waiting for the answer/ ],
	silent_tls => [ 'https://127.0.0.1:' . $mock->silent_port, qr/while (?:connecting|establishing the connection)/ ],
	unknown_name => [ 'http://no-such-host.invalid', qr/gave no address for the host|while resolving the host name/ ]);
foreach my $name (sort keys %server)
{
	my ($url, $detail) = @{ $server{$name} };
	create_server($node, $name, { base_url => $url, connect_timeout => '500ms', timeout => '700ms' });
	my $result = $session->ask(flow(server => $name));
	like($result->{sqlstate}, qr/^LK50[34]$/, "$name: a call has no answer") or diag($result->{err});
	like($result->{detail}, $detail, '... and says why in our words');
	is_deeply([ lost_connections($result->{err}) ], [], '... and in no others');
	my $checked = $session->value("SELECT message, hint FROM feishu.check_server('$name')");
	like($checked, $detail, '... as check_server does');
	is_deeply([ lost_connections($checked) ], [], '... in no others, either');
}

fails_with(
	$session,
	flow(server => 'plain_as_tls'),
	'LK503',
	'what does not speak TLS',
	hint =>
	  qr/^Check that base_url leads to a server that speaks TLS 1\.2 or later, and not to a proxy or an http port\.$/);

my %proxy = (
	proxy_refused => [ 'http://127.0.0.1:' . closed_port(), qr/nothing listens/ ],
	proxy_unknown => [ 'http://no-such-host.invalid', qr/gave no address for the proxy|while resolving the host name/ ],
	socks_refused => [ 'socks5h://127.0.0.1:' . closed_port(), qr/nothing listens/ ],
	no_socks => [ 'socks5h://127.0.0.1:' . $plain->sockport, qr/the proxy did not do as it was asked/ ]);
foreach my $name (sort keys %proxy)
{
	my ($url, $detail) = @{ $proxy{$name} };
	create_server($node, $name,
		{ base_url => 'http://platform.invalid', proxy => $url, connect_timeout => '500ms', timeout => '700ms' });
	my $result = $session->ask(flow(server => $name));
	like($result->{sqlstate}, qr/^LK50[34]$/, "$name: a call has no answer") or diag($result->{err});
	like($result->{detail}, $detail, '... and says why in our words');
	is_deeply([ lost_connections($result->{err}) ], [], '... and in no others');
}

my @faults = (
	[ { type => 'reset_before' }, 'LK503', qr/broke the transfer off|a connection that was kept/ ],
	[ { type => 'close_after' }, 'LK503', qr/hung up|a connection that was kept/ ],
	[ { type => 'half_answer' }, 'LK502', qr/the answer is shorter than it says/ ],
	[ { type => 'half_answer', rst => JSON::PP::true }, 'LK502', qr/broke the transfer off/ ],
	[ { type => 'garbage' }, 'LK502', qr/the answer is not HTTP/ ],
	[ { type => 'hang' }, 'LK504', qr/while waiting for the answer\./ ],
	[ { type => 'headers_hang' }, 'LK504', qr/while receiving the answer\./ ]);
foreach my $case (@faults)
{
	my ($fault, $sqlstate, $detail) = @$case;
	my $name = join(' ', map { "$_ $fault->{$_}" } sort keys %$fault);
	$mock->fault(%$fault);
	my $fresh = FeishuFlow::Session->new($node);
	fails_with($fresh, flow(timeout => $sqlstate eq 'LK504' ? '300ms' : '10s'), $sqlstate, $name, detail => $detail);
	$mock->well;
	$fresh->quit;
}

# A call whose token request fails; and flows of the queue, which keep it in a column, and show it to who waits.
$mock->rules([ { kind => 'token' }, { type => 'reset_before' } ]);
create_server($node, 'no_token', { base_url => $mock->url }, { app_id => 'cli_other', app_secret => 'mock-secret' });
fails_with($session, flow(server => 'no_token'), 'LK503', 'no token', detail => qr/broke the transfer off/);
$mock->rules([ { kind => 'execute' }, { type => 'reset_before' } ]);
my $id = enqueue($session, max_attempts => 2);
fails_with(
	$session, "SELECT feishu.wait_flow($id)", 'LK503', 'a flow that was given up',
	message => qr/broke off/,
	detail => qr/broke the transfer off.*Given up after 2 attempts/s);
$mock->well;
my $row = $session->value("SELECT error FROM feishu.flows WHERE id = $id");
like($row, qr/broke off/, '... says so in its row');
is_deeply([ lost_connections($row) ], [], '... in our words');

# ---- what others say ----

# Each phrase, as the platform and as gateways may say it.
my @lost;
my @unlike;
foreach my $phrase (@phrases)
{
	my $text = "upstream: $phrase, sorry";
	my $result;
	foreach my $fault (
		{ type => 'status', status => 400, body => { code => 2320001, msg => $text } },
		{ type => 'status', status => 502, body => "<html>$text</html>", headers => { 'X-Tt-Logid' => $text } },
		{ type => 'inner', code => 'k_wf_ec_200036', error_msg => $text })
	{
		$mock->fault(%$fault);
		$result = $session->ask(flow());
		push @lost, map { "$_: $result->{err}" } lost_connections($result->{err});
		push @unlike, $result->{err}
		  if $result->{detail} !~ /upstream: \Q$phrase\E, sorry/i
		  && $result->{detail} !~ join('.', map { "\Q$_\E" } split(/[^a-zA-Z0-9]/, $phrase));
	}
}
is_deeply(\@lost, [], 'no text of a peer is like that of a lost connection');
is_deeply(\@unlike, [], '... but for a character or two it is there as it came');

$mock->fault(
	type => 'status',
	status => 504,
	body => '<html>Connection reset by peer: upstream Timed out (110)</html>');
fails_with(
	$session, flow(), 'LK500',
	'a gateway that lost its upstream',
	detail => qr/Connection_reset by_peer: upstream Timed_out \(110\)/);
$mock->fault(type => 'code', code => 2320001, msg => 'database is locked');
$id = enqueue($session, max_attempts => 1);
fails_with($session, "SELECT feishu.wait_flow($id)", 'LK400', 'a flow of the queue that was refused so');
$row = $session->value("SELECT error FROM feishu.flows WHERE id = $id");
is_deeply([ lost_connections($row) ], [], '... and its row');
$mock->well;

# A response that is returned is data, and stays as it is.
$mock->fault(type => 'code', code => 2320001, msg => 'reset by peer');
is( JSON::PP->new->decode($session->value(flow(raise_error => \'false')))->{msg},
	'reset by peer',
	'a response that is returned is as it came');

done_testing();
