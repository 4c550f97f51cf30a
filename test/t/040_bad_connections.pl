
# Connections that do not come about or break, and time that runs out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IO::Socket::INET;
use IPC::Run;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $pid = $session->pid;

# A server that knows nothing of TLS and says so.
my $plain = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 16)
  or die "socket: $!";
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
	refused => 'http://127.0.0.1:' . closed_port(),
	refused_tls => 'https://127.0.0.1:' . closed_port(),
	full_queue => 'http://127.0.0.1:' . full_port(),
	silent => 'http://127.0.0.1:' . $mock->silent_port,
	silent_tls => 'https://127.0.0.1:' . $mock->silent_port,
	plain_as_tls => 'https://127.0.0.1:' . $plain->sockport,
	unknown_name => 'http://no-such-host.invalid',
	ipv6_refused => 'http://[::1]:' . closed_port());
create_server($node, $_, { base_url => $server{$_} }) foreach sort keys %server;

sub goes_on
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $next = $session->ask(flow());
	is($next->{sqlstate} . ' ' . $session->value('SELECT pg_backend_pid()'),
		"00000 $pid", '... and the next call of this session works')
	  or diag($next->{err});
	return;
}

# ---- no connection ----

succeeds($session, flow(), 'a call');
foreach my $name (qw(refused refused_tls ipv6_refused plain_as_tls))
{
	fails_with(
		$session, flow(server => $name),
		'LK503', "no connection ($name) is LK503",
		message => qr{package_7344545d87__c/approveOrder_99c656599f},
		hint => qr/\w/);
	goes_on();
}

# How long the machine's own resolver takes to give up is not ours to judge.
my $started = time();
my $resolver = eval {
	IPC::Run::run([ 'getent', 'hosts', 'no-such-host.invalid' ], '>', '/dev/null', IPC::Run::timeout(10));
	1;
} && time() - $started < 3;
SKIP:
{
	skip 'the resolver of this machine does not answer', 4 if !$resolver;
	fails_with(
		$session, flow(server => 'unknown_name'),
		'LK503', 'a name that does not resolve is LK503',
		detail => qr/no-such-host\.invalid/,
		hint => qr/base_url/);
	goes_on();
}
if (!$resolver)
{
	fails_with($session, "SET feishu_flow.connect_timeout = '500ms';" . flow(server => 'unknown_name'),
		'LK504', 'a resolver that does not answer is LK504');
	$session->value('RESET feishu_flow.connect_timeout');
	goes_on();
}

my @broken = (
	[ 'a reset before the request is read', 'reset_before' ],
	[ 'a reset after the request', 'reset_after' ],
	[ 'a close after the request', 'close_after' ]);
foreach my $case (@broken)
{
	my ($what, $type) = @$case;
	$mock->mark;
	$mock->fault(type => $type);
	my $result = fails_with($session, flow(idempotent_key => $type), 'LK503', "$what is LK503", hint => qr/\w/);
	is($mock->count(kind => 'execute', key => $type), 1, '... and the request is not sent twice');
	$mock->well;
	goes_on();

	# a fresh connection
	$mock->fault(type => $type);
	my $fresh = FeishuFlow::Session->new($node);
	fails_with($fresh, flow(), 'LK503', "$what is LK503 on a new connection");
	$mock->well;
	succeeds($fresh, flow(), '... and the next call of this session works');
	$fresh->quit;
}

$mock->rules([ { kind => 'accept' }, { type => 'reset' } ]);
my $fresh = FeishuFlow::Session->new($node);
fails_with($fresh, flow(), 'LK503', 'a reset of each new connection is LK503');
$mock->well;
succeeds($fresh, flow(), '... and the next call of this session works');
$fresh->quit;

# The platform takes a request on a kept connection, and is gone for good.
my $dying = FeishuFlow::Mock->start;
create_server($node, 'dying', { base_url => $dying->url });
succeeds($session, flow(server => 'dying'), 'a call on a connection that is kept');
$dying->rules([ { kind => 'execute' }, { type => 'die' } ]);
fails_with(
	$session, flow(server => 'dying'),
	'LK503', 'a platform that is gone after it has got the request is LK503',
	message => qr/broke off before an answer/,
	detail => qr/waiting for the answer: the peer had ended a connection that was kept/,
	hint => qr/may have started/);
$dying->stop;
goes_on();

# Who never reads gets as much of a large request as fits on the way.
my $unread = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 4) or die "socket: $!";
create_server(
	$node, 'unread',
	{ base_url => 'http://127.0.0.1:' . $unread->sockport },
	{ tenant_access_token => 't-x' });
fails_with(
	$session, flow(server => 'unread', timeout => '500ms', params => \"jsonb_build_object('x', repeat('x', 15000000))"),
	'LK504', 'a platform that does not read the request is LK504',
	detail => qr/handing over the request/,
	hint => qr/may have started/);
goes_on();

# A second token does no harm.
succeeds($session, flow(), 'a call on a connection that is kept');
$mock->revoke;
$mock->rules([ { kind => 'token' }, { type => 'reset_before' }, times => 1 ]);
succeeds($session, flow(), 'a token request for which a kept connection had ended is made again');
$mock->well;

# ---- a host that runs out ----

$fresh = FeishuFlow::Session->new($node);
succeeds($fresh, flow(), 'a call with descriptors left');
system('prlimit', '--pid', $fresh->pid, '--nofile=4:4') == 0 or die "prlimit: $?";
fails_with(
	$fresh, flow(server => 'silent'),
	'LK503', 'a call without a descriptor left is LK503',
	message => qr/short of memory, file descriptors/,
	hint => qr/descriptors/);
$fresh->quit;

# ---- a hang at each phase ----

# phase => fault, what DETAIL says that it was doing, on a kept connection too
my %hang = (
	'before the request is read' => [ { type => 'hang' }, qr/waiting for the answer/ ],
	'in the middle of the headers' => [ { type => 'half_headers_hang' }, qr/waiting for|receiving/ ],
	'after the headers' => [ { type => 'headers_hang' }, qr/receiving the answer/ ],
	'while the platform works' => [ { type => 'latency', ms => 120_000 }, qr/waiting for the answer/ ]);
foreach my $phase (sort keys %hang)
{
	$mock->mark;
	$mock->fault(%{ $hang{$phase}[0] });
	my $result = fails_with(
		$session, flow(timeout => '300ms'),
		'LK504', "a hang $phase is LK504 at the deadline",
		detail => $hang{$phase}[1],
		hint => qr/\w/);
	cmp_ok($result->{seconds}, '>=', 0.29, '... not before');
	note(sprintf('timeout 300 ms: %.0f ms', $result->{seconds} * 1000));
	$mock->wait_for(1, kind => 'execute', state => 'aborted');
	pass('... and the connection is given up');
	$mock->well;
	goes_on();
}
foreach my $name (qw(full_queue silent silent_tls))
{
	my $result = fails_with(
		$session, flow(server => $name, timeout => '300ms'),
		'LK504',
		"a hang while connecting ($name) is LK504 at the deadline",
		hint => qr/\w/);
	cmp_ok($result->{seconds}, '>=', 0.29, '... not before');
	goes_on();
}

# The number of a socket that never was connected is a file's then.
my $tables = 0;
foreach my $case ([ 'timeout', '', timeout => '200ms' ], [ 'statement_timeout', "SET statement_timeout = '200ms'; " ])
{
	my ($what, $setting, @arguments) = @$case;
	$session->ask($setting . flow(server => 'full_queue', @arguments));
	$session->value('RESET statement_timeout');
	$session->value('CREATE TABLE file' . ++$tables . ' ()') foreach 1 .. 5;
	succeeds($session, flow(), "$what while connecting: the next call works when files have been opened");
}
$fresh = FeishuFlow::Session->new($node);
$mock->rules([ { kind => 'accept' }, { type => 'hang' } ]);
fails_with($fresh, flow(timeout => '300ms'), 'LK504', 'a peer that accepts and hangs is LK504');
$mock->well;
succeeds($fresh, flow(), '... and the next call of this session works');
$fresh->quit;

# Not even a deadline that comes while the connection is made is missed.
$mock->fault(type => 'hang');
$session->ask(flow(timeout => '1ms'));
my ($quickest) = sort { $a <=> $b } map { $session->ask(flow(timeout => '1ms'))->{seconds} } 1 .. 5;
cmp_ok($quickest, '<', 0.15, 'a timeout of 1 ms is kept');
note(sprintf('timeout 1 ms: %.0f ms', $quickest * 1000));
$mock->well;

# The whole call has one deadline: token, first try and retry share it.
$mock->revoke;
$mock->mark;
$mock->rules(
	[ { kind => 'token' }, { type => 'latency', ms => 400 } ],
	[ { kind => 'execute' }, { type => 'latency', ms => 400 } ]);
my $result =
  fails_with($session, flow(timeout => '1s'), 'LK504', 'refused call, new token and second call share one deadline');
cmp_ok($result->{seconds}, '>=', 0.99, '... not before');
cmp_ok($result->{seconds}, '<', 10, '... nor long after');
is($mock->executes, 2, '... which came in the second call');
$mock->well;

# ---- timeouts: argument before server before setting ----

# A call that takes 1 s succeeds under the timeout that must count, and one that
# takes for ever ends.
my $slow = { type => 'latency', ms => 1000 };
my $never = { type => 'hang' };

sub timeout_counts
{
	my ($name, $works, $setting, $option, $argument) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->value("SET feishu_flow.timeout = '$setting'");
	alter_server($session, 'feishu', 'ADD', timeout => $option) if defined $option;
	my $sql = flow(defined $argument ? (timeout => $argument) : ());
	$mock->fault($works ? %$slow : %$never);
	my $answer = $session->ask($sql);
	is($answer->{sqlstate}, $works ? '00000' : 'LK504', $name) or diag($answer->{err});
	cmp_ok($answer->{seconds}, '<', 30, '... in time');
	$mock->well;
	$session->value('RESET feishu_flow.timeout');
	alter_server($session, 'feishu', 'DROP', 'timeout') if defined $option;
	return;
}
timeout_counts('the setting timeout counts', 0, '200ms');
timeout_counts('the server\'s timeout goes before the setting (shorter)', 0, '1h', '200ms');
timeout_counts('the server\'s timeout goes before the setting (longer)', 1, '200ms', '1h');
timeout_counts('the argument goes before both (shorter)', 0, '1h', '1h', '200ms');
timeout_counts('the argument goes before both (longer)', 1, '200ms', '200ms', '1 hour');

foreach my $bad ('0', '-1 second', '-1 month')
{
	fails_with($session, flow(timeout => $bad), '22023', "a timeout of $bad is refused", message => qr/timeout/);
}
fails_with($session, flow(timeout => 'infinity'), '22023', 'a timeout of infinity is refused')
  if $node->pg_version >= 17;
succeeds($session, flow(timeout => '100 years'), 'a timeout of 100 years is accepted');

create_server($node, 'full_fixed', { base_url => $server{full_queue} }, { tenant_access_token => 't-x' });
foreach my $server (qw(full_queue full_fixed silent_tls))
{
	my $answer = fails_with(
		$session, "SET feishu_flow.connect_timeout = '200ms';" . flow(server => $server, timeout => '1h'),
		'LK504',
		"the setting connect_timeout counts ($server)",
		hint => qr/connect_timeout/);
	unlike($answer->{message}, qr/3600000/, '... and the message does not blame the other timeout');
	cmp_ok($answer->{seconds}, '<', 30, '... in time');
	$session->value("SET feishu_flow.connect_timeout = '1h'");
	alter_server($session, $server, 'ADD', connect_timeout => '200ms');
	$answer = fails_with($session, flow(server => $server, timeout => '1h'),
		'LK504', "the server's connect_timeout goes before the setting ($server)");
	cmp_ok($answer->{seconds}, '<', 30, '... in time');
	$session->value('RESET feishu_flow.connect_timeout');
}
$session->value("SET feishu_flow.connect_timeout = '200ms'");
$mock->fault(%$slow);
succeeds($session, flow(), 'connect_timeout does not limit the wait for an answer');
$mock->well;
$session->value('RESET feishu_flow.connect_timeout');

# ---- the proxy of the environment is none of ours ----

{
	local $ENV{http_proxy} = 'http://127.0.0.1:1';
	local $ENV{all_proxy} = 'http://127.0.0.1:1';
	$node->restart;
}
$session = FeishuFlow::Session->new($node);
succeeds($session, flow(), 'a proxy in the environment of the server is not used');

done_testing();
