
# What waits ends at its expires_at, within a poll, whatever it waits for; and to
# see what has expired, a poll does not read what has not.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.poll_interval = '100ms'\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'paused', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value("SELECT feishu.pause_server('paused')");
my $EXPIRED = 'failed|LK504|expired before it could be sent';

sub in_ms { my ($ms) = @_; return \"clock_timestamp() + interval '$ms ms'"; }

sub expires
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	until_ended($session, "id = $id");
	is(look($session, $id, 'state, sqlstate, error'), $EXPIRED, $name);
	return;
}

# Waits until a poll has come that looks for what has expired by now.
sub until_polled
{
	my $probe = enqueue($session, server => 'paused', expires_at => in_ms(1));
	until_ended($session, "id = $probe");
	return;
}

# ---- whatever it waits for ----

my $head = enqueue($session, ordering_key => 'key', flow_id => 'head', run_at => \"now() + interval '1 hour'");
my $behind = enqueue($session, ordering_key => 'key', expires_at => in_ms(300));
my $last = enqueue($session, ordering_key => 'key', params => '{"n": 3}');
expires($behind, 'a flow expires behind another of its ordering key that is due later');
is(look($session, $_, 'state'), 'queued', '... which the others wait for') foreach $head, $last;

my $short = enqueue($session, ordering_key => 'due', run_at => in_ms(3_600_000), expires_at => in_ms(3_600_500));
my $next = enqueue($session, ordering_key => 'due', params => '{"n": 4}');
$session->value("UPDATE feishu_internal.outbox SET expires_at = now() + interval '300 ms' WHERE id = $short");
succeeds($session, "SELECT feishu.wait_flow($next)", 'a head that expires before it is due lets the next one go');
is(look($session, $short, 'state, sqlstate, error'), $EXPIRED, '... and fails');
is($session->value("SELECT feishu.retry_flow($short)"), 't', '... which can be retried');
succeeds($session, "SELECT feishu.wait_flow($short)", '... and then has time again');

$mock->rules([ { kind => 'execute', flow_id => 'held' }, { type => 'hold' } ]);
my $held = enqueue($session, ordering_key => 'flying', flow_id => 'held', expires_at => in_ms(500));
$behind = enqueue($session, ordering_key => 'flying', expires_at => in_ms(300));
$next = enqueue($session, ordering_key => 'flying');
$mock->wait_for(1, kind => 'execute', flow_id => 'held');
expires($behind, 'one expires behind one that is under way');
until_polled();
until_true(
	$session,
	'the one under way has expired',
	"SELECT expires_at < clock_timestamp() FROM feishu.flows WHERE id = $held");
until_polled();
is(look($session, $held, 'state'), 'sending', '... which is not touched when its own time has come');
$mock->well;
succeeds($session, "SELECT feishu.wait_flow($held)", '... and ends by its answer');
succeeds($session, "SELECT feishu.wait_flow($next)", '... then the next one goes');

$mock->fault(type => 'reset_before');
my $tried = enqueue($session, flow_id => 'tried', expires_at => in_ms(1500));
until_true($session, 'it was tried', "SELECT attempts > 0 FROM feishu.flows WHERE id = $tried");
$session->value(
		"UPDATE feishu_internal.outbox SET next_at = now() + interval '1 hour', expires_at = now() + interval '300 ms' "
	  . "WHERE id = $tried AND attempts > 0");
until_ended($session, "id = $tried");
like(look($session, $tried, 'sqlstate, error'),
	qr/^LK5\d\d\|.*expire/, 'one that is to be tried again says what went wrong, and that it has expired');
$mock->well;

my @paused = map { enqueue($session, server => 'paused', expires_at => in_ms(300), @$_) }
  ([], [ ordering_key => 'a' ], [ ordering_key => 'a' ], [ run_at => in_ms(100) ]);
expires($_, 'one of a paused server') foreach @paused;

# Nobody wakes who waits for it but the poll.
my $waiter = FeishuFlow::Session->new($node);
my $waited = enqueue($session, server => 'paused', expires_at => in_ms(500));
fails_with(
	$waiter, "SELECT feishu.wait_flow($waited, '20 s')", 'LK504', 'who waits is told',
	message => qr{could not execute flow "\w+/\w+": expired before},
	hint => qr/feishu\.retry_flow/);

# ---- what appears late ----

my $other = FeishuFlow::Session->new($node);
$other->value('BEGIN');
my $late = enqueue($other, server => 'paused', expires_at => in_ms(50));
until_polled();
until_polled();
$other->value('COMMIT');
expires($late, 'one that expired before its transaction committed');

my $locked = enqueue($session, server => 'paused', expires_at => in_ms(200));
$other->value('BEGIN');
is($other->value("SELECT feishu.cancel_flow($locked)"), 't', 'one is about to be cancelled when it expires');
until_true($session, 'it has expired', "SELECT expires_at < clock_timestamp() FROM feishu.flows WHERE id = $locked");
until_polled();
until_polled();
$other->value('ROLLBACK');
expires($locked, '... and was not');

# ---- a long backlog ----

sub read_by_dispatcher
{
	my $pid = until_dispatcher($session);
	until_true(
		$session,
		'it has lived for a while',
		"SELECT clock_timestamp() - backend_start > '1.2 s' FROM pg_stat_activity WHERE pid = $pid");
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	return $session->value(
			"SELECT seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'outbox') "
		  . "FROM pg_stat_user_tables WHERE relname = 'outbox'");
}

my $backlog = 20000;
enqueue_many($session, 1, $backlog / 2, server => 'paused');
enqueue_many($session, 1, $backlog / 2, server => 'paused', run_at => \"now() + interval '1 hour'");
my $read = read_by_dispatcher();
until_polled() foreach 1 .. 10;
$read = read_by_dispatcher() - $read;
note("$read rows read by 10 polls, with $backlog of a paused server");
cmp_ok($read, '<', 4 * $backlog, 'the backlog of a paused server is not read by each poll');

# In steps, and all of it; other flows go on meanwhile.
enqueue_many($session, 1, 2500, server => 'paused', flow_id => 'short', expires_at => in_ms(1500));
enqueue_many(
	$session, 1, 2500,
	server => 'paused',
	flow_id => 'short',
	ordering_key => \"'key' || g",
	expires_at => in_ms(1500));
until_true(
	$session,
	'they have begun to expire',
	"SELECT EXISTS (SELECT FROM feishu.flows WHERE flow_id = 'short' AND state = 'failed')");
my $beside = enqueue($session);
succeeds($session, "SELECT feishu.wait_flow($beside)", 'a long backlog expires, and others are sent');
until_ended($session, "flow_id = 'short'");
is(ends($session, "flow_id = 'short'"), 'failed 5000', '... all of it');
is($session->value("SELECT count(*) FROM feishu.flows WHERE server = 'paused' AND state = 'queued'"),
	$backlog, '... and no other');

done_testing();
