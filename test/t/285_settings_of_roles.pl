
# What a role sets for itself is no burden to the dispatcher, however much it is: it reads the limits of all roles.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

# What watches memory takes some of its own.
my $MOST_GROWTH = 32 * 1024 * ($FeishuFlow::SLOW > 1 ? 4 : 1);
my $SECONDS = 4;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO eve');
enqueue($session);
until_ended($session);
my $pid = until_dispatcher($session);

my $before = private_kilobytes($pid);

# All that it takes is a role of one's own.
my $eve = FeishuFlow::Session->new($node, user => 'eve');
$eve->value(
	"DO \$\$ BEGIN EXECUTE format('ALTER ROLE eve SET application_name = %L', repeat('x', 150000000)); END \$\$");
# A sandbox of one's own has what its owner has set, too.
$eve->value(
	'CREATE SERVER trial FOREIGN DATA WRAPPER feishu_flow ' . q{OPTIONS (sandbox 'true', operator '{"_id": 1}')});
my $most = 0;
my $sent = 1;
# the settings are read once a second
my $until = time() + $SECONDS;
while (time() < $until)
{
	my @ids = (enqueue($session), enqueue($eve, server => 'trial'));
	my $now = until_ended_watching($session, $pid, 'id IN (' . join(', ', @ids) . ')');
	$most = $now if $now > $most;
	$sent += @ids;
}
cmp_ok($most - $before,
	'<', $MOST_GROWTH, sprintf('150 MB that a role has set for itself are not read: %d kB more', $most - $before));
is(ends($session), "succeeded $sent", 'all flows are sent');

# What an administrator has set for it may be among that.
$mock->rules([ { kind => 'execute' }, { type => 'big', bytes => 100_000 } ]);
my $its = enqueue($eve, max_attempts => \1);
until_ended($session, "id = $its");
is(look($session, $its, 'state, sqlstate'), 'failed|LK502', 'its limits are low then');
$eve->value('ALTER ROLE eve RESET application_name');
wait_until(
	'... until it has reset that',
	sub {
		$its = enqueue($eve, max_attempts => \1);
		until_ended($session, "id = $its");
		return look($session, $its, 'state') eq 'succeeded';
	});
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
