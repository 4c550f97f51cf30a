
# What a transaction has queued is found when it commits, though flows with higher ids were sent long before: however
# much there is of it, whoever it is for, and whether it is to be sent at once, later, or not any more.

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
create_server($node, $_, { base_url => $mock->url }) foreach qw(feishu known known2 paused);
my $session = FeishuFlow::Session->new($node);
my $late = FeishuFlow::Session->new($node);
my $quiet = '{"n": 0}';
my $FAR = 30000;    # ids, of which the dispatcher does not look at the rows one by one
my $MANY = 300;     # more rows than it reads at a time

$session->value('CREATE ROLE role1; CREATE ROLE role2; CREATE ROLE role3; CREATE ROLE role4; CREATE ROLE role5');
$session->value("SELECT feishu.pause_server('paused')");
until_dispatcher($session);

sub as_role
{
	my ($who, $role, $work) = @_;
	$who->value("SET ROLE $role");
	$work->();
	$who->value('RESET ROLE');
	return;
}

# Flows with higher ids are sent, so many ids after the last one.
sub pass_by
{
	my ($ids) = @_;
	$session->value("UPDATE feishu_internal.last_id SET id = id + $ids") if $ids > 0;
	$session->value('SELECT feishu.wait_flow(' . enqueue($session, server => $_, params => $quiet) . ')')
	  foreach qw(feishu known);
	return;
}

my $number = 0;

sub late_one { return enqueue($late, flow_id => 'late', params => '{"n": ' . ++$number . '}', @_); }

# The function queues in a transaction that commits late, so many ids after it, or at once; all of it is sent, without
# another flow to have it looked at.
sub is_sent
{
	my ($name, $ids, $queue) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	pass_by(0);
	$late->value('BEGIN');
	$queue->();
	pass_by($ids) if defined $ids;
	$late->value('COMMIT');
	until_ended($session, "server <> 'paused'");
	is(ends($session, "flow_id = 'late'"), "succeeded $number", $name);
	is($mock->count(kind => 'execute', flow_id => 'late'), $number, '... each once');
	return;
}

sub many { enqueue_many($late, $number + 1, $number + $MANY, flow_id => 'late'); $number += $MANY; return; }
sub soon { return run_at => \"clock_timestamp() + interval '500 ms'"; }

# Bytes that the dispatcher has for what it knows of its lanes.
sub lanes_bytes
{
	my $before = -s $node->logfile;
	my $pid = until_dispatcher($session);
	my $bytes;
	$session->value("SELECT pg_log_backend_memory_contexts($pid)");
	wait_until('it tells its memory',
		sub { ($bytes) = slurp_file($node->logfile, $before) =~ /feishu_flow lanes: (\d+) total/; });
	return $bytes;
}

# ---- at once, and a few ids later ----

my $new = 'd';
foreach my $ids (undef, 0)
{
	my $when = defined $ids ? 'late' : 'at once';
	is_sent("$when: more flows than are read at a time", $ids, sub { many() });
	is_sent(
		'... and one that is to be sent later, for a server of which nothing was known',
		$ids,
		sub {
			create_server($node, ++$new, { base_url => $mock->url });
			many();
			late_one(server => $new, soon());
		});
	is_sent(
		'... many ids later',
		$ids,
		sub {
			create_server($node, ++$new, { base_url => $mock->url });
			many();
			$session->value('UPDATE feishu_internal.last_id SET id = id + 12000');
			late_one(server => $new, soon());
		});
	is_sent('... or for one that had flows', $ids, sub { many(); late_one(server => 'known', soon()); });
	is_sent(
		'... and one that is to be sent at once',
		$ids,
		sub {
			create_server($node, ++$new, { base_url => $mock->url });
			many();
			late_one(server => $_) foreach $new, 'known';
		});
}

# ---- many ids later ----

is_sent('one after which many flows were sent', $FAR, sub { late_one() });
is_sent('one that is to be sent later', $FAR, sub { late_one(server => 'known', soon()) });
is_sent(
	'one that is to be sent later, for a server of which nothing was known',
	$FAR,
	sub {
		create_server($node, ++$new, { base_url => $mock->url });
		late_one(server => $new, soon());
	});

# Its time came and went before it was committed, and other flows of the lane were sent at theirs.
foreach my $ids (0, $FAR)
{
	is_sent(
		"one that was to be sent in the meantime, $ids ids later",
		$ids,
		sub {
			late_one(server => 'known', run_at => \"clock_timestamp() + interval '50 ms'");
			my $other = enqueue(
				$session,
				server => 'known',
				params => $quiet,
				run_at => \"clock_timestamp() + interval '200 ms'");
			$session->value("SELECT feishu.wait_flow($other)");
		});
}

# All lanes are looked at from there on: what is under way then is not sent again, with ordering keys and without.
$mock->rules([ { kind => 'execute', flow_id => 'held' }, { type => 'hold' } ]);
$late->value('BEGIN');
late_one(server => $_), late_one(server => $_, soon()) foreach qw(known known2);
enqueue($session, server => 'known', flow_id => 'held', params => $quiet, @$_)
  foreach [], [ run_at => \"clock_timestamp() + interval '50 ms'" ], [ ordering_key => 'key' ],
  [ ordering_key => 'key' ];
enqueue($session, server => 'known2', flow_id => 'held', params => $quiet, @$_)
  foreach [], [ run_at => \"clock_timestamp() + interval '50 ms'" ];
$mock->wait_for(5, kind => 'execute', flow_id => 'held');
pass_by($FAR);
$late->value('COMMIT');
until_ended($session, "flow_id = 'late'");
pass_by(0);
is($mock->count(kind => 'execute', flow_id => 'held'), 5,
	'what is under way when a late one appears is not sent again');
$mock->well;
until_ended($session);
is($mock->count(kind => 'execute', flow_id => 'held'), 6, '... nor what waits for it, before it ends');

# Lanes of which nothing was known, before, between and behind those that were.
as_role($session, $_,
	sub { $session->value('SELECT feishu.wait_flow(' . enqueue($session, server => 'known', params => $quiet) . ')') })
  foreach qw(role2 role4);
is_sent(
	'flows of servers and roles of which nothing was known',
	$FAR,
	sub {
		create_server($node, $_, { base_url => $mock->url }) foreach qw(a_first g_between zz_last);
		late_one(server => $_) foreach qw(a_first g_between zz_last);
		as_role($late, $_, sub { late_one(server => $_) foreach qw(known a_first g_between zz_last) })
		  foreach map { "role$_" } 1 .. 5;
	});
is_sent(
	'flows of the same, of which all is known by now',
	$FAR,
	sub {
		as_role($late, $_, sub { late_one(server => $_) foreach qw(known a_first g_between zz_last) })
		  foreach map { "role$_" } 1 .. 5;
	});

# Nor are the ids of as many as there may be kept, or compared with each other: the dispatcher reads the lane again.
my $LATE = 15000;
my $bytes = lanes_bytes();
$late->value('BEGIN');
$late->value("SELECT count(feishu.enqueue_flow('app', 'many', '{\"_id\": 1111}', '{\"n\": 0}')) "
	  . "FROM generate_series(1, $LATE)");
pass_by(0);
$session->value("SELECT feishu.pause_server('feishu')");
$late->value('COMMIT');
enqueue($session, server => 'known', params => $quiet);
until_ended($session, "server = 'known'");
cmp_ok(lanes_bytes() - $bytes, '<', 5 * $LATE, 'the ids of flows that appear late are not all kept in memory');
$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE flow_id = 'many' AND id % 8 <> 0");
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "server <> 'paused'");
is(
	ends($session, "flow_id = 'many' AND state <> 'cancelled'"),
	'succeeded ' . $LATE / 8,
	'... and those that were not cancelled are sent');
is($mock->count(kind => 'execute', flow_id => 'many'), $LATE / 8, '... each once');

# ---- not to be sent any more ----

# The slow poll ends what has expired, and has passed the time when this did before it could be seen.
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;

sub until_polled
{
	my $polled = enqueue($session, server => 'paused', expires_at => \"clock_timestamp() + interval '1 ms'");
	until_ended($session, "id = $polled");
	return;
}
foreach my $case ([ 0, 0, 'one' ], [ 0, $MANY, 'one after many others' ], [ $FAR, 0, 'one after which many were sent' ])
{
	my ($ids, $before, $name) = @$case;
	$late->value('BEGIN');
	many() if $before;
	my $id = enqueue($late, server => 'paused', expires_at => \"clock_timestamp() + interval '50 ms'");
	pass_by($ids);
	until_polled() foreach 1, 2;
	$late->value('COMMIT');
	until_ended($session, "id = $id");
	is(look($session, $id, 'state, sqlstate'), 'failed|LK504', "$name expired before its transaction committed");
}

# ---- of which nobody tells ----

# The slow poll knows who had drawn ids. A key whose flows were sent has a floor, below which the dispatcher does not
# look.
foreach my $key (undef, 'key')
{
	my $like = enqueue($session, server => 'known', params => $quiet);
	my $drawn = $session->value('UPDATE feishu_internal.last_id SET id = id + 1 RETURNING id');
	$late->value('BEGIN; LOCK TABLE feishu_internal.last_id IN ROW EXCLUSIVE MODE');
	enqueue_unheard($late, $like, server => 'known', id => $drawn);
	$late->value("UPDATE feishu_internal.outbox SET ordering_key = 'key' WHERE id = $drawn") if defined $key;
	$session->value(
		'SELECT feishu.wait_flow(' . enqueue($session, server => 'known', params => $quiet, ordering_key => $key) . ')')
	  foreach 1 .. 6;
	until_polled() foreach 1 .. 3;
	$late->value('COMMIT');
	until_ended($session, "id = $drawn");
	is( look($session, $drawn, 'state'),
		'succeeded',
		'one of which nobody tells is sent when its transaction commits'
		  . (defined $key ? ', before others of its key' : ''));
}

done_testing();
