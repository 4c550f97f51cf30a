
# What the peer says it did not process is sent again, also without a key, and costs nothing; what it may have processed
# is not. HTTP/2 has four ways to say so.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuFront;
use FeishuQueue;
use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my @http11 = qw(rst_http11 goaway_http11 goaway_http11_last);
my $front = FeishuFront->start(
	$mock, 'none', @http11, 'refuse:2', 'refuse_all', 'goaway_lower:2',
	'goaway_reset:2', 'refuse_kept:1', 'rst_protocol');
my $node = queue_cluster('main');
my %name = (none => 'well', map { $_ => s/:.*//r } @http11, 'refuse:2', 'refuse_all', 'goaway_lower:2');
create_server($node, $name{$_}, $front->options($_)) foreach sort keys %name;
my $session = FeishuFlow::Session->new($node);

# Flows of a server are delivered, each by one attempt and one start.
sub delivers
{
	my ($server, $count) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	begin_anew($mock, $session, $server);
	enqueue_many($session, 1, $count, server => $server);
	until_ended($session, "server = '$server'");
	is(ends($session, "server = '$server'"), "succeeded $count", "$server: all queued flows are delivered");
	is($session->value("SELECT max(attempts) FROM feishu.flows WHERE server = '$server'"),
		'1', '... what was not processed counts as no attempt');
	started_once($mock, $count, '... and each starts once');
	return;
}

# ---- HTTP_1_1_REQUIRED ----

foreach my $server (@http11)
{
	# no token yet: the request for one is refused in the same way
	$mock->mark;
	my $fresh = FeishuFlow::Session->new($node);
	succeeds($fresh, flow(server => $server, params => '{"n": 1}'), "$server: a call succeeds");
	succeeds($fresh, flow(server => $server, params => '{"n": 2}'), '... and the next');
	is($front->versions($mock), '1.1 1.1', '... over HTTP/1.1, once each');
	my $before = $front->hits($server, 'refused');
	succeeds($fresh, flow(server => $server), '... and one more');
	is($front->hits($server, 'refused'), $before, '... for the peer is not asked for HTTP/2 again');
	$fresh->quit;

	# the token is there: the flow itself is refused
	$fresh = FeishuFlow::Session->new($node);
	succeeds($fresh, flow(server => $server), '... a first call that needs no token, too');
	$fresh->quit;
	delivers($server, 100);
}

# ---- REFUSED_STREAM ----

$mock->mark;
succeeds($session, flow(server => 'refuse'), 'a call that is refused twice succeeds by itself');
is($mock->executes, 1, '... and is processed once');
is($front->hits('refuse:2', 'refused'), 2, '... it was refused indeed');
is($front->versions($mock), '2', '... and HTTP/2 is not given up for that');

# The token comes from another server: a refused flow is what is looked at.
create_server($node, 'refused', $front->options('refuse_all'), { tenant_access_token => $mock->token });
my $result = fails_with(
	$session, flow(server => 'refused'), 'LK503', 'a call that is always refused is LK503',
	message => qr/without processing it/,
	hint => qr/http_version/);
unlike($result->{hint}, qr/may have started/, '... and has not started');
cmp_ok($front->hits('refuse_all', 'refused'), '<=', 5, '... a few requests were made of it');
$session->value('SET feishu_flow.max_concurrent_calls = 1');
unlike(
	$session->value(
		q{SELECT string_agg((r).error, '; ') }
		  . q{FROM (SELECT feishu.execute_flows('a', 'b', '{"_id": 1}', server => 'refused') OVER () AS r}
		  . ' FROM generate_series(1, 8)) s'),
	qr/does not answer/,
	'... of many calls, all are tried');
$session->value('RESET feishu_flow.max_concurrent_calls');
my $id = enqueue($session, server => 'refused', max_attempts => 1);
wait_until('the flow was refused many times',
	sub { $front->hits('refuse_all', 'refused') >= 30 && look($session, $id, 'error IS NOT NULL') eq 't' });
is(look($session, $id, 'attempts, finished_at IS NULL, sqlstate'),
	'0|t|LK503', 'a queued flow that is always refused waits, with all its attempts left');
like(look($session, $id, 'error'), qr/without processing it/, '... and says why');
unlike(
	slurp_file($node->logfile),
	qr/"refused" does not answer/,
	'... which is no outage: who gives requests back is there');
wait_until('it is cancelled between two tries', sub { $session->value("SELECT feishu.cancel_flow($id)") eq 't' });

# On a connection that was kept libcurl does not tell it from the connection's death.
my $key = 'kept';
create_server($node, 'refuse_kept', $front->options('refuse_kept:1'), { tenant_access_token => $mock->token });
my $fresh = FeishuFlow::Session->new($node);
succeeds($fresh, flow(server => 'refuse_kept'), 'a call before a refusal on a kept connection');
$mock->mark;
my $asked = $fresh->ask(flow(server => 'refuse_kept', idempotent_key => $key));
is($mock->executes, $asked->{sqlstate} eq '00000' ? 1 : 0, 'what may have been processed is not sent again');
$fresh->quit;

# ---- a peer that offers HTTP/2 and fails in it, and does not say why ----

create_server($node, 'broken', $front->options('rst_protocol'), { tenant_access_token => $mock->token });
$mock->mark;
$fresh = FeishuFlow::Session->new($node);
fails_with(
	$fresh, flow(server => 'broken'), 'LK503', 'a stream that the peer ends without a word is LK503',
	detail => qr{HTTP/2 error 1\b},
	hint => qr/may have started/) for 1 .. 2;
succeeds($fresh, flow(server => 'broken'), '... after two of them HTTP/1.1 is spoken');
is($front->versions($mock), '1.1', '... and what may have been processed was not sent again');
$fresh->quit;

# ---- somebody's proxy ----

# It leads to another peer of that name, which speaks for none but itself.
my $proxy = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 4) or die "socket: $!";
forked(
	'proxy',
	sub {
		while (my $client = $proxy->accept)
		{
			my $peer = IO::Socket::INET->new("127.0.0.1:$front->{port}{rst_protocol}") or die "connect: $!";
			sysread($client, my $request, 8192);
			syswrite($client, "HTTP/1.1 200 OK\r\n\r\n");
			my $both = IO::Select->new($client, $peer);
			my ($bytes, $open) = (undef, 1);
			while ($open)
			{
				foreach my $from ($both->can_read)
				{
					$open &&= sysread($from, $bytes, 65536) && syswrite($from == $client ? $peer : $client, $bytes);
				}
			}
		}
	});
create_server($node, 'unproxied', $front->options('none'), { tenant_access_token => $mock->token });
create_server(
	$node, 'proxied',
	$front->options('none', proxy => 'http://127.0.0.1:' . $proxy->sockport),
	{ tenant_access_token => $mock->token });
$fresh = FeishuFlow::Session->new($node);
fails_with($fresh, flow(server => 'proxied'), 'LK503', 'a stream that the peer behind a proxy ends') for 1 .. 2;
$mock->mark;
succeeds($fresh, flow(server => 'proxied'), '... after two of them HTTP/1.1 is spoken there');
succeeds($fresh, flow(server => 'unproxied'), '... but not with the peer of that name that is reached without it');
is($front->versions($mock), '1.1 2', '... each as it needs');
$fresh->quit;

# ---- GOAWAY with a lower last stream ----

$fresh = FeishuFlow::Session->new($node);
$mock->mark;
my @failed = grep { $_->{sqlstate} ne '00000' } map { $fresh->ask(flow(server => 'goaway_lower')) } 1 .. 9;
is(join("\n", map { $_->{err} } @failed), '', 'calls succeed though each connection serves two of them');
is($mock->executes, 9, '... and each is sent once');
cmp_ok($front->hits('goaway_lower:2', 'refused'), '>=', 3, '... though some were refused');
$fresh->quit;
delivers('goaway_lower', 60);

# ---- GOAWAY of a connection that is reset behind it ----

# It is reset before that is read, and the system does not know any more whom it was connected with.
create_server($node, 'reset', $front->options('goaway_reset:2'), { tenant_access_token => $mock->token });
$fresh = FeishuFlow::Session->new($node);
$mock->mark;
succeeds($fresh, flow(server => 'reset'), 'a call') for 1 .. 2;
is($mock->executes, 2, 'a call is sent again when its connection says that it goes away, and is reset');
is($front->hits('goaway_reset:2', 'refused'), 1, '... it was refused indeed');
$fresh->quit;

foreach (1 .. 2)
{
	$id = enqueue($session, server => 'reset');
	until_ended($session, "id = $id");
}
is(look($session, $id, 'state, attempts'), 'succeeded|1', '... and that counts as no attempt of a queued flow');
is($front->hits('goaway_reset:2', 'refused'), 2, '... which was refused, too');

# ---- the option http_version ----

$mock->mark;
succeeds($session, flow(server => 'well'), 'a call without http_version');
alter_server($session, 'well', 'ADD', http_version => '1.1');
succeeds($session, flow(server => 'well'), '... with 1.1');
alter_server($session, 'well', 'SET', http_version => '2');
succeeds($session, flow(server => 'well'), '... with 2');
alter_server($session, 'well', 'SET', http_version => '1.1');
succeeds($session, flow(server => 'well'), '... with 1.1 again');
is($front->versions($mock), '2 1.1 2 1.1', '... each goes over the version that it should');
alter_server($session, 'rst_http11', 'ADD', http_version => '1.1');
my $before = $front->hits('rst_http11', 'refused');
$fresh = FeishuFlow::Session->new($node);
succeeds($fresh, flow(server => 'rst_http11'), 'a peer that needs HTTP/1.1 and gets it');
is($front->hits('rst_http11', 'refused'), $before, '... has nothing to refuse');
alter_server($session, 'rst_http11', 'SET', http_version => '2');
fails_with(
	$fresh, flow(server => 'rst_http11'),
	'LK503',
	'with http_version 2 nothing else is tried',
	hint => qr/http_version/);
$fresh->quit;

# ---- what a refusal says of a platform that did not answer ----

# Nothing yet: its probes go on as before.
create_server(
	$node, 'probed',
	$front->options('rst_protocol', http_version => '2'),
	{ tenant_access_token => $mock->token });
enqueue_many($session, 101, 160, server => 'probed', max_attempts => 1000);
until_true($session, 'it is probed',
	"SELECT paused AND sending <= 1 FROM feishu.dispatch_status WHERE server = 'probed'");
$front->change('rst_protocol', 'refuse:9999');
wait_until('its probes are refused', sub { $front->hits('refuse:9999', 'refused') >= 6 });
my ($count, $begun) = ($front->hits('refuse:9999', 'refused'), time());
wait_until('a second has passed', sub { time() - $begun > 1 });
$count = $front->hits('refuse:9999', 'refused') - $count;
cmp_ok($count / (time() - $begun),
	'<', 40, "a platform that did not answer, and gives probes back, is probed with pauses: $count requests");
$front->change('rst_protocol', 'none');
until_ended($session, "server = 'probed'");
is(ends($session, "server = 'probed'"), 'succeeded 60', '... until it processes one');

done_testing();
