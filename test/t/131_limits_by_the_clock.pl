
# What an app may do is a function of its state and the time: windows of a max_rate, turns, pauses, breakers.  So the
# files that decide on it are built into a program, which tells them the time, to the microsecond.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

run_unit('limits', [qw(limits rate breaker gate)], [qw(app/gate app/breaker app/rate)]);

done_testing();
