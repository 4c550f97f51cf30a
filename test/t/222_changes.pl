
# A change of a server holds for every flow that is queued after it: none is sent to a
# server that was paused before, or to the address that it had before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $ROUNDS = 300;

my $mock = FeishuFlow::Mock->start;
my $moved = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'busy', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($node);

# While it runs, the dispatcher has a turn at any time.
sub keep_busy
{
	$other->send('DO $$ BEGIN LOOP PERFORM '
		  . enqueue_call(server => 'busy', run_at => \"now() + interval '1 hour'")
		  . '; COMMIT; END LOOP; END $$');
	return;
}

sub let_rest
{
	$session->value('SELECT pg_cancel_backend(' . $other->pid . ')');
	$other->result;
	until_ended($session, "server = 'feishu'");
	return;
}

until_dispatcher($session);
keep_busy();
$session->value('DO $$ DECLARE id bigint; BEGIN FOR n IN 1..'
	  . $ROUNDS
	  . ' LOOP '
	  . "PERFORM feishu.pause_server('feishu'); "
	  . 'IF n % 2 = 0 THEN COMMIT; END IF; '
	  . 'id := '
	  . enqueue_call(params => \"jsonb_build_object('n', n)")
	  . '; COMMIT; '
	  . "IF NOT feishu.cancel_flow(id) THEN RAISE '% was sent', n; END IF; COMMIT; "
	  . "PERFORM feishu.resume_server('feishu'); COMMIT; END LOOP; END \$\$");
let_rest();
is(join(' ', numbers($mock)), '', 'no flow is sent that is queued with a pause of its server or after it');
is($session->value("SELECT count(*) FROM feishu.flows WHERE server = 'feishu' AND state = 'cancelled'"),
	$ROUNDS, '... each is cancelled');

my ($here, $there) = ($mock->url, $moved->url);
keep_busy();
$mock->mark;
$session->value('DO $$ DECLARE id bigint; BEGIN FOR n IN 1..'
	  . $ROUNDS
	  . ' LOOP '
	  . "EXECUTE format('ALTER SERVER feishu OPTIONS (SET base_url %L)', CASE n % 2 WHEN 0 THEN '$here' "
	  . "ELSE '$there' END); "
	  . 'IF n % 3 = 0 THEN COMMIT; END IF; '
	  . 'id := '
	  . enqueue_call(params => \"jsonb_build_object('n', n)")
	  . '; COMMIT; '
	  . 'PERFORM feishu.wait_flow(id); COMMIT; END LOOP; END $$');
let_rest();
is( join(' ', numbers($mock)),
	join(' ', grep { $_ % 2 == 0 } 1 .. $ROUNDS),
	'a flow that is queued after its server was altered goes to the new address');
is(join(' ', numbers($moved)), join(' ', grep { $_ % 2 == 1 } 1 .. $ROUNDS), '... and to no other');
done_testing();
