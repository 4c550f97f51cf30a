
# Of an answer, the final status and its headers count: interim answers are none, and an answer that comes before the
# request is all sent is one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuFront;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my @early = map { ("early_413:$_", "early_413_bare:$_") } qw(no_error cancel goaway);
my $front = FeishuFront->start($mock, 'interim', @early, 'early_413:none', 'early_413:close');
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'interim', $front->options('interim'));
my $session = FeishuFlow::Session->new($node);

# ---- interim answers ----

my $interim =
	"HTTP/1.1 103 Early Hints\r\nX-Tt-Logid: interim\r\nX-Request-Id: interim\r\nX-Ogw-Ratelimit-Reset: 60\r\n"
  . "Location: https://elsewhere.invalid/\r\nRetry-After: 60\r\nContent-Type: text/html\r\n"
  . "Date: Thu, 01 Jan 2015 00:00:00 GMT\r\n\r\n";
my $refusal = '{"code": 99991400, "msg": "frequency limit"}';

# What the mock answers by itself, behind an interim answer.
sub interim_then
{
	my ($status, $body, $headers) = @_;
	$mock->fault(
		type => 'raw',
		text => $interim
		  . "HTTP/1.1 $status\r\nConnection: close\r\n"
		  . ($headers // '')
		  . 'Content-Length: '
		  . length($body)
		  . "\r\n\r\n$body");
	return;
}

succeeds($session, flow(), 'a call');
interim_then('400 Bad', '{"code": 2320001, "msg": "no"}', "X-Request-Id: final\r\n");
my $result = fails_with($session, flow(), 'LK400', 'a refusal behind an interim answer', detail => qr/\bfinal\b/);
unlike($result->{err}, qr/interim/, '... has nothing of it');
interim_then('302 Found', '');
$result = fails_with($session, flow(), 'LK404', 'a redirect without a target behind an interim answer');
unlike($result->{detail}, qr/elsewhere/, '... leads nowhere');
interim_then('400 Bad', $refusal, "X-Ogw-Ratelimit-Reset: 0\r\n");
fails_with($session, flow(), 'LK429', 'a rate limit behind an interim answer');
$mock->well;
succeeds($session, flow(timeout => '20s'), '... does not last as long as that said');
interim_then('429 Slow', $refusal, "Retry-After: 0\r\n");
fails_with($session, flow(), 'LK429', 'the same with Retry-After');
$mock->well;
succeeds($session, flow(timeout => '20s'), '... does not either');
$mock->fault(type => 'raw', text => $interim);
fails_with(
	$session, flow(), 'LK503', 'an interim answer and no other is no answer',
	message => qr/broke off before an answer/,
	hint => qr/may have started/);
$mock->well;

$mock->mark;
succeeds($session, flow(server => 'interim'), 'a call over HTTP/2 with an interim answer');
my $refused = fails_with($session, flow(server => 'interim', flow_id => 'refusedFlow'), 'LK400', '... and a refusal');
unlike($refused->{err}, qr/interim|elsewhere/, '... has nothing of it');
$mock->fault(type => 'code', code => 99991400, reset => 0);
fails_with($session, flow(server => 'interim'), 'LK429', 'a rate limit over HTTP/2 behind an interim answer');
$mock->well;
succeeds($session, flow(server => 'interim', timeout => '20s'), '... does not last as long as that said');

# ---- an answer before the request is all sent ----

my $large = \"jsonb_build_object('x', repeat('x', 10000000))";
foreach my $fault (@early, 'early_413:none')
{
	my $server = $fault =~ s/:/_/r;
	create_server($node, $server, $front->options($fault), { tenant_access_token => 't-x' });
	fails_with(
		$session, flow(server => $server, params => $large), 'LK400', "$fault is an answer",
		message => qr/too large/,
		detail => qr/HTTP status 413/);
	is($front->hits($fault, 413), 1, '... to the one request that there was');
	my $id = enqueue($session, server => $server, params => $large);
	until_ended($session, "id = $id");
	is(look($session, $id, 'state, attempts, sqlstate'), 'failed|1|LK400', '... also to a queued flow');
	is($front->hits($fault, 413), 2, '... that is not sent again');
}

# HTTP/1.1: a gateway that closes the connection behind its answer
create_server(
	$node, 'http11',
	$front->options('early_413:close', http_version => '1.1'),
	{ tenant_access_token => 't-x' });
fails_with(
	$session, flow(server => 'http11', params => $large), 'LK400', 'the same over HTTP/1.1',
	message => qr/too large/,
	detail => qr/HTTP status 413/);
my $id = enqueue($session, server => 'http11', params => $large);
until_ended($session, "id = $id");
is(look($session, $id, 'state, sqlstate'), 'failed|LK400', '... also to a queued flow');

# ---- what is no final answer ----

# The status of a refusal does not say which one it is: its code does.
$mock->rules(
	[
		{ kind => 'execute' },
		{ type => 'raw', text => "HTTP/1.1 400 Bad\r\nContent-Length: 1000\r\n\r\n" . substr($refusal, 0, 8) }
	]);
fails_with($session, flow(), 'LK502', 'a refusal that breaks off is none');
$mock->rules(
	[ { kind => 'execute' }, { type => 'raw', text => "HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\nbusy" } ]);
fails_with($session, flow(), 'LK500', 'what a gateway says by its status needs no body');
$mock->well;

done_testing();
