
# The examples of the pages work, in the order in which they stand there, and give
# what the pages say that they give.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# The front page, and the others in its order, but that on Citus: test/citus/040_page.pl
# has a cluster for the one, 335 a database for the other.
my $root = "$FindBin::RealBin/../..";
my $front = slurp_file("$root/README.md");
my ($contents) = $front =~ /^## Documentation\n(.*?)^## /ms;
my @pages = ('README.md', grep { $_ !~ m{^docs/citus\.md$} } $contents =~ /^\[.*?\]\((\S+\.md)\) \|/mg);
cmp_ok(scalar @pages, '>', 10, "pages: @pages");
my %text = map { $_ => slurp_file("$root/$_") } @pages;
my ($apps) = $front =~ m{^python3 test/feishu_mock\.py --port 8080 (--app .*)$}m;
my $mock = FeishuFlow::Mock->start(split / /, $apps);
my $url = $mock->url;
my $node = new_cluster('examples');

# SQL, and what is shown after it.
my @examples;
foreach my $page (@pages)
{
	push @examples, { page => $page, sql => $1, shown => $2 }
	  while $text{$page} =~ /^ *```sql\n(.*?)^ *```\n(?:\n```\n(.*?)^```\n)?/msg;
}
cmp_ok(scalar(@examples), '>', 60, 'there are examples: ' . @examples);
cmp_ok(scalar(grep { defined $_->{shown} } @examples), '>', 5, '... some with what they give');

# The mock is where the page says that it is, but for the port. No example calls
# a server that has no address of it.
sub for_the_mock
{
	my ($sql, $address) = (@_, $url);
	return $sql =~ s{http://127\.0\.0\.1:8080}{$address}gr;
}

# Digits differ from run to run, and so does the width of columns.
sub shape
{
	my ($line) = @_;
	return $line =~ s/\d+/0/gr =~ s/[ -]+/ /gr =~ s/^ | $//gr;
}

my $script = PostgreSQL::Test::Utils::tempdir() . '/examples.sql';
append_to_file($script, "\\echo example-$_\n\\warn example-$_\n" . for_the_mock($examples[$_]{sql}))
  foreach 0 .. $#examples;
append_to_file($script, "\\echo example-end\n\\warn example-end\n");
my ($out, $err) = ('', '');
IPC::Run::run([ 'psql', '-X', '-d', $node->connstr('postgres'), '-f', $script ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(2 * $FeishuFlow::PATIENCE));
like($out, qr/^example-end$/m, 'all examples are run');

my (@failed, @differ);
foreach my $i (0 .. $#examples)
{
	my $next = $i < $#examples ? $i + 1 : 'end';
	my ($said) = $err =~ /^example-$i\n(.*?)^example-$next\n/ms;
	my ($given) = $out =~ /^example-$i\n(.*?)^example-$next\n/ms;
	push @failed, "$examples[$i]{page}: $examples[$i]{sql}\n$said" if ($said // '') =~ /ERROR|FATAL/;
	next if !defined $examples[$i]{shown};
	my %given = map { shape($_) => 1 } split /\n/, $given // '';
	my @missing = grep { !$given{ shape($_) } } split /\n/, $examples[$i]{shown};
	push @differ, "$examples[$i]{page}: $examples[$i]{sql}\nshown: @missing\ngiven: $given" if @missing;
}
is(join("\n", @failed), '', 'none fails');
is(join("\n", @differ), '', 'what is shown is what they give');

my $session = FeishuFlow::Session->new($node);
until_ended($session, "run_at < now() + interval '1 hour'");
is( $session->value(
		"SELECT string_agg(DISTINCT flow_id || ' ' || state || ' ' || coalesce(sqlstate, ''), ', ') FROM feishu.flows "
		  . "WHERE state NOT IN ('succeeded', 'cancelled')"),
	'refusedFlow failed LK400',
	'what they queue is sent, and succeeds but for what is to be refused');
cmp_ok($mock->started, '>', 20, '... on the platform');

# Who comes from the front page may read any other one next.  Roles are there already.
my $setting_up = join '', map { $_->{sql} } grep { $_->{page} eq 'README.md' } @examples;
foreach my $page (grep { $_ ne 'README.md' } @pages)
{
	my $sql = join '', map { $_->{sql} } grep { $_->{page} eq $page } @examples;
	next if $sql eq '';
	my $own_mock = FeishuFlow::Mock->start(split / /, $apps);
	$node->safe_psql('postgres', 'CREATE DATABASE one_page');
	my (undef, undef, $said) =
	  $node->psql('one_page', for_the_mock($setting_up . $sql, $own_mock->url), on_error_stop => 0);
	is(join("\n", grep { /ERROR|FATAL/ && !/role "\w+" already exists/ } split /\n/, $said),
		'', "$page works after the front page alone");
	$node->safe_psql('postgres', 'DROP DATABASE one_page');
	$own_mock->stop;
}

# The writer's setting does not choose the server of a trigger that people may copy.
foreach my $page (qw(README.md README.zh-CN.md docs/triggers.md docs/zh-CN/triggers.md script/demo.d/2_queue.sql))
{
	my @triggers = slurp_file("$root/$page") =~ /EXECUTE FUNCTION feishu\.flow_trigger\((.*?)\);/sg;
	cmp_ok(scalar @triggers, '>', $page =~ /README/ ? 0 : 1, "there are triggers in $page");
	is(join("\n", grep { !/"server": "feishu"/ } @triggers), '', '... each names its server');
}

# Each trigger that people may copy starts one flow an order, also for a program that
# saves all columns each time, with what it knows of the row.
my ($table) = map { $_->{sql} } grep { $_->{sql} =~ /CREATE TABLE orders/ } @examples;
my @copied = grep { /^CREATE TRIGGER/m && /'submitted'/ } map { $_->{sql} } @examples;
cmp_ok(scalar @copied, '>', 2, 'there are triggers for submitted orders');
push @copied, slurp_file("$root/script/demo.d/2_queue.sql") =~ /^(CREATE TRIGGER .*?;\n\nCREATE TRIGGER .*?;\n)/ms;
my $save =
	q{UPDATE orders SET item = 'saved', owner_email = 'li@example.com', amount = 1, status = 'submitted', }
  . q{execution_id = NULL WHERE id = };
foreach my $copied (@copied)
{
	my ($what) = $copied =~ /^(CREATE TRIGGER .*)/m;
	$session->value('DROP TABLE orders; DROP FUNCTION IF EXISTS start_approval');
	$session->value($table);
	$session->value($copied =~ s/^(?:DROP|CREATE ROLE) .*\n//mgr);
	$session->value("INSERT INTO orders (item, owner_email) VALUES ('new', 'li\@example.com')") if $copied !~ /INSERT/;
	my $counted = $mock->count(kind => 'execute', flow_id => 'approveOrder_99c656599f');
	$session->value("INSERT INTO orders (item, owner_email, status) VALUES ('new', 'li\@example.com', 'submitted')")
	  if $copied =~ /INSERT/;
	$session->value("$save 1; $save 3; $save 3; UPDATE orders SET amount = 2");
	until_ended($session, "run_at < now() + interval '1 hour'");
	is($mock->count(kind => 'execute', flow_id => 'approveOrder_99c656599f') - $counted, 2, "one flow an order: $what");
}

# A new session each: it has the server that the page makes the role's default.
foreach my $role (qw(app hr))
{
	my ($code, undef, $said) =
	  $node->psql('postgres', "SELECT feishu.execute_flow('package_1', 'echoParams')", extra_params => [ '-U', $role ]);
	is("$code $said", '0 ', "the role $role can start flows");
}

done_testing();
