
# Limits do not fail open: while calls of other apps take all places of the table of apps, a call of a server with
# limits waits or is refused, and is never freed of its limit. That holds in the table of a single process, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $MAX_APPS = 16;
my $NO_PLACE = 'more apps are busy than feishu_flow.max_apps has room for';

my $mock = FeishuFlow::Mock->start;
$mock->config(apps => { map { ("cli_$_" => "secret-$_") } 1 .. 100 });
$mock->rules([ { kind => 'execute', flow_id => 'stalls' }, { type => 'hold' } ]);
my $node = queue_cluster('main', connections => 60, conf => "feishu_flow.max_apps = $MAX_APPS\n");
my $watch = FeishuFlow::Session->new($node);
$watch->value('CREATE EXTENSION feishu_flow');
my %as;
foreach my $role (qw(eve mallory app))
{
	$watch->value("CREATE ROLE $role LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO $role");
	$as{$role} = FeishuFlow::Session->new($node, user => $role);
}
my $app = $as{app};

# A server of the session's role, with an app of its own.
my $servers = 0;

sub new_server
{
	my ($session, %options) = @_;
	my $name = 'app_' . ++$servers;
	%options = (base_url => $mock->url, timeout => '10min', %options);
	$session->value("CREATE SERVER $name FOREIGN DATA WRAPPER feishu_flow OPTIONS ("
		  . join(', ', map { "$_ '$options{$_}'" } sort keys %options) . '); '
		  . "CREATE USER MAPPING FOR PUBLIC SERVER $name "
		  . "OPTIONS (app_id 'cli_$servers', app_secret 'secret-$servers')");
	return $name;
}

# So many flows of servers of the role, which stall.
sub stall
{
	my ($role, $n) = @_;
	$mock->mark;
	enqueue($as{$role}, server => new_server($as{$role}), flow_id => 'stalls') for 1 .. $n;
	return is($mock->wait_for($n, flow_id => 'stalls'), $n, "$n flows of $role stall");
}

# The results of a call of each of these servers, made together.
sub together
{
	my ($flow_id, $timeout, @these) = @_;
	my $names = join ', ', map { quote($_) } @these;
	return qq{SELECT coalesce((r).sqlstate, 'ok') AS state, coalesce((r).error, '') AS error, server FROM (
		SELECT feishu.execute_flows('a', $flow_id, '{"_id": 1}', server => server, timeout => $timeout) OVER (ORDER BY n)
			AS r, server FROM unnest(ARRAY[$names]) WITH ORDINALITY AS s(server, n)) AS calls};
}

stall('eve', $MAX_APPS + 4);
stall('mallory', $MAX_APPS / 4);

my %limited = (
	max_rate => new_server($app, max_rate => '1/min'),
	max_concurrency => new_server($app, max_concurrency => 1));
$mock->mark;
foreach my $limit (sort keys %limited)
{
	my $server = $limited{$limit};
	my $result = fails_with(
		$app, flow(server => $server, flow_id => $limit, timeout => '500ms'),
		'LK429', "$limit without a place: a call is refused",
		message => qr/more apps are busy than feishu_flow\.max_apps has room for, and .*max_rate or max_concurrency/,
		detail => qr/^No request was sent to "[^"]*"\.$/,
		hint => qr/^Try again later, or queue the flow .*raise feishu_flow\.max_apps/);
	cmp_ok($result->{seconds}, '>', 0.4, '... when it has waited for one');
	fails_with($app, flow(server => $server, flow_id => $limit, timeout => '200ms', raise_error => 'false'),
		'LK429', '... also as an error that is not raised otherwise');
	is( succeeds(
			$app,
			"SELECT string_agg(state, ' ') FROM (" . together("'$limit'", "'200ms'", ($server) x 5) . ') AS calls',
			'... also as one of many'),
		join(' ', ('LK429') x 5),
		'... and each of them');
	my $id = enqueue($app, server => $server, flow_id => $limit);
	until_true(
		$watch,
		'... a queued one waits',
		"SELECT paused AND pause_reason = '$NO_PLACE' AND queued = 1 FROM feishu.dispatch_status WHERE server = '$server'"
	);
	is(look($app, $id, 'state, attempts, error'), 'queued|0|', '... without an attempt');
}
is($mock->executes, 0, '... and nothing is sent');

# Calls of whom a place would not bind go without one.
succeeds($app, flow(server => new_server($app)), 'a call without a limit is not held up');

# Other processes find no other place: neither a new session, nor the next dispatcher.
$mock->mark;
my $another = FeishuFlow::Session->new($node, user => 'app');
fails_with($another, flow(server => $limited{max_rate}, timeout => '200ms'), 'LK429', 'a new session has none, either');
$another->quit;
is($mock->executes, 0, '... and nothing is sent');

# With a place, the limit is in force from the first call on.
$mock->mark;
$app->send(flow(server => $limited{max_rate}, flow_id => 'max_rate', timeout => '50s'));
wait_until('a call waits',
	sub { $watch->value('SELECT wait_event_type FROM pg_stat_activity WHERE pid = ' . $app->pid) eq 'Extension' });
$mock->well;
my $one = $app->result;
like($one->{sqlstate}, qr/^(00000|LK429)$/,
	'once there are places, a call that has waited gets its turn, or there is none in time')
  or diag($one->{err});
wait_until('the queued flow or the call is sent', sub { $mock->count(flow_id => 'max_rate') > 0 });
fails_with(
	$app, flow(server => $limited{max_rate}, flow_id => 'max_rate', timeout => '1s'),
	'LK429',
	'... and the next is refused for the limit itself',
	message => qr/max_rate leaves no room/);
is($mock->count(flow_id => 'max_rate'), 1, '... so one was sent of a max_rate of one a minute');
until_ended($watch, "flow_id = 'max_concurrency'");
is(ends($watch, "flow_id = 'max_concurrency'"), 'succeeded 1', '... and the flow under the other limit is sent');

# ---- in the memory of one process ----

my $alone = new_cluster('alone', preload => 0);
my $single = FeishuFlow::Session->new($alone);
$single->value('CREATE EXTENSION feishu_flow');
my @stalling = map { new_server($single) } 1 .. 18;
my $strict = new_server($single, max_rate => '1/min');
$mock->rules([ { kind => 'execute', flow_id => 'stalls' }, { type => 'hold' } ]);
$mock->mark;
my $states = together(
	"CASE WHEN server = '$strict' THEN 'strict' ELSE 'stalls' END",
	"CASE WHEN server = '$strict' THEN '500ms' ELSE '3s' END::interval",
	@stalling, ($strict) x 3);
is( succeeds(
		$single,
		"SELECT string_agg(n || ' ' || state, ', ' ORDER BY state) FROM (SELECT count(*) AS n, state FROM "
		  . "($states) AS s WHERE server = '$strict' GROUP BY state) AS t",
		'without shared_preload_libraries: many calls that stall'),
	'3 LK429',
	'... and those of a server with a limit are refused');
is($mock->count(flow_id => 'strict'), 0, '... and not sent');
$mock->well;
succeeds($single, flow(server => $strict), '... until there is a place');
fails_with(
	$single, flow(server => $strict, timeout => '1s'),
	'LK429',
	'... for one call',
	message => qr/max_rate leaves no room/);

done_testing();
