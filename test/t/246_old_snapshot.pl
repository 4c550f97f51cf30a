
# What an old snapshot keeps of flows that have ended, in the table and its
# indexes, is read once or twice, and not by each poll, purge or claim.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start('--log-limit', '1000');
my $node = queue_cluster('main', conf => "feishu_flow.poll_interval = '100ms'\nautovacuum = off\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'paused', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value("SELECT feishu.pause_server('paused')");
my $KEPT = 4000;
my $POLLS = 20;

# Entries of each index that dispatchers have read.  What one has read it tells when it ends; one that ended within its
# first second is not replaced at once.
sub entries_read
{
	my $pid = until_dispatcher($session);
	until_true(
		$session,
		'it has lived for a while',
		"SELECT clock_timestamp() - backend_start > '1.2 s' FROM pg_stat_activity WHERE pid = $pid");
	$session->value("SELECT pg_terminate_backend($pid)");
	until_dispatcher($session, $pid);
	return {
		map { split /\|/ }
		  split /\n/,
		$session->value("SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'outbox'")
	};
}

# Waits until a poll has ended what has expired by now.
sub until_polled
{
	my $probe = enqueue($session, server => 'paused', expires_at => \"clock_timestamp() + interval '1 ms'");
	until_ended($session, "id = $probe");
	return;
}

sub retain
{
	my ($time) = @_;
	$node->append_conf('postgresql.conf', "feishu_flow.retention = '$time'\nfeishu_flow.retention_failed = '$time'");
	$node->reload;
	return;
}

# No index was read as if each time from the start.
sub reads_little
{
	my ($name, $most, $work) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = entries_read();
	$work->();
	my $after = entries_read();
	my %read = map { $_ => $after->{$_} - $before->{$_} } keys %$after;
	note("$name: $_ $read{$_}") foreach grep { $read{$_} } sort keys %read;
	my @much = map { "$_: $read{$_}" } grep { $read{$_} > $most } sort keys %read;
	is("@much", '', $name);
	return;
}

until_dispatcher($session);
my $keeper = FeishuFlow::Session->new($node);
$keeper->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');

# ---- polls ----

# Sent at once, sent later, expired, and purged.
enqueue_many($session, 1, $KEPT);
enqueue_many($session, 1, $KEPT, run_at => \"clock_timestamp() + interval '100 ms'");
enqueue_many($session, 1, $KEPT, server => 'paused', expires_at => \"now() + interval '1 s'");
until_ended($session);
retain('1s');
until_true($session, 'they are purged', 'SELECT count(*) = 0 FROM feishu.flows');
# a lane whose flows may wait
enqueue($session, server => 'paused');
enqueue($session, server => 'paused', run_at => \"now() + interval '1 hour'");
enqueue($session, run_at => \"now() + interval '1 hour'");

reads_little('what an old snapshot keeps is not read by each poll',
	8 * $KEPT, sub { until_polled() foreach 1 .. $POLLS; });

retain('7d');

# ---- ordering keys ----

my %hot = (ordering_key => 'hot', flow_id => 'hot');
enqueue_many($session, 1, 1500, %hot);
until_ended($session, "flow_id = 'hot'");
reads_little(
	'what it keeps of an ordering key is not read for each flow of the key',
	150_000,
	sub {
		enqueue_many($session, 1, 300, %hot);
		until_ended($session, "flow_id = 'hot'");
		foreach (1 .. 50)
		{
			my $one = enqueue($session, %hot);
			succeeds_quietly("SELECT feishu.wait_flow($one)");
		}
	});

sub succeeds_quietly
{
	my ($sql) = @_;
	my $result = $session->ask($sql);
	die "$sql: $result->{sqlstate}" if $result->{sqlstate} ne '00000';
	return;
}

# What was put back has a lower id than all that are known of.  A key that had few ends has no floor yet.
enqueue_many($session, 1, 10, %hot);
until_ended($session, "flow_id = 'hot'");
$session->value("SELECT feishu.pause_server('feishu')");
$mock->mark;
my @ids = map { enqueue($session, %hot, params => "{\"n\": $_}") } 1 .. 3;
is($session->value("SELECT feishu.cancel_flow($ids[0])"), 't', 'a flow of a key with a long history is cancelled');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "flow_id = 'hot'");
$session->value("SELECT feishu.pause_server('feishu')");
push @ids, enqueue($session, %hot, params => '{"n": 4}');
is($session->value("SELECT feishu.retry_flow($ids[0])"), 't', '... and put back');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "flow_id = 'hot'");
is(join(' ', numbers($mock)), '2 3 1 4', '... then it has the place of its id');

$keeper->value('COMMIT');
done_testing();
