
# What is read of an answer's headers, and what is not: how long the platform asks to wait, its log id, where a redirect
# leads, and how much of all this there may be.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url }, { tenant_access_token => 't-x' });
my $session = FeishuFlow::Session->new($node);

# The mock's next answers are these bytes.
sub answers
{
	my ($status, $headers, $body, $before) = @_;
	$body //= '{"code": 99991400, "msg": "no"}';
	$mock->fault(
		type => 'raw',
		text => ($before // '')
		  . "HTTP/1.1 $status\r\nConnection: close\r\n"
		  . join('', map { "$_\r\n" } @$headers)
		  . 'Content-Length: '
		  . length($body)
		  . "\r\n\r\n$body");
	return;
}

# ---- how long to wait ----

# For how long calls of an app wait after a 429, as the log tells it: "0.05" is the least, "1" if it does not say.
my $apps = 0;

sub pause_after
{
	my ($headers, $before) = @_;
	my $server = 'paused_' . ++$apps;
	create_server($node, $server, { base_url => $mock->url }, { tenant_access_token => "t-$apps" });
	answers('429 Slow', $headers, undef, $before);
	$session->ask(flow(server => $server));
	return slurp_file($node->logfile) =~ /server "$server" limits the rate of the app, calls wait for (\S+) s/
	  ? $1
	  : undef;
}

my ($reset, $after) = ('X-Ogw-Ratelimit-Reset', 'Retry-After');
foreach my $case (
	[ [], 1, 'nothing is said' ],
	[ ["$reset: 3"], 3, 'the platform says it' ],
	[ ["$reset: 2.5"], 2.5, 'it says it with a fraction' ],
	[ [ lc($reset) . ":3" ], 3, 'letters are of no account, nor are spaces' ],
	[ ["$reset: \t 3 \t "], 3, '... however many' ],
	[ ["$reset: 0"], 0.05, 'it says none' ],
	[ ["$reset: 86400"], 300, 'it says a day' ],
	[ ["$reset: 86401"], 1, 'more is nonsense' ],
	[ ["$reset: -5"], 1, '... and so is less than none' ],
	[ ["$reset: soon"], 1, '... and a word' ],
	[ ["$reset: nan"], 1, '... and what is no number' ],
	[ ["$reset:"], 1, '... and nothing' ],
	[ ["X-Ogw-Ratelimit-Resets: 3"], 1, 'another header is not that one' ],
	[ ["$after: 7"], 7, 'a gateway says it' ],
	[ ["$after:   7  "], 7, '... with spaces' ],
	[ ["$after: 99999999999999999999"], 300, '... far too much' ],
	[ ["$after: 7 s"], 1, '... in another way' ],
	[ ["$after: soon"], 1, '... in words' ],
	[ ["$after:"], 1, '... not' ],
	[ [ "$after: 7", "$reset: 3" ], 3, 'both do: the platform counts' ],
	[ [ "$reset: 3", "$after: 7" ], 3, '... also if it comes first' ],
	[ [ "$reset: soon", "$after: 7" ], 7, '... but not if it makes no sense' ],
	[ [ "$after: 7", "$reset: -1" ], 7, '... whichever comes first' ],
	[ [ "$after: " . strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time() - 1000)) ], 0.05, 'a time that is over' ])
{
	my ($headers, $seconds, $name) = @$case;
	is(pause_after($headers), $seconds, "after a 429, $name");
}
my $later = pause_after([ "$after: " . strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time() + 200)) ]);
cmp_ok($later, '<=', 200, 'a time to come is waited for');
cmp_ok($later, '>', 200 - $FeishuFlow::PATIENCE, '... as long as it takes');

# ---- of an interim answer, nothing is ----

my $plain = '{"code": 2320001, "msg": "no"}';
my $success = '{"code": 0, "msg": "success", "data": {}}';

sub interim
{
	return "HTTP/1.1 103 Early Hints\r\n" . join('', map { "$_\r\n" } @_) . "\r\n";
}

is(pause_after([], interim("$reset: 9")), 1, 'how long to wait is not what an interim answer says');
is(pause_after([], interim("$after: 9")), 1, '... nor what it says for a gateway');
is(pause_after(["$after: 7"], interim("$reset: 9")), 7, '... but what the answer does');
answers('400 Bad', [], $plain, interim('X-Tt-Logid: INTERIM', 'X-Request-Id: INTERIM'));
my $result = fails_with($session, flow(), 'LK400', 'a refusal behind an interim answer');
unlike($result->{detail}, qr/INTERIM|log id/, '... has no log id of that');
answers('400 Bad', ['X-Request-Id: REQUEST'], $plain, interim('X-Tt-Logid: INTERIM'));
fails_with(
	$session, flow(), 'LK400',
	'... and one of its own, whatever that said',
	detail => qr/log id REQUEST(?:,|$)/m);
answers('302 Found', [], '', interim('Location: https://there.invalid/'));
unlike(fails_with($session, flow(), 'LK404', 'a redirect behind an interim answer')->{detail},
	qr/there/, '... does not lead where that said');
answers('200 OK', [], $success, interim('Content-Encoding: gzip'));
succeeds($session, flow(), 'an answer is encoded as it says, and not as an interim one says');
answers('200 OK', ['X-Tt-Logid: y'], $success, interim('Transfer-Encoding: identity'));
succeeds($session, flow(), '... likewise of how it is transferred');

# ---- whose clock it is ----

foreach my $case (
	[ 'Date: Mon, 06 Jan 2025 10:00:00 GMT', '', 1 ],
	[ '', 'Date: Mon, 06 Jan 2025 10:00:00 GMT', 0 ],
	[ 'Date: some day', '', 0 ])
{
	my ($date, $before, $told) = @$case;
	$mock->rules(
		[
			{ kind => 'scopes' },
			{
				type => 'raw',
				text => ($before ? interim($before) : '')
				  . "HTTP/1.1 200 OK\r\nConnection: close\r\n"
				  . ($date ? "$date\r\n" : '')
				  . 'Content-Length: '
				  . length($success)
				  . "\r\n\r\n$success"
			}
		]);
	my $hint = $session->value(q{SELECT message || ' ' || coalesce(hint, '') FROM feishu.check_server()});
	($told ? \&like : \&unlike)->(
		$hint, qr/clock/,
		$told     ? 'a clock that differs is told'
		: $before ? '... but not that of an interim answer'
		:           '... nor one that nobody can read');
}

# ---- how long a connection may be kept ----

# Of a second, the first half.
foreach my $case (
	[ 'timeout=1', '', 1 ],
	[ 'max=5,timeout=1', '', 1 ],
	[ 'max=5, Timeout=1', '', 1 ],
	[ "max=5;\ttimeout=1", '', 1 ],
	[ 'xtimeout=1', '', 0 ],
	[ 'timeout=x', '', 0 ],
	[ 'max=1', '', 0 ],
	[ 'timeout=600', '', 0 ],
	[ '', 'timeout=1', 0 ])
{
	my ($says, $before, $ends) = @$case;
	my $caller = FeishuFlow::Session->new($node);
	$mock->fault(
		type => 'raw',
		close => JSON::PP::false,
		text => ($before ? interim("Keep-Alive: $before") : '')
		  . "HTTP/1.1 200 OK\r\n"
		  . ($says ? "Keep-Alive: $says\r\n" : '')
		  . 'Content-Length: '
		  . length($success)
		  . "\r\n\r\n$success");
	succeeds($caller, flow(), 'a call');
	my $answered = time();
	wait_until('half a second is over', sub { time() > $answered + 0.6 });
	# over that one, nobody answers any more
	my $name = ($before ? "of an interim answer, Keep-Alive: $before" : "Keep-Alive: $says")
	  . ($ends ? ' ends the connection' : ' does not end a connection');
	$ends ? succeeds($caller, flow(), $name) : fails_with($caller, flow(timeout => '400ms'), 'LK504', $name);
	$caller->quit;
}

# ---- the log id ----

foreach my $case (
	[ [ 'X-Tt-Logid: TT', 'X-Request-Id: REQUEST' ], 'TT' ],
	[ [ 'X-Request-Id: REQUEST', 'X-Tt-Logid: TT' ], 'TT' ],
	[ ['X-Request-Id: REQUEST'], 'REQUEST' ],
	[ [ 'X-Request-Id:  REQUEST  ', 'X-Request-Ids: OTHER' ], 'REQUEST' ])
{
	my ($headers, $id) = @$case;
	answers('400 Bad', $headers, $plain);
	fails_with($session, flow(), 'LK400', "the log id of @$headers", detail => qr/log id $id(?:,|$)/m);
}
answers('400 Bad', [], '{"code": 2320001, "msg": "no", "error": {"log_id": "BODY"}}');
fails_with($session, flow(), 'LK400', '... or what the answer has', detail => qr/log id BODY(?:,|$)/m);
answers('400 Bad', ['X-Request-Id: REQUEST'], '{"code": 2320001, "msg": "no", "error": {"log_id": "BODY"}}');
fails_with($session, flow(), 'LK400', '... which the header goes before', detail => qr/log id REQUEST(?:,|$)/m);
foreach my $length (255, 256)
{
	answers('400 Bad', [ 'X-Tt-Logid: ' . ('x' x $length) ], $plain);
	$result = fails_with($session, flow(), 'LK400', "a log id of $length characters");
	is($result->{detail} =~ /log id (x+)/ ? length $1 : 0, $length > 255 ? 0 : $length, '... is whole, or none');
}

# ---- where a redirect leads ----

foreach my $case (
	[ 'https://there.invalid/' . ('x' x 233), 'https://there.invalid/' . ('x' x 233), 'is told whole' ],
	[ 'https://there.invalid/' . ('x' x 234), 'https://there.invalid', 'is told by its host if it is long' ],
	[ 'https://there.invalid?' . ('x' x 300), 'https://there.invalid', '... whatever is behind that' ],
	[ 'https://there.invalid#' . ('x' x 300), 'https://there.invalid', '... likewise' ],
	[ '/' . ('x' x 300), undef, '... or not at all' ],
	[ 'https://' . ('x' x 300) . '.invalid/', undef, '... also if that is too long' ])
{
	my ($location, $shown, $name) = @$case;
	answers('302 Found', ["Location: $location"], '');
	$result = fails_with($session, flow(), 'LK404', "a redirect $name");
	is($result->{detail} =~ /location (\S*?)\.?(?:,|$)/m ? $1 : undef, $shown, '... as far as it may be');
}

# ---- how much there may be ----

sub lines
{
	my ($n, $size) = @_;
	return map { "X-Line-$_: " . ('x' x $size) } 1 .. $n;
}

foreach my $case (
	[ 'of 500 lines', 500, 10, 1 ],
	[ 'of 600 lines', 600, 10, 0 ],
	[ 'of 60 kB', 60, 1000, 1 ],
	[ 'of 70 kB', 70, 1000, 0 ])
{
	my ($what, $n, $size, $ok) = @$case;
	answers('200 OK', [ lines($n, $size) ], $success);
	$ok
	  ? succeeds($session, flow(), "an answer with headers $what is read")
	  : fails_with($session, flow(), 'LK502', "one with headers $what is too large", message => qr/too large/);
}
foreach my $case ([ 'of 70 kB', 70, 1000 ], [ 'of 600 lines', 600, 10 ])
{
	my ($what, $n, $size) = @$case;
	$mock->fault(
		type => 'raw',
		text => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		  . sprintf("%x\r\n%s\r\n0\r\n", length($success), $success)
		  . join('', map { "$_\r\n" } lines($n, $size)) . "\r\n");
	fails_with($session, flow(), 'LK502', "one with trailers $what, too", message => qr/too large/);
}

# ---- how it is transferred ----

foreach my $case ([ 'identity', 1 ], [ 'Identity', 1 ], [ 'gzip', 0 ], [ 'gzip, chunked', 0 ], [ 'deflate', 0 ])
{
	my ($encoding, $ok) = @$case;
	answers('200 OK', ["Transfer-Encoding: $encoding"], $success);
	$ok
	  ? succeeds($session, flow(), "an answer with Transfer-Encoding $encoding is read")
	  # which libcurl from 8 on does not tell from one that is broken
	  : fails_with(
		$session, flow(), 'LK502',
		"one with Transfer-Encoding $encoding was not asked for",
		detail => qr/was not requested|compression is broken/);
}
$mock->fault(
	type => 'raw',
	text => "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
	  . sprintf("%x\r\n%s\r\n0\r\n\r\n", length($success), $success));
succeeds($session, flow(), 'one in chunks is read');

done_testing();
