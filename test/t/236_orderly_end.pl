
# A dispatcher that is told to end records the answers that it has: none of them
# is lost, and no flow that was answered is sent again.

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
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $flows = 60;

# All flows but one are answered at the same moment, and at once it is told to
# end; with one under way it would have waited a little for more to record.
# Before that it has read an answer that jsonb cannot hold, an error inside.
sub told_to_end
{
	my ($deed, $before) = @_;
	$session = FeishuFlow::Session->new($node);
	my $pid = until_dispatcher($session);
	$mock->fault(
		type => 'status',
		status => 200,
		content_type => 'application/json',
		body => '{"code": 0, "data": {"n": 1e999999}}');
	enqueue($session);
	until_ended($session);
	$mock->well;
	$session->value("SELECT feishu.purge_flows('infinity')");
	begin_anew($mock, $session);
	$mock->rules(
		[ { kind => 'execute', params_regex => '"n": *0\D' }, { type => 'hang' }, times => 1 ],
		[ { kind => 'execute', params_regex => '"n": *[1-9]' }, { type => 'hold' } ]);
	enqueue_many($session, 0, $flows);
	$mock->wait_for($flows + 1, kind => 'execute');
	until_true($session, 'the claims are written', "SELECT sending = $flows + 1 FROM feishu.dispatch_status");
	$before->($pid) if defined $before;
	$mock->release;
	$mock->wait_for($flows, kind => 'execute', state => 'done');
	$deed->($pid);
	wait_until('it has ended', sub { !alive($pid) });
	$session->quit;
	return;
}

sub all_were_recorded
{
	my ($how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$mock->well;
	wait_until(
		'the server is there',
		sub {
			$session = eval { FeishuFlow::Session->new($node) }
		});
	until_ended($session);
	is( $session->value(
				"SELECT string_agg(state || ' ' || attempts || ' ' || n, ', ' ORDER BY attempts) "
			  . 'FROM (SELECT state, attempts, count(*) AS n FROM feishu.flows GROUP BY state, attempts) s'),
		"succeeded 1 $flows, succeeded 2 1",
		"$how: what was answered is recorded, and the one that was not is sent again");
	is($mock->executes, $flows + 2, '... nothing else is');
	started_once($mock, $flows + 1, '... and each starts once');
	$session->quit;
	return;
}

# The dispatcher is stopped while the answers come in, and has been told to end when it goes on: it has looked at none
# of them. So does a fast shutdown tell it.
sub hold
{
	my ($pid) = @_;
	kill 'STOP', $pid;
	# until it stands still, a signal of a lower number comes first
	wait_until('it is stopped', sub { slurp_file("/proc/$pid/status") =~ /^State:\s+T/m });
	return;
}

sub told
{
	my ($pid) = @_;
	wait_until('it has the signal',
		sub { slurp_file("/proc/$pid/status") =~ /^ShdPnd:\s+([0-9a-f]+)$/m && hex(substr($1, -4)) & 0x4000 });
	return kill 'CONT', $pid;
}
foreach my $round (1 .. 4)
{
	told_to_end(sub { kill 'TERM', $_[0]; told($_[0]) }, \&hold);
	all_were_recorded("terminated, round $round");
}
unlike(slurp_file($node->logfile), qr/FATAL:  .*background worker|ERROR:/, 'it ends in good order');

done_testing();
