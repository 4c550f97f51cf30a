
# Every code of the platform and every HTTP status that is known, of a flow and of a token request: its SQLSTATE, reason
# and HINT, and what the queue does.  The codes are those of docs/errors.md, each under the SQLSTATE that it has there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# Reasons and hints: a few words that no other has.
my %reason = (
	token => 'the access token was refused',
	credentials => 'app_id or app_secret was refused',
	rate => 'the rate limit was reached',
	quota => 'the monthly quota of API calls is used up',
	scope => 'the app lacks a permission',
	parameters => 'the parameters were refused',
	platform => 'the platform had an internal error',
	input => 'the flow refused its input',
	busy => 'the flow engine is busy',
	timeout => 'the platform gave up waiting for the request',
	none_here => 'there is nothing at this URL',
	unauthorized => 'the credentials were refused',
	forbidden => 'access was denied',
	no_token => 'no access token was granted',
	gateway => 'the platform, or a gateway in front of it, failed',
	redirect => 'redirects are not followed',
	other => 'the request was refused with an answer that is not the platform\'s',
	proxy => 'the proxy refused the connection',
	large => 'the request is too large',
	cache => 'a cache answered in the platform\'s place',
	refused => 'the platform refused the request');
my %hint = (
	token => qr/^If a new token is refused too/,
	credentials => qr/^Correct app_id and app_secret/,
	rate => qr/^Wait and try again/,
	quota => qr/^Calls are accepted again next month/,
	scope => qr/^Add the scope app_engine:flow:write/,
	parameters => qr/^Check namespace, flow_id, operator/,
	platform => qr/^Try again later, for a flow with the same idempotent_key\. If this goes on/,
	input => qr/^Compare params with the flow's inputs/,
	busy => qr/^Try again later, for a flow with the same idempotent_key\.$/,
	publish => qr/^Publish a version of the app/,
	base_url => qr/^Check the server's base_url; a proxy or gateway/,
	base_url_form => qr/^Check the server's base_url: scheme/,
	token_url => qr/^Check the server's token_url, or its base_url when/,
	token_url_form => qr/^Check the server's token_url, or when that is not set its base_url: scheme/,
	firewall => qr/^A proxy or firewall may have answered.* base_url and proxy/);

# What the queue does: it tries again (or waits, which is no attempt), it fails the flow, or pauses the app.
my ($again, $waits, $fails, $pauses, $quota) =
  ('succeeded 2', 'succeeded 1', 'failed 1', 'queued 0 credentials', 'queued 0 quota');

# [code, SQLSTATE, reason, hint, queue]
my @outer = (
	(map { [ $_, 'LK401', 'token', 'token', $waits ] } 99991663, 99991664, 99991665, 99991668, 99991671),
	[ 99991661, 'LK401', 'the platform saw no access token', qr/Authorization header/, $fails ],
	(map { [ $_, 'LK401', 'credentials', 'credentials', $pauses ] } 10003, 10014, 10015, 99991543),
	[ 99991400, 'LK429', 'rate', 'rate', $waits ],
	[ 99991403, 'LK429', 'quota', 'quota', $quota ],
	(map { [ $_, 'LK403', 'scope', 'scope', $fails ] } 99991672, 99991676),
	[ 99991662, 'LK403', 'the app is disabled', qr/^Have an administrator of the tenant enable the app/, $fails ],
	[ 99991673, 'LK403', 'the app is not available in this tenant', 'publish', $fails ],
	[ 212100, 'LK403', 'the app is not installed in this tenant', 'publish', $fails ],
	[ 99991401, 'LK403', 'the IP address of this database server was refused', qr/IP allow list/, $fails ],
	(map { [ $_, 'LK400', 'parameters', 'parameters', $fails ] } 99992402, 2320001),
	(   map { [ $_, 'LK500', 'platform', 'platform', $again ] } 1500,
		1663, 1668, 2200, 5000, 10101, 55001, 65001, 20050, 20072));
my @inner = (
	[
		'k_wf_ec_2001008', 'LK409',
		'the idempotent key was already used',
		qr/use a new key to start the flow once more/,
		'unconfirmed 1'
	],
	[ 'k_wf_ec_200036', 'LK404', 'there is no such flow', qr/deployed and active/, $fails ],
	[
		'k_ec_000009', 'LK403', 'the operator or the app may not start this flow', qr/must authorise the app id/,
		$fails
	],
	(map { [ "k_wf_ec_200100$_", 'LK400', 'input', 'input', $fails ] } 1, 2, 4, 6),
	(   map                   { [ $_, 'LK500', 'busy', 'busy', $again ] } (map { "k_op_ec_2000$_" } 1 .. 3),
		'k_cf_ec_200009', map { "k_ec_0000$_" } qw(01 04 18 32 40 53)),
	[ 'k_ec_000054', 'LK504', 'the flow ran out of time', qr/^Set is_async to true/, $again ],
	[ 'k_unheard_of', 'LK400', 'the flow failed', qr/^Look at this execution/, $fails ]);

# Statuses with a code that nobody knows.
my @status = (
	(map { [ $_, 'LK500', 'platform', 'platform', $again ] } 500, 503, 599),
	[ 429, 'LK429', 'rate', 'rate', $waits ],
	[ 408, 'LK504', 'timeout', 'busy', $again ],
	[ 401, 'LK401', 'unauthorized', 'token', $fails ],
	[ 403, 'LK403', 'forbidden', 'scope', $fails ],
	[ 404, 'LK404', 'none_here', qr/^Check namespace, flow_id and the server's base_url/, $fails ],
	(map { [ $_, 'LK400', 'refused', qr/^Look the code up/, $fails ] } 200, 400, 402, 407, 409, 428, 430, 499));

# Statuses of what is not the platform's JSON.
my @unusable = (
	(map { [ $_, 'LK500', 'gateway', 'platform', $again ] } 500, 501, 599),
	[ 304, 'LK502', 'cache', 'base_url', $fails ],
	(map { [ $_, 'LK404', 'redirect', qr/^Set the server's base_url to/, $fails ] } 300, 303, 305, 399),
	[ 401, 'LK401', 'unauthorized', 'base_url', $fails ],
	[ 403, 'LK403', 'forbidden', 'firewall', $fails ],
	[ 404, 'LK404', 'none_here', 'base_url_form', $fails ],
	[ 407, 'LK503', 'proxy', qr/^The proxy asks for authentication/, $again ],
	[ 408, 'LK504', 'timeout', 'busy', $again ],
	[ 413, 'LK400', 'large', qr/^Send less in params/, $fails ],
	[ 429, 'LK429', 'rate', 'rate', $waits ],
	(map { [ $_, 'LK502', 'other', 'base_url', $fails ] } 400, 402, 405, 412, 414, 430, 499),
	[ 200, 'LK502', 'the answer is not a JSON object', qr/^The flow may have started.* base_url/, $again ]);

# The same of a token request: what refuses it concerns the app.
my @token_status = (
	(map { [ $_, 'LK500', 'platform', 'platform', $again ] } 500, 599),
	[ 429, 'LK429', 'rate', 'rate', $waits ],
	[ 408, 'LK504', 'timeout', 'busy', $again ],
	[ 403, 'LK403', 'forbidden', 'credentials', $pauses ],
	[ 404, 'LK404', 'none_here', 'token_url_form', $pauses ],
	(map { [ $_, 'LK401', 'no_token', 'credentials', $pauses ] } 200, 400, 401, 409, 430, 499));
my @token_unusable = (
	(map { [ $_, 'LK500', 'gateway', 'platform', $again ] } 500, 599),
	[ 304, 'LK502', 'cache', 'token_url', $pauses ],
	(map { [ $_, 'LK404', 'redirect', qr/^Set the server's token_url \(or base_url\)/, $pauses ] } 301, 399),
	[ 401, 'LK401', 'unauthorized', 'token_url', $pauses ],
	[ 403, 'LK403', 'forbidden', qr/^A proxy or firewall.* token_url, base_url and proxy/, $pauses ],
	[ 404, 'LK404', 'none_here', 'token_url_form', $pauses ],
	[ 407, 'LK503', 'proxy', qr/^The proxy asks for authentication/, $again ],
	[ 408, 'LK504', 'timeout', 'busy', $again ],
	[ 413, 'LK400', 'large', 'token_url', $pauses ],
	[ 429, 'LK429', 'rate', 'rate', $waits ],
	(map { [ $_, 'LK502', 'other', 'token_url', $pauses ] } 400, 402, 499),
	[ 200, 'LK502', 'the answer is not a JSON object', 'token_url', $again ]);
# A code that is known means the same.
my @token_outer = grep { $_->[2] ne 'token' } @outer;

my @cases;

sub cases
{
	my ($kind, $what, $fault, @rows) = @_;
	foreach (@rows)
	{
		my ($code, $sqlstate, $reason, $hint, $queue) = @$_;
		# a token request that is refused for good pauses the app
		$queue = $pauses if $kind eq 'token' && $queue eq $fails;
		push @cases,
		  {
			kind => $kind,
			name => "$what $code",
			fault => $fault->($code),
			sqlstate => $sqlstate,
			reason => $reason{$reason} // $reason,
			hint => ref $hint ? $hint : $hint{$hint},
			queue => $queue
		  };
	}
	return;
}
my $by_code = sub { return { type => 'code', code => $_[0] }; };
my $by_status = sub { return { type => 'status', status => $_[0], body => { code => 77777, msg => 'unheard of' } }; };
my $by_gateway = sub { return { type => 'status', status => $_[0], body => 'not JSON' }; };
cases('execute', 'code', $by_code, @outer);
cases('execute', 'inner code', sub { return { type => 'inner', code => $_[0] }; }, @inner);
cases('execute', 'an unknown code with HTTP', $by_status, @status);
cases('execute', 'HTTP', $by_gateway, @unusable);
cases('token', 'of a token request, code', $by_code, @token_outer);
cases('token', 'of a token request, an unknown code with HTTP', $by_status, @token_status);
cases('token', 'of a token request, HTTP', $by_gateway, @token_unusable);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.max_apps = 1000\n");
$node->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
my $session = FeishuFlow::Session->new($node);
$mock->config(apps => { map { ("cli_$_" => 'secret') } 0 .. $#cases });

# Each has an app of its own.
foreach my $n (0 .. $#cases)
{
	$session->value("CREATE SERVER s$n FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url "
		  . quote($mock->url) . ");"
		  . "CREATE USER MAPPING FOR PUBLIC SERVER s$n OPTIONS (app_id 'cli_$n', app_secret 'secret')");
}

# Faults for the requests of the cases; with times, of so many.
sub rules_of
{
	my (@times) = @_;
	$mock->rules(map { [ { kind => $cases[$_]{kind}, app_id => "cli_$_" }, $cases[$_]{fault}, @times ] } 0 .. $#cases);
	return;
}

# ---- a call ----

rules_of();
foreach my $n (0 .. $#cases)
{
	my $case = $cases[$n];
	my $result = fails_with(
		$session, flow(server => "s$n"), $case->{sqlstate}, "$case->{name} is $case->{sqlstate}",
		message => qr/: \Q$case->{reason}\E$/,
		hint => $case->{hint});
	is($result->{message} =~ /access token:/ ? 'token' : 'execute', $case->{kind}, '... which says what was refused');
}

# ---- the queue ----

rules_of(times => 1);
foreach my $n (0 .. $#cases)
{
	$cases[$n]{id} = enqueue($session, server => "s$n");
}
my @ended = grep { $cases[$_]{queue} !~ /^queued/ } 0 .. $#cases;
until_ended($session, 'server IN (' . join(', ', map { quote("s$_") } @ended) . ')');
foreach my $n (0 .. $#cases)
{
	my $case = $cases[$n];
	my $paused = $session->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = 's$n' AND paused");
	my ($why) = ($paused // '') =~ /(credentials|quota)/;
	is(look($session, $case->{id}, "state || ' ' || attempts") . (defined $why ? " $why" : ''),
		$case->{queue}, "$case->{name}: what the queue does");
}

# ---- the document ----

my ($section, %documented) = ('');
foreach my $line (split /\n/, slurp_file("$FindBin::RealBin/../../docs/errors.md"))
{
	$section = $1 if $line =~ /^## (.*)/;
	my ($codes, $cause) = split / \| /, $line;
	my ($sqlstate) = $section =~ /^(LK\d+)/;
	next if !defined $sqlstate || !defined $cause;
	$documented{$_} = $sqlstate foreach $codes =~ /`(\d{4,}|k_\w+)`/g;
}
is_deeply(
	\%documented,
	{ map { $_->[0] => $_->[1] } grep { $_->[0] ne 'k_unheard_of' } @outer, @inner },
	'the document has these codes, under these SQLSTATEs');

done_testing();
