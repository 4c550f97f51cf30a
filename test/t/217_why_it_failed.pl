
# Who waits for a queued flow is told what execute_flow would have told; flows that
# fail without an attempt are counted.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.poll_interval = '100ms'\n");
create_server($node, 'feishu', { base_url => $mock->url, timeout => '300ms' });
create_server($node, 'closed', { base_url => 'http://127.0.0.1:' . closed_port() });
my $session = FeishuFlow::Session->new($node);
until_dispatcher($session);

# What differs from one request to the next.
sub comparable
{
	my ($text) = @_;
	return ($text // '') =~ s/(log id|execution_id|log_id)\W+\w+/$1/gir;
}

# ---- what execute_flow says ----

foreach my $case (
	[ 'parameters are refused', 'LK400', { flow_id => 'refusedFlow' } ],
	[ 'a scope is missing', 'LK403', { flow_id => 'noScope' } ],
	[ 'the flow itself fails', 'LK400', { flow_id => 'rejectedFlow' } ],
	[ 'a failure of the platform', 'LK500', { fault => { type => 'code', code => 1500 } } ],
	[ "a gateway's page", 'LK500', { fault => { type => 'status', status => 502 } } ],
	[ 'no answer', 'LK504', { fault => { type => 'hang' } } ],
	[ 'no connection', 'LK503', { server => 'closed' } ])
{
	my ($name, $sqlstate, $arguments) = @$case;
	my $fault = delete $arguments->{fault};
	my %common = (namespace => 'package_7344545d87__c', flow_id => 'flow', is_async => \'true', %$arguments);
	$mock->rules([ { kind => 'execute' }, $fault ]) if $fault;
	my $called = $session->ask(flow(%common));
	is($called->{sqlstate}, $sqlstate, "$name: execute_flow");
	my $id = enqueue($session, %common, max_attempts => 1);
	my $waited = fails_with(
		$session, "SELECT feishu.wait_flow($id)",
		$sqlstate,
		'... wait_flow',
		message => qr{"package_7344545d87__c/$common{flow_id}"});
	$mock->well if $fault;
	my $detail = ($waited->{detail} // '') =~ s/\nGiven up after 1 attempts\.$//r;
	is($waited->{message}, $called->{message}, '... with its message');
	is(comparable($detail), comparable($called->{detail}), '... with its DETAIL');
	is(comparable($waited->{hint}), comparable($called->{hint}), '... and with its HINT');
	is(look($session, $id, 'hint'), $waited->{hint} // '', '... which the view shows');
	is( $fault || $arguments->{server}        ? 1 : 0,
		$waited->{detail} =~ /Given up after/ ? 1 : 0,
		'... and whether it was given up');
	$session->value("SELECT feishu.resume_server('" . ($arguments->{server} // 'feishu') . "')");
}

my $id = enqueue($session, flow_id => 'refusedFlow');
until_ended($session, "id = $id");
isnt(look($session, $id, 'hint'), '', 'a flow that failed has a hint');
$session->value("SELECT feishu.pause_server('feishu'); SELECT feishu.retry_flow($id)");
is(look($session, $id, 'error, hint'), '|', '... and none when it is queued again');
$session->value("SELECT feishu.cancel_flow($id); SELECT feishu.resume_server('feishu')");
fails_with(
	$session, "SELECT feishu.wait_flow($id)", '55000', 'one that was cancelled',
	message => qr{^flow "\w+/refusedFlow" was cancelled$},
	err => qr/of flow $id\b/);

# ---- without an attempt ----

sub unsent
{
	my ($flow_id) = @_;
	return $session->value(
			"SELECT coalesce(sum(unsent), 0) || ' of ' || coalesce(sum(calls), 0) FROM feishu.stat_flows "
		  . "WHERE flow_id = '$flow_id'");
}
$session->value("SELECT feishu.pause_server('feishu')");
$id = enqueue($session, flow_id => 'expired', expires_at => \"clock_timestamp() + interval '50 ms'");
fails_with(
	$session, "SELECT feishu.wait_flow($id)", 'LK504', 'one that expired in a pause',
	message => qr/expired before it could be sent$/,
	hint => qr/dispatch_status/);
is(look($session, $id, 'attempts'), '0', '... without an attempt');
wait_until('it is counted', sub { unsent('expired') eq '1 of 0' });
is($session->value("SELECT (mean_time, stddev_time) FROM feishu.stat_flows WHERE flow_id = 'expired'"),
	'(0,0)', '... without a time');
$session->value('CREATE ROLE leaving; GRANT USAGE ON FOREIGN SERVER feishu TO leaving; SET ROLE leaving');
$id = enqueue($session, flow_id => 'left');
$session->value("RESET ROLE; DROP OWNED BY leaving; DROP ROLE leaving; SELECT feishu.resume_server('feishu')");
fails_with(
	$session, "SELECT feishu.wait_flow($id)",
	'42704',
	'one whose role was dropped',
	message => qr{^could not execute flow "\w+/left": the role that queued it was dropped$});
wait_until('it is counted', sub { unsent('left') eq '1 of 0' });
$id = enqueue($session, server => 'closed', flow_id => 'tried');
wait_until('it is tried', sub { look($session, $id, 'attempts') > 0 });
$session->value("SELECT feishu.pause_server('closed')");
wait_until('it waits', sub { look($session, $id, 'state') eq 'retrying' });
$session->value("UPDATE feishu_internal.outbox SET expires_at = now() WHERE id = $id");
fails_with(
	$session, "SELECT feishu.wait_flow($id)", 'LK504', 'one that expired after an attempt',
	message => qr/expired before it could be sent$/,
	detail => qr/could not be reached/);
is(unsent('tried') =~ s/ of.*//r, '0', '... has been counted by its attempts');

done_testing();
