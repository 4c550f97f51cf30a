
# What a call sends, byte for byte, and what becomes of the answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use JSON::PP;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $second_mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# The one request that was made since the mark.
sub the_request
{
	my ($from) = @_;
	my @requests = ($from // $mock)->log(kind => 'execute');
	is(scalar(@requests), 1, 'one request was sent');
	return $requests[0];
}

sub answer { return decode_json($_[0]); }

# ---- the request ----

$mock->mark;
my $out = succeeds(
	$session,
	flow(
		namespace => 'package_7344545d87__c',
		flow_id => 'deleteObject_99c656599f'),
	'a call is answered');
my $request = the_request;
is($request->{method}, 'POST', 'the request is a POST');
is( $request->{path},
	'/open-apis/apaas/v1/applications/package_7344545d87__c/flows/deleteObject_99c656599f/execute',
	'the path is that of the API document');
my $headers = $request->{headers};
like($headers->{authorization}, qr/^Bearer t-\w+$/, 'the token is sent as Bearer');
is($headers->{'content-type'}, 'application/json; charset=utf-8', 'Content-Type is that of the SDKs');
my $version = $session->value('SHOW server_version');
$version =~ s/ .*//;
like(
	$headers->{'user-agent'},
	qr{^feishu_flow/\d+\.\d+\S* PostgreSQL/\Q$version\E},
	'User-Agent names the extension and PostgreSQL');
ok(!exists $headers->{expect}, 'no Expect header');
ok(!exists $headers->{'transfer-encoding'}, 'the body has a length');
is($headers->{host}, '127.0.0.1:' . $mock->port, 'Host is that of base_url');
is_deeply([ sort keys %{ $request->{json} } ], ['operator'], 'members that were not given are not sent');
is(ref(\$request->{json}{operator}), 'SCALAR', 'operator is a string on the wire');
is_deeply(decode_json($request->{json}{operator}), { _id => 1111 }, '... that holds its JSON');

$mock->mark;
succeeds(
	$session,
	flow(
		operator => '{"_id": 1111, "email": "a@b.c"}',
		params => '{"order": {"_id": 7}, "text": "a \"quoted\" \\\\ text\n"}',
		is_async => 'true',
		idempotent_key => 'key-1 "x" \\',
		loop_masks => '["mask1", "mask2"]'),
	'a call with all arguments is answered');
$request = the_request;
is_deeply(
	[ sort keys %{ $request->{json} } ],
	[qw(idempotent_key is_async loop_masks operator params)],
	'all members that were given are sent, and no other');
is_deeply(decode_json($request->{json}{operator}), { _id => 1111, email => 'a@b.c' }, 'operator is double-encoded');
is_deeply(
	decode_json($request->{json}{params}),
	{ order => { _id => 7 }, text => "a \"quoted\" \\ text\n" },
	'params is double-encoded');
like($request->{body}, qr/"is_async":\s*true/, 'is_async is a boolean');
is($request->{json}{idempotent_key}, 'key-1 "x" \\', 'idempotent_key arrives');
is_deeply($request->{json}{loop_masks}, [ 'mask1', 'mask2' ], 'loop_masks is an array');

$mock->mark;
succeeds(
	$session,
	flow(is_async => 'false', params => '{}', loop_masks => '[]'),
	'a call with empty arguments is answered');
$request = the_request;
ok(!exists $request->{json}{is_async}, 'is_async is not sent when it is false');
is($request->{json}{params}, '{}', 'params that are given and empty are sent');

$mock->mark;
succeeds(
	$session,
	flow(
		operator => '{"_id": 9223372036854775807}',
		params => '{"big": 9007199254740993, "long": 123456789012345678901234567890, "scale": 1.10}'),
	'a call with an int64 operator is answered');
$request = the_request;
like($request->{json}{operator}, qr/"_id":\s*9223372036854775807\b/, 'an int64 operator arrives in full');
like(
	$request->{json}{params},
	qr/9007199254740993\b.*123456789012345678901234567890.*1\.10/,
	'numbers in params arrive in full');

# ---- the answer ----

my $response = answer($out);
is_deeply([ sort keys %$response ], [qw(code data msg)], 'the answer is returned whole');
is_deeply(
	[ sort keys %{ $response->{data} } ],
	[qw(code error_msg execution_id out_params status)],
	'... with all members of data');
like($response->{data}{execution_id}, qr/^18169700914842\d\d$/, 'execution_id survives');
is($response->{data}{status}, 'end', 'the status of a synchronous call');
is(answer(succeeds($session, flow(is_async => 'true'), 'an asynchronous call'))->{data}{status},
	'wait', 'the status of an asynchronous call');

$mock->fault(
	type => 'wrong_types',
	set => {
		'data.number' => JSON::PP->new->allow_bignum->decode('9007199254740993'),
		'extra' => { new => [ JSON::PP::true, undef, 'x' ] }
	});
$out = succeeds($session, flow(), 'an answer with unknown members is accepted');
like($out, qr/"number": 9007199254740993\b/, 'an int64 in the answer survives');
is_deeply(
	answer($out)->{extra},
	{ new => [ JSON::PP::true, undef, 'x' ] },
	'unknown members of the answer are returned');
$mock->well;

my $echo = flow(
	flow_id => 'echoParams',
	params => '{"id": 9007199254740993, "amount": 1.10, "name": "张三 😀", "list": [1, null], "none": null}');
$out = succeeds($session, "SELECT feishu.out_params(r) FROM ($echo AS r) AS s", 'out_params reads an answer');
is_deeply(
	JSON::PP->new->utf8->allow_bignum->decode($out),
	JSON::PP->new->utf8->allow_bignum->decode(
		'{"id": 9007199254740993, "amount": 1.10, "name": "张三 😀", "list": [1, null], "none": null}'),
	'out_params is one object, api_name to value');
like($out, qr/"id": 9007199254740993\b/, 'int64 in out_params survives');
like($out, qr/"amount": 1\.10\b/, 'a decimal in out_params keeps its scale');
is( succeeds(
		$session,
		"SELECT feishu.out_params(r) ->> '_flowExecutionID' = r -> 'data' ->> 'execution_id' FROM ("
		  . flow()
		  . " AS r) AS s",
		'out_params of the document\'s answer'),
	't',
	'_flowExecutionID is the execution_id');

foreach my $none ('', undef)
{
	my $shown = defined $none ? 'an empty string' : 'null';
	$mock->fault(type => 'wrong_types', set => { 'data.out_params' => $none });
	is( succeeds(
			$session,
			"SELECT feishu.out_params(r) IS NULL FROM (" . flow() . " AS r) AS s",
			"out_params that is $shown"),
		't',
		"... is NULL");
}
$mock->fault(type => 'wrong_types', remove => ['data.out_params']);
is( succeeds(
		$session,
		"SELECT feishu.out_params(r) IS NULL FROM (" . flow() . " AS r) AS s",
		'an answer without out_params'),
	't',
	'... has none');
$mock->well;

# ---- refusals ----

my $result = fails_with(
	$session, flow(flow_id => 'refusedFlow'),
	'LK400', 'a refused call is an error',
	message => qr{package_7344545d87__c/refusedFlow},
	detail => qr/2320001/);
like($result->{hint}, qr/\w/, 'a refusal has a hint');

fails_with(
	$session, flow(flow_id => 'rejectedFlow'),
	'LK400', 'a flow that fails inside is an error',
	message => qr{/rejectedFlow},
	detail => qr/k_wf_ec_2001001/);

fails_with(
	$session, flow(flow_id => 'noScope'),
	'LK403', 'a missing scope is an error',
	detail => qr/99991672/,
	hint => qr{https://open\.feishu\.cn/app/cli_mock/auth});

$mock->fault(
	type => 'status',
	status => 400,
	headers => { 'X-Tt-Logid' => 'LOGID-OF-HEADER', 'X-Request-Id' => 'REQUEST-ID' },
	body => { code => 2320001, msg => 'excerpt of the answer' });
fails_with($session, flow(), 'LK400', 'DETAIL tells the HTTP status', detail => qr/\b400\b/);
fails_with($session, flow(), 'LK400', 'DETAIL tells the code', detail => qr/\b2320001\b/);
fails_with($session, flow(), 'LK400', 'DETAIL tells the log id of the header', detail => qr/\bLOGID-OF-HEADER\b/);
fails_with($session, flow(), 'LK400', 'DETAIL has an excerpt of the answer', detail => qr/excerpt of the answer/);
$mock->fault(
	type => 'status',
	status => 400,
	headers => { 'X-Request-Id' => 'REQUEST-ID' },
	body => { code => 2320001, msg => 'refused' });
fails_with(
	$session, flow(), 'LK400',
	'X-Request-Id is the log id where there is no X-Tt-Logid',
	detail => qr/\bREQUEST-ID\b/);
$mock->fault(
	type => 'status',
	status => 400,
	body => { code => 2320001, msg => 'long ' x 20000 });
$result = fails_with($session, flow(), 'LK400', 'a refusal of 100 kB');
cmp_ok(length($result->{detail}), '<', 4096, 'the excerpt in DETAIL is cut');
$mock->fault(type => 'inner', code => 'k_wf_ec_200036', error_msg => 'no such flow here');
fails_with(
	$session, flow(), 'LK404',
	'DETAIL tells the inner code and message',
	detail => qr/k_wf_ec_200036.*no such flow here/s);
$mock->well;

# Codes to SQLSTATEs, as in PLATFORM.md.
my %sqlstate_of_code = (
	99991663 => 'LK401',
	99991543 => 'LK401',
	10003 => 'LK401',
	99991661 => 'LK401',
	99991662 => 'LK403',
	99991672 => 'LK403',
	99991673 => 'LK403',
	99991676 => 'LK403',
	99991401 => 'LK403',
	99992402 => 'LK400',
	2320001 => 'LK400',
	99991400 => 'LK429',
	99991403 => 'LK429',
	1500 => 'LK500',
	1663 => 'LK500',
	1668 => 'LK500',
	2200 => 'LK500',
	5000 => 'LK500',
	55001 => 'LK500',
	65001 => 'LK500',
	10101 => 'LK500');
foreach my $code (sort keys %sqlstate_of_code)
{
	$mock->fault(type => 'code', code => $code);
	fails_with(
		$session, flow(), $sqlstate_of_code{$code},
		"code $code is $sqlstate_of_code{$code}",
		detail => qr/\b$code\b/,
		hint => qr/\w/);
}
my %sqlstate_of_inner = (
	k_wf_ec_2001008 => 'LK409',
	k_wf_ec_200036 => 'LK404',
	k_ec_000009 => 'LK403',
	k_wf_ec_2001002 => 'LK400',
	k_ec_000001 => 'LK500',
	k_ec_000054 => 'LK504',
	k_never_heard_of => 'LK400');
foreach my $code (sort keys %sqlstate_of_inner)
{
	$mock->fault(type => 'inner', code => $code);
	fails_with(
		$session, flow(), $sqlstate_of_inner{$code},
		"inner code $code is $sqlstate_of_inner{$code}",
		detail => qr/\b$code\b/,
		hint => qr/\w/);
}
foreach my $fine ('', '0', undef)
{
	$mock->fault(type => 'wrong_types', set => { 'data.code' => $fine });
	succeeds($session, flow(), 'data.code ' . (defined $fine ? "\"$fine\"" : 'null') . ' is a success');
}
$mock->fault(type => 'wrong_types', remove => ['data.code']);
succeeds($session, flow(), 'an absent data.code is a success');
$mock->fault(type => 'code', code => 77777, http_status => 400);
fails_with($session, flow(), 'LK400', 'a code nobody has heard of is a refusal', detail => qr/\b77777\b/);
$mock->well;

succeeds($session, flow(idempotent_key => 'once'), 'a first call with a key');
fails_with($session, flow(idempotent_key => 'once'), 'LK409', 'a key that was used is LK409');

# ---- raise_error => false ----

my $refusal = answer(
	succeeds(
		$session, flow(flow_id => 'refusedFlow', raise_error => 'false'), 'raise_error => false returns a refusal'));
is($refusal->{code}, 2320001, '... as the platform sent it');
ok($refusal->{error}{log_id}, '... whole');
$refusal = answer(
	succeeds(
		$session,
		flow(flow_id => 'rejectedFlow', raise_error => 'false'),
		'raise_error => false returns a failure inside'));
is($refusal->{data}{code}, 'k_wf_ec_2001001', '... as the platform sent it');
$mock->fault(type => 'reset_after');
fails_with($session, flow(raise_error => 'false'), 'LK503', 'no answer is an error with raise_error => false, too');
$mock->fault(type => 'hang');
fails_with(
	$session, flow(raise_error => 'false', timeout => '200ms'),
	'LK504', 'a timeout is an error with raise_error => false, too');
$mock->fault(type => 'status', status => 502);
fails_with($session, flow(raise_error => 'false'),
	'LK500', 'what is no answer of the platform is an error with raise_error => false, too');
$mock->fault(type => 'garbage');
fails_with($session, flow(raise_error => 'false'), 'LK502', 'garbage is an error with raise_error => false, too');

foreach my $case (
	[ 429, '{"code": 0}', 'LK429' ],
	[ 500, '{"code": 0, "data": {}}', 'LK500' ],
	[ 408, '{"code": 0}', 'LK504' ],
	[ 301, '{"code": 0}', 'LK502' ],
	[ 200, '{"code": 0, "data": "x"}', 'LK502' ],
	[ 200, '{"code": 0, "data": []}', 'LK502' ],
	[ 404, '{"message": "no Route matched"}', 'LK404' ])
{
	my ($status, $body, $sqlstate) = @$case;
	$mock->fault(type => 'status', status => $status, content_type => 'application/json', body => $body);
	fails_with($session, flow(raise_error => 'false'), $sqlstate,
			"a failure that looks like a success, or says nothing, is an error with raise_error => false, "
		  . "too ($status $body)");
}
$mock->well;
$mock->revoke;
$mock->rules([ { kind => 'token' }, { type => 'wrong_types', remove => ['tenant_access_token'] } ]);
fails_with($session, flow(raise_error => 'false'), 'LK502', 'so is a token request that brought no token');
$mock->well;
fails_with(
	$session, flow(raise_error => 'false', operator => '{}'),
	'22023', 'a bad argument is an error with raise_error => false, too');

# ---- the server's operator, ALTER ----

fails_with($session, flow(operator => undef), '22023', 'no operator at all is an error', message => qr/operator/);
alter_server($session, 'feishu', 'ADD', operator => '{"email": "default@b.c"}');
$mock->mark;
succeeds($session, flow(operator => undef), 'the operator may be left to the server');
is_deeply(
	decode_json(the_request->{json}{operator}),
	{ email => 'default@b.c' },
	'operator NULL: the server\'s operator option');
$mock->mark;
succeeds($session, flow(operator => '{"_id": 5}'), 'an operator is given');
is_deeply(decode_json(the_request->{json}{operator}), { _id => 5 }, 'an operator that is given wins');

alter_server($session, 'feishu', 'SET', base_url => $second_mock->url);
$second_mock->mark;
succeeds($session, flow(), 'a call after ALTER SERVER');
the_request($second_mock);
is($second_mock->token_requests, 1, 'another base_url has a token of its own');
alter_server($session, 'feishu', 'SET', base_url => $mock->url . '/');
$mock->mark;
succeeds($session, flow(), 'a base_url with a slash at its end works');
unlike(the_request->{path}, qr{//}, '... and makes no double slash');
alter_server($session, 'feishu', 'SET', base_url => $mock->url . '/a/./../.');
succeeds($session, flow(), 'a base_url with dots in its path works');
alter_server($session, 'feishu', 'SET', base_url => $mock->url);

$mock->config(apps => { cli_two => 'two-secret' });
$session->value(
	"ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_id 'cli_two', SET app_secret 'two-secret')");
$mock->mark;
succeeds($session, flow(), 'a call after ALTER USER MAPPING');
is(the_request->{app_id}, 'cli_two', 'ALTER USER MAPPING takes effect on the next call');

create_server($node, 'other', { base_url => $second_mock->url });
$second_mock->mark;
succeeds($session, flow(server => 'other'), 'a call with a server');
the_request($second_mock);
$session->value("SET feishu_flow.server = 'other'");
$second_mock->mark;
succeeds($session, flow(), 'a call with another default server');
the_request($second_mock);
$session->value('RESET feishu_flow.server');

# ---- keep-alive ----

$session->quit;
$session = FeishuFlow::Session->new($node);
$mock->mark;
succeeds(
	$session,
	'SELECT count(r) FROM (SELECT '
	  . function_call(
		'feishu.execute_flow',
		namespace => 'a',
		flow_id => 'b',
		operator => '{"_id": 1}',
		params => \"jsonb_build_object('n', n)")
	  . ' AS r FROM generate_series(1, 50) n) s',
	'50 calls in one statement');
succeeds($session, flow(), 'a call in the next statement');
my @requests = $mock->log;
my %connections = map { $_->{connection} => 1 } @requests;
is($mock->executes, 51, 'each call is one request');
is(scalar(keys %connections), 1, 'the calls of a session share one connection');

# The peer closed the connection that was kept: this is not an error.
$mock->rules([ { kind => 'execute' }, { type => 'no_length' }, times => 1 ]);
succeeds($session, flow(), 'an answer that ends with the connection is read');
succeeds($session, flow(), 'a call after the peer has closed the connection');
$mock->well;

# The peer says more than it was asked for: that is no answer to the next request.
sub unasked
{
	my ($kind) = @_;
	$mock->mark;
	$mock->rules([ { kind => $kind }, { type => 'unasked' }, times => 1 ]);
	return;
}

sub until_unasked
{
	wait_until(
		'it was said',
		sub {
			grep { $_->{unasked} } $mock->log;
		});
	return;
}
unasked('execute');
succeeds($session, flow(), 'a call whose answer is followed by another one');
until_unasked();
unlike(succeeds($session, flow(), '... and the next call'), qr/unasked/, '... has an answer of its own');
my $queue = "SELECT feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}')";
foreach my $flow (1, 2)
{
	unasked('execute') if $flow == 1;
	my $id = $session->value($queue);
	my $answer = succeeds($session, "SELECT feishu.wait_flow($id)", "queued flow $flow");
	unlike($answer, qr/unasked/, '... has an answer of its own');
	until_unasked() if $flow == 1;
}
$mock->well;

# ---- one statement, many calls ----

# Each call of a statement looks anew: the second one is held until the mapping has changed.
my $owner = FeishuFlow::Session->new($node);
$mock->mark;
$mock->rules([ { kind => 'execute', flow_id => 'many_2' }, { type => 'hold' } ]);
$session->send("SELECT count(feishu.execute_flow('app', 'many_' || i, '{\"_id\": 1}')) FROM generate_series(1, 4) i");
$mock->wait_for(2, kind => 'execute');
$owner->value("ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'not-the-secret')");
$mock->well;
is($session->result->{sqlstate}, 'LK401', 'an ALTER takes effect within a statement that makes many calls');
is($mock->executes, 2, '... and no call is made after it');
$owner->value("ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'two-secret')");

# ---- check_server ----

$mock->mark;
is($session->value("SELECT token_ok, http_status, code, latency IS NOT NULL FROM feishu.check_server()"),
	't|200|0|t', 'check_server obtains a token');
is($mock->executes, 0, 'check_server starts no flow');
$session->value("ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'not-the-secret')");
is($session->value("SELECT token_ok, code, message <> '', hint ~ 'app_secret' FROM feishu.check_server('feishu')"),
	'f|10014|t|t', 'check_server says that the secret is wrong');
create_server($node, 'down', { base_url => 'http://127.0.0.1:' . closed_port() });
is($session->value("SELECT token_ok, http_status IS NULL, message <> '' FROM feishu.check_server('down')"),
	'f|t|t', 'check_server says that the server cannot be reached');
is($mock->executes, 0, 'check_server has started no flow');

done_testing();
