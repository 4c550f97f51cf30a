
# The C code is laid out by .clang-format, and lines of tests and scripts have at most 120 columns.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";

sub run_quietly
{
	my @command = @_;
	my $out = '';
	my $ok = IPC::Run::run(\@command, '>', \$out, '2>&1');
	return ($ok, $out);
}

SKIP:
{
	skip 'clang-format 14 is not installed', 2 if system('command -v clang-format-14 >/dev/null') != 0;
	my ($ok, $out) = run_quietly("$root/script/layout", '--check');
	ok($ok, 'script/layout has nothing to change') or diag($out);

	my $copy = PostgreSQL::Test::Utils::tempdir() . '/wrong.c';
	append_to_file($copy, slurp_file("$root/src/feishu_flow.c") =~ s/^\t(\w)/$1/mr);
	($ok, $out) = run_quietly("$root/script/layout", '--check', $copy);
	ok(!$ok, '... and finds a line that is indented in another way');
}

my @long;
foreach my $file (
	glob(
		"$root/test/t/*.pl $root/test/lib/*.pm $root/test/*.py $root/test/*/*.py $root/test/*/*.[ch] $root/script/* "
		  . "$root/bench/*.sh"))
{
	next if -d $file;
	open(my $lines, '<:encoding(UTF-8)', $file) or die "$file: $!";
	while (my $line = <$lines>)
	{
		chomp $line;
		1 while $line =~ s/\t/' ' x (4 - length($`) % 4)/e;
		push @long, "$file:$." if length $line > 120;
	}
}
is(scalar @long, 0, 'no line of a test or script is longer than 120 columns') or diag(join "\n", @long[ 0 .. 20 ]);

done_testing();
