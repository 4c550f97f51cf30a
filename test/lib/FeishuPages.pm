
# Examples of pages that are parts of programs and tests: each paragraph of an example stands in one of them, line by
# line, however far it is indented there.  Commands and settings are left out.

package FeishuPages;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(examples_are_tested);

sub lines { my ($text) = @_; return grep { length } map { s/^\s+|\s+$//gr } split /\n/, $text; }

sub examples_are_tested
{
	my ($page, $least, @files) = @_;
	my @tested = map { join("\n", '', lines(slurp_file($_)), '') } @files;
	my @examples = slurp_file($page) =~ /^ *```(?!sh|ini)\w+\n(.*?)^ *```$/msg;
	my @untested;
	foreach my $paragraph (map { split /\n\s*\n/ } @examples)
	{
		my $wanted = join("\n", '', lines($paragraph), '');
		push @untested, $paragraph if !grep { index($_, $wanted) >= 0 } @tested;
	}
	cmp_ok(scalar @examples, '>=', $least, "$page has examples");
	is(join("\n", @untested), '', '... all of which are tested');
	return;
}

1;
