
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

my $mock = FeishuFlow::Mock->start;
my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;

# ---- nginx, which speaks HTTP/2, and before it a relay ----

IPC::Run::run([ qw(openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=silence -addext subjectAltName=IP:127.0.0.1),
		'-keyout', "$dir/key", '-out', "$dir/crt" ], '>', '/dev/null', '2>&1') or die 'openssl';
my %site = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 'http1', 'http2';
my $sites = join '', map {
	my $http2 = $_ eq 'http2' ? ' http2' : '';
	<<"CONF" } sort keys %site;
	server {
		listen 127.0.0.1:$site{$_} ssl$http2;
		ssl_certificate $dir/crt;
		ssl_certificate_key $dir/key;
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
start_nginx($dir, $sites, values %site);

# The relay: a process for each connection, which lets nothing through any more once there is a newer silence.
append_to_file("$dir/silences", '');

sub relay
{
	my ($to) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 64, ReuseAddr => 1) or die "socket: $!";
	forked("relay to $to", sub {
		local $SIG{CHLD} = 'IGNORE';
		while (my $client = $listener->accept)
		{
			my $silences = -s "$dir/silences";
			next if fork();
			my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $to) or return;
			my $select = IO::Select->new($client, $server);
			while (my @ready = $select->can_read)
			{
				foreach my $from (@ready)
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

my $node = queue_cluster('main');
my $session = FeishuFlow::Session->new($node);
create_server($node, $_, { base_url => 'https://127.0.0.1:' . relay($site{$_}), ca_file => "$dir/crt", timeout => '500ms' })
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
		[ 'a cancel', sub {
				$session->send(flow(server => $name, timeout => '60s'));
				$mock->wait_for(1, kind => 'execute');
				$node->safe_psql('postgres', 'SELECT pg_cancel_backend(' . $session->pid . ')');
				is($session->result->{sqlstate}, '57014', "$name: a cancel");
			} ])
	{
		$mock->fault(type => 'hang');
		$mock->mark;
		$how->[1]->();
		ok($mock->wait_for(1, kind => 'execute', state => 'aborted'), '... is told to the peer, though no call follows');
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
	is(ends($session, "server = '$name'"), 'succeeded 21', "$name: queued flows are sent though a connection has fallen silent");
	cmp_ok($session->value("SELECT max(attempts) FROM feishu.flows WHERE server = '$name'"), '<=', 3, '... after few attempts');
	started_once($mock, 21, '... and start once');
}

# ---- one that is slow is no silence ----

$session->ask(flow(server => 'http2'));    # its connection is silent by now
begin_anew($mock, $session, 'http2');
$mock->rules([ { kind => 'execute', flow_id => 'slow' }, { type => 'hang' }, times => 1 ]);
enqueue_many($session, 1, 1, server => 'http2');
until_ended($session);
my $skip = () = logged('http2');
my $slow = enqueue($session, server => 'http2', flow_id => 'slow', params => '{"n": 2}');
for (my $n = 3; look($session, $slow, 'finished_at IS NULL') eq 't'; $n++)
{
	enqueue_many($session, $n, $n, server => 'http2');
}
until_ended($session);
is($session->value("SELECT string_agg(DISTINCT attempts::text, ' ' ORDER BY attempts::text) FROM feishu.flows WHERE id > $slow"),
	'1', 'while one flow waits for its answer, others go on');
is(look($session, $slow, 'state, attempts'), 'succeeded|2', '... and it is tried again');
my %connections = map { (split)[2] => 1 } logged('http2', $skip);
is(scalar(keys %connections), 1, '... over the same HTTP/2 connection');

done_testing();
