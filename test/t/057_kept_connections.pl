
# Connections that are kept: none is used when its peer is about to end it or has ended it, nor beyond the age that
# connections may have, nor after the answer of a gateway without a backend. So requests follow a name that moves.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;

# ---- a name that moves between two mocks, and nginx, which speaks HTTP/2 ----

my $library = "$dir/resolver.so";
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/hanging_resolver.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for a resolver';

my $mock = FeishuFlow::Mock->start;
my $moved = FeishuFlow::Mock->start('--host', '127.0.0.2', '--port', $mock->port);

sub move
{
	my ($address) = @_;
	append_to_file("$dir/moves.new", "$address\n");
	rename("$dir/moves.new", "$dir/moves") or die "rename: $!";
	return;
}
move('127.0.0.1');

IPC::Run::run(
	[
		qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=kept -addext subjectAltName=IP:127.0.0.1),
		'-keyout', "$dir/key", '-out', "$dir/crt"
	],
	'>',
	'/dev/null',
	'2>&1') or die 'openssl';
my %site = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(http1 http1_idle http2 http2_idle);
my $sites = join '', map {
	my $http2 = /http2/ ? ' http2' : '';
	my $idle = /idle/ ? 'keepalive_timeout 1s 1s;' : '';
	<<"CONF" } sort keys %site;
	server {
		listen 127.0.0.1:$site{$_} ssl$http2;
		ssl_certificate $dir/crt;
		ssl_certificate_key $dir/key;
		$idle
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
start_nginx($dir, $sites, values %site);

my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{RESOLVER_MOVES} = "$dir/moves";
	$node = queue_cluster('main');
}
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'moves', { base_url => 'http://platform.moves:' . $mock->port });
create_server($node, $_, { base_url => "https://127.0.0.1:$site{$_}", ca_file => "$dir/crt" }) foreach sort keys %site;
my $session = FeishuFlow::Session->new($node);

# nginx's connections of a site, one for each request to start this flow that it has logged: it does so after it has
# answered, so the requests before may be missing still.
sub connections
{
	my ($name, $flow_id) = @_;
	return
	  map { (split)[2] } grep { m!^$site{$name} .*/\Q$flow_id\E/execute$! } split(/\n/, slurp_file("$dir/access.log"));
}

sub set_age
{
	my ($age) = @_;
	$node->safe_psql('postgres', $_)
	  foreach "ALTER SYSTEM SET feishu_flow.max_connection_age = '$age'", 'SELECT pg_reload_conf()';
	until_true($session, 'the setting is seen', "current_setting('feishu_flow.max_connection_age') = '$age'");
	return;
}

# ---- who says when it ends a connection ----

# In each round requests come just when the peer ends the connections of the round before: before, at, and after it.
my ($FLOWS, $ROUNDS) = (64, 5);
my $ends = { type => 'idle_end', after => 1, lag_ms => 40, announce => 1 };
$mock->rules([ { kind => 'any' }, $ends ]);
my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 4;
my %ends = ('00000' => 0);
my $next = time();
foreach my $round (0 .. $ROUNDS - 1)
{
	usleep(1_000_000 * ($next - time())) if $next > time();
	$next = time() + 1.01;
	$_->send(flow()) foreach @sessions;
	enqueue_many($session, $round * $FLOWS + 1, ($round + 1) * $FLOWS);
	$ends{ $_->result->{sqlstate} }++ foreach @sessions;
}
until_ended($session);
is_deeply(\%ends, { '00000' => $ROUNDS * @sessions }, 'calls at the pace at which a peer ends its connections succeed');
is($session->value("SELECT string_agg(DISTINCT state || ' ' || attempts, ', ') FROM feishu.flows"),
	'succeeded 1', '... and so do queued flows, at once');
$_->quit foreach @sessions;

# ... and one that may be used is
$mock->rules([ { kind => 'any' }, { %$ends, announce => 600, after => 600 } ]);
succeeds($session, flow(), 'a peer that keeps connections for long');
$mock->mark;
succeeds($session, flow(), '... has another call') for 1 .. 3;
is(scalar(keys %{ { map { $_->{connection} => 1 } $mock->log } }), 1, '... over the same connection');

# ---- who ends it without a word ----

$mock->rules([ { kind => 'any' }, { type => 'idle_end', after => 0.1 } ]);
succeeds($session, flow(), 'a call');
wait_until('the peer has ended the connections', sub { $mock->stats->{connections_open} == 0 });
succeeds($session, flow(), '... is followed by one over a new connection, as the peer has ended the first');
$mock->well;

foreach my $name (qw(http1_idle http2_idle))
{
	begin_anew($mock, $session, $name);
	foreach my $round (1 .. 2)
	{
		succeeds($session, flow(server => $name), "$name: a call");
		enqueue_many($session, 30 * $round + 1, 30 * $round + 30, server => $name);
		until_ended($session);
		wait_until('nginx has ended the connections', sub { established($site{$name}) == 0 });
	}
	is( $session->value(
			"SELECT string_agg(DISTINCT state || ' ' || attempts, ', ') FROM feishu.flows WHERE server = '$name'"),
		'succeeded 1',
		'... and queued flows are sent once, though nginx ends idle connections');
}

# Connections that the server on this port has not ended.
sub established
{
	my ($port) = @_;
	my $local = sprintf('0100007F:%04X', $port);
	return scalar(grep { (split)[1] eq $local && (split)[3] eq '01' } split(/\n/, slurp_file('/proc/net/tcp')));
}

# ---- the age of connections ----

foreach my $name (qw(http1 http2))
{
	my $call = flow(server => $name, flow_id => 'again');
	succeeds($session, flow(server => $name), "$name: a call");
	succeeds($session, $call, '... and another') for 1 .. 2;
	wait_until('nginx has logged', sub { connections($name, 'again') == 2 });
	is(scalar(keys %{ { map { $_ => 1 } connections($name, 'again') } }), 1, '... over the same connection');

	my $old = (connections($name, 'again'))[-1];
	$session->value("SET feishu_flow.max_connection_age = '200ms'");
	wait_until('a call goes over a new one when that has its greatest age',
		sub { succeeds($session, $call, '... a call') && (connections($name, 'again'))[-1] ne $old });
	$session->value('RESET feishu_flow.max_connection_age');
}

# HTTP/2, busy without a pause: one flow takes long, and others come all the time.
begin_anew($mock, $session, 'http2');
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'hold' } ]);
$mock->mark;
my $slow = enqueue($session, server => 'http2', flow_id => 'slow', params => '{"n": 1}');
$mock->wait_for(1, kind => 'execute');
my $age = 1;
set_age("${age}s");
my $n = 1;
my ($begun, $until) = (time(), time() + 3.5 * $age);

while (time() < $until)
{
	my $id = enqueue($session, server => 'http2', flow_id => 'busy', params => '{"n": ' . ++$n . '}');
	until_true($session, 'it is sent', "EXISTS (SELECT FROM feishu.flows WHERE id = $id AND finished_at IS NOT NULL)");
}
my $ages = (time() - $begun) / $age;
my @used = do
{
	my %seen;
	grep { !$seen{$_}++ } connections('http2', 'busy');
};
cmp_ok(scalar(@used), '>=', 3,
	'an HTTP/2 connection on which a request is under way takes no more when it has its greatest age');
cmp_ok(scalar(@used), '<=', $ages + 2, '... and others share one new connection');
is(look($session, $slow, 'state'), 'sending', '... while that request goes on');
$mock->well;
until_ended($session);
is(look($session, $slow, 'state, attempts'), 'succeeded|1', '... and has its answer');
is(ends($session, "server = 'http2' AND id > $slow"), 'succeeded ' . ($n - 1), '... as all others have');
is($session->value("SELECT max(attempts) FROM feishu.flows WHERE server = 'http2'"), '1', '... at once');
started_once($mock, $n, '... and each has started once');
set_age('5min');

# ---- a gateway without a backend ----

foreach my $status (502, 503, 504)
{
	foreach my $name (qw(feishu http2))
	{
		succeeds($session, flow(server => $name), 'a call');
		$mock->rules([ { kind => 'execute' }, { type => 'status', status => $status }, times => 1 ]);
		my $gone = flow(server => $name, flow_id => "gone$status");
		$mock->mark;
		fails_with($session, $gone, 'LK500', "a gateway without a backend ($name, $status)");
		succeeds($session, $gone, '... another call');
		my @over = map { $_->{connection} } $mock->log;
		if ($name eq 'http2')
		{
			wait_until('nginx has logged', sub { connections('http2', "gone$status") == 2 });
			@over = connections('http2', "gone$status");
		}
		isnt($over[0], $over[1], '... goes over another connection');
	}
}

# HTTP/2, while another request is under way on the connection
begin_anew($mock, $session, 'http2');
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'hold' } ],
	[ { kind => 'execute', flow_id => 'gone' }, { type => 'status', status => 503 }, times => 1 ]);
$mock->mark;
$slow = enqueue($session, server => 'http2', flow_id => 'slow', params => '{"n": 1}');
$mock->wait_for(1, kind => 'execute');
enqueue($session, server => 'http2', flow_id => 'gone', params => '{"n": 2}');
until_true(
	$session,
	'it has succeeded',
	"EXISTS (SELECT FROM feishu.flows WHERE flow_id = 'gone' AND state = 'succeeded' AND id > $slow)");
wait_until('nginx has logged', sub { connections('http2', 'gone') == 2 });
isnt(
	(connections('http2', 'gone'))[0],
	(connections('http2', 'gone'))[1],
	'a gateway without a backend: the next attempt goes over another connection');
is(look($session, $slow, 'state'), 'sending', '... while another request goes on over the first one');
$mock->well;
until_ended($session);
is(look($session, $slow, 'state, attempts'), 'succeeded|1', '... and has its answer');

# ---- a name that moves ----

$_->reset foreach $mock, $moved;
my %seen = (backend => FeishuFlow::Session->new($node), aged => FeishuFlow::Session->new($node));
$seen{aged}->value("SET feishu_flow.max_connection_age = '500ms'");
succeeds($_, flow(server => 'moves'), 'a call') foreach values %seen;
is($moved->executes, 0, '... to the address of the name');
move('127.0.0.2');
succeeds($seen{backend}, flow(server => 'moves'), 'the name leads elsewhere: a connection that works is used');
wait_until(
	'the address is new',
	sub { $seen{aged}->ask(flow(server => 'moves')); $moved->executes > 0 },
	20 * $FeishuFlow::SLOW);
pass('... until it has its greatest age');
$moved->mark;
$mock->fault(type => 'status', status => 503);
fails_with($seen{backend}, flow(server => 'moves'), 'LK500', '... or the old address is without a backend');
wait_until(
	'the address is new',
	sub { $seen{backend}->ask(flow(server => 'moves'))->{sqlstate} eq '00000' },
	20 * $FeishuFlow::SLOW);
is($moved->executes, 1, '... then requests go to the new one');

done_testing();
