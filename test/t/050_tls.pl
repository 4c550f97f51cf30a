
# TLS: verified always, by the system's authorities or ca_file; HTTP/2; proxies.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use File::Copy qw(copy);
use FeishuFlow;
use FeishuQueue;
use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0700, $dir;

# ---- two authorities and their certificates ----

sub openssl
{
	my @arguments = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'openssl', @arguments ], '>', \$out, '2>', \$err)
	  or die "openssl @arguments: $err";
	return;
}

# openssl ca, since it alone takes any dates on all versions.
sub authority
{
	my ($name) = @_;
	my $here = "$dir/$name";
	mkdir $here;
	append_to_file("$here/index.txt", '');
	append_to_file("$here/serial", "1000\n");
	append_to_file("$here/ca.cnf", <<"CONF");
[ca]
default_ca = this
[this]
new_certs_dir = $here
database = $here/index.txt
serial = $here/serial
certificate = $here/ca.crt
private_key = $here/ca.key
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = dn
prompt = no
[dn]
CN = feishu_flow test $name
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
CONF
	openssl(
		'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days',
		'30', '-config', "$here/ca.cnf", '-extensions', 'v3_ca', '-keyout',
		"$here/ca.key", '-out', "$here/ca.crt");
	return;
}

sub certificate
{
	my ($authority, $name, $names, $from, $to) = @_;
	append_to_file("$dir/$name.cnf", <<"CONF");
[req]
distinguished_name = dn
prompt = no
req_extensions = ext
[dn]
CN = $name
[ext]
subjectAltName = $names
CONF
	openssl(
		'req', '-newkey', 'rsa:2048', '-nodes', '-config', "$dir/$name.cnf",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	openssl('ca', '-batch', '-notext', '-config', "$dir/$authority/ca.cnf", '-startdate', $from, '-enddate', $to,
		'-in', "$dir/$name.csr", '-out', "$dir/$name.crt");
	return;
}

authority('good');
authority('other');
my ($past, $present, $future) = ('20200101000000Z', '20210101000000Z', '20990101000000Z');
my $here = 'IP:127.0.0.1,DNS:localhost,DNS:feishu.test';
certificate('good', 'valid', $here, $past, $future);
certificate('good', 'expired', $here, $past, $present);
certificate('good', 'wrong_name', 'DNS:wrong.test,IP:127.9.9.9', $past, $future);
certificate('other', 'unknown', $here, $past, $future);

# ---- nginx in front of the mock ----

my %port;
my $sites = '';
foreach my $site (
	[ 'valid', 'valid', ' http2' ],
	[ 'few', 'valid', ' http2' ],
	[ 'http1', 'valid', '' ],
	[ 'expired', 'expired', '' ],
	[ 'wrong_name', 'wrong_name', '' ],
	[ 'unknown', 'unknown', '' ],
	[ 'old_tls', 'valid', '' ],
	[ 'no_tls', 'valid', '' ])
{
	my ($name, $certificate, $http2) = @$site;
	$port{$name} = PostgreSQL::Test::Cluster::get_free_port();
	my $protocols = $name eq 'old_tls' ? 'TLSv1.1' : 'TLSv1.2 TLSv1.3';
	my $requests = $name eq 'few' ? 50 : 1000;
	my $ssl = $name eq 'no_tls' ? '' : ' ssl';
	$sites .= <<"CONF";
	server {
		listen 127.0.0.1:$port{$name}$ssl$http2;
		ssl_certificate $dir/$certificate.crt;
		ssl_certificate_key $dir/$certificate.key;
		ssl_protocols $protocols;
		keepalive_requests $requests;
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
}
start_nginx($dir, $sites, values %port);

# The lines that nginx has logged for a site.
sub logged
{
	my ($name) = @_;
	return grep { /^$port{$name} / } split(/\n/, slurp_file("$dir/access.log"));
}

my $node =
  new_cluster('main', conf => "feishu_flow.retry_base_delay = '20ms'\nfeishu_flow.retry_max_delay = '200ms'\n");
my %ca = (ca_file => "$dir/good/ca.crt");
create_server($node, $_, { base_url => "https://127.0.0.1:$port{$_}", %ca }) foreach sort keys %port;
create_server($node, 'system', { base_url => "https://127.0.0.1:$port{valid}" });
create_server($node, 'missing', { base_url => "https://127.0.0.1:$port{valid}", ca_file => "$dir/nothing.crt" });
append_to_file("$dir/nonsense.crt", "nonsense\n");
create_server($node, 'nonsense', { base_url => "https://127.0.0.1:$port{valid}", ca_file => "$dir/nonsense.crt" });
my $session = FeishuFlow::Session->new($node);

# ---- verified ----

succeeds($session, flow(server => 'valid'), 'ca_file makes a private authority known');

$mock->mark;
my $file = qr/ca_file/;
fails_with($session, flow(server => 'system'), 'LK503', 'an unknown authority is LK503', hint => $file);
fails_with($session, flow(server => 'unknown'), 'LK503', 'another authority than ca_file\'s is LK503', hint => $file);
fails_with($session, flow(server => 'wrong_name'), 'LK503', 'a certificate with the wrong name is LK503',
	hint => $file);
fails_with($session, flow(server => 'expired'), 'LK503', 'an expired certificate is LK503', hint => $file);
fails_with($session, flow(server => 'missing'), 'LK503', 'a ca_file that does not exist is LK503', hint => $file);
fails_with($session, flow(server => 'nonsense'), 'LK503', 'a ca_file without a certificate is LK503', hint => $file);
fails_with($session, flow(server => 'old_tls'), 'LK503', 'TLS 1.1 is LK503');
is($mock->count, 0, 'no byte of a request went over a connection that is not verified');
succeeds($session, flow(server => 'valid'), 'the next call of this session works');

alter_server($session, 'wrong_name', 'SET', base_url => "https://localhost:$port{wrong_name}");
fails_with($session, flow(server => 'wrong_name'), 'LK503', '... nor by another wrong name', hint => $file);

# A connection of one server is no way around the verification of another.
create_server($node, 'same_place', { base_url => "https://127.0.0.1:$port{valid}", ca_file => "$dir/other/ca.crt" });
fails_with(
	$session, flow(server => 'same_place'),
	'LK503',
	'a connection kept under one ca_file is not used under another',
	hint => $file);
fails_with($session, flow(server => 'system'), 'LK503', '... nor without one', hint => $file);
succeeds($session, flow(server => 'valid'), '... and the other way round');

foreach my $option (qw(sslmode verify verify_peer ssl_verify insecure tls_verify))
{
	fails_with(
		$session, "ALTER SERVER valid OPTIONS (ADD $option 'off')",
		'HV00D', "verification cannot be turned off: there is no option $option");
}
is( $session->value(
		"SELECT count(*) FROM pg_settings WHERE name LIKE 'feishu_flow.%' AND name ~ 'tls|ssl|verif|insec|cert'"),
	'0',
	'... nor a setting');

# ---- HTTP/2 ----

$mock->mark;
succeeds($session, flow(server => 'valid'), "call $_ where HTTP/2 is offered") for 1 .. 3;
wait_until(
	'nginx has logged',
	sub {
		(grep { /execute/ } logged('valid')) >= 3;
	});
is_deeply([ grep { !m{ HTTP/2\.0 } } logged('valid') ], [], 'HTTP/2 is used where it is offered');
my @lines = grep { /execute/ } logged('valid');
my %connections = map { (split)[2] => 1 } @lines[ -3 .. -1 ];
is(scalar(keys %connections), 1, 'HTTP/2 connections are kept');
my ($request) = $mock->log(kind => 'execute');
like($request->{headers}{'content-type'}, qr{^application/json; charset=utf-8$}, 'headers are the same over HTTP/2');
is($request->{json}{operator} =~ s/\s//gr, '{"_id":1111}', 'the body is the same over HTTP/2');

succeeds($session, flow(server => 'http1'), "call $_ where HTTP/2 is not offered") for 1 .. 3;
wait_until(
	'nginx has logged',
	sub {
		(grep { /execute/ } logged('http1')) >= 3;
	});
is_deeply([ grep { !m{ HTTP/1\.1 } } logged('http1') ], [], 'HTTP/1.1 is used otherwise');
%connections = map { (split)[2] => 1 } logged('http1');
is(scalar(keys %connections), 1, 'TLS connections are kept');

foreach my $fault (
	[ { type => 'status', status => 502 }, 'LK500' ],
	[ { type => 'big', bytes => 20 << 20 }, 'LK502' ],
	[ { type => 'half_answer' }, 'LK502' ],
	[ { type => 'hang' }, 'LK504' ])
{
	$mock->fault(%{ $fault->[0] });
	fails_with($session, flow(server => 'valid', timeout => $fault->[1] eq 'LK504' ? '300ms' : '30s'),
		$fault->[1], "$fault->[0]{type} over HTTP/2 is $fault->[1]");
	$mock->well;
	succeeds($session, flow(server => 'valid'), '... and the next call works');
}

# A server ends a connection when it has served so many requests, and refuses those
# that were sent meanwhile: they are sent again, and the server is not in trouble.
$mock->fault(type => 'latency', ms => 20);
$session->value(
	"SELECT feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => 'few') FROM generate_series(1, 500)");
wait_until(
	'all flows have ended',
	sub { $session->value("SELECT count(*) FROM feishu.flows WHERE state IN ('queued', 'sending', 'retrying')") == 0 });
is($session->value("SELECT string_agg(DISTINCT state, ' ') FROM feishu.flows"),
	'succeeded', 'flows succeed though the server ends connections');
unlike(slurp_file($node->logfile), qr/server "few" does not answer/, '... and nothing is held back for that');
$mock->well;

# The queue sends over few HTTP/2 connections, many flows at once on each.
begin_anew($mock, $session, 'valid');
my $before = scalar(logged('valid'));
$mock->fault(type => 'hold');
enqueue_many($session, 1, 96, server => 'valid');
$mock->wait_for(96, kind => 'execute');
is($mock->stats->{max_concurrent_executes}, 96, '96 queued flows are under way at once over HTTP/2');
$mock->well;
until_ended($session);
started_once($mock, 96, '... and start once');
wait_until('nginx has logged', sub { scalar(logged('valid')) >= $before + 96 });
@lines = (logged('valid'))[ $before .. $before + 95 ];
is_deeply([ grep { !m{ HTTP/2\.0 } } @lines ], [], '... over HTTP/2 indeed');
%connections = map { (split)[2] => 1 } @lines;
cmp_ok(scalar(keys %connections), '<=', 8, '... over few connections: ' . keys %connections);

# ---- a ca_file that is replaced ----

append_to_file("$dir/private.crt", slurp_file("$dir/other/ca.crt"));
create_server($node, 'private', { base_url => "https://127.0.0.1:$port{http1}", ca_file => "$dir/private.crt" });
fails_with($session, flow(server => 'private'), 'LK503', 'an authority before it is renewed', hint => $file);
open(my $private, '>', "$dir/private.crt") or die "private.crt: $!";
print $private slurp_file("$dir/good/ca.crt");
close $private;
succeeds($session, flow(server => 'private'), 'a ca_file that is replaced is read again at once');
copy("$dir/other/ca.crt", "$dir/private.new")  or die "copy: $!";
rename("$dir/private.new", "$dir/private.crt") or die "rename: $!";
fails_with(
	$session, flow(server => 'private'), 'LK503',
	'an authority that was taken away is not trusted, on no kept connection either',
	message => qr/the platform's certificate/,
	hint => qr/has the authority/);

# ---- proxies ----

# A proxy that knows CONNECT; every host it is asked for is this machine.
my $listener = IO::Socket::INET->new(
	LocalAddr => '127.0.0.1',
	Listen => 16,
	ReuseAddr => 1) or die "socket: $!";
my $proxy = '127.0.0.1:' . $listener->sockport;
forked(
	'proxy',
	sub {
		while (my $client = $listener->accept)
		{
			next if fork();
			my $head = '';
			while ($head !~ /\r\n\r\n$/)
			{
				sysread($client, $head, 1, length $head) or return;
			}
			append_to_file("$dir/proxy.log", (split(/\r\n/, $head))[0] . "\n");
			if (-e "$dir/hang")
			{
				sysread($client, $head, 1);    # until it is given up
				return;
			}
			if ($head !~ /^CONNECT [^:]+:(\d+) /)
			{
				print $client "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
				return;
			}
			my $server = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $1);
			if (!$server || -e "$dir/refuse")
			{
				print $client "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
				return;
			}
			syswrite($client, "HTTP/1.1 200 Connection established\r\n\r\n");
			my $select = IO::Select->new($client, $server);
			while (my @ready = $select->can_read)
			{
				foreach my $from (@ready)
				{
					my $to = $from == $client ? $server : $client;
					sysread($from, my $data, 65536) or return;
					my $done = 0;
					$done += syswrite($to, $data, length($data) - $done, $done) // return while $done < length $data;
				}
			}
		}
	});
append_to_file("$dir/proxy.log", '');

create_server($node, 'tunnel', { base_url => "https://feishu.test:$port{valid}", %ca, proxy => "http://$proxy" });
succeeds($session, flow(server => 'tunnel'), 'a call over TLS through a proxy');
like(
	slurp_file("$dir/proxy.log"),
	qr/^CONNECT feishu\.test:$port{valid} /m,
	'the proxy is asked for a tunnel to the host of base_url');
succeeds($session, flow(server => 'tunnel'), 'a second call through the proxy');
is(scalar(() = slurp_file("$dir/proxy.log") =~ /^CONNECT/mg), 1, 'the tunnel is kept');

# What is said to the proxy counts neither as a request that was sent nor as one
# that is sent again.  These sessions need no token.
my $cold = FeishuFlow::Session->new($node);
succeeds($cold, flow(server => 'tunnel'), 'a first call through the proxy that needs no token');
is(scalar(() = slurp_file("$dir/proxy.log") =~ /^CONNECT/mg), 2, '... through a tunnel of its own');
$cold->quit;
append_to_file("$dir/hang", '');
$cold = FeishuFlow::Session->new($node);
my $result = fails_with(
	$cold, flow(server => 'tunnel', timeout => '300ms'),
	'LK504',
	'a proxy that hangs when asked for a tunnel is LK504',
	detail => qr/while (?:connecting|establishing)/);
unlike($result->{hint}, qr/started/, '... and no flow can have started');
fails_with(
	$cold, "SET feishu_flow.connect_timeout = '200ms';" . flow(server => 'tunnel'),
	'LK504', '... connect_timeout ends it',
	message => qr/no connection within 200 ms/,
	hint => qr/proxy/);
$cold->quit;
unlink "$dir/hang";

alter_server($session, 'tunnel', 'SET', base_url => "https://elsewhere.test:$port{valid}");
fails_with($session, flow(server => 'tunnel'), 'LK503', 'TLS is verified behind a proxy, too', hint => $file);

# the mock takes the absolute form that proxies get for http
create_server($node, 'forward', { base_url => 'http://feishu.test', proxy => $mock->url });
$mock->mark;
succeeds($session, flow(server => 'forward'), 'a call over http through a proxy');
($request) = $mock->log(kind => 'execute');
is($request->{headers}{host}, 'feishu.test', 'the proxy is asked for the host of base_url');

# the same session, with a proxy and without
create_server($node, 'alternate', { base_url => $mock->url });
succeeds($session, flow(server => 'alternate'), 'a call without a proxy');
alter_server($session, 'alternate', 'ADD', proxy => "http://$proxy");
fails_with(
	$session, flow(server => 'alternate'),
	'LK502',
	'the same call through a proxy that cannot forward',
	detail => qr/HTTP status 405/);
like(slurp_file("$dir/proxy.log"), qr{^POST \Q@{[$mock->url]}\E/open-apis/\S+ HTTP}m, '... is sent with the whole URL');
alter_server($session, 'alternate', 'DROP', 'proxy');
succeeds($session, flow(server => 'alternate'), '... and again without');

append_to_file("$dir/refuse", '');
alter_server($session, 'tunnel', 'SET', base_url => "https://feishu.test:$port{http1}");
fails_with($session, flow(server => 'tunnel'), 'LK503', 'a proxy that refuses is LK503', hint => qr/proxy/);
alter_server($session, 'tunnel', 'SET', proxy => 'http://127.0.0.1:' . closed_port());
fails_with($session, flow(server => 'tunnel'), 'LK503', 'a proxy that is down is LK503', hint => qr/proxy/);
alter_server($session, 'tunnel', 'SET', proxy => 'http://127.0.0.1:' . full_port());
fails_with($session, flow(server => 'tunnel', timeout => '300ms'), 'LK504', 'a proxy that hangs is LK504');

# A proxy that speaks TLS: trusted as the platform is, by the same authorities.
sub tls_front
{
	my ($certificate) = @_;
	my (undef, $out) =
	  FeishuFlow::start_process("front_$certificate", 'python3', "$FindBin::RealBin/../lib/tls_front.py",
		"$dir/$certificate.crt", "$dir/$certificate.key", $listener->sockport);
	my $front_port = <$out>;
	chomp $front_port;
	return "https://127.0.0.1:$front_port";
}
unlink "$dir/refuse";
# behind TLS, libcurl 7.88 loses what TLS ended for
my %not_proxy = (
	message => qr/the platform's certificate could not be verified|the platform could not be reached/,
	hint => qr/base_url.*ca_file option/);
my %of_proxy =
  (message => qr/the proxy's certificate could not be verified/, hint => qr/proxy option names.*ca_file option has/);
create_server($node, 'tls_proxy', { base_url => "https://feishu.test:$port{http1}", %ca, proxy => tls_front('valid') });
succeeds($session, flow(server => 'tls_proxy'), 'a call through a proxy that speaks TLS, trusted by ca_file');
alter_server($session, 'tls_proxy', 'SET', base_url => "https://feishu.test:$port{unknown}");
fails_with($session, flow(server => 'tls_proxy'), 'LK503', 'the platform behind it is verified', %not_proxy);
alter_server($session, 'tls_proxy', 'SET', base_url => "https://feishu.test:$port{http1}");
alter_server($session, 'tls_proxy', 'SET', proxy => tls_front('unknown'));
fails_with($session, flow(server => 'tls_proxy'), 'LK503', 'a proxy of an unknown authority is not trusted', %of_proxy);
alter_server($session, 'tls_proxy', 'SET', proxy => tls_front('wrong_name'));
fails_with($session, flow(server => 'tls_proxy'), 'LK503', 'nor one with a wrong name', %of_proxy);
alter_server($session, 'tls_proxy', 'SET', proxy => "https://127.0.0.1:$port{no_tls}");
fails_with(
	$session, flow(server => 'tls_proxy'),
	'LK503',
	'one that speaks no TLS is LK503',
	hint => qr/proxy option leads to/);
alter_server($session, 'tls_proxy', 'SET', base_url => 'http://feishu.test');
alter_server($session, 'tls_proxy', 'SET', proxy => "https://127.0.0.1:$port{http1}");
succeeds($session, flow(server => 'tls_proxy'), 'a call over http through a proxy that speaks TLS');
alter_server($session, 'tls_proxy', 'SET', proxy => "https://127.0.0.1:$port{unknown}");
fails_with($session, flow(server => 'tls_proxy'), 'LK503', '... which is verified, too', %of_proxy);
alter_server($session, 'tls_proxy', 'DROP', 'ca_file');
fails_with(
	$session, flow(server => 'tls_proxy'), 'LK503', '... by the system\'s authorities without ca_file',
	message => $of_proxy{message},
	hint => qr/set the server's ca_file option to a PEM file/);

# libcurl would wait for a writer, with signals blocked
POSIX::mkfifo("$dir/fifo", 0600) or die "mkfifo: $!";
alter_server($session, 'valid', 'SET', ca_file => "$dir/fifo");
fails_with(
	$session, flow(server => 'valid', timeout => '1s'),
	'42809',
	'a ca_file that is no regular file is refused',
	hint => qr/PEM/);
alter_server($session, 'valid', 'SET', %ca);
succeeds($session, flow(server => 'valid'), 'after all this a call works');
copy($ca{ca_file}, "$dir/becomes_fifo") or die "copy: $!";
alter_server($session, 'valid', 'SET', ca_file => "$dir/becomes_fifo");
succeeds($session, flow(server => 'valid'), 'a call with a copy of the CA');
unlink("$dir/becomes_fifo");
POSIX::mkfifo("$dir/becomes_fifo", 0600) or die "mkfifo: $!";
fails_with($session, flow(server => 'valid', timeout => '1s'), '42809', 'so is one that has become none');

done_testing();
