
# feishu.problems is empty when all is well, and has a row for each thing that needs somebody, whose cure mends it: each
# cure that is SQL is run here.

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
my $session = FeishuFlow::Session->new($node);
my $columns = 'problem, object, count, example, since IS NOT NULL AND since <= now()';
until_dispatcher($session);

sub problems { return $session->value("SELECT $columns FROM feishu.problems ORDER BY 1, 2"); }

sub until_problem
{
	my ($name, $expected) = @_;
	wait_until($name, sub { problems() eq $expected }) or return;
	return pass("$name: $expected");
}

# Runs the cure of the only problem, which ends it.
sub cure
{
	my ($name, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $cure = $session->value('SELECT cure FROM feishu.problems');
	like($cure, $sql, "$name: its cure");
	# each by itself: ALTER SYSTEM is in no transaction
	$session->value($_) foreach split /; /, $cure;
	# a lane that is held looks again within a minute, and now
	$session->value("SELECT feishu.resume_server('feishu')");
	wait_until("$name: the cure mends it", sub { problems() eq '' });
	return pass("$name: the cure mends it");
}

my $well = enqueue($session);
until_ended($session);
enqueue($session, run_at => \q{now() + '1 h'}, params => '{"n": "later"}');
is(problems(), '', 'there is no problem when all is well');

# ---- nothing sends ----

$node->append_conf('postgresql.conf', 'feishu_flow.dispatch = off');
$node->reload;
until_problem('dispatch is off', 'not dispatching|postgres|1||f');
my $waits = enqueue($session);
is(problems(), "not dispatching|postgres|2|$waits|t", '... with what waits');
cure('dispatch is off', qr/^ALTER SYSTEM SET feishu_flow.dispatch = on; SELECT pg_reload_conf\(\)$/);
until_ended($session, "id = $waits");

# ---- a server is paused ----

$session->value("SELECT feishu.pause_server('feishu')");
$waits = enqueue($session);
is(problems(), "server paused|feishu|2|$waits|t", 'a server is paused');
like($session->value('SELECT detail FROM feishu.problems'), qr/^paused by \w+$/, '... it is said by whom');
cure('a server is paused', qr/^SELECT feishu.resume_server\('feishu'\)$/);
until_ended($session, "id = $waits");

# ---- a flow is paused ----

$session->value("SELECT feishu.pause_flow('feishu', 'app', 'flow')");
is(problems(), 'flow paused|feishu, app/flow|1|' . ($waits - 2) . '|t', 'a flow is paused, one of which waits');
$waits = enqueue($session);
enqueue($session, flow_id => 'other');
until_ended($session, "flow_id = 'other'");
is($session->value('SELECT count FROM feishu.problems'), 2, '... and one is queued, and parked');
like($session->value('SELECT detail FROM feishu.problems'), qr/^paused by \w+$/, '... it is said by whom');
$session->value("SELECT feishu.pause_flow('feishu', 'app', 'none')");
is($session->value("SELECT count, example FROM feishu.problems WHERE object LIKE '%/none'"),
	'0|', '... and of another none waits');
$session->value("SELECT feishu.resume_flow('feishu', 'app', 'none')");
cure('a flow is paused', qr/^SELECT feishu.resume_flow\('feishu', 'app', 'flow'\)$/);
until_ended($session, "id = $waits");

# ---- flows are held ----

create_server($node, 'held', { base_url => $mock->url });
$session->value('CREATE ROLE clerk; CREATE ROLE former; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO former');

sub hold
{
	my ($how) = @_;
	$session->value('SET ROLE clerk');
	$session->value('BEGIN');
	my $id = enqueue($session, server => 'held');
	$session->value("SET LOCAL ROLE NONE; $how; COMMIT; RESET ROLE");
	return $id;
}

sub until_held
{
	my ($name, $id) = @_;
	return until_problem($name, "flows held|held, role clerk|1|$id|t");
}

$waits = hold('REVOKE USAGE ON FOREIGN SERVER held FROM PUBLIC');
until_held('a role lost its right to use a server', $waits);
cure('a role lost its right to use a server', qr/^GRANT USAGE ON FOREIGN SERVER held TO clerk$/);
until_ended($session, "id = $waits");

$waits = hold('ALTER SERVER held OWNER TO former');
until_held('a server got another owner', $waits);
cure('a server got another owner', qr/^SELECT feishu.resume_server\('held'\)$/);
until_ended($session, "id = $waits");

$waits = hold('DROP USER MAPPING FOR PUBLIC SERVER held');
until_held('a role has no credentials', $waits);
like(
	$session->value('SELECT cure FROM feishu.problems'),
	qr/^give the role clerk credentials: CREATE USER MAPPING FOR clerk SERVER held/,
	'... its cure is a step');
$session->value("CREATE USER MAPPING FOR clerk SERVER held OPTIONS (app_id 'cli_mock', app_secret 'wrong')");
until_problem('wrong credentials', "app paused|held, role clerk|1|$waits|t");
is( $session->value('SELECT cure FROM feishu.problems'),
	'correct app_id and app_secret: ALTER USER MAPPING FOR clerk SERVER held OPTIONS (SET app_secret ...)',
	'... its cure is a step, too');
$session->value("ALTER USER MAPPING FOR clerk SERVER held OPTIONS (SET app_secret 'mock-secret')");
until_ended($session, "id = $waits");
until_problem('the step mends it', '');

$session->value('SET ROLE clerk; BEGIN');
$waits = enqueue($session, server => 'held');
$session->value('RESET ROLE; DROP SERVER held CASCADE; COMMIT');
until_held('a server is gone', $waits);
my $his = "finished_at IS NULL AND server = 'held' AND role = 'clerk'";
cure('a server is gone', qr/^SELECT feishu.cancel_flow\(id\) FROM feishu.flows WHERE $his$/);

# ---- an app is paused ----

$mock->config(apps => { cli_mock => 'mock-secret', cli_quota => 'quota-secret' });
create_server($node, 'quota', { base_url => $mock->url }, { app_id => 'cli_quota', app_secret => 'quota-secret' });
$mock->rules([ { kind => 'execute', app_id => 'cli_quota' }, { type => 'code', code => 99991403 } ]);
my @waiting = (enqueue($session, server => 'quota'));
until_problem('an app has no quota left', "app paused|quota|1|$waiting[0]|t");
my $since = $session->value('SELECT since FROM feishu.problems');
$session->value('SET ROLE clerk');
push @waiting, enqueue($session, server => 'quota');
$session->value('RESET ROLE');
until_problem('... a role that shares it is held by the same', "app paused|quota|2|$waiting[0]|t");
until_true($session, 'both roles are held',
	q{SELECT count(*) = 2 FROM feishu_internal.held_lane WHERE pause = 'quota'});
is(problems(), "app paused|quota|2|$waiting[0]|t", '... which is one problem');
is($session->value('SELECT since FROM feishu.problems'), $since, '... since the first was held');
is($session->value('SELECT detail FROM feishu.problems'), 'the quota is used up', '... with what the app waits for');
my $step = $session->value('SELECT cure FROM feishu.problems');
like($step, qr/^have the quota raised, then SELECT feishu.resume_server\('quota'\)$/, '... its cure');
$mock->well;
$session->value($step =~ s/.*then //r);
until_ended($session, "id IN ($waiting[0], $waiting[1])");
until_problem('... mends it', '');

# ---- a platform's clock ----

my $apart = FeishuFlow::Mock->start;
foreach my $clock ([ 3600, 'behind' ], [ -3600, 'ahead of' ])
{
	my ($seconds, $what) = @$clock;
	$apart->config(clock => $seconds);
	create_server($node, "apart_$seconds" =~ tr/-/m/r, { base_url => $apart->url });
	my $server = $session->value('SELECT srvname FROM pg_foreign_server ORDER BY oid DESC LIMIT 1');
	my $id = enqueue($session, server => $server);
	until_ended($session, "id = $id");
	is(problems(), "clock apart|$server|1||t", "a platform's clock, $seconds s from ours, is a problem");
	like(
		$session->value('SELECT detail FROM feishu.problems'),
		qr/^the clock of the database host is (?:3600|3599|3601) s $what that of the platform$/,
		'... which says how far');
	like(
		$session->value('SELECT cure FROM feishu.problems'),
		qr/^set the clock of the database host/,
		'... with what to do');
	is($session->value('SET ROLE clerk; SELECT count(*) FROM feishu.problems; RESET ROLE'),
		1, '... for who may use the server');
	$session->value("REVOKE USAGE ON FOREIGN SERVER $server FROM PUBLIC");
	is($session->value('SET ROLE clerk; SELECT count(*) FROM feishu.problems; RESET ROLE'), 0, '... and nobody else');
	$apart->config(clock => 0);
	$session->value("SELECT * FROM feishu.check_server('$server')");
	is(problems(), '', '... until an answer shows that they agree');
}
$apart->config(clock => 30);
create_server($node, 'near', { base_url => $apart->url });
my $near = enqueue($session, server => 'near');
until_ended($session, "id = $near");
is(problems(), '', 'a few seconds are none');

$apart->config(clock => 3600);
create_server($node, 'gone', { base_url => $apart->url });
my $gone = enqueue($session, server => 'gone');
until_ended($session, "id = $gone");
is(problems(), 'clock apart|gone|1||t', 'another one');
$session->value('DROP SERVER gone CASCADE');
is(problems(), '', '... is none when its server is gone');

# ---- a pause is left behind ----

create_server($node, 'dropped', { base_url => $mock->url });
$session->value("SELECT feishu.pause_server('dropped'), feishu.pause_flow('dropped', 'app', 'flow')");
my $left = enqueue($session, server => 'dropped');
$session->value('DROP SERVER dropped CASCADE');
is( $session->value("SELECT string_agg(problem, ' ' ORDER BY problem) FROM feishu.problems WHERE problem ~ 'paused'"),
	'flow paused server paused',
	'a paused server is dropped, whose flows wait');
$session->value($_)
  foreach split /\n/, $session->value("SELECT cure FROM feishu.problems WHERE problem = 'server paused'");
is(look($session, $left, 'state'), 'cancelled', '... the cure does not need it');
is(problems(), '', '... and mends that');

# ---- flows that failed ----

$mock->fault(type => 'code', code => 2320001);
my @failed = map { enqueue($session, params => '{"n": 1}') } 1 .. 3;
until_ended($session, "id >= $failed[0]");
is(problems(), "flows failed|feishu, app/flow|3|$failed[2]|t", 'flows failed for one reason');
my $other = enqueue($session, flow_id => "other's");
until_ended($session, "id = $other");
is( problems(),
	"flows failed|feishu, app/flow|3|$failed[2]|t\nflows failed|feishu, app/other's|1|$other|t",
	'... each flow by itself');
like($session->value(q{SELECT detail FROM feishu.problems WHERE count = 3}),
	qr/2320001|refused/, '... with what is said of one');
$mock->well;
$session->value($_) foreach split /\n/, $session->value('SELECT cure FROM feishu.problems');
until_ended($session, "id >= $failed[0]");
is(problems(), '', '... the cures send them again');

# a key is queued once: of its flows, one can go back to the queue
$mock->fault(type => 'code', code => 2320001);
my @keyed = map {
	my $id = enqueue($session, idempotent_key => $_);
	until_ended($session, "id = $id");
	$id
} 'a', 'b', 'b', 'c';
is(problems(), "flows failed|feishu, app/flow|4|$keyed[3]|t", 'flows with keys failed, one was queued again');
$mock->well;
my $again = enqueue($session, idempotent_key => 'a');
until_ended($session, "id = $again");
is(problems(), "flows failed|feishu, app/flow|3|$keyed[3]|t", '... one whose key has succeeded needs nobody');
cure('flows with keys failed', qr/^SELECT feishu.retry_flow\(max\(id\)\) FROM feishu.flows/);
until_ended($session, "id >= $keyed[0]");
is( $session->value("SELECT string_agg(state, ' ' ORDER BY id) FROM feishu.flows WHERE id >= $keyed[0]"),
	'failed failed succeeded succeeded succeeded',
	'... which sends the last of each key again');

$mock->rules([ { kind => 'execute' }, { type => 'reset_after' }, times => 1 ]);
my $lost = enqueue($session);
until_ended($session, "id = $lost");
is(problems(), "flows unconfirmed|feishu, app/flow|1|$lost|t", 'a flow is unconfirmed');
like($session->value('SELECT cure FROM feishu.problems'), qr/^see on the platform/, '... its cure is a step');
$session->value("SELECT feishu.retry_flow($lost, new_key => true)");
until_ended($session, "id = $lost");
is(problems(), '', '... which mends it');

# ---- handlers ----

$node->append_conf('postgresql.conf', 'feishu_flow.handler_attempts = 1');
$node->reload;
$session->value('CREATE TABLE handled (id bigint); CREATE FUNCTION handle(f feishu.flows) RETURNS void '
	  . 'LANGUAGE sql AS $$INSERT INTO public.handled VALUES (f.id)$$');
$session->value('CREATE VIEW kept AS SELECT * FROM handled; ALTER TABLE handled ADD CHECK (false)');
my $handled = enqueue($session, on_end => 'public.handle');
until_problem('a handler was given up', "handlers given up|feishu, public.handle|1|$handled|t");
like($session->value('SELECT detail FROM feishu.problems'), qr/check constraint/, '... with what is said of it');
$session->value('ALTER TABLE handled DROP CONSTRAINT handled_check');
cure('a handler was given up', qr/^SELECT feishu.retry_handler\(id\) FROM feishu.flows WHERE /);
until_true($session, '... and is called', 'SELECT count(*) = 1 FROM handled');

# ---- a backlog that will expire ----

$session->value(q{ALTER SERVER feishu OPTIONS (ADD max_rate '5')});
$session->value("SELECT feishu.purge_flows(now())");
my $first =
  $session->value('SELECT min(id) FROM (SELECT '
	  . enqueue_call(expires_at => \q{clock_timestamp() + interval '1 min'}, params => '{}')
	  . ' AS id FROM generate_series(1, 3000)) q');
wait_until('a backlog will expire',
	sub { problems() =~ /^backlog expires\|feishu\|(\d+)\|(\d+)\|t$/ && $1 > 1000 && $2 > $first });
pass('what of a backlog will expire at the present rate is a problem');
like(
	$session->value('SELECT detail FROM feishu.problems'),
	qr/^\d+ flows are due, and \d+ a minute/,
	'... with the rate');
$session->value(q{ALTER SERVER feishu OPTIONS (DROP max_rate)});
until_ended($session, "id >= $first");
is($session->value('SELECT count(*) FROM feishu.problems'), 0, '... until it is sent faster');

# ---- statistics ----

$session->value(
	'SELECT count(' . enqueue_call(flow_id => \"'flow' || g", params => '{}') . ') FROM generate_series(1, 1100) g');
until_ended($session, "id > $first");
like(problems(), qr/^statistics incomplete\|feishu_flow.track_flows\|\d+\|\|t$/, 'statistics have made room');
my $cure = $session->value('SELECT cure FROM feishu.problems');
like($cure, qr/^ALTER SYSTEM SET feishu_flow.track_flows = 2000, and restart the server$/, '... its cure');
$session->value($cure =~ s/, and restart.*//r);
$session->quit;
$node->restart;
$session = FeishuFlow::Session->new($node);
is($session->value('SHOW feishu_flow.track_flows') . problems(), '2000', '... mends it');

# ---- who sees what ----

create_server($node, 'secret', { base_url => $mock->url });
$session->value('REVOKE USAGE ON FOREIGN SERVER secret FROM PUBLIC; CREATE ROLE watcher; GRANT pg_monitor TO watcher');
my $mine = enqueue($session, server => 'secret', flow_id => 'refusedFlow');
until_ended($session, "id = $mine");
$session->value("SELECT feishu.pause_server('secret')");
my %seen = map {
	my $role = $_;
	$role => $session->value("SET ROLE $role; SELECT problem, detail FROM feishu.problems ORDER BY 1; RESET ROLE")
} 'clerk', 'watcher';
is($seen{clerk}, '', 'a role without rights sees no problem of others');
is( $seen{watcher},
	"flows failed|LK400\nserver paused|paused by " . $session->value('SELECT current_user'),
	'a monitoring role sees all, but not what is said of the flows of others');

$session->value("SELECT feishu.resume_server('secret')");
$session->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");
$session->value('ALTER SYSTEM SET feishu_flow.dispatch = off');
$node->reload;
until_true($session, 'dispatch is off', 'feishu.dispatch_problem() IS NOT NULL');
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
$mine = enqueue($session, server => 'secret');
is($session->value('SET ROLE clerk; SELECT count, example FROM feishu.problems; RESET ROLE'),
	'0|', 'that nothing sends is seen by all, but not which flows of others wait');
is( $session->value(
			q{SET ROLE watcher; SELECT count, example FROM feishu.problems WHERE problem = 'not dispatching'; }
		  . 'RESET ROLE'),
	"1|$mine",
	'... a monitoring role sees one of them');

$session->quit;
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$session = FeishuFlow::Session->new($node);
is( $session->value(q{SELECT cure FROM feishu.problems WHERE problem = 'not dispatching'}),
	'add feishu_flow to shared_preload_libraries in postgresql.conf, and restart the server',
	'and the cure is a step when the library is not loaded');

done_testing();
