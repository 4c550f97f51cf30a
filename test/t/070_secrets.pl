
# No secret and no token is shown anywhere but in the user mapping.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $secret = 'TopSecretOfTheApp';
my $other_secret = 'AnotherSecretThatIsWrong';
my $fixed_token = 't-FixedTokenOfTheMapping';
my $odd_token = 't-OddTokenOfTheMapping&<"+/\\%>Ends';    # of characters that get escaped

my $mock = FeishuFlow::Mock->start('--accept-hang', '--app', "cli_mock:$secret");
my $node = new_cluster('main', conf => <<'CONF');
log_min_messages = debug5
log_min_error_statement = debug5
log_min_duration_statement = 0
log_error_verbosity = verbose
log_statement = all
log_duration = on
log_disconnections = on
log_connections = on
debug_print_parse = on
debug_print_rewritten = on
debug_print_plan = on
track_activities = on
CONF
my $have_statements =
  $node->safe_psql('postgres', "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'");
if ($have_statements)
{
	$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'feishu_flow, pg_stat_statements'
pg_stat_statements.track = all
CONF
	$node->restart;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements');
}

# PostgreSQL itself shows the statements that set secrets, if it is let: these
# run where nothing is logged.
my @quiet = (
	'log_statement = none',
	'log_min_duration_statement = -1',
	'log_duration = off',
	'log_min_messages = panic',
	'log_min_error_statement = panic',
	'debug_print_parse = off',
	'debug_print_rewritten = off',
	'debug_print_plan = off',
	$have_statements ? 'pg_stat_statements.track = none' : ());

sub quietly
{
	my ($sql) = @_;
	local $ENV{PGOPTIONS} = join(' ', map { my $s = s/ //gr; "-c $s" } @quiet);
	my ($status, $out, $err) = $node->psql('postgres', $sql);
	die "quietly: $err" if $status;
	return;
}

my %url = (
	feishu => $mock->url,
	oauth => $mock->url,
	wrong => $mock->url,
	wrong_oauth => $mock->url,
	fixed => $mock->url,
	odd => $mock->url,
	down => 'http://127.0.0.1:' . closed_port(),
	silent => 'https://127.0.0.1:' . $mock->silent_port);
foreach my $name (sort keys %url)
{
	my $app_secret = $name =~ /wrong/ ? $other_secret : $secret;
	my $token_url = $name =~ /oauth/ ? ", token_url '$url{$name}/oauth/v3/token'" : '';
	my $mapping =
		$name eq 'fixed' ? "tenant_access_token '$fixed_token'"
	  : $name eq 'odd'   ? "tenant_access_token '$odd_token'"
	  :                    "app_id 'cli_mock', app_secret '$app_secret'";
	quietly(<<"SQL");
CREATE EXTENSION IF NOT EXISTS feishu_flow;
CREATE SERVER $name FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '$url{$name}'$token_url);
CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS ($mapping);
GRANT USAGE ON FOREIGN SERVER $name TO PUBLIC;
SQL
}

my $session = FeishuFlow::Session->new($node);
my $watch = FeishuFlow::Session->new($node);
my $shown = '';    # all that clients got to see

sub show
{
	my ($sql, $session_) = @_;
	my $result = ($session_ // $session)->ask($sql);
	$shown .= "$result->{out}\n$result->{err}\n";
	return $result;
}
show("SET client_min_messages = debug5");

# ---- every path that a call can take ----

my $states = '';
foreach my $server (sort keys %url)
{
	my $result = show(flow(server => $server, timeout => '500ms'));
	$states .= "$server=$result->{sqlstate} ";
	show("SELECT * FROM feishu.check_server('$server')") if $server ne 'silent';
}
is( $states,
	'down=LK503 feishu=00000 fixed=LK401 oauth=00000 odd=LK401 silent=LK504 wrong=LK401 wrong_oauth=LK401 ',
	'calls of all kinds');
show(flow(timeout => '1ms'));
show(flow(operator => '{}'));
show(flow(server => 'nobody'));
show(flow(flow_id => $_, params => '{"a": 1}')) foreach qw(refusedFlow noScope rejectedFlow echoParams);

my @answers = (
	{ type => 'reset_before' },
	{ type => 'reset_after' },
	{ type => 'close_after' },
	{ type => 'half_answer' },
	{ type => 'truncated_json' },
	{ type => 'garbage' },
	{ type => 'status', status => 502 },
	{ type => 'status', status => 404 },
	{ type => 'empty' },
	{ type => 'nul' },
	{ type => 'raw_nul' },
	{ type => 'not_utf8' },
	{ type => 'not_utf8', field => 'extra' },
	{ type => 'lone_surrogate' },
	{ type => 'deep' },
	{ type => 'big', bytes => 20 << 20 },
	{ type => 'wrong_types', set => { code => 'x' } },
	{ type => 'wrong_types', set => { code => 0.5 } },
	{ type => 'wrong_types', set => { data => 7, msg => [], extra => 1 } },
	{ type => 'wrong_types', remove => ['code'] },
	{ type => 'wrong_types', set => { code => 99991663 } },
	{ type => 'hang' },
	{ type => 'headers_hang' },
	{ type => 'slow_drip' },
	{ type => 'code', code => 99991663 },
	{ type => 'code', code => 99991400, reset => 1 });
foreach my $kind ('execute', 'token', 'oauth')
{
	foreach my $fault (@answers)
	{
		$mock->revoke if $kind ne 'execute';
		$mock->rules([ { kind => $kind }, $fault ]);
		show(
			flow(
				server => $kind eq 'oauth' ? 'oauth' : 'feishu',
				timeout => $fault->{type} =~ /hang|drip/ ? '100ms' : '20s'));
		show(   "SET statement_timeout = '20s'; SELECT * FROM feishu.check_server('"
			  . ($kind eq 'oauth' ? 'oauth' : 'feishu')
			  . "'); RESET statement_timeout")
		  if $kind ne 'execute' && $fault->{type} !~ /hang|drip/;
	}
}
$mock->well;

# Gateways that hold up what they were sent, as debug pages do.
my %echo = (
	token => qq({"app_id":"cli_mock","app_secret":"$secret"}),
	oauth => "grant_type=client_credentials&client_id=cli_mock&client_secret=$secret");
foreach my $kind (sort keys %echo)
{
	foreach my $body (
		"<html>Bad request: $echo{$kind}</html>",
		{ code => 10014, msg => "wrong: $secret", error => { message => $secret, log_id => $secret } },
		{ code => 20002, error => 'invalid_client', error_description => "$secret is wrong" })
	{
		foreach my $status (200, 400, 502)
		{
			$mock->revoke;
			$mock->rules(
				[
					{ kind => $kind },
					{
						type => 'status',
						status => $status,
						body => $body,
						headers => { Location => "http://x/$secret" }
					}
				]);
			my $server = $kind eq 'oauth' ? 'oauth' : 'feishu';
			show(flow(server => $server));
			show("SELECT * FROM feishu.check_server('$server')");
		}
	}
}
foreach my $status (200, 400, 401, 502)
{
	$mock->fault(
		type => 'status',
		status => $status,
		body => "<html>Your request: Authorization: Bearer $fixed_token</html>");
	show(flow(server => 'fixed'));
	$mock->fault(
		type => 'status',
		status => $status,
		body => {
			code => 2320001,
			msg => "token $fixed_token",
			data => { error_msg => $fixed_token },
			error => { message => $fixed_token }
		});
	show(flow(server => 'fixed'));
}

# An identifier may be one.
$mock->fault(
	type => 'status',
	status => 200,
	body => { code => 0, data => { code => 'k_wf_ec_200036', execution_id => $fixed_token, status => $fixed_token } });
show(flow(server => 'fixed'));

# Escaped in each way that there is, and cut wherever it may be.
foreach my $form ('%s', '\\u%04x', '\\u%04X', '%%%02X', '%%%02x', '&#%d;', '&#x%X;', '\\%s')
{
	my $echoed = $odd_token =~ s/([^\w-])/my $c = $1; sprintf($form, $form =~ m{%s} ? $c : ord $c)/ger;
	foreach my $before (1, 430 .. 490)
	{
		$mock->fault(type => 'status', status => 400, content_type => 'text/html', body => 'x' x $before . " $echoed");
		show(flow(server => 'odd'));
	}
}
$mock->fault(
	type => 'status',
	status => 400,
	content_type => 'text/html',
	body => $odd_token =~ s/([&<>"])/{ '&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;' }->{$1}/ger);
show(flow(server => 'odd'));
$mock->well;

# What is returned as a value, of a refusal and of a success; with escapes that only JSON's reader undoes.
my @escaped;
foreach my $code (2320001, 0)
{
	my $echoed = $fixed_token =~ s/-/\\u002d/r;
	push @escaped,
	  qq({"code": $code, "msg": "Bearer $echoed", "data": {"$echoed": ["$echoed"], "execution_id": "$echoed", )
	  . qq("status": "x$echoed", "b": 2}});
	# a backslash before it, which is not part of it
	push @escaped, qq({"code": $code, "msg": "\\\\$echoed", "data": {"b": 2}, "log_id": "$echoed"});
}
foreach my $body (@escaped)
{
	$mock->fault(type => 'status', status => 200, content_type => 'application/json', body => $body);
	show(flow(server => 'fixed', raise_error => 'false'));
	is($watch->value('SELECT (' . flow(server => 'fixed', raise_error => 'false') . ") #>> '{data,b}'"),
		'2', 'the rest of an answer that repeats a token is returned');
}
$mock->well;

# ---- while a call is under way ----

my $activity = '';
foreach my $kind ('token', 'execute')
{
	$mock->revoke;
	$mock->mark;
	$mock->rules([ { kind => $kind }, { type => 'hang' }, times => 1 ]);
	$session->send(flow());
	$mock->wait_for(1, kind => $kind);
	$activity .= $watch->value('SELECT a FROM pg_stat_activity a') . "\n";
	$activity .= slurp_file('/proc/' . $session->pid . '/cmdline') . "\n";
	$watch->value('SELECT pg_log_backend_memory_contexts(' . $session->pid . ')');
	$watch->value('SELECT pg_cancel_backend(' . $session->pid . ')');
	my $result = $session->result;
	$shown .= "$result->{out}\n$result->{err}\n";
	is($result->{sqlstate}, '57014', "a call that is cancelled ($kind)");
	$mock->well;
}
like($activity, qr/execute_flow/, 'pg_stat_activity was seen during a call');

# ---- the queue ----

# The same echoes, to the dispatcher; each flow is looked at when it has been
# tried, and then cancelled.
my $queue = '';
my @relations = split /\n/,
  $watch->value("SELECT oid::regclass FROM pg_class WHERE relkind IN ('r', 'v') "
	  . "AND relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace)");

sub tried
{
	my ($name) = @_;
	my $id = enqueue($session, server => $name, max_attempts => \2);
	wait_until(
		'a flow is tried, or held back',
		sub {
			$watch->value(
				"SELECT EXISTS (SELECT FROM feishu.flows WHERE id = $id AND (attempts > 0 OR finished_at IS NOT NULL)) "
				  . "OR EXISTS (SELECT FROM feishu.dispatch_status WHERE server = '$name' AND paused)") eq 't';
		});
	$queue    .= $watch->value("SELECT to_jsonb(o) FROM $_ o") . "\n" foreach @relations;
	$activity .= $watch->value("SELECT a FROM pg_stat_activity a WHERE backend_type LIKE 'feishu_flow%'") . "\n";
	show("SELECT feishu.cancel_flow($id)");
	show("SELECT feishu.wait_flow($id, '0')");
	show("SELECT feishu.resume_server('$name')");
	return;
}

until_dispatcher($watch);
$activity .= slurp_file('/proc/' . dispatcher($watch) . '/cmdline') . "\n";
foreach my $kind (sort keys %echo)
{
	foreach my $body (
		"<html>Bad request: $echo{$kind}</html>",
		(   map { { code => $_, msg => "wrong: $secret", error => { message => $secret, log_id => $secret } } } 10014,
			2320001))
	{
		$mock->revoke;
		$mock->rules([ { kind => $kind }, { type => 'status', status => 400, body => $body } ]);
		tried($kind eq 'oauth' ? 'oauth' : 'feishu');
	}
}
unlike($watch->value('SELECT response FROM feishu_internal.outbox'),
	qr/$secret/, 'no answer to a token request is kept');
foreach my $status (200, 400, 401, 502)
{
	foreach my $body (
		"<html>Your request: Authorization: Bearer $fixed_token</html>",
		{
			code => 2320001,
			msg => "token $fixed_token",
			data => { error_msg => $fixed_token },
			error => { message => $fixed_token, log_id => $fixed_token }
		})
	{
		$mock->fault(type => 'status', status => $status, body => $body, headers => { 'X-Tt-Logid' => $fixed_token });
		tried('fixed');
	}
}
my $worker = dispatcher($watch);
foreach my $body (@escaped)
{
	$mock->fault(type => 'status', status => 200, content_type => 'application/json', body => $body);
	tried('fixed');
}
is(dispatcher($watch), $worker, 'no answer ends the dispatcher');
$mock->well;
tried($_) foreach qw(feishu oauth wrong wrong_oauth down);
like(
	$queue,
	qr/"state": "failed".*"code": 2320001|"code": 2320001.*"state": "failed"/,
	'the queue keeps what became of flows');

# ---- cores ----

# The mapping that has the tokens of all sessions is marked as not to be dumped,
# in every process that has it.
foreach my $pid ($session->pid, dispatcher($watch))
{
	my @shared = grep { /^[0-9a-f]+-[0-9a-f]+ rw-s /m } split /(?=^[0-9a-f]+-[0-9a-f]+ )/m,
	  slurp_file("/proc/$pid/smaps");
	cmp_ok(scalar(grep { /^VmFlags:.* dd\b/m } @shared), '>', 0, 'the token cache is left out of cores');
}

# Where the server's memory is of huge pages (here they are 2 MB each for madvise() alone), a part of one cannot be left
# out.
SKIP:
{
	my $library = PostgreSQL::Test::Utils::tempdir() . '/huge_pages.so';
	skip 'huge pages are not of 2 MB', 1 if slurp_file('/proc/meminfo') !~ /^Hugepagesize: +2048 kB$/m;
	skip 'no C compiler for huge pages', 1
	  if system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/huge_pages.c") != 0;
	local $ENV{LD_PRELOAD} = $library;
	my $huge = new_cluster('huge');
	my $postmaster = (split /\n/, slurp_file($huge->data_dir . '/postmaster.pid'))[0];
	cmp_ok(
		scalar(
			grep { /^VmFlags:.* dd\b/m && /^[0-9a-f]+-[0-9a-f]+ rw-s /m } split /(?=^[0-9a-f]+-[0-9a-f]+ )/m,
			slurp_file("/proc/$postmaster/smaps")),
		'>', 0,
		'... nor is it in one under huge pages');
	$huge->stop;
}

my $bare = new_cluster('bare', preload => 0);
create_server($bare, 'feishu', { base_url => $mock->url }, { app_id => 'cli_mock', app_secret => $secret });
my $alone = FeishuFlow::Session->new($bare);
succeeds($alone, flow(), 'a call of a session with a token cache of its own');
cmp_ok(
	scalar(
		grep { /^VmFlags:.* dd\b/m && /^[0-9a-f]+-[0-9a-f]+ rw-p /m } split /(?=^[0-9a-f]+-[0-9a-f]+ )/m,
		slurp_file('/proc/' . $alone->pid . '/smaps')),
	'>', 0,
	'... which is left out of cores, too');
$alone->quit;
$bare->stop;

# ---- catalogs, settings, statistics ----

my $catalogs = '';
$catalogs .= $watch->value('SELECT s FROM pg_foreign_server s') . "\n";
$catalogs .= $watch->value('SELECT s FROM pg_settings s') . "\n";
$catalogs .= $watch->value('SELECT q FROM pg_stat_statements q') . "\n" if $have_statements;
$catalogs .= $watch->value('SELECT e FROM pg_event_trigger e') . "\n";
$catalogs .= $watch->value('SELECT d FROM pg_description d') . "\n";

quietly('CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN IN ROLE pg_read_all_settings, pg_monitor;'
	  . 'GRANT USAGE ON SCHEMA feishu TO PUBLIC');
foreach my $role ('app', 'reader')
{
	my $other = FeishuFlow::Session->new($node, user => $role);
	my $seen = $other->value('SELECT u FROM pg_user_mappings u');
	$seen     .= $other->value('SELECT u FROM information_schema.user_mapping_options u');
	$catalogs .= $seen;
	like($seen, qr/feishu/, "$role sees that there are user mappings");
	is($other->ask('SELECT * FROM pg_user_mapping')->{sqlstate}, '42501', "... and $role may not read pg_user_mapping");
	show(flow(), $other);
	$other->quit;
}

# ---- nothing of it anywhere ----

my %tokens =
  map { $_ => 1 } map { ($_->{headers}{authorization} // '') =~ /^Bearer (.+)$/ ? $1 : () } $mock->log(since => 0);
$tokens{$_} = 1 foreach $fixed_token, $odd_token, $mock->token('cli_mock', $secret);
cmp_ok(scalar(keys %tokens), '>', 10, 'many tokens were issued');

my %places = (
	'what clients were told' => $shown,
	'pg_stat_activity and process titles' => $activity,
	'the queue and its views' => $queue,
	'catalogs, settings, statistics' => $catalogs);
$node->stop;
$places{'the server log'} = slurp_file($node->logfile);
like($places{'the server log'}, qr/DEBUG:  .*StartTransaction/s, 'the server has logged at DEBUG5');
like($places{'the server log'}, qr/LK401.*LK50\d/s, '... and the errors');

foreach my $place (sort keys %places)
{
	foreach my $word ($secret, $other_secret)
	{
		my @lines = grep { /\Q$word\E/i } split(/\n/, $places{$place});
		is(scalar(@lines), 0, "no secret in $place")
		  or diag(join("\n", map { substr($_, 0, 600) } @lines[ 0 .. ($#lines < 5 ? $#lines : 5) ]));
	}
	my $any = join('|', map { quotemeta } sort keys %tokens);
	my @lines = grep { /$any/ } split(/\n/, $places{$place});
	is(scalar(@lines), 0, "no token in $place")
	  or diag(join("\n", map { substr($_, 0, 600) } @lines[ 0 .. ($#lines < 5 ? $#lines : 5) ]));

	# nor the beginning of one, as an excerpt that was cut would have it
	my $beginnings = join('|', map { quotemeta(substr($_, 0, 20)) } grep { !/^eyJ/ } sort keys %tokens);
	@lines = grep { /$beginnings/ } split(/\n/, $places{$place});
	is(scalar(@lines), 0, "no beginning of a token in $place")
	  or diag(join("\n", map { substr($_, 0, 600) } @lines[ 0 .. ($#lines < 5 ? $#lines : 5) ]));
}

done_testing();
