
# Why there is no connection is said in words, each cause in its own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use Errno qw(:POSIX);
use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
system('cc', '-shared', '-fPIC', '-o', "$dir/errors.so", "$FindBin::RealBin/../lib/scarce_ports.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for connections that cannot be made';
chmod 0755, $dir;
my $node;
{
	local $ENV{LD_PRELOAD} = "$dir/errors.so";
	local $ENV{SCARCE_PORTS} = "$dir/error";
	$node = new_cluster('main');
}
create_server($node, 'feishu', { base_url => 'http://127.0.0.1:1' }, { tenant_access_token => 't-x' });
my $session = FeishuFlow::Session->new($node);

my $base_url = qr/base_url/;
my %way = map { $_ => [ qr/: the network has no route to that address\./, $base_url ] } ENETUNREACH, EHOSTUNREACH,
  ENETDOWN, EHOSTDOWN;
my %forbidden = map { $_ => [ qr/: the database host does not allow it\./, $base_url ] } EACCES, EPERM;
my %hung_up = map { $_ => [ qr/: the peer hung up\./, $base_url ] } ECONNRESET, ECONNABORTED, EPIPE;
my %says = (
	%way, %forbidden,
	%hung_up, ECONNREFUSED,
	[ qr/: nothing listens at that address and port, or a firewall rejects connections\./, $base_url ], EADDRNOTAVAIL,
	[ qr/: the database host has no local port left\./, qr/local ports left/ ], ENOPROTOOPT,
	[ qr/: system error @{[ENOPROTOOPT]}\./, $base_url ]);

foreach my $errno (sort { $a <=> $b } keys %says)
{
	local $! = $errno;
	my $name = "$!";
	open(my $file, '>', "$dir/error.new") or die "open: $!";
	print $file "$errno\n";
	close $file;
	chmod 0644, "$dir/error.new";
	rename("$dir/error.new", "$dir/error") or die "rename: $!";
	my $result = fails_with($session, flow(), 'LK503', $name, detail => $says{$errno}[0], hint => $says{$errno}[1]);
	unlike($result->{hint}, qr/may have started/, '... and nothing has started');
}

done_testing();
