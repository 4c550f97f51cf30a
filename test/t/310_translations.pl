
# Messages are there in Chinese: all of them, and a session whose lc_messages says so gets them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $root = "$FindBin::RealBin/../..";
my $dir = PostgreSQL::Test::Utils::tempdir();
chmod 0755, $dir;

sub run_quietly
{
	my @command = @_;
	my $out = '';
	my $ok = IPC::Run::run(\@command, '>', \$out, '2>&1');
	return ($ok, $out);
}

my (undef, $configured) = run_quietly($ENV{PG_CONFIG}, '--configure');
plan(skip_all => 'this PostgreSQL speaks no other languages') if $configured !~ /--enable-nls/;

# ---- the catalog ----

# A copy of the sources, for init-po writes into them.
run_quietly('cp', '-r', "$root/Makefile", "$root/nls.mk", "$root/po", "$root/src", "$root/feishu_flow.control",
	"$root/feishu_flow--1.0.sql", $dir);
my ($ok, $out) = run_quietly('make', '-C', $dir, "PG_CONFIG=$ENV{PG_CONFIG}", 'init-po');
ok($ok, 'the messages of the sources can be collected') or diag($out);

# msgid => msgstr
sub catalog
{
	my %catalog;
	my $text = slurp_file($_[0]);
	while ($text =~ /^msgid ((?:".*"\n)+)msgstr ((?:".*"(?:\n|\z))+)/mg)
	{
		my ($id, $string) = map { join '', /^"(.*)"$/mg } $1, $2;
		$catalog{$id} = $string if $id ne '';
	}
	return %catalog;
}
my %template = catalog("$dir/po/feishu_flow.pot");
my %chinese = catalog("$root/po/zh_CN.po");
cmp_ok(scalar keys %template, '>', 250, 'there are messages');
is_deeply([ grep { !defined $chinese{$_} || $chinese{$_} eq '' } sort keys %template ],
	[], 'all of them are translated');
is_deeply([ grep { !exists $template{$_} } sort keys %chinese ], [], 'nothing is translated that is no longer said');
is_deeply([ grep { $chinese{$_} !~ /[\x80-\xff]/ && $_ =~ /[a-z]{3} [a-z]/ } sort keys %template ],
	[], 'translations are Chinese');
($ok, $out) = run_quietly('msgfmt', '-c', '-o', '/dev/null', "$root/po/zh_CN.po");
ok($ok, 'placeholders agree') or diag($out);

# A file that shows text to users looks into our catalog, not into the server's.
my @without;
foreach my $file (glob "$root/src/*.c $root/src/*/*.c")
{
	my $text = slurp_file($file);
	push @without, $file
	  if $text =~ /\bereport\(|\berrcontext\(|\W_\(/ && $text !~ m{#include "base/nls\.h"} && $file !~ /nls\.c$/;
}
is("@without", '', 'every file with messages includes base/nls.h');

# ---- a Chinese session ----

SKIP:
{
	($ok, $out) = run_quietly('localedef', '-i', 'zh_CN', '-f', 'UTF-8', "$dir/zh_CN.UTF-8");
	skip 'no locale zh_CN can be made here', 5 if !-d "$dir/zh_CN.UTF-8";
	skip 'PostgreSQL was built without NLS', 5 if (run_quietly($ENV{PG_CONFIG}, '--configure'))[1] !~ /--enable-nls/;
	local $ENV{LOCPATH} = $dir;

	my $mock = FeishuFlow::Mock->start;
	my $node = new_cluster('chinese', conf => "lc_messages = 'zh_CN.UTF-8'\nfeishu_flow.poll_interval = '1s'\n");
	create_server($node, 'feishu', { base_url => $mock->url });
	my $err = '';
	my $advice = '请在开发者后台为应用添加权限';
	my %call = (
		"SELECT feishu.execute_flow('app', 'noScope', '{\"_id\": 1}')" =>
		  qr/无法执行流程 "app\/noScope"：应用缺少权限.*HTTP 状态 400，错误码 99991672.*$advice/s,
		"SELECT feishu.execute_flow('', 'f', '{\"_id\": 1}')" => qr/参数 "namespace" 不能为空/,
		"ALTER SERVER feishu OPTIONS (SET base_url 'ftp://x')" =>
		  qr/选项 "base_url" 必须以 "http:\/\/" 或 "https:\/\/" 开头/);

	foreach my $sql (sort keys %call)
	{
		$node->psql('postgres', $sql, stderr => \$err);
		utf8::decode($err);
		use utf8;
		my $wanted = do { my $text = "$call{$sql}"; utf8::decode($text); qr/$text/ };
		like($err, $wanted, "in Chinese: $sql");
	}
	$node->psql(
		'postgres',
		"SET lc_messages = 'C'; SELECT feishu.execute_flow('', 'f', '{\"_id\": 1}')",
		stderr => \$err);
	like($err, qr/argument "namespace" must not be empty/, 'and in English, on request');

	# What the dispatcher writes into the queue is Chinese, whatever the language of the session that queues.
	my $english = FeishuFlow::Session->new($node);
	$english->value("SET lc_messages = 'C'");
	my $why = sub {
		my $id = $english->value("SELECT feishu.enqueue_flow($_[0])");
		return wait_until('the flow has failed',
			sub { $english->value("SELECT error FROM feishu.flows WHERE id = $id AND state = 'failed'") });
	};
	is( $why->("'app', 'refusedFlow', '{\"_id\": 1}'"),
		'参数被拒绝；HTTP 状态 400；param is invalid',
		'in Chinese: why a flow has failed, as the page of the queue shows it');
	$english->value("SELECT feishu.pause_server('feishu')");
	is($why->("'app', 'f', '{\"_id\": 1}', expires_at => clock_timestamp() + interval '10 ms'"),
		'在发送之前已过期', '... and that one has expired');
	$english->value("SELECT feishu.resume_server('feishu')");

	# What monitoring looks at stays the same in every language.
	$node->safe_psql('postgres', "SELECT feishu.enqueue_flow('app', 'f', '{\"_id\": 1}')");
	$mock->config(apps => { cli_mock => 'another' });
	my $session = FeishuFlow::Session->new($node);
	$node->safe_psql('postgres', "ALTER USER MAPPING FOR PUBLIC SERVER feishu OPTIONS (SET app_secret 'wrong')");
	$node->safe_psql('postgres',
		"SELECT count(feishu.enqueue_flow('app', 'f', '{\"_id\": 1}')) FROM generate_series(1, 3)");
	is( wait_until('the app is paused', sub { $session->value('SELECT pause_reason FROM feishu.dispatch_status') }),
		'the credentials were refused',
		'pause_reason is not translated');
}

done_testing();
