
# check_server finds the most likely misconfigurations and says the cure.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('check');
my $session = FeishuFlow::Session->new($node);
my $bare = new_cluster('bare', preload => 0);

create_server($node, 'feishu', { base_url => $mock->url });

# Changes an option of the user mapping.
sub mapping
{
	my ($server, $option, $value) = @_;
	$session->value("ALTER USER MAPPING FOR PUBLIC SERVER $server OPTIONS (SET $option " . quote($value) . ')');
	return;
}

# One row of check_server: found by name, and the flows that it started.
sub check
{
	my ($session, @arguments) = @_;
	my $list = join(', ', map { quote($_) } @arguments);
	my %row;
	@row{qw(token_ok http_status code message hint)} = split /\|/,
	  $session->value(
		"SELECT token_ok, http_status, code, message, coalesce(hint, 'none') FROM feishu.check_server($list)"), -1;
	return \%row;
}

sub finds
{
	my ($row, $token_ok, $message, $hint, $name) = @_;
	is($row->{token_ok}, $token_ok, "$name: token_ok");
	like($row->{message}, $message, "$name: found");
	like($row->{hint}, $hint, "$name: the cure");
	return;
}

# ---- all is well ----

my $row = check($session, 'feishu');
finds($row, 't', qr/^An access token was obtained\.$/, qr/^none$/, 'a good server');
is("$row->{http_status} $row->{code}", '200 0', 'a good server: status and code of the token');
$row = check($session, 'feishu', 'package_1__c');
finds($row, 't', qr/"package_1__c" takes calls/, qr/^none$/, 'a good server and low-code application');

# ---- 1, 2: wrong secret, wrong app ----

mapping('feishu', app_secret => 'no-secret');
finds(
	check($session, 'feishu'),
	'f', qr/code 10014/, qr/Correct app_id and app_secret with ALTER USER MAPPING/,
	'wrong secret');
mapping('feishu', app_id => 'cli_other');
finds(
	check($session, 'feishu'),
	'f', qr/code 10015/, qr/Correct app_id and app_secret with ALTER USER MAPPING/,
	'wrong app');

# ---- 3: base_url of the other region: it does not know the app ----

finds(
	check($session, 'feishu'),
	'f', qr/code 10015/,
	qr/Feishu works with base_url https:\/\/open\.feishu\.cn only, one of Lark with https:\/\/open\.larksuite\.com/,
	'base_url of the other region');
mapping('feishu', app_id => 'cli_mock');
mapping('feishu', app_secret => 'mock-secret');

# ---- 4: scope missing ----

$mock->config(scopes => ['contact:user.base:readonly']);
$row = check($session, 'feishu');
finds(
	$row, 't',
	qr/not granted the app the permission app_engine:flow:write/,
	qr/Add the scope app_engine:flow:write/,
	'scope missing');
$mock->config(scopes => []);
finds(
	check($session, 'feishu', 'package_1__c'),
	't',
	qr/not granted/,
	qr/Add the scope app_engine:flow:write/,
	'no scope at all');
$mock->config(scopes => ['app_engine:flow:write']);

# An app that the tenant did not install; and a platform that does not know this API.
$mock->rules([ { kind => 'scopes' }, { type => 'code', code => 212100 } ]);
$row = check($session, 'feishu');
finds($row, 't', qr/not installed.*code 212100/, qr/Publish a version of the app/, 'app not installed');
is("$row->{http_status} $row->{code}", '400 212100', 'app not installed: status and code');
foreach my $fault (
	{ type => 'status', status => 404, body => 'no' },
	{ type => 'reset' },
	{ type => 'garbage' },
	{ type => 'not_utf8' },
	{ type => 'wrong_types', set => { 'data.scopes' => 'none' } },
	{ type => 'code', code => 99991400 })
{
	$mock->rules([ { kind => 'scopes' }, $fault ]);
	finds(
		check($session, 'feishu'),
		't', qr/^An access token was obtained\.$/,
		qr/^none$/, "no list of permissions ($fault->{type})");
}
$mock->well;

# ---- 5: app not authorised in the low-code application ----

$mock->config(namespaces => ['package_2__c']);
$row = check($session, 'feishu', 'package_1__c');
finds(
	$row, 't',
	qr/"package_1__c" failed: .*k_ec_000009/,
	qr/must authorise the app id \(application management, Open API\)/,
	'app not authorised in the low-code application');
finds(
	check($session, 'feishu', 'package_2__c'),
	't', qr/"package_2__c" takes calls/,
	qr/^none$/, 'authorised in another one');
$mock->config(namespaces => undef);

# A namespace that cannot be one is an argument that is wrong: nothing is sent.
$mock->mark;
fails_with(
	$session, 'SELECT feishu.check_server(' . quote('feishu') . ', ' . quote($_) . ')',
	'22023',
	"namespace \"$_\"",
	message => qr/^argument "namespace" must not/) foreach '', '..', 'x' x 256;
is(scalar($mock->log), 0, '... nothing was sent');

# ---- 6: proxy needed ----

create_server($node, 'closed', { base_url => 'http://127.0.0.1:' . closed_port() });
create_server($node, 'silent', { base_url => 'https://127.0.0.1:' . full_port(), connect_timeout => '200ms' });
finds(
	check($session, 'closed'),
	'f',
	qr/the platform could not be reached/,
	qr/through a proxy only, set the server's proxy option/,
	'proxy needed (refused)');
finds(
	check($session, 'silent'),
	'f',
	qr/no connection within 200 ms/,
	qr/through a proxy only, set the server's proxy option/,
	'proxy needed (dropped)');

# ---- 7: CA unknown ----

my $dir = PostgreSQL::Test::Utils::tempdir();
chmod 0755, $dir;
IPC::Run::run(
	[
		qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost),
		'-keyout',
		"$dir/key.pem",
		'-out',
		"$dir/cert.pem"
	],
	'>',
	'/dev/null',
	'2>',
	'/dev/null') or die 'openssl';
my $secure = FeishuFlow::Mock->start('--tls-cert', "$dir/cert.pem", '--tls-key', "$dir/key.pem");
create_server($node, 'private', { base_url => 'https://localhost:' . $secure->port });
$row = check($session, 'private');
finds($row, 'f', qr/certificate/, qr/set the server's ca_file option to the PEM file of a private CA/, 'CA unknown');
like(
	$row->{message},
	qr/The clock of the database host says 20\d\d-/,
	'CA unknown: the clock is shown, for it may be the clock');
alter_server($session, 'private', 'ADD', ca_file => "$dir/cert.pem");
finds(check($session, 'private'), 't', qr/obtained/, qr/^none$/, 'CA known');

# ---- 8: DNS ----

create_server($node, 'nameless', { base_url => 'https://open.feishu.invalid' });
finds(
	check($session, 'nameless'),
	'f',
	qr/the name service gave no address/,
	qr/Check the host name in the server's base_url/, 'DNS');

# ---- 9: clock skew ----

foreach my $case ([ 3600, 'behind' ], [ -3600, 'ahead of' ])
{
	$mock->config(clock => $case->[0]);
	finds(
		check($session, 'feishu'),
		't', qr/clock of the database host is 3\d\d\d s $case->[1]/,
		qr/by NTP/, "clock $case->[1]");
}
$mock->config(clock => 5);
finds(check($session, 'feishu'), 't', qr/^An access token was obtained\.$/, qr/^none$/, 'a clock that is nearly right');
$mock->config(clock => undef);

# ---- 10: no preload; dispatch is off ----

my $unloaded = FeishuFlow::Session->new($bare);
create_server($bare, 'feishu', { base_url => $mock->url });
finds(check($unloaded, 'feishu'), 't', qr/obtained/, qr/add feishu_flow to shared_preload_libraries/, 'no preload');
$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = off');
$node->reload;
wait_until('the setting arrives', sub { $session->value('SHOW feishu_flow.dispatch') eq 'off' });
finds(check($session, 'feishu'), 't', qr/obtained/, qr/feishu_flow\.dispatch is off/, 'dispatch is off');
my $waits = enqueue($session);
is( $session->value("SELECT paused || ' ' || pause_reason FROM feishu.dispatch_status WHERE server = 'feishu'"),
	'false feishu_flow.dispatch is off',
	'... dispatch_status says so, too');
fails_with(
	$session, "SELECT feishu.wait_flow($waits, '0')",
	'LK504',
	'... and wait_flow',
	hint => qr/nothing sends it: feishu_flow\.dispatch is off/);
$session->value("SELECT feishu.cancel_flow($waits)");

$node->safe_psql('postgres', 'ALTER SYSTEM RESET feishu_flow.dispatch');
$node->reload;
wait_until('the setting arrives', sub { $session->value('SHOW feishu_flow.dispatch') eq 'on' });
$session->value("SELECT feishu.pause_server('feishu')");
finds(check($session, 'feishu'), 't', qr/obtained/, qr/paused.*feishu\.resume_server/, 'paused by hand');
$waits = enqueue($session);
fails_with(
	$session, "SELECT feishu.wait_flow($waits, '0')",
	'LK504',
	'... wait_flow says so, too',
	hint => qr/held back: paused by \w+\./);
$session->value("SELECT feishu.cancel_flow($waits)");
$session->value("SELECT feishu.resume_server('feishu')");

# ---- a fixed token ----

create_server($node, 'fixed', { base_url => $mock->url }, { tenant_access_token => $mock->token });
finds(
	check($session, 'fixed'),
	't', qr/accepts the user mapping's tenant_access_token/,
	qr/^none$/, 'a good fixed token');
mapping('fixed', tenant_access_token => 't-nonsense');
$row = check($session, 'fixed');
finds($row, 'f', qr/token was refused/, qr/tenant_access_token/, 'a bad fixed token');
unlike("$row->{message} $row->{hint}", qr/t-nonsense/, 'a bad fixed token is not shown');

is($mock->started, 0, 'no flow was started by all of this');

# ---- no worker ----

my $crowded = new_cluster('crowded', conf => 'max_worker_processes = 1');
create_server($crowded, 'feishu', { base_url => $mock->url });
my $unserved = FeishuFlow::Session->new($crowded);
finds(
	check($unserved, 'feishu'),
	't', qr/obtained/,
	qr/Increase max_worker_processes, currently 1/,
	'no background worker');
$waits = enqueue($unserved);
is( $unserved->value("SELECT paused || ' ' || pause_reason FROM feishu.dispatch_status"),
	'false there is no background worker for the dispatcher',
	'... dispatch_status says so, too');
fails_with(
	$unserved, "SELECT feishu.wait_flow($waits, '0')",
	'LK504',
	'... and wait_flow',
	hint => qr/no background worker/);
$unserved->quit;
$crowded->stop;

# ---- a template ----

$node->safe_psql('postgres', 'CREATE DATABASE model');
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'model');
$node->safe_psql('postgres', 'ALTER DATABASE model IS_TEMPLATE true');
my $model = FeishuFlow::Session->new($node, database => 'model');
wait_until('it has no dispatcher', sub { dispatcher($model) eq '' });
finds(check($model, 'feishu'), 't', qr/obtained/, qr/the database is a template/, 'a template');

# ---- an outage that is over, a quota ----

my $patient =
  new_cluster('patient', conf => "feishu_flow.retry_base_delay = '1h'\nfeishu_flow.retry_max_delay = '1h'\n");
create_server($patient, 'feishu', { base_url => $mock->url });
my $sends = FeishuFlow::Session->new($patient);
$mock->rules([ { kind => 'execute' }, { type => 'status', status => 502 } ]);
enqueue_many($sends, 1, 6, server => 'feishu');
until_true($sends, 'all are tried', 'SELECT bool_and(attempts > 0) FROM feishu.flows');
enqueue($sends);
until_true(
	$sends,
	'the breaker is open',
	"SELECT paused AND pause_reason ~ 'does not answer' FROM feishu.dispatch_status");
$mock->rules([ { kind => 'execute' }, { type => 'reset_before' } ],
	[ { kind => 'scopes' }, { type => 'reset_before' } ]);
finds(
	check($sends, 'feishu'),
	't', qr/obtained/,
	qr/^Queued flows wait until .*: the platform does not answer/,
	'an outage of all but the token');
fails_with(
	$sends, "SELECT feishu.wait_flow(max(id), '0') FROM feishu.flows WHERE state = 'queued'",
	'LK504',
	'... wait_flow says so, too',
	hint => qr/held back: the platform does not answer\./);
$mock->well;
finds(check($sends, 'feishu'), 't', qr/obtained/, qr/^none$/, 'an outage that is over');
until_true($sends, 'queued flows are not held back any more', 'SELECT NOT paused FROM feishu.dispatch_status');
$mock->rules([ { kind => 'execute' }, { type => 'code', code => 99991403, http_status => 429 } ]);
enqueue_many($sends, 7, 300, server => 'feishu');
until_true($sends, 'the app is paused', "SELECT paused AND pause_reason ~ 'quota' FROM feishu.dispatch_status");
$mock->well;
$mock->rules([ { kind => 'execute' }, { type => 'hang' } ]);
fails_with($sends, flow(timeout => '1500ms'),
	'LK504', 'a call that is the trial of an app without quota, and is not answered');
$mock->well;
my $year = (localtime)[5] + 1900;
finds(
	check($sends, 'feishu'),
	't', qr/obtained/,
	qr/Queued flows wait until $year-.*: the quota is used up\. .*resume_server/,
	'a quota that was used up');

done_testing();
