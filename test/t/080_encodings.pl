
# The wire is UTF-8, whatever the database is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use JSON::PP;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
my %session;
foreach my $encoding (qw(LATIN1 SQL_ASCII UTF8))
{
	my $database = lc $encoding;
	$node->safe_psql('postgres', "CREATE DATABASE $database ENCODING '$encoding' LOCALE 'C' TEMPLATE template0");
	create_server($node, 'feishu', { base_url => $mock->url }, undef, $database);
	$session{$database} = FeishuFlow::Session->new($node, database => $database);
}

foreach my $database (sort keys %session)
{
	my $session = $session{$database};
	$mock->mark;
	my $out = succeeds($session, flow(params => '{"text": "plain", "n": 1}'), "an ASCII call works in $database");
	like($out, qr/"execution_id": "18169700914/, '... and its answer is returned');
	my ($request) = $mock->log(kind => 'execute');
	is_deeply(decode_json($request->{json}{params}), { text => 'plain', n => 1 }, '... and params arrive');
	is( succeeds(
			$session,
			'SELECT feishu.out_params(r) FROM ('
			  . flow(flow_id => 'echoParams', params => '{"text": "plain"}')
			  . ' AS r) AS s',
			'out_params works'),
		'{"text": "plain"}',
		'... in ASCII');
	fails_with($session, flow(flow_id => 'refusedFlow'), 'LK400', "a refusal in $database");

	# what a refusal says in Chinese is shown as well as it can be
	$mock->fault(type => 'code', code => 2320001, msg => "\x{53c2}\x{6570}\x{9519}\x{8bef} wrong");
	my $result = fails_with(
		$session, flow(), 'LK400',
		"Chinese in a refusal keeps its SQLSTATE in $database",
		detail => qr/\b2320001\b.*wrong/s);
	like($result->{detail}, qr/参数错误/, '... and is shown where it can be') if $database eq 'utf8';
	$mock->fault(type => 'code', code => 99991672, msg => "\x{6743}\x{9650}");
	fails_with(
		$session, flow(), 'LK403',
		"a missing scope with Chinese advice in $database",
		hint => qr{https://open\.feishu\.cn/});
	$mock->fault(type => 'inner', code => 'k_wf_ec_200036', error_msg => "\x{6d41}\x{7a0b} lost");
	fails_with($session, flow(), 'LK404', "Chinese in a failure inside in $database", detail => qr/k_wf_ec_200036/);
	$mock->fault(type => 'status', status => 502, body => "<html>\x{9519}\x{8bef}</html>");
	fails_with($session, flow(), 'LK500', "Chinese HTML in $database");
	$mock->fault(type => 'not_utf8');
	fails_with($session, flow(), 'LK502', "an answer that is not UTF-8 in $database");
	$mock->well;
	fails_with($session, flow(server => 'nobody'), '42704', "no such server in $database");
	succeeds($session, flow(), '... and the next call works');
}

# ---- LATIN1 ----

my $latin1 = $session{latin1};
$latin1->value("SET client_encoding = 'UTF8'");
$mock->mark;
my $out = succeeds(
	$latin1,
	flow(
		namespace => 'café',
		flow_id => 'echoParams',
		params => '{"naïve": "déjà vu £"}',
		idempotent_key => 'clé',
		loop_masks => '["é"]',
		operator => '{"email": "é@b.c"}'),
	'a LATIN1 call with LATIN1 text');
my ($request) = $mock->log(kind => 'execute');
is_deeply(
	decode_json($request->{json}{params} =~ s/([^\x00-\x7f])/my $c = $1; utf8::encode($c); $c/ger),
	{ "na\x{ef}ve" => "d\x{e9}j\x{e0} vu \x{a3}" },
	'LATIN1 params reach the wire as UTF-8');
like($request->{path}, qr{/applications/caf%C3%A9/}, 'a LATIN1 namespace is percent-encoded UTF-8');
is($request->{json}{idempotent_key}, "cl\x{e9}", 'a LATIN1 key reaches the wire as UTF-8');
is_deeply($request->{json}{loop_masks}, ["\x{e9}"], 'LATIN1 loop_masks reach the wire as UTF-8');
is( succeeds(
		$latin1,
		'SELECT feishu.out_params(r) FROM ('
		  . flow(flow_id => 'echoParams', params => '{"naïve": "déjà vu £"}')
		  . ' AS r) AS s',
		'out_params in LATIN1'),
	'{"naïve": "déjà vu £"}',
	'... come back as they were');

my %mixed = (set => { 'data.status' => "\x{7ed3}\x{675f}" });
$mock->fault(type => 'wrong_types', %mixed);
my $result = fails_with(
	$latin1, flow(), 'LK502',
	'Chinese in a success cannot be held by LATIN1: LK502',
	detail => qr/\b18169700914\d+\b/);
like($result->{message}, qr/accepted/, '... which says that the flow was accepted');
fails_with($latin1, flow(raise_error => 'false'), 'LK502', '... with raise_error => false, too');
$mock->fault(type => 'wrong_types', set => { 'data.status' => "fin\x{e9}" });
like(succeeds($latin1, flow(), 'LATIN1 text in an answer'), qr/finé/, '... is returned');
$mock->well;

fails_with($latin1, flow(params => '{"a": "张三"}'), '22P05', 'Chinese cannot get into a LATIN1 database');

# A client that cannot hold what the database can.
my $utf8 = FeishuFlow::Session->new($node, database => 'utf8');
$utf8->value("SET client_encoding = 'LATIN1'");
$mock->fault(type => 'wrong_types', %mixed);
$mock->mark;
fails_with($utf8, flow(), '22P05', 'Chinese in a success cannot get to a LATIN1 client');
is($mock->executes, 1, '... though the flow was started');
$mock->well;
$utf8->quit;

# The dispatcher has no transaction open while flows wait for a token.  The one that
# asks for it fails, and the next has to ask in its place.
my $dispatcher =
  "SELECT pid FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher' AND datname = 'latin1'";
my $pid = wait_until('there is a dispatcher', sub { $latin1->value($dispatcher) });
$mock->config(apps => { cli_mock => 'mock-secret', cli_cold => 'cold-secret' });
create_server(
	$node, 'cold',
	{ base_url => $mock->url },
	{ app_id => 'cli_cold', app_secret => 'cold-secret' }, 'latin1');
$mock->mark;
$mock->rules([ { kind => 'token' }, { type => 'status', status => 502 }, times => 1 ]);
$latin1->value(
	"SELECT feishu.enqueue_flow('café', 'flow', '{\"_id\": 1}', "
	  . "jsonb_build_object('text', 'déjà'), server => 'cold')"
	  . ' FROM generate_series(1, 3) AS n');
wait_until('the flows have succeeded',
	sub { $latin1->value("SELECT count(*) FROM feishu.flows WHERE state = 'succeeded'") == 3 });
is($latin1->value($dispatcher), $pid, 'a token request that fails does not end the dispatcher of a LATIN1 database');
is($mock->count(kind => 'token'), 2, '... and the next flow asks for the token at once');

# ---- SQL_ASCII: bytes of no known encoding ----

my $ascii = $session{sql_ascii};
foreach my $text ('déjà', "d\xe9j\xe0")
{
	my $is_utf8 = $text =~ /\xc3/;
	$mock->mark;
	$result = $ascii->ask(flow(params => qq({"text": "$text"})));
	is( $result->{sqlstate},
		$is_utf8 ? '00000'                             : '22021',
		$is_utf8 ? 'UTF-8 bytes in SQL_ASCII are sent' : '... LATIN1 bytes are refused') or diag($result->{err});
	($request) = $mock->log(kind => 'execute');
	is( $request ? JSON::PP->new->decode($request->{json}{params})->{text} : 'nothing',
		$is_utf8 ? "d\x{e9}j\x{e0}"                                        : 'nothing',
		'... as they are, or not at all');
}
is( $ascii->value(
			"SELECT string_agg(coalesce((r).sqlstate, 'ok'), ' ' ORDER BY id) "
		  . "FROM (SELECT id, feishu.execute_flows('a', 'b', '{\"_id\": 1}', "
		  . "params => jsonb_build_object('text', CASE id WHEN 2 THEN E'd\\351j\\340' ELSE 'plain' END)) OVER () AS r "
		  . "FROM generate_series(1, 3) AS id) AS s"),
	'ok 22021 ok',
	'... of many calls, one alone');
$mock->fault(type => 'wrong_types', %mixed);
$result = $ascii->ask(flow());
is($result->{sqlstate}, '00000', 'Chinese in a success in SQL_ASCII is returned') or diag($result->{err});
like($result->{out}, qr/结束/, '... as UTF-8 bytes');
$mock->well;
succeeds($ascii, flow(), 'the next call works');

# ---- the queue ----

# One flow whose text the database holds, and whose answer it cannot.
until_dispatcher($_) foreach $latin1, $ascii;
$mock->mark;
my $id = enqueue(
	$latin1,
	params => '{"naïve": "déjà vu £"}',
	idempotent_key => 'clé 2',
	ordering_key => 'après',
	loop_masks => '["é"]');
like(
	$latin1->value("SELECT feishu.wait_flow($id)"),
	qr/"execution_id": "18169700914/,
	'a flow with LATIN1 text is queued and sent');
($request) = $mock->log(kind => 'execute');
is($request->{json}{params} =~ s/ //gr, "{\"na\x{ef}ve\":\"d\x{e9}j\x{e0}vu\x{a3}\"}", '... as UTF-8');
is( "$request->{json}{idempotent_key} $request->{json}{loop_masks}[0]",
	"cl\x{e9} 2 \x{e9}",
	'... its key and loop_masks, too');
is( $latin1->value("SELECT params, idempotent_key, ordering_key FROM feishu.flows WHERE id = $id"),
	'{"naïve": "déjà vu £"}|clé 2|après',
	'... and shown as it was');
$mock->rules([ { kind => 'execute' }, { type => 'wrong_types', %mixed }, times => 1 ]);
$id = enqueue($latin1, params => '{"n": 1}');
until_ended($latin1);
is( $latin1->value(
		"SELECT state, attempts, execution_id ~ '^18169700914', response IS NULL FROM feishu.flows WHERE id = $id"),
	'succeeded|1|t|t',
	'a success whose answer LATIN1 cannot hold is a success, with its execution_id and no answer');
is($latin1->value("SELECT feishu.wait_flow($id) IS NULL"), 't', '... which wait_flow returns as NULL');
$mock->rules(
	[ { kind => 'execute' }, { type => 'code', code => 2320001, msg => "\x{53c2}\x{6570} wrong" }, times => 1 ]);
$id = enqueue($latin1, params => '{"n": 2}');
until_ended($latin1);
like(
	$latin1->value("SELECT state || ' ' || sqlstate || ' ' || error FROM feishu.flows WHERE id = $id"),
	qr/^failed LK400 .*wrong/,
	'Chinese in a refusal is recorded as well as it can be');
$id = enqueue($ascii, params => '{"text": "déjà"}');
until_ended($ascii);
is($ascii->value("SELECT state, attempts FROM feishu.flows WHERE id = $id"),
	'succeeded|1', 'a flow with UTF-8 bytes in SQL_ASCII is queued and sent');
($request) = reverse $mock->log(kind => 'execute');
is($request->{json}{params} =~ s/ //gr, "{\"text\":\"d\x{e9}j\x{e0}\"}", '... as it is');
my %bytes = (
	operator => qq({"_id": 1, "note": "d\xe9j\xe0"}),
	params => qq({"text": "d\xe9j\xe0"}),
	loop_masks => qq(["d\xe9j\xe0"]));
is($ascii->ask('SELECT ' . enqueue_call($_ => $bytes{$_}))->{sqlstate},
	'22021', "... and LATIN1 bytes in $_ are refused when it is queued")
  foreach sort keys %bytes;

# ---- UTF8 with another client ----

$utf8 = $session{utf8};
$utf8->value("SET client_encoding = 'LATIN1'");
$mock->fault(type => 'code', code => 2320001, msg => "\x{53c2}\x{6570}");
fails_with($utf8, flow(), 'LK400', 'Chinese in a refusal keeps its SQLSTATE for a client with LATIN1');
$mock->fault(type => 'code', code => 99991672);
fails_with(
	$utf8, flow(), 'LK403',
	'... so does the Chinese that the platform adds to every refusal',
	hint => qr{https://open\.feishu\.cn/});
$mock->well;
succeeds($utf8, flow(), 'the next call works');

# ---- control characters ----

foreach my $database (sort keys %session)
{
	$mock->fault(
		type => 'status',
		status => 200,
		body => '{"code": 0, "data": {"code": "k_ec_000014", "error_msg": "a\u0085b\u001bc\u00e9d"}}');
	my $refused = enqueue($session{$database}, max_attempts => \1);
	until_ended($session{$database}, "id = $refused");
	like(look($session{$database}, $refused, 'error'),
		qr/a b c\W+d/, "$database: what the platform says is kept without control characters");
}
$mock->well;

done_testing();
