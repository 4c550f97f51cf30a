
# What a caller gets of the cache of tokens is a function of its state and the time.  So the files that decide on it are
# built into a program, which tells them the time, to the microsecond.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

run_unit('tokens', ['tokens'], [qw(app/apps app/token app/token_ask app/gate app/breaker app/rate)]);

done_testing();
