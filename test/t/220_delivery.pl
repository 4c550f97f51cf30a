
# Faults of the platform, of the connection, of credentials and of single flows:
# what is retried, what is not, and what the platform gets to see of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
$node->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
my $session = FeishuFlow::Session->new($node);
my ($id, $second, $key, @seen);
my $apps = 0;

# A server with an app of its own, so that no pause outlives its test; counts
# begin anew.
sub new_server
{
	my (%options) = @_;
	$apps++;
	$mock->well;
	$mock->reset;
	$mock->config(apps => { "cli_$apps" => "secret-$apps" });
	create_server(
		$node, "s$apps",
		{ base_url => $mock->url, %options },
		{ app_id => "cli_$apps", app_secret => "secret-$apps" });
	return "s$apps";
}

# One flow on a new server, which meets a fault; returns its id when it has ended.
sub with_fault
{
	my ($rule, %arguments) = @_;
	my $server = new_server(%{ delete $arguments{options} // {} });
	my ($fault, %how) = %$rule{fault} ? ($rule->{fault}, %$rule) : ($rule);
	delete $how{fault};
	$mock->rules([ { kind => 'execute' }, $fault, %how ]);
	my $flow = enqueue($session, server => $server, params => '{"n": 1}', %arguments);
	until_ended($session);
	return $flow;
}

sub status_of
{
	my ($server, $columns) = @_;
	return $session->value("SELECT $columns FROM feishu.dispatch_status WHERE server = '$server'");
}

# Lines of the server's log about a server.
sub log_lines
{
	my ($server, $expression) = @_;
	return
	  scalar(grep { /LOG:  feishu_flow .*server "$server"/ && /$expression/ } split /\n/, slurp_file($node->logfile));
}

sub keys_seen
{
	my %keys = map { $_->{key} => 1 } arrivals($mock);
	return scalar keys %keys;
}

# ---- retried, with the same key ----

foreach my $case (
	[ 'HTTP 500', { type => 'status', status => 500 } ],
	[ 'HTTP 502 in HTML', { type => 'status', status => 502 } ],
	[ 'code 1500', { type => 'code', code => 1500 } ],
	[ 'a proxy that refuses (HTTP 407)', { type => 'status', status => 407 } ],
	[ 'a reset on arrival', { type => 'reset_before' } ],
	[ 'garbage', { type => 'garbage' } ],
	[ 'no answer in time', { type => 'hang' }, { timeout => '150ms' } ])
{
	my ($name, $fault, $options) = @$case;
	$id = with_fault({ fault => $fault, times => 2 }, options => $options);
	is(look($session, $id, 'state, attempts, sqlstate IS NULL, error IS NULL'),
		'succeeded|3|t|t', "$name, twice: the third attempt succeeds");
	is($mock->executes . ' ' . keys_seen(), '3 1', '... three requests, one key');
	started_once($mock, 1, '... and one flow');
	is( $session->value(
			"SELECT calls || ' ' || successes || ' ' || retries FROM feishu.stat_flows WHERE server = 's$apps'"),
		'3 1 2',
		'... and stat_flows counts them');
}

$id = with_fault({ type => 'status', status => 503 }, max_attempts => \3);
is(look($session, $id, 'state, attempts, sqlstate'), 'failed|3|LK500', 'after max_attempts a flow fails');
like(look($session, $id, 'error'), qr/503.*given up after 3 attempts/, '... with the reason');
is($mock->executes, 3, '... after so many requests');
started_once($mock, 0, '... and was never started');
fails_with($session, "SELECT feishu.wait_flow($id)", 'LK500', '... which wait_flow tells');
$mock->well;
is($session->value("SELECT feishu.retry_flow($id)"), 't', '... and it can be retried');
succeeds($session, "SELECT feishu.wait_flow($id)", '... when all is well');
is($mock->executes . ' ' . keys_seen(), '4 1', '... with the same key');

$id = with_fault({ type => 'reset_before' }, expires_at => \"clock_timestamp() + interval '400 ms'");
is(look($session, $id, 'state'), 'failed', 'a flow that expires while it is retried fails');
like(look($session, $id, 'error'), qr/expire/, '... with the reason');
is(look($session, $id, "finished_at < expires_at + interval '5 s'"), 't', '... then');
started_once($mock, 0, '... and was never started');

$mock->well;
$id = enqueue($session, server => new_server(), params => '{"n": 1}');
$session->value("SELECT feishu.wait_flow($id)");
$mock->rules([ { kind => 'token' }, { type => 'status', status => 500 }, times => 2 ]);
$mock->revoke;
$id = enqueue($session, server => "s$apps", params => '{"n": 2}');
succeeds($session, "SELECT feishu.wait_flow($id)", 'a token that cannot be had is waited for');
started_once($mock, 2, '... and the flow starts once');

# ---- when it is tried again ----

# Exponential backoff with full jitter: each delay is a random part of what
# doubles with each attempt, and has a limit.  The platform asks for patience in
# words of its own, so that no breaker is in the way.
sub set_delays
{
	my ($base, $limit) = @_;
	$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = off');
	$node->safe_psql('postgres', "ALTER SYSTEM SET feishu_flow.retry_base_delay = '$base'");
	$node->safe_psql('postgres', "ALTER SYSTEM SET feishu_flow.retry_max_delay = '$limit'");
	$node->reload;
	wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
	$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = on');
	$node->reload;
	until_dispatcher($session);
	return;
}

foreach my $case ([ '1d', 1e9, 'it doubles with each attempt' ], [ '2min', 120, 'it has a limit' ])
{
	my ($limit, $most, $name) = @$case;
	set_delays('50ms', '1d');
	my $server = new_server();
	$mock->fault(type => 'inner', code => 'k_ec_000001');
	enqueue_many($session, 1, 100, server => $server, max_attempts => \1000);
	until_true(
		$session,
		'all were tried some times',
		"SELECT min(attempts) >= 3 FROM feishu.flows WHERE server = '$server'");
	$session->value("SELECT feishu.pause_server('$server')");
	until_true($session, 'none is under way',
		"SELECT sending = 0 FROM feishu.dispatch_status WHERE server = '$server'");
	set_delays('100s', $limit);
	$mock->mark;
	$session->value("SELECT feishu.resume_server('$server')");
	wait_until(
		'each was tried once more',
		sub {
			my %tried = map { $_ => 1 } numbers($mock);
			keys %tried == 100;
		});
	until_true($session, 'all wait', "SELECT bool_and(state = 'retrying') FROM feishu.flows WHERE server = '$server'");
	my %last = map { $_->{json}{params} =~ /(\d+)/ ? ($1 => $_->{time}) : () } arrivals($mock);
	my @parts;
	foreach (
		split /\n/,
		$session->value(
			"SELECT params->>'n', attempts, extract(epoch FROM run_at) FROM feishu.flows WHERE server = '$server'"))
	{
		my ($n, $attempts, $at) = split /\|/;
		my $longest = 100 * 2**($attempts - 1);
		$longest = $most if $longest > $most;
		push @parts, ($at - $last{$n}) / $longest;
	}
	@parts = sort { $a <=> $b } @parts;
	my $mean = 0;
	$mean += $_ / 100 foreach @parts;
	note(sprintf('parts of the longest delay: %.3f to %.3f, mean %.3f', @parts[ 0, 99 ], $mean));
	cmp_ok($parts[99], '<', 1.1, "the delay before the next attempt: $name");
	cmp_ok($parts[99], '>', 0.8, '... nearly all of it is used');
	cmp_ok($parts[0], '<', 0.2, '... from nearly nothing on');
	cmp_ok(abs($mean - 0.5), '<', 0.15, '... at random');
	$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE server = '$server'");
}
set_delays('20ms', '200ms');

# ---- no answer, and the key is used: unconfirmed ----

foreach my $case (
	[ 'a reset after it was accepted', { type => 'reset_after' }, {} ],
	[ 'half of an answer', { type => 'half_answer' }, {} ],
	[ 'an answer that cannot be read', { type => 'truncated_json' }, {} ],
	[ 'no end of the headers', { type => 'headers_hang' }, { timeout => '150ms' } ])
{
	my ($name, $fault, $options) = @$case;
	foreach my $own (undef, 'mine')
	{
		my $whose = $own ? 'own' : 'made';
		$id = with_fault(
			{ fault => $fault, times => 1 },
			options => $options,
			defined $own ? (idempotent_key => $own) : ());
		is(look($session, $id, 'state, attempts, sqlstate'),
			'unconfirmed|2|LK409', "$name, then the key ($whose) is used: unconfirmed");
		is($mock->executes . ' ' . keys_seen(), '2 1', '... after two requests with one key');
		started_once($mock, 1, '... and one flow');
	}
}
fails_with($session, "SELECT feishu.wait_flow($id)", 'LK409', 'wait_flow tells', message => qr/unconfirmed/);
is($session->value("SELECT feishu.retry_flow($id, true)"), 't', 'with a new key it can be started again, on demand');
succeeds($session, "SELECT feishu.wait_flow($id)", '... which it is');
is(summary($mock)->{started}, 2, '... so a second time');

new_server();
$session->value(flow(server => "s$apps", params => '{"n": 1}', idempotent_key => 'theirs'));
$id = enqueue($session, server => "s$apps", params => '{"n": 2}', idempotent_key => 'theirs');
until_ended($session);
is(look($session, $id, 'state, attempts, sqlstate'), 'failed|1|LK409', 'a key that a call has used: failed');
started_once($mock, 1, '... and not started');

new_server(timeout => '1s');
$mock->fault(type => 'headers_hang');
$id = enqueue($session, server => "s$apps", expires_at => \"clock_timestamp() + interval '3 s'");
$mock->wait_for(1, kind => 'execute');
$session->value("SELECT feishu.pause_server('s$apps')");
until_state($session, $id, 'retrying');
$session->value("SELECT pg_sleep_until(expires_at) FROM feishu.flows WHERE id = $id");
$session->value("SELECT feishu.resume_server('s$apps')");
until_ended($session);
like(
	look($session, $id, 'state, attempts, error'),
	qr/^failed\|1\|no answer within 1000 ms.*; expired before it could be sent$/,
	'a flow that expires after an attempt says what became of that');

# ---- refused ----

new_server();
$mock->rules([ { kind => 'execute' }, { type => 'code', code => 2320001, msg => 'not so' }, every => 10 ]);
enqueue_many($session, 1, 100, server => "s$apps");
until_ended($session);
is( ends($session, "server = 's$apps'"),
	'failed 10, succeeded 90',
	'every tenth is refused: it fails, the others succeed');
is( $session->value(
			"SELECT DISTINCT sqlstate, attempts, code, error LIKE '%not so%' FROM feishu.flows "
		  . "WHERE server = 's$apps' AND state = 'failed'"),
	'LK400|1|2320001|t',
	'... with the reason, and no second attempt');
is($mock->executes, 100, '... so 100 requests were made');
started_once($mock, 90, '... and 90 flows started');

foreach my $case (
	[ 'LK404', { type => 'inner', code => 'k_wf_ec_200036' } ],
	[ 'LK400', { type => 'inner', code => 'k_wf_ec_2001001' } ])
{
	$id = with_fault($case->[1]);
	is(look($session, $id, 'state, attempts, sqlstate'), "failed|1|$case->[0]", "$case->[1]{code} is final");
	is(look($session, $id, 'code, flow_code, log_id IS NOT NULL, response IS NOT NULL'),
		"0|$case->[1]{code}|t|t", '... and what the platform said is kept');
}

# ---- the rate ----

$id = with_fault({ fault => { type => 'code', code => 99991400, reset => 1 }, times => 2 });
is(look($session, $id, 'state, attempts'), 'succeeded|1', '429 twice does not count as an attempt');
@seen = arrivals($mock);
is(scalar(@seen), 3, '... three requests');
cmp_ok($seen[$_]{time} - $seen[ $_ - 1 ]{time}, '>=', 0.95, '... not before the time it says') foreach 1, 2;

new_server();
$mock->fault(type => 'code', code => 99991400, reset => 60);
$id = enqueue($session, server => "s$apps", params => '{"n": 1}');
until_true($session, 'the app is held back', "SELECT paused FROM feishu.dispatch_status WHERE server = 's$apps'");
like(
	status_of("s$apps", "pause_reason || ' ' || (resume_at - now())"),
	qr/rate.* 00:00:(?:5|60)/,
	'dispatch_status says why and until when');
is(look($session, $id, 'state, attempts'), 'queued|0', '... the flow is queued as before');
$mock->well;
$session->value("SELECT feishu.resume_server('s$apps')");
succeeds($session, "SELECT feishu.wait_flow($id)", '... until somebody resumes the server');

new_server();
$mock->config(rate => '40/1');
enqueue_many($session, 1, 120, server => "s$apps");
until_ended($session);
$mock->config(rate => undef);
is($session->value("SELECT string_agg(DISTINCT state || attempts, ' ') FROM feishu.flows WHERE server = 's$apps'"),
	'succeeded1', '120 flows to a platform that takes 40 a second succeed at the first attempt');
started_once($mock, 120, '... and start once');
is(log_lines("s$apps", qr/limits the rate/) . ' ' . log_lines("s$apps", qr//),
	'1 1', '... one line of the log tells of the limit');
my $refused = grep { $_->{status} != 200 } arrivals($mock);
note("$refused requests were refused for the rate");

new_server(max_rate => '50');
enqueue_many($session, 1, 100, server => "s$apps");
until_ended($session);
@seen = arrivals($mock);
cmp_ok($seen[-1]{time} - $seen[0]{time}, '>=', 0.9, 'max_rate is kept');
started_once($mock, 100, '... with all sent once');

# Requests that were to go out long ago and wait for the token are counted when they go.
new_server(max_rate => '50');
$mock->rules([ { kind => 'token' }, { type => 'latency', ms => 1500 } ]);
enqueue_many($session, 1, 150, server => "s$apps");
until_ended($session);
$mock->well;
@seen = arrivals($mock);
my ($shortest) = sort { $a <=> $b } map { $seen[ $_ + 50 ]{time} - $seen[$_]{time} } 0 .. $#seen - 50;
cmp_ok($shortest, '>=', 0.9, 'max_rate is kept when the token comes late');
started_once($mock, 150, '... with all sent once');
new_server(max_concurrency => 3);
$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 10 } ]);
enqueue_many($session, 1, 60, server => "s$apps");
until_ended($session);
is($mock->stats->{max_concurrent_executes}, 3, 'max_concurrency is kept, and used');
started_once($mock, 60, '... with all sent once');

# ---- a quota ----

new_server();
$mock->fault(type => 'code', code => 99991403);
$id = enqueue_many($session, 1, 300, server => "s$apps");
until_true(
	$session,
	'the app is paused',
	"SELECT paused AND sending = 0 FROM feishu.dispatch_status WHERE server = 's$apps'");
like(status_of("s$apps", 'pause_reason'), qr/quota/, 'a quota that is used up pauses the app');
is($session->value("SELECT string_agg(DISTINCT state || attempts, ' ') FROM feishu.flows WHERE server = 's$apps'"),
	'queued0', '... the flows wait');
cmp_ok($mock->executes, '<=', 256, '... and no more were tried than were under way');
$mock->well;
$session->value("SELECT feishu.resume_server('s$apps')");
until_ended($session);
started_once($mock, 300, '... until somebody resumes the server');
is(join(' ', map { log_lines("s$apps", $_) } qr/app is paused/, qr/somebody resumed it/, qr//),
	'1 1 2', '... one line of the log told of it, one of its end, and no other');

# ---- the platform is down ----

foreach my $down ([ 'resets connections', { type => 'reset_before' } ],
	[ 'answers 502', { type => 'status', status => 502 } ])
{
	my $server = new_server();
	$mock->fault(%{ $down->[1] });
	enqueue_many($session, 1, 3000, server => $server);
	until_true(
		$session,
		'the breaker is open',
		"SELECT paused AND sending <= 1 FROM feishu.dispatch_status WHERE server = '$server'");
	like(status_of($server, 'pause_reason'), qr/does not answer/, "a platform that $down->[0] opens the breaker");
	# not while it does
	until_true(
		$session,
		'it says when it tries again',
		"SELECT resume_at > now() - interval '1 min' FROM feishu.dispatch_status WHERE server = '$server'");
	# and one batch that took the place of the first ends, and the probes until now
	cmp_ok($mock->executes, '<=', 256 + 128 + 16, '... no more was tried than was under way, but for probes');
	$mock->mark;
	$mock->wait_for(5, kind => 'execute');
	my @probes = arrivals($mock);
	my @gaps = map { $probes[$_]{time} - $probes[ $_ - 1 ]{time} } 1 .. $#probes;
	cmp_ok($probes[4]{time} - $probes[0]{time}, '>', 0.1, '... single probes follow, with pauses')
	  or diag("@gaps");
	cmp_ok(status_of($server, 'sending'), '<=', 1, '... one at a time');
	is($session->value("SELECT max(attempts) < 12 FROM feishu.flows WHERE server = '$server'"),
		't', '... which burn few attempts');
	$mock->well;
	until_ended($session);
	is(ends($session, "server = '$server'"), 'succeeded 3000', 'when it works again, all are sent');
	started_once($mock, 3000, '... once');
	is(status_of($server, 'paused') || 'gone', 'gone', '... and nothing is held back');
	is( log_lines($server, qr/does not answer/) . ' '
		  . log_lines($server, qr/answers again/) . ' '
		  . log_lines($server, qr//),
		'1 1 2',
		'... one line of the log says that it did not answer, one that it does, and no other');
}

my $port = closed_port();
new_server(base_url => "http://127.0.0.1:$port");
enqueue_many($session, 1, 500, server => "s$apps");
until_true($session, 'the breaker is open', "SELECT paused FROM feishu.dispatch_status WHERE server = 's$apps'");
pass('a platform that is not there opens the breaker');
alter_server($session, "s$apps", 'SET', base_url => $mock->url);
until_ended($session);
started_once($mock, 500, 'a corrected base_url takes effect at once');
is(log_lines("s$apps", qr/sends flows of role "\w+" .* again/), 1, '... and one line of the log says so');

new_server(base_url => "http://127.0.0.1:$port");
$id = enqueue($session, server => "s$apps", params => '{"n": 1}');
until_true(
	$session,
	'the flow waits to be tried again',
	"SELECT attempts > 0 AND sqlstate IS NOT NULL FROM feishu.flows WHERE id = $id");
fails_with($session, flow(server => "s$apps"), 'LK503', 'calls open the breaker') foreach 1 .. 5;
alter_server($session, "s$apps", 'SET', base_url => $mock->url);
succeeds($session, "SELECT feishu.wait_flow($id, '60s')", '... and a corrected base_url ends that');
is(log_lines("s$apps", qr/sends flows/), 1, '... with a line in the log, though no flow was held back');

# ---- credentials ----

new_server();
$session->value("ALTER USER MAPPING FOR PUBLIC SERVER s$apps OPTIONS (SET app_secret 'wrong')");
enqueue_many($session, 1, 300, server => "s$apps");
until_true(
	$session,
	'the app is paused',
	"SELECT paused AND sending = 0 FROM feishu.dispatch_status WHERE server = 's$apps'");
like(status_of("s$apps", 'pause_reason'), qr/credentials/,
	'a wrong secret pauses the app, and dispatch_status says so');
unlike($session->value('SELECT dispatch_status FROM feishu.dispatch_status'), qr/wrong/, '... but not the secret');
is($session->value("SELECT string_agg(DISTINCT state || attempts, ' ') FROM feishu.flows WHERE server = 's$apps'"),
	'queued0', '... nothing has failed for it');
cmp_ok($mock->token_requests, '<=', 3, '... few tokens were asked for');
is($mock->executes, 0, '... and no flow was sent');
$session->value("ALTER USER MAPPING FOR PUBLIC SERVER s$apps OPTIONS (SET app_secret 'secret-$apps')");
until_ended($session);
started_once($mock, 300, 'a corrected user mapping resumes it');
is(status_of("s$apps", 'paused') || 'gone', 'gone', '... and the pause is over');
is(join(' ', map { log_lines("s$apps", $_) } qr/app is paused/, qr/sends flows/, qr//),
	'1 1 2', '... one line of the log told of it, and one of its end');

new_server();
enqueue_many($session, 1, 50, server => "s$apps");
until_ended($session);
$mock->config(apps => { "cli_$apps" => 'rotated' });
$mock->revoke;
enqueue_many($session, 51, 100, server => "s$apps");
until_true(
	$session,
	'the app is paused',
	"SELECT paused AND sending = 0 FROM feishu.dispatch_status WHERE server = 's$apps'");
$session->value("ALTER USER MAPPING FOR PUBLIC SERVER s$apps OPTIONS (SET app_secret 'rotated')");
until_ended($session);
is(ends($session, "server = 's$apps'"), 'succeeded 100', 'a secret is rotated: the flows wait for the new one');
started_once($mock, 100, '... and start once');

# ---- what a flow needs is dropped while it waits ----

new_server();
$session->value("SELECT feishu.pause_server('s$apps')");
$id = enqueue($session, server => "s$apps", params => '{"n": 1}');
$session->value("DROP USER MAPPING FOR PUBLIC SERVER s$apps; SELECT feishu.resume_server('s$apps')");
until_true($session, 'the flow is held', "SELECT paused FROM feishu.dispatch_status WHERE server = 's$apps'");
like(
	status_of("s$apps", 'pause_reason'),
	qr/user mapping/,
	'without a user mapping flows wait, and dispatch_status says so');
$session->value("CREATE USER MAPPING FOR PUBLIC SERVER s$apps OPTIONS (app_id 'cli_$apps', app_secret 'secret-$apps')");
succeeds($session, "SELECT feishu.wait_flow($id)", '... until there is one');
is(join(' ', map { log_lines("s$apps", $_) } qr/holds back flows/, qr/sends flows of role "\w+" .* again/),
	'1 1', '... and the log tells of both');

new_server();
$session->value("SELECT feishu.pause_server('s$apps')");
$id = enqueue($session, server => "s$apps", params => '{"n": 1}');
$session->value("BEGIN; SELECT feishu.resume_server('s$apps'); DROP SERVER s$apps CASCADE; COMMIT");
until_true($session, 'the flow is held', "SELECT paused FROM feishu.dispatch_status WHERE server = 's$apps'");
like(
	status_of("s$apps", 'pause_reason'),
	qr/server .* does not exist/,
	'without a server flows wait, and dispatch_status says so');
create_server($node, "s$apps", { base_url => $mock->url }, { app_id => "cli_$apps", app_secret => "secret-$apps" });
succeeds($session, "SELECT feishu.wait_flow($id)", '... until there is one of that name');
is(look($session, $id, 'attempts'), '1', '... which counts as no attempt');

# What is gone, too, is held back no more.
my $gone = new_server();
until_ended($session) if enqueue($session, server => $gone);
$session->value("DROP SERVER $gone CASCADE");
new_server();
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
foreach (1 .. 5)
{
	# nobody tells of it: only the slow poll finds it
	$id = enqueue_unheard(
		$session,
		"(SELECT min(id) FROM feishu_internal.outbox WHERE server = '$gone')",
		server => "s$apps");
	until_ended($session, "id = $id");
}
$session->value(
	q{CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN RAISE LOG ''slow poll''; PERFORM pg_sleep(0.2); RETURN NULL; END';
	CREATE TRIGGER slow BEFORE DELETE ON feishu_internal.outbox FOR EACH STATEMENT EXECUTE FUNCTION slow()});
wait_until('polls follow each other', sub { my @polls = slurp_file($node->logfile) =~ /LOG:  slow poll/g; @polls > 2 });
$id = enqueue($session, server => "s$apps");
succeeds(
	$session,
	"SELECT feishu.wait_flow($id, '60s')",
	'flows are sent though each slow poll takes longer than the time between two');
$session->value('DROP FUNCTION slow CASCADE');
$node->append_conf('postgresql.conf',
	"feishu_flow.poll_interval = '10min'\nlog_lock_waits = on\ndeadlock_timeout = '100ms'");
$node->reload;
new_server();
$mock->fault(type => 'hold');
$id = enqueue($session, server => "s$apps");
until_true($session, 'it is sent', "SELECT sending = 1 FROM feishu.dispatch_status WHERE server = 's$apps'");
my $locker = FeishuFlow::Session->new($node);
$locker->value("BEGIN; SELECT id FROM feishu_internal.outbox WHERE id = $id FOR UPDATE");
$mock->release;
$mock->well;
until_true(
	$session,
	'the dispatcher waits for a row',
	"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . dispatcher($session));
$id = enqueue($session, server => "s$apps");
wait_until('that is logged', sub { slurp_file($node->logfile) =~ /still waiting for/ });
$locker->value('COMMIT');
$locker->quit;
succeeds(
	$session,
	"SELECT feishu.wait_flow($id, '60s')",
	'what is queued while the dispatcher waits for a lock is sent after that');
$node->append_conf('postgresql.conf', "log_lock_waits = off\ndeadlock_timeout = '1s'");
$node->reload;
unlike(
	slurp_file($node->logfile),
	qr/holds back flows for server "$gone"/,
	'of a dropped server without flows the log says nothing');

new_server();
$session->value("CREATE ROLE leaver LOGIN; SELECT feishu.pause_server('s$apps')");
my $leaver = FeishuFlow::Session->new($node, user => 'leaver');
$id =
  enqueue($leaver, server => "s$apps", params => '{"n": 1}', expires_at => \"clock_timestamp() + interval '10 min'");
# more of them than fail at once, at once and later
enqueue_many($leaver, 1, 5100, server => "s$apps", flow_id => 'many');
enqueue($leaver, server => "s$apps", flow_id => 'many', run_at => \"now() + interval '1 hour'");
my $tried = enqueue($leaver, server => "s$apps", flow_id => 'many');
$session->value("UPDATE feishu_internal.outbox SET error = 'no answer' WHERE id = $tried");
$leaver->quit;
$session->value("DROP ROLE leaver; SELECT feishu.resume_server('s$apps')");
$second = enqueue($session, server => "s$apps", params => '{"n": 2}');
succeeds($session, "SELECT feishu.wait_flow($second)", 'flows of a dropped role hold up no others');
until_ended($session);
is( look($session, $id, 'state, sqlstate, attempts, error'),
	'failed|42704|0|the role that queued it was dropped',
	'... they fail, with the reason');
is($session->value("SELECT state, sqlstate, count(*) FROM feishu.flows WHERE flow_id = 'many' GROUP BY 1, 2"),
	'failed|42704|5102', '... all of them, those that were to be sent later, too');
is(look($session, $tried, 'error'), 'no answer; the role that queued it was dropped',
	'... with what went wrong before');
is( look($session, $id, 'role'),
	'unknown (OID=' . $session->value("SELECT roleid FROM feishu_internal.outbox WHERE id = $id") . ')',
	'... and a superuser sees them');
started_once($mock, 1, '... none was sent');
$session->value("SELECT feishu.purge_flows('infinity')");

new_server();
$session->value("CREATE ROLE weak LOGIN; SELECT feishu.pause_server('s$apps')");
my $weak = FeishuFlow::Session->new($node, user => 'weak');
$id = enqueue($weak, server => "s$apps", params => '{"n": 1}');
$session->value("REVOKE USAGE ON FOREIGN SERVER s$apps FROM PUBLIC; SELECT feishu.resume_server('s$apps')");
until_true($session, 'the flow is held', "SELECT paused FROM feishu.dispatch_status WHERE server = 's$apps'");
like(status_of("s$apps", 'pause_reason'), qr/permission denied/, 'a role that lost USAGE has its flows wait');
is($mock->executes, 0, '... nothing is sent with rights that it does not have');
$session->value("GRANT USAGE ON FOREIGN SERVER s$apps TO weak");
$session->value("SELECT feishu.resume_server('s$apps')");
succeeds($session, "SELECT feishu.wait_flow($id)", '... until it has them again');

# ---- large ones ----

new_server(timeout => '60s');
$id = enqueue(
	$session,
	server => "s$apps",
	flow_id => 'large',
	params => \"jsonb_build_object('n', 1, 'text', repeat('0123456789abcdef', 655360))");
$second = enqueue(
	$session,
	server => "s$apps",
	flow_id => 'long',
	params => \"jsonb_build_object('n', 2, 'list', (SELECT jsonb_agg(md5(g::text)) FROM generate_series(1, 250000) g))"
);
enqueue_many($session, 3, 52, server => "s$apps");
until_ended($session);
is(ends($session, "server = 's$apps'"), 'succeeded 52', 'flows whose params are 10 MB succeed');
started_once($mock, 52, '... and start once');
# not through a JSON parser in Perl; the log has the body twice, as text and parsed
my (undef, $sent) = $mock->request('GET', '/_mock/log?kind=execute&flow_id=large');
is(scalar(() = $sent =~ /0123456789abcdef/g), 2 * 655360, '... and arrive whole');
(undef, $sent) = $mock->request('GET', '/_mock/log?kind=execute&flow_id=long');
is(scalar(() = $sent =~ /"[0-9a-f]{32}\\/g), 2 * 250000, '... a long array, too');

# ---- a row that cannot be sent ----

$node->safe_psql('postgres', q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
new_server();
create_server(
	$node, 'feishu',
	{ base_url => $mock->url },
	{ app_id => "cli_$apps", app_secret => "secret-$apps" }, 'ascii');
my $ascii = FeishuFlow::Session->new($node, database => 'ascii');
until_dispatcher($ascii);
$ascii->value("SELECT feishu.pause_server('feishu')");
enqueue_many($ascii, 1, 20);
my $bytes = \"jsonb_build_object('n', 21, 'text', E'\\xff\\xfe')";
fails_with(
	$ascii, 'SELECT ' . enqueue_call(params => $bytes),
	'22021', 'params that cannot be converted to UTF-8 are refused at once');
my $poison = enqueue($ascii, params => '{"n": 21}');
$ascii->value("UPDATE feishu_internal.outbox SET params = $$bytes WHERE id = $poison");
enqueue_many($ascii, 22, 40);
$ascii->value("SELECT feishu.resume_server('feishu')");
until_ended($ascii);
is($ascii->value("SELECT state, sqlstate, attempts FROM feishu.flows WHERE id = $poison"),
	'failed|22021|0', 'a row that cannot be converted fails by itself');
isnt($ascii->value("SELECT error FROM feishu.flows WHERE id = $poison"), '', '... with the reason');
is($ascii->value("SELECT count(*) FROM feishu.flows WHERE state = 'succeeded'"), '39', '... the others are sent');
started_once($mock, 39, '... once');
my $pid = dispatcher($ascii);
isnt($pid, '', '... and the dispatcher lives');

# ---- answers that cannot be kept ----

# The flow has started, and its key is used: what cannot be read at all is no answer, so that the next attempt finds the
# key used; of what cannot be stored as jsonb the end is known.
my %end = (
	(map { $_ => 'unconfirmed LK409 2' } qw(not_utf8 raw_nul deep wrong_types)),
	(map { $_ => 'succeeded LK502 1' } qw(nul lone_surrogate)),
	big => 'succeeded  1');
foreach my $type (sort keys %end)
{
	foreach my $where ([ $session, "s$apps" ], [ $ascii, 'feishu' ])
	{
		$mock->rules(
			[
				{ kind => 'execute' },
				{ type => $type, $type eq 'wrong_types' ? (set => { code => 'x' }) : () },
				times => 1
			]);
		$id =
		  enqueue($where->[0], server => $where->[1], params => "{\"server\": \"$where->[1]\", \"type\": \"$type\"}");
		until_ended($where->[0]);
		is(look($where->[0], $id, "state || ' ' || coalesce(sqlstate, '') || ' ' || attempts"),
			$end{$type}, "an answer of type $type, server $where->[1]");
	}
}
is(dispatcher($ascii), $pid, 'no answer ends a dispatcher');

# ---- what the log says ----

my $log = slurp_file($node->logfile);
my @lines = grep { /LOG:  feishu_flow/ } split /\n/, $log;
note(scalar(@lines) . ' lines in the log');
cmp_ok(scalar(@lines), '<', 80, 'the log has a line for a change of state, none for a flow');
my ($bad) = $log =~ /^(.*(?:PANIC|Segmentation|signal 11|dispatcher.*exit code).*)$/m;
is($bad, undef, '... and no dispatcher has failed');

done_testing();
