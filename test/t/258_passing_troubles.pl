
# What goes wrong for a moment fails no flow and costs no attempt: it waits, and is sent when it can be. max_attempts
# bounds the requests of a flow, deaths of the dispatcher included. An end that cannot be written is no silence.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $toast =
  $node->data_dir . '/'
  . $session->value(
	"SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'feishu_internal.outbox'::regclass");

# Params that are kept apart from their row; beyond 64 kB the dispatcher reads them by themselves, too.
sub kept_apart
{
	my ($kilobytes) = @_;
	my $text = "(SELECT jsonb_build_object('text', string_agg(md5(random()::text), '')) "
	  . "FROM generate_series(1, 32 * $kilobytes))";
	return \$text;
}

sub log_lines
{
	my ($pattern) = @_;
	return () = slurp_file($node->logfile) =~ /$pattern/g;
}

# ---- a file that cannot be read for a while ----

$session->value("SELECT feishu.pause_server('feishu')");
my @apart = map { enqueue($session, params => kept_apart($_)) } 20, 20, 200, 200;
enqueue_many($session, 1, 10);
$session->quit;
$node->stop;
rename $toast, "$toast.away" or die "$toast: $!";
$node->start;
$session = FeishuFlow::Session->new($node);
my $pid = until_dispatcher($session);
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session, 'id <> ALL (ARRAY[' . join(', ', @apart) . '])');
until_true(
	$session,
	'each was tried',
	"(SELECT count(*) FROM feishu.flows WHERE state = 'queued' AND error IS NOT NULL) = 4");
is(look($session, $_, 'state, attempts, sqlstate'), 'queued|0|58P01', 'a row that cannot be read for now waits')
  foreach @apart;
is(ends($session), 'queued 4, succeeded 10', '... and holds up no other');
rename "$toast.away", $toast or die "$toast: $!";
until_ended($session);
is(ends($session), 'succeeded 14', '... and is sent when it can be read');
is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... at its first attempt');
is(dispatcher($session), $pid, '... the dispatcher goes on');
is(log_lines(qr/could not prepare flow \d+, and tries again/), 1, '... the log has one line');

# ---- a transaction that is cancelled, or fails ----

$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
my $locker = FeishuFlow::Session->new($node);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
enqueue_many($session, 1, 20);
$mock->wait_for(20, kind => 'execute');
$locker->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE');
$mock->release;
until_true($session, 'it waits to record', "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid");
$session->value("SELECT pg_cancel_backend($pid)");
wait_until('it was cancelled',
	sub { log_lines(qr/could not work on the queue, and tries again: canceling statement/) });
$mock->well;
enqueue_many($session, 21, 30);
$locker->value('COMMIT');
until_ended($session);
is(ends($session), 'succeeded 30', 'ends whose recording was cancelled are recorded later');
is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... no attempt is counted twice');
started_once($mock, 30, '... and none is sent twice');
is(dispatcher($session), $pid, '... the dispatcher goes on');
is(log_lines(qr/works on the queue again/), 1, '... and says so');

# A cancel that comes when there is no transaction has nothing to cancel.
$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
enqueue_many($session, 1, 20);
$mock->wait_for(20, kind => 'execute');
foreach (1 .. 5)
{
	$session->value("SELECT pg_cancel_backend($pid), pg_sleep(0.02)");
}
$mock->release;
until_ended($session);
is(ends($session), 'succeeded 20', 'a cancel between transactions is no trouble');
is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... no attempt is counted twice');
is(dispatcher($session), $pid, '... the dispatcher goes on');
$mock->well;

# ---- an end that cannot be written ----

$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
my @ids = map { enqueue($session, params => qq({"n": $_})) } 1 .. 3;
$mock->wait_for(3, kind => 'execute');
$session->value(<<'END');
CREATE FUNCTION public.no_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER no_change BEFORE UPDATE ON feishu_internal.outbox FOR EACH ROW EXECUTE FUNCTION public.no_change()
END
$mock->release;
wait_until('that is told',
	sub { log_lines(qr/ends of flows could not be written|the end of flow \d+ could not be written/) });
$mock->well;
$session->value('DROP TRIGGER no_change ON feishu_internal.outbox');
until_ended($session);
is(ends($session), 'succeeded 3', 'ends that a trigger keeps from being written are written when it is gone');
started_once($mock, 3, '... none is sent twice');

$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
@ids = map { enqueue($session, params => qq({"n": $_})) } 1 .. 3;
$mock->wait_for(3, kind => 'execute');
$session->value(<<"END");
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not this one''; END';
CREATE TRIGGER refuse BEFORE UPDATE ON feishu_internal.outbox FOR EACH ROW WHEN (OLD.id = $ids[1])
	EXECUTE FUNCTION public.refuse()
END
$mock->release;
until_ended($session, "id <> $ids[1]");
is(ends($session), 'sending 1, succeeded 2', 'an end that cannot be written for now keeps no other from being written');
$mock->well;
$session->value('DROP TRIGGER refuse ON feishu_internal.outbox');
until_ended($session);
started_once($mock, 3, '... and is written when it can be');

# ... also when it is to be tried again, whose time has come by then
$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$session->value(<<"END");
CREATE TRIGGER refuse BEFORE UPDATE ON feishu_internal.outbox FOR EACH ROW WHEN (OLD.flow_id = 'stuck')
	EXECUTE FUNCTION public.refuse()
END
$mock->rules([ { kind => 'execute' }, { type => 'status', status => 502 }, times => 2 ]);
my $stuck = enqueue($session, flow_id => 'stuck');
$mock->wait_for(1, kind => 'execute');
succeeds(
	$session,
	'SELECT feishu.wait_flow(' . enqueue($session) . q{, '60 s')},
	'while the end of an attempt cannot be written, others are tried again');
is(look($session, $stuck, 'state, attempts'), 'sending|0', '... and it is not');
$session->value('DROP TRIGGER refuse ON feishu_internal.outbox');
until_ended($session);
is($mock->count(kind => 'execute', flow_id => 'stuck'), 2, '... but when it can be written');

$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
@ids = map { enqueue($session, params => qq({"n": $_})) } 1 .. 3;
$mock->wait_for(3, kind => 'execute');
$session->value("DELETE FROM feishu_internal.outbox WHERE id = $ids[1]");
$mock->release;
until_ended($session);
is(ends($session), 'succeeded 2', 'a row that a superuser deletes while it is sent holds up no other');
is(log_lines(qr/could not record the end of flow $ids[1]: somebody has deleted or changed its row/),
	1, '... and the log says so');
$mock->well;

# one row whose end cannot be written holds up no other
$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->rules([ { kind => 'execute' }, { type => 'hold' } ]);
@ids = map { enqueue($session, params => qq({"n": $_})) } 1 .. 3;
$mock->wait_for(3, kind => 'execute');
$session->value(<<"END");
CREATE OR REPLACE FUNCTION public.no_change() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION \$\$not this one\$\$; END';
CREATE TRIGGER no_change BEFORE UPDATE ON feishu_internal.outbox FOR EACH ROW WHEN (OLD.id = $ids[1])
	EXECUTE FUNCTION public.no_change()
END
$mock->release;
$mock->well;
until_ended($session, "id <> $ids[1]");
enqueue_many($session, 4, 10);
until_ended($session, "id <> $ids[1]");
is(ends($session), 'sending 1, succeeded 9', 'an end that a trigger refuses holds up no other flow');
is($session->value('SELECT feishu.dispatch_problem()'), 'table feishu_internal.outbox has a trigger',
	'... and is told');
$session->value('DROP TRIGGER no_change ON feishu_internal.outbox');
until_ended($session);
is(ends($session), 'succeeded 10', '... and is written when it can be');
started_once($mock, 10, '... none is sent twice');
until_true($session, 'nothing fails any more', 'feishu.dispatch_problem() IS NULL');

# ---- max_attempts and deaths of the dispatcher ----

$session->value('SELECT feishu.purge_flows(now())');
begin_anew($mock, $session);
$mock->fault(type => 'hang');
my $once = enqueue($session, max_attempts => \1);
my $thrice = enqueue($session, max_attempts => \3);
foreach my $n (1 .. 4)
{
	my $now = until_dispatcher($session);
	$mock->wait_for($n + 1, kind => 'execute') if $n < 4;
	$session->value("SELECT pg_terminate_backend($now)");
	until_dispatcher($session, $now);
}
until_ended($session);
is(look($session, $once, 'state, attempts, sqlstate'),
	'unconfirmed|1|LK504', 'max_attempts bounds the requests, deaths of the dispatcher included');
is(look($session, $thrice, 'state, attempts'), 'unconfirmed|3', '... whatever their number');
is($mock->executes, 4, '... no request more was made');
like(
	look($session, $once, 'error'),
	qr/^the dispatcher ended before an answer came; given up after 1 attempts$/,
	'... the error says why');
$mock->well;

done_testing();
