
# A key of the user's is queued once: whoever queues it again gets the id of the flow that
# has it, as long as that flow may have started or will.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
# a platform of its own, which knows other keys
my $elsewhere = FeishuFlow::Mock->start;
create_server($node, 'other', { base_url => $elsewhere->url });
my $session = FeishuFlow::Session->new($node);
my $second = FeishuFlow::Session->new($node);

sub queued
{
	my ($key) = @_;
	return $session->value("SELECT count(*) FROM feishu.flows WHERE idempotent_key = '$key'");
}

# ---- while it waits, is under way, succeeded, or is unconfirmed ----

$session->value("SELECT feishu.pause_server('feishu')");
my $id = enqueue($session, idempotent_key => 'order-1', params => '{"n": 1}');
is(enqueue($session, idempotent_key => 'order-1', params => '{"n": 2}'),
	$id, 'the key of a flow that waits gives its id');
is(queued('order-1'), 1, '... and nothing is queued');
my $drawn = enqueue($session);
enqueue($session, idempotent_key => 'order-1') foreach 1 .. 10;
is(enqueue($session), $drawn + 1, '... no id is drawn for it');
isnt(enqueue($session, idempotent_key => 'order-1', server => 'other'), $id, 'another server has keys of its own');
isnt(enqueue($session, idempotent_key => 'Order-1'), $id, 'a key that differs in case is another');

$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
$mock->fault(type => 'hold');
my $slow = enqueue($session, idempotent_key => 'order-2');
until_state($session, $slow, 'sending');
is(enqueue($session, idempotent_key => 'order-2'), $slow, 'the key of a flow that is under way gives its id');
$mock->well;
until_ended($session);
is($session->value("SELECT string_agg(DISTINCT state, ' ') FROM feishu.flows"), 'succeeded', 'all succeed');
is(enqueue($session, idempotent_key => 'order-1'), $id, 'the key of a flow that succeeded gives its id');

$mock->rules([ { kind => 'execute' }, { type => 'reset_after' }, times => 1 ]);
my $lost = enqueue($session, idempotent_key => 'order-3');
until_ended($session, "id = $lost");
is($session->value("SELECT state FROM feishu.flows WHERE id = $lost"), 'unconfirmed', 'a flow is unconfirmed');
is(enqueue($session, idempotent_key => 'order-3'), $lost, 'the key of a flow that is unconfirmed gives its id');

# ---- after it failed or was cancelled ----

my $failed = enqueue($session, idempotent_key => 'order-4', flow_id => 'refusedFlow');
until_ended($session, "id = $failed");
is($session->value("SELECT state FROM feishu.flows WHERE id = $failed"), 'failed', 'a flow fails');
my $again = enqueue($session, idempotent_key => 'order-4');
isnt($again, $failed, 'the key of a flow that failed may be queued again');
until_ended($session, "id = $again");
my $taken = $session->ask("SELECT feishu.retry_flow($failed)");
is($taken->{sqlstate}, '23505', 'a flow whose key another has meanwhile is not retried');
is($taken->{message}, "flow $failed cannot be retried: its idempotent_key was queued again",
	'... the message names it');
like($taken->{hint}, qr/new_key => true/, '... the hint says how to start both');
is($session->value("SELECT state FROM feishu.flows WHERE id = $failed"), 'failed', '... it is as it was');
is($session->value("SELECT feishu.retry_flow($failed, new_key => true)"), 't', 'with a key of its own it is');
until_ended($session);

$session->value("SELECT feishu.pause_server('feishu')");
my $cancelled = enqueue($session, idempotent_key => 'order-5');
$session->value("SELECT feishu.cancel_flow($cancelled)");
my $fresh = enqueue($session, idempotent_key => 'order-5');
isnt($fresh, $cancelled, 'the key of a flow that was cancelled may be queued again');
is($session->ask("SELECT feishu.retry_flow($cancelled)")->{sqlstate}, '23505', '... then that one is not put back');
$session->value("SELECT feishu.cancel_flow($fresh)");
is($session->value("SELECT feishu.retry_flow($cancelled)"), 't', '... but is when the other is cancelled, too');
$session->value("SELECT feishu.resume_server('feishu')");

# ---- other transactions ----

$session->value('BEGIN');
my $first = enqueue($session, idempotent_key => 'order-6');
$second->send('SELECT ' . enqueue_call(idempotent_key => 'order-6'));
until_true(
	FeishuFlow::Session->new($node),
	'a second one waits for the first',
	'SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ' . $second->pid . " AND wait_event_type = 'Lock'");
$session->value('COMMIT');
is($second->result->{out}, $first, '... and gets its id after the commit');

$session->value('BEGIN');
$first = enqueue($session, idempotent_key => 'order-7');
$second->send('SELECT ' . enqueue_call(idempotent_key => 'order-7'));
until_true(
	FeishuFlow::Session->new($node),
	'a second one waits for the first',
	'SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ' . $second->pid . " AND wait_event_type = 'Lock'");
$session->value('ROLLBACK');
my $own = $second->result->{out};
ok($own > 0 && $own != $first, '... and queues its own after a rollback');
is(queued('order-7'), 1, '... once');

is( $session->value(
			'BEGIN; SAVEPOINT s; SELECT '
		  . enqueue_call(idempotent_key => 'order-8')
		  . ' > 0; ROLLBACK TO s; SELECT '
		  . enqueue_call(idempotent_key => 'order-8')
		  . ' > 0; COMMIT'),
	"t\nt",
	'a key that was rolled back to a savepoint is queued');
is(queued('order-8'), 1, '... once');

# ---- a transaction with an old snapshot ----

foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$session->value("SELECT feishu.pause_server('feishu')");
	my $ended = enqueue($session, idempotent_key => "old $level");
	$second->value("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM feishu.flows");
	$session->value("SELECT feishu.cancel_flow($ended)");
	my $anew = enqueue($second, idempotent_key => "old $level");
	isnt($anew, $ended, "$level: the key of a flow that was cancelled since the snapshot is queued");
	is(enqueue($second, idempotent_key => "old $level"), $anew, '... once');
	$second->value('COMMIT');
	$session->value("SELECT feishu.resume_server('feishu')");
	until_ended($session);
	is($session->value("SELECT state FROM feishu.flows WHERE id = $anew"), 'succeeded', '... and sent');
}

# ---- roles ----

$session->value('CREATE ROLE clerk; GRANT USAGE ON FOREIGN SERVER feishu TO clerk');
$session->value("CREATE USER MAPPING FOR clerk SERVER feishu OPTIONS (app_id 'cli_test', app_secret 'secret')");
$session->value('SET ROLE clerk');
my $of_clerk = enqueue($session, idempotent_key => 'order-1');
isnt($of_clerk, $id, 'a role does not get the flow of another');
$session->value('RESET ROLE');

# ---- triggers ----

$session->value('CREATE TABLE orders (id int, note text)');
$session->value('CREATE TRIGGER t AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION '
	  . q{feishu.flow_trigger('app', 'flow', '{"_id": 1111}', '{"id": "$.new.id"}', '{"idempotent_key": "$.new.note"}')}
);
$session->value("INSERT INTO orders VALUES (1, 'saved'); UPDATE orders SET id = id; UPDATE orders SET id = id");
is(queued('saved'), 1, 'a trigger queues a key once');

# ---- a copy of the database ----

$session->value('CREATE DATABASE one');
create_server($node, 'feishu', { base_url => $elsewhere->url }, undef, 'one');
my $one = FeishuFlow::Session->new($node, database => 'one');
$one->value("SELECT feishu.pause_server('feishu')");
my $original = enqueue($one, idempotent_key => 'copied');
$one->quit;
# before there is a dispatcher in the copy
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->reload;
until_true(
	$session,
	'dispatchers are gone',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'});
$session->value('CREATE DATABASE copy TEMPLATE one');
my $copy = FeishuFlow::Session->new($node, database => 'copy');
my $here = enqueue($copy, idempotent_key => 'copied');
isnt($here, $original, 'a flow that waits in the original does not stand for one of the copy');
is(enqueue($copy, idempotent_key => 'copied'), $here, '... where the key is queued once');
like(
	$copy->value("SELECT state || ' ' || error FROM feishu.flows WHERE id = $original"),
	qr/^cancelled the database was copied/,
	'... the other is cancelled there');
$copy->value("SELECT feishu.resume_server('feishu')");
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = on');
$node->reload;
until_ended($copy);
is($copy->value("SELECT state FROM feishu.flows WHERE id = $here"), 'succeeded', '... and it is sent');

done_testing();
