
# What the tests with Citus share: a coordinator and its workers.
#
#   my ($coordinator, @workers) = citus_cluster(mock => $mock);
#
# Each node sends as an app of its own (cli_coordinator, cli_worker1, ...), so that the mock's log tells who called.

package FeishuCitus;

use strict;
use warnings;

use Exporter 'import';
use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Cluster;
use Test::More;

our @EXPORT = qw(citus_nodes citus_cluster citus_node citus_add map_user on_workers callers shard_of worker_of);

my $conf = <<'CONF';
shared_preload_libraries = 'citus, feishu_flow'
listen_addresses = '127.0.0.1'
wal_level = logical
max_worker_processes = 32
citus.node_conninfo = 'sslmode=prefer'
citus.enable_statistics_collection = off
citus.shard_count = 8
citus.defer_shard_delete_interval = 1s
citus.recover_2pc_interval = 1s
CONF

# Splits that do not block writes decode with Citus's library, which newer minor releases want to be told.
$conf .= "output_plugin_libraries = 'pgoutput, test_decoding, citus'\n"
  if `postgres --describe-config` =~ /^output_plugin_libraries\t/m;

# A node that belongs to no cluster yet.  conf: further lines.
sub citus_node
{
	my ($name, %options) = @_;
	my $node = queue_cluster($name, connections => 100, streaming => 1, conf => $conf . ($options{conf} // ''));
	$node->safe_psql('postgres', 'CREATE EXTENSION citus');
	return $node;
}

sub citus_add
{
	my ($coordinator, $node) = @_;
	return $coordinator->safe_psql('postgres', "SELECT citus_add_node('127.0.0.1', " . $node->port . ')');
}

# A mapping of PUBLIC on this node alone.
sub map_user
{
	my ($node) = @_;
	$node->safe_psql('postgres',
			"SET citus.enable_ddl_propagation = off; CREATE USER MAPPING FOR PUBLIC SERVER feishu "
		  . "OPTIONS (app_id 'cli_"
		  . $node->name
		  . "', app_secret 's')");
	return;
}

# A coordinator and two workers, without the extension.
sub citus_nodes
{
	my ($coordinator, @workers) = map { citus_node($_) } qw(coordinator worker1 worker2);
	$coordinator->safe_psql('postgres', "SELECT citus_set_coordinator_host('127.0.0.1', " . $coordinator->port . ')');
	citus_add($coordinator, $_) foreach @workers;
	return ($coordinator, @workers);
}

# The same with the extension, the server "feishu" and a mapping on each.  mappings => 0: on none.
sub citus_cluster
{
	my (%options) = @_;
	my ($coordinator, @workers) = citus_nodes();
	$options{mock}->config(apps => { map { ('cli_' . $_ => 's') } qw(coordinator worker1 worker2 worker3) });
	$coordinator->safe_psql('postgres',
			'CREATE EXTENSION feishu_flow; CREATE SERVER feishu FOREIGN DATA WRAPPER feishu_flow '
		  . "OPTIONS (base_url '"
		  . $options{mock}->url
		  . "', operator '{\"_id\": 1111}'); GRANT USAGE ON FOREIGN SERVER feishu TO PUBLIC");
	if ($options{mappings} // 1)
	{
		map_user($_) foreach $coordinator, @workers;
	}
	return ($coordinator, @workers);
}

# What a query gives on each node, in their order.
sub on_workers
{
	my ($sql, @nodes) = @_;
	return [ map { $_->safe_psql('postgres', $sql) } @nodes ];
}

# How many executes came from whom since the mock's mark.
sub callers
{
	my ($mock) = @_;
	my %count;
	$count{ ($_->{app_id} // '') =~ s/^cli_//r }++ foreach $mock->log(kind => 'execute');
	return \%count;
}

# Number of the shard that has a key of a table.
sub shard_of
{
	my ($coordinator, $table, $key) = @_;
	return $coordinator->safe_psql('postgres', "SELECT get_shard_id_for_distribution_column('$table', $key)");
}

# The node among these that has it.
sub worker_of
{
	my ($coordinator, $table, $key, @nodes) = @_;
	my $shard = shard_of($coordinator, $table, $key);
	my $port = $coordinator->safe_psql('postgres', "SELECT nodeport FROM citus_shards WHERE shardid = $shard");
	return (grep { $_->port == $port } @nodes)[0];
}

1;
