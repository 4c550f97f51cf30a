
# A row that cannot be read, because the file that has its params is damaged, fails by itself: it holds up no other
# flow, and does not end the dispatcher.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);

# Params that are kept apart from their row; beyond 64 kB the dispatcher reads them by themselves, too.
sub kept_apart
{
	my ($kilobytes) = @_;
	my $text = "(SELECT jsonb_build_object('text', string_agg(md5(random()::text), '')) "
	  . "FROM generate_series(1, 32 * $kilobytes))";
	return \$text;
}

$session->value("SELECT feishu.pause_server('feishu')");
my @damaged;
enqueue_many($session, 1, 10);
push @damaged, enqueue($session, params => kept_apart(20));
enqueue_many($session, 11, 20);
push @damaged, enqueue($session, params => kept_apart(200));
push @damaged, enqueue($session, params => kept_apart(20), ordering_key => 'key');
enqueue_many($session, 21, 30, ordering_key => 'key');
push @damaged, enqueue($session, params => kept_apart(20), run_at => \"clock_timestamp() + interval '1 s'");
my $file = $session->value(
	"SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'feishu_internal.outbox'::regclass");
$session->quit;

$node->stop;
my $size = -s $node->data_dir . "/$file";
open my $handle, '+<', $node->data_dir . "/$file" or die "$file: $!";
print $handle "\0" x $size;
close $handle;
$node->start;

$session = FeishuFlow::Session->new($node);
my $pid = until_dispatcher($session);
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
is(ends($session), 'failed 4, succeeded 30', 'rows that cannot be read fail, and no others');
is(look($session, $_, 'state, sqlstate'), 'failed|XX001', '... with the reason') foreach @damaged;
like(look($session, $damaged[0], 'error'), qr/missing chunk/, '... in words');
started_once($mock, 30, '... all others start once');
is(until_dispatcher($session), $pid, '... and the dispatcher goes on');
is(() = slurp_file($node->logfile) =~ /could not read flow \d+: missing chunk/g,
	4, '... the log has a line for each of them');
is(enqueue_many($session, 31, 230), 200, 'flows that are queued afterwards');
until_ended($session);
started_once($mock, 230, '... are sent');

# ---- one that cannot be read behind many large ones ----

# How many of four large flows are under way at once.
sub large_at_once
{
	begin_anew($mock, $session);
	$mock->rules([ { kind => 'execute' }, { type => 'latency', ms => 500 } ]);
	$session->value('BEGIN');
	enqueue($session, params => kept_apart(900)) for 1 .. 4;
	$session->value('COMMIT');
	until_ended($session);
	$mock->well;
	return $mock->stats->{max_concurrent_executes};
}
$session->value('REINDEX TABLE feishu_internal.outbox');
cmp_ok(large_at_once(), '>=', 2, 'large flows are sent side by side');
$session->value("SELECT feishu.pause_server('feishu')");
enqueue($session, params => kept_apart(1000)) for 1 .. 40;
my $toast = "FROM pg_class WHERE oid = 'feishu_internal.outbox'::regclass";
$file = $node->data_dir . '/' . $session->value("SELECT pg_relation_filepath(reltoastrelid) $toast");
my $sound = $session->value("SELECT pg_relation_size(reltoastrelid) $toast");
my $last = enqueue($session, params => kept_apart(200));
$session->quit;
$node->stop;
$size = -s $file;
open $handle, '+<', $file or die "$file: $!";
seek $handle, $sound + 8192, 0;
print $handle "\0" x ($size - $sound - 8192);
close $handle;
$node->start;
$session = FeishuFlow::Session->new($node);
until_dispatcher($session);
$session->value("SELECT feishu.resume_server('feishu')");
until_ended($session);
$session->value('REINDEX TABLE feishu_internal.outbox');
is(look($session, $last, 'state, sqlstate'), 'failed|XX001', 'a row that cannot be read fails behind many large ones');
cmp_ok(large_at_once(), '>=', 2, '... after which large flows are sent side by side as before');

done_testing();
