
# What a call's end says of the platform: five in a row that brought no answer open the breaker, four do not, and what
# the platform answered in its own words, what the caller gave no time, and what this host is short of does not count.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start('--accept-hang');
my $node = new_cluster('main', conf => "feishu_flow.max_response_size = '64kB'\n");
my $session = FeishuFlow::Session->new($node);
my ($closed, $full) = (closed_port(), full_port());
my $apps = 0;

# A server with an app of its own.
sub new_server
{
	my ($mapping, %options) = @_;
	my $name = 'troubled_' . ++$apps;
	$mock->config(apps => { "cli_$apps" => 'secret' });
	create_server(
		$node, $name,
		{ base_url => $mock->url, %options },
		$mapping // { app_id => "cli_$apps", app_secret => 'secret' });
	return $name;
}

# What the log says of a server.
sub told
{
	my ($server) = @_;
	return join(', ',
		slurp_file($node->logfile) =~ /server "$server"(?:: app is)? (does not answer|paused, the \w+ \w+ \w+)/g);
}

sub call { my ($server, $n, @arguments) = @_; $session->ask(flow(server => $server, @arguments)) for 1 .. $n; return; }

# [what, its fault, does it count, options of the server, arguments of the calls]
foreach my $case (
	[ 'a reset', { type => 'reset_before' }, 1 ],
	[ 'HTTP 500 without JSON', { type => 'status', status => 500, body => 'x' }, 1 ],
	[ 'HTTP 503 with an unknown code', { type => 'status', status => 503, body => { code => 77777 } }, 1 ],
	[ 'code 1500 with HTTP 500', { type => 'code', code => 1500, http_status => 500 }, 1 ],
	[ 'code 1500 with HTTP 499', { type => 'code', code => 1500, http_status => 499 }, 0 ],
	[ 'code 1500 with HTTP 200', { type => 'code', code => 1500, http_status => 200 }, 0 ],
	[ 'an inner code', { type => 'inner', code => 'k_ec_000001' }, 0 ],
	[ 'a refusal', { type => 'code', code => 2320001 }, 0 ],
	[ 'HTML', { type => 'status', status => 200, body => '<html>' }, 1 ],
	[ 'HTTP 407', { type => 'status', status => 407, body => '' }, 1 ],
	[ 'HTTP 404', { type => 'status', status => 404, body => '' }, 0 ],
	[ 'HTTP 408 with a code', { type => 'status', status => 408, body => { code => 77777 } }, 0 ],
	[ 'what is not HTTP', { type => 'garbage' }, 1 ],
	[ 'half an answer', { type => 'half_answer' }, 1 ],
	[ 'more than we read', { type => 'big', bytes => 100_000 }, 0 ],
	[ 'no answer in the usual time', { type => 'hang' }, 1, { timeout => '100ms' } ],
	[ 'no answer in more than that', { type => 'hang' }, 1, { timeout => '100ms' }, [ timeout => '150ms' ] ],
	[ 'no answer in less than that', { type => 'hang' }, 0, { timeout => '150ms' }, [ timeout => '100ms' ] ],
	[ 'no answer in less than a setting', { type => 'hang' }, 0, {}, [ timeout => '100ms' ] ])
{
	my ($what, $fault, $counts, $options, $arguments) = @$case;
	my $server = new_server(undef, %{ $options // {} });
	call($server, 1, timeout => '30s');
	$mock->fault(%$fault);
	# a connection that was kept ends at some time, which says nothing
	call($server, 1) if $fault->{type} eq 'reset_before';
	call($server, 4, @{ $arguments // [] });
	is(told($server), '', "$what, four times: nothing");
	call($server, 1, @{ $arguments // [] });
	is( told($server),
		$counts ? 'does not answer' : '',
		'... a fifth time: ' . ($counts ? 'the breaker opens' : 'nothing'));
	$mock->well;
}

# ---- connections ----

foreach my $case (
	[ 'nobody there', $closed, 1 ],
	[ 'nobody in the usual time', $full, 1, connect_timeout => '50ms' ],
	[ 'nobody in less than that', $full, 0 ])
{
	my ($what, $port, $counts, %options) = @$case;
	my $server = new_server({ tenant_access_token => 't-x' . ++$apps }, base_url => "http://127.0.0.1:$port", %options);
	$session->value("SET feishu_flow.connect_timeout = '50ms'");
	call($server, 5);
	is(told($server), $counts ? 'does not answer' : '', "$what, five times");
}
$session->value('RESET feishu_flow.connect_timeout');

# ---- tokens ----

# Time that went by while the token came is not the platform's to answer in.
my $server = new_server(undef, timeout => '600ms');
$mock->config(token_expire => 1);
$mock->rules([ { kind => 'token' }, { type => 'latency', ms => 400 } ], [ { kind => 'execute' }, { type => 'hang' } ]);
foreach (1 .. 5)
{
	$mock->revoke;
	call($server, 1);
	$session->value('SELECT pg_sleep(0.5)');
}
is(told($server), '', 'no answer in what the token left of the time');
$mock->well;
$mock->config(token_expire => 7200);

# A token that is refused, and the next one: that may pass.  A fixed one is what it is.
$server = new_server();
call($server, 1);
$mock->fault(type => 'code', code => 99991663);
call($server, 8);
is(told($server), 'does not answer', 'a token that is refused, and the next one, too');
$server = new_server({ tenant_access_token => 't-fixed' });
call($server, 1);
is(told($server), 'paused, the credentials were refused', 'a fixed token that is refused');
$mock->well;

# One token request that fails is one trouble, however many wait for it.
my $dying = FeishuFlow::Mock->start;
$server = new_server({ app_id => 'cli_mock', app_secret => 'mock-secret' }, base_url => $dying->url);
$dying->rules([ { kind => 'token' }, { type => 'hang' } ]);
my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 6;
$_->send(flow(server => $server)) foreach @sessions;
$dying->wait_for(1, kind => 'token');
wait_until(
	'all wait',
	sub {
		$session->value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Extension' "
			  . "AND backend_type = 'client backend'") == @sessions;
	});
is($dying->token_requests, 1, 'one token request for six sessions');
$dying->stop;
my @ends = map { $_->result->{sqlstate} } @sessions;
is(join(' ', @ends), join(' ', ('LK503') x 6), '... that fails for all of them');
is(told($server), '', '... is one trouble');

# ---- queued flows ----

# Their time is the setting's, and no caller has chosen it.
$session->value("ALTER SYSTEM SET feishu_flow.timeout = '100ms'");
$session->value('SELECT pg_reload_conf()');
$server = new_server();
$mock->fault(type => 'hang');
my $id = $session->value(
		"SELECT max(feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => '$server', max_attempts => 1)) "
	  . 'FROM generate_series(1, 5)');
fails_with($session, "SELECT feishu.wait_flow($id)",
	'LK504', 'five queued flows without an answer in a time that is set');
wait_until('the breaker opens', sub { told($server) ne '' });
is(told($server), 'does not answer', '... open the breaker, however short it is');
$mock->well;

# ---- checks ----

$server = new_server(undef, base_url => "http://127.0.0.1:$closed");
$session->value("SELECT token_ok FROM feishu.check_server('$server')") for 1 .. 6;
is(told($server), '', 'a check that finds nobody is no call');

done_testing();
