
# pgaudit beside the queue: calls and flows work, and the audit has no secret but that of CREATE USER MAPPING.  Skipped
# without pgaudit.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $share = `$ENV{PG_CONFIG} --sharedir`);
plan skip_all => 'no pgaudit' if !-e "$share/extension/pgaudit.control";

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "pgaudit.log = 'all'\npgaudit.log_parameter = on\npgaudit.log_client = on\n");
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'feishu_flow, pgaudit'");
$node->restart;
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $audit = sub { return join('', slurp_file($node->logfile) =~ /^(.*AUDIT: .*\n)/mg); };
like($audit->(), qr/CREATE USER MAPPING.*mock-secret/,
	'the audit has the text of CREATE USER MAPPING, secret included');

my $before = length $audit->();
$session->value(<<'SQL');
BEGIN;
SET LOCAL pgaudit.log = 'none';
SET LOCAL log_statement = 'none';
ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'mock-secret');
COMMIT;
SQL
unlike(slurp_file($node->logfile) =~ s/^.*CREATE USER MAPPING.*$//mgr,
	qr/mock-secret/, '... but not that of ALTER USER MAPPING without an audit');
succeeds($session, flow(params => '{"text": "in the call"}'), 'a call');
my $id = enqueue($session, params => '{"text": "in the queue"}');
until_state($session, $id, 'succeeded');
like(succeeds($session, "SELECT feishu.wait_flow($id)", 'wait_flow'), qr/execution_id/, 'a queued flow is sent');
succeeds($session, 'SELECT * FROM feishu.check_server()', 'check_server');
my $seen = substr($audit->(), $before);
like($seen, qr/AUDIT: SESSION.*feishu\.execute_flow/, 'the audit has the calls');
like($seen, qr/feishu_internal\.outbox/, '... and the queue\'s own statements');
like($seen, qr/in the queue/, '... with params, for pgaudit.log_parameter is on');
unlike($seen, qr/mock-secret/, '... but no secret');
my $token = $mock->token;
unlike($seen, qr/\Q$token\E/, '... and no token');

done_testing();
