
# What a crash empties breaks no promise: within a max_rate no more goes out, and
# a pause that the platform asked for is kept, whatever restarts the server.
# And who fills the table of apps forgets its own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What goes on at once, or is refused at once, has minutes to wait otherwise.
my $AT_ONCE = 3 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $other = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "restart_after_crash = on\n");
my $file = $node->data_dir . '/pg_stat/feishu_flow_limits';
my $session;

sub connect_again
{
	$session->quit if $session;
	$session = FeishuFlow::Session->new($node);
	return;
}
connect_again();

# A server with an app, so limits, of its own.  Returns its name.
my $apps = 0;

sub new_server
{
	my (%options) = @_;
	my $name = 's' . ++$apps;
	$mock->config(apps => { map { ("cli_$_" => "secret-$_") } 1 .. $apps });
	create_server(
		$node, $name,
		{ base_url => $mock->url, %options },
		{ app_id => "cli_$apps", app_secret => "secret-$apps" });
	return $name;
}

# The ways in which shared memory begins anew.
my %restarts = (
	'kill -9 of a backend' => sub {
		my $bystander = FeishuFlow::Session->new($node);
		kill 'KILL', $session->pid;
		wait_until('all others are gone, too', sub { !alive($bystander->pid) });
		wait_until('the cluster is up again', sub { $node->psql('postgres', 'SELECT 1') == 0 });
		$bystander->quit;
	},
	'an immediate shutdown' => sub { $node->stop('immediate'); $node->start; },
	'a plain restart' => sub { $node->restart; });

sub restart
{
	my ($how) = @_;
	$restarts{$how}->();
	connect_again();
	return;
}

# A server without limits: when its flow has come, all lanes had their turn.
create_server($node, 'free', { base_url => $other->url });

sub until_lanes_had_a_turn
{
	until_dispatcher($session);
	for (1 .. 2)
	{
		my $id = enqueue($session, server => 'free');
		$session->value("SELECT feishu.wait_flow($id)");
	}
	return;
}

# How many calls of a server, up to so many, go well within seconds.
sub calls_that_go
{
	my ($server, $most) = @_;
	for my $n (1 .. $most)
	{
		my $answer = $session->ask(flow(server => $server, timeout => '3s'));
		return $n - 1 if $answer->{sqlstate} eq 'LK429';
		die $answer->{err} if $answer->{sqlstate} ne '00000';
	}
	return $most;
}

sub succeeds_at_once
{
	my ($server, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $session->ask(flow(server => $server));
	is($answer->{sqlstate}, '00000', $name) or diag($answer->{err});
	cmp_ok($answer->{seconds}, '<', $AT_ONCE, '... at once');
	return;
}

sub log_lines
{
	my ($expression) = @_;
	return scalar(grep { /$expression/ } split /\n/, slurp_file($node->logfile));
}

# ---- who does not use it does not notice ----

succeeds_at_once('free', 'a call without max_rate goes');
restart('a plain restart');
ok(!-e $file, '... and leaves nothing, nor does a restart');

my $large = new_server(max_rate => '1000/s');
succeeds_at_once($large, 'the first call under a max_rate goes');
my $inode = (stat $file)[1];
ok(defined $inode, '... and is written');
is( $session->value(
		"SELECT count(feishu.execute_flow('a', 'b', '{\"_id\": 1}', server => '$large')) FROM generate_series(1, 300)"),
	300,
	'many calls under a large max_rate');
is((stat $file)[1], $inode, '... do not write each');

# ---- max_rate ----

my $small = new_server(max_rate => '5/min');
$mock->mark;
enqueue_many($session, 1, 20, server => $small);
$mock->wait_for(5, kind => 'execute');
my $begun = time();
foreach my $how (sort keys %restarts)
{
	$mock->mark;
	restart($how);
	until_lanes_had_a_turn();
	is($mock->executes, 0, "after $how no more than max_rate goes out");
	cmp_ok(time() - $begun, '<', 60, '... which may not yet');
	succeeds_at_once($large, '... a call under a large max_rate goes');
}
$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE server = '$small'");

my $hourly = new_server(max_rate => '10/h');
is(calls_that_go($hourly, 4), 4, 'of a rate per hour some is used');
restart('kill -9 of a backend');
my $more = calls_that_go($hourly, 7);
cmp_ok($more, '>=', 4, '... after a crash most of the rest is left');
cmp_ok($more, '<=', 6, '... and no more');
restart('a plain restart');
is(calls_that_go($hourly, 7), 6 - $more, '... after a plain restart just what is left');

my $seldom = new_server(max_rate => '0.01');
is(calls_that_go($seldom, 2), 1, 'a rate that is kept by the time between two requests');
restart('kill -9 of a backend');
is(calls_that_go($seldom, 1), 0, '... is kept over a crash');

# ---- a pause that the platform asked for ----

my $paused = new_server();
$mock->fault(type => 'code', code => 99991400, reset => 60);
my $id = enqueue($session, server => $paused);
my $is_paused =
  "SELECT paused AND pause_reason LIKE '%limits the rate%' FROM feishu.dispatch_status WHERE server = '$paused'";
until_true($session, 'the queue is held back', $is_paused);
$mock->well;
$mock->mark;

foreach my $how (sort keys %restarts)
{
	restart($how);
	until_lanes_had_a_turn();
	is($session->value($is_paused), 't', "after $how a pause of the platform is kept");
	is($session->value("SELECT resume_at > now() + '5 s' FROM feishu.dispatch_status WHERE server = '$paused'"),
		't', '... to its end');
	fails_with($session, flow(server => $paused, timeout => '1s'), 'LK429', '... for calls, too');
}
is($mock->executes, 0, '... and nothing is sent');
$session->value("SELECT feishu.resume_server('$paused')");
succeeds($session, "SELECT feishu.wait_flow($id)", 'who resumes the server ends the pause');
restart('kill -9 of a backend');
succeeds_at_once($paused, '... for good');

# ---- a file that cannot be used ----

$node->stop;
my $damaged = slurp_file($file);
substr($damaged, length($damaged) / 2, 1) ^= "\x01";
open(my $out, '>', $file) or die "$file: $!";
binmode $out;
print $out $damaged;
close $out;
$node->start;
connect_again();
is(log_lines('limits" is damaged'), 1, 'a damaged file is told to the log');
succeeds_at_once($small, '... and does no harm');
ok(slurp_file($file) ne $damaged, '... and is replaced');

unlink $file;
mkdir $file or die "$file: $!";
restart('kill -9 of a backend');
is(log_lines('could not read file "pg_stat/feishu_flow_limits"'), 1, 'one that cannot be read is told to the log');
is(calls_that_go($large, 3), 3, '... and does no harm');
is(calls_that_go($small, 6), 5, '... nor does one that cannot be written: the limits hold in memory');
is(log_lines('could not write file "pg_stat/feishu_flow_limits"'), 1, '... which is told once');
rmdir $file or die "$file: $!";

# ---- a role that fills the table of apps ----

$session->quit;
undef $session;
$node->append_conf('postgresql.conf', "feishu_flow.max_apps = 12\n");
$node->restart;
connect_again();
my @limited = map { new_server(max_rate => '1/min') } 1, 2;
my $quota = new_server();
my $good = new_server();
$mock->fault(type => 'code', code => 99991403);
fails_with($session, flow(server => $quota), 'LK429', 'an app whose quota is used up');
$mock->well;
succeeds_at_once($_, 'an app with limits') foreach @limited;
succeeds_at_once($good, 'an app with a token');
$mock->mark;

my $rounds = 20;
$session->value('CREATE ROLE nonsense LOGIN');
$mock->config(
	apps => { (map { ("cli_$_" => "secret-$_") } 1 .. $apps), (map { ("cli_nonsense_$_" => 'secret') } 1 .. $rounds) });
create_server(
	$node, 'crowded',
	{ base_url => $mock->url, max_rate => '1000/min' },
	{ app_id => 'cli_1', app_secret => 'secret-1' });
my $nonsense = FeishuFlow::Session->new($node, user => 'nonsense');
$nonsense->value("CREATE USER MAPPING FOR nonsense SERVER crowded OPTIONS (app_id 'x', app_secret 'secret')");

foreach my $n (1 .. $rounds)
{
	$nonsense->value("ALTER USER MAPPING FOR nonsense SERVER crowded OPTIONS (SET app_id 'cli_nonsense_$n')");
	succeeds($nonsense, flow(server => 'crowded'), 'a role makes another app each time');
}
$nonsense->quit;
fails_with($session, flow(server => $_, timeout => '1s'), 'LK429', '... which takes no limit of somebody else')
  foreach @limited;
$mock->mark;
succeeds_at_once($good, '... another app');
is($mock->token_requests, 0, '... still has its token');
enqueue($session, server => $quota);
until_lanes_had_a_turn();
is( $session->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = '$quota'"),
	'the quota is used up',
	'... and a third its pause');
is(log_lines('has dropped the limits of an app'), 1, 'that apps are forgotten is told to the log, once');
is(log_lines('has dropped the access token of an app'), 1, '... of the tokens, too');
like(slurp_file($node->logfile), qr/HINT: .*feishu_flow\.max_apps, which is 12/, '... with what to do');

done_testing();
