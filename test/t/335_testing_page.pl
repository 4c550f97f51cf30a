
# The examples of docs/testing.md work, nothing of a transaction that is rolled back is sent, and what it says makes
# sure that a copy sends nothing; the Chinese page has the same examples.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my ($page, $chinese) = map { slurp_file("$FindBin::RealBin/../../docs/$_") } 'testing.md', 'zh-CN/testing.md';
my @blocks = $page =~ /^(```.*?^```)$/msg;
is_deeply([ $chinese =~ /^(```.*?^```)$/msg ], \@blocks, 'both pages have the same examples');
is( scalar(() = $chinese =~ /^(?:#|-|\d\.)/mg),
	scalar(() = $page    =~ /^(?:#|-|\d\.)/mg),
	'... headings, and items of lists');

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('examples');
create_server($node, 'feishu', { base_url => $mock->url }, { app_id => 'none', app_secret => 'none' });
my @examples = map { /^```sql\n(.*?)^```/ms ? $1 : () } @blocks;
is(scalar @examples, 5, 'there are examples');
# psql aligns; digits are the same
my ($shown) = map { /^```\n(.*approveOrder.*)^```/ms ? $1 : () } @blocks;

sub example
{
	my ($n) = @_;
	my ($out, $err) = ('', '');
	my $sql = $examples[$n] =~ s{http://127\.0\.0\.1:8080}{$mock->url}ger;
	IPC::Run::run([ 'psql', '-X', '-d', $node->connstr('postgres') ],
		'<', \$sql, '>', \$out, '2>', \$err, IPC::Run::timeout($FeishuFlow::PATIENCE));
	unlike($err, qr/ERROR|FATAL/, 'example ' . ($n + 1) . ' works');
	return $out;
}

sub squeezed
{
	return join "\n", map { s/[ -]+/ /gr =~ s/^ | $//gr } grep { /approveOrder/ } split /\n/, $_[0];
}

my $session = FeishuFlow::Session->new($node);
example(0);
is(squeezed(example(1)), squeezed($shown), '... and gives what is shown');
is($session->value('SELECT count(*) FROM feishu.flows'), 0, '... of which nothing is queued');
like(example(2), qr/"n": 1/, '... and gives the answer');
is($mock->started, 1, '... and nothing else was started');

# a copy
$session->value("SELECT feishu.pause_server('feishu')");
my $waits = enqueue($session, server => 'feishu');
$session->value(q{CREATE ROLE "Li"; CREATE USER MAPPING FOR "Li" SERVER feishu OPTIONS (app_id 'cli_mock', }
	  . q{app_secret 'mock-secret')});
example(3);
is(look($session, $waits, 'state'), 'cancelled', '... what waits is cancelled');
is($session->value('SELECT count(*) FROM pg_user_mappings'), 0, '... there are no credentials');
is($session->ask(flow())->{sqlstate}, '42704', '... nothing can be called');
example(4);
$session->value("SELECT feishu.resume_server('feishu')");
is($mock->started, 1, '... and nothing is sent');

done_testing();
