
# Who may do what with the queue: a role sees and changes its own flows and
# those of roles it is a member of, and reaches no server without USAGE.

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
create_server($node, 'private', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('REVOKE USAGE ON FOREIGN SERVER private FROM PUBLIC;'
	  . 'CREATE ROLE owner LOGIN; CREATE ROLE stranger LOGIN; CREATE ROLE leader LOGIN; CREATE ROLE monitor LOGIN; '
	  . 'CREATE ROLE keeper LOGIN;'
	  . 'CREATE ROLE aloof LOGIN NOINHERIT; GRANT owner TO leader; GRANT owner TO aloof; GRANT pg_monitor TO monitor;'
	  . 'GRANT CREATE ON SCHEMA public TO stranger; ALTER SERVER feishu OWNER TO keeper');
my %as = map { $_ => FeishuFlow::Session->new($node, user => $_) } qw(owner stranger leader monitor keeper aloof);
my $later = "now() + interval '1 hour'";
my ($id, $result);

# ---- to see ----

my $done = enqueue($as{owner}, params => '{"n": 1}');
succeeds($as{owner}, "SELECT feishu.wait_flow($done)", 'a role queues and waits');
my $queued = enqueue($as{owner}, params => '{"never": true}', run_at => \$later);
my $failed = enqueue($as{owner}, flow_id => 'refusedFlow');
until_ended($session, "id = $failed");
is($session->value("SELECT DISTINCT role FROM feishu.flows"), 'owner', 'a flow is of the role that queued it');
is($as{$_}->value('SELECT count(*) FROM feishu.flows'), '3', "$_ sees it")  foreach qw(owner leader);
is($as{$_}->value('SELECT count(*) FROM feishu.flows'), '0', "$_ does not") foreach qw(stranger monitor keeper aloof);
is($as{aloof}->value('SET ROLE owner; SELECT count(*) FROM feishu.flows; RESET ROLE'),
	'3', "... unless he acts as one who does");

if ($node->pg_version >= 16)
{
	# a member that may neither inherit nor act, as PostgreSQL sees it, is a stranger
	$session->value('CREATE ROLE guest LOGIN; GRANT owner TO guest WITH INHERIT FALSE, SET FALSE');
	$as{guest} = FeishuFlow::Session->new($node, user => 'guest');
	is($as{guest}->value('SELECT count(*) FROM feishu.flows'), '0', 'nor does a member without INHERIT and SET');
}
$as{stranger}->value('CREATE FUNCTION spy(jsonb) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS '
	  . q{$$BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END$$});
$result = $as{stranger}->ask('SELECT count(*) FROM feishu.flows WHERE spy(params)');
unlike($result->{err}, qr/seen/, '... not even through a function in the condition');
$as{stranger}->value('CREATE FUNCTION spy(name) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS '
	  . q{$$BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END$$});
$session->value("CREATE ROLE outsider LOGIN; SELECT feishu.pause_server('private')");
$result = FeishuFlow::Session->new($node, user => 'outsider')
  ->ask("SELECT * FROM feishu.dispatch_status WHERE public.spy(server) AND server = 'private'");
unlike($result->{err}, qr/seen private/, '... nor servers in dispatch_status');
$session->value("SELECT feishu.resume_server('private')");

# ---- to change ----

foreach my $who (grep { $as{$_} } qw(stranger monitor keeper guest))
{
	fails_with($as{$who}, "SELECT feishu.cancel_flow($queued)", '42704', "$who cannot cancel it");
	fails_with($as{$who}, "SELECT feishu.retry_flow($failed)", '42704', "$who cannot retry it");
	fails_with($as{$who}, "SELECT feishu.retry_flow($failed, true)", '42704', "$who cannot retry it with a new key");
	fails_with($as{$who}, "SELECT feishu.wait_flow($done)", '42704', "$who cannot wait for it");
	is($as{$who}->value("SELECT feishu.purge_flows('infinity')"), '0', "$who cannot purge it");
}
is( $session->value("SELECT string_agg(state, ' ' ORDER BY id) FROM feishu.flows"),
	'succeeded queued failed',
	'all is as it was');
like($as{leader}->value("SELECT feishu.wait_flow($done)"), qr/execution_id/, 'a member of the role can wait for it');
is($as{leader}->value("SELECT feishu.cancel_flow($queued)"), 't', '... cancel');
is($as{leader}->value("SELECT feishu.retry_flow($failed)"), 't', '... retry');
until_ended($session);
is(look($session, $failed, 'role, attempts'), 'owner|1', '... and the flow stays what it was');
# one who does not inherit may not see it, but may change it, as he could after SET ROLE: all of it, the same by each
fails_with($as{aloof}, "SELECT feishu.wait_flow($done)", '42704', 'a member without INHERIT cannot wait for it');
my $his = enqueue($as{owner}, params => '{"never": true}', run_at => \$later);
is($as{aloof}->value("SELECT feishu.cancel_flow($his)"), 't', '... but cancel');
is($as{aloof}->value("SELECT feishu.retry_flow($his)"), 't', '... retry');
until_ended($session, "id = $his");
is($as{aloof}->value("SELECT feishu.purge_flows('" . look($session, $his, 'finished_at') . "')"), '3', '... and purge');
is($as{leader}->value("SELECT feishu.purge_flows('infinity')"), '1', '... purge');
is($as{leader}->value("SET ROLE owner; SELECT feishu.purge_flows('infinity'); RESET ROLE"), "0", '... once');

# a locked row must not tell that it is there, nor hold anybody up
$queued = enqueue($as{owner}, params => '{"never": true}', run_at => \$later);
fails_with($as{stranger}, "BEGIN; SELECT feishu.cancel_flow($queued)", '42704', 'a stranger tries to cancel');
is($as{owner}->value("SELECT feishu.cancel_flow($queued)"), 't', '... which locks nothing');
$as{stranger}->value('ROLLBACK');
$queued = enqueue($as{owner}, params => '{"n": 2}', run_at => \"clock_timestamp() + interval '300 ms'");
$as{stranger}->value('BEGIN');
$as{stranger}->ask("SAVEPOINT a; SELECT feishu.cancel_flow($queued)");
succeeds($as{owner}, "SELECT feishu.wait_flow($queued)", '... and keeps no flow from being sent');
$as{stranger}->value('ROLLBACK');

# ---- the tables ----

my @tables = split /\n/,
  $session->value("SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
	  . "WHERE nspname = 'feishu_internal' AND relkind = 'r' ORDER BY 1");
cmp_ok(scalar(@tables), '>=', 4, 'there are tables: ' . join(', ', @tables));
foreach my $table (@tables)
{
	fails_with($as{owner}, "SELECT * FROM $table", '42501', "$table cannot be read");
}
foreach my $table (@tables)
{
	fails_with($as{owner}, "DELETE FROM $table", '42501', "... deleted from");
	fails_with($as{owner}, "TRUNCATE $table", '42501', "... truncated");
	fails_with($as{owner}, "BEGIN; LOCK TABLE $table", '42501', "... locked");
	$as{owner}->value('ROLLBACK');
	fails_with($as{owner}, "COPY $table TO STDOUT", '42501', "... copied");
	fails_with(
		$as{stranger},
		"CREATE TRIGGER evil AFTER INSERT OR UPDATE ON $table FOR EACH ROW "
		  . "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		'42501',
		'... have a trigger');
	fails_with($as{stranger}, "CREATE RULE evil AS ON INSERT TO $table DO ALSO SELECT 1", '42501', '... have a rule');
	fails_with($as{stranger}, "CREATE TABLE public.child () INHERITS ($table)", '42501', '... have children');
	fails_with($as{stranger}, "CREATE TABLE public.reference (id bigint REFERENCES $table)",
		'42501', '... be referred to')
	  if $table =~ /outbox/;
}
fails_with($as{owner}, "INSERT INTO feishu_internal.outbox (id) VALUES (1)", '42501', 'a flow cannot be forged');
fails_with($as{owner}, "UPDATE feishu_internal.outbox SET roleid = 10", '42501', '... nor be given to another role');
fails_with($as{owner}, "$_", '42501', "... nor by the view: $_")
  foreach "UPDATE feishu.flows SET params = '{}'", 'DELETE FROM feishu.flows',
  'INSERT INTO feishu.flows (id) VALUES (1)';
fails_with($as{owner}, 'UPDATE feishu_internal.last_id SET id = 1', '42501', 'the ids cannot be set back');
fails_with($as{stranger}, "CREATE TABLE $_.mine ()", '42501', "nobody makes anything in the schema $_")
  foreach qw(feishu feishu_internal);

# PostgreSQL waits for the lock of such commands before it looks whose the table is
$as{leader}->value('BEGIN; SELECT count(*) FROM feishu.flows');
foreach my $command (
	'CREATE RULE evil AS ON INSERT TO feishu_internal.outbox DO ALSO SELECT 1',
	'CREATE TRIGGER evil AFTER INSERT ON feishu_internal.outbox FOR EACH ROW '
	. 'EXECUTE FUNCTION suppress_redundant_updates_trigger()',
	'ALTER TABLE feishu_internal.outbox ADD COLUMN evil text',
	'TRUNCATE feishu_internal.outbox')
{
	fails_with($as{stranger}, "SET lock_timeout = '5s'; $command", '42501', "no lock is waited for: $command");
}
$as{leader}->value('COMMIT');

# ... not even by those who may read and write all data
$session->value('CREATE ROLE clerk LOGIN; GRANT pg_read_all_data, pg_write_all_data TO clerk');
my $clerk = FeishuFlow::Session->new($node, user => 'clerk');
foreach my $table (@tables)
{
	is($clerk->value("SELECT count(*) FROM $table"), '0', "who may read all data sees nothing in $table");
	is($clerk->value("WITH gone AS (DELETE FROM $table RETURNING 1) SELECT count(*) FROM gone"),
		'0', '... deletes nothing');
}
# ... nor what is in the queue by its statistics, which they may read; EXPLAIN estimates by them, for everybody
enqueue_many(
	$as{stranger}, 1000, 1200,
	idempotent_key => \"'often' || g % 3",
	run_at => \$later,
	loop_masks => '["often"]');
$session->value('ANALYZE feishu_internal.outbox');
is( $clerk->value(
			"SELECT string_agg(attname, ' ' ORDER BY attname) "
		  . "FROM pg_statistic s JOIN pg_attribute a ON starelid = attrelid AND staattnum = attnum "
		  . "WHERE attrelid = 'feishu_internal.outbox'::regclass"),
	'attempts created_at database end_number expires_at finished_at handler_state id is_async max_attempts next_at '
	  . 'ordering_key own_key priority replaceable roleid run_at server server_owner state '
	  . 'system_identifier unanswered',
	'there are no statistics of columns with content');
is( $as{owner}->value("EXPLAIN SELECT FROM feishu.flows WHERE idempotent_key = 'often1'") =~ s/often1/never/gr,
	$as{owner}->value("EXPLAIN SELECT FROM feishu.flows WHERE idempotent_key = 'never'"),
	'... nor does EXPLAIN tell whether a guess is a good one');
$as{stranger}->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");
$as{stranger}->value("SELECT feishu.purge_flows('infinity')");
fails_with($clerk, <<'SQL', '42501', '... and forges no flow of a superuser');
INSERT INTO feishu_internal.outbox (id, roleid, server_owner, system_identifier, database, is_async, own_key,
	created_at, run_at, expires_at, server, namespace, flow_id, operator, idempotent_key)
SELECT 1000000, 10, 10, 1, oid, true, true, now(), now(), 'infinity', 'private', 'app', 'forged', '{"_id": 1}', 'key'
FROM pg_database WHERE datname = current_database()
SQL

# ---- servers ----

fails_with($as{owner}, 'SELECT ' . enqueue_call(server => 'private'), '42501', 'no USAGE, no enqueue');
$session->value('GRANT USAGE ON FOREIGN SERVER private TO owner');
$id = enqueue($as{owner}, server => 'private', params => '{"n": 3}');
succeeds($as{owner}, "SELECT feishu.wait_flow($id)", '... with USAGE, it is sent');
# a session knows the server that it used last; that it may use it can end without a change of the server
$session->value('CREATE ROLE team; GRANT USAGE ON FOREIGN SERVER private TO team; GRANT team TO monitor');
foreach my $call ('SELECT ' . enqueue_call(server => 'private', run_at => \$later), flow(server => 'private'))
{
	$session->value('GRANT team TO monitor');
	succeeds($as{monitor}, $call, 'a role may use a server as a member of another');
	$session->value('REVOKE team FROM monitor');
	fails_with($as{monitor}, $call, '42501', '... and in the same session not any more when it is none');
}
$as{monitor}->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE state = 'queued'");
$session->value("SELECT feishu.stat_reset()");
$id = enqueue($as{owner}, server => 'private', params => '{"n": 3}');
$session->value("SELECT feishu.wait_flow($id)");
is($as{ $_->[0] }->value("SELECT count(*) FROM feishu.stat_flows WHERE server = 'private'"),
	$_->[1], "$_->[0] sees $_->[1] of its statistics")
  foreach ([ 'owner', 1 ], [ 'stranger', 0 ], [ 'monitor', 1 ]);
foreach my $function (qw(pause_server resume_server))
{
	fails_with($as{owner}, "SELECT feishu.$function('feishu')", '42501', "$function is for the owner of the server");
	succeeds($as{keeper}, "SELECT feishu.$function('feishu')", '... who may');
	fails_with($as{keeper}, "SELECT feishu.$function('private')", '42501', '... but not with others');
}
$session->value("SELECT feishu.pause_server('private')");
is($as{ $_->[0] }->value("SELECT count(*) FROM feishu.dispatch_status WHERE server = 'private'"),
	$_->[1], "$_->[0] sees $_->[1] rows of its status")
  foreach ([ 'owner', 1 ], [ 'stranger', 0 ], [ 'monitor', 1 ]);
$session->value("SELECT feishu.resume_server('private')");

# ---- whose credentials ----

$mock->config(apps => { cli_mock => 'mock-secret', cli_owner => 'owner-secret' });
$session->value("CREATE USER MAPPING FOR owner SERVER feishu OPTIONS (app_id 'cli_owner', app_secret 'owner-secret')");
$mock->mark;
$id = enqueue($as{owner}, flow_id => 'mine', params => '{"n": 4}');
succeeds($as{owner}, "SELECT feishu.wait_flow($id)", 'a flow is sent');
$id = enqueue($as{stranger}, flow_id => 'public', params => '{"n": 5}');
succeeds($as{stranger}, "SELECT feishu.wait_flow($id)", '... and another');
is_deeply(
	[ map { "$_->{flow_id} $_->{app_id}" } arrivals($mock) ],
	[ 'mine cli_owner', 'public cli_mock' ],
	'each with the credentials of its role');
$id =
  $as{leader}->value('SET ROLE owner; SELECT ' . enqueue_call(flow_id => 'set', params => '{"n": 6}') . '; RESET ROLE');
$session->value("CREATE FUNCTION public.for_owner() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS \$\$ SELECT "
	  . enqueue_call(flow_id => 'definer', params => '{"n": 7}')
	  . '$$; ALTER FUNCTION public.for_owner() OWNER TO owner');
$as{stranger}->value('SELECT public.for_owner()');
until_ended($session);
is( $session->value(
			"SELECT string_agg(flow_id || ' ' || role, ', ' ORDER BY flow_id) FROM feishu.flows "
		  . "WHERE flow_id IN ('set', 'definer')"),
	'definer owner, set owner',
	'the role is current_user: after SET ROLE, in a SECURITY DEFINER function');

# ---- a superuser's trigger on the queue ----

# It runs inside our functions, as the owner, and may call them again: each
# finds back to the rights of its own caller.
$session->value(<<'SQL');
CREATE FUNCTION public.on_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.state IN ('c', 's') AND NEW.flow_id = 'first' THEN
    PERFORM feishu.enqueue_flow('app', 'next', '{"_id": 1}', jsonb_build_object('n', 100 + NEW.id));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER on_change AFTER INSERT OR UPDATE ON feishu_internal.outbox FOR EACH ROW
	EXECUTE FUNCTION public.on_change();
SQL
$id = enqueue($as{stranger}, flow_id => 'first', params => '{"never": true}', run_at => \$later);
is($as{stranger}->value("SELECT feishu.cancel_flow($id)"),
	't', 'a trigger of a superuser on the queue queues another flow');
is($as{stranger}->value('SELECT current_user'), 'stranger', '... and whoever set it off is who they were');
fails_with($as{stranger}, 'SELECT count(*) FROM pg_authid', '42501', '... with the rights they had');
$id = enqueue($as{stranger}, flow_id => 'first', params => '{"n": 12}');
succeeds($as{stranger}, "SELECT feishu.wait_flow($id)", '... also when the dispatcher sets it off');
until_ended($session, "flow_id IN ('first', 'next')");
is($session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'next' AND state = 'succeeded'"),
	'2', '... whose flows are sent');
$session->value('DROP TRIGGER on_change ON feishu_internal.outbox');

# It runs as the owner on behalf of anybody: so it can leave nothing in their session that is done as the owner later.
$session->value(
	q{CREATE FUNCTION public.leaves() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN EXECUTE ''CREATE TEMP TABLE IF NOT EXISTS left_behind ()''; RETURN NULL; END'});
$id = enqueue($as{stranger}, params => '{"never": true}', run_at => \$later);
foreach my $case (
	[ INSERT => 'SELECT ' . enqueue_call(run_at => \$later) ],
	[ UPDATE => "SELECT feishu.cancel_flow($id)" ],
	[ DELETE => "SELECT feishu.purge_flows('infinity')" ])
{
	my ($event, $call) = @$case;
	$session->value("CREATE TRIGGER leaves AFTER $event ON feishu_internal.outbox FOR EACH STATEMENT "
		  . "EXECUTE FUNCTION public.leaves()");
	fails_with(
		$as{stranger}, $call, '42501',
		"the queue is worked on as its owner in a security-restricted operation: $event",
		message => qr/security-restricted operation/);
	$session->value('DROP TRIGGER leaves ON feishu_internal.outbox');
}
$session->value("SELECT feishu.cancel_flow($id)");

# What else a superuser has put there holds for each row, though a row is usually inserted without the executor.
my %refused = (namespace => 'refused', params => '{"never": true}', run_at => \$later);
foreach my $case (
	[
		'a check',
		"ALTER TABLE feishu_internal.outbox ADD CONSTRAINT mine CHECK (namespace <> 'refused')",
		'ALTER TABLE feishu_internal.outbox DROP CONSTRAINT mine',
		'23514', 0
	],
	[
		'an index on an expression',
		"CREATE UNIQUE INDEX mine ON feishu_internal.outbox (lower(flow_id)) WHERE namespace = 'refused'",
		'DROP INDEX feishu_internal.mine',
		'23505', 1
	],
	[
		'an exclusion',
		"ALTER TABLE feishu_internal.outbox ADD CONSTRAINT mine EXCLUDE (flow_id WITH =) WHERE (namespace = 'refused')",
		'ALTER TABLE feishu_internal.outbox DROP CONSTRAINT mine',
		'23P01',
		1
	],
	[
		'a constraint that is deferred',
		"ALTER TABLE feishu_internal.outbox ADD CONSTRAINT mine UNIQUE (id, flow_id) DEFERRABLE INITIALLY DEFERRED",
		'ALTER TABLE feishu_internal.outbox DROP CONSTRAINT mine',
		'00000', 2
	],
	[
		'a rule',
		"CREATE RULE mine AS ON INSERT TO feishu_internal.outbox WHERE NEW.namespace = 'refused' DO INSTEAD NOTHING",
		'DROP RULE mine ON feishu_internal.outbox',
		'00000', 0
	])
{
	my ($what, $make, $drop, $sqlstate, $queued) = @$case;
	$session->value($make);
	my @ends = map { $as{stranger}->ask('SELECT ' . enqueue_call(%refused))->{sqlstate} } 1, 2;
	is("@ends", join(' ', $queued == 1 ? '00000' : $sqlstate, $sqlstate), "$what of a superuser holds");
	is($session->value("SELECT count(*) FROM feishu.flows WHERE namespace = 'refused'"),
		$queued, '... what it lets through is queued');
	is($as{stranger}->ask('SELECT ' . enqueue_call(%refused, idempotent_key => "$what"))->{sqlstate},
		$sqlstate, '... a key of the user\'s, too');
	$session->value($drop);
	$as{stranger}->value("SELECT count(feishu.cancel_flow(id)) FROM feishu.flows WHERE namespace = 'refused'; "
		  . "SELECT feishu.purge_flows('infinity')");
}

# The same with a key of the user's: what throws rows away does not have it looked for without end.
foreach my $case (
	[
		'rule',
		"CREATE RULE mine AS ON INSERT TO feishu_internal.outbox WHERE NEW.namespace = 'refused' DO INSTEAD NOTHING",
		'DROP RULE mine ON feishu_internal.outbox'
	],
	[
		'trigger',
		q{CREATE FUNCTION public.none() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';}
		  . q{ CREATE TRIGGER mine BEFORE INSERT ON feishu_internal.outbox FOR EACH ROW EXECUTE FUNCTION public.none()},
		'DROP TRIGGER mine ON feishu_internal.outbox'
	])
{
	my ($what, $make, $drop) = @$case;
	$session->value($make);
	foreach my $key ([], [ idempotent_key => 'mine' ])
	{
		my $end = $as{stranger}->ask("SET statement_timeout = '10s'; SELECT " . enqueue_call(%refused, @$key));
		is($end->{sqlstate}, '00000',
			"a $what of a superuser may throw a flow away" . (@$key ? ' that has a key' : ''));
	}
	is($session->value("SELECT count(*) FROM feishu.flows WHERE namespace = 'refused'"), 0, '... and does');
	$session->value($drop);
}

# What it throws is not taken for a key that was queued again.
$id = enqueue($as{stranger}, %refused, idempotent_key => 'twice');
$session->value(q{CREATE FUNCTION public.throws() RETURNS trigger }
	  . q{LANGUAGE plpgsql AS 'BEGIN RAISE unique_violation USING MESSAGE = ''his''; END';}
	  . q{ CREATE TRIGGER mine BEFORE UPDATE ON feishu_internal.outbox FOR EACH ROW EXECUTE FUNCTION public.throws()});
fails_with(
	$as{stranger}, "SELECT feishu.cancel_flow($id)",
	'23505',
	'what a trigger of a superuser throws is told as it is',
	message => qr/^his$/);
$session->value('DROP TRIGGER mine ON feishu_internal.outbox');
$as{stranger}->value("RESET statement_timeout; SELECT feishu.cancel_flow($id)");

# ---- what others define is not called ----

$session->value('GRANT CREATE ON DATABASE postgres TO stranger');
$as{stranger}
  ->value('CREATE SCHEMA trap; CREATE FUNCTION trap.evil(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS '
	  . q{$$BEGIN RAISE EXCEPTION 'trapped as %', current_user; END$$;}
	  . 'CREATE OPERATOR trap.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = trap.evil);'
	  . 'CREATE FUNCTION trap.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS '
	  . q{$$BEGIN RAISE EXCEPTION 'trapped as %', current_user; END$$;}
	  . 'CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS '
	  . q{$$BEGIN RAISE EXCEPTION 'trapped as %', current_user; END$$;}
	  . 'GRANT USAGE ON SCHEMA trap TO PUBLIC');
$session->value('ALTER DATABASE postgres SET search_path = trap, pg_catalog, public');
my $trapped = FeishuFlow::Session->new($node);
my $worker = dispatcher($session);
$session->value("SELECT pg_terminate_backend($worker)");
until_dispatcher($session, $worker);
$id = $trapped->value('SELECT ' . enqueue_call(params => '{"n": 8}', run_at => \"pg_catalog.now()"));
like($trapped->value("SELECT feishu.wait_flow($id)"), qr/execution_id/, 'a search_path with traps does not matter');
$queued = $trapped->value(
	'SELECT ' . enqueue_call(params => '{"never": true}', run_at => \"pg_catalog.now() + interval '1 hour'"));
is($trapped->value("SELECT feishu.cancel_flow($queued)"), 't', '... to cancel');
is($trapped->value("SELECT feishu.retry_flow($queued)"), 't', '... retry');
succeeds($trapped, "SELECT feishu.wait_flow($queued)", '... wait');
succeeds($trapped, 'SELECT feishu.purge_flows(pg_catalog.now())', '... purge');
succeeds(
	$trapped,
	"SELECT feishu.pause_server('feishu'); SELECT feishu.resume_server('feishu'); SELECT count(*) FROM feishu.flows; "
	  . "SELECT count(*) FROM feishu.dispatch_status",
	'... pause, resume and look');

done_testing();
