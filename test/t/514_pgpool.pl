
# Pgpool-II that balances the load between a primary and a standby: functions of the extension go to the primary.
# Skipped without it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my ($pgpool) = grep { -x $_ } '/usr/sbin/pgpool', '/usr/local/bin/pgpool', '/usr/bin/pgpool';
plan skip_all => 'no Pgpool-II' if !defined $pgpool;

my $mock = FeishuFlow::Mock->start;
my $primary = queue_cluster('primary', streaming => 1, connections => 60);
create_server($primary, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup('standby');

package Pooler;

sub connstr { return "host=$_[0]->{dir} port=9999 dbname=$_[1]"; }

package main;

my $pooler = bless { dir => PostgreSQL::Test::Utils::tempdir_short() }, 'Pooler';
my $dir = PostgreSQL::Test::Utils::tempdir();
my $superuser = getpwuid($<);
my ($n, $backends) = (0, '');
foreach my $node ($primary, $standby)
{
	# all that may be balanced goes to the standby
	$backends .=
		"backend_hostname$n = '"
	  . $node->host
	  . "'\nbackend_port$n = "
	  . $node->port
	  . "\nbackend_weight$n = $n\n"
	  . "backend_data_directory$n = '"
	  . $node->data_dir
	  . "'\nbackend_flag$n = 'DISALLOW_TO_FAILOVER'\n";
	$n++;
}
my $conf = <<"CONF" . $backends;
backend_clustering_mode = 'streaming_replication'
unix_socket_directories = '$pooler->{dir}'
socket_dir = '$pooler->{dir}'
pcp_socket_dir = '$pooler->{dir}'
pcp_port = 9898
wd_ipc_socket_dir = '$pooler->{dir}'
listen_addresses = ''
port = 9999
pid_file_name = '$dir/pgpool.pid'
logdir = '$dir'
num_init_children = 8
max_pool = 1
load_balance_mode = on
sr_check_period = 1
sr_check_user = '$superuser'
sr_check_database = 'postgres'
health_check_period = 0
CONF
append_to_file("$dir/$_", '') foreach 'pcp.conf', 'pool_hba.conf';

my $called = 0;

# What it goes by: the volatility of functions, or a list.
foreach my $list ('', "write_function_list = 'nextval,setval,feishu\\..*'\n")
{
	note($list);
	unlink "$dir/pgpool.conf";
	append_to_file("$dir/pgpool.conf", "$conf$list");
	my ($pid) = start_process('pgpool', $pgpool, '-n', '-f', "$dir/pgpool.conf", '-F', "$dir/pcp.conf", '-a',
		"$dir/pool_hba.conf");
	wait_until('Pgpool-II listens', sub { IO::Socket::UNIX->new(Peer => "$pooler->{dir}/.s.PGSQL.9999") });
	my $client;
	wait_until(
		'Pgpool-II lets us in',
		sub {
			$client = eval { FeishuFlow::Session->new($pooler) }
		});
	wait_until('Pgpool-II knows the primary', sub { $client->value('SHOW pool_nodes') =~ /primary.*\n.*standby/ });

	is($client->value("SELECT current_setting('port')"), $standby->port, 'what only reads goes to the standby');
	my $id = succeeds($client, "SELECT feishu.enqueue_flow('app', 'queued')", 'enqueue_flow goes to the primary');
	$mock->wait_for(1, kind => 'execute', flow_id => 'queued');
	like(succeeds($client, "SELECT feishu.wait_flow($id)", 'so does wait_flow'),
		qr/execution_id/, '... and returns the answer');
	succeeds($client, flow(), 'execute_flow');
	my $calls =
	  $primary->safe_psql('postgres', "SELECT sum(calls) FROM feishu.stat_flows WHERE flow_id LIKE 'approve%'");
	cmp_ok($calls, '>', $called, '... goes there, too');
	$called = $calls;
	my $later = succeeds(
		$client,
		"SELECT feishu.enqueue_flow('app', 'later', run_at => now() + interval '1 day')",
		'a flow for later');
	is(succeeds($client, "SELECT feishu.cancel_flow($later)", 'cancel_flow'), 't', '... cancels on the primary');
	succeeds($client, "SELECT feishu.pause_server('feishu')", 'pause_server');
	is($primary->safe_psql('postgres', "SELECT paused FROM feishu.dispatch_status WHERE server = 'feishu'"),
		't', '... there');
	succeeds($client, "SELECT feishu.resume_server('feishu')", 'resume_server');
	my $with = "WITH q AS MATERIALIZED (SELECT feishu.enqueue_flow('app', 'inWith') AS id) SELECT count(*) FROM q";
	is(succeeds($client, $with, 'enqueue_flow in WITH'), 1, '... is found, too');
	my $many = "SELECT (r).sqlstate FROM (SELECT feishu.execute_flows('app', 'many') OVER () AS r) AS s";
	is(succeeds($client, $many, 'execute_flows'), '', '... works');

	$mock->fault(type => 'hold');
	$mock->mark;
	$client->send(flow());
	$mock->wait_for(1, kind => 'execute');
	my $started = time();
	$client->{run}->signal('INT');
	is($client->result->{sqlstate}, '57014', 'a call is cancelled through Pgpool-II');
	cmp_ok(time() - $started, '<', 5 * $FeishuFlow::SLOW, '... at once');
	$mock->well;
	$client->quit;
	stop_process($pid);
}

done_testing();
