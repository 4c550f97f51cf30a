
# Of flows with one replace_key the last one wins: while one waits and was never begun with, whoever queues the key
# again replaces what it has, and it keeps its id and its place.  One that is under way or was tried is left alone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "max_prepared_transactions = 2\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'other', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $second = FeishuFlow::Session->new($node);
my $third = FeishuFlow::Session->new($node);

sub save
{
	my ($who, $n, %arguments) = @_;
	return enqueue($who, replace_key => 'order-1', params => qq({"n": $n}), %arguments);
}

sub save_call
{
	my ($n, %arguments) = @_;
	return enqueue_call(replace_key => 'order-1', params => qq({"n": $n}), %arguments);
}

sub pause { return $session->value("SELECT feishu.pause_server('feishu')"); }

# What was sent since; nothing must wait.
sub sent
{
	until_ended($session);
	my @numbers = numbers($mock);
	$mock->mark;
	return "@numbers";
}

sub resume
{
	$session->value("SELECT feishu.resume_server('feishu')");
	return sent();
}

sub until_waits
{
	my ($who, $name) = @_;
	return until_true($third, $name,
		'SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ' . $who->pid . " AND wait_event_type = 'Lock'");
}

# ---- while it waits ----

pause();
my $id = save($session, 1);
my ($key) = look($session, $id, 'idempotent_key');
my $behind = enqueue($session, params => '{"n": 10}');
is( save(
		$session, 2,
		flow_id => 'other',
		namespace => 'app2',
		operator => '{"_id": 2}',
		is_async => 'f',
		loop_masks => '["m"]',
		max_attempts => 3,
		expires_at => '2100-01-01',
		ordering_key => 'o'),
	$id,
	'a flow that waits is replaced, and its id returned');
is( look(
		$session,
		$id,
		q{flow_id, namespace, operator ->> '_id', params ->> 'n', is_async, loop_masks ->> 0, max_attempts, }
		  . q{extract(year FROM expires_at), ordering_key, replace_key, state}),
	'other|app2|2|2|f|m|3|2100|o|order-1|queued',
	'... all that it has');
isnt(look($session, $id, 'idempotent_key'), $key, '... its new values have a key of their own');
is(save($session, 3), $id, '... and so it is again');
is(look($session, $id, 'coalesce(ordering_key, loop_masks::text, max_attempts::text)'),
	'', '... what is not given is as if it never was');
is(enqueue($session, params => '{"n": 11}'), $behind + 1, '... no id is drawn for it');
isnt(save($session, 4, replace_key => 'Order-1'), $id, 'a key that differs in case is another');
isnt(save($session, 5, server => 'other'), $id, 'another server has keys of its own');
until_ended($session, "server = 'other'");
$mock->mark;
is(resume(), '3 10 11 4', 'the last values are sent, in the place of the first');

# ---- under way, tried, ended, put back ----

$mock->fault(type => 'hold');
my $flying = save($session, 20);
until_state($session, $flying, 'sending');
my $next = save($session, 21);
isnt($next, $flying, 'a flow that is under way is left alone');
$mock->well;
is(sent(), '20 21', '... and the new one is sent behind it');
isnt(save($session, 22), $next, 'a flow that succeeded is left alone');
is(sent(), '22', '... and the new one is sent');

$mock->rules([ { kind => 'execute' }, { type => 'status', status => 503 } ]);
my $tried = save($session, 30, run_at => '-infinity', max_attempts => 1000);
wait_until('it was tried', sub { look($session, $tried, 'attempts > 0') eq 't' });
pause();
until_state($session, $tried, 'retrying');
$next = save($session, 31);
isnt($next, $tried, 'a flow that was tried is left alone');
is(save($session, 32), $next, '... and the one behind it is replaced');
$mock->well;
$mock->mark;
is(join(' ', sort split / /, resume()), '30 32', '... both are sent');

pause();
my $cancelled = save($session, 40);
$session->value("SELECT feishu.cancel_flow($cancelled)");
$next = save($session, 41);
isnt($next, $cancelled, 'a flow that was cancelled is left alone');
is($session->value("SELECT feishu.retry_flow($cancelled)"), 't', '... and can be put back beside the next');
is(save($session, 42), $next, '... which is replaced, and not the one that was put back');
is(resume(), '40 42', '... both are sent');

# ---- when it is to be sent ----

my $later = save($session, 50, run_at => \q{now() + '1 h'});
is(save($session, 51), $later, 'a flow of later is replaced by one of now');
is(sent(), '51', '... which is sent at once');
pause();
my $early = save($session, 52);
is(save($session, 53, run_at => \q{now() + '1 h'}), $early, 'a flow of now is replaced by one of later');
enqueue($session, params => '{"n": 54}');
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "id > $early");
is(join(' ', numbers($mock)), '54', '... which waits');
is(save($session, 55, run_at => \q{now() + '300 ms'}), $early, '... and by one of soon');
is(sent(), '54 55', '... which is sent then');

# a debounce: each save puts the flow off
my $saves = 0;
my $first = save($session, 60, run_at => \q{now() + '400 ms'});
my %ids = ($first => 1);
while ($saves < 20)
{
	$saves++;
	$ids{ save($session, 60 + $saves, run_at => \q{now() + '400 ms'}) } = 1;
	$session->value('SELECT pg_sleep(0.05)') if $saves < 15;
}
my @sent = split / /, sent();
is($sent[-1], 80, 'of a row that is saved again and again the last values are sent');
is(scalar @sent, scalar keys %ids, '... and one flow for each id that there was: one, unless the machine is slow');

# ---- rows that the dispatcher has seen: due, and waiting for a place ----

$session->value(q{ALTER SERVER feishu OPTIONS (ADD max_concurrency '2')});
$mock->fault(type => 'hold');
my $blocker = enqueue($session, params => '{"n": 1}');
until_state($session, $blocker, 'sending');
$session->value('BEGIN');
my @due = map { save($session, $_, replace_key => "due-$_", run_at => \q{now() + '50 ms'}) } 70 .. 74;
$session->value('COMMIT');
until_state($session, $due[0], 'sending');
is(save($session, 171, replace_key => 'due-71', run_at => \q{now() + '1 h'}),
	$due[1], 'a flow that waits for a place is replaced by one of later');
is(save($session, 172, replace_key => 'due-72'), $due[2], '... and by one of now');
$mock->well;
until_ended($session, "id <> $due[1]");
is(join(' ', sort { $a <=> $b } numbers($mock)), '1 70 73 74 172', '... the one of later is not sent now');
is(look($session, $due[1], 'state'), 'queued', '... and waits');
save($session, 173, replace_key => 'due-71');
like(sent(), qr/ 173$/, '... and is sent when it is to be sent at once');
$session->value('ALTER SERVER feishu OPTIONS (DROP max_concurrency)');

# ---- ordering keys ----

pause();
my $head = save($session, 80, ordering_key => 'a');
enqueue($session, params => '{"n": 81}', ordering_key => 'a');
enqueue($session, params => '{"n": 82}', ordering_key => 'b');
save($session, 83, ordering_key => 'b', run_at => \q{now() + '1 h'});
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, "params ->> 'n' = '81'");
is(join(' ', numbers($mock)),
	'81', 'a flow of an ordering key goes when the one before it is replaced by one of another');
is($session->value("SELECT count(*) FROM feishu.flows WHERE state = 'queued'"),
	2, '... in which that comes first by its id');
is(save($session, 84), $head, 'and it is replaced by one of none');
is(join(' ', sort { $a <=> $b } split / /, sent()), '81 82 84', '... all are sent');

# ---- other transactions, savepoints ----

pause();
$session->value('BEGIN');
$first = save($session, 90);
$second->send('SELECT ' . save_call(91));
until_waits($second, 'a second one waits for the first');
$session->value('COMMIT');
is($second->result->{out}, $first, '... and replaces it after the commit');
$session->value('BEGIN');
is(save($session, 92), $first, 'one that replaces');
$second->send('SELECT ' . save_call(93));
until_waits($second, '... is waited for');
$session->value('ROLLBACK');
is($second->result->{out}, $first, '... and replaced what is left of it after a rollback');
is(resume(), '93', '... the last values are sent');

$session->value('BEGIN');
my $gone = save($session, 94, replace_key => 'new');
$second->send('SELECT ' . save_call(95, replace_key => 'new'));
until_waits($second, 'a second one waits for the first');
$session->value('ROLLBACK');
isnt($second->result->{out}, $gone, '... and queues its own after a rollback');
is(sent(), '95', '... which is sent');

pause();
$first = save($session, 100);
$session->value('BEGIN; SAVEPOINT s; SELECT ' . save_call(101) . '; ROLLBACK TO s');
is(look($session, $first, "params ->> 'n'"), 100, 'a savepoint that is rolled back brings back what it had');
$session->value(
	'SELECT ' . save_call(102, replace_key => 'own') . '; SELECT ' . save_call(103, replace_key => 'own') . '; COMMIT');
is(resume(), '100 103', '... and a transaction replaces its own');

# it may begin with a flow while somebody waits to replace it
pause();
$first = save($session, 104);
$session->value("BEGIN; UPDATE feishu_internal.outbox SET replaceable = false WHERE id = $first");
$second->value('BEGIN');
$second->send('SELECT ' . save_call(105));
until_waits($second, 'who replaces waits for the claim');
$session->value('COMMIT');
isnt($second->result->{out}, $first, '... and leaves the flow alone');
is($session->ask("SELECT FROM feishu_internal.outbox WHERE id = $first FOR UPDATE NOWAIT")->{sqlstate},
	'00000', '... which is not locked: the dispatcher writes its end');
$second->value('COMMIT');
is(resume(), '104 105', '... both are sent');

# the dispatcher passes over what is being replaced
foreach my $end ('COMMIT', 'ROLLBACK', 'ROLLBACK TO s')
{
	pause();
	my $locked = save($session, 110);
	my $after = enqueue($session, params => '{"n": 111}');
	$second->value('BEGIN; SAVEPOINT s');
	save($second, 112);
	$session->value("SELECT feishu.resume_server('feishu')");
	until_ended($session, "id = $after");
	is(look($session, $locked, 'state'), 'queued', "$end: a flow that is being replaced is passed over");
	$second->value($end);
	is(sent(), $end eq 'COMMIT' ? '111 112' : '111 110', '... and is sent afterwards');
	$second->value('ROLLBACK') if $end =~ /TO/;
}

# the end of what is under way is written, whoever queues its key meanwhile
$mock->fault(type => 'hold');
$flying = save($session, 120);
until_state($session, $flying, 'sending');
$second->value('BEGIN');
save($second, 121);
$mock->well;
until_ended($session, "id = $flying");
$second->value('COMMIT');
is(sent(), '120 121', 'the dispatcher waits for nobody who queues the key of what is under way');

# ---- wait_flow, levels of isolation ----

pause();
$first = save($session, 130);
my $waits = $session->ask('BEGIN; SELECT ' . save_call(131) . "; SELECT feishu.wait_flow($first)");
is($waits->{sqlstate}, '55000', 'a transaction does not wait for what it has replaced');
$session->value('ROLLBACK');
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$second->value("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM feishu.flows");
	is(save($second, 132), $first, "$level: what was queued before the snapshot is replaced");
	$second->value('COMMIT');
	$second->value("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM feishu.flows");
	save($session, 133);
	is($second->ask('SELECT ' . save_call(134))->{sqlstate}, '40001', '... what was replaced since then is an error');
	$second->value('ROLLBACK');
	$second->value("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM feishu.flows");
	$session->value("SELECT feishu.cancel_flow($first)");
	$next = save($second, 135);
	isnt($next, $first, '... what was cancelled since then is left alone');
	$second->value('COMMIT');
	$first = $next;
}
is(resume(), '135', '... and the new one is sent');

# ---- prepared transactions ----

pause();
$first = save($session, 140);
$session->value('BEGIN; SELECT ' . save_call(141, run_at => \q{now() + '1 h'}) . q{; PREPARE TRANSACTION 'p'});
$session->value("SELECT feishu.resume_server('feishu')");
enqueue($session, params => '{"n": 142}');
until_ended($session, "id > $first");
$session->value(q{ROLLBACK PREPARED 'p'});
is(sent(), '142 140', 'a prepared transaction that replaced is rolled back, and the flow is sent as it was');

# ---- roles, owners of servers ----

pause();
$first = save($session, 150);
$session->value('CREATE ROLE clerk; CREATE ROLE boss');
$session->value('SET ROLE clerk');
isnt(save($session, 151), $first, 'a role does not replace the flow of another');
$session->value('RESET ROLE');
$session->value('GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO boss; ALTER SERVER feishu OWNER TO boss');
is(save($session, 152), $first, 'what waits for a server of another owner is replaced');
is($session->value("SELECT server_owner = 'boss'::regrole FROM feishu_internal.outbox WHERE id = $first"),
	't', '... by a flow of the new one');
# a superuser would have all of them sent
$session->value("SET ROLE boss; SELECT feishu.resume_server('feishu'); RESET ROLE");
until_true(
	$session,
	'what still belongs to the other is held',
	"SELECT count(*) = 1 FROM feishu_internal.held_lane WHERE roleid = 'clerk'::regrole");
until_ended($session, "id = $first");
is(join(' ', numbers($mock)), '152', '... which is sent, and what still belongs to the other is not');
$session->value("ALTER SERVER feishu OWNER TO CURRENT_USER; SELECT feishu.resume_server('feishu')");
is(sent(), '152 151', "... until the server is that one's again");

# ---- arguments, triggers ----

my $both = $session->ask('SELECT ' . save_call(1, idempotent_key => 'k'));
is($both->{sqlstate}, '22023', 'a replace_key and an idempotent_key are an error');
is($both->{message}, 'arguments "replace_key" and "idempotent_key" cannot be given together', '... that names them');
is($session->ask('SELECT ' . save_call(1, replace_key => ''))->{sqlstate}, '22023', 'an empty key is an error');
is($session->ask('SELECT ' . save_call(1, replace_key => 'x' x 300))->{sqlstate},
	'22023', 'and so is one that is too long');

$session->value('CREATE TABLE orders (id int, amount int)');
$session->value('CREATE TRIGGER t AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION '
	  . q{feishu.flow_trigger('app', 'flow', '{"_id": 1111}', '{"n": "$.new.amount"}', }
	  . q{'{"replace_key": "order ${$.new.id}"}')});
$session->value('BEGIN; INSERT INTO orders VALUES (1, 160), (2, 161); UPDATE orders SET amount = amount + 10; '
	  . 'UPDATE orders SET amount = amount + 10; COMMIT');
is(sent(), '180 181', 'a trigger with a replace_key starts one flow for each row, with the last values');
$session->value('ALTER TABLE orders DISABLE TRIGGER t');
$session->value('CREATE TRIGGER u AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION '
	  . q{feishu.flow_trigger('app', 'flow', '{"_id": 1111}', '', '{"replace_key": "a", "idempotent_key": "b"}')});
is($session->ask('INSERT INTO orders VALUES (3, 3)')->{sqlstate}, '22023', '... and not an idempotent_key, too');

# ---- many sessions ----

pause();
my $bench = pgbench_start($node, <<'SQL', '-c', '8', '-t', '100', '-M', 'prepared');
\set k random(1, 5)
SELECT feishu.enqueue_flow('app', 'flow', '{"_id": 1111}', jsonb_build_object('n', :k::int),
	replace_key => 'key ' || :k::int);
SQL
ok($bench->finish, 'many sessions queue a few keys');
is($session->value("SELECT count(*), count(DISTINCT replace_key) FROM feishu.flows WHERE state = 'queued'"),
	'5|5', 'any number of sessions leave one flow of a key');
is(join(' ', sort split / /, resume()), '1 2 3 4 5', '... which is sent once');

# ---- a copy of the database ----

$session->value('CREATE DATABASE one');
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'one');
my $one = FeishuFlow::Session->new($node, database => 'one');
$one->value("SELECT feishu.pause_server('feishu')");
my $original = save($one, 190);
$one->quit;
$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->reload;
until_true(
	$session,
	'dispatchers are gone',
	q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'});
$session->value('CREATE DATABASE copy TEMPLATE one');
my $copy = FeishuFlow::Session->new($node, database => 'copy');
my $here = save($copy, 191);
isnt($here, $original, 'in a copy, a flow that waits in the original is not replaced');
is(save($copy, 192), $here, '... but what was queued in the copy is');
like(
	look($copy, $original, "state || ' ' || error"),
	qr/^cancelled the database was copied/,
	'... the other is cancelled there');

# one that came by replication, say, after the snapshot
$copy->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM feishu.flows');
my $elsewhere = FeishuFlow::Session->new($node, database => 'copy');
my $stray = save($elsewhere, 193, replace_key => 'stray');
$elsewhere->value("UPDATE feishu_internal.outbox SET database = 1 WHERE id = $stray");
$copy->value("SET LOCAL statement_timeout = '10s'");
is($copy->ask('SELECT ' . save_call(194, replace_key => 'stray'))->{sqlstate},
	'40001', '... and what the snapshot does not see is an error');
$copy->value('ROLLBACK');
isnt(save($copy, 195, replace_key => 'stray'), $stray, '... which the next transaction does not meet');

done_testing();
