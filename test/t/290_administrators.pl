
# What administrators do around the queue, and mean no harm by: publications,
# settings of the database, columns and indexes of their own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', streaming => 1, conf => "wal_level = logical\nwal_writer_delay = '10s'\n");
$node->safe_psql('postgres', 'CREATE DATABASE replica');
create_server($node, 'feishu', { base_url => $mock->url }, undef, $_) foreach qw(postgres replica);
my $session = FeishuFlow::Session->new($node);
my $n = 0;
my $id;

# Queues a flow and waits for it to succeed.
sub is_sent
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $queued = enqueue($session, params => '{"n": ' . ++$n . '}');
	my $result = $session->ask("SELECT feishu.wait_flow($queued, '20s')");
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	return $queued;
}

is_sent('flows are sent');

# ---- logical replication ----

my $before = dispatcher($session);
$session->value('CREATE PUBLICATION everything FOR ALL TABLES');
is_sent('flows are sent in a database that publishes all tables');
is(dispatcher($session), $before, '... by the same dispatcher');

done_testing();
