
# An extension that is installed outside of PostgreSQL's own folders, which extension_control_path makes possible from
# PostgreSQL 18 on: all of it works, and it finds its translations.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my ($major) = `$ENV{PG_CONFIG} --version` =~ /(\d+)/;
plan skip_all => 'extension_control_path is of PostgreSQL 18' if $major < 18;

my $root = "$FindBin::RealBin/../..";
my $dir = PostgreSQL::Test::Utils::tempdir();
chmod 0755, $dir;

sub config { my ($what) = @_; chomp(my $path = `$ENV{PG_CONFIG} --$what`); return $path; }

# Two layouts: that of "make install DESTDIR=", and share/ and lib/ side by side, as images of extensions have them.
my $there = "$dir/root";
run_command([ 'make', '-s', '-C', $root, "PG_CONFIG=$ENV{PG_CONFIG}", "DESTDIR=$there", 'install' ]);

# The catalog from there has words of its own: another one is among PostgreSQL's.
append_to_file("$dir/zh_CN.po", slurp_file("$root/po/zh_CN.po") =~ s/不能为空/不能什么都没有/gr);
my $locales = $there . config('localedir');
my ($catalog) = glob "$locales/zh_CN/LC_MESSAGES/feishu_flow*.mo";
run_command([ 'msgfmt', '-o', $catalog, "$dir/zh_CN.po" ]) if defined $catalog;

my $flat = "$dir/flat";
mkdir $_ foreach $flat, "$flat/share", "$flat/lib";
run_command([ 'cp', '-r', $there . config('sharedir') . '/extension', "$flat/share/extension" ]);
run_command([ 'cp', $there . config('pkglibdir') . '/feishu_flow.so', "$flat/lib" ]);
run_command([ 'cp', '-r', $locales, "$flat/share/locale" ]) if defined $catalog;
run_command([ 'localedef', '-i', 'zh_CN', '-f', 'UTF-8', "$dir/zh_CN.UTF-8" ]);
$ENV{LOCPATH} = $dir if -d "$dir/zh_CN.UTF-8";

my $mock = FeishuFlow::Mock->start;
foreach my $layout ([ 'DESTDIR', $there . config('sharedir'), $there . config('pkglibdir') ],
	[ 'side by side', "$flat/share", "$flat/lib" ])
{
	my ($name, $share, $lib) = @$layout;
	my $node = queue_cluster($name =~ s/ /_/gr, conf => <<"CONF");
extension_control_path = '$share'
dynamic_library_path = '$lib:\$libdir'
CONF
	create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1}' });
	my $session = FeishuFlow::Session->new($node);
	succeeds($session, flow(), "$name: a call");
	my $id = enqueue($session, flow_id => 'queued');
	until_state($session, $id, 'succeeded');
	pass('... and a queued flow');
	my ($pid) = ($session->pid);
	like(slurp_file("/proc/$pid/maps"), qr{\Q$lib/feishu_flow.so\E}, '... with the library from there');
	unlike(slurp_file("/proc/$pid/maps"), qr{(?<!\Q$lib\E)/feishu_flow\.so}, '... alone');
  SKIP:
	{
		skip 'no locale zh_CN can be made here', 1 if !$ENV{LOCPATH} || !defined $catalog;
		$session->value("SET lc_messages = 'zh_CN.UTF-8'");
		fails_with(
			$session, flow(flow_id => ''),
			'22023',
			'... speaks Chinese, with the catalog from there',
			message => qr/不能什么都没有/);
	}
	$session->quit;
	$node->stop;
}

done_testing();
