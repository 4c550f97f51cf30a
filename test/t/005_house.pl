
# The folders of src/ are floors: a file includes headers of its own folder and of those below it, and no header that is
# private to another folder.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $src = "$FindBin::RealBin/../../src";

# From the ground up.
my @floors = qw(base http wire launcher app call queue handler trigger dispatcher api);
my %floor = map { $floors[$_] => $_ } 0 .. $#floors;

my %text = map { s{^\Q$src\E/}{}r => slurp_file($_) } glob("$src/*.[ch] $src/*/*.[ch]");
cmp_ok(scalar keys %text, '>', 150, 'sources are found');

is("@{[ grep { m{/} ? !defined $floor{ (split m{/})[0] } : $_ ne 'feishu_flow.c' } sort keys %text ]}",
	'', 'each is in a folder that has a floor; in src/ itself is feishu_flow.c');

foreach my $page ("$src/../docs/design.md", "$src/../docs/zh-CN/design.md")
{
	is("@{[ slurp_file($page) =~ /^`(\w+)` \|/mg ]}", "@floors", "$page has a map of the folders, in this order");
}

my (@up, @foreign, @short);
foreach my $file (sort keys %text)
{
	my ($folder) = $file =~ m{^(\w+)/};
	foreach my $header ($text{$file} =~ /^#include "(.*)"/mg)
	{
		my ($other) = $header =~ m{^(\w+)/};
		if (!defined $text{$header})
		{
			# PostgreSQL's, unless it is one of ours without its folder
			push @short, "$file: $header" if grep { m{/\Q$header\E$} } keys %text;
			next;
		}
		next if !defined $folder || $folder eq $other;
		push @up, "$file: $header" if $floor{$other} > $floor{$folder};
		push @foreign, "$file: $header" if $text{$header} =~ m{^ \* Private to src/$other/\.$}m;
	}
}
is("@up", '', 'no file includes a header of a floor above its own');
is("@foreign", '', '... nor one that is private to another folder');
is("@short", '', '... nor one of ours without its folder');

# ---- what a folder knows of ----

# The files of some folders, or of all but some, that include such a header.
sub that_include
{
	my ($header, %where) = @_;
	return join ' ', grep {
		my ($folder) = m{^(\w+)/};
		my $is_there = defined $folder && grep { $folder eq $_ } @{ $where{in} // $where{not_in} };
		(defined $where{in} ? $is_there : !$is_there) && $text{$_} =~ /^\s*#\s*include [<"]$header/m
	} sort keys %text;
}
is(that_include(qr{curl/}, not_in => ['http']), '', 'http/ alone knows libcurl');
is(that_include(qr{executor/spi\.h}, in => [qw(wire http)]), '', 'neither it nor wire/ knows SPI');
is(that_include(qr{storage/(?:shmem|lwlock|spin)\.h}, in => [qw(wire http)]), '', '... nor shared memory');
is(that_include(qr{(?:@{[ join '|', grep { !/^(?:base|wire)$/ } @floors ]})/}, in => ['wire']),
	'', 'wire/ knows no folder but base/');

my @unmarked = grep {
	my $header = $_;
	my ($folder) = $header =~ m{^(\w+)/};
		 $header =~ /\.h$/
	  && $text{$header} !~ /^ \* Private to/m
	  && $folder ne 'base'
	  && !grep { !m{^\Q$folder\E/} && $text{$_} =~ /^#include "\Q$header\E"/m }
	  keys %text
} sort keys %text;
is("@unmarked", '', 'a header that only its own folder includes is private');

my @wrong = grep { $text{$_} !~ m{^ \* src/\Q$_\E$}m } sort keys %text;
is("@wrong", '', 'each file says its path');

my @long = grep { ($text{$_} =~ tr/\n//) > 700 } sort keys %text;
is("@long", '', 'none has more than 700 lines');

done_testing();
