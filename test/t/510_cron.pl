
# pg_cron beside the queue: a job queues its flow once, however often it runs, and calls one.  Skipped without pg_cron.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

chomp(my $share = `$ENV{PG_CONFIG} --sharedir`);
plan skip_all => 'no pg_cron' if !-e "$share/extension/pg_cron.control";

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "cron.database_name = 'postgres'\n");
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'pg_cron, feishu_flow'\ncron.host = '" . $node->host . "'");
$node->restart;
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pg_cron;
CREATE PROCEDURE call_after_commit() LANGUAGE plpgsql AS $$
BEGIN
    COMMIT;
    PERFORM feishu.execute_flow('app', 'calledAfterCommit');
END
$$;
SQL

# A job of each kind, that of docs/neighbours.md twice.
$node->safe_psql('postgres', <<'SQL');
SELECT cron.schedule('nightly-report', '15 2 * * *', $$
    SELECT feishu.enqueue_flow('package_7344545d87__c', 'nightlyReport',
        idempotent_key => 'nightly-report-' || current_date)
$$);
SELECT cron.schedule('again', '15 2 * * *', command) FROM cron.job;
SELECT cron.schedule('call', '15 2 * * *', $$SELECT feishu.execute_flow('app', 'called')$$);
SELECT cron.schedule('refused', '15 2 * * *', $$SELECT feishu.execute_flow('app', 'refusedFlow')$$);
SELECT cron.schedule('procedure', '15 2 * * *', $$CALL call_after_commit()$$);
SELECT cron.schedule('two', '15 2 * * *', $$CALL call_after_commit(); SELECT 1$$);
SELECT cron.schedule('rolled-back', '15 2 * * *', $$SELECT feishu.enqueue_flow('app', 'rolledBack'); SELECT 1/0$$);
UPDATE cron.job SET schedule = '@reboot'; -- when pg_cron starts
SQL

foreach my $workers ('off', 'on')
{
	my $how = $workers eq 'on' ? 'in background workers' : 'over connections';
	$node->append_conf('postgresql.conf', "cron.use_background_workers = $workers");
	$node->safe_psql('postgres', 'DELETE FROM cron.job_run_details; SELECT feishu.purge_flows(now())');
	$mock->reset;
	$node->restart;
	my $session = FeishuFlow::Session->new($node);
	until_true(
		$session,
		'all jobs have run',
		"SELECT count(*) = 7 FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')");
	my $runs = 'FROM cron.job_run_details JOIN cron.job USING (jobid) WHERE';
	is( $session->value("SELECT string_agg(jobname, ' ' ORDER BY jobname) $runs status = 'succeeded'"),
		'again call nightly-report procedure',
		"$how: jobs of one command end well");
	like($session->value("SELECT return_message $runs jobname = 'refused'"),
		qr/refused/, '... and pg_cron keeps what went wrong');
	until_ended($session);
	is($mock->count(kind => 'execute', flow_id => 'nightlyReport'),
		1, '... a key queues the night\'s flow once, whichever job comes first');
	is($mock->count(kind => 'execute', flow_id => 'called'), 1, '... a call of a job');
	is($mock->count(kind => 'execute', flow_id => 'calledAfterCommit'),
		1, '... that of a procedure that commits, but not beside another command');
	is($mock->count(kind => 'execute', flow_id => 'rolledBack'),
		0, '... what a job of two commands queued is rolled back with its error');
	$session->quit;
}

done_testing();
