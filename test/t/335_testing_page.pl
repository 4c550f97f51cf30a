
# What the page on testing says makes sure that a copy of a production database sends nothing, whatever servers and
# mappings it has. Its examples are run with those of the other pages.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $page = slurp_file("$FindBin::RealBin/../../docs/testing.md");
my ($make_all) = $page =~ /^(SELECT format\('ALTER SERVER.*?\\gexec)$/ms;
my ($others) = $page =~ /^```sql\n(SELECT s\.srvname, s\.srvoptions.*?);\n```/ms;
my ($drop) = $page =~ /^(SELECT format\('DROP USER MAPPING.*?\\gexec)$/ms;

# A copy with what was waiting: as after a physical backup, with the dispatcher switched off.
my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('copy', conf => "feishu_flow.dispatch = off\n");
my %servers = (
	plain => {},
	'"Odd\'name"' => {},
	with_options => { timeout => '9s', operator => '{"_id": 1}' },
	was_one => { sandbox => 'false' },
	is_one => { sandbox => 'true' });
create_server($node, $_, { base_url => $mock->url, %{ $servers{$_} } }) foreach sort keys %servers;
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE FOREIGN DATA WRAPPER other; CREATE SERVER other FOREIGN DATA WRAPPER other');
$session->value(
	q{CREATE ROLE "Li"; CREATE USER MAPPING FOR "Li" SERVER plain OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')}
);
# A wrapper of another name, with servers that are as good.
$session->value('CREATE FOREIGN DATA WRAPPER namesake VALIDATOR feishu.feishu_flow_validator; '
	  . 'CREATE SERVER of_namesake FOREIGN DATA WRAPPER namesake OPTIONS (base_url '
	  . quote($mock->url)
	  . '); '
	  . q{CREATE USER MAPPING FOR PUBLIC SERVER of_namesake OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')});
$servers{of_namesake} = {};
my @names = map { s/"//gr } sort keys %servers;
$session->value("SET client_min_messages = error; SELECT count(feishu.enqueue_flow('a', 'b', '{\"_id\": 1}', server => "
	  . quote($_) . '))')
  foreach @names;

is($session->value("SELECT count(*) FROM ($others) s"), 5, 'the servers that are no sandboxes are found');
$node->safe_psql('postgres', $make_all);
is($session->value("SELECT count(*) FROM ($others) s"), 0, '... and are made some');
is($session->value('SELECT count(*) FROM feishu.dispatch_status WHERE sandbox'), 6, '... which dispatch_status shows');
$node->safe_psql('postgres', $drop);
is($session->value('SELECT count(*) FROM pg_user_mappings'), 0, 'the secrets can be dropped');
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
$node->reload;
until_ended($session);
is(ends($session), 'succeeded 6', 'what was waiting is answered inside');
succeeds($session, flow(server => $_), "... and so is a call of $_") foreach @names;
is(join(' ', map { "$_->{method} $_->{path}" } $mock->log), '', 'nothing is sent');

done_testing();
