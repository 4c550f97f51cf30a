
# What may be an argument and arrives as it is, and what is refused unsent.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use JSON::PP;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
succeeds($session, flow(), 'a call');

# ---- one segment of the path, whatever is in it ----

# text => as it must be on the wire (RFC 3986: all but unreserved characters)
my %segment = (
	'package_7344545d87__c' => 'package_7344545d87__c',
	'AZaz09-._~' => 'AZaz09-._~',
	'a/b' => 'a%2Fb',
	'/' => '%2F',
	'a?b#c' => 'a%3Fb%23c',
	'../../../im/v1/messages' => '..%2F..%2F..%2Fim%2Fv1%2Fmessages',
	'...' => '...',
	'..a' => '..a',
	'%2e%2e' => '%252e%252e',
	'100%' => '100%25',
	'a b' => 'a%20b',
	'a+b' => 'a%2Bb',
	'a&b=c;d:e@f,g!h$i\'j(k)l*m' => 'a%26b%3Dc%3Bd%3Ae%40f%2Cg%21h%24i%27j%28k%29l%2Am',
	'"<>\\^`{|}[]' => '%22%3C%3E%5C%5E%60%7B%7C%7D%5B%5D',
	'审批流程' => '%E5%AE%A1%E6%89%B9%E6%B5%81%E7%A8%8B',
	'😀' => '%F0%9F%98%80',
	'e' . "\xcc\x81" => 'e%CC%81',
	'x' x 255 => 'x' x 255);
foreach my $text (sort keys %segment)
{
	my $shown = length $text > 50 ? length($text) . ' characters' : $text;
	foreach my $argument ('namespace', 'flow_id')
	{
		$mock->mark;
		succeeds($session, flow($argument => $text), "$argument may be $shown");
		my @requests = $mock->log;
		my $other = $argument eq 'namespace' ? 'approveOrder_99c656599f' : 'package_7344545d87__c';
		my @names = $argument eq 'namespace' ? ($segment{$text}, $other) : ($other, $segment{$text});
		is_deeply(
			[ map { $_->{path} } @requests ],
			["/open-apis/apaas/v1/applications/$names[0]/flows/$names[1]/execute"],
			'... and is one segment of the path, percent-encoded');
		my $arrived = $requests[0]{$argument} // '';
		utf8::encode($arrived);
		is($arrived, $text, '... and is read as it was');
	}
}

# ---- params as they are ----

$mock->mark;
my $text =
	q({"quote": "\"", "back": "\\\\", "lines": "a\nb\r\tc", "control": "\u0001\u001f", "line": "\u2028", )
  . q("name": "张三", )
  . q("emoji": "😀 \ud83d\ude00", "empty": "", "nothing": null, "deep": [[[[{"a": [true, false]}]]]]});
succeeds($session, flow(params => $text), 'params with all sorts of text');
my ($request) = $mock->log(kind => 'execute');
my $arrived = $request->{json}{params};
utf8::encode($arrived);
is_deeply(decode_json($arrived), decode_json($text), '... arrive as they are');

succeeds($session, <<'SQL', 'params of 10 MB');
CREATE TEMP TABLE large AS SELECT
	jsonb_build_object('text', repeat('0123456789abcdef', 655360), 'name', '张三') AS params;
SQL
cmp_ok($session->value('SELECT length(params::text) FROM large'), '>', 10 << 20, '... 10 MB indeed');
is( succeeds(
		$session,
		"SELECT feishu.out_params(feishu.execute_flow('a', 'echoParams', '{\"_id\": 1}', params)) = params FROM large",
		'a call with them'),
	't',
	'... arrive and come back intact');
is( succeeds(
		$session,
		"SELECT length(feishu.execute_flow('a', 'b', '{\"_id\": 1}', "
		  . "jsonb_build_object('text', repeat('\"\\', 1900000)))::text) > 0",
		'params of 15 MB that are all escapes'),
	't',
	'... are accepted');
$mock->reset;

$mock->mark;
succeeds($session, flow(loop_masks => '["' . join('", "', 1 .. 20) . '"]'), '20 loop_masks');
($request) = $mock->log(kind => 'execute');
is(scalar(@{ $request->{json}{loop_masks} }), 20, '... arrive');
succeeds($session, flow(operator => '{"email": "a@b.c"}'), 'an operator with email only');

# ---- what is refused before anything is sent ----

$mock->mark;
my @refused = (
	[ namespace => undef ],
	[ namespace => '' ],
	[ namespace => '.' ],
	[ namespace => '..' ],
	[ namespace => 'x' x 256 ],
	[ namespace => 'x' x 1_000_000 ],
	[ namespace => '流' x 86 ],
	[ namespace => "a\nb" ],
	[ namespace => "a\rb" ],
	[ namespace => "a\tb" ],
	[ namespace => "\x01" ],
	[ namespace => "a\x7f" ],
	[ namespace => "a\xc2\x85b" ],
	[ flow_id => undef ],
	[ flow_id => '' ],
	[ flow_id => '.' ],
	[ flow_id => '..' ],
	[ flow_id => 'x' x 256 ],
	[ flow_id => "a\nb" ],
	[ flow_id => "a\x7f" ],
	[ operator => undef ],
	[ operator => '{}' ],
	[ operator => '[]' ],
	[ operator => '7' ],
	[ operator => 'null' ],
	[ operator => '"text"' ],
	[ operator => '[{"_id": 1}]' ],
	[ operator => '{"id": 1}' ],
	[ operator => '{"_id": null}' ],
	[ operator => '{"_id": ""}' ],
	[ operator => '{"email": ""}' ],
	[ operator => '{"email": 7}' ],
	[ operator => '{"_id": {}}' ],
	[ operator => '{"_id": true}' ],
	[ operator => '{"_id": "1816970091484211"}' ],
	[ operator => '{"_id": 1.5}' ],
	[ operator => '{"_id": 9223372036854775808}' ],
	[ operator => '{"_id": 1e300}' ],
	[ params => '7' ],
	[ params => '"text"' ],
	[ params => 'true' ],
	[ params => '[]' ],
	[ params => '[{"a": 1}]' ],
	[ loop_masks => '{}' ],
	[ loop_masks => '7' ],
	[ loop_masks => '"mask"' ],
	[ loop_masks => '[1]' ],
	[ loop_masks => '["a", null]' ],
	[ loop_masks => '[["a"]]' ],
	[ loop_masks => '["' . join('", "', 1 .. 21) . '"]' ],
	[ idempotent_key => '' ],
	[ timeout => '0' ],
	[ timeout => '-1s' ]);
foreach my $case (@refused)
{
	my ($name, $value) = @$case;
	my $shown =
	   !defined $value     ? 'NULL'
	  : length $value > 40 ? length($value) . ' bytes'
	  :                      $value =~ s/([^ -~])/sprintf('\x%02x', ord $1)/ger;
	my $result =
	  fails_with($session, flow($name => $value), '22023', "$name that is $shown is refused", message => qr/\b$name\b/);
	cmp_ok(length $result->{err}, '<', 2000, '... in few words');
}
is($mock->count, 0, 'nothing at all was sent');

# ---- privileges ----

$session->value('CREATE ROLE app LOGIN; CREATE ROLE stranger LOGIN');
$session->value("CREATE SERVER private FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '@{[$mock->url]}')");
$session->value(
	"CREATE USER MAPPING FOR CURRENT_USER SERVER private OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
$session->value('GRANT USAGE ON SCHEMA feishu TO app, stranger');
my $app = FeishuFlow::Session->new($node, user => 'app');
$mock->mark;
fails_with($app, flow(server => 'private'), '42501', 'a role without USAGE may not call');
$session->value('GRANT USAGE ON FOREIGN SERVER private TO app');
fails_with(
	$app, flow(server => 'private'),
	'42704',
	'a role without a user mapping cannot call',
	hint => qr/CREATE USER MAPPING/);
is($mock->count, 0, '... and nothing was sent');
$session->value("CREATE USER MAPPING FOR app SERVER private OPTIONS (app_id 'cli_mock', app_secret 'mock-secret')");
succeeds($app, flow(server => 'private'), 'a role with a mapping can');
$session->value('REVOKE USAGE ON FOREIGN SERVER private FROM app');
fails_with($app, flow(server => 'private'), '42501', 'REVOKE takes effect on the next call');
$session->value("SET ROLE app");
succeeds($session, flow(), 'the credentials are those of current_user');
$session->value('RESET ROLE');

done_testing();
