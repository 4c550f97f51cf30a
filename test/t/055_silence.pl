
# Connections that fall silent: a firewall forgets them, a host behind an address is gone. New ones work. One call may
# wait in vain for its answer, but not those after it: HTTP/2, whose connections carry many requests, is no exception.
# And who gives up a request tells the peer at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;

# ---- nginx, which speaks HTTP/2, and before it a relay ----

IPC::Run::run(
	[
		qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=silence -addext subjectAltName=IP:127.0.0.1),
		'-keyout', "$dir/key", '-out', "$dir/crt"
	],
	'>',
	'/dev/null',
	'2>&1') or die 'openssl';
my %site = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 'http1', 'http2';
my $sites = join '', map {
	my $http2 = $_ eq 'http2' ? ' http2' : '';
	<<"CONF" } sort keys %site;
	server {
		listen 127.0.0.1:$site{$_} ssl$http2;
		ssl_certificate $dir/crt;
		ssl_certificate_key $dir/key;
		keepalive_requests 1000000;
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
start_nginx($dir, $sites, values %site);

# The relay: a process for each connection, which lets nothing through any more once there is a newer silence, and no
# answers while there is the file "held".
append_to_file("$dir/silences", '');

sub relay
{
	my ($to) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 64, ReuseAddr => 1) or die "socket: $!";
	forked(
		"relay to $to",
		sub {
			local $SIG{CHLD} = 'IGNORE';
			while (my $client = $listener->accept)
			{
				my $silences = -s "$dir/silences";
				next if fork();
				my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $to) or return;
				while (1)
				{
					my @from = -e "$dir/held" ? ($client) : ($client, $server);
					foreach my $from (IO::Select->new(@from)->can_read(0.02))
					{
						sysread($from, my $data, 65536) or return;
						syswrite($from == $client ? $server : $client, $data) if -s "$dir/silences" == $silences;
					}
				}
			}
		});
	return $listener->sockport;
}

sub fall_silent { append_to_file("$dir/silences", 'x'); return; }
sub hold        { append_to_file("$dir/held", '');      return; }
sub let_go      { unlink "$dir/held";                   return; }

# Milliseconds that a call may take.
my $timeout = 1000 * $FeishuFlow::SLOW;

my $node = queue_cluster('main');
my $session = FeishuFlow::Session->new($node);
my %port = map { $_ => relay($site{$_}) } sort keys %site;
create_server($node, $_,
	{ base_url => "https://127.0.0.1:$port{$_}", ca_file => "$dir/crt", timeout => "${timeout}ms" })
  foreach sort keys %site;

# What nginx has logged of a site, after so many lines.
sub logged
{
	my ($name, $skip) = @_;
	my @lines = grep { /^$site{$name} / } split(/\n/, slurp_file("$dir/access.log"));
	return @lines[ ($skip // 0) .. $#lines ];
}

foreach my $name (sort keys %site)
{
	# ---- a session ----

	begin_anew($mock, $session, $name);
	succeeds($session, flow(server => $name), "$name: a call");
	fall_silent();
	fails_with($session, flow(server => $name), 'LK504', '... a connection has fallen silent, and one waits in vain');
	succeeds($session, flow(server => $name), '... the next one does not');
	wait_until('nginx has logged', sub { logged($name) >= 2 });
	my $version = $name eq 'http2' ? 'HTTP/2.0' : 'HTTP/1.1';
	is_deeply([ grep { !m{ \Q$version\E } } logged($name) ], [], "... by $version");

	# ---- who gives up tells the peer ----

	foreach my $how (
		[ 'a timeout', sub { fails_with($session, flow(server => $name), 'LK504', "$name: a timeout") } ],
		[
			'a cancel',
			sub {
				$session->send(flow(server => $name, timeout => '60s'));
				$mock->wait_for(1, kind => 'execute');
				$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
				is($session->result->{sqlstate}, '57014', "$name: a cancel");
			}
		])
	{
		$mock->fault(type => 'hang');
		$mock->mark;
		$how->[1]->();
		my $given_up = time();
		$mock->wait_for(1, kind => 'execute', state => 'aborted');
		cmp_ok(time() - $given_up, '<', 10 * $FeishuFlow::SLOW, '... is told to the peer, though no call follows');
		$mock->well;
		succeeds($session, flow(server => $name), '... and the next call works');
	}

	# ---- the queue ----

	begin_anew($mock, $session, $name);
	enqueue_many($session, 1, 1, server => $name);
	until_ended($session);
	fall_silent();
	enqueue_many($session, 2, 21, server => $name);
	until_ended($session);
	is(ends($session, "server = '$name'"),
		'succeeded 21', "$name: queued flows are sent though a connection has fallen silent");
	cmp_ok($session->value("SELECT max(attempts) FROM feishu.flows WHERE server = '$name'"),
		'<=', 3, '... after few attempts');
	started_once($mock, 21, '... and start once');

	# There are others under way all the time, and they have answers: of the same app, but over another connection.
	append_to_file("$dir/$name.crt", slurp_file("$dir/crt"));
	create_server($node, "other_$name",
		{ base_url => "https://127.0.0.1:$port{$name}", ca_file => "$dir/$name.crt", timeout => "${timeout}ms" });
	$session->ask(flow(server => $name));    # its connection is silent
	begin_anew($mock, $session, $name);
	enqueue_many($session, 1, 1, server => $name);
	until_ended($session);
	fall_silent();
	my $n = 1;
	my $last;

	for (my $until = time() + 4 * $timeout / 1000; time() < $until;)
	{
		enqueue($session, server => $name, params => '{"n": ' . ++$n . '}');
		$last = enqueue($session, server => "other_$name", params => '{"n": ' . ++$n . '}');
		$session->ask("SELECT feishu.wait_flow($last)");
	}
	until_ended($session);
	is(ends($session, "server ~ '$name' AND id > $last - $n"),
		"succeeded $n", '... when others have answers meanwhile, too');
	cmp_ok($session->value("SELECT max(attempts) FROM feishu.flows WHERE server ~ '$name' AND id > $last - $n"),
		'<=', 3, '... after few attempts');
	started_once($mock, $n, '... and all start once');
}

# ---- who knows that a connection is silent stays with the next one ----

# One alone waits in vain on the silent connection, while another waits for its answer over a connection of its own.
append_to_file("$dir/aside.crt", slurp_file("$dir/crt"));
create_server($node, 'aside',
	{ base_url => "https://127.0.0.1:$port{http2}", ca_file => "$dir/aside.crt", timeout => '60s' });
$session->ask(flow(server => 'http2'));    # its connection is silent
begin_anew($mock, $session, 'http2');
enqueue($session, server => 'http2', params => '{"n": 1}');
until_ended($session);
fall_silent();
$mock->rules([ { kind => 'execute', flow_id => 'aside' }, { type => 'hold' } ]);
$mock->mark;
my $aside = enqueue($session, server => 'aside', flow_id => 'aside', params => '{"n": 2}');
$mock->wait_for(1, kind => 'execute');
my $before = () = logged('http2');
my $in_vain = enqueue($session, server => 'http2', params => '{"n": 3}');
until_true(
	$session,
	'one has waited in vain',
	"EXISTS (SELECT FROM feishu.flows WHERE id = $in_vain AND state = 'succeeded')");
is(look($session, $in_vain, 'attempts'), '2', 'one alone waits in vain on a silent connection');

foreach my $n (4 .. 8)
{
	$session->ask('SELECT feishu.wait_flow(' . enqueue($session, server => 'http2', params => qq({"n": $n})) . ')');
}
wait_until('nginx has logged', sub { (() = logged('http2', $before)) >= 6 });
is(scalar(keys %{ { map { (split)[2] => 1 } logged('http2', $before) } }),
	1, '... and all after it go over one new connection');
$mock->well;
until_ended($session);
is(look($session, $aside, 'state, attempts'), 'succeeded|1', '... while another waits for its answer');

# ---- one that is slow is no silence ----

# An answer that comes late comes over the connection that brought nothing meanwhile.
create_server(
	$node, 'patient',
	{ base_url => "https://127.0.0.1:$port{http2}", ca_file => "$dir/crt", timeout => '60s' },
	{ app_id => 'cli_patient', app_secret => 'patient-secret' });
$mock->config(apps => { cli_mock => 'mock-secret', cli_patient => 'patient-secret' });
$session->ask(flow(server => 'http2'));    # its connection is silent by now
begin_anew($mock, $session, 'http2');
foreach my $server (qw(patient http2))
{
	enqueue($session, server => $server, params => '{"n": 1}');
	until_ended($session);
}
$mock->fault(type => 'hold');
$mock->mark;
my $late = enqueue($session, server => 'patient', params => '{"n": 2}');
$mock->wait_for(1, kind => 'execute');
hold();
my $gone = enqueue($session, server => 'http2', params => '{"n": 3}', max_attempts => 1);
until_true(
	$session,
	'one has waited in vain',
	"EXISTS (SELECT FROM feishu.flows WHERE id = $gone AND state = 'failed')");
$mock->well;
let_go();
until_ended($session);
is(look($session, $late, 'state, attempts'),
	'succeeded|1', 'an answer that comes later than another one\'s timeout is not lost');

# ... and others go on over it, of which one is answered before the timeout also on a busy machine
begin_anew($mock, $session, 'http2');
alter_server($session, 'http2', 'SET', timeout => 3 * $timeout . 'ms');
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'hang' }, times => 1 ]);
enqueue($session, server => 'http2', params => '{"n": 1}');
until_ended($session);
my $skip = () = logged('http2');
my $slow = enqueue($session, server => 'http2', flow_id => 'slow', params => '{"n": 2}');

for (my $n = 3; look($session, $slow, 'finished_at IS NULL') eq 't'; $n++)
{
	enqueue_many($session, $n, $n, server => 'http2');
}
until_ended($session);
is( $session->value(
		"SELECT string_agg(DISTINCT attempts::text, ' ' ORDER BY attempts::text) FROM feishu.flows WHERE id > $slow"),
	'1',
	'while one flow waits for its answer, others go on');
is(look($session, $slow, 'state, attempts'), 'succeeded|2', '... and it is tried again');
my %connections = map { (split)[2] => 1 } logged('http2', $skip);
is(scalar(keys %connections), 1, '... over the same HTTP/2 connection');

done_testing();
