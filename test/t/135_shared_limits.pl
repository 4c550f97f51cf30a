
# The limits of an app hold for all who call for it together: sessions that
# call, and the dispatchers of all databases.  What one of them learns of the
# platform, the others know.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

# What is refused at once has minutes to wait otherwise.
my $AT_ONCE = 1 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
my @databases = ('postgres', 'second');
$node->safe_psql('postgres', 'CREATE DATABASE second');
my $apps = 0;
my $server;

# A server of the same name and app in both databases; counts begin anew.
sub new_server
{
	my (%options) = @_;
	$server = 's' . ++$apps;
	$mock->well;
	$mock->reset;
	$mock->config(apps => { "cli_$apps" => "secret-$apps" });
	create_server(
		$node, $server,
		{ base_url => $mock->url, %options },
		{ app_id => "cli_$apps", app_secret => "secret-$apps" }, $_) foreach @databases;
	return;
}
new_server();
my @queues = map { FeishuFlow::Session->new($node, database => $_) } @databases;
my @callers = map { FeishuFlow::Session->new($node, database => $databases[ $_ % 2 ]) } 1 .. 4;
until_dispatcher($_) foreach @queues;

# Both queues have so many flows each, and each caller makes so many calls.
sub all_at_once
{
	my ($flows, $calls) = @_;
	enqueue_many($queues[$_], 1 + 1000 * $_, $flows + 1000 * $_, server => $server) foreach 0, 1;
	$_->send("SELECT count(feishu.execute_flow('a', 'called', '{\"_id\": 1}', server => '$server')) "
		  . "FROM generate_series(1, $calls)")
	  foreach @callers;
	is(join(' ', map { $_->result->{sqlstate} } @callers), join(' ', ('00000') x @callers), 'all calls are answered');
	until_ended($_, "server = '$server'") foreach @queues;
	is(ends($_, "server = '$server'"), "succeeded $flows", '... all flows succeed') foreach @queues;
	return;
}

# ---- places ----

new_server(max_concurrency => 3);
$mock->fault(type => 'latency', ms => 10);
all_at_once(100, 25);
is($mock->stats->{max_concurrent_executes}, 3,
	'max_concurrency is kept by two dispatchers and four sessions, and used');
is($mock->executes, 300, '... with one request for each');

# ---- the rate ----

# 60 in the first second, 60 in the second, and then the others
new_server(max_rate => 60);
my $begun = time();
all_at_once(60, 15);
cmp_ok((arrivals($mock))[-1]{time} - $begun, '>=', 1.95, 'max_rate is kept by two dispatchers and four sessions');
is($mock->executes, 180, '... with one request for each');

# ---- what one learns, all know ----

new_server();
$mock->fault(type => 'code', code => 99991400, reset => 30);
my $id = enqueue($queues[0], server => $server, params => '{"n": 1}');
until_true($queues[0], 'the queue is held back', "SELECT paused FROM feishu.dispatch_status WHERE server = '$server'");
$mock->well;
my $result = fails_with(
	$callers[1], flow(server => $server, timeout => '3s'),
	'LK429', 'a rate limit that a queue has met holds back calls');
cmp_ok($result->{seconds}, '<', $AT_ONCE, '... which is said at once');
my $second = enqueue($queues[1], server => $server, params => '{"n": 2}');
until_true($queues[1], 'the queue is held back', "SELECT paused FROM feishu.dispatch_status WHERE server = '$server'");
is($mock->executes, 1, '... and the queue of another database');
$queues[0]->value("SELECT feishu.resume_server('$server')");
succeeds($queues[0], "SELECT feishu.wait_flow($id)", 'resume_server lets the one go');
succeeds($queues[1], "SELECT feishu.wait_flow($second)", '... and the other');
started_once($mock, 2, '... each once');

new_server();
$mock->fault(type => 'code', code => 99991400, reset => 2);
fails_with($callers[0], flow(server => $server), 'LK429', 'a session is told to wait for 2 s');
my $told = time();
$mock->well;
$mock->mark;
enqueue_many($queues[$_], 1 + $_, 1 + $_, server => $server) foreach 0, 1;
until_ended($_, "server = '$server'") foreach @queues;
is(scalar(grep { $_->{time} < $told + 1.8 } arrivals($mock)), 0, '... and so do the queues');
started_once($mock, 2, '... whose flows are sent then');

new_server();
$mock->fault(type => 'code', code => 99991403);
fails_with($callers[0], flow(server => $server), 'LK429', 'a session learns that the quota is used up');
$mock->well;
$mock->mark;
enqueue_many($queues[0], 1, 10, server => $server);
until_true($queues[0], 'the app is paused', "SELECT paused FROM feishu.dispatch_status WHERE server = '$server'");
like($queues[0]->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = '$server'"),
	qr/quota/, '... which pauses the queue');
is($mock->executes, 0, '... and nothing is sent');
my $refused_at = time();
wait_until('a call may try again: once a second', sub { time() - $refused_at > 1.1 });
succeeds($callers[0], flow(server => $server, params => '{"n": 11}'), 'a call that goes well');
until_ended($queues[0], "server = '$server'");
started_once($mock, 11, '... lets the queue go on');

new_server();
$mock->fault(type => 'reset_before');
enqueue_many($queues[0], 1, 20, server => $server);
until_true(
	$queues[0],
	'the breaker is open',
	"SELECT paused AND sending <= 1 FROM feishu.dispatch_status WHERE server = '$server'");
enqueue_many($queues[1], 21, 40, server => $server);
until_true($queues[1], 'the breaker is open', "SELECT paused FROM feishu.dispatch_status WHERE server = '$server'");
is($queues[1]->value("SELECT sum(attempts) < 10 FROM feishu.flows WHERE server = '$server'"),
	't', 'a platform that does not answer one database is left in peace by another');
$mock->well;
until_ended($_, "server = '$server'") foreach @queues;
started_once($mock, 40, '... until it answers');

done_testing();
