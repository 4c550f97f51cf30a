
# In a cluster of Citus, extension, servers and rights reach all nodes, also those that come later, and user mappings
# none: a statement that gives each node its own does.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuCitus;
use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my ($coordinator, @workers) = citus_cluster(mock => $mock, mappings => 0);
my $session = FeishuFlow::Session->new($coordinator);

my %there = (
	extension => "SELECT count(*) FROM pg_extension WHERE extname = 'feishu_flow'",
	server => "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'feishu' AND srvoptions::text LIKE '%base_url%'",
	usage => "SELECT has_server_privilege('somebody', 'feishu', 'USAGE')::int");
$session->value('CREATE ROLE somebody LOGIN');
is_deeply(on_workers($there{$_}, @workers), [ 1, 1 ], "$_ reaches all nodes") foreach sort keys %there;
$session->value("ALTER SERVER feishu OPTIONS (ADD max_concurrency '5')");
is_deeply(
	on_workers("SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%max_concurrency%'", @workers),
	[ 1, 1 ],
	'so does a change of the server');

$session->value("CREATE USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_coordinator', app_secret 's')");
is_deeply(on_workers('SELECT count(*) FROM pg_user_mappings', @workers), [ 0, 0 ], 'a user mapping does not');

my $later = citus_node('worker3');
citus_add($coordinator, $later);
push @workers, $later;
is_deeply(on_workers($there{$_}, $later), [1], "$_ reaches a node that comes later") foreach sort keys %there;
is_deeply(on_workers('SELECT count(*) FROM pg_user_mappings', $later), [0], 'a user mapping does not');

# ---- the recipe ----

my $everywhere = q{SELECT bool_and(success), string_agg(DISTINCT result, ' ') FROM run_command_on_all_nodes($$
	CREATE USER MAPPING IF NOT EXISTS FOR PUBLIC SERVER feishu OPTIONS (app_id 'cli_coordinator', app_secret 's') $$)};
is($session->value($everywhere), 't|CREATE USER MAPPING', 'run_command_on_all_nodes makes it on each');
is_deeply(on_workers('SELECT count(*) FROM pg_user_mappings', @workers), [ 1, 1, 1 ], '... of them');
foreach my $node ($coordinator, @workers)
{
	is($node->safe_psql('postgres', 'SELECT token_ok FROM feishu.check_server()'), 't', $node->name . ' is let in');
	my $own = FeishuFlow::Session->new($node);
	until_dispatcher($own);
	$mock->mark;
	enqueue($own);
	until_ended($own);
	is($mock->executes, 1, '... and its dispatcher sends');
}

# ---- the whole queue ----

my $all = PostgreSQL::Test::Utils::slurp_file("$FindBin::RealBin/../../monitoring/citus.sql");
$session->value($all);
is($session->value("SELECT count(DISTINCT node) || ' ' || count(*) FROM feishu_all.flows WHERE state = 'succeeded'"),
	'4 4', 'feishu_all.flows has the flows of all nodes, and of which');
$mock->fault(type => 'hold');
enqueue(FeishuFlow::Session->new($workers[0]));
$mock->mark;
is($session->value("SELECT count(*) || ' ' || sum(queued + sending) FROM feishu_all.dispatch_status"),
	'1 1', 'feishu_all.dispatch_status has what waits on any');
is( $session->value(
			'SELECT node = (SELECT nodename || $$:$$ || nodeport FROM pg_dist_node WHERE nodeport = '
		  . $workers[0]->port
		  . ') FROM feishu_all.dispatch_status'),
	't',
	'... and on which');
$session->value('CREATE ROLE watcher LOGIN');
$session->value('SELECT run_command_on_all_nodes($$GRANT pg_monitor TO watcher$$)');
my $watcher = FeishuFlow::Session->new($coordinator, user => 'watcher');
is($watcher->value('SELECT count(*) FROM feishu_all.dispatch_status'), '1', 'a member of pg_monitor sees it, too');
is($watcher->value("SELECT count(*) FROM feishu_all.flows WHERE node_error IS NOT NULL"),
	'0', '... and of the queue what each node shows it');
$mock->well;
$session->value('SET ROLE somebody');
fails_with($session, 'SELECT * FROM feishu_all.flows', '42501', 'not everybody sees it');
$session->value('RESET ROLE');
$workers[2]->stop('immediate');
is($session->value("SELECT count(DISTINCT node) FROM feishu_all.flows WHERE state IS NOT NULL"),
	'3', 'a node that is down hides no other');
like($session->value("SELECT node_error FROM feishu_all.flows WHERE state IS NULL"), qr/connect/, '... and is told');

# ---- the order of the libraries ----

$workers[1]->append_conf('postgresql.conf', "shared_preload_libraries = 'feishu_flow, citus'\n");
$workers[1]->stop;
is($workers[1]->start(fail_ok => 1), 0, 'a node whose first library is not Citus does not start');
like(PostgreSQL::Test::Utils::slurp_file($workers[1]->logfile), qr/Citus has to be loaded first/, '... and says so');

done_testing();
