
# A jsonb of a few bytes may be very long as it is written: 1e131071 has 131,072 digits. A request as it is written is
# bounded when it is queued and when it is sent, so that no role fills the dispatcher's memory or holds others up by it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What watches memory takes some of its own.
my $MOST_MEMORY = 128 * 1024 * ($FeishuFlow::SLOW > 1 ? 4 : 1);
my $AT_ONCE = 15 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start('--cut', 100);
$mock->rules(
	[
		{ kind => 'execute', flow_id => 'huge' }, { type => 'status', status => 200, body => { code => 0, data => {} } }
	]);
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN; CREATE ROLE app LOGIN');
make_lanes($session, 10);
my $eve = FeishuFlow::Session->new($node, user => 'eve');
my $app = FeishuFlow::Session->new($node, user => 'app');
enqueue($app);
until_ended($session);
my $pid = until_dispatcher($session);

sub numbers_of
{
	return "jsonb_build_object('_id', 1, 'n', (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, $_[0])))";
}

# ---- when it is queued, and called ----

my $text = 'repeat(md5(random()::text), 32768)';    # of 1 MB
my %huge = (
	params => numbers_of(1000),
	operator => numbers_of(200),
	loop_masks => "(SELECT jsonb_agg($text) FROM generate_series(1, 20))");
foreach my $argument (sort keys %huge)
{
	foreach
	  my $call (enqueue_call($argument => \$huge{$argument}), flow($argument => \$huge{$argument}) =~ s/^SELECT //r)
	{
		my $result = $eve->ask("SELECT $call");
		my ($function) = $call =~ /(\w+)\(/;
		is($result->{sqlstate}, '22023', "$function refuses $argument that are huge as they are sent");
		like($result->{err}, qr/argument "$argument" makes the request too large/, '... names the argument');
		like(
			$result->{err},
			qr/DETAIL:.*digits.*16384 kB.*HINT:.*feishu_flow\.max_request_size/s,
			'... and says what to do');
	}
}
cmp_ok(private_kilobytes($eve->pid), '<', $MOST_MEMORY, 'that takes no memory in the session');
like(
	$eve->ask(enqueue_call(params => \'jsonb_build_object($$x$$, repeat($$\$$, 5000000))') =~ s/^/SELECT /r)->{err},
	qr/argument "params" makes/,
	'what is escaped counts as it is escaped');
foreach my $n (1, 8, 120)
{
	# a number has 128 kB of digits
	my $kilobytes = 128 * $n;
	foreach my $numbers ($n - 1, $n)
	{
		$session->value("BEGIN; SET LOCAL feishu_flow.max_request_size = $kilobytes");
		my $result = $session->ask('SELECT ' . enqueue_call(params => \numbers_of($numbers)));
		$session->value('ROLLBACK');
		is( $result->{sqlstate},
			$numbers < $n ? '00000' : '22023',
			"$numbers numbers of 128 kB are " . ($numbers < $n ? 'less' : 'more') . " than $kilobytes kB");
	}
}
is($eve->ask("SET feishu_flow.max_request_size = '512MB'")->{sqlstate}, '42501', 'a role cannot raise the bound');
is($eve->ask("ALTER ROLE eve SET feishu_flow.max_request_size = '512MB'")->{sqlstate},
	'42501', '... nor for its sessions');

# ---- when it is sent ----

# Rows of another way into the table, or of a session with a larger bound.
my $first = enqueue($app, server => 'feishu', params => '{"x": 1}', run_at => \"'2100-01-01'");
$session->value("SELECT feishu.pause_server('feishu')");
my $columns = join(
	', ',
	split(
		/,/,
		$session->value(
				"SELECT string_agg(quote_ident(attname), ',') FROM pg_attribute "
			  . "WHERE attrelid = 'feishu_internal.outbox'::regclass AND attnum > 0 AND NOT attisdropped")));
my $drawn = $session->value('UPDATE feishu_internal.last_id SET id = id + 4 RETURNING id - 4');
my %value = (
	id => "$drawn + row_number",
	params => numbers_of(8300),
	idempotent_key => 'gen_random_uuid()::text',
	roleid => "'eve'::regrole",
	run_at => 'now()',
	next_at => 'NULL',
	expires_at => "'infinity'",
	flow_id => "'huge'");
my $values = join(', ', map { $value{$_} // $_ } split(/, /, $columns));
my $raised = FeishuFlow::Session->new($node);
$raised->value("SET feishu_flow.max_request_size = '512MB'");
$raised->value("SET ROLE eve");
my @direct = (
	enqueue($raised, flow_id => 'huge', params => \numbers_of(300)),
	enqueue($raised, flow_id => 'huge', params => \numbers_of(3000)));
$raised->value('RESET ROLE');
$raised->value("INSERT INTO feishu_internal.outbox ($columns) SELECT $values "
	  . "FROM feishu_internal.outbox, generate_series(1, 4) AS row_number WHERE id = $first");
is($session->value("SELECT count(*) FROM feishu.flows WHERE flow_id = 'huge'"), 6, 'six rows are huge');
$session->value("SELECT feishu.resume_server('feishu')");
my $others = enqueue($app, params => '{"n": 1}');
my $begun = time();
my $most = until_ended_watching($session, $pid, "id <> $first");
cmp_ok(time() - $begun, '<', $AT_ONCE, 'another role\'s flow ends at once');
is(look($session, $others, 'state, attempts'), 'succeeded|1', '... well');
is($session->value("SELECT DISTINCT state, sqlstate, attempts FROM feishu.flows WHERE flow_id = 'huge'"),
	'failed|22023|0', 'what is huge fails by itself, unsent');
like(
	$session->value("SELECT DISTINCT error FROM feishu.flows WHERE flow_id = 'huge'"),
	qr/^the request is too large to be sent: .*16384 kB/,
	'... and says why');
cmp_ok($most, '<', $MOST_MEMORY, sprintf('... with bounded memory: %d kB', $most));
is(dispatcher($session), $pid, '... and one dispatcher');

# ---- what may be sent ----

# Small rows, each of 15 MB as it is written: that is what counts, in several lanes and in one.
foreach my $lanes (1, 10)
{
	$session->value('SELECT feishu.purge_flows(now())');
	$session->value("SELECT feishu.pause_server('feishu')");
	my %large = (flow_id => 'huge', params => \numbers_of(115));
	if   ($lanes > 1) { enqueue_lanes($session, $lanes, %large); }
	else              { enqueue($eve, %large) for 1 .. 5; }
	$session->value("SELECT feishu.resume_server('feishu')");
	my $mine = enqueue($app, params => '{"n": 1}');
	$most = until_ended_watching($session, $pid, "id <> $first");
	is( ends($session, "id <> $first AND attempts = 1"),
		'succeeded ' . ($lanes > 1 ? 11 : 6),
		"$lanes lanes of what is large as it is written: all are sent");
	cmp_ok($most, '<', $MOST_MEMORY, sprintf('... with bounded memory: %d kB', $most));
}

# ---- what administrators allow ----

$session->value("ALTER ROLE eve SET feishu_flow.max_request_size = '64MB'; GRANT eve TO CURRENT_USER");
$raised = FeishuFlow::Session->new($node, user => 'eve');
my $allowed = enqueue($raised, flow_id => 'huge', params => \numbers_of(200));
until_ended($session, "id = $allowed");
is(look($session, $allowed, 'state'), 'succeeded', 'what an administrator allows a role holds in the dispatcher, too');
is(dispatcher($session), $pid, 'one dispatcher did all');

done_testing();
