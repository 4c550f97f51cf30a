
# A libcurl that is older than what the extension was built with, or was set up by another library of the session with
# memory of its own: a call says so, no flow is charged, and nothing crashes. One that does not say what it has sent: no
# flow starts twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
chmod 0755, $dir;
chomp(my $headers = `$ENV{PG_CONFIG} --includedir-server`);
my ($old, $owner) = map { "$dir/$_.so" } 'other_libcurl', 'libcurl_owner';
system('cc', '-shared', '-fPIC', "-I$headers", '-o', "$dir/$_.so", "$FindBin::RealBin/../lib/$_.c", '-ldl', '-lcurl')
  == 0
  or plan
  skip_all => 'no C compiler for another libcurl'
  foreach 'other_libcurl',
  'libcurl_owner';
chomp(my $built = `curl-config --version`);
$built =~ s/^libcurl //;
my $mock = FeishuFlow::Mock->start;

# ---- older ----

my $node;
{
	local $ENV{LD_PRELOAD} = $old;
	local $ENV{OTHER_VERSION} = '7.70.0';
	$node = queue_cluster('old');
}
like(
	slurp_file($node->logfile),
	qr/WARNING:  libcurl 7\.70\.0 is too old.*\n.*DETAIL:  .*libcurl \Q$built\E/,
	'an older libcurl: the log has both versions as the library is loaded');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
fails_with(
	$session, flow(), '58000', 'a call says it',
	message => qr/libcurl 7\.70\.0 is too old/,
	detail => qr/\Q$built\E/,
	hint => qr/Upgrade libcurl/);
enqueue_many($session, 1, 5);
my $pid = until_dispatcher($session);
wait_until('the dispatcher has noticed',
	sub { slurp_file($node->logfile) =~ /dispatcher could not work on the queue.*: libcurl 7\.70\.0 is too old/ });
is( $session->value('SELECT feishu.dispatch_problem()'),
	"libcurl 7.70.0 is too old for this build of feishu_flow, made with libcurl $built",
	'... and dispatch_problem() does');
is($session->value('SELECT DISTINCT state || attempts FROM feishu.flows'),
	'queued0', '... flows wait, and no attempt is counted');
is(dispatcher($session), $pid, '... and the dispatcher stays');
$session->quit;
$node->restart;
$session = FeishuFlow::Session->new($node);
until_ended($session);
is(ends($session), 'succeeded 5', 'flows are sent with a libcurl that will do');
is($session->value('SELECT feishu.dispatch_problem() IS NULL'), 't', '... and there is no problem any more');

# ---- without a count of what was sent ----

my $uncounted;
{
	local $ENV{LD_PRELOAD} = $old;
	local $ENV{OTHER_VERSION} = '8.7.1';
	$uncounted = queue_cluster('uncounted');
}
create_server($uncounted, 'feishu', { base_url => $mock->url });
my $calls = FeishuFlow::Session->new($uncounted);
succeeds($calls, flow(), 'a call by a libcurl that does not count what it sends');
$mock->mark;
$mock->fault(type => 'close_after');
fails_with(
	$calls, flow(), 'LK503',
	'... and one on the same connection that ends before the answer',
	hint => qr/may have started/);
is($mock->executes, 1, '... is not sent twice');
$mock->well;
$mock->mark;
$mock->fault(type => 'close_after');
my $id = enqueue($calls, idempotent_key => 'uncounted');
wait_until('the flow was tried', sub { look($calls, $id, 'attempts > 0 AND error IS NOT NULL') eq 't' });
$mock->well;
until_ended($calls);
like(look($calls, $id, 'state, attempts'), qr{^unconfirmed\|}, '... and of a queued flow it is known that it was sent');
$calls->quit;
$uncounted->stop;

# ---- set up by another ----

my $is_alive = sub {
	my ($name) = @_;
	unlike(slurp_file($node->logfile), qr/terminated by signal/, "$name: nothing crashes");
};
$session->value("BEGIN; LOAD '$owner'");
succeeds($session, flow(), 'a call beside a library that sets libcurl up with memory of its transaction');
$session->value('COMMIT');
succeeds($session, flow(), '... and after that transaction');
$is_alive->('preloaded');
$session->quit;

$node->append_conf('postgresql.conf', "shared_preload_libraries = '$owner, feishu_flow'\n");
$node->restart;
$session = FeishuFlow::Session->new($node);
succeeds($session, flow(), 'a call when that library is preloaded before, and has not set libcurl up');
is($session->value('SELECT feishu.dispatch_problem() IS NULL'), 't', '... and there is no problem for the dispatcher');
$session->quit;

{
	local $ENV{OWNER_IS_EARLY} = 1;
	$node->restart;
}
like(
	slurp_file($node->logfile),
	qr/WARNING:  libcurl was set up by another library\n.*DETAIL:  .*libcurl_owner/,
	'a library preloaded before that has set libcurl up: the log says it as the server starts');
$session = FeishuFlow::Session->new($node);
fails_with(
	$session, flow(), '55000', '... and so does a call',
	message => qr/another library/,
	detail => qr/libcurl_owner/,
	hint => qr/before that library/);
is( $session->value('SELECT feishu.dispatch_problem()'),
	'libcurl was set up by another library',
	'... and dispatch_problem()');
my $waiting = enqueue($session);
$session->quit;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'feishu_flow, $owner'\n");
{
	local $ENV{OWNER_IS_EARLY} = 1;
	$node->restart;
}
$session = FeishuFlow::Session->new($node);
succeeds($session, flow(), 'a call when that library is preloaded after');
until_state($session, $waiting, 'succeeded');
$session->quit;

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
$session = FeishuFlow::Session->new($node);
$session->value("BEGIN; LOAD '$owner'");
fails_with(
	$session, flow(), '55000', 'without preload, a call after such a library was loaded is refused',
	message => qr/another library/,
	detail => qr/libcurl_owner/,
	hint => qr/shared_preload_libraries/);
$session->value('ROLLBACK');
fails_with($session, flow(), '55000', '... and after that transaction');
like(enqueue($session), qr/^\d+$/, '... but flows can be queued');
$session->quit;
$session = FeishuFlow::Session->new($node);
succeeds($session, flow(), 'a session that called first');
$session->value("BEGIN; LOAD '$owner'");
succeeds($session, flow(), '... can call with that library there');
$session->value('COMMIT');
succeeds($session, flow(), '... and after its transaction');
$is_alive->('not preloaded');

done_testing();
