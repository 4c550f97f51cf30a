
# The documents are true: they name every code, SQLSTATE, setting, option, function
# and column that there is, their links lead somewhere, and both languages have the
# same pages with the same sections.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Cwd            qw(abs_path);
use File::Basename qw(basename dirname);
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my @documents = grep { -f } map { glob "$root/$_" } 'README*.md', 'CONTRIBUTING*.md', 'CHANGELOG.md', 'docs/*.md',
  'docs/*/*.md', 'monitoring/*.md';
my %text = map { $_ => slurp_file($_) } @documents;

# Pages in English, and the same in Chinese.
my %chinese = (
	(map { ("$root/$_.md" => "$root/$_.zh-CN.md") } qw(README CONTRIBUTING monitoring/README)),
	map { ($_ => dirname($_) . '/zh-CN/' . basename($_)) } glob "$root/docs/*.md");
my @errors = ("$root/docs/errors.md", "$root/docs/zh-CN/errors.md");
my @references = ("$root/docs/reference.md", "$root/docs/zh-CN/reference.md");

# Code and SQLSTATEs in a page of errors, by the section they stand in.
sub section
{
	my ($page, $sqlstate) = @_;
	my ($section) = $text{$page} =~ /^## \Q$sqlstate\E: (.*?)^## /ms;
	return $section // '';
}

# ---- the platform's codes ----

my %sqlstate_of;
my $header = slurp_file("$root/src/wire/wire.h");
$sqlstate_of{$1} = "$2$3$4$5$6"
  while $header =~ /#define (ERRCODE_FEISHU_\w+)\s+MAKE_SQLSTATE\('(.)','(.)','(.)','(.)','(.)'\)/g;
is(scalar keys %sqlstate_of, 10, 'ten SQLSTATEs of class LK');

my $codes = slurp_file("$root/src/wire/codes.c");
my %verdict;
$verdict{$1} = $2 while $codes =~ /#define (VERDICT_\w+) \\\n\s*\{\w+, (ERRCODE_FEISHU_\w+)/g;
my %code;
$code{ $1 // $2 } = $sqlstate_of{ defined $3 ? $verdict{$3} // '' : $4 }
  while $codes =~ /^\t\{(?:(\d+)|"(k_\w+)"), (?:(VERDICT_\w+)|\{\w+, (ERRCODE_FEISHU_\w+))/mg;
cmp_ok(scalar keys %code, '>', 45, 'codes are found in the table');
foreach my $page (@errors)
{
	my @missing = grep { section($page, $code{$_}) !~ /`$_`/ } sort keys %code;
	is("@missing", '', "$page has every code of the platform under its SQLSTATE");
}

# ---- SQLSTATEs ----

foreach my $page (@errors)
{
	my %known = map { $_ => 1 } $text{$page} =~ /\b(LK\d\d\d)\b/ag;
	is_deeply([ sort keys %known ], [ sort values %sqlstate_of ], "$page has the SQLSTATEs of class LK");
	my ($table) = $text{$page} =~ /^## SQLSTATEs?\n(.*?)^## /ms;
	my @lost = grep { ($table // '') !~ /^`$_` \|/m } sort values %sqlstate_of;
	is("@lost", '', "... each in a row of its table");
}

# Those of PostgreSQL that the sources name.
my %of_postgres = slurp_file(`$ENV{PG_CONFIG} --includedir-server` =~ s/\n//r . '/utils/errcodes.h') =~
  /#define (ERRCODE_\w+) MAKE_SQLSTATE\((.*?)\)/g;
my %raised = map { $_ => 1 } map { slurp_file($_) =~ /errcode\((ERRCODE_\w+)\)/g } glob "$root/src/*.c $root/src/*/*.c";
my @own = map { $of_postgres{$_} =~ s/[', ]//gr } grep { $of_postgres{$_} } sort keys %raised;
cmp_ok(scalar @own, '>', 15, 'PostgreSQL\'s own SQLSTATEs are found in the sources');
foreach my $page (@errors)
{
	my @lost = grep { $text{$page} !~ /`$_`/ } @own;
	is("@lost", '', "$page has them");
}

# ---- tables ----

foreach my $document (@documents)
{
	my $plain = $text{$document} =~ s/^```.*?^```//msgr;
	my @headless = grep { !/\A.*\n--- \|/ } $plain =~ /^((?:.* \| .*\n){2,})/mg;
	is(join('', map { /(.*)/ } @headless), '', "tables of $document have a head");
}

# ---- settings, functions, views, options ----

my $node = new_cluster('documents');
$node->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
my %names = (
	settings => "SELECT name FROM pg_settings WHERE name LIKE 'feishu_flow.%'",
	functions => "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace "
	  . "AND has_function_privilege('pg_monitor', oid, 'EXECUTE')",
	columns => "SELECT DISTINCT attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
	  . "WHERE relnamespace = 'feishu'::regnamespace AND relkind = 'v' AND attnum > 0",
	arguments => "SELECT DISTINCT unnest(proargnames) FROM pg_proc "
	  . "WHERE pronamespace = 'feishu'::regnamespace AND proname NOT LIKE '%validator' AND proname <> 'stat_flows'");
foreach my $what (sort keys %names)
{
	my @names = split /\n/, $node->safe_psql('postgres', $names{$what});
	cmp_ok(scalar @names, '>', 10, "there are $what");
	foreach my $page (@references)
	{
		my @lost = grep { $text{$page} !~ /\b\Q$_\E\b/ } @names;
		is("@lost", '', "$page has all $what");
	}
}

# Nothing is documented as a setting that is none.
my %setting = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', $names{settings});
foreach my $document (@documents)
{
	my %seen = map { $_ => 1 } $text{$document} =~ /\b(feishu_flow\.[a-z][a-z_]+)\b/g;
	my @no = grep {
			 !$setting{$_}
		  && !/\.(?:c|h|so|md|yml|rules|rules\.test|collector|dashboard|control|conf|json|pot?|sql)$/
		  && !-e "$root/$_"
	} sort keys %seen;
	is("@no", '', "$document names no setting that there is not");
}

my ($options) = slurp_file("$root/src/app/options.c") =~ /flow_options\[\] =\s*\{(.*?)\n\};/s;
my @options = $options =~ /\{\s*"(\w+)"/g;
cmp_ok(scalar @options, '>', 9, 'options are found in the table');
foreach my $page (@references)
{
	my @lost = grep { $text{$page} !~ /`$_`/ } @options;
	is("@lost", '', "$page has all options");
}

# ---- links ----

sub anchors
{
	my ($markdown) = @_;
	my %anchors;
	while ($markdown =~ /^#+ (.*)$/mg)
	{
		my $anchor = $1;
		utf8::decode($anchor);
		$anchor = lc $anchor;
		$anchor =~ s/[^\p{L}\p{M}\p{N}_\- ]//g;
		$anchor =~ s/ /-/g;
		utf8::encode($anchor);
		$anchors{$anchor} = 1;
	}
	return %anchors;
}

foreach my $document (@documents)
{
	my @broken;
	my $plain = $text{$document} =~ s/^```.*?^```//msgr;
	while ($plain =~ /\]\(([^)\s]+)\)/g)
	{
		my ($file, $anchor) = split /#/, $1, 2;
		next if $file =~ /^[a-z]+:/;
		my $target = $file eq '' ? $document : dirname($document) . "/$file";
		if (!-e $target) { push @broken, $1; next; }
		next if !defined $anchor;
		my %there = anchors(slurp_file($target));
		push @broken, "$file#$anchor" if !$there{$anchor};
	}
	is("@broken", '', "links of $document");
}

# Files of the sources that they name are there.
foreach my $document (@documents)
{
	my @gone = grep { !-e "$root/src/$_" && !-e "$root/$_" } $text{$document} =~ m{`(\w+/\w+\.[ch])`}g;
	is("@gone", '', "files that $document names");
}

# The front page is short, and leads to every other page.
foreach my $page ("$root/README.md", "$root/README.zh-CN.md")
{
	cmp_ok(scalar(() = $text{$page} =~ /\n/g), '<=', 280, "$page is a front page");
	my %linked = map { $_ => 1 } $text{$page} =~ /\]\(([^)#\s]+)/g;
	my @pages = map { substr $_, length "$root/" } $page =~ /zh-CN/ ? values %chinese : keys %chinese;
	is(join(' ', grep { !$linked{$_} && "$root/$_" ne $page } sort @pages), '', '... that leads to all others');
}

# ---- languages ----

# What a translation has in common with the original: its sections, and in each the
# examples, items of lists and rows of tables. Words in a diagram are translated.
sub frame
{
	my ($markdown) = @_;
	$markdown =~ s/^(?:English \||\[English\]).*\n//m;
	$markdown =~ s/^```mermaid\n.*?^```$/MERMAID/msg;
	my @blocks = $markdown =~ /^(```.*?^```)$/msg;
	$markdown =~ s/^```.*?^```$/CODE/msg;
	my @sections;
	foreach my $line (split /\n/, $markdown)
	{
		if    ($line =~ /^(#+) /)           { push @sections, { heading => $1 }; }
		elsif ($line =~ /^(CODE|MERMAID)$/) { $sections[-1]{$1}++; }
		elsif ($line =~ /^ *(?:-|\d+\.) /)  { $sections[-1]{items}++; }
		elsif ($line =~ / \| /) { $sections[-1]{ 'rows with ' . (() = $line =~ /(?<!\\) \| /g) . ' bars' }++; }
	}
	return { blocks => \@blocks, sections => \@sections };
}

sub headings
{
	my ($page) = @_;
	my $markdown = $text{$page} =~ s/^```.*?^```$//msgr;
	return join ' ', $markdown =~ /^(#+) /mg;
}

foreach my $page (sort keys %chinese)
{
	my $translation = $chinese{$page};
	ok(defined $text{$translation}, "$page is there in Chinese") or next;
	my ($english, $other) = map { frame($text{$_}) } $page, $translation;
	is(headings($translation), headings($page), "$translation has the sections of $page");
	is_deeply($other->{blocks}, $english->{blocks}, '... its examples');
	is_deeply($other->{sections}, $english->{sections}, '... and in each section its lists, tables and diagrams');
	my ($there) = $text{$page} =~ /^English \| \[.*?\]\((\S+?)\)/m;
	my ($back) = $text{$translation} =~ /^\[English\]\((\S+?)\) \|/m;
	is(abs_path(dirname($page) . '/' . ($there       // '')) // '', abs_path($translation), '... which it leads to');
	is(abs_path(dirname($translation) . '/' . ($back // '')) // '', abs_path($page), '... and back');
}
my %known = map { $_ => 1 } %chinese;
is(join(' ', grep { /zh-CN/ && !$known{$_} } @documents), '', 'there is no page in Chinese alone');

done_testing();
