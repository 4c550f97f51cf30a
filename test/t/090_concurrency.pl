
# Many sessions at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main', connections => 100);
create_server($node, 'feishu', { base_url => $mock->url });

my $script = PostgreSQL::Test::Utils::tempdir() . '/flow.sql';
append_to_file($script, flow(params => \"jsonb_build_object('n', :client_id)") . ";\n");

# pgbench with so many sessions and calls in each; returns what it said.
sub bench
{
	my ($clients, $calls, @options) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(
		[
			'pgbench', '-n', '-c', $clients, '-j', '2', '-t', $calls, @options,
			'-f', $script, '-h', $node->host, '-p', $node->port, 'postgres'
		],
		'>', \$out, '2>', \$err, IPC::Run::timeout(120));
	ok($ok, "$clients sessions, $calls calls each @options: no error") or diag($err);
	note($1) if $out =~ /^(tps = .*)$/m;
	like($out, qr{number of transactions actually processed: @{[$clients * $calls]}/},
		'... and every call is made');
	return;
}

bench(32, 100);
is($mock->token_requests, 1, '32 sessions at once: one token fetch');
is($mock->executes, 3200, '... and one request for each call');
is($mock->started, 3200, '... and one flow');
is($mock->control('GET', 'stats')->{connections_total},
	32, '... and one connection for each session');

# All at the same moment, indeed.
$mock->mark;
$mock->fault(type => 'hold');
my ($out, $err) = ('', '');
my $bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '32', '-j', '2', '-t', '1', '-f', $script,
		'-h', $node->host, '-p', $node->port, 'postgres'
	],
	'>', \$out, '2>', \$err, IPC::Run::timeout(120));
$mock->wait_for(32, kind => 'execute');
is($mock->stats->{max_concurrent_executes}, 32, '32 calls are in flight at the same time');
$mock->well;
ok($bench->finish, '... and all are answered') or diag($err);

# A session for each call: tokens outlive sessions.
$mock->mark;
bench(16, 5, '-C');
is($mock->token_requests, 0, 'new sessions use the token that is there');

# The token is refused in the midst of it: replaced, and no session notices.
$mock->mark;
$mock->rules([ {}, { type => 'latency', ms => [ 0, 20 ] }, probability => 0.2 ]);
$bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '32', '-j', '2', '-t', '40', '-f', $script,
		'-h', $node->host, '-p', $node->port, 'postgres'
	],
	'>', \$out, '2>', \$err, IPC::Run::timeout(120));
foreach my $round (1 .. 3)
{
	$mock->wait_for(250 * $round, kind => 'execute');
	$mock->revoke;
}
ok($bench->finish, 'a token that is refused under load: no session gets an error') or diag($err);
my $fetches = $mock->token_requests;
cmp_ok($fetches, '>=', 3, '... it is replaced each time');
cmp_ok($fetches, '<=', 6, '... by about one fetch');
is(scalar(grep { $_->{status} == 200 } $mock->log(kind => 'execute')),
	32 * 40, '... and every call is answered once');

# Sessions that are cancelled and terminated all the time hold up no others.
$mock->well;
$mock->rules([ { kind => 'token' }, { type => 'latency', ms => 20 } ],
	[ { kind => 'execute' }, { type => 'latency', ms => [ 0, 30 ] } ]);
my $watch = FeishuFlow::Session->new($node);
my @victims = map { FeishuFlow::Session->new($node) } 1 .. 6;
$bench = IPC::Run::start(
	[
		'pgbench', '-n', '-c', '10', '-j', '2', '-t', '60', '-f', $script,
		'-h', $node->host, '-p', $node->port, 'postgres'
	],
	'>', \$out, '2>', \$err, IPC::Run::timeout(120));
$mock->mark;
for my $round (1 .. 25)
{
	my @waiting = grep { !defined $_->{started} } @victims;
	$_->send(flow()) foreach @waiting;
	if ($round % 6 == 0)
	{
		# a call that meets two revocations is refused with reason
		$mock->wait_for(50, kind => 'execute', state => 'done');
		$mock->revoke;
		$mock->mark;
	}
	my $victim = shift @victims;
	$watch->value("SELECT pg_cancel_backend(" . $victim->pid . ')');
	my $result = $victim->result;
	fail("cancelled session: $result->{err}") if $result->{sqlstate} !~ /^(?:57014|00000)$/;
	if ($round % 5 == 0)
	{
		$victim->send(flow());
		$watch->value("SELECT pg_terminate_backend(" . $victim->pid . ')');
		$victim->result;
		$victim = FeishuFlow::Session->new($node);
	}
	push @victims, $victim;
}
ok($bench->finish, 'sessions that are cancelled and terminated do not disturb the others') or diag($err);
foreach my $victim (@victims)
{
	$victim->result if defined $victim->{started};
}
$mock->well;
is_deeply([ map { $_->ask(flow())->{sqlstate} } @victims ],
	[ ('00000') x @victims ], '... and all sessions still work');

done_testing();
