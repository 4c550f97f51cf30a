#!/usr/bin/perl
#
# Usage: prove.pl JOBS TEST...
#
# prove(1) with a closing line of exact counts, "tap: N passed, N failed", for script/test to add up. A test file that
# breaks off, or ends badly without a failed test, counts as one failed. Runs in the folder above t/.

use strict;
use warnings;
use TAP::Harness;

my ($jobs, @tests) = @ARGV;

# Called by their whole path, so that a run's processes can be told from others.
my $harness = TAP::Harness->new({ jobs => $jobs, timer => 1, failures => 1, merge => 0,
	verbosity => 0, color => -t STDOUT ? 1 : 0 });
my $result = $harness->runtests(map { ["$ENV{PWD}/$_", $_] } @tests);

my ($passed, $failed) = (scalar $result->passed, scalar $result->failed);
foreach my $test ($result->descriptions)
{
	my ($parser) = $result->parsers($test);
	my $broken = $parser->exit || $parser->wait || $parser->parse_errors;

	$failed++ if $broken && !$parser->failed;
	print "tap failed: $test\n" if $broken || $parser->failed;
}
print "tap: $passed passed, $failed failed\n";
exit($failed ? 1 : 0);
