
# Values as others send them: JSON null, integers with a scale, padded text, JSON
# that was encoded twice, numbers without a unit, and columns that no jsonb can hold.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.dispatch = off\n");
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 7.00}' });
my $session = FeishuFlow::Session->new($node);

# The body of the last request.
sub sent { return ($mock->log(kind => 'execute'))[-1]{body}; }

sub last_flow { return $session->value("SELECT $_[0] FROM feishu.flows ORDER BY id DESC LIMIT 1"); }

sub trigger
{
	my ($table, @templates) = @_;
	$session->value("CREATE OR REPLACE TRIGGER t AFTER INSERT ON $table FOR EACH ROW "
		  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'flow'"
		  . join('', map { ', ' . FeishuFlow::quote($_) } @templates)
		  . ')');
	return;
}

# ---- JSON null ----

succeeds(
	$session,
	flow(operator => 'null', params => 'null', loop_masks => 'null'),
	'execute_flow takes JSON null for NULL');
is(sent(), '{"operator":"{\"_id\": 7}"}', '... and sends nothing of it, but the operator of the server');
enqueue($session, operator => 'null', params => 'null', loop_masks => 'null');
is(last_flow("concat_ws(' ', operator, params, loop_masks)"), '{"_id": 7}', 'so does enqueue_flow');
$session->value('CREATE TABLE plain (id numeric(10,2), n numeric(10,2), email char(20), doc jsonb, t text)');
trigger('plain', '"$.new.doc"', '"$.new.doc"', '{"loop_masks": "$.new.doc", "max_attempts": "$.new.n"}');
succeeds($session, q{INSERT INTO plain (doc) VALUES ('null')}, '... and a trigger');
is(last_flow("concat_ws(' ', operator, params, loop_masks)"), '{"_id": 7}', '... for all of them');

# ---- JSON of another sort ----

my $twice = qr/encoded twice/;
foreach my $argument (qw(operator params loop_masks))
{
	my $inner = $argument eq 'loop_masks' ? '"[\"a\"]"' : '"{\"_id\": 1}"';
	fails_with(
		$session, flow($argument => $inner), '22023', "$argument that was encoded twice",
		message => qr/argument "$argument" must be a JSON/,
		hint => $twice);
	fails_with(
		$session, 'SELECT ' . enqueue_call($argument => $inner), '22023', '... enqueue_flow',
		message => qr/argument "$argument" must be a JSON/,
		hint => $twice);
}
fails_with(
	$session, flow(params => '"text"'), '22023', 'params that are a text',
	detail => qr/It is a JSON string\./,
	hint => qr/by API name/);
fails_with($session, flow(params => '[1]'), '22023', '... an array', detail => qr/It is a JSON array\./);
fails_with(
	$session, flow(loop_masks => '{}'),
	'22023',
	'loop_masks that are an object',
	detail => qr/It is a JSON object\./);
fails_with(
	$session, flow(operator => '"a@example.com"'), '22023', 'an operator that is a text',
	detail => qr/It is "a\@example\.com"\./,
	hint => qr/Write it like/);
trigger('plain', '', '"$.new.t"');
fails_with(
	$session, q{INSERT INTO plain (t) VALUES ('{"a": 1}')}, '22023', 'params from a text column with JSON',
	detail => qr/It is a JSON string\./,
	hint => qr/::jsonb/);
trigger('plain', '', '{}', '{"loop_masks": "$.new.t"}');
fails_with(
	$session, q{INSERT INTO plain (t) VALUES ('["a"]')}, '22023', 'loop_masks from one',
	detail => qr/It is a JSON string\./,
	hint => $twice);

# ---- integers, and padding ----

trigger('plain', '{"_id": "$.new.id", "email": "$.new.email"}', '{}', '{"max_attempts": "$.new.n"}');
succeeds(
	$session,
	q{INSERT INTO plain VALUES (7, 5, 'li@example.com')},
	'integers from numeric(10,2), an e-mail address from char(20)');
is( last_flow("concat_ws(' ', operator, max_attempts)"),
	'{"_id": 7, "email": "li@example.com"} 5',
	'... are integers, without padding');
fails_with(
	$session, 'INSERT INTO plain VALUES (7.5, 5)',
	'22023',
	'7.50 is no integer',
	message => qr/integer in the range of bigint/);
fails_with(
	$session, 'INSERT INTO plain VALUES (7, 5.5)',
	'22023',
	'5.50 is none either',
	message => qr/must be a positive integer/);
fails_with(
	$session, q{INSERT INTO plain VALUES (NULL, 5, ' ')},
	'22023',
	'blanks are no e-mail address',
	message => qr/must have "_id" or "email"/);
succeeds(
	$session,
	flow(operator => \q{jsonb_build_object('_id', 9007199254740993.000, 'email', 'wang@example.com'::char(30))}),
	'execute_flow takes them too');
is(sent(), '{"operator":"{\"_id\": 9007199254740993, \"email\": \"wang@example.com\"}"}',
	'... and sends what they are');

foreach my $id ('7.00', '7', '7.00')
{
	enqueue($session, operator => qq{{"_id": $id}});
	is(last_flow('operator'), '{"_id": 7}', "an operator like the last one goes out by its value, too: $id");
}
fails_with(
	$session, 'SELECT ' . enqueue_call(operator => '{"_id": 7.5}'),
	'22023',
	'... one that is wrong is refused',
	message => qr/integer in the range of bigint/) for 1 .. 2;
enqueue($session, operator => '{"_id": 12.0, "note": {"a": [1.50, "x "]}}');
is(last_flow('operator'), '{"_id": 12, "note": {"a": [1.50, "x "]}}', '... and what else is there stays as it is');

# ---- units ----

like(
	$session->ask("ALTER SERVER feishu OPTIONS (ADD timeout '30')")->{err},
	qr/WARNING:.*option "timeout" is 30 ms\n.*HINT:.*without one is milliseconds/s,
	'a timeout without a unit that is short says how it was read');
$mock->fault(type => 'hang');
fails_with(
	$session, flow(), 'LK504', '... and so does a call that it ends',
	message => qr/30 ms/,
	hint => qr/without a unit is milliseconds/);
$mock->well;
unlike($session->ask("ALTER SERVER feishu OPTIONS (SET timeout '30s')")->{err},
	qr/WARNING/, '... one with a unit is quiet');
fails_with(
	$session, "ALTER SERVER feishu OPTIONS (SET timeout '5 minutes')",
	'HV024',
	'a unit that there is not',
	hint => qr/Units are us, ms, s, min, h and d/);
fails_with(
	$session, "ALTER SERVER feishu OPTIONS (ADD max_rate '50/day')",
	'HV024',
	'... of a rate',
	hint => qr{/s, /min or /h});
fails_with(
	$session, flow(timeout => '0.0002'), '22023', 'an interval that is too short',
	detail => qr/read as the interval 00:00:00\.0002/,
	hint => qr/without a unit is seconds/);

# ---- columns that no jsonb can hold ----

$session->value(<<'SQL');
CREATE TYPE odd AS ENUM ('good', 'bad', 'advised', 'rights');
CREATE FUNCTION odd_json(odd) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
  IF $1 = 'bad' THEN RAISE division_by_zero; END IF;
  IF $1 = 'advised' THEN RAISE division_by_zero USING HINT = 'My own.'; END IF;
  IF $1 = 'rights' THEN RAISE query_canceled; END IF;
  RETURN '"odd"';
END $$;
CREATE CAST (odd AS json) WITH FUNCTION odd_json(odd);
CREATE TABLE kinds (id int, j json, o odd, other int);
SQL
trigger('kinds');
my %leave = (hint => qr/leave out column "j".*\$\.new\.id/, err => qr/conversion of column "j" to jsonb.*trigger "t"/s);
fails_with($session, q{INSERT INTO kinds VALUES (1, '{"a": "\u0000"}')},
	'22P05', 'the whole event with \u0000 in a json column', %leave);
fails_with($session, q{INSERT INTO kinds VALUES (1, '{"a": "\ud800"}')}, '22P02', '... with a lone surrogate', %leave);
fails_with(
	$session, q{INSERT INTO kinds VALUES (1, '{}', 'bad')}, '22012', "... with a user's cast that fails",
	hint => qr/leave out column "o"/,
	err => qr/conversion of column "o" to jsonb/);
fails_with(
	$session, q{INSERT INTO kinds VALUES (1, '{}', 'advised')},
	'22012',
	'... that has advice of its own',
	hint => qr/^My own\.$/);
is($session->ask(q{INSERT INTO kinds VALUES (1, '{}', 'rights')})->{hint} // '', '',
	'... that is cancelled: no advice');

foreach my $path (
	'$.new.id',
	'$.new.id + 1',
	'$.new.other ? (@ > $.new.id)',
	'$.new ? (@.id > 0 && exists(@.other)).other',
	'-$.new.id',
	'$ ? (@.new.id == 1).new.other',
	'strict $.new.id',
	'$.new.type()',
	'$.new.id ? (!(@ == 2) || (@ > $.new.other) is unknown)')
{
	trigger('kinds', '', "{\"x\": \"$path\"}");
	succeeds(
		$session,
		q{INSERT INTO kinds VALUES (1, '"\u0000"', 'bad', 5)},
		"$path: columns that are not named are not converted");
}
is(last_flow('params'), '{"x": 1}', '... and the value is there');
foreach
  my $path ('$.new', '$.new.*', '$.new ? (@.id == 1)', '$.new.keyvalue()', '$.**.id', '$', '$.new[*]', '$.new == $.old')
{
	trigger('kinds', '', "{\"x\": \"$path\"}");
	fails_with($session, q{INSERT INTO kinds VALUES (1, '"\u0000"')}, '22P05', "$path: all are", %leave);
}
$session->value(
		"DROP TRIGGER t ON kinds; CREATE TRIGGER t AFTER INSERT ON kinds REFERENCING NEW TABLE AS n FOR EACH STATEMENT "
	  . "EXECUTE FUNCTION feishu.flow_trigger('app', 'flow')");
fails_with(
	$session,
	q{INSERT INTO kinds SELECT n, CASE n WHEN 2 THEN '"\u0000"' ELSE '1' END::json FROM generate_series(1, 3) AS n},
	'22P05', 'a statement trigger',
	hint => qr/leave out column "j".*\$\.new_rows\[\*\]\.id/,
	err => qr/conversion of column "j" to jsonb/);
$session->value(
	q{DROP TRIGGER t ON kinds; CREATE TRIGGER t AFTER INSERT ON kinds REFERENCING NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION feishu.flow_trigger('app', 'flow', '',
	'{"some": "$.new_rows[*] ? (@.other > 5).id", "first": "$.new_rows[$.new_rows[0].id].other"}')});
succeeds(
	$session,
	q{INSERT INTO kinds SELECT n, '"\u0000"', 'bad', n + 4 FROM generate_series(1, 3) AS n},
	'... that names its columns');
is(last_flow('params'), '{"some": [2, 3], "first": 6}', '... gets them');

done_testing();
