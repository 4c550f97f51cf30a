
# Authorities are read once and kept as long as they are the same; the system's are looked up one by one where they are
# hashed, and where that folder has all that the file has.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use File::Copy qw(copy);
use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# What a file of authorities is long, so that it shows when it is read.
my $LARGE = 8 << 20;

my ($vernum) = `curl-config --vernum` =~ /^([0-9a-f]{6})$/;
plan skip_all => 'libcurl keeps no authorities' if !defined $vernum || hex($vernum) < 0x075700;

my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;
my $library = "$dir/other_libcurl.so";
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/other_libcurl.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for another libcurl';

# Three certificates that vouch for themselves; and servers that end each connection after one request.
foreach my $name ('one', 'two', 'host')
{
	my $log = '';
	IPC::Run::run(
		[
			'openssl', 'req', '-x509', '-newkey',
			'rsa:2048', '-nodes', '-days', '30',
			'-subj', "/CN=feishu_flow test $name", '-addext', 'subjectAltName = IP:127.0.0.1',
			'-keyout', "$dir/$name.key", '-out', "$dir/$name.crt"
		],
		'>&',
		\$log) or die "openssl: $log";
}
my $mock = FeishuFlow::Mock->start;
my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } 'one', 'two', 'host';
my $sites = join '', map { <<"CONF" } sort keys %port;
	server {
		listen 127.0.0.1:$port{$_} ssl;
		ssl_certificate $dir/$_.crt;
		ssl_certificate_key $dir/$_.key;
		ssl_session_tickets off;
		keepalive_requests 1;
		location / { proxy_pass @{[$mock->url]}; proxy_http_version 1.1; }
	}
CONF
start_nginx($dir, $sites, values %port);

# A file of the certificates given, and of text that takes time to read.
sub bundle
{
	my ($name, @certificates) = @_;
	open(my $file, '>', "$dir/new") or die "$dir/new: $!";
	print $file slurp_file("$dir/$_.crt") foreach @certificates;
	print $file "# no certificate\n" x ($LARGE / 17);
	close $file;
	rename("$dir/new", "$dir/$name") or die "rename: $!";
	return "$dir/$name";
}

# The folder with the certificates given.
mkdir "$dir/certs" or die "mkdir: $!";

sub folder
{
	unlink glob "$dir/certs/*";
	copy("$dir/$_.crt", "$dir/certs/$_.pem") foreach @_;
	system('openssl', 'rehash', "$dir/certs") == 0 or die 'openssl rehash';
	return;
}

bundle('bundle', 'one');
folder('one');
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{OTHER_CAINFO} = "$dir/bundle";
	local $ENV{OTHER_CAPATH} = "$dir/certs";
	$node = queue_cluster('main');
}
create_server($node, $_, { base_url => "https://127.0.0.1:$port{$_}" }) foreach keys %port;
create_server($node, 'private', { base_url => "https://127.0.0.1:$port{one}", ca_file => bundle('private', 'one') });

# Does the process read a large file meanwhile?
sub reads_file
{
	my ($pid, $function) = @_;
	my $read = sub { return (slurp_file("/proc/$pid/io") =~ /^rchar: (\d+)/m)[0] };
	my $before = $read->();
	$function->();
	return $read->() - $before > $LARGE / 2 ? 1 : 0;
}

sub call_reads
{
	my ($session, $server, $name) = @_;
	return reads_file($session->pid, sub { succeeds($session, flow(server => $server), $name) });
}

# ---- the system's ----

my $session = FeishuFlow::Session->new($node);
is(call_reads($session, 'one', 'a first call with the system\'s authorities'),
	0, 'the system\'s file is not read for it');
is(call_reads($session, 'one', 'a second call, over a new connection'), 0, '... nor for this one');
fails_with($session, flow(server => 'two'), 'LK503', 'another authority is not trusted');

bundle('bundle', 'one', 'two');
succeeds($session, flow(server => 'two'), 'an authority that is in the file alone is trusted at once');
is(call_reads($session, 'two', 'a second call by the file'), 0, '... which is not read again');
folder('one', 'two');
is(call_reads($session, 'two', 'a call when the folder has all again'), 1, '... which is looked at once more');
is(call_reads($session, 'two', 'a second call then'), 0, '... and then no more');
folder('one', 'two', 'host');
succeeds($session, flow(server => 'host'), 'the folder is used when it has more, as Debian\'s has');
folder('one', 'host');
succeeds(
	$session,
	flow(server => 'two'),
	'an authority that is in the file alone is trusted, when the folder has another one in its place');
folder('one', 'two');
unlink "$dir/certs/two.pem";
succeeds($session, flow(server => 'two'), 'a link that leads nowhere is no authority of the folder');
bundle('bundle', 'one');
folder('one');
fails_with($session, flow(server => 'two'), 'LK503', 'an authority that is gone is not trusted any more');

# ---- ca_file ----

is(call_reads($session, 'private', 'a first call with ca_file'), 1, 'a ca_file is read');
is(call_reads($session, 'private', "call $_ over a new connection"), 0, '... once') for 2 .. 3;
utime(1, 1, "$dir/private") or die "utime: $!";
is(call_reads($session, 'private', 'a call after it was touched'), 1, '... and again when it may be another');
bundle('private', 'two');
fails_with($session, flow(server => 'private'), 'LK503', 'an authority that was taken out is not trusted');
bundle('private', 'two', 'one');
is(call_reads($session, 'private', 'a call with the authority back'), 1, '... until it is back');
is(call_reads($session, 'private', 'a call over a new connection'), 0, '... and that is read once, too');

# ---- the dispatcher, many connections at once ----

my $pid = until_dispatcher($session);
$mock->fault(type => 'hold');
$mock->mark;
my $arrived;
is( reads_file(
		$pid,
		sub { enqueue_many($session, 1, 60, server => 'private'); $arrived = $mock->wait_for(60, kind => 'execute') }),
	1,
	'a dispatcher reads a ca_file');
is($arrived, 60, '... and, over HTTP/1.1, no flow waits for the answer to another');
$mock->well;
until_ended($session);
is(reads_file($pid, sub { enqueue_many($session, 61, 120, server => 'private'); until_ended($session) }),
	0, '... once for all connections');

done_testing();
