
# Flows of one ordering_key are sent one after the other, in the order of their
# ids, whatever becomes of them; flows of different keys do not wait for each
# other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'second', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my @ids;

# Was each request of a flow answered before the next one arrived?  Requests of
# one ordering key have the same flow_id here.
sub one_by_one
{
	my ($name, $flow_id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @requests = arrivals($mock, flow_id => $flow_id);
	my @overlaps =
	  grep { !defined $requests[ $_ - 1 ]{done} || $requests[$_]{time} < $requests[ $_ - 1 ]{done} } 1 .. $#requests;
	is("@overlaps", '', $name);
	return;
}

sub pause  { $session->value("SELECT feishu.pause_server('feishu')");  return; }
sub resume { $session->value("SELECT feishu.resume_server('feishu')"); return; }

# Queues flows 1 to $n of one key, in transactions of their own; returns ids.
sub queue_of
{
	my ($key, $n, %arguments) = @_;
	return
	  map { enqueue($session, flow_id => $key, ordering_key => $key, params => "{\"n\": $_}", %arguments) } 1 .. $n;
}

# ---- many keys ----

$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => [ 0, 10 ] } ]);
$session->value(
	'SELECT count('
	  . enqueue_call(
		flow_id => \"'key' || g % 5",
		ordering_key => \"'key' || g % 5",
		params => \"jsonb_build_object('n', g)")
	  . ') FROM generate_series(1, 250) g');
enqueue_many($session, 251, 350);
until_ended($session);
foreach my $key (0 .. 4)
{
	my @numbers = numbers($mock, flow_id => "key$key");
	is("@numbers", join(' ', map { $key + 5 * $_ } $key ? 0 .. 49 : 1 .. 50), "key $key: in the order of ids");
	one_by_one('... one after the other', "key$key");
}
started_once($mock, 350, 'all are sent once');
cmp_ok($mock->stats->{max_concurrent_executes}, '>', 5, '... flows of no key at the same time');

# ---- sessions at once ----

begin_anew($mock, $session);
$mock->well;
$session->value('CREATE SEQUENCE number');
my $script =
	"\\set key random(1, 3)\nBEGIN;\nSELECT pg_advisory_xact_lock(:key);\n"
  . 'SELECT '
  . enqueue_call(
	flow_id => \"'at' || :key",
	ordering_key => \"'at' || :key",
	params => \q{jsonb_build_object('n', nextval('number'))}) . ";\nCOMMIT;\n";
my $bench = pgbench_start($node, $script, '-c', '6', '-j', '2', '-t', '50');
ok($bench->finish, '6 sessions queue flows of 3 keys');
until_ended($session);

foreach my $key (1 .. 3)
{
	my @numbers = numbers($mock, flow_id => "at$key");
	is("@numbers", join(' ', sort { $a <=> $b } @numbers), "key $key: in order");
	one_by_one('... one after the other', "at$key");
}
started_once($mock, 300, '... all are sent once');

# ---- failures ----

begin_anew($mock, $session);
$mock->rules(
	[
		{ kind => 'execute', flow_id => 'retried', params_regex => '"n": *1\D' },
		{ type => 'status', status => 500 },
		times => 3
	],
	[ { kind => 'execute', flow_id => 'retried', params_regex => '"n": *3\D' }, { type => 'code', code => 2320001 } ],
	[ { kind => 'execute', flow_id => 'retried', params_regex => '"n": *4\D' }, { type => 'reset_after' }, times => 1 ]
);
@ids = queue_of('retried', 6);
until_ended($session);
is(join(' ', numbers($mock)), '1 1 1 1 2 3 4 4 5 6', 'a flow that is retried is waited for, one that fails is not');
one_by_one('... one after the other', 'retried');
is( $session->value("SELECT string_agg(state, ' ' ORDER BY id) FROM feishu.flows WHERE flow_id = 'retried'"),
	'succeeded succeeded failed unconfirmed succeeded succeeded',
	'... each has its end');

begin_anew($mock, $session);
@ids = queue_of('limited', 3);
until_ended($session);
is(join(' ', numbers($mock)), '1 2 3', 'before a rate limit');
$mock->mark;
$mock->rules(
	[
		{ kind => 'execute', params_regex => '"n": *2\D' },
		{ type => 'code', code => 99991400, reset => 0.2 },
		times => 2
	]);
queue_of('limited', 4);
until_ended($session);
is(join(' ', numbers($mock)), '1 2 2 2 3 4', 'a rate limit does not change the order');

# ---- the head is not due, cancelled, expired ----

begin_anew($mock, $session);
$mock->well;
my ($head) = enqueue(
	$session,
	flow_id => 'cancelled',
	ordering_key => 'cancelled',
	params => '{"n": 0}',
	run_at => \"now() + interval '1 hour'");
queue_of('cancelled', 3);
enqueue($session, flow_id => 'free', ordering_key => 'free', params => '{"n": 9}');
until_ended($session, "flow_id = 'free'");
is(join(' ', numbers($mock)), '9', 'a head that is due later is waited for');
is($session->value("SELECT feishu.cancel_flow($head)"), 't', '... until it is cancelled');
until_ended($session);
is(join(' ', numbers($mock, flow_id => 'cancelled')), '1 2 3', '... then the others are sent');

begin_anew($mock, $session);
pause();
@ids = queue_of('several', 5);
is($session->value("SELECT feishu.cancel_flow($_)"), 't', 'cancelled while paused') foreach @ids[ 0, 1, 3 ];
resume();
until_ended($session);
is(join(' ', numbers($mock)), '3 5', 'cancelled ones are passed over');

begin_anew($mock, $session);
my $soon = \"clock_timestamp() + interval '500 ms'";
enqueue($session, flow_id => 'soon', ordering_key => 'soon', params => '{"n": 0}', run_at => $soon);
queue_of('soon', 3);
until_ended($session);
is(join(' ', numbers($mock)), '0 1 2 3', 'a head that becomes due goes first');

begin_anew($mock, $session);
$mock->fault(type => 'reset_before');
$head = enqueue(
	$session,
	flow_id => 'expired',
	ordering_key => 'expired',
	params => '{"n": 0}',
	expires_at => \"clock_timestamp() + interval '300 ms'");
queue_of('expired', 3);
until_ended($session, "id = $head");
is(look($session, $head, 'state'), 'failed', 'a head expires');
$mock->well;
until_ended($session);
is(join(' ', started_numbers($mock)), '1 2 3', '... and lets the others go');

# ---- the head is retried ----

# One that was refused, while its successor is under way: it is first again,
# but not at the same time.
begin_anew($mock, $session);
$mock->rules(
	[ { kind => 'execute', params_regex => '"n": *1\D' }, { type => 'code', code => 2320001 }, times => 1 ],
	[ { kind => 'execute', params_regex => '"n": *2\D' }, { type => 'hold' }, times => 1 ]);
@ids = queue_of('again', 4);
$mock->wait_for(2, kind => 'execute');
is($session->value("SELECT feishu.retry_flow($ids[0])"),
	't', 'a head that failed is retried while its successor is under way');
enqueue($session, flow_id => 'other', params => '{"n": 9}');
until_ended($session, "flow_id = 'other'");
is(join(' ', numbers($mock, flow_id => 'again')), '1 2', '... it waits for that');
$mock->release;
until_ended($session, "flow_id = 'again'");
is(join(' ', numbers($mock, flow_id => 'again')), '1 2 1 3 4', '... and goes before the others');
one_by_one('... one after the other', 'again');

# The successor is to be tried again, too: it finds the head before it.
begin_anew($mock, $session);
$mock->rules(
	[ { kind => 'execute', params_regex => '"n": *1\D' }, { type => 'code', code => 2320001 }, times => 1 ],
	[ { kind => 'execute', params_regex => '"n": *2\D' }, { type => 'hang' }, times => 1 ]);
alter_server($session, 'feishu', 'ADD', timeout => '2s');
@ids = queue_of('twice', 4);
$mock->wait_for(2, kind => 'execute');
$session->value("SELECT feishu.retry_flow($ids[0])");
until_ended($session, "flow_id = 'twice'");
is(join(' ', numbers($mock, flow_id => 'twice')),
	'1 2 1 2 3 4', 'a head that is retried goes before a successor that is to be tried again');
alter_server($session, 'feishu', 'DROP', 'timeout');

# One in the middle, with a new key, while the queue is paused.
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute', params_regex => '"n": *2\D' }, { type => 'code', code => 2320001 }, times => 1 ]);
@ids = queue_of('middle', 3);
until_ended($session);
pause();
my @more = map { enqueue($session, flow_id => 'middle', ordering_key => 'middle', params => "{\"n\": $_}") } 4, 5;
$session->value("SELECT feishu.retry_flow($ids[1], true)");
resume();
until_ended($session);
is(join(' ', numbers($mock)), '1 2 3 2 4 5', 'one that is retried has the place of its id');
one_by_one('... one after the other', 'middle');

# ---- roles, servers ----

begin_anew($mock, $session);
$session->value('CREATE ROLE one LOGIN; CREATE ROLE two LOGIN');
my %as = map { $_ => FeishuFlow::Session->new($node, user => $_) } qw(one two);
$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 5 } ]);
pause();
foreach my $n (1 .. 20)
{
	enqueue($as{ $n % 2 ? 'one' : 'two' }, flow_id => 'roles', ordering_key => 'roles', params => "{\"n\": $n}");
}
resume();
until_ended($session);
my @order = numbers($mock);
is( join(' ', grep { $_ % 2 } @order),
	join(' ', grep { $_ % 2 } 1 .. 20),
	'two roles use the same key: in the order of ids of the one');
is(join(' ', grep { !($_ % 2) } @order), join(' ', grep { !($_ % 2) } 1 .. 20), '... and in that of the other');

begin_anew($mock, $session);
$mock->rules([ { kind => 'execute', flow_id => 'held' }, { type => 'hold' } ]);
enqueue($as{one}, flow_id => 'held', ordering_key => 'roles');
$mock->wait_for(1, kind => 'execute');
enqueue($as{one}, flow_id => 'later', ordering_key => 'due', run_at => \"now() + interval '1 hour'");
foreach my $key ('roles', 'due')
{
	my $free = enqueue($as{two}, ordering_key => $key);
	succeeds(
		$session,
		"SELECT feishu.wait_flow($free)",
		"a role's flow waits for none of another role with its key: $key");
}
is($session->value("SELECT count(*) FROM feishu.flows WHERE role = 'one' AND finished_at IS NULL"),
	'2', '... which are still there');
$mock->well;
$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE flow_id = 'later'");
until_ended($session);

my $another = FeishuFlow::Session->new($node, user => 'one');
$as{one}->value('BEGIN');
enqueue($as{one}, flow_id => 'late', ordering_key => 'late', params => '{"n": 1}');
my $last = enqueue($another, flow_id => 'late', ordering_key => 'late', params => '{"n": 2}');
$session->value("SELECT feishu.wait_flow($last)");
$as{one}->value('COMMIT');
until_ended($session);
is(join(' ', numbers($mock, flow_id => 'late')), '2 1', 'who commits later is sent later, whatever the id');

$session->value('CREATE ROLE leaver LOGIN');
my $leaver = FeishuFlow::Session->new($node, user => 'leaver');
my $left = enqueue($leaver, ordering_key => 'left', run_at => \"clock_timestamp() + interval '1 s'");
$leaver->quit;
my $stays = enqueue($session, ordering_key => 'left');
$session->value('DROP ROLE leaver');
succeeds($session, "SELECT feishu.wait_flow($stays)", 'a flow of a dropped role holds up none of another role');
until_state($session, $left, 'failed');

begin_anew($mock, $session);
$mock->rules([ { kind => 'execute', flow_id => 'here' }, { type => 'hold' }, times => 1 ]);
enqueue($session, flow_id => 'here', ordering_key => 'same', params => '{"n": 1}');
$mock->wait_for(1, kind => 'execute');
my $there = enqueue($session, flow_id => 'there', server => 'second', ordering_key => 'same', params => '{"n": 2}');
succeeds($session, "SELECT feishu.wait_flow($there)", 'the same key on another server is another');
$mock->well;
until_ended($session);

# ---- a restart in the midst ----

begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 5 } ]);
@ids = queue_of('restarted', 60);
$mock->wait_for(10, kind => 'execute');
$_->quit foreach $session, $another, values %as;
$node->restart;
$session = FeishuFlow::Session->new($node);
until_ended($session);
my @started = started_numbers($mock);
is("@started", join(' ', 1 .. 60), 'after a restart the order is kept');
one_by_one('... one after the other', 'restarted');

# ---- a long queue of one key ----

begin_anew($mock, $session);
$mock->well;
enqueue_many($session, 1, 1500, ordering_key => 'long', flow_id => 'long');
my $after = enqueue($session, flow_id => 'other', params => '{"n": 0}');
succeeds($session, "SELECT feishu.wait_flow($after)", 'a long queue of one key does not hold up others');
until_ended($session);
my @long = numbers($mock, flow_id => 'long');
is(scalar(@long), 1500, '... and is sent once');
is(scalar(grep { $long[$_] != $_ + 1 } 0 .. $#long), 0, '... in order');

done_testing();
