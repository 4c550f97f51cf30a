
# A server with the option sandbox is answered inside: nothing is sent, whatever its options and mappings say, and all
# that follows from an answer is as with the platform.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main',
	conf => "feishu_flow.retry_base_delay = '10ms'\nfeishu_flow.retry_max_delay = '20ms'\n"
	  . "feishu_flow.max_attempts = 3\n");
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; '
	  . 'GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO owner; '
	  . 'ALTER SERVER feishu OWNER TO owner');
my $owner = FeishuFlow::Session->new($node, user => 'owner');
my $app = FeishuFlow::Session->new($node, user => 'app');
my $answer = '{"_flowExecutionID": 1816970091484211}';
until_dispatcher($session);

# A SELECT of one call with usual arguments.
sub call { return flow(operator => undef, @_); }

# Sets the answer of a session, a role or the database; undefined: none.
sub answers
{
	my ($who, $value) = @_;
	$session->value(
		"ALTER $who "
		  . (
			defined $value
			? 'SET feishu_flow.sandbox_response = ' . quote($value)
			: 'RESET feishu_flow.sandbox_response'));
	return;
}

sub set
{
	my ($who, $value) = @_;
	$who->value('SET feishu_flow.sandbox_response = ' . quote($value));
	return;
}

# Queues a flow and waits for its end.
sub run
{
	my ($who, %arguments) = @_;
	my $id = enqueue($who, server => 'feishu', %arguments);
	until_ended($session, "id = $id");
	return $id;
}

sub is_untouched
{
	my ($name) = @_;
	is(join(' ', map { "$_->{method} $_->{path}" } $mock->log), '', "nothing was sent: $name");
	return;
}

# ---- one statement ----

succeeds($app, call(), 'a call of the platform');
is($mock->executes, 1, 'the platform was asked');
$mock->mark;
$owner->value("SELECT feishu.pause_server('feishu')");
my $held = enqueue($app);
$owner->value("ALTER SERVER feishu OPTIONS (ADD sandbox 'true')");
$owner->value("SELECT feishu.resume_server('feishu')");
is($app->value('SELECT feishu.out_params(' . substr(call(), 7) . ')'),
	$answer, "one statement makes a server a sandbox, which answers as the platform's document has it");
is(look($session, run($app), 'state, attempts, execution_id, flow_status, code, sqlstate'),
	'succeeded|1|1816970091484211|end|0|',
	'... and so are queued flows answered');
is( $app->value(
			"SELECT count(*) FROM (SELECT feishu.execute_flows('a', 'b') OVER () AS r FROM generate_series(1, 20)) s "
		  . "WHERE (r).response @> '{\"code\": 0}'"),
	20,
	'... and many calls at once');
until_ended($session, "id = $held");
is(look($session, $held, 'state'), 'succeeded', '... and what waited');

is($app->value('SELECT token_ok, http_status, code, hint, message FROM feishu.check_server()'),
	'||||The server is a sandbox: calls and queued flows are answered by the extension itself, '
	  . 'and nothing is sent to the platform.',
	'check_server says so');
is($app->value("SELECT server, paused, sandbox FROM feishu.dispatch_status"), 'feishu|f|t', 'dispatch_status says so');
is($session->value("SELECT sum(calls), sum(successes) FROM feishu.stat_flows WHERE namespace = 'a'"),
	'20|20', 'calls are counted');

# ---- credentials, limits and addresses do not matter ----

$owner->value("ALTER SERVER feishu OPTIONS (ADD ca_file '/', ADD max_rate '1/h', ADD max_concurrency '1', "
	  . "ADD proxy 'http://127.0.0.1:1')");
$owner->value('DROP USER MAPPING FOR PUBLIC SERVER feishu');
succeeds($app, call(), 'a call without a user mapping') for 1 .. 2;
is(look($session, run($app), 'state'), 'succeeded', '... and a queued flow') for 1 .. 2;
fails_with($app, call(operator => '{"_id": "x"}'), '22023', 'arguments are looked at as ever');
$owner->value('REVOKE USAGE ON FOREIGN SERVER feishu FROM PUBLIC');
fails_with($app, call(), '42501', '... and so are rights');
$owner->value('GRANT USAGE ON FOREIGN SERVER feishu TO PUBLIC');

# ---- answers that were set, as from the platform ----

# What is answered, and what becomes of it: of a call the SQLSTATE, of a queued flow its state, attempts and SQLSTATE.
my @answers = (
	[ '{"code": 0, "msg": "success", "data": {"status": "wait", "execution_id": "7"}}', '00000', 'succeeded|1|' ],
	[ '{"code": 1500, "msg": "internal error"}', 'LK500', 'failed|3|LK500' ],
	[ '400 {"code": 2320001, "msg": "param is invalid"}', 'LK400', 'failed|1|LK400' ],
	[ '{"code": 0, "data": {"code": "k_wf_ec_200036", "error_msg": "no such flow"}}', 'LK404', 'failed|1|LK404' ],
	[ '{"code": 0, "data": {"code": "k_wf_ec_2001008"}}', 'LK409', undef ],
	[ '502 <html>Bad Gateway</html>', 'LK500', 'failed|3|LK500' ],
	[ '200 <html>Good Gateway</html>', 'LK502', 'failed|3|LK502' ],
	[ '503', 'LK500', 'failed|3|LK500' ],
	[ '404 page not found', 'LK404', 'failed|1|LK404' ]);

# What the platform itself says is compared.
is_untouched('by a sandbox');
create_server($node, 'real', { base_url => $mock->url, operator => '{"_id": 1}' });
succeeds($owner, call(server => 'real'), 'the platform is there');
foreach my $case (@answers)
{
	my ($value, $sqlstate, $end) = @$case;
	my ($status, $body) = $value =~ /^(?:(\d{3}) ?)?(.*)$/s;
	set($owner, $value);
	my $result = $owner->ask(call());
	is($result->{sqlstate}, $sqlstate, "a call is answered $value") or diag($result->{err});
	$mock->rules([ { kind => 'execute' }, { type => 'status', status => ($status // 200) + 0, body => $body } ]);
	my $real = $owner->ask(call(server => 'real'));
	is( join("\n", map { $result->{$_} // '' } qw(sqlstate message hint out)),
		join("\n", map { $real->{$_} // '' } qw(sqlstate message hint out)),
		'... as by the platform');
	$mock->well;
	next if !defined $end;
	answers('ROLE owner', $value);
	my $id = run($owner);
	is(look($session, $id, 'state, attempts, sqlstate'), $end, "... and a queued flow")
	  or diag(look($session, $id, 'error'));
	answers('ROLE owner', undef);
	$session->value("SELECT feishu.resume_server('feishu')");
}
set($owner, '');
succeeds($owner, call(), 'an empty setting is none');
$session->value('DROP SERVER real CASCADE');
$mock->mark;

# ---- what holds an app ----

foreach my $hold (
	[ '429 {"code": 99991400}', qr/limits the rate/, 'LK429' ],
	[ '{"code": 99991403}', qr/quota/, 'LK429' ],
	[ '{"code": 10014}', qr/credentials/, 'LK401' ],
	[ '{"code": 99991663}', undef, 'LK401' ])
{
	my ($value, $reason, $sqlstate) = @$hold;
	set($owner, $value);
	fails_with($owner, call(), $sqlstate, "a call is answered $value");
	is(look($session, run($app), 'state'), 'succeeded', '... which holds no flow back');
	set($owner, '');
	succeeds($owner, call(), '... nor the next call');
	next if !defined $reason;
	answers('ROLE owner', $value);
	my $id = enqueue($owner);
	until_true($session, "a queued flow is answered $value",
		"SELECT paused AND pause_reason ~ '"
		  . ($reason =~ s/^\(\?\^:|\)$//gr)
		  . "' FROM feishu.dispatch_status WHERE server = 'feishu'");
	is(look($session, $id, 'state, attempts'), 'queued|0', '... and waits, as does the app');
	answers('ROLE owner', undef);
	$owner->value("SELECT feishu.resume_server('feishu')");
	until_ended($session, "id = $id");
	is(look($session, $id, 'state'), 'succeeded', '... until its owner resumes the server');
}

# ---- whose answers count ----

my $bad = '{"code": 2320001}';
set($app, $bad);
succeeds($app, call(), 'who does not own the server cannot set its answers');
answers('ROLE app', $bad);
is(look($session, run($app), 'state'), 'succeeded', '... nor those to queued flows');
$app->value('RESET feishu_flow.sandbox_response');
answers('ROLE app', undef);
set($session, $bad);
fails_with($session, call(), 'LK400', 'a superuser can');
$session->value('SET ROLE app');
fails_with($session, call(), 'LK400', '... in another role, too');
$session->value('RESET ROLE; RESET feishu_flow.sandbox_response');

# a function of the owner's does not have what its caller has set
$owner->value('CREATE SCHEMA owned') if $session->value('GRANT CREATE ON DATABASE postgres TO owner') || 1;
$owner->value('CREATE FUNCTION owned.call() RETURNS jsonb LANGUAGE sql SECURITY DEFINER AS ' . quote(call()));
$owner->value('GRANT USAGE ON SCHEMA owned TO PUBLIC');
set($app, $bad);
succeeds($app, 'SELECT owned.call()', "a function of the owner's does not see what its caller has set");
$app->value('RESET feishu_flow.sandbox_response');

answers('DATABASE postgres', $bad);
is(look($session, run($app), 'state, sqlstate'),
	'failed|LK400', "what the database's owner has set counts for all who queue, when he is a superuser");
fails_with(FeishuFlow::Session->new($node, user => 'app'), call(), 'LK400', '... and who call');
$session->value('ALTER DATABASE postgres OWNER TO app');
is(look($session, run($app), 'state'), 'succeeded', '... and not when he has nothing to do with the server');
succeeds(FeishuFlow::Session->new($node, user => 'app'), call(), '... nor for who call');

# ---- what does not count hides nothing that does ----

sub restart
{
	$_->quit foreach $session, $owner, $app;
	$node->restart;
	$session = FeishuFlow::Session->new($node);
	($owner, $app) = map { FeishuFlow::Session->new($node, user => $_) } qw(owner app);
	until_dispatcher($session);
	return;
}

my $not_found = '{"code": 0, "data": {"code": "k_wf_ec_200036"}}';
$node->append_conf('postgresql.conf', "feishu_flow.sandbox_response = '$bad'");
answers('DATABASE postgres', $not_found);
restart();
is(look($session, run($app), 'state, sqlstate'),
	'failed|LK400', "what the configuration says counts, whatever the database's owner has set");
fails_with($app, call(), 'LK400', '... and who calls');
answers('ROLE app', $not_found);
is(look($session, run($app), 'state, sqlstate'), 'failed|LK400', '... or a role for itself');
fails_with(FeishuFlow::Session->new($node, user => 'app'), call(), 'LK400', '... and calls');
answers('ROLE app', undef);
set($app, '');
fails_with($app, call(), 'LK400', '... or a session');
$app->value('RESET feishu_flow.sandbox_response');
$session->value('ALTER DATABASE postgres OWNER TO CURRENT_USER');
is(look($session, run($app), 'state, sqlstate'), 'failed|LK404', '... until he may say it');
set($app, '');
fails_with($app, call(), 'LK404', '... which no session hides');
$app->value('RESET feishu_flow.sandbox_response');
answers('DATABASE postgres', undef);
$node->adjust_conf('postgresql.conf', 'feishu_flow.sandbox_response', undef);
restart();
is(look($session, run($app), 'state'), 'succeeded', 'nothing is set any more');

fails_with(
	$session, "SET feishu_flow.sandbox_response = 'error'",
	'22023',
	'what is no answer cannot be set',
	detail => qr/neither a JSON object/);
fails_with($session, "SET feishu_flow.sandbox_response = '100 {}'", '22023', '... nor what is no final status');

# ---- handlers ----

$session->value('CREATE TABLE ends (id bigint, state text); GRANT INSERT ON ends TO PUBLIC; '
	  . 'CREATE FUNCTION note(f feishu.flows) RETURNS void LANGUAGE sql AS '
	  . '$$INSERT INTO public.ends VALUES (f.id, f.state)$$');
my $id = enqueue($app, on_end => 'public.note');
until_true($session, 'handlers are called', "SELECT on_end_state = 'succeeded' FROM feishu.flows WHERE id = $id");
is($session->value('SELECT state FROM ends'), 'succeeded', '... as from the platform');

# ---- and back ----

is_untouched('by a sandbox whose answers were set');
$owner->value("CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
$owner->value("ALTER SERVER feishu OPTIONS (SET sandbox 'false', DROP ca_file, DROP max_rate, "
	  . "DROP max_concurrency, DROP proxy)");
set($owner, $bad);
succeeds($owner, call(), 'a server that is no sandbox any more');
is($mock->executes, 1, '... is called again, whatever the setting says');
is($app->value("SELECT count(*) FROM feishu.dispatch_status WHERE sandbox"), 0, '... and dispatch_status says so');

done_testing();
