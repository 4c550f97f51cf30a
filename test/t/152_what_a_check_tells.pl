
# What check_server learns of the platform holds for queued flows, too: no more and no less than it has learnt.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;

# Nothing is tried again by itself.
my $node = new_cluster('main', conf => "feishu_flow.retry_base_delay = '1h'\nfeishu_flow.retry_max_delay = '1h'\n");
my $session = FeishuFlow::Session->new($node);
$mock->config(apps => { map { ("cli_$_" => "secret-$_") } 1 .. 9 });
my $servers = 0;
my %scopes = (kind => 'scopes');
my @no_answer = (\%scopes, { type => 'reset_before' });
my @not_its_own =
  (\%scopes, { type => 'status', status => 200, body => '<html>hello</html>', content_type => 'text/html' });
my @gateway = (\%scopes, { type => 'code', code => 1500, http_status => 503 });
my @no_scope = (\%scopes, { type => 'code', code => 99991672 });

sub reason
{
	my ($server) = @_;
	return $session->value("SELECT coalesce(pause_reason, '') FROM feishu.dispatch_status WHERE server = '$server'");
}

# A server whose flows wait, because of outage or credentials. What is sent to it from then on hangs.
sub waiting_server
{
	my ($why, $is_fixed) = @_;
	my $server = 'checked_' . ++$servers;
	create_server($node, $server, { base_url => $mock->url },
		$is_fixed
		? { tenant_access_token => $mock->token("cli_$servers", "secret-$servers") }
		: { app_id => "cli_$servers", app_secret => "secret-$servers" });
	$mock->rules(
		[
			{ kind => 'execute' },
			$why eq 'outage' ? { type => 'status', status => 502 } : { type => 'code', code => 10003 }
		]);
	enqueue_many($session, 1, $why eq 'outage' ? 6 : 1, server => $server);
	my $says = $why eq 'outage' ? qr/does not answer/ : qr/credentials/;
	wait_until('all are tried',
		sub { $session->value("SELECT bool_and(attempts > 0) FROM feishu.flows WHERE server = '$server'") eq 't' })
	  if $why eq 'outage';
	enqueue($session, server => $server);
	wait_until("$server is held", sub { reason($server) =~ $says });
	return $server;
}

# A check meets this, and finds the token well or not.
sub check
{
	my ($server, $token_ok, @rules) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$mock->rules([ { kind => 'execute' }, { type => 'hang' } ], @rules ? [@rules] : ());
	is($session->value("SELECT coalesce(token_ok::text, 'unknown') FROM feishu.check_server('$server')"),
		$token_ok, "$server: is the token well? $token_ok");
	return;
}

sub still_held
{
	my ($server, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	isnt(reason($server), '', "$name: flows wait still");
	return;
}

sub held_no_more
{
	my ($server, $name) = @_;
	wait_until("$name: flows wait no more", sub { reason($server) eq '' });
	pass("$name: flows wait no more");
	return;
}

# ---- an app ----

my $server = waiting_server('outage', 0);
check($server, 'true', @gateway);
still_held($server, 'an outage, and a token is granted, but a gateway answers');
check($server, 'true', @not_its_own);
still_held($server, '... or nobody does in its own words');
check($server, 'true', @no_scope);
held_no_more($server, '... until the platform does, whatever it says');

foreach my $rules (\@no_answer, \@not_its_own, \@gateway)
{
	$server = waiting_server('credentials', 0);
	check($server, 'true', @$rules);
	held_no_more($server, 'credentials that had been refused, and a token is granted, is all that is asked for');
}

# ---- a fixed token ----

$server = waiting_server('credentials', 1);
check($server, 'false', @no_answer);
still_held($server, 'a fixed token that had been refused, and no answer');
check($server, 'unknown', @not_its_own);
still_held($server, '... or another\'s');
check($server, 'unknown', @no_scope);
still_held($server, '... or a refusal for another reason');
check($server, 'true');
held_no_more($server, '... until it is accepted');

# ---- what a check does not tell ----

# Anybody may check a server as often as he likes.
$mock->rules([ { kind => 'any' }, { type => 'reset_before' } ]);
foreach my $mapping ({ app_id => 'cli_8', app_secret => 'secret-8' }, { tenant_access_token => 't-x' })
{
	$server = 'checked_' . ++$servers;
	create_server($node, $server, { base_url => $mock->url }, $mapping);
	is( $session->value(
				"SELECT count(*) FROM generate_series(1, 12) g, feishu.check_server(left('$server', 20 + g)) "
			  . "WHERE NOT token_ok"),
		12,
		'checks in vain');
	unlike(slurp_file($node->logfile), qr/"$server" does not answer/, '... are no outage for queued flows');
}

done_testing();
