
# One role's trouble is not another's: whose flows hang or fail, whose calls have no time, and who has all places for
# apps, holds up nobody else, and lifts no limit.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What waits for another's trouble waits for seconds, or for ever.
my $AT_ONCE = 1 * $FeishuFlow::SLOW;
my $MAX_APPS = 16;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', connections => 60, conf => "feishu_flow.max_apps = $MAX_APPS\n");
create_server($node, 'feishu', { base_url => $mock->url, timeout => '2s' });
my $session = FeishuFlow::Session->new($node);
my %as;
foreach my $role (qw(eve mallory app third))
{
	$session->value("CREATE ROLE $role LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO $role");
	$as{$role} = FeishuFlow::Session->new($node, user => $role);
}
my $eve_oid = $session->value("SELECT 'eve'::regrole::oid");

sub log_lines
{
	my ($expression, $from) = @_;
	return scalar(grep { /$expression/ } split /\n/, slurp_file($node->logfile, $from));
}

# So many flows of the role, one after the other, end at once.
sub end_at_once
{
	my ($role, $n, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($most, $in_vain) = (0, 0);
	for (1 .. $n)
	{
		my $begun = time();
		my $id = enqueue($as{$role}, params => "{\"n\": $_}");
		$in_vain++ if $as{$role}->ask("SELECT feishu.wait_flow($id, '10 s')")->{sqlstate} ne '00000';
		my $took = time() - $begun;
		$most = $took if $took > $most;
		last if $in_vain > 1;
	}
	is($in_vain, 0, $name);
	cmp_ok($most, '<', $AT_ONCE, sprintf('... each at once: %.3f s at most', $most));
	return;
}

sub until_told
{
	my ($from, $expression) = @_;
	return wait_until("the log tells: $expression", sub { log_lines($expression, $from) > 0 });
}

# ---- flows that hang, or fail, of one role ----

foreach my $trouble ({ type => 'hang' }, { type => 'status', status => 502 })
{
	my $from = -s $node->logfile;
	$mock->rules([ { kind => 'execute', flow_id => 'troubled' }, $trouble ]);
	end_at_once('app', 3, 'all is well');
	enqueue_many($as{eve}, 1, 300, flow_id => 'troubled');
	until_told($from, qr/LOG:.*"feishu" does not answer/);
	end_at_once('app', 45, "flows of another role beside 300 that end by $trouble->{type}");
	until_true(
		$session,
		'those flows are held',
		"SELECT pause_reason = 'the platform does not answer' FROM feishu.dispatch_status");
	is(log_lines(qr/LOG:.*"feishu" does not answer, queued flows wait/, $from), 0, '... and nobody else\'s');
	cmp_ok(log_lines(qr/LOG:.*"feishu" does not answer, queued flows of the role with OID $eve_oid wait/, $from),
		'>=', 1, '... which the log says');
	# a probe at a time, while others are answered
	until_true($session, 'single flows are tried', "SELECT sending <= 1 FROM feishu.dispatch_status");
	end_at_once('app', 20, '... later, too');
	is($session->value('SELECT sending <= 1 FROM feishu.dispatch_status'),
		't', '... which lets out no more of the others');
	$mock->well;
	until_ended($session);
	is(ends($session, "flow_id = 'troubled' AND state <> 'succeeded'"),
		'', '... and all succeed when they are answered');
	cmp_ok(log_lines(qr/LOG:.*"feishu" answers again, queued flows of the role with OID $eve_oid are sent/, $from),
		'>=', 1, '... which the log says');
	$session->value('SELECT feishu.purge_flows(now())');
}

# ---- calls that have no time ----

# Even the role's own, which say nothing of its flows.
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'latency', ms => 300 } ]);
foreach my $role (qw(eve app))
{
	foreach my $how ('an argument', 'a setting')
	{
		my $from = -s $node->logfile;
		my $call = flow(flow_id => 'slow', $how eq 'a setting' ? () : (timeout => '1 ms')) =~ s/^SELECT/PERFORM/r;
		my $hurry =
		  $how eq 'a setting'
		  ? "SET LOCAL feishu_flow.timeout = '1 ms'; SET LOCAL feishu_flow.connect_timeout = '1 ms';"
		  : '';
		my $caller = FeishuFlow::Session->new($node, user => $role);
		alter_server($session, 'feishu', 'DROP', 'timeout') if $how eq 'a setting';
		$caller->send(
			"DO \$\$ BEGIN $hurry FOR i IN 1 .. 400 LOOP BEGIN $call; "
			  . "EXCEPTION WHEN SQLSTATE 'LK504' THEN NULL; END; END LOOP; END \$\$");
		end_at_once('app', 30, "flows while role $role calls with too short a timeout, $how");
		is($caller->result->{sqlstate}, '00000', '... all its calls end so');
		is(log_lines(qr/does not answer/, $from), 0, '... which says nothing of the platform');
		$caller->quit;
		alter_server($session, 'feishu', 'ADD', 'timeout', '2s') if $how eq 'a setting';
	}
}
$mock->well;

# ... though they waited for longer than half of what others have, or could not even connect.
my @hasty = map { FeishuFlow::Session->new($node, user => 'eve') } 1 .. 8;
my $from = -s $node->logfile;
$mock->fault(type => 'hang');
$_->send(flow(timeout => '1200ms')) foreach @hasty;
is( join(' ', map { $_->result->{sqlstate} } @hasty),
	join(' ', ('LK504') x @hasty),
	'calls of a role that gives them more than half of the usual time');
is(log_lines(qr/does not answer/, $from), 0, '... say nothing of the platform');
$mock->well;
my $full = 'http://127.0.0.1:' . full_port();
create_server($node, 'stuffed', { base_url => $full }, { tenant_access_token => 't-x' });
create_server($node, 'stuffed_soon', { base_url => $full, connect_timeout => '50ms' },
	{ tenant_access_token => 't-y' });

foreach my $server (qw(stuffed stuffed_soon))
{
	$_->send("SET feishu_flow.connect_timeout = '50ms'; " . flow(server => $server)) foreach @hasty;
	is( join(' ', map { $_->result->{sqlstate} } @hasty),
		join(' ', ('LK504') x @hasty),
		"calls that cannot connect in 50 ms ($server)");
}
is(log_lines(qr/"stuffed" does not answer/, $from), 0, '... say nothing of the platform');
is(log_lines(qr/"stuffed_soon" does not answer/, $from), 1, '... unless that is what the server says');
$_->quit foreach @hasty;

# ---- trouble of several roles ----

$from = -s $node->logfile;
$mock->fault(type => 'reset_before');
enqueue_many($as{eve}, 1, 20);
enqueue_many($as{mallory}, 21, 40);
until_told($from, qr/LOG:.*"feishu" does not answer, queued flows wait except for single probes/);
enqueue_many($as{third}, 41, 60);
until_true(
	$session,
	'a third waits',
	"SELECT count(*) > 0 FROM feishu_internal.held_lane WHERE roleid = 'third'::regrole");
is($session->value("SELECT sum(attempts) < 10 FROM feishu.flows WHERE role = 'third'"),
	't', 'the trouble of several roles is that of the platform: others wait');
$mock->mark;
$mock->wait_for(9, kind => 'execute');
my %probed = map { int(($_ - 1) / 20) => 1 } numbers($mock);
is(join(' ', sort keys %probed), '0 1 2', '... and probe in turn');
$mock->well;
until_ended($session);
is(ends($session, "state <> 'succeeded'"), '', '... until it answers');
$session->value('SELECT feishu.purge_flows(now())');

# ---- the first answer, to whomever ----

# nothing probes by itself now
$session->value("ALTER SYSTEM SET feishu_flow.retry_base_delay = '5min'");
$session->value('SELECT pg_reload_conf()');
my $pid = until_dispatcher($session);
$session->value("SELECT pg_terminate_backend($pid)");
until_dispatcher($session, $pid);
$from = -s $node->logfile;
$mock->fault(type => 'hang');
my @callers = map { FeishuFlow::Session->new($node, user => 'eve') } 1 .. 5;
$_->send(flow()) foreach @callers;
$_->result foreach @callers;
until_told($from, qr/LOG:.*"feishu" does not answer/);
my $id = enqueue($as{eve});
until_true(
	$session,
	'it waits for a probe',
	"SELECT pause_reason = 'the platform does not answer' FROM feishu.dispatch_status");
$mock->well;
succeeds($as{app}, flow(), 'the first answer to another role');
succeeds($as{eve}, "SELECT feishu.wait_flow($id, '10 s')", '... lets a role that had none try at once');
until_true($session, '... and go on', 'NOT EXISTS (SELECT FROM feishu.dispatch_status WHERE paused)');
$session->value('ALTER SYSTEM RESET feishu_flow.retry_base_delay');
$session->value('SELECT pg_reload_conf()');
$_->quit foreach @callers;

# ---- one role's apps in all places ----

my %secrets = map { ("cli_$_" => "secret-$_") } 1 .. 100;
my $apps = 0;
$mock->config(apps => { %secrets, cli_mock => 'mock-secret' });

# A server of a role, with an app of its own.
sub new_server
{
	my ($role, %options) = @_;
	my $name = 'app_' . ++$apps;
	%options = (base_url => $mock->url, %options);
	$as{$role}->value("CREATE SERVER $name FOREIGN DATA WRAPPER feishu_flow OPTIONS ("
		  . join(', ', map { "$_ '$options{$_}'" } sort keys %options) . '); '
		  . "CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS (app_id 'cli_$apps', app_secret 'secret-$apps')");
	return $name;
}

# So many servers of the role, each with a flow that stalls.
sub stall
{
	my ($role, $n) = @_;
	$mock->mark;
	enqueue($as{$role}, server => new_server($role, timeout => '10min'), flow_id => 'stalls') for 1 .. $n;
	return $mock->wait_for($n, kind => 'execute', flow_id => 'stalls');
}
$mock->rules([ { kind => 'execute', flow_id => 'stalls' }, { type => 'hang' } ]);
is(stall('eve', $MAX_APPS + 4), $MAX_APPS + 4, 'a role has flows under way of more apps than there is room for');
my $limited = new_server('app', max_rate => '1/min');
succeeds(
	$as{app},
	flow(server => $limited),
	'another role\'s server with a max_rate of one has room, and lets one call pass');
fails_with(
	$as{app}, flow(server => $limited, timeout => '1s'),
	'LK429',
	'... and no more',
	message => qr/max_rate leaves no room/);
my $hers = new_server('eve', max_rate => '1/min');
fails_with(
	$as{eve}, flow(server => $hers, timeout => '1s'), 'LK429',
	'her own server with limits waits for room, for as long as the call may',
	message => qr/max_apps/,
	detail => qr/^No request was sent to "[^"]*"\.$/,
	hint => qr/max_apps/);
succeeds($as{eve}, flow(server => new_server('eve')), '... but one without limits does not');

# until there is no room at all
stall('mallory', $MAX_APPS / 4);
my $second = new_server('third', max_concurrency => '1');
$mock->mark;
fails_with(
	$as{third}, flow(server => $second, timeout => '500ms'),
	'LK429',
	'without room, a call under a limit waits, and ends as held back',
	message => qr/max_apps/);
$id = enqueue($as{third}, server => $second);
until_true(
	$session,
	'a queued flow waits',
	"SELECT pause_reason = 'more apps are busy than feishu_flow.max_apps has room for' "
	  . "FROM feishu.dispatch_status WHERE server = '$second'");
is($mock->executes, 0, '... and nothing is sent');
cmp_ok(log_lines(qr/LOG:.*has no place left for the limits of another app: its calls wait/),
	'>=', 1, '... which the log says');
fails_with(
	$as{app}, flow(server => $limited, timeout => '1s'),
	'LK429',
	'... limits that are kept stay',
	message => qr/max_rate leaves no room/);
$session->value("SELECT pg_terminate_backend($_)") foreach dispatcher($session);
$mock->well;
succeeds($as{third}, "SELECT feishu.wait_flow($id, '30 s')", '... and goes when others have ended');

done_testing();
