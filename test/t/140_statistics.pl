
# Statistics: what happened to the calls of each flow, and who may see it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my @kinds = qw(successes refused credentials permission not_found key_used
  rate_limited platform bad_answer no_connection timeout);

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'second', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# The rows of the view that a condition holds for, in order of their names.
sub rows
{
	my ($asker, $condition) = @_;
	$condition //= 'true';
	my $json = $asker->value("SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY server, namespace, flow_id), '[]') "
		  . "FROM feishu.stat_flows s WHERE $condition");
	return @{ JSON::PP->new->utf8->decode($json) };
}

# "flow_id calls, flow_id calls, ..." of what a session sees
sub seen
{
	return join(', ', map { "$_->{flow_id} $_->{calls}" } rows(@_));
}

# The counters of a row that are not zero, as "calls 3, refused 1".
sub counters
{
	my ($row) = @_;
	return join(', ', map { "$_ $row->{$_}" } grep { $row->{$_} } 'calls', @kinds, 'retries', 'unsent');
}

# Calls flows by their names, each once.
sub call_flows
{
	my ($caller, @flows) = @_;
	$caller->value(flow(flow_id => $_)) foreach @flows;
	return;
}

# Runs pgbench with so many clients and transactions each.
sub hammer
{
	my ($clients, $transactions, $sql) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/hammer.sql';
	PostgreSQL::Test::Utils::append_to_file($file, $sql);
	my ($out, $err) = ('', '');
	return IPC::Run::run(
		[
			'pgbench', '-n', '-c', $clients, '-j', 2,
			'-t', $transactions, '-f', $file, '-h', $node->host,
			'-p', $node->port, 'postgres'
		],
		'>',
		\$out,
		'2>',
		\$err,
		IPC::Run::timeout(2 * $FeishuFlow::PATIENCE)) || diag($err) && 0;
}

# ---- what is counted ----

is(seen($session), '', 'at first there are no statistics');
call_flows($session, 'one', 'two', 'one');
is(seen($session), 'one 2, two 1', 'calls are counted for each flow');
my ($row) = rows($session, "flow_id = 'one'");
is(counters($row), 'calls 2, successes 2', '... with their success');
is("$row->{server} $row->{namespace}", 'feishu package_7344545d87__c', '... and by server and namespace');
is( $session->value(
		"SELECT stats_since BETWEEN now() - interval '10 min' AND now() FROM feishu.stat_flows WHERE flow_id = 'one'"),
	't',
	'... since their first');

call_flows(FeishuFlow::Session->new($node), 'one');
is(seen($session, "flow_id = 'one'"), 'one 3', 'sessions count together');
$session->value(flow(flow_id => 'one', server => 'second'));
$session->value(flow(flow_id => 'one', namespace => 'other'));
is(seen($session, "flow_id = 'one'"), 'one 1, one 3, one 1', 'servers and namespaces are counted apart');
$session->value('BEGIN; ' . flow(flow_id => 'undone') . '; ROLLBACK');
is(seen($session, "flow_id = 'undone'"), 'undone 1', 'a call counts if its transaction is rolled back, too');

$session->value('SELECT feishu.check_server()');
$session->ask(flow(flow_id => 'notSent', operator => '{}'));
$session->ask(flow(flow_id => 'notSent', server => 'nowhere'));
$mock->fault(type => 'hang');
fails_with($session, "SET statement_timeout = '200ms';" . flow(flow_id => 'notSent'), '57014', 'a call is cancelled');
$session->value('RESET statement_timeout');
$mock->well;
is(seen($session, "flow_id NOT IN ('one', 'two', 'undone')"),
	'', 'check_server, wrong arguments and cancelled calls are not counted');

# ---- each kind of failure ----

sub inner { return { type => 'inner', code => $_[0] }; }
sub code  { return { type => 'code', code => $_[0] }; }

foreach my $case (
	[ 'LK400', 'refused', code(2320001) ],
	[ 'LK401', 'credentials', code(99991663) ],
	[ 'LK403', 'permission', code(99991672) ],
	[ 'LK404', 'not_found', inner('k_wf_ec_200036') ],
	[ 'LK409', 'key_used', inner('k_wf_ec_2001008') ],
	[ 'LK500', 'platform', code(1500) ],
	[ 'LK502', 'bad_answer', { type => 'garbage' } ],
	[ 'LK503', 'no_connection', { type => 'reset_before' } ],
	[ 'LK504', 'timeout', { type => 'hang' } ])
{
	my ($sqlstate, $column, $fault) = @$case;
	$mock->fault(%$fault);
	fails_with($session, flow(flow_id => $column, timeout => $sqlstate eq 'LK504' ? '200ms' : '30s'),
		$sqlstate, "$sqlstate");
	$mock->well;
	call_flows($session, $column);
	is(counters(rows($session, "flow_id = '$column'")), "calls 2, successes 1, $column 1", "... is counted as $column");
}
$session->value(flow(flow_id => 'refusedFlow', raise_error => \'false'));
is( counters(rows($session, "flow_id = 'refusedFlow'")),
	'calls 1, refused 1',
	'a refusal that is returned is a failure, too');
$session->value("CREATE SERVER mistaken FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '"
	  . $mock->url . "');"
	  . "CREATE USER MAPPING FOR PUBLIC SERVER mistaken OPTIONS (app_id 'cli_mock', app_secret 'wrong')");
fails_with($session, flow(server => 'mistaken'), 'LK401', 'no token is to be had');
is(counters(rows($session, "server = 'mistaken'")), 'calls 1, credentials 1', '... which is the failure of a call');
$mock->fault(type => 'nul');
fails_with($session, flow(flow_id => 'zero'), 'LK502', 'a flow is started, and its answer cannot be jsonb');
$mock->well;
is(counters(rows($session, "flow_id = 'zero'")), 'calls 1, successes 1', '... which is a success');

# of an app of its own, since it holds up what follows
$mock->config(apps => { cli_mock => 'mock-secret', cli_limited => 'limited-secret' });
create_server($node, 'limited', { base_url => $mock->url },
	{ app_id => 'cli_limited', app_secret => 'limited-secret' });
$mock->fault(type => 'code', code => 99991400, reset => 1);
fails_with($session, flow(server => 'limited'), 'LK429', 'LK429');
$mock->well;
is(counters(rows($session, "server = 'limited'")), 'calls 1, rate_limited 1', '... is counted as rate_limited');

is($session->value('SELECT count(*) FROM feishu.stat_flows WHERE calls <> ' . join(' + ', @kinds)),
	'0', 'successes and failures add up to the calls');

# ---- times ----

$mock->fault(type => 'latency', ms => 300);
call_flows($session, 'timed');
$mock->well;
call_flows($session, ('timed') x 3);
my $times = 'flow_id = \'timed\'';
($row) = rows($session, $times);
cmp_ok($row->{max_time}, '>=', 300, 'the longest time is in ms');
cmp_ok($row->{max_time}, '<', 1000 * $FeishuFlow::PATIENCE, '... and not in less');
cmp_ok($row->{min_time}, '<', $row->{mean_time}, 'the mean is above the least');
cmp_ok($row->{min_time}, '>', 0, '... which took some time');
cmp_ok(abs($row->{total_time} - 4 * $row->{mean_time}), '<', 0.001, 'the total is that of all calls');
cmp_ok($row->{stddev_time}, '>', 100, 'the deviation is that of one slow among four');
cmp_ok($row->{stddev_time}, '<', $row->{max_time}, '... no more');
($row) = rows($session, "flow_id = 'undone'");
is($row->{stddev_time}, 0, 'one call deviates from nothing');
is( "$row->{min_time} $row->{mean_time} $row->{max_time}",
	join(' ', ($row->{total_time}) x 3),
	'... and is the least, the mean and the longest');

# ---- names ----

$session->value('SELECT feishu.stat_reset()');
is(seen($session), '', 'stat_reset forgets all');
foreach
  my $name ([ 'ab', 'c' ], [ 'a', 'bc' ], [ 'AB', 'c' ], [ 'x' x 255, 'y' x 255 ], [ "\xe6\xb5\x81\xe7\xa8\x8b", 'z' ])
{
	$session->value(flow(namespace => $name->[0], flow_id => $name->[1])) for 1 .. 2;
}
is( $session->value(
			"SELECT string_agg(namespace || '/' || flow_id || ' ' || calls, ', ' ORDER BY namespace COLLATE \"C\") "
		  . 'FROM feishu.stat_flows WHERE length(namespace) < 10'),
	"AB/c 2, a/bc 2, ab/c 2, \xe6\xb5\x81\xe7\xa8\x8b/z 2",
	'names are told from one another');
is( $session->value(
		"SELECT calls FROM feishu.stat_flows WHERE namespace = repeat('x', 255) AND flow_id = repeat('y', 255)"),
	'2',
	'the longest names are kept in full');

# ---- servers come and go ----

$session->value('SELECT feishu.stat_reset(); ' . flow(server => 'second', flow_id => 'kept'));
$session->value('ALTER SERVER second RENAME TO renamed');
is(join(', ', map { "$_->{server} $_->{flow_id}" } rows($session)), 'renamed kept',
	'a renamed server has its new name');
$session->value('DROP SERVER renamed CASCADE');
is(seen($session), '', 'a dropped one is seen no more');

# ---- databases ----

$node->safe_psql('postgres', 'CREATE DATABASE other');
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'other');
my $other = FeishuFlow::Session->new($node, database => 'other');
call_flows($session, 'here');
call_flows($other, 'there', 'there');
is(seen($session), 'here 1', 'the flows of other databases are not seen');
is(seen($other), 'there 2', '... there, too');
$session->value('SELECT feishu.stat_reset()');
is(seen($session), '', 'stat_reset forgets those of this database');
is(seen($other), 'there 2', '... and of no other');
$other->quit;

# ---- privileges ----

create_server($node, 'private', { base_url => $mock->url });
$session->value('REVOKE USAGE ON FOREIGN SERVER private FROM PUBLIC;'
	  . 'CREATE ROLE stranger LOGIN; CREATE ROLE insider LOGIN; CREATE ROLE monitor LOGIN; CREATE ROLE reader LOGIN;'
	  . 'CREATE ROLE sweeper LOGIN; GRANT USAGE ON FOREIGN SERVER private TO insider;'
	  . 'GRANT pg_monitor TO monitor; GRANT pg_read_all_stats TO reader;'
	  . 'GRANT EXECUTE ON FUNCTION feishu.stat_reset() TO sweeper');
call_flows($session, 'public');
$session->value(flow(flow_id => 'secret', server => 'private'));
my %as = map { $_ => FeishuFlow::Session->new($node, user => $_) } qw(stranger insider monitor reader sweeper);
is(seen($as{stranger}), 'public 1', 'a role sees the flows on servers that it may use');
is($as{stranger}->value('SELECT count(*) FROM feishu.stat_flows()'), '1', '... through the function, too');
is(seen($as{insider}), 'public 1, secret 1', 'a role that may use more sees more');
is(seen($as{monitor}), 'public 1, secret 1', 'a member of pg_monitor sees all');
is(seen($as{reader}), 'public 1, secret 1', 'a member of pg_read_all_stats sees all');
is($as{stranger}->value('SELECT feishu.stat_evictions()'), '0', 'everybody may see that nothing made room');
fails_with($as{$_}, 'SELECT feishu.stat_reset()', '42501', "stat_reset as $_") foreach qw(stranger insider reader);
succeeds($as{sweeper}, 'SELECT feishu.stat_reset()', 'stat_reset as a role it was granted to');
is(seen($session), '', '... does it');
call_flows($session, 'public');
succeeds($as{monitor}, 'SELECT feishu.stat_reset()', 'stat_reset as a member of pg_monitor');
is(seen($session), '', '... does it');
$_->quit foreach values %as;

# ---- at the same time ----

ok(hammer(8, 100, flow(flow_id => 'busy') . ";\n"), '8 sessions call one flow 100 times each');
is(seen($session), 'busy 800', '... and none is lost');
is(counters(rows($session)), 'calls 800, successes 800', '... nor its success');

# ---- a restart ----

$session->quit;
$node->restart;
$session = FeishuFlow::Session->new($node);
is(seen($session), '', 'after a restart the statistics begin anew');

# ---- a full table ----

$session->quit;
$node->append_conf('postgresql.conf', 'feishu_flow.track_flows = 3');
$node->restart;
$session = FeishuFlow::Session->new($node);
call_flows($session, qw(a a a b b c));
is(seen($session), 'a 3, b 2, c 1', 'a table of three holds three flows');
is($session->value('SELECT feishu.stat_evictions()'), '0', '... which takes no eviction');
call_flows($session, 'd');
is(seen($session), 'a 3, b 2, d 1', 'a fourth takes the place of the one called least');
is($session->value('SELECT feishu.stat_evictions()'), '1', '... and that is counted');
call_flows($session, qw(b b d d c));
is(seen($session), 'b 4, c 1, d 3', '... as it is then');
$session->value('SELECT feishu.stat_reset()');
call_flows($session, qw(e f g));
is(seen($session), 'e 1, f 1, g 1', 'a reset makes room');
is($session->value('SELECT feishu.stat_evictions()'), '2', '... without evictions');
call_flows($session, 'h');
is(seen($session), 'f 1, g 1, h 1', 'among those called as often, the oldest goes');
call_flows($session, ('often') x 20, map { "rare$_" } 1 .. 30);
is(seen($session, "flow_id = 'often'"), 'often 20', 'a flow that is called often stays');
call_flows($session, map { ($_) x 5 } map { "new$_" } 1 .. 150);
is(seen($session, "flow_id = 'often'"), '', '... but not for good when it is called no more');

ok( hammer(
		8,
		100,
		"\\set n random(1, 20)\n" . flow(flow_id => \"'f' || :n") . ";\n" . "SELECT count(*) FROM feishu.stat_flows;\n"
	),
	'8 sessions call 20 flows in a table of three');
ok(hammer(8, 50, "\\set n random(1, 20)\n" . flow(flow_id => \"'f' || :n") . ";\nSELECT feishu.stat_reset();\n"),
	'... with resets meanwhile');
cmp_ok(scalar(rows($session)), '<=', 3, '... and the table is in order');
call_flows($session, qw(x y y z z));
is(seen($session), 'x 1, y 2, z 2', '... all of it');

# ---- switched off, and not there ----

$session->quit;
$node->append_conf('postgresql.conf', 'feishu_flow.track_flows = 0');
$node->restart;
$session = FeishuFlow::Session->new($node);
call_flows($session, 'one');
is(seen($session), '', 'no statistics with track_flows = 0');
succeeds($session, 'SELECT feishu.stat_reset()', '... and stat_reset has nothing to do');
$node->stop;

my $bare = new_cluster('bare', preload => 0);
create_server($bare, 'feishu', { base_url => $mock->url });
$session = FeishuFlow::Session->new($bare);
call_flows($session, 'one');
fails_with(
	$session, "SELECT * FROM $_", '55000', "$_ without preloading",
	message => qr/shared_preload_libraries/,
	hint => qr/restart the server/) foreach 'feishu.stat_flows', 'feishu.stat_reset()', 'feishu.stat_evictions()';

done_testing();
