
# Tokens: fetched once, shared, refreshed ahead of time, replaced when refused.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('shared', connections => 130);
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $second = FeishuFlow::Session->new($node);
my $watch = FeishuFlow::Session->new($node);

my %token = (kind => 'token');

# Waits until so many sessions hang in a call.
sub wait_for_callers
{
	my ($count) = @_;
	wait_until(
		"$count sessions are waiting",
		sub {
			$watch->value("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' "
				  . "AND query LIKE '%execute_flow%' AND wait_event_type = 'Extension'") == $count;
		});
	return;
}

# Nobody has a token from here on, and the platform knows of none.
sub forget_tokens
{
	$node->restart;
	$_->quit foreach $session, $second, $watch;
	$_ = FeishuFlow::Session->new($node) foreach $session, $second, $watch;
	$mock->reset;
	return;
}

sub set_mapping
{
	my (%options) = @_;
	$watch->value('DROP USER MAPPING FOR PUBLIC SERVER feishu');
	$watch->value('CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS ('
		  . join(', ', map { "$_ " . quote($options{$_}) } sort keys %options)
		  . ')');
	return;
}
my %app = (app_id => 'cli_mock', app_secret => 'mock-secret');

# ---- both protocols ----

succeeds($session, flow(), 'a call with the legacy protocol');
my ($request) = $mock->log(%token);
is($request->{path}, '/open-apis/auth/v3/tenant_access_token/internal', 'the legacy token endpoint is under base_url');
is_deeply($request->{json}, \%app, 'the legacy protocol sends app_id and app_secret as JSON');
like($request->{headers}{'content-type'}, qr{^application/json}, '... with its type');
ok(!exists $request->{headers}{authorization}, '... and no Authorization');
succeeds($session, flow(), 'a second call');
succeeds($second, flow(), 'a call of another session');
is($mock->token_requests, 1, 'the token is fetched once and shared by sessions');

alter_server($session, 'feishu', 'ADD', token_url => $mock->url . '/oauth/v3/token');
$mock->mark;
succeeds($session, flow(), 'a call with the OAuth protocol');
($request) = $mock->log(kind => 'oauth');
is( join('&', sort split(/&/, $request->{body})),
	'client_id=cli_mock&client_secret=mock-secret&grant_type=client_credentials',
	'the OAuth protocol sends a form');
is($request->{headers}{'content-type'} =~ s/;.*//r, 'application/x-www-form-urlencoded', '... with its type');
ok(!exists $request->{headers}{authorization}, '... and not Basic as well');
my ($execute) = $mock->log(kind => 'execute');
like($execute->{headers}{authorization}, qr/^Bearer eyJ/, 'the OAuth token is used');
succeeds($second, flow(), 'a call of another session');
is($mock->count(kind => 'oauth'), 1, 'the OAuth token is fetched once');
is($mock->count(%token), 0, '... and the legacy endpoint is not asked');

$mock->config(apps => { 'cli&x=1' => 'a+b/c%&=;~' });
set_mapping(app_id => 'cli&x=1', app_secret => 'a+b/c%&=;~');
succeeds($session, flow(), 'a secret with special characters gets through the form');

alter_server($session, 'feishu', 'DROP', 'token_url');
succeeds($session, flow(), '... and through JSON');
set_mapping(%app);

# ---- long tokens ----

$mock->reset;
$mock->config(token_length => 4096);
forget_tokens();
succeeds($session, flow(), 'a legacy token of 4 KB');
($execute) = $mock->log(kind => 'execute');
is(length($execute->{headers}{authorization}), 4096 + length('Bearer '), '... is sent in full');
alter_server($session, 'feishu', 'ADD', token_url => $mock->url . '/oauth/v3/token');
$mock->mark;
succeeds($session, flow(), 'an OAuth token of 4 KB');
($execute) = $mock->log(kind => 'execute');
is(length($execute->{headers}{authorization}), 4096 + length('Bearer '), '... is sent in full');
succeeds($second, flow(), '... from the cache, too');
is($mock->count(kind => 'oauth'), 1, '... and is cached');
alter_server($session, 'feishu', 'DROP', 'token_url');
$mock->config(token_length => 6000);
forget_tokens();
fails_with($session, flow(), 'LK502', 'a token beyond 4 KB is refused politely');
$mock->config(token_length => 0);
forget_tokens();

# ---- single flight ----

my $script = PostgreSQL::Test::Utils::tempdir() . '/flow.sql';
PostgreSQL::Test::Utils::append_to_file($script, flow() . ";\n");

$mock->rules([ \%token, { type => 'hold' } ]);
my ($out, $err) = ('', '');
my $bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '100', '-j', '2', '-t', '1',
		'-f', $script, '-h', $node->host, '-p', $node->port, 'postgres'
	],
	'>',
	\$out,
	'2>',
	\$err,
	IPC::Run::timeout(120));
wait_for_callers(100);
is($mock->token_requests, 1, '100 cold sessions: one fetch while all wait');
is($mock->executes, 0, '... and nothing is sent without a token');
$mock->well;
ok($bench->finish, '100 cold sessions: no error') or diag($err);
is($mock->token_requests, 1, '100 cold sessions: one fetch in all');
is($mock->executes, 100, '100 cold sessions: 100 calls');

# ---- waiters and failures ----

forget_tokens();
my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 8;

# judged when it is released: by then the secret is another one
$mock->rules([ \%token, { type => 'hold', started => JSON::PP::false } ]);
$_->send(flow()) foreach @sessions;
wait_for_callers(8);
$mock->config(apps => { cli_mock => 'another-secret' });
$mock->release;
my @results = map { $_->result } @sessions;
is_deeply([ map { $_->{sqlstate} } @results ], [ ('LK401') x 8 ], 'those who wait for a fetch share its failure')
  or diag($results[0]{err});
is($mock->token_requests, 1, '... and do not ask once more each');
is($mock->executes, 0, '... and send nothing');
is_deeply([ grep { $_->{detail} !~ /\b10014\b/ } @results ], [], '... and all know the reason');
$mock->config(apps => { cli_mock => 'mock-secret' });
$mock->well;
succeeds($session, flow(), 'the failure is not remembered: the next call asks again');

# ... and it is one failure: nobody takes it for an outage.
my $gone = FeishuFlow::Mock->start;
create_server($node, 'gone', { base_url => $gone->url });
$gone->rules([ \%token, { type => 'hold' } ]);
$_->send(flow(server => 'gone')) foreach @sessions;
wait_for_callers(8);
is($gone->token_requests, 1, 'others wait for a fetch');
$gone->stop;
is_deeply([ map { $_->result->{sqlstate} } @sessions ], [ ('LK503') x 8 ], '... that ends without an answer');
unlike(
	slurp_file($node->logfile),
	qr/"gone" does not answer/,
	'... which is one trouble of the platform, and not one of each');

forget_tokens();
$mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
$session->send(flow());
$mock->wait_for(1, %token);
$second->send(flow());
wait_for_callers(2);
is($mock->token_requests, 1, 'a second session waits for the fetch of the first');
$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
is($session->result->{sqlstate}, '57014', 'the session that fetches is cancelled');
succeeds($second, $second->result, '... and another takes the fetch over');
is($mock->token_requests, 2, '... with a request of its own');

forget_tokens();
$mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
$session->send(flow());
$mock->wait_for(1, %token);
$second->send(flow());
wait_for_callers(2);
$watch->value('SELECT pg_terminate_backend(' . $session->pid . ')');
is($session->result->{sqlstate}, '57P01', 'the session that fetches is terminated');
succeeds($second, $second->result, '... and another takes the fetch over');
$session = FeishuFlow::Session->new($node);

forget_tokens();
$mock->rules([ \%token, { type => 'hold' } ]);
$session->send(flow());
$mock->wait_for(1, %token);
$second->send(flow(timeout => '300ms'));
is($second->result->{sqlstate}, 'LK504', 'one who waits has a deadline of its own');
$second->send("SET statement_timeout = '300ms';" . flow());
is($second->result->{sqlstate}, '57014', 'one who waits can be cancelled');
$second->value('RESET statement_timeout');
$mock->well;
succeeds($session, $session->result, '... which does not bother the one who fetches');
is($mock->token_requests, 1, '... whose fetch was the only one');
$_->quit foreach @sessions;

# ---- refresh ahead of expiry ----

# It is due in the last quarter of its life: after 6 of 8 seconds.
forget_tokens();
$mock->config(token_expire => 8);
succeeds($session, flow(), 'a call with a token of 8 seconds');
my ($first_token) = map { $_->{headers}{authorization} } $mock->log(kind => 'execute');
$mock->rules([ \%token, { type => 'hold' } ]);
my $calls = 0;
my $failed = '';
my $deadline = time() + 20;

while ($mock->token_requests < 2 && time() < $deadline)
{
	my $result = $session->ask(flow());
	$failed ||= $result->{err} if $result->{sqlstate} ne '00000';
	$calls++;
	usleep(100_000);
}
is($mock->token_requests, 2, 'a token is refreshed ahead of its expiry');
is($failed, '', '... and calls go on until then');
$mock->mark;
for (1 .. 10)
{
	my $result = $second->ask(flow(timeout => '5s'));
	$failed ||= $result->{err} if $result->{sqlstate} ne '00000';
}
is($failed, '', 'no call waits for the refresh: others go on while it is held');
is(scalar(grep { $_->{headers}{authorization} eq $first_token } $mock->log(kind => 'execute')),
	10, '... with the old token');
$mock->well;

# The session that began the refresh is idle from now on.  Nobody waits for it.
$deadline = time() + 12;
my $used = $first_token;
while ($used eq $first_token && $failed eq '' && time() < $deadline)
{
	my $result = $second->ask(flow(timeout => '2s'));
	$failed = $result->{err} if $result->{sqlstate} ne '00000';
	$used = ($mock->log(kind => 'execute'))[-1]{headers}{authorization};
	usleep(50_000);
}
is($failed, '', 'an idle session that began the refresh holds up no other');
isnt($used, $first_token, '... the new token takes over');
is(scalar(grep { $_->{status} != 200 } $mock->log(kind => 'execute')), 0, '... nor is one refused on the way');

# across several lives, nobody is ever refused
$mock->config(token_expire => 2);
forget_tokens();
$deadline = time() + 5;
$failed = '';
while (time() < $deadline)
{
	my $result = $session->ask(flow());
	$failed ||= $result->{err} if $result->{sqlstate} ne '00000';
	usleep(50_000);
}
is($failed, '', 'calls go on over several lives of a token');
is(scalar(grep { $_->{status} != 200 } $mock->log(kind => 'execute')), 0, '... and none is sent with an expired one');
cmp_ok($mock->token_requests, '<=', 6, '... with one fetch for each life');

# a refresh that fails, in whatever way, is not tried again by the next call
$mock->config(token_expire => 8);
forget_tokens();
succeeds($session, flow(), 'a call with a token of 8 seconds');
$mock->rules([ \%token, { type => 'status', status => 502 } ]);
$deadline = time() + 20;
while ($mock->token_requests < 2 && time() < $deadline)
{
	$session->ask(flow());
	usleep(100_000);
}
$failed = '';
for (1 .. 10)
{
	my $result = $session->ask(flow());
	$failed ||= $result->{err} if $result->{sqlstate} ne '00000';
}
is($failed, '', 'calls go on while a gateway keeps the token from being refreshed');
is($mock->token_requests, 2, '... and do not ask for another one each');
$mock->well;
$mock->config(token_expire => 7200);

# ---- a token is refused ----

forget_tokens();
succeeds($session, flow(), 'a call');
succeeds($second, flow(), 'a call of another session');
$mock->mark;
$mock->revoke;
succeeds($session, flow(), 'a refused token is replaced and the call sent once more');
is($mock->executes, 2, '... so there were two executes');
is($mock->token_requests, 1, '... and one fetch');
succeeds($second, flow(), 'other sessions use the new token');
is($mock->executes, 3, '... at the first go');

foreach my $code (99991663, 99991664, 99991665, 99991668, 99991671)
{
	$mock->mark;
	$mock->rules([ { kind => 'execute' }, { type => 'code', code => $code }, times => 1 ]);
	succeeds($session, flow(), "code $code makes one refresh and one retry");
	is($mock->executes . ' ' . $mock->token_requests, '2 1', '... no more');
}
$mock->well;

$mock->mark;
$mock->revoke(keep_issuing_same => JSON::PP::true);
fails_with(
	$session, flow(), 'LK401', 'a token that is refused again is reported',
	detail => qr/\b99991663\b/,
	hint => qr/\w/);
is($mock->executes, 2, '... after exactly two executes');
is($mock->token_requests, 1, '... and one fetch');
$mock->reset;

forget_tokens();
succeeds($session, flow(), 'a call');

# The second one has been accepted from others before it is refused, too.
my %twice = (kind => 'execute', flow_id => 'twice');
$mock->mark;
$mock->revoke;
$mock->rules([ \%twice, { type => 'hold', started => JSON::PP::false } ]);
$session->send(flow(flow_id => 'twice'));
$mock->wait_for(1, %twice);
$mock->release;
$mock->wait_for(2, %twice);
succeeds($second, flow(), 'a token is accepted');
$mock->revoke;
$mock->well;
fails_with($session, $session->result, 'LK401', '... and refused to a call whose first was refused');
is($mock->count(%twice), 2, '... which is not sent a third time');
succeeds($session, flow(), '... but with another token, the next one is');

# ---- the secret changes ----

succeeds($second, flow(), 'a call of another session');
set_mapping(app_id => 'cli_mock', app_secret => 'new-secret');
$mock->mark;
fails_with(
	$session, flow(), 'LK401', 'a changed secret never uses the old token',
	detail => qr/\b10014\b/,
	hint => qr/app_secret/);
fails_with($second, flow(), 'LK401', '... in no session');
is($mock->executes, 0, '... nothing was sent with it');
$mock->config(apps => { cli_mock => 'new-secret' });
succeeds($session, flow(), 'the new secret works as soon as the platform knows it');
$mock->config(apps => { cli_mock => 'mock-secret' });
set_mapping(%app);

set_mapping(app_id => 'cli_nobody', app_secret => 'mock-secret');
fails_with(
	$session, flow(), 'LK401', 'an unknown app is LK401',
	detail => qr/\b10015\b/,
	hint => qr/app_id/);
alter_server($session, 'feishu', 'ADD', token_url => $mock->url . '/oauth/v3/token');
fails_with($session, flow(), 'LK401', 'an unknown app is LK401 with OAuth', hint => qr/app_id/);
set_mapping(app_id => 'cli_mock', app_secret => 'wrong');
fails_with($session, flow(), 'LK401', 'a wrong secret is LK401 with OAuth', hint => qr/app_secret/);
$mock->rules([ { kind => 'oauth' }, { type => 'code', code => 20050 } ]);
fails_with($session, flow(), 'LK500', 'OAuth code 20050 is a failure of the platform');
$mock->rules([ { kind => 'oauth' }, { type => 'code', code => 20072 } ]);
fails_with($session, flow(), 'LK500', 'OAuth code 20072 is a failure of the platform');
$mock->well;
alter_server($session, 'feishu', 'DROP', 'token_url');

# ---- a fixed token ----

my $fixed = $mock->token;
set_mapping(tenant_access_token => $fixed);
$mock->mark;
succeeds($session, flow(), 'a fixed tenant_access_token works');
($execute) = $mock->log(kind => 'execute');
is($execute->{headers}{authorization}, "Bearer $fixed", '... and is sent');
is($mock->token_requests, 0, '... and nothing is fetched');
set_mapping(tenant_access_token => 't-not-a-token');
$mock->mark;
fails_with($session, flow(), 'LK401', 'a fixed token that is refused is LK401', hint => qr/tenant_access_token/);
is($mock->executes . ' ' . $mock->token_requests, '1 0', '... and is not tried twice');
is($session->value("SELECT count(*) FROM feishu.check_server()"), '1', 'check_server has an answer for a fixed token');
set_mapping(%app);

# ---- a token endpoint in trouble ----

forget_tokens();
my @troubles = (
	[ { type => 'hang' }, 'LK504', 'hangs' ],
	[ { type => 'headers_hang' }, 'LK504', 'hangs after its headers' ],
	[ { type => 'slow_drip' }, 'LK504', 'drips' ],
	[ { type => 'reset_before' }, 'LK503', 'resets the connection' ],
	[ { type => 'close_after' }, 'LK503', 'closes the connection' ],
	[ { type => 'status', status => 502 }, 'LK500', 'answers HTML with 502' ],
	[
		{ type => 'status', status => 200, body => '<html>hello</html>', content_type => 'text/html' },
		'LK502', 'answers HTML with 200'
	],
	[ { type => 'status', status => 404, body => '404 page not found' }, 'LK404', 'answers 404' ],
	[ { type => 'status', status => 301, headers => { Location => 'http://127.0.0.1:1/' } }, 'LK404', 'redirects' ],
	[ { type => 'status', status => 204 }, 'LK502', 'answers 204' ],
	[ { type => 'garbage' }, 'LK502', 'answers garbage' ],
	[ { type => 'half_answer' }, 'LK502', 'breaks off' ],
	[ { type => 'truncated_json' }, 'LK502', 'answers half a JSON' ],
	[ { type => 'empty' }, 'LK502', 'answers nothing' ],
	[ { type => 'deep' }, 'LK502', 'answers too deep a JSON' ],
	[ { type => 'big', bytes => 20 << 20 }, 'LK502', 'answers 20 MB' ],
	[ { type => 'not_utf8' }, 'LK502', 'answers bytes that are not UTF-8' ],
	[ { type => 'wrong_types', set => { tenant_access_token => 7 } }, 'LK502', 'answers a number for a token' ],
	[ { type => 'wrong_types', set => { tenant_access_token => '' } }, 'LK502', 'answers an empty token' ],
	[
		{ type => 'wrong_types', set => { tenant_access_token => "a\r\nb: c" } },
		'LK502', 'answers a token with a line break'
	],
	[ { type => 'wrong_types', remove => ['tenant_access_token'] }, 'LK502', 'answers no token' ],
	[ { type => 'wrong_types', set => { code => 'x' } }, 'LK502', 'answers a strange code' ],
	[ { type => 'code', code => 1500 }, 'LK500', 'has an internal error' ],
	[ { type => 'code', code => 99991400, reset => 1 }, 'LK429', 'limits the rate' ],);
my @oauth_troubles = map {
	my ($fault, @rest) = @$_;
	my %as_oauth = %$fault;
	$as_oauth{set} = { map { s/tenant_access_token/access_token/r => $fault->{set}{$_} } keys %{ $fault->{set} } }
	  if $fault->{set};
	$as_oauth{remove} = ['access_token'] if $fault->{remove};
	[ \%as_oauth, @rest ]
} @troubles;
push @oauth_troubles,
  [ { type => 'status', status => 400, body => { error => 'invalid_client' } }, 'LK401', 'says invalid_client' ],
  [ { type => 'wrong_types', set => { error => 'temporarily_unavailable' } }, 'LK401', 'says an error beside a token' ];
foreach my $protocol ([ \%token, 'token', @troubles ], [ { kind => 'oauth' }, 'OAuth', @oauth_troubles ])
{
	my ($match, $name, @list) = @$protocol;
	alter_server($session, 'feishu', 'ADD', token_url => $mock->url . '/oauth/v3/token') if $name eq 'OAuth';
	foreach my $trouble (@list)
	{
		my ($fault, $sqlstate, $what) = @$trouble;
		$mock->mark;
		$mock->rules([ $match, $fault ]);
		fails_with(
			$session, flow(timeout => $sqlstate eq 'LK504' ? '400ms' : '30s'),
			$sqlstate, "a $name endpoint that $what is $sqlstate",
			message => qr/token/,
			hint => qr/\w/);
		is($mock->executes, 0, '... and nothing is sent');
	}
	$mock->well;
}
alter_server($session, 'feishu', 'DROP', 'token_url');
$mock->revoke;
$mock->rules([ \%token, { type => 'code', code => 10014 } ]);
is_deeply(
	JSON::PP->new->decode(
		succeeds($session, flow(raise_error => 'false'), 'a refused token request with raise_error => false')),
	{ code => 10014, msg => 'app secret invalid' },
	'... is code and message alone');
$mock->well;
foreach my $expire (undef, 'soon', 0, -5, '7200', 1e300, JSON::PP::true)
{
	$mock->rules([ \%token, { type => 'wrong_types', set => { expire => $expire } } ]);
	succeeds($session, flow(), 'a token whose expire is ' . ($expire // 'null') . ' can be used');
	$mock->revoke;
}
$mock->well;
succeeds($session, flow(), 'after all this a call works');

create_server($node, 'down', { base_url => 'http://127.0.0.1:' . closed_port() });
fails_with($session, flow(server => 'down'), 'LK503', 'a token endpoint that is down is LK503');
create_server($node, 'token_down',
	{ base_url => $mock->url, token_url => 'http://127.0.0.1:' . closed_port() . '/oauth/v3/token' });
my ($where) = $session->value("SELECT unnest(srvoptions) FROM pg_foreign_server WHERE srvname = 'token_down'") =~
  m{token_url=(http://[\d.:]+)};
fails_with($session, flow(server => 'token_down'), 'LK503', '... and told by its own address',
	detail => qr/\Q$where\E/);

# ---- a crash leaves no duty behind ----

forget_tokens();
$mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
$session->send(flow());
$mock->wait_for(1, %token);
$session->{run}->signal('KILL');    # the client goes, the backend does not know yet
$second->send(flow(timeout => '30s'));
$watch->value('SELECT pg_terminate_backend(' . $session->pid . ')');
succeeds($second, $second->result, 'a fetch whose client is gone does not hold up others');
$session->{run}->kill_kill;

# ---- without shared_preload_libraries ----

my $plain = new_cluster('plain', preload => 0);
create_server($plain, 'feishu', { base_url => $mock->url });
$mock->reset;
@sessions = map { FeishuFlow::Session->new($plain) } 1 .. 3;
foreach my $one (@sessions)
{
	succeeds($one, flow(), 'a call without shared_preload_libraries') for 1 .. 3;
}
is($mock->token_requests, 3, 'without shared_preload_libraries each backend has its token');
is($mock->executes, 9, '... for all of its calls');
$mock->mark;
$mock->revoke;
succeeds($sessions[0], flow(), 'a refused token is replaced without the shared cache, too');
is($mock->executes . ' ' . $mock->token_requests, '2 1', '... once');
$mock->rules([ \%token, { type => 'code', code => 10014 } ]);
$mock->revoke;
fails_with($sessions[1], flow(), 'LK401', 'a failed fetch without the shared cache');
$mock->well;
succeeds($sessions[1], flow(), '... is not remembered');
$mock->revoke;
$mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
$mock->mark;
$sessions[2]->send(flow());
$mock->wait_for(1, %token);
$sessions[0]->value('SELECT pg_cancel_backend(' . $sessions[2]->pid . ')');
is($sessions[2]->result->{sqlstate}, '57014', 'a fetch without the shared cache is cancelled');
succeeds($sessions[2], flow(), '... and the next call fetches again');

# ---- a token request that hangs ----

# The first session has all the time in the world; the others do not wait for it.
forget_tokens();
$mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
$session->send(flow(timeout => '10min'));
$mock->wait_for(1, %token);
succeeds($second, flow(timeout => '20s'), 'another session takes over from a token request that hangs');
is($mock->token_requests, 2, '... by a request of its own');
$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
$session->result;
$mock->well;

done_testing();
