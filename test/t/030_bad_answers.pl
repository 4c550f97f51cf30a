
# Answers that nobody should send: each gets its SQLSTATE, and the backend lives.

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
my $pid = $session->pid;

# The fault's answer must be this SQLSTATE; then the same backend goes on.
sub bad_answer
{
	my ($name, $fault, $sqlstate, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %parts = map { $_ => $options{$_} } grep { $options{$_} } qw(message detail hint);
	$mock->fault(%$fault);
	my $result = fails_with(
		$session, flow(timeout => $options{timeout} // '30s'),
		$sqlstate, "$name is $sqlstate",
		message => qr{package_7344545d87__c/approveOrder_99c656599f},
		hint => qr/\w/,
		%parts);
	cmp_ok(length($result->{err}), '<', 8192, '... told in few words');
	$mock->well;
	my $next = $session->ask(flow());
	is($next->{sqlstate} . ' ' . $session->value('SELECT pg_backend_pid()'),
		"00000 $pid", '... and the next call of this session works')
	  or diag($next->{err});
	return $result;
}

succeeds($session, flow(), 'a call');

sub answer { my ($body, %rest) = @_; return { type => 'status', status => 200, body => $body, %rest }; }

# ---- not an answer of the platform ----

bad_answer('an empty answer', { type => 'empty' }, 'LK502');
bad_answer('204', { type => 'status', status => 204 }, 'LK502', detail => qr/\b204\b/);
bad_answer('half a JSON', { type => 'truncated_json' }, 'LK502');
bad_answer('plain text', answer('hello'), 'LK502', detail => qr/hello/);
bad_answer(
	'HTML with 200',
	answer('<html>hello</html>', content_type => 'text/html'),
	'LK502', detail => qr/<html>hello/);
bad_answer('white space', answer("  \n "), 'LK502');
bad_answer("JSON $_", answer($_, content_type => 'application/json'), 'LK502')
  foreach 'null', '7', '"text"', 'true', '[]', '[{"code": 0}]';
bad_answer("what is nearly JSON: $_", answer($_, content_type => 'application/json'), 'LK502')
  foreach '{', '{"code": 0,}', '{"code": 0} trailing', "{'code': 0}", '{"code": NaN}', '{"code": 00}';
bad_answer('an empty object', answer({}), 'LK502');
bad_answer('JSON of something else', answer({ error => 'not found' }), 'LK502');
bad_answer('bytes that are not UTF-8', { type => 'not_utf8' }, 'LK502');
bad_answer('a zero byte', { type => 'raw_nul' }, 'LK502');
bad_answer('a nesting of 100,000', { type => 'deep' }, 'LK502');
bad_answer('a nesting of 2,000,000', { type => 'deep', depth => 2_000_000 }, 'LK502');
bad_answer('20 MB', { type => 'big', bytes => 20 << 20 }, 'LK502');
bad_answer('a gzip bomb', { type => 'gzip_bomb', bytes => 256 << 20 }, 'LK502');
bad_answer('what says gzip and is not', answer('{"code": 0}', headers => { 'Content-Encoding' => 'gzip' }), 'LK502');
bad_answer('endless chunks, fast', { type => 'chunked_endless_fast' }, 'LK502');
bad_answer('garbage', { type => 'garbage' }, 'LK502');
bad_answer('half an answer', { type => 'half_answer' }, 'LK502');
bad_answer('half an answer, then a reset', { type => 'half_answer', rst => JSON::PP::true }, 'LK502');
bad_answer('a length that is too long',
	{ type => 'raw', text => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"code\": 0}" }, 'LK502');
bad_answer('a bad chunk',
	{ type => 'raw', text => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n{}\r\n0\r\n\r\n" }, 'LK502');
bad_answer('a negative length', { type => 'raw', text => "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}" }, 'LK502');
bad_answer('an endless header',
	{ type => 'raw', text => "HTTP/1.1 200 OK\r\nX-Long: " . ('x' x 2_000_000) . "\r\n\r\n" }, 'LK502');

# ---- what jsonb cannot hold: accepted all the same, and said so ----

foreach my $fault (
	[ 'the escape \u0000', { type => 'nul' } ],
	[ 'half a surrogate pair', { type => 'lone_surrogate' } ],
	[ 'a zero character in an output', { type => 'nul', field => 'data.out_params' } ])
{
	bad_answer("$fault->[0] in a success", $fault->[1], 'LK502', detail => qr/\b18169700914\d+\b/);
}

# ---- HTTP refusals ----

bad_answer('HTML with 502', { type => 'status', status => 502 }, 'LK500', detail => qr/\b502\b/);
bad_answer('HTML with 504', { type => 'status', status => 504 }, 'LK500', detail => qr/\b504\b/);
bad_answer('503 without a body', { type => 'status', status => 503, body => '' }, 'LK500');
bad_answer('500 with a JSON that says nothing', { type => 'status', status => 500, body => {} }, 'LK500');
bad_answer(
	'301',
	{ type => 'status', status => 301, headers => { Location => 'http://127.0.0.1:1/elsewhere' } },
	'LK404',
	detail => qr{http://127\.0\.0\.1:1/elsewhere},
	hint => qr/base_url/);
bad_answer('302', { type => 'status', status => 302, headers => { Location => $mock->url } }, 'LK404');
bad_answer(
	'404 text/plain', { type => 'status', status => 404, body => '404 page not found' },
	'LK404',
	detail => qr/404 page not found/,
	hint => qr/base_url/);
bad_answer(
	'304 of a cache', { type => 'status', status => 304, body => '' }, 'LK502',
	detail => qr/\b304\b/,
	hint => qr/base_url/);
bad_answer('408 of a gateway', { type => 'status', status => 408, body => 'too slow' }, 'LK504');
bad_answer('413 of a gateway', { type => 'status', status => 413, body => 'too much' }, 'LK400', hint => qr/\w/);
bad_answer('429 of a gateway', { type => 'status', status => 429, body => 'slow down' }, 'LK429');
bad_answer('401 of a gateway', { type => 'status', status => 401, body => 'no' }, 'LK401');
bad_answer('403 of a gateway', { type => 'status', status => 403, body => 'no' }, 'LK403');
bad_answer('the outer code 1500', { type => 'code', code => 1500 }, 'LK500');
bad_answer('code 0 with status 500', { type => 'status', status => 500, body => { code => 0, data => {} } }, 'LK500');

# A redirect is not followed, not even to where it would work.
$mock->mark;
$mock->rules(
	[
		{ kind => 'execute' }, { type => 'status', status => 307, headers => { Location => $mock->url . '/elsewhere' } }
	]);
fails_with($session, flow(), 'LK404', 'a redirect is not followed');
is($mock->count(kind => 'other'), 0, '... nothing was sent where it leads');
$mock->well;

# ---- no end ----

bad_answer('endless chunks', { type => 'chunked_endless' }, 'LK504', timeout => '500ms');
bad_answer('a slow drip', { type => 'slow_drip' }, 'LK504', timeout => '500ms');
bad_answer('a slow drip of headers', { type => 'slow_drip', headers => JSON::PP::true }, 'LK504', timeout => '500ms');

# ---- wrong types in every field ----

my @values = (undef, JSON::PP::true, 7, -1, 1.5, 'text', [], [1], {}, { a => 1 });
foreach my $value (@values)
{
	my $shown = JSON::PP->new->allow_nonref->canonical->encode($value);
	foreach my $member (qw(code data data.code))
	{
		# what is a code, or none, has a meaning; the rest has not
		next if $member eq 'code' && defined $value && !ref $value && $value =~ /^-?\d+$/;
		next if $member ne 'code' && !defined $value;
		next if $member eq 'data' && ref $value eq 'HASH';
		next if $member eq 'data.code' && !ref $value;
		bad_answer("$member that is $shown", { type => 'wrong_types', set => { $member => $value } }, 'LK502');
	}
	foreach my $member (qw(msg data.error_msg data.execution_id data.out_params data.status))
	{
		$mock->fault(type => 'wrong_types', set => { $member => $value });
		my $out = succeeds($session, flow(), "a success whose $member is $shown is a success");
		is( $session->value(
					'SELECT '
				  . quote($out)
				  . '::jsonb #> '
				  . quote('{' . $member =~ s/\./,/r . '}') . ' = '
				  . quote($shown)
				  . '::jsonb'),
			't',
			'... and is returned as it came');
	}
	foreach my $member (qw(log_id helps troubleshooter message details permission_violations field_violations))
	{
		$mock->fault(type => 'code', code => 99991672, error => { $member => $value });
		my $result = $session->ask(flow());
		is($result->{sqlstate}, 'LK403', "a refusal whose error.$member is $shown is LK403")
		  or diag($result->{err});
	}
	$mock->fault(
		type => 'status',
		status => 400,
		body => { code => 2320001, msg => $value, error => $value, data => $value });
	my $result = $session->ask(flow());
	is($result->{sqlstate}, 'LK400', "a refusal full of $shown is LK400") or diag($result->{err});
}
$mock->fault(type => 'code', code => 99991672, error => { helps => [ 1, {}, { url => 7 }, { url => [] } ] });
fails_with($session, flow(), 'LK403', 'a refusal whose helps are nonsense is LK403');
$mock->fault(type => 'code', code => 99991672, error => { helps => [ { url => "x\n" x 100_000 } ] });
my $result = fails_with($session, flow(), 'LK403', 'a refusal whose help is 200 kB is LK403');
cmp_ok(length($result->{err}), '<', 8192, '... told in few words');
foreach my $number ('1e3', '2320001.0', '-0', '99999999999999999999999999', '1e999999')
{
	$mock->fault(
		type => 'status',
		status => 200,
		content_type => 'application/json',
		body => qq({"code": $number, "msg": "x", "data": {}}));
	$result = $session->ask(flow());
	isnt($result->{sqlstate}, 'XX000', "a code of $number is nothing unforeseen")
	  or diag($result->{err});
	note("code $number: $result->{sqlstate}");
}
$mock->fault(
	type => 'status',
	status => 200,
	content_type => 'application/json',
	body => '{"code": 2320001, "code": 0, "data": {}}');
$result = $session->ask(flow());
isnt($result->{sqlstate}, 'XX000', 'a code given twice is nothing unforeseen');

# out_params that are not what they should be
foreach my $text ('x', '{', '7', '[1]', '[{"value": 1}]', '[{"api_name": 7, "value": 1}]', '[[[[')
{
	$mock->fault(type => 'wrong_types', set => { 'data.out_params' => $text });
	$result = $session->ask("SELECT feishu.out_params(r) FROM (" . flow() . " AS r) AS s");
	is($result->{sqlstate}, 'LK502', "out_params that are $text are LK502")
	  or diag("$result->{err} $result->{out}");
}
$mock->well;

# ---- unusual, and fine ----

foreach my $fine (qw(gzip chunked no_length))
{
	$mock->fault(type => $fine);
	my $out = succeeds($session, flow(), "an answer of the kind \"$fine\" is read");
	like($out, qr/"execution_id": "18169700914/, '... whole');
}
$mock->fault(type => 'big', bytes => 15 << 20);
succeeds($session, 'SELECT length(r::text) FROM (' . flow() . ' AS r) AS s', 'an answer of 15 MB is read');
$mock->fault(type => 'big', bytes => 20 << 20);
$session->value("SET feishu_flow.max_response_size = '32MB'");
succeeds(
	$session,
	'SELECT length(r::text) FROM (' . flow() . ' AS r) AS s',
	'max_response_size lets an answer of 20 MB in');
$session->value("SET feishu_flow.max_response_size = '64kB'");
$mock->fault(type => 'big', bytes => 100 << 10);
fails_with($session, flow(), 'LK502', 'max_response_size keeps an answer of 100 kB out');
$session->value('RESET feishu_flow.max_response_size');

foreach my $edge (
	[ '128 levels', '[' x 127 . ']' x 127, 1 ],
	[ '129 levels', '[' x 128 . ']' x 128, 0 ],
	[ '262,140 values', '[' . join(',', (0) x 262_140) . ']', 1 ],
	[ '262,150 values', '[' . join(',', (0) x 262_150) . ']', 0 ])
{
	my ($what, $value, $ok) = @$edge;
	$mock->fault(
		type => 'status',
		status => 200,
		body => '{"code":0,"data":{},"x":' . $value . '}',
		content_type => 'application/json');
	my $sql = 'SELECT length(r::text) > 0 FROM (' . flow() . ' AS r) AS s';
	$ok
	  ? succeeds($session, $sql, "an answer with $what is read")
	  : fails_with($session, $sql, 'LK502', "... with $what it is not");
}
$mock->fault(type => 'deep', depth => 100);
succeeds($session, 'SELECT length(r::text) FROM (' . flow() . ' AS r) AS s', 'an answer with a nesting of 100 is read');
$mock->rules(
	[
		{ kind => 'execute' },
		{
			type => 'raw',
			text => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 23\r\nConnection: close\r\n\r\n"
			  . '{"code": 0, "data": {}}'
		}
	]);
is( succeeds($session, flow(), 'an interim answer is skipped'),
	'{"code": 0, "data": {}}',
	'... and the final one returned');
$mock->well;
succeeds($session, flow(), 'after all this a call works');
is($session->value('SELECT pg_backend_pid()'), $pid, '... in the same backend');

done_testing();
