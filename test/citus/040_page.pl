
# The examples of docs/citus.md work, in the order in which they stand there, and what they queue is sent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuCitus;
use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my $page = slurp_file("$root/docs/citus.md");
my @examples = $page =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar @examples, '>', 8, 'there are examples');
my @translated = slurp_file("$root/docs/zh-CN/citus.md") =~ /^```sql\n(.*?)^```$/msg;
is_deeply(\@translated, \@examples, '... the same in Chinese');

my $mock = FeishuFlow::Mock->start;
my ($coordinator, @workers) = citus_nodes();
$mock->config(apps => { cli_a1b2c3 => 'secret' });
my $url = $mock->url;
my $session = FeishuFlow::Session->new($coordinator);
foreach my $example (@examples)
{
	$session->value(slurp_file("$root/monitoring/citus.sql")) if $example =~ /feishu_all/;
	my ($name) = $example =~ /\A(.*)/;
	succeeds($session, $example =~ s{https://open\.feishu\.cn}{$url}r, $name);
}
my $unsent =
	q{SELECT string_agg(node || ' ' || flow_id || ' ' || state, ', ') FROM feishu_all.flows }
  . q{WHERE state NOT IN ('succeeded', 'unconfirmed')};
wait_until('all is sent',
	sub { $session->value($unsent =~ s/\('succ.*\)/('succeeded', 'failed', 'unconfirmed')/r) eq '' });
is($session->value($unsent), '', 'all that the page queues is sent and succeeds');
my %started;
$started{ $_->{flow_id} }++ foreach @{ $mock->control('GET', 'started') };
is_deeply(
	\%started,
	{
		approveOrder_99c656599f => 42,
		rateChanged_1 => 1,
		cancelOrder_1 => 1,
		countOrder_1 => 1,
		remindOwner_1 => 20,
		checkOrder_1 => 3
	},
	'... once a row') or diag(explain(\%started));

done_testing();
