
# What a call had of a secret or a token is erased from memory when it ends, and not only freed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $wiped = "$dir/wiped";
system('cc', '-U_FORTIFY_SOURCE', '-shared', '-fPIC', '-o', "$dir/wiped.so", "$FindBin::RealBin/../lib/wiped.c") == 0
  or plan skip_all => 'no C compiler for a library that sees what is erased';
chmod 0755, $dir;

my $mock = FeishuFlow::Mock->start('--app', 'cli_mock:the-secret');
my $node;
{
	local $ENV{LD_PRELOAD} = "$dir/wiped.so";
	local $ENV{WIPED} = $wiped;
	$node = new_cluster('main');
}
create_server($node, 'feishu', { base_url => $mock->url }, { app_id => 'cli_mock', app_secret => 'the-secret' });
create_server(
	$node, 'oauth',
	{ base_url => $mock->url, token_url => $mock->url . '/oauth/v3/token' },
	{ app_id => 'cli_mock', app_secret => 'the-secret' });
create_server($node, 'fixed', { base_url => $mock->url }, { tenant_access_token => 't-fixed' });

# How often each of the secrets was erased by a session with this one statement.
sub wiped
{
	my ($sql, %secrets) = @_;
	my $session = FeishuFlow::Session->new($node);
	unlink $wiped;
	my $result = $session->ask($sql);
	$session->quit;
	my @lines = map { s/\.+$//r } split /\n/, slurp_file($wiped);
	return join(', ', $result->{sqlstate},
		map { my $secret = $secrets{$_}; "$_ " . grep { /$secret/ } @lines } sort keys %secrets);
}

my $token = qr/t-[0-9a-f]{40}/;
my %of_request = (
	answer => qr/^\{.*"tenant_access_token":"$token"/,
	'answer read' => qr/tenant_access_token.+$token$/,
	header => qr/^Authorization: Bearer $token$/,
	request => qr/^\{"app_id":"cli_mock","app_secret":"the-secret"\}$/,
	secret => qr/^the-secret$/,
	token => qr/^$token$/);
is( wiped(flow(), %of_request),
	'00000, answer 1, answer read 1, header 2, request 1, secret 1, token 3',
	'a call that asks for a token erases all that it had of it, and of the secret');
is( wiped(flow(), %of_request),
	'00000, answer 0, answer read 0, header 2, request 0, secret 1, token 1',
	'... one that takes it from the cache, too');
is( wiped("SELECT FROM feishu.check_server('feishu')", %of_request),
	'00000, answer 1, answer read 1, header 2, request 1, secret 1, token 3',
	'... and a check');
my $jwt = qr/[\w-]+\.[\w-]+\.[\w-]+/;
is( wiped(
		flow(server => 'oauth'),
		answer => qr/^\{.*"access_token":"$jwt"/,
		'answer read' => qr/access_token.+Bearer$jwt/,
		header => qr/^Authorization: Bearer $jwt$/,
		request => qr/^grant_type=.*&client_secret=the-secret$/,
		secret => qr/^the-secret$/,
		token => qr/^$jwt$/),
	'00000, answer 1, answer read 1, header 2, request 1, secret 1, token 3',
	'... and a call with OAuth');
is( wiped(flow(server => 'fixed'), header => qr/^Authorization: Bearer t-fixed$/, token => qr/^t-fixed$/),
	'LK401, header 2, token 1', '... and one with a token of the user mapping');
$mock->revoke;
is( wiped(flow(), %of_request),
	'00000, answer 1, answer read 1, header 4, request 1, secret 1, token 4',
	'... and one whose token was refused, that of the cache, too');
is( wiped(flow() . '; ' . flow(server => 'fixed', raise_error => \'false'), secret => qr/^the-secret$/),
	'00000, secret 2', '... and what a session remembers of the server of its last call, when that is another');

done_testing();
