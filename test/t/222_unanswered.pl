
# An attempt that got no answer is remembered until the flow has its end: whatever came after it, the platform may have
# started the flow. So a refusal of its key, or what may be one, makes it unconfirmed, and not failed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
my $other_mock = FeishuFlow::Mock->start;
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'other', { base_url => $other_mock->url });
my $session = FeishuFlow::Session->new($node);
my $nobody = 'http://127.0.0.1:' . closed_port();
my ($id, $n) = (undef, 0);

my %fault = (
	unanswered => { type => 'reset_before' },
	refused => { type => 'code', code => 2320001 },
	missing => { type => 'inner', code => 'k_wf_ec_200036' },
	used => { type => 'inner', code => 'k_wf_ec_2001008' },
	busy => { type => 'status', status => 503 });

# Its token is refused, which the platform has answered, and no other is to be had.
my @without_token = (
	[ { kind => 'execute' }, { type => 'code', code => 99991663 }, times => 1 ],
	[ { kind => 'token' }, { type => 'status', status => 502 } ]);

# Pauses the server; a flow that is sent to another one proves that the dispatcher has heard of it.
sub pause
{
	$session->value("SELECT feishu.pause_server('feishu')");
	$session->value('SELECT feishu.wait_flow(' . enqueue($session, server => 'other') . ')');
	until_true($session, 'none is under way', 'SELECT coalesce(sum(sending), 0) = 0 FROM feishu.dispatch_status');
	return;
}
sub resume { $session->value("SELECT feishu.resume_server('feishu')"); return; }

# Lets the flow have an attempt at least that ends in this way, and stops it then.
sub attempt
{
	my ($how) = @_;
	my $attempts = look($session, $id, 'attempts');
	alter_server($session, 'feishu', 'SET', base_url => $how eq 'unreachable' ? $nobody : $mock->url);
	$mock->well;
	$how eq 'without token' ? $mock->rules(@without_token) : $mock->fault(%{ $fault{$how} }) if $how ne 'unreachable';
	resume();
	until_true($session, "an attempt is $how", "SELECT attempts > $attempts FROM feishu.flows WHERE id = $id");
	pause();
	return;
}

# A flow that waits, with a key of the user's or one that was made.
sub queue_flow
{
	my ($own, %arguments) = @_;
	pause();
	$n++;
	$id = enqueue(
		$session,
		params => "{\"n\": $n}",
		max_attempts => \1000,
		$own ? (idempotent_key => "key-$n") : (), %arguments);
	return;
}

# Lets it end in this way.
sub let_end
{
	my ($how, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	alter_server($session, 'feishu', 'SET', base_url => $mock->url);
	$mock->well;
	$mock->fault(%{ $fault{$how} }) if $how ne 'well';
	resume();
	until_ended($session, "id = $id");
	is(look($session, $id, 'state, sqlstate'), $expected, $name);
	$mock->well;
	return;
}

# ---- what was before the end ----

foreach my $case (
	[ 'used', 1, 'failed|LK409' ],
	[ 'used', 0, 'unconfirmed|LK409' ],
	[ 'refused', 1, 'failed|LK400' ],
	[ 'missing', 1, 'failed|LK404' ],
	[ 'used', 1, 'failed|LK409', 'unreachable' ],
	[ 'refused', 1, 'failed|LK400', 'unreachable' ],
	[ 'used', 1, 'unconfirmed|LK409', 'unanswered' ],
	[ 'refused', 1, 'unconfirmed|LK400', 'unanswered' ],
	[ 'refused', 0, 'unconfirmed|LK400', 'unanswered' ],
	[ 'missing', 1, 'failed|LK404', 'unanswered' ],
	[ 'used', 1, 'unconfirmed|LK409', 'unanswered', 'unreachable' ],
	[ 'refused', 1, 'unconfirmed|LK400', 'unanswered', 'unreachable' ],
	[ 'refused', 1, 'unconfirmed|LK400', 'unreachable', 'unanswered', 'unreachable' ],
	[ 'well', 1, 'succeeded|', 'unanswered', 'unreachable' ],
	[ 'refused', 1, 'failed|LK400', 'without token' ],
	[ 'well', 1, 'succeeded|', 'without token' ],
	[ 'used', 1, 'unconfirmed|LK409', 'unanswered', 'without token' ])
{
	my ($how, $own, $expected, @before) = @$case;
	queue_flow($own);
	attempt($_) foreach @before;
	let_end($how, $expected,
		join(', ', @before, $how) . ($own ? "; the key is the user's" : '; the key was made') . ": $expected");
}

# ---- retry_flow ----

# With the same key it is still the same start, of which nothing else is left.
my $ANEW = "state, attempts, date_trunc('hour', expires_at - run_at), run_at > created_at, "
  . join(', ', map { "$_ IS NULL" } qw(finished_at code flow_code execution_id flow_status log_id sqlstate error));
foreach my $case (
	[ 'used', 'false', 1, 'unconfirmed|LK409' ],
	[ 'refused', 'false', 1, 'unconfirmed|LK400' ],
	[ 'refused', 'true', 1, 'failed|LK400' ],
	[ 'refused', 'true', 0, 'failed|LK400' ],
	[ 'used', 'true', 1, 'unconfirmed|LK409' ])
{
	my ($how, $new_key, $own, $expected) = @$case;
	queue_flow($own);
	attempt('unanswered');
	let_end('missing', 'failed|LK404', 'an attempt got no answer, a later one is refused for something else');
	pause();
	is($session->value("SELECT feishu.retry_flow($id, $new_key)"), 't', '... it is retried, new key: ' . $new_key);
	is(look($session, $id, $ANEW), 'queued|0|1 day|' . join('|', ('t') x 9), '... as if it had never been tried');
	let_end($how, $expected, "... and is then $how: $expected");
}

# ---- a dispatcher that has ended ----

# Its attempt got no answer, and counts; there are no more than max_attempts.
foreach my $case (
	[ 1, 0, 'unconfirmed', 1, 0 ],
	[ 2, 1, 'unconfirmed', 2, 1 ],
	[ 2, 0, 'succeeded', 2, 1 ],
	[ 3, 1, 'unconfirmed', 2, 1 ])
{
	my ($most, $refused, $state, $attempts, $requests) = @$case;
	queue_flow(1, max_attempts => \$most);
	$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = off');
	$node->reload;
	wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
	$session->value("UPDATE feishu_internal.claim SET ids = ARRAY[$id]");
	$mock->mark;
	$mock->fault(%{ $fault{refused} }) if $refused;
	resume();
	$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = on');
	$node->reload;
	until_ended($session, "id = $id");
	is( look($session, $id, 'state, attempts') . ' ' . $mock->executes,
		"$state|$attempts $requests",
		"a flow was under way when a dispatcher ended, of $most attempts" . ($refused ? ', and is refused later' : ''));
	$mock->well;
}

done_testing();
