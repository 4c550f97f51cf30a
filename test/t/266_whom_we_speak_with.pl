
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
	is($_->token_requests . ' ' . $_->executes, '1 1', '... each asked for its own token, and used it') foreach $mock, $other;
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
	$mover->value("BEGIN; ALTER SERVER moving OPTIONS (SET base_url '" . $platform->url . "');"
		  . "ALTER USER MAPPING FOR PUBLIC SERVER moving OPTIONS (SET app_secret '$secret'); COMMIT");
}
cmp_ok($moves, '>', 20, "address and secret were changed together $moves times");
foreach (@callers)
{
	my ($done, $refused) = split /\|/, $_->result->{out};
	cmp_ok($done, '>', 20, "... during $done calls");
	is($refused, 0, '... none of which showed a secret to the other platform');
}

done_testing();
