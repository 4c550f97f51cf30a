
# With whom we speak: what is shown to one server never reaches another, whoever may make servers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $other = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
my $session = FeishuFlow::Session->new($node);

# ---- tokens ----

# a server with the address, app and secret of another one, but a proxy or authorities of its own: who knows a secret
# gets no token of those who use it elsewhere, and gives them none
create_server($node, 'direct', { base_url => 'http://feishu.test', proxy => $mock->url });
create_server($node, 'around', { base_url => 'http://feishu.test', proxy => $other->url });
create_server($node, 'trusting', { base_url => 'http://feishu.test', proxy => $mock->url, ca_file => '/etc/hostname' });
foreach my $first (qw(direct around))
{
	$_->reset foreach $mock, $other;
	$node->restart;
	$session = FeishuFlow::Session->new($node);
	my $second = $first eq 'direct' ? 'around' : 'direct';
	succeeds($session, flow(server => $first), "a call by way of $first");
	succeeds($session, flow(server => $second), "... and by way of $second");
	is($_->token_requests . ' ' . $_->executes, '1 1', '... each asked for its own token, and used it')
	  foreach $mock, $other;
}
succeeds($session, flow(server => 'trusting'), 'a server that trusts other authorities');
is($mock->token_requests, 2, '... does not share the token either');

# ---- a change of the address and the secret at once ----

# each platform has its own secret, and refuses that of the other
my @platforms = ([ $mock, 'secret-of-one' ], [ $other, 'secret-of-other' ]);
$_->[0]->config(apps => { cli_moving => $_->[1] }) foreach @platforms;
create_server($node, 'moving', { base_url => $mock->url }, { app_id => 'cli_moving', app_secret => $platforms[0][1] });
my @callers = map { FeishuFlow::Session->new($node) } 1 .. 2;
my $mover = FeishuFlow::Session->new($node);
my $until = time() + 3;
my $moves = 0;
my $call = flow(server => 'moving') =~ s/^SELECT //r;
$_->send(<<"SQL") foreach @callers;
CREATE FUNCTION pg_temp.calls(OUT done int, OUT refused int) LANGUAGE plpgsql AS \$\$
DECLARE began timestamptz := clock_timestamp();
BEGIN
  done := 0; refused := 0;
  WHILE clock_timestamp() < began + interval '3 s' LOOP
    BEGIN PERFORM $call; done := done + 1; EXCEPTION WHEN SQLSTATE 'LK401' THEN refused := refused + 1; END;
  END LOOP;
END \$\$; SELECT * FROM pg_temp.calls()
SQL

while (time() < $until)
{
	my ($platform, $secret) = @{ $platforms[ ++$moves % 2 ] };
	$mover->value("BEGIN; ALTER SERVER moving OPTIONS (SET base_url '"
		  . $platform->url . "');"
		  . "ALTER USER MAPPING FOR PUBLIC SERVER moving OPTIONS (SET app_secret '$secret'); COMMIT");
}
cmp_ok($moves, '>', 20, "address and secret were changed together $moves times");
foreach (@callers)
{
	my ($done, $refused) = split /\|/, $_->result->{out};
	cmp_ok($done, '>', 20, "... during $done calls");
	is($refused, 0, '... none of which showed a secret to the other platform');
}

# ---- a server of the same name ----

# What waits was queued for a server of its owner.  Whoever may make servers makes one of that name, and is sent
# nothing.
my $theirs = FeishuFlow::Mock->start;
$session->value(
		'CREATE ROLE keeper LOGIN; CREATE ROLE maker LOGIN; CREATE ROLE victim LOGIN; CREATE ROLE bystander LOGIN;'
	  . 'GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO keeper, maker');
my %as = map { $_ => FeishuFlow::Session->new($node, user => $_) } qw(keeper maker victim bystander);

# A role makes a server that all may use.
sub make_server
{
	my ($who, $name, $platform) = @_;
	my $url = $platform->url;
	$as{$who}->value("CREATE SERVER $name FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url '$url');"
		  . "CREATE USER MAPPING FOR PUBLIC SERVER $name OPTIONS (app_id 'cli_mock', app_secret 'mock-secret');"
		  . "GRANT USAGE ON FOREIGN SERVER $name TO PUBLIC");
	return;
}

sub status
{
	my ($name) = @_;
	return $session->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = '$name'");
}

my $resume = qr/SELECT feishu.resume_server\('shop'\)/;
my $held =
  qr/belonged to another role when its waiting flows were queued; a superuser can have them sent: $resume/;

sub until_held
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until("$name: the flows are looked at", sub { status('shop') =~ $held || $theirs->executes > 0 });
	is($theirs->executes, 0, "$name: the other server is sent nothing");
	like(status('shop'), $held, '... dispatch_status says why');
	return;
}

foreach my $how ('DROP SERVER shop CASCADE', 'ALTER SERVER shop RENAME TO former')
{
	$_->reset foreach $mock, $theirs;
	make_server('keeper', 'shop', $mock);
	$as{keeper}->value("SELECT feishu.pause_server('shop')");
	my %waiting = (server => 'shop', params => '{"secret": 1}');
	my ($first, $ordered, $cancelled) = (
		enqueue($as{victim}, %waiting),
		enqueue($as{victim}, %waiting, ordering_key => 'k'),
		enqueue($as{victim}, %waiting));
	my $late = enqueue($as{victim}, %waiting, run_at => \"clock_timestamp() + '1 s'");
	$as{keeper}->value($how);
	make_server('maker', 'shop', $theirs);
	my $result = $as{maker}->ask("SELECT feishu.resume_server('shop')");
	my $still = qr/flows for server "shop" that were queued when it belonged to another role are still held/;
	like(
		$result->{err},
		qr/WARNING.*$still.*Let a superuser run: $resume/s,
		"$how: its maker is told that he cannot resume them");
	until_held($how);

	# what the same role queues now waits behind them, what others queue does not
	my $behind = enqueue($as{victim}, server => 'shop', params => '{"n": 1}');
	my $beside = enqueue($as{bystander}, server => 'shop', params => '{"n": 2}');
	succeeds($session, "SELECT feishu.wait_flow($beside)", "$how: flows of other roles are sent");
	is(summary($theirs)->{started}, 1, '... and no other');
	is($as{victim}->value("SELECT feishu.cancel_flow($cancelled)"), 't', '... one that is held can be cancelled');

	like($session->ask("SELECT feishu.resume_server('shop')")->{err},
		qr/^(?!.*WARNING)/s, "$how: a superuser resumes them");
	succeeds($session, "SELECT feishu.wait_flow($_)", '... then they are sent')
	  foreach $first, $ordered, $late, $behind;
	is(summary($theirs)->{started}, 5, '... to the server that there is now, each once');
	wait_until('... and nothing is held', sub { status('shop') eq '' });
	$session->value('DROP SERVER shop CASCADE; DROP SERVER IF EXISTS former CASCADE');
}

# ---- an owner who comes back, or gives it away ----

make_server('keeper', 'shop', $mock);
my $id = enqueue($as{victim}, server => 'shop', run_at => \"clock_timestamp() + '1 s'");
$as{keeper}->value('DROP SERVER shop CASCADE');
make_server('keeper', 'shop', $mock);
succeeds(
	$session,
	"SELECT feishu.wait_flow($id)",
	'the same owner makes it again: what waited is sent, without anybody');

$theirs->reset;
$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '1s'");
$node->reload;
$as{keeper}->value("SELECT feishu.pause_server('shop')");
my ($kept, $expiring) = (
	enqueue($as{victim}, server => 'shop'),
	enqueue($as{victim}, server => 'shop', expires_at => \"clock_timestamp() + '2 s'"));
$session->value("ALTER SERVER shop OWNER TO maker; ALTER SERVER shop OPTIONS (SET base_url '" . $theirs->url . "')");
$as{maker}->value("SELECT feishu.resume_server('shop')");
until_held('ALTER SERVER OWNER');
until_state($session, $expiring, 'failed');
is(look($session, $expiring, 'error'), 'expired before it could be sent', '... what is held expires');
until_held('... and the rest is held, look for look');
$session->value('ALTER SERVER shop OWNER TO keeper');
succeeds($session, "SELECT feishu.wait_flow($kept)", '... until the owner is the one that it was');
is(summary($theirs)->{started}, 1, '... who knows where he sends it');

# a flow that is put back is for the former owner's server still
$id = enqueue($as{victim}, server => 'shop', flow_id => 'refusedFlow');
until_state($session, $id, 'failed');
$session->value('ALTER SERVER shop OWNER TO maker');
$theirs->reset;
$session->value("SELECT feishu.resume_server('shop')");    # which is for those that wait
is($as{victim}->value("SELECT feishu.retry_flow($id)"), 't', 'a flow is put back');
until_held('... when the server is another\'s');

done_testing();
