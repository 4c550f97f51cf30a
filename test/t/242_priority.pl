
# Of the flows of a role for a server, those of a higher priority are sent first: a backfill below does not hold them
# up.  A lower priority gets a share all the same.  ordering_key goes over priorities.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.max_in_flight = 32\nfeishu_flow.timeout = '10min'\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'narrow', { base_url => $mock->url, max_concurrency => 1 });
my $session = FeishuFlow::Session->new($node);

sub pause  { $session->value("SELECT feishu.pause_server('$_[0]')");  return; }
sub resume { $session->value("SELECT feishu.resume_server('$_[0]')"); return; }

# The priorities of the requests, in the order in which they arrived: they are the flow's id, too.
sub order
{
	return map { $_->{flow_id} } sort { $a->{time} <=> $b->{time} } arrivals($mock);
}

sub queue_at
{
	my ($priority, $n, %arguments) = @_;
	return enqueue_many($session, 1, $n, flow_id => "p$priority", priority => \$priority, %arguments);
}

# ---- what it may be ----

pause('feishu');
my $id = enqueue($session, server => 'feishu', priority => \'-1');
is(look($session, $id, 'priority'), '-1', 'feishu.flows has the priority of a flow');
is(look($session, enqueue($session, server => 'feishu'), 'priority'), '0', '... which is 0 when none was given');
is(look($session, enqueue($session, server => 'feishu', priority => \'NULL'), 'priority'), '0', '... or NULL');
fails_with($session, 'SELECT ' . enqueue_call(server => 'feishu', priority => \$_), '22023', "... and not $_")
  foreach 101, -101, 2147483647;
$session->value(
	q{CREATE TABLE orders (p text);
	CREATE TRIGGER t AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION
	feishu.flow_trigger('app', 'flow', '{"_id": 1111}', '{}', '{"server": "feishu", "priority": "$.new.p"}')});
$session->value(q{INSERT INTO orders VALUES ('7'), (NULL)});
is( $session->value(
		'SELECT string_agg(priority::text, $$ $$ ORDER BY id) FROM feishu.flows
	WHERE id > (SELECT max(id) - 2 FROM feishu.flows)'
	),
	'7 0',
	'it is an option of the trigger');
fails_with($session, qq{INSERT INTO orders VALUES ('$_')}, '22023', "... but not $_") foreach 'high', '1000';
resume('feishu');
until_ended($session);

# ---- the order ----

begin_anew($mock, $session, 'narrow');
pause('narrow');
queue_at(-1, 30, server => 'narrow');
queue_at(0, 4, server => 'narrow');
queue_at(9, 3, server => 'narrow');
resume('narrow');
until_ended($session);
my @order = order();
is("@order[0 .. 6]", 'p9 p9 p9 p0 p0 p0 p0', 'flows of a higher priority are sent first');

begin_anew($mock, $session, 'narrow');
pause('narrow');
queue_at($_, 40, server => 'narrow') foreach -2, -1, 0;
resume('narrow');
until_ended($session);
@order = order();
my ($last) = grep { $order[$_] eq 'p0' } reverse 0 .. $#order;
my @lower = grep { $_ ne 'p0' } @order[ 0 .. $last ];
like(
	"@lower",
	qr/^(p-1 p-2 p-1 p-2 p-1|p-2 p-1 p-2 p-1 p-2)$/,
	'... and one place in eight goes to lower ones, in turns');

# ---- a backlog ----

begin_anew($mock, $session, 'feishu');
$mock->rules([ { kind => 'execute', flow_id => 'p-1' }, { type => 'hold' } ]);
my $first = $session->value('SELECT max(id) + 1 FROM feishu.flows');
queue_at(-1, 500, server => 'feishu');
$mock->wait_for(24, kind => 'execute', flow_id => 'p-1');
foreach (1 .. 10)
{
	$id = enqueue($session, server => 'feishu', flow_id => 'p0');
	succeeds(
		$session,
		"SELECT feishu.wait_flow($id, '60 s')",
		"flow $_: a backlog below that has all places is no obstacle");
}
is($mock->count(kind => 'execute', flow_id => 'p-1'), 24, '... though none of it has ended');
$mock->rules([ { kind => 'execute', flow_id => 'p-1' }, { type => 'latency', ms => 20 } ]);
$mock->release;
my $before = $mock->count(kind => 'execute', flow_id => 'p-1');
queue_at(0, 20, server => 'feishu');
until_ended($session, "priority = 0 AND server = 'feishu'");
my @requests = sort { $a->{time} <=> $b->{time} } arrivals($mock);
my ($late) = grep { $requests[$_]{flow_id} eq 'p0' } reverse 0 .. $#requests;
my $passed = grep { $_->{flow_id} eq 'p-1' } @requests[ 0 .. $late ];
cmp_ok($passed, '<', 250, '... and many flows above it overtake it');
until_ended($session);
is(ends($session, "id >= $first"), 'succeeded 530', '... which is sent, too');

# Whether there is room below, or ends are to be written; the dispatcher is stopped, so that it hears of all at once.
foreach ([ 6, 0 ], [ 20, 20 ])
{
	my ($held, $ends) = @$_;
	begin_anew($mock, $session, 'feishu');
	$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'latency', ms => 3000 * $FeishuFlow::SLOW } ],
		[ { kind => 'execute' }, { type => 'hold' } ]);
	queue_at(-1, 4, server => 'feishu', flow_id => 'slow');
	queue_at(-1, $held, server => 'feishu');
	$mock->wait_for(4 + $held, kind => 'execute');
	my $stopped = until_dispatcher($session);
	kill 'STOP', $stopped;
	is($mock->release, $ends, 'requests are answered') if $ends;
	$session->value('BEGIN');
	$id = enqueue($session, server => 'feishu', flow_id => 'p0');
	queue_at(-1, 100, server => 'feishu');
	$session->value('COMMIT');
	kill 'CONT', $stopped;
	$mock->wait_for(1, kind => 'execute', flow_id => 'p0');
	# the transaction that has claimed a row has it locked
	is( $session->value(
			"SELECT count(*) FROM feishu_internal.outbox
			WHERE state = 'q' AND xmax = (SELECT xmax FROM feishu_internal.outbox WHERE id = $id)"),
		1,
		'what is above a backlog is claimed by a transaction of its own');
	$mock->well;
	until_ended($session);
}

# ---- what is found otherwise ----

# delayed ones
begin_anew($mock, $session, 'narrow');
$session->value('BEGIN');
queue_at($_, 3, server => 'narrow', run_at => \q{now() + '1 s'}) foreach -50, 50, 0;
$session->value('COMMIT');
until_ended($session);
is(join(' ', order()), 'p50 p50 p50 p0 p0 p0 p-50 p-50 p-50', 'flows that fall due together go by their priority');

# those that are tried again
create_server($node, 'retried', { base_url => $mock->url });
begin_anew($mock, $session, 'retried');
$session->value(q{ALTER SYSTEM SET feishu_flow.retry_base_delay = '2s'; SELECT pg_reload_conf()});
$mock->fault(type => 'code', code => 1500, http_status => 200);
$session->value('BEGIN');
queue_at($_, 2, server => 'retried') foreach -50, 50, 0;
$session->value('COMMIT');
my $waiting = q{FROM feishu.flows WHERE server = 'retried' AND finished_at IS NULL};
until_true($session, 'all were tried', "SELECT bool_and(attempts > 0) $waiting");
pause('retried');
until_true($session, 'their time has come', "SELECT bool_and(state = 'retrying' AND run_at <= now()) $waiting");
$mock->well;
$mock->mark;
alter_server($session, 'retried', 'ADD', max_concurrency => 1);
resume('retried');
until_ended($session);
is(join(' ', order()), 'p50 p50 p0 p0 p-50 p-50', '... those that are tried again, too');

# Their ends are still to be written when something above them is claimed, and by then they are due.
begin_anew($mock, $session, 'feishu');
$session->value(q{ALTER SYSTEM SET feishu_flow.retry_base_delay = '1ms'; SELECT pg_reload_conf()});
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'latency', ms => 3000 * $FeishuFlow::SLOW } ],
	[ { kind => 'execute', flow_id => 'p-1' }, { type => 'code', code => 1500, http_status => 200 }, times => 400 ]);
queue_at(-1, 17, server => 'feishu', flow_id => 'slow');
queue_at(-1, 200, server => 'feishu');
$session->value('DO $$ BEGIN FOR n IN 1..300 LOOP PERFORM '
	  . enqueue_call(server => 'feishu', flow_id => 'p0')
	  . '; COMMIT; PERFORM pg_sleep(0.002); END LOOP; END $$');
$session->value(q{ALTER SYSTEM RESET feishu_flow.retry_base_delay; SELECT pg_reload_conf()});
until_ended($session);
is($mock->count(kind => 'execute', flow_id => 'p-1'), 600, '... also when something comes above them meanwhile');

# by another dispatcher
begin_anew($mock, $session, 'narrow');
pause('narrow');
queue_at($_, 2, server => 'narrow') foreach -100, 100, 5, -5;
my $pid = until_dispatcher($session);
$session->value("SELECT pg_terminate_backend($pid)");
until_dispatcher($session, $pid);
resume('narrow');
until_ended($session);
is(join(' ', order()), 'p100 p100 p5 p5 p-5 p-5 p-100 p-100', 'a dispatcher finds all priorities when it starts');

# a new priority, between others and beside them, of which nobody told; and more of a known one
begin_anew($mock, $session);
my $like = enqueue($session, server => 'feishu');
enqueue($session, server => 'narrow');
until_ended($session);
my @unheard = map { enqueue_unheard($session, $like, server => $_) } qw(feishu feishu narrow narrow);
$session->value(
	"UPDATE feishu_internal.outbox SET priority = (ARRAY[33, 0, -33, -100])[id - $unheard[0] + 1]
	WHERE id >= $unheard[0]"
);
$session->value(q{ALTER SYSTEM SET feishu_flow.poll_interval = '1s'; SELECT pg_reload_conf()});
until_ended($session);
is(ends($session, "id >= $unheard[0]"), 'succeeded 4', 'and those of which nobody told it');

# a transaction that commits late
begin_anew($mock, $session, 'feishu');
my $other = FeishuFlow::Session->new($node);
$other->value('BEGIN');
enqueue($other, server => 'feishu', flow_id => 'late', priority => \'-1');
queue_at($_, 50, server => 'feishu') foreach -1, 1;
until_ended($session);
$other->value('COMMIT');
until_ended($session);
is($mock->count(kind => 'execute', flow_id => 'late'), 1, 'a transaction that commits late is heard of');

# ---- ordering keys ----

begin_anew($mock, $session, 'feishu');
pause('feishu');
enqueue($session, server => 'feishu', flow_id => "s$_", priority => \$_, ordering_key => 'one')
  foreach -1, 5, 0, -100, 100, -1;
queue_at(3, 50, server => 'feishu');
resume('feishu');
until_ended($session);
is( join(' ', grep { /^s/ } order()),
	's-1 s5 s0 s-100 s100 s-1',
	'an ordering key goes over priorities, in the order of ids');
my @keyed = sort { $a->{time} <=> $b->{time} } grep { $_->{flow_id} =~ /^s/ } arrivals($mock);
is(scalar(grep { $keyed[$_]{time} < $keyed[ $_ - 1 ]{done} } 1 .. $#keyed), 0, '... one after the other');

# ---- a flow that is replaced ----

begin_anew($mock, $session, 'narrow');
pause('narrow');
my $replaced = enqueue($session, server => 'narrow', flow_id => 'p-1', priority => \'-1', replace_key => 'r');
my $lowered = enqueue($session, server => 'narrow', flow_id => 'p50', priority => \'50', replace_key => 'l');
queue_at(0, 3, server => 'narrow');
is(enqueue($session, server => 'narrow', flow_id => 'p9', priority => \'9', replace_key => 'r'),
	$replaced, 'a flow that is replaced');
is(look($session, $replaced, 'priority'), '9', '... has the priority of the last one');
is(enqueue($session, server => 'narrow', flow_id => 'p-9', priority => \'-9', replace_key => 'l'),
	$lowered, '... lower ones, too');
resume('narrow');
until_ended($session);
is(join(' ', order()), 'p9 p0 p0 p0 p-9', '... and is sent by that');

begin_anew($mock, $session, 'feishu');
$mock->rules([ { kind => 'execute', flow_id => 'p0' }, { type => 'hold' } ]);
queue_at(0, 100, server => 'feishu');
$mock->wait_for(24, kind => 'execute', flow_id => 'p0');
$replaced = enqueue($session, server => 'feishu', flow_id => 'p-1', priority => \'-1', replace_key => 'r');
is(enqueue($session, server => 'feishu', flow_id => 'p9', priority => \'9', replace_key => 'r'),
	$replaced, 'a flow that waits behind a backlog');
succeeds(
	$session,
	"SELECT feishu.wait_flow($replaced, '60 s')",
	'... is sent at once when it is replaced by one above it');
is($mock->count(kind => 'execute', flow_id => 'p0'), 24, '... though none of that has ended');
$mock->rules;
$mock->release;
until_ended($session);
is($mock->count(kind => 'execute', flow_id => 'p9') . ' ' . $mock->count(kind => 'execute', flow_id => 'p-1'),
	'1 0', '... once');

# ---- a role that is gone ----

$session->value('CREATE ROLE leaver');
pause('feishu');
$session->value('SET ROLE leaver');
queue_at($_, 2, server => 'feishu') foreach -1, 0, 1;
$session->value('RESET ROLE; DROP ROLE leaver');
resume('feishu');
until_ended($session);
is(ends($session, "state = 'failed'"), 'failed 6', 'flows of a role that is gone fail, whatever their priority');

done_testing();
