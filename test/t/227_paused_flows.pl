
# A flow can be paused by itself: none of it is sent that is queued or claimed later, flows of other ids pass it by,
# whatever waits of it, and once it is resumed all are sent, in their order.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $BACKLOG = 20000;
my $ROUNDS = 300;
my $MOVES = 500;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "max_prepared_transactions = 2\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'narrow', { base_url => $mock->url, max_concurrency => 1 });
create_server($node, 'busy', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE guest LOGIN; GRANT USAGE ON FOREIGN SERVER feishu TO guest');
my $guest = FeishuFlow::Session->new($node, user => 'guest');

sub pause { call('pause_flow', @_); return; }
sub resume { call('resume_flow', @_); return; }

sub call
{
	my ($function, $flow_id, $server) = @_;
	$server //= 'feishu';
	$session->value("SELECT feishu.$function('$server', 'app', '$flow_id')");
	return;
}

sub queue
{
	my ($flow_id, %arguments) = @_;
	return enqueue($session, server => 'feishu', flow_id => $flow_id, %arguments);
}

sub sent { my ($flow_id) = @_; return $mock->count(kind => 'execute', flow_id => $flow_id); }
sub order { return join(' ', map { $_->{flow_id} } sort { $a->{time} <=> $b->{time} } arrivals($mock)); }

# Rows of it that are out of the way.
sub parked
{
	my ($flow_id) = @_;
	return "SELECT count(*) FROM feishu_internal.outbox WHERE next_at = 'infinity' AND flow_id = '$flow_id'";
}

sub until_parked
{
	my ($flow_id, $count) = @_;
	until_true($session, "$count of $flow_id are parked", '(' . parked($flow_id) . ") = $count");
	return;
}

# What is queued now is sent: so the dispatcher has looked at all that was queued before.
sub others_pass
{
	my ($name, %arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = queue('other', %arguments);
	succeeds($session, "SELECT feishu.wait_flow($id, '60 s')", $name);
	return;
}

sub new_dispatcher
{
	my $pid = until_dispatcher($session);
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	return;
}

# ---- what it does ----

until_dispatcher($session);
pause('halted');
my $halted = queue('halted');
others_pass('a flow of another id passes a paused one by');
is(look($session, $halted, 'state, run_at = created_at, attempts'), 'queued|t|0', '... which is queued as ever');
is(sent('halted'), 0, '... and was not sent');
queue('halted', server => 'busy');
until_ended($session, "server = 'busy'");
is(sent('halted'), 1, '... but is to other servers');
my $STATUS = q{SELECT paused, pause_reason, paused_flows FROM feishu.dispatch_status WHERE server = 'feishu'};
is($session->value($STATUS), 'f||{app/halted}', 'dispatch_status has the flows that are paused');
is($guest->value($STATUS), 'f||{app/halted}', '... for those who may use the server');
fails_with($session, "SELECT feishu.wait_flow($halted, '0')", 'LK504', 'wait_flow says that it is paused',
	hint => qr/is held back: flow paused by \w/);
resume('halted');
succeeds($session, "SELECT feishu.wait_flow($halted, '60 s')", 'a flow that is resumed is sent');
pause('halted');
resume('halted');
resume('halted');
others_pass('what is not paused may be resumed');
is($session->value('SELECT count(*) FROM feishu_internal.paused_flow'), 0, '... and then nothing is paused');

# ---- who may ----

foreach my $function (qw(pause_flow resume_flow))
{
	my $call = "SELECT feishu.$function('%s', '%s', E'%s')";
	fails_with($guest, sprintf($call, qw(feishu app flow)), '42501', "$function is for the server's owner");
	fails_with($session, sprintf($call, qw(nowhere app flow)), '42704', '... and a server that there is');
	fails_with($session, sprintf($call, 'feishu', '', 'flow'), '22023', '... with a namespace that a flow can have');
	fails_with($session, sprintf($call, 'feishu', 'app', 'a\nb'), '22023', '... and such an id');
}

# each claim reads what is paused
$session->value(
	q{CREATE ROLE pauser LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO pauser;
	CREATE SERVER theirs FOREIGN DATA WRAPPER feishu_flow; ALTER SERVER theirs OWNER TO pauser}
);
my $pauser = FeishuFlow::Session->new($node, user => 'pauser');
my $PAUSE = q{SELECT count(feishu.pause_flow('theirs', 'app', 'flow' || n)) FROM generate_series(%d, %d) n};
succeeds($pauser, sprintf($PAUSE, 1, 200), 'a role may pause many flows');
fails_with(
	$pauser,
	sprintf($PAUSE, 201, 201),
	'54000',
	'... but not any number',
	message => qr/^role "pauser" has paused 200 flows, and cannot pause more$/);
succeeds($pauser, sprintf($PAUSE, 200, 200), '... one again is none more');
succeeds($session, sprintf($PAUSE, 201, 300), '... and a superuser may pause more');
succeeds($pauser, q{SELECT feishu.resume_flow('theirs', 'app', 'flow1')}, 'when it has resumed one');
succeeds($pauser, sprintf($PAUSE, 1, 1), '... it may pause another');
$session->value(q{DELETE FROM feishu_internal.paused_flow WHERE server = 'theirs'});

# ---- a backlog ----

begin_anew($mock, $session);
pause('backlog');
my $last = enqueue_many($session, 1, $BACKLOG, server => 'feishu', flow_id => 'backlog');
others_pass("$BACKLOG waiting flows that are paused do not hold up others");
until_parked('backlog', $BACKLOG);

# How much the dispatcher has read of the indexes of what is to be sent.  It reports that at the end of a transaction,
# once a second.
sub rows_read
{
	sleep(2);
	queue('other');
	until_ended($session, q{flow_id = 'other'});
	return $session->value('SELECT sum(idx_tup_read) FROM pg_stat_user_indexes '
		  . q{WHERE indexrelname ~ 'outbox_(ready|delayed|parked)_idx'});
}

my $read = rows_read();
my ($first) = $session->value(q{SELECT min(id) FROM feishu.flows WHERE flow_id = 'backlog'});
foreach my $n (1 .. 20)
{
	others_pass("flow $n: they are out of the way");
	# which has the dispatcher look at all from here on
	is($session->value("SELECT feishu.cancel_flow($first + $n)"), 't', '... and may be cancelled');
}
# but what they leave in the index may be looked at once
cmp_ok(rows_read() - $read, '<', 3 * $BACKLOG, 'nobody walks over what is parked again and again');
is(sent('backlog'), 0, 'none of the paused flows was sent');
resume('backlog');
until_ended($session);
is(sent('backlog'), $BACKLOG - 20, 'all that was not cancelled is sent once it is resumed');
is($session->value(parked('backlog')), 0, '... and nothing stays behind');

# what waited for the server is paused before any of it is met
begin_anew($mock, $session);
$session->value(q{SELECT feishu.pause_server('narrow')});
enqueue_many($session, 1, 3000, server => 'narrow', flow_id => 'backlog');
my $behind = queue('other', server => 'narrow');
pause('backlog', 'narrow');
$session->value(q{SELECT feishu.resume_server('narrow')});
succeeds($session, "SELECT feishu.wait_flow($behind, '60 s')", 'what waits behind a backlog goes when that is paused');
is(sent('backlog'), 0, '... of which none is');
until_parked('backlog', 3000);
resume('backlog', 'narrow');
until_ended($session);
is(join(' ', grep { $_ ne '?' } numbers($mock)), join(' ', 1 .. 3000), 'what is resumed is sent in its order');

# ---- with the rest ----

begin_anew($mock, $session);
pause('late');
queue('late', run_at => \q{now() + '500 ms'});
enqueue_many($session, 1, 700, server => 'feishu', flow_id => 'late', run_at => \q{now() + '500 ms'});
others_pass('a flow that falls due with paused ones is sent', run_at => \q{now() + '500 ms'});
until_parked('late', 701);
is(sent('late'), 0, '... and they are not');
resume('late');
until_ended($session);
is(sent('late'), 701, '... before they are resumed');

begin_anew($mock, $session);
pause('high');
enqueue_many($session, 1, 50, server => 'feishu', flow_id => 'high', priority => \'7');
others_pass('flows of a lower priority pass it by, too');
is(sent('high'), 0, '... whatever its own is');
resume('high');
until_ended($session);

begin_anew($mock, $session);
pause('keyed');
queue('keyed', ordering_key => 'k');
my $next = queue('next', ordering_key => 'k');
others_pass('a flow with another ordering key passes a paused one by', ordering_key => 'l');
is(look($session, $next, 'state'), 'queued', '... and one with its key waits behind it');
until_parked('keyed', 1);
resume('keyed');
until_ended($session);
like(order(), qr/keyed next$/, '... until it was resumed, and sent');

begin_anew($mock, $session);
pause('keyed');
my $expiring = queue('keyed', ordering_key => 'k', expires_at => \q{clock_timestamp() + '2 s'});
$next = queue('next', ordering_key => 'k');
until_parked('keyed', 1);
$session->value(q{ALTER SYSTEM SET feishu_flow.poll_interval = '200ms'; SELECT pg_reload_conf()});
succeeds($session, "SELECT feishu.wait_flow($next, '60 s')", 'what waits behind a paused flow goes when that expires');
is(look($session, $expiring, 'state, error'), 'failed|expired before it could be sent', '... as any flow does');
$session->value(q{ALTER SYSTEM RESET feishu_flow.poll_interval; SELECT pg_reload_conf()});
resume('keyed');

# one that is replaced
begin_anew($mock, $session);
pause('debounced');
my $replaced = queue('debounced', replace_key => 'one', params => '{"n": 1}');
my $moved = queue('debounced', replace_key => 'two');
until_parked('debounced', 2);
my $again = queue('debounced', replace_key => 'one', params => '{"n": 2}');
is($again, $replaced, 'a flow that is paused is replaced as ever');
is(queue('moved', replace_key => 'two'), $moved, '... also by one that is not');
succeeds($session, "SELECT feishu.wait_flow($moved, '60 s')", '... which is sent');
until_parked('debounced', 1);
is(sent('debounced'), 0, '... and the other waits');
resume('debounced');
until_ended($session);
is(join(' ', numbers($mock, flow_id => 'debounced')), '2', '... and is sent with its last values');

# one that is under way ends; what is to be tried again waits
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute', flow_id => 'flying' }, { type => 'hold' } ]);
my $flying = queue('flying');
$mock->wait_for(1, kind => 'execute', flow_id => 'flying');
pause('flying');
others_pass('a flow is paused while one is under way');
$mock->well;
succeeds($session, "SELECT feishu.wait_flow($flying, '60 s')", '... which ends as ever');
resume('flying');
$mock->rules([ { kind => 'execute', flow_id => 'flying' }, { type => 'status', status => 502 } ]);
$flying = queue('flying');
until_true($session, 'it was tried', "SELECT attempts > 0 FROM feishu.flows WHERE id = $flying");
pause('flying');
until_parked('flying', 1);
my $tried = sent('flying');
$mock->well;
others_pass('a flow that is paused is not tried again');
is(look($session, $flying, 'state'), 'retrying', '... but waits for that');
is(sent('flying'), $tried, '...');
resume('flying');
succeeds($session, "SELECT feishu.wait_flow($flying, '60 s')", '... until it is resumed');

# two are paused, and one is resumed
begin_anew($mock, $session);
pause($_) foreach qw(one two);
enqueue_many($session, 1, 300, server => 'feishu', flow_id => $_) foreach qw(one two one);
until_parked('one', 600);
until_parked('two', 300);
resume('one');
until_ended($session, "flow_id = 'one'");
is(sent('one') . ' ' . sent('two'), '600 0', 'to resume a flow resumes no other');
resume('two');
until_ended($session);
is(sent('two'), 300, '... which goes with its own');

# ---- whoever does not see the pause, or is not seen ----

begin_anew($mock, $session);
$other->value('BEGIN');
enqueue($other, server => 'feishu', flow_id => 'slow');
$session->value('BEGIN');
queue('slow');
$session->value(q{PREPARE TRANSACTION 'slow'});
pause('slow');
others_pass('a flow is paused while transactions have queued some');
$other->value('COMMIT');
$session->value(q{COMMIT PREPARED 'slow'});
until_parked('slow', 2);
is(sent('slow'), 0, '... which are not sent when they commit');
$other->value('BEGIN');
my $first_slow = $other->value(q{SELECT min(id) FROM feishu.flows WHERE flow_id = 'slow'});
is($other->value("SELECT feishu.cancel_flow($first_slow)"), 't', 'one is about to be cancelled');
resume('slow');
until_ended($session, "flow_id = 'slow' AND id <> $first_slow");
$other->value('ROLLBACK');
until_ended($session);
is(sent('slow'), 2, '... when they are resumed; and the other is sent when it is not cancelled');

pause('restart');
queue('restart');
new_dispatcher();
others_pass('a pause is there for another dispatcher, too');
until_parked('restart', 1);
is(sent('restart'), 0, '... which does not send what is paused');
$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = off');
$node->reload;
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
resume('restart');
$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = on');
$node->reload;
until_ended($session);
is(sent('restart'), 1, '... and sends what was resumed while there was none');

# While it runs, the dispatcher has a turn at any time.
begin_anew($mock, $session);
my $later = enqueue_call(server => 'busy', run_at => \"now() + interval '1 hour'");
$other->send("DO \$\$ BEGIN LOOP PERFORM $later; COMMIT; END LOOP; END \$\$");
$session->value('DO $$ DECLARE id bigint; BEGIN FOR n IN 1..' . $ROUNDS . ' LOOP '
	  . "PERFORM feishu.pause_flow('feishu', 'app', 'race'); "
	  . 'IF n % 2 = 0 THEN COMMIT; END IF; '
	  . 'id := ' . enqueue_call(server => 'feishu', flow_id => 'race') . '; COMMIT; '
	  . "IF NOT feishu.cancel_flow(id) THEN RAISE '% was sent', n; END IF; COMMIT; "
	  . "PERFORM feishu.resume_flow('feishu', 'app', 'race'); COMMIT; END LOOP; END \$\$");
$session->value('SELECT pg_cancel_backend(' . $other->pid . ')');
$other->result;
until_ended($session, "server = 'feishu'");
is(sent('race'), 0, 'no flow is sent that is queued with its pause or after it');
is(ends($session, "flow_id = 'race'"), "cancelled $ROUNDS", '... each is cancelled');

# The same, of a server that has another address while the flow is paused.
my $wrong = FeishuFlow::Mock->start;
create_server($node, 'moved', { base_url => $mock->url });
my $moving = enqueue_call(server => 'moved', flow_id => 'move');
$other->send("DO \$\$ BEGIN LOOP PERFORM $later; COMMIT; END LOOP; END \$\$");
$session->value("DO \$\$ BEGIN FOR n IN 1..$MOVES LOOP "
	  . "PERFORM feishu.pause_flow('moved', 'app', 'move'); "
	  . "ALTER SERVER moved OPTIONS (SET base_url '@{[ $wrong->url ]}'); COMMIT; PERFORM $moving; COMMIT; "
	  . "PERFORM feishu.resume_flow('moved', 'app', 'move'); "
	  . "ALTER SERVER moved OPTIONS (SET base_url '@{[ $mock->url ]}'); COMMIT; END LOOP; END \$\$");
$session->value('SELECT pg_cancel_backend(' . $other->pid . ')');
$other->result;
until_ended($session, q{server = 'moved'});
is($wrong->executes, 0, 'no flow is sent to where its server was when it was paused');
is(ends($session, q{flow_id = 'move'}), "succeeded $MOVES", '... each is sent once it is resumed');

done_testing();
