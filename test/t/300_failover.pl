
# The primary dies and its standby is promoted: what has committed there starts
# once, and with synchronous replication nothing else does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $mock = FeishuFlow::Mock->start;
my @nodes;

# A primary with the extension, and a standby.
sub pair
{
	my ($name, $synchronous) = @_;
	my $primary = queue_cluster("primary_$name", streaming => 1);
	create_server($primary, 'feishu', { base_url => $mock->url });
	$primary->safe_psql('postgres', 'CREATE TABLE wanted (n bigint)');
	$primary->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new("standby_$name");
	$standby->init_from_backup($primary, 'backup', has_streaming => 1);
	$standby->start;
	push @nodes, $primary, $standby;
	my $session = FeishuFlow::Session->new($primary);

	if ($synchronous)
	{
		$primary->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
		$primary->reload;
		until_true(
			$session,
			'the standby is synchronous',
			"SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'");
	}
	begin_anew($mock, $session);
	return ($primary, $standby, $session);
}

sub started_numbers_of
{
	return map { $_->{params}{n} // () } @{ $mock->control('GET', 'started') };
}

# Those of the first list that are not in the second.
sub missing
{
	my ($these, $those) = @_;
	my %there = map { $_ => 1 } @$those;
	return grep { !$there{$_} } @$these;
}

# ---- what a standby does, and what it has to wait for ----

{
	my ($primary, $standby, $session) = pair('idle');
	enqueue_many($session, 1, 50);
	until_ended($session);
	$session->value("SELECT feishu.pause_server('feishu')");
	enqueue_many($session, 51, 60);
	$session->value("SELECT feishu.resume_server('feishu')");
	until_ended($session);
	$mock->fault(type => 'headers_hang');
	enqueue_many($session, 61, 80);
	$mock->wait_for(80, kind => 'execute');
	enqueue_many($session, 81, 400);
	$primary->wait_for_catchup($standby);
	my $there = FeishuFlow::Session->new($standby);
	is(dispatcher($there), '', 'on a standby there is no dispatcher');
	is( $there->value('SELECT count(*) FROM feishu.flows'),
		$session->value('SELECT count(*) FROM feishu.flows'),
		'... the flows are to be seen');
	is($there->value("SELECT paused FROM feishu.dispatch_status WHERE paused") || 'f',
		'f', '... and how the queue does');
	fails_with($there, 'SELECT ' . enqueue_call(), '25006', '... but none is queued there');
	fails_with($there, "SELECT feishu.cancel_flow(max(id)) FROM feishu.flows", '25006', '... nor cancelled');
	my ($done) = split /\n/, $session->value("SELECT id FROM feishu.flows WHERE state = 'succeeded' LIMIT 1");
	like($there->value("SELECT feishu.wait_flow($done)"), qr/execution_id/, 'wait_flow works there');
	$mock->rules([ { kind => 'execute', flow_id => 'flow' }, { type => 'headers_hang' } ]);
	like(succeeds($there, flow(params => '{"call": 1}'), 'so does execute_flow'),
		qr/execution_id/, '... which is answered');
	$session->quit;
	$primary->stop('immediate');
	$mock->well;
	$standby->promote;
	until_dispatcher($there);
	until_ended($there);
	started_once($mock, 401, 'after the promotion all are sent, and each started once');
	is($there->value("SELECT count(*) FROM feishu.flows WHERE state NOT IN ('succeeded', 'unconfirmed')"),
		'0', '... and have ended well');
	my $id = enqueue($there, params => '{"n": 401}');
	succeeds($there, "SELECT feishu.wait_flow($id)", '... and the queue goes on');
	$there->quit;
	$standby->stop('immediate');
}

# ---- under load, which follows to the new primary ----

# Queues flows, each with a note that its transaction wanted it, until it is
# stopped.  Numbers whose COMMIT was answered go to a file.
sub client
{
	my ($number, $primary, $standby, $file) = @_;
	open(my $acknowledged, '>', $file) or die "$file: $!";
	$acknowledged->autoflush(1);
	my $session;
	for (my $n = $number * 1_000_000;; $n++)
	{
		$session //= eval { FeishuFlow::Session->new($primary) } // eval { FeishuFlow::Session->new($standby) };
		if (!defined $session)
		{
			usleep(50_000);
			next;
		}
		my $result =
		  $session->ask("BEGIN; INSERT INTO wanted VALUES ($n); SAVEPOINT a; "
			  . 'SELECT '
			  . enqueue_call(params => "{\"n\": -$n}")
			  . '; ROLLBACK TO a; '
			  . 'SELECT '
			  . enqueue_call(params => "{\"n\": $n}", $n % 2 ? (idempotent_key => "key-$n") : ())
			  . '; COMMIT');
		print $acknowledged "$n\n" if $result->{sqlstate} eq '00000';
		if ($result->{closed} || $result->{sqlstate} eq '25006')
		{
			$session->quit;
			undef $session;
		}
	}
	return;
}

foreach my $synchronous (1, 0)
{
	my $mode = $synchronous ? 'synchronous' : 'asynchronous';
	my ($primary, $standby, $session) = pair($mode, $synchronous);
	$mock->rules(
		[ { kind => 'execute' }, { type => 'reset_after' }, probability => 0.1 ],
		[ { kind => 'execute' }, { type => 'latency', ms => [ 0, 30 ] } ]);
	my @files = map { PostgreSQL::Test::Utils::tempdir() . "/acknowledged$_" } 1 .. 4;
	my @clients = map {
		my $i = $_;
		forked('client', sub { client($i, $primary, $standby, $files[ $i - 1 ]) })
	} 1 .. 4;
	$mock->wait_for(300, kind => 'execute');
	$session->quit;
	if (!$synchronous)
	{
		# it falls behind
		$standby->stop;
		my $last = $primary->safe_psql('postgres', 'SELECT max(id) FROM feishu.flows');
		wait_until(
			'flows are sent that it has not got',
			sub {
				$primary->safe_psql('postgres',
					"SELECT count(*) >= 20 FROM feishu.flows WHERE id > $last AND state = 'succeeded'") eq 't';
			});
	}
	kill_postmaster($primary);
	$standby->start if !$synchronous;
	$standby->promote;
	$mock->mark;
	$mock->wait_for(300, kind => 'execute');
	stop_process($_) foreach @clients;

	$session = FeishuFlow::Session->new($standby);
	$mock->well;
	until_ended($session);
	my @wanted = split /\n/, $session->value('SELECT n FROM wanted');
	my @acknowledged = map { split /\n/, slurp_file($_) } @files;
	my @started = started_numbers_of();
	note(scalar(@wanted) . ' committed, ' . scalar(@acknowledged) . ' acknowledged: ' . ends($session));
	is( $session->value(
				"SELECT count(*) FROM feishu.flows f FULL JOIN wanted w ON w.n = (f.params->>'n')::bigint "
			  . "WHERE f.id IS NULL OR w.n IS NULL"),
		'0',
		"$mode: a standby promoted under load has the flows of the transactions that it has");
	is(join(' ', missing(\@wanted, \@started)), '', '... none is lost');
	is(summary($mock)->{started}, summary($mock)->{distinct_params}, '... none started twice');
	is( $session->value("SELECT count(*) FROM feishu.flows WHERE state NOT IN ('succeeded', 'unconfirmed')"),
		$synchronous
		? '0'
		: $session->value("SELECT count(*) FROM feishu.flows WHERE state = 'failed' AND sqlstate = 'LK409'"),
		'... all end well')
	  or diag(
		$session->value(
				"SELECT state, sqlstate, error, attempts, own_key, unanswered, count(*) FROM feishu_internal.outbox "
			  . "WHERE state NOT IN ('s', 'u') GROUP BY 1, 2, 3, 4, 5, 6"));
	my @others = missing(\@started, \@wanted);

	if ($synchronous)
	{
		is(join(' ', missing(\@acknowledged, \@wanted)), '', '... no commit that was acknowledged is lost');
		is("@others", '', '... and nothing else has started');
	}
	else
	{
		# what the standby had not got yet is for the old primary to know
		$primary->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
		$primary->start;
		my @there = split /\n/, $primary->safe_psql('postgres', 'SELECT n FROM wanted');
		cmp_ok(scalar(@others), '>', 0, '... ' . @others . ' have started whose commits the standby has not got');
		is(join(' ', missing(\@others, \@there)), '', '... and nothing has started that was committed nowhere');
		$primary->stop('immediate');
	}
	$session->quit;
	$standby->stop('immediate');
}

# ---- what is under way when the primary dies ----

{
	my ($primary, $standby, $session) = pair('claims', 1);
	$session->value("SELECT feishu.pause_server('feishu')");
	enqueue_many($session, 1, 20);
	$primary->wait_for_catchup($standby);
	$standby->stop('immediate');
	$mock->fault(type => 'headers_hang');
	$mock->mark;
	$session->value("SET synchronous_commit = local; SELECT feishu.resume_server('feishu')");
	wait_until(
		'the flows are sent, or their claim waits for the standby',
		sub {
			$mock->executes > 0
			  || $session->value("SELECT count(*) FROM pg_stat_activity "
				  . "WHERE backend_type = 'feishu_flow dispatcher' AND wait_event = 'SyncRep'");
		});
	$session->quit;
	kill_postmaster($primary);
	$standby->start;
	$standby->promote;
	$session = FeishuFlow::Session->new($standby);
	my $cancelled = $session->value('SELECT count(*) FROM feishu.flows WHERE feishu.cancel_flow(id)');
	is($cancelled, '20', 'flows that the new primary knows nothing of being sent can be cancelled there');
	is($mock->executes, 0, '... and were not sent by the old one, where replication is synchronous');
	$session->quit;
	$standby->stop('immediate');
}

foreach my $node (@nodes)
{
	my ($bad) =
	  slurp_file($node->logfile) =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP|does not have one row).*)$/m;
	is($bad, undef, 'no process of ' . $node->name . ' failed by itself');
}

done_testing();
