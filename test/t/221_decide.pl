
# What becomes of a flow is a function of what is known of it and of what came of its call: whether it is tried again,
# and when, whether an attempt counts, and whether it may have run.  So the file that decides is built into a program,
# which asks it about all cases.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

run_unit('decide', ['decide'], ['dispatcher/decide']);

done_testing();
