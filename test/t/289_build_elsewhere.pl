
# The extension is built in another folder than that of its sources: nothing is written there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my ($sources, $folder) = map { PostgreSQL::Test::Utils::tempdir() } 1 .. 2;

sub run_quietly
{
	my @command = @_;
	my $out = '';
	my $ok = IPC::Run::run(\@command, '>', \$out, '2>&1');
	return ($ok, $out);
}

# What a tree has, without what was made of it.
run_quietly('cp', '-r',
	(map { "$root/$_" } qw(Makefile nls.mk po src feishu_flow.control feishu_flow--1.0.sql)), $sources);
run_quietly('find', $sources, '-name', '*.o', '-delete', '-o', '-name', '*.mo', '-delete',
	'-o', '-name', '*.so', '-delete');
my (undef, $before) = run_quietly('find', $sources);

my @make = ('make', '-C', $folder, '-f', "$sources/Makefile", "PG_CONFIG=$ENV{PG_CONFIG}");
my ($ok, $out) = run_quietly(@make, 'src/http/http_handle.o');
ok($ok, 'an object is made') or diag($out);
like($out, qr/-DFEISHU_FLOW_VERSION='"1\.0"'/, '... with the version of the control file');
ok(-e "$folder/src/http/http_handle.o", '... in the folder');
my (undef, $configured) = run_quietly($ENV{PG_CONFIG}, '--configure');
SKIP:
{
	skip('this PostgreSQL speaks no other languages', 2) if $configured !~ /--enable-nls/;
	($ok, $out) = run_quietly(@make, 'po/zh_CN.mo');
	ok($ok, 'a catalog is made') or diag($out);
	ok(-e "$folder/po/zh_CN.mo", '... in the folder');
}
append_to_file("$folder/src/http/http_handle.o", '');
utime(1, 1, "$folder/src/http/http_handle.o");
($ok, $out) = run_quietly(@make, '-n', 'install');
like($out, qr/feishu_flow--1\.0\.sql/, 'it is installed with its script');
like($out, qr/-c -o src\/http\/http_handle\.o/, '... and an object that is older than a header is made anew');
my (undef, $after) = run_quietly('find', $sources);
is($after, $before, 'nothing is written among the sources');

done_testing();
