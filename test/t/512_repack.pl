
# pg_repack on the table of the queue: flows are queued and sent meanwhile, each once.  Skipped without pg_repack.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

chomp(my $share = `$ENV{PG_CONFIG} --sharedir`);
plan skip_all => 'no pg_repack' if !-e "$share/extension/pg_repack.control";

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE EXTENSION pg_repack');
enqueue_many($session, 1, 500);
until_ended($session);

sub repack
{
	my ($out, $err) = run_command(
		[
			'pg_repack', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-t', 'feishu_internal.outbox',
			'--no-order'
		]);
	return "$out$err";
}
my $file = $session->value("SELECT pg_relation_filenode('feishu_internal.outbox')");
note(repack());
isnt($session->value("SELECT pg_relation_filenode('feishu_internal.outbox')"), $file, 'the table is packed');
is( $session->value(
			"SELECT string_agg(tgname, ' ' ORDER BY tgname) FROM pg_trigger "
		  . "WHERE tgrelid = 'feishu_internal.outbox'::regclass"),
	'forget_all_attempts forget_attempts',
	'... and left without a trigger that is not ours');
is(ends($session), 'succeeded 500', '... no flow is lost');
is( $session->value(
		"SELECT count(*) FROM pg_attribute WHERE attrelid = 'feishu_internal.outbox'::regclass AND attisdropped"),
	0,
	'... nor a column');

# under load
$session->value('CREATE SEQUENCE n START 501; CREATE ROLE app LOGIN; GRANT USAGE ON SEQUENCE n TO app');
my $load = pgbench_start($node, <<'SQL', '-T', 4, '-c', 2, '-U', 'app');
SELECT feishu.enqueue_flow('app', 'flow', '{"_id": 1}', jsonb_build_object('n', nextval('n')));
SQL
note(repack()) foreach 1 .. 2;
$load->finish;
until_ended($session);
is($session->value("SELECT count(*) FROM feishu.flows WHERE state <> 'succeeded'"),
	0, 'flows are sent while the table is packed');
is(summary($mock)->{started}, $session->value('SELECT count(*) FROM feishu.flows'), '... each once');
is($session->value('SELECT feishu.dispatch_problem()'), '', '... and nothing is in the way afterwards');

done_testing();
