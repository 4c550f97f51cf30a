
# The documents are true: they name every code, SQLSTATE, setting, option, function
# and column that there is, and their links lead somewhere.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my @documents = grep { -f } map { glob "$root/$_" } 'README*.md', 'CHANGELOG.md', 'docs/*.md', 'monitoring/*.md';
my %text = map { $_ => slurp_file($_) } @documents;
my @readmes = grep { m{/README[^/]*$} && dirname($_) eq $root } @documents;

# Code and SQLSTATEs in docs/errors.md, by the section they stand in.
sub section
{
	my ($sqlstate) = @_;
	my ($section) = $text{"$root/docs/errors.md"} =~ /^## \Q$sqlstate\E: (.*?)^## /ms;
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
my @missing = grep { section($code{$_}) !~ /`$_`/ } sort keys %code;
is("@missing", '', 'docs/errors.md has every code of the platform under its SQLSTATE');

# ---- SQLSTATEs ----

my %known = map { $_ => 1 } $text{"$root/docs/errors.md"} =~ /\b(LK\d\d\d)\b/g;
is_deeply([ sort keys %known ], [ sort values %sqlstate_of ], 'docs/errors.md has the SQLSTATEs of class LK');
foreach my $readme (@readmes)
{
	my @lost = grep { $text{$readme} !~ /`$_`/ } sort values %sqlstate_of;
	is("@lost", '', "$readme has them");
}

# Those of PostgreSQL that the sources name.
my %of_postgres = slurp_file(`$ENV{PG_CONFIG} --includedir-server` =~ s/\n//r . '/utils/errcodes.h')
  =~ /#define (ERRCODE_\w+) MAKE_SQLSTATE\((.*?)\)/g;
my %raised = map { $_ => 1 } map { slurp_file($_) =~ /errcode\((ERRCODE_\w+)\)/g } glob "$root/src/*.c $root/src/*/*.c";
my @own = map { $of_postgres{$_} =~ s/[', ]//gr } grep { $of_postgres{$_} } sort keys %raised;
cmp_ok(scalar @own, '>', 15, 'PostgreSQL\'s own SQLSTATEs are found in the sources');
my @lost_own = grep { $text{"$root/docs/errors.md"} !~ /`$_`/ } @own;
is("@lost_own", '', 'docs/errors.md has them');

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
	functions => "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace AND has_function_privilege('pg_monitor', oid, 'EXECUTE')",
	columns => "SELECT DISTINCT attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'feishu'::regnamespace AND relkind = 'v' AND attnum > 0",
	arguments => "SELECT DISTINCT unnest(proargnames) FROM pg_proc WHERE pronamespace = 'feishu'::regnamespace AND proname NOT LIKE '%validator' AND proname <> 'stat_flows'");
foreach my $what (sort keys %names)
{
	my @names = split /\n/, $node->safe_psql('postgres', $names{$what});
	cmp_ok(scalar @names, '>', 10, "there are $what");
	foreach my $readme (@readmes)
	{
		my @lost = grep { $text{$readme} !~ /\b\Q$_\E\b/ } @names;
		is("@lost", '', "$readme has all $what");
	}
}

# Nothing is documented as a setting that is none.
my %setting = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', $names{settings});
foreach my $document (@documents)
{
	my %seen = map { $_ => 1 } $text{$document} =~ /\b(feishu_flow\.[a-z][a-z_]+)\b/g;
	my @no = grep { !$setting{$_} && !/\.(?:c|h|so|md|yml|rules|rules\.test|collector|dashboard|control|conf|json|pot?|sql)$/ && !-e "$root/$_" } sort keys %seen;
	is("@no", '', "$document names no setting that there is not");
}

my ($options) = slurp_file("$root/src/app/options.c") =~ /flow_options\[\] =\s*\{(.*?)\n\};/s;
my @options = $options =~ /\{\s*"(\w+)"/g;
cmp_ok(scalar @options, '>', 9, 'options are found in the table');
foreach my $readme (@readmes)
{
	my @lost = grep { $text{$readme} !~ /`$_`/ } @options;
	is("@lost", '', "$readme has all options");
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

# ---- languages ----

# What a translation has in common with the original: examples, headings, tables, settings' defaults.
sub frame
{
	my ($markdown) = @_;
	my @blocks = $markdown =~ /^(```.*?^```)$/msg;
	$markdown =~ s/^```.*?^```$/CODE/msg;
	my @lines = grep { defined } map {
		/^(#+) / ? $1 : /^CODE$/ ? 'CODE' : /^(-|\d\.) / ? 'item' : / \| / ? 'row ' . (() = /(?<!\\)\|/g) : undef
	} split /\n/, $markdown;
	return { blocks => \@blocks, lines => \@lines };
}

my $english = frame($text{"$root/README.md"} =~ s/^English \|.*\n//mr);
foreach my $readme (grep { $_ ne "$root/README.md" } @readmes)
{
	my $other = frame($text{$readme} =~ s/^\[English\].*\n//mr);
	is_deeply($other->{blocks}, $english->{blocks}, "$readme has the examples of README.md");
	my $count = sub { my ($lines, $what) = @_; return scalar grep { $_ eq $what } @$lines; };
	is($count->($other->{lines}, $_), $count->($english->{lines}, $_), "$readme has all of the headings $_") foreach '#', '##', '###', '####';
	is($count->($other->{lines}, 'item'), $count->($english->{lines}, 'item'), "$readme has all items of lists");
	my $rows = sub { my ($markdown) = @_; return scalar grep { / \| / } split /\n/, $markdown =~ s/^```.*?^```$//msgr; };
	is($rows->($text{$readme}), $rows->($text{"$root/README.md"}), "$readme has the rows of tables");
}

done_testing();
