
# CREATE EXTENSION makes the same tables whatever is set in the session, and dispatch_problem tells what somebody has
# made of them since.

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
$node->safe_psql('postgres', 'CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; CREATE DATABASE odd');

# ---- created with odd settings ----

$node->safe_psql('odd',
		'CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler; '
	  . 'ALTER DATABASE odd SET default_table_access_method = heap2');
my %odd = (
	search_path => 'public',
	quote_all_identifiers => 'on',
	check_function_bodies => 'off',
	default_transaction_isolation => 'serializable',
	array_nulls => 'off',
	escape_string_warning => 'on',
	transform_null_equals => 'on',
	row_security => 'off',
	DateStyle => 'German',
	session_replication_role => 'replica',
	constraint_exclusion => 'on',
	'plpgsql.variable_conflict' => 'use_column',
	'plpgsql.extra_errors' => 'all');
# not every version has all of them
my %known = map { $_ => 1 } split /\n/, $node->safe_psql('odd', "LOAD 'plpgsql'; SELECT name FROM pg_settings");
delete @odd{ grep { !$known{$_} } keys %odd };
$node->safe_psql(
	'odd',
	join(';',
		"LOAD 'plpgsql'",
		map { "ALTER DATABASE odd SET $_ = " . ($_ eq 'search_path' ? $odd{$_} : "'$odd{$_}'") } sort keys %odd));
# what is found first, were it looked for there
$node->safe_psql(
	'odd',
	q{CREATE FUNCTION public.format(text, text, text, text) RETURNS text LANGUAGE sql
		AS $$ SELECT 'DROP DATABASE none' $$;
	CREATE FUNCTION public.pg_has_role(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
	CREATE FUNCTION public.concat_ws(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'});
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'odd');
create_server($node, 'feishu', { base_url => $mock->url });
my $odd = FeishuFlow::Session->new($node, database => 'odd');
my $session = FeishuFlow::Session->new($node);
is($odd->value('SHOW default_table_access_method'), 'heap2', 'a database has another access method by default');
my $made =
	"SELECT string_agg(c.relname || ' ' || c.relkind::text || ' ' || c.relpersistence::text || ' ' "
  . "|| coalesce(a.amname, '-') || ' ' || c.relrowsecurity, ', ' ORDER BY c.relname) "
  . "FROM pg_class c LEFT JOIN pg_am a ON a.oid = c.relam "
  . "WHERE c.relnamespace IN ('feishu'::regnamespace, 'feishu_internal'::regnamespace)";
is($odd->value($made), $session->value($made), '... there the extension makes the same tables');
foreach my $what (
	  "SELECT string_agg(pg_get_viewdef(oid), '' ORDER BY relname) FROM pg_class "
	. "WHERE relnamespace = 'feishu'::regnamespace AND relkind = 'v'",
	q{SELECT string_agg(pg_get_indexdef(indexrelid), ';' ORDER BY indexrelid::regclass::text) FROM pg_index }
	. q{WHERE indrelid = 'feishu_internal.outbox'::regclass})
{
	$_->value("SET quote_all_identifiers = off; SET search_path = pg_catalog") foreach $odd, $session;
	is($odd->value($what), $session->value($what), '... and the same definitions');
}
until_dispatcher($odd);
my $id = enqueue($odd);
succeeds($odd, "SELECT feishu.wait_flow($id)", '... and its queue works');
is($odd->value('SELECT feishu.dispatch_problem()'), '', '... without a problem');

# ---- somebody else's schema ----

$node->safe_psql('postgres', 'CREATE DATABASE taken');
my $taken = FeishuFlow::Session->new($node, database => 'taken');
$taken->value('CREATE SCHEMA feishu');
fails_with(
	$taken, 'CREATE EXTENSION feishu_flow', '42P06', 'a schema feishu is there already',
	message => qr/^schema "feishu" already exists$/,
	hint => qr/^Rename the existing schema \(ALTER SCHEMA feishu RENAME TO \.\.\.\), or drop it/);
$taken->value('ALTER SCHEMA feishu RENAME TO other');
succeeds($taken, 'CREATE EXTENSION feishu_flow', '... once it is renamed, the extension makes its own');
is($taken->value("SELECT count(*) FROM pg_proc WHERE proname = 'feishu_flow_check_schema'"),
	'0', '... and leaves nothing else');
$taken->quit;

# ---- what is made of the tables ----

until_dispatcher($session);
$session->value('CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler');
$session->value(q{CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'});
$session->value(
		'SET allow_system_table_mods = on; CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass); '
	  . 'RESET allow_system_table_mods');
is($session->value('SELECT feishu.dispatch_problem()'), '', 'tables as they were made are no problem');
$session->value('CREATE SERVER lonely FOREIGN DATA WRAPPER feishu_flow; '
	  . 'CREATE USER MAPPING FOR postgres SERVER lonely OPTIONS (tenant_access_token $$t$$)');
$session->value('BEGIN');
enqueue($session, server => 'lonely');
$session->value('DROP USER MAPPING FOR postgres SERVER lonely; COMMIT');
until_true($session, 'a flow is held',
	"EXISTS (SELECT FROM feishu.dispatch_status WHERE server = 'lonely' AND paused)");

foreach my $case (
	[
		'ALTER TABLE feishu_internal.outbox FORCE ROW LEVEL SECURITY',
		'ALTER TABLE feishu_internal.outbox NO FORCE ROW LEVEL SECURITY',
		'table feishu_internal.outbox has row security forced'
	],
	[
		'ALTER TABLE feishu_internal.held_lane SET UNLOGGED',
		'ALTER TABLE feishu_internal.held_lane SET LOGGED',
		'table feishu_internal.held_lane is unlogged'
	],
	[
		'ALTER TABLE feishu_internal.paused_server SET ACCESS METHOD heap2',
		'ALTER TABLE feishu_internal.paused_server SET ACCESS METHOD heap',
		'table feishu_internal.paused_server has another access method than heap'
	],
	[
		'ALTER TABLE feishu_internal.outbox SET ACCESS METHOD heap2',
		'ALTER TABLE feishu_internal.outbox SET ACCESS METHOD heap',
		'table feishu_internal.outbox has another access method than heap'
	],
	[
		'ALTER TABLE feishu_internal.last_id SET ACCESS METHOD heap2',
		'ALTER TABLE feishu_internal.last_id SET ACCESS METHOD heap',
		'table feishu_internal.last_id has another access method than heap'
	],
	[
		'ALTER TABLE feishu_internal.last_id SET UNLOGGED',
		'ALTER TABLE feishu_internal.last_id SET LOGGED',
		'table feishu_internal.last_id is unlogged'
	],
	[
		'CREATE TRIGGER mine BEFORE INSERT ON feishu_internal.outbox FOR EACH ROW EXECUTE FUNCTION nothing()',
		'DROP TRIGGER mine ON feishu_internal.outbox',
		'table feishu_internal.outbox has a trigger'
	],
	[
		'CREATE RULE mine AS ON UPDATE TO feishu_internal.paused_server DO ALSO NOTHING',
		'DROP RULE mine ON feishu_internal.paused_server',
		'table feishu_internal.paused_server has a rule'
	],
	[
		"INSERT INTO pg_dist_partition VALUES ('feishu_internal.claim')",
		'DELETE FROM pg_dist_partition',
		'table feishu_internal.claim is distributed'
	])
{
	my ($do, $undo, $problem) = @$case;
	$session->value($do);
	is($session->value('SELECT feishu.dispatch_problem()'), $problem, $problem);
	is( $session->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = 'lonely'"),
		qq{role "postgres" has no user mapping for server "lonely"; $problem},
		'... in dispatch_status, too');
	like(
		$session->value("SELECT hint FROM feishu.check_server('feishu')"),
		qr/may not be sent, or may be lost: $problem\./,
		'... and by check_server');
	$session->value("SET ROLE app");
	is($session->value('SELECT feishu.dispatch_problem()'), $problem, '... to all roles');
	$session->value('RESET ROLE');
	$id = enqueue($session);
	succeeds($session, "SELECT feishu.wait_flow($id)", '... a flow is sent all the same');
	$session->value($undo);
	is($session->value('SELECT feishu.dispatch_problem()'), '', '... and is no more');
}

# whoever is at it is not waited for
my $other = FeishuFlow::Session->new($node);
$session->value('CREATE TRIGGER mine BEFORE INSERT ON feishu_internal.outbox FOR EACH ROW EXECUTE FUNCTION nothing()');
$other->value('BEGIN; LOCK TABLE feishu_internal.outbox');
$session->value("SET statement_timeout = '5s'");
succeeds($session, 'SELECT feishu.dispatch_problem()', 'dispatch_problem waits for nobody');
$other->value('ROLLBACK');
is( $session->value('SELECT feishu.dispatch_problem()'),
	'table feishu_internal.outbox has a trigger',
	'... and tells it then');

done_testing();
