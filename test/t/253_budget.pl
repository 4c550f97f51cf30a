
# Of a process's memory for requests and answers everybody may have a part, so that who comes later finds some, and one
# at a time what it needs.  The file that decides is built into a program, which asks it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

run_unit('budget', ['budget'], ['base/budget']);

done_testing();
