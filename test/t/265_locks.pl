
# The dispatcher waits for no lock that a role without rights can take, and for none on the queue's tables: those who
# have locked them are told by dispatch_problem(), and what is under way goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "max_prepared_transactions = 4\n");
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE nothing LOGIN; CREATE ROLE writer LOGIN IN ROLE pg_write_all_data');
my $attacker = FeishuFlow::Session->new($node, user => 'nothing');
my $writer = FeishuFlow::Session->new($node, user => 'writer');
my $id;

until_dispatcher($session);

sub is_sent
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return succeeds($session, 'SELECT feishu.wait_flow(' . enqueue($session) . ", '10 s')", $name);
}

# ---- a role without rights ----

# it need not own, or use, the extension
my $take =
	'CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE sql AS $$ SELECT $$; '
  . 'ALTER FUNCTION pg_temp.f() DEPENDS ON EXTENSION feishu_flow';
$attacker->value("BEGIN; $take");
is( $session->value(
		"SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND classid = 'pg_extension'::regclass "
		  . "AND pid = "
		  . $attacker->pid),
	't',
	'a role without rights has locked the extension');
is_sent('... flows are sent all the same');
is($session->value('SELECT feishu.dispatch_problem()'), '', '... without a problem');
$attacker->value('ROLLBACK');
$take =~ s/pg_temp/public/g;
$session->value('GRANT CREATE ON SCHEMA public TO nothing');
$attacker->value("BEGIN; $take; PREPARE TRANSACTION 'forgotten'");
is_sent('... nor does a prepared transaction with that lock hold them up');
$attacker->value("ROLLBACK PREPARED 'forgotten'");
is(dispatcher($session) > 0, 1, '... there is a dispatcher');

# ---- those who may lock the tables ----

sub until_told
{
	my ($problem) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return until_true(
		$session,
		"dispatch_problem() tells: $problem",
		'feishu.dispatch_problem() = ' . FeishuFlow::quote($problem));
}

foreach my $table (
	$session->value(
			'SELECT string_agg(relname, \' \') FROM pg_class WHERE relnamespace = \'feishu_internal\'::regnamespace '
		  . 'AND relkind = \'r\'') =~ /\S+/g)
{
	next if $table eq 'last_id';    # the dispatcher does not write to it
	$mock->rules([ { kind => 'execute', flow_id => 'held' }, { type => 'hold' } ]);
	$mock->mark;
	$id = enqueue($session, flow_id => 'held');
	$mock->wait_for(1, kind => 'execute');
	$writer->value("BEGIN; LOCK TABLE feishu_internal.$table IN SHARE MODE");
	# nothing new is claimed; the answer of what is under way is taken while the lock is there
	$mock->well;
	my $waiting = $table eq 'outbox' ? undef : enqueue($session);
	until_told('process ' . $writer->pid . " of role writer has a lock on table feishu_internal.$table");
	like(
		$session->value("SELECT hint FROM feishu.check_server('feishu')"),
		qr/nothing sends queued flows: process \d+ of role/,
		'... check_server() too') if $table eq 'claim';
	$writer->value('COMMIT');
	succeeds($session, "SELECT feishu.wait_flow($id, '10 s')", '... then the flow that was under way has ended');
	succeeds($session, "SELECT feishu.wait_flow($waiting, '10 s')", '... and the one that waited') if defined $waiting;
	is(look($session, $id, 'state, attempts'), 'succeeded|1', '... at its first attempt');
	until_true($session, '... and there is no problem', 'feishu.dispatch_problem() IS NULL');
}

$writer->value("BEGIN; LOCK TABLE feishu_internal.held_lane; PREPARE TRANSACTION 'forgotten'");
$id = enqueue($session);
until_told('a prepared transaction has a lock on table feishu_internal.held_lane');
$writer->value("ROLLBACK PREPARED 'forgotten'");
succeeds($session, "SELECT feishu.wait_flow($id, '10 s')", '... until it ends');

# who waits for a stronger lock is in the way as well
my $reader = FeishuFlow::Session->new($node);
$reader->value('BEGIN; SELECT count(*) FROM feishu.flows');
$writer->send('BEGIN; LOCK TABLE feishu_internal.claim');
until_told('process ' . $writer->pid . ' of role writer waits for a lock on table feishu_internal.claim');
$reader->value('COMMIT');
$writer->result;
$writer->value('COMMIT');
is_sent('flows are sent again');

# a lock that it does wait for
$reader->value('BEGIN; SELECT FROM feishu_internal.claim FOR UPDATE');
$id = enqueue($session);
until_told('process '
	  . $reader->pid
	  . ' of role '
	  . $session->value('SELECT current_user')
	  . ' has a lock that the dispatcher waits for');
$reader->value('COMMIT');
succeeds($session, "SELECT feishu.wait_flow($id, '10 s')", '... until it is given up');
is($session->value('SELECT feishu.dispatch_problem()'), '', '... and there is no problem');

# ---- a dispatcher that begins ----

$writer->value('BEGIN; LOCK TABLE feishu_internal.claim');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(' . dispatcher($session) . ')');
until_told('process ' . $writer->pid . ' of role writer has a lock on table feishu_internal.claim');
$id = enqueue($session);
$writer->value('COMMIT');
succeeds(
	$session,
	"SELECT feishu.wait_flow($id, '10 s')",
	'a dispatcher that begins while the tables are locked works when they are not');

# it leaves although somebody has locked the tables
$session->value("SELECT 1");
my $began = time();
$writer->value('BEGIN; LOCK TABLE feishu_internal.claim');
$node->stop('fast');
cmp_ok(time() - $began, '<', 5 * $FeishuFlow::SLOW, 'it ends at a fast shutdown although the tables are locked');

done_testing();
