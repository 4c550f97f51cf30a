
# When memory runs out for a token that is to be refreshed ahead of its expiry, calls go on with the good one they have,
# the duty to fetch is handed on, and nothing is left.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;

# What is wrong with memory is in a shared library, put before the C library's and libcurl.
my $dir = PostgreSQL::Test::Utils::tempdir();
my $library = "$dir/scarce_memory.so";
my $scarce = "$dir/scarce";
plan skip_all => 'memory is not taken away when it is watched' if $FeishuFlow::SLOW > 1;
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/scarce_memory.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for memory that runs out';
chmod 0755, $dir;

my $mock = FeishuFlow::Mock->start;
my ($node, $alone);
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{SCARCE_MEMORY} = $scarce;
	# the sessions themselves refresh their tokens
	$node = new_cluster('main', conf => "feishu_flow.dispatch = off\n");
	$alone = new_cluster('alone', preload => 0);
}

# A token of 6 seconds is due after 4.5.
my $due = 4.5;
$mock->config(token_expire => 6, apps => { map { ("cli_$_" => 'mock-secret') } 1 .. 5 });
create_server($node, "feishu_$_", { base_url => $mock->url }, { app_id => "cli_$_", app_secret => 'mock-secret' })
  for 1 .. 4;
create_server($alone, 'feishu', { base_url => $mock->url }, { app_id => 'cli_5', app_secret => 'mock-secret' });

my ($session, $other) = map { FeishuFlow::Session->new($node) } 1 .. 2;

sub run_out
{
	my ($mode) = @_;
	append_to_file($scarce, '');
	chmod $mode, $scarce;
	return;
}
my ($for_libcurl, $for_malloc) = (0755, 0644);

sub token_requests_of { return $mock->count(kind => 'token', app_id => $_[0]); }

sub log_lines
{
	my ($expression) = @_;
	return scalar(grep { /$expression/ } split /\n/, slurp_file($node->logfile));
}
my $line = qr/LOG:  feishu_flow could not refresh an access token: out of memory/;

sub fetches_in_memory
{
	return $session->value(q{SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'feishu_flow token request'});
}

# ---- a first request has nothing else ----

succeeds($session, flow(server => 'feishu_1'), 'a call');
run_out($for_libcurl);
fails_with($session, flow(server => 'feishu_1'), '53200', 'memory runs out for a call itself');
ok(!-e $scarce, '... once');
succeeds($session, flow(server => 'feishu_1'), '... and the next call works');
run_out($for_libcurl);
fails_with($session, flow(server => 'feishu_2'), '53200', 'memory runs out for the first token');
my $result = $other->ask(flow(server => 'feishu_2', timeout => '10s'));
is($result->{sqlstate}, '00000', '... and another session may fetch it');
cmp_ok($result->{seconds}, '<', 1.5, '... at once');
is(fetches_in_memory(), '0', '... and nothing is left');

# ---- as a refresh begins ----

succeeds($session, flow(server => 'feishu_3'), 'a call with a token of 6 seconds');
my ($asked) = map { $_->{time} } $mock->log(kind => 'token', app_id => 'cli_3');
wait_until('the token is due', sub { time() > $asked + $due });
run_out($for_libcurl);
succeeds($session, flow(server => 'feishu_3'), 'memory runs out as a token is about to be refreshed: the call goes on');
ok(!-e $scarce, '... it did run out');
is(log_lines($line), 1, '... which is in the log');
is(token_requests_of('cli_3'), 1, '... nobody was asked for a token');
is(fetches_in_memory(), '0', '... and nothing is left');
succeeds($_, flow(server => 'feishu_3'), '... the next calls work') foreach $session, $other;
is(token_requests_of('cli_3'), 1, '... and do not try again each');
wait_until('the token has expired', sub { time() > $asked + 6 });
$result = $other->ask(flow(server => 'feishu_3', timeout => '10s'));
is($result->{sqlstate}, '00000', '... a call after its expiry works');
cmp_ok($result->{seconds}, '<', 1.5, '... at once');
is(token_requests_of('cli_3'), 2, '... with a new token');

# ---- as its answer is read: a text of it that has to be unescaped ----

my $own = FeishuFlow::Session->new($alone);
succeeds($own, flow(), 'a call of a session that has a token of 6 seconds for itself');
succeeds($session, flow(server => 'feishu_4'), 'a call with a token of 6 seconds');
($asked) = map { $_->{time} } $mock->log(kind => 'token', app_id => 'cli_4');
$mock->rules([ { kind => 'token' }, { type => 'wrong_types', set => { padding => "\n" x 25_000 } } ]);
wait_until('the token is due', sub { time() > $asked + $due });
run_out($for_malloc);
my $failed = '';
wait_until(
	'memory has run out',
	sub {
		my $call = $session->ask(flow(server => 'feishu_4'));
		$failed ||= $call->{err};
		!-e $scarce;
	});
is($failed, '', 'memory runs out as the answer to a refresh is read: no call fails');
is(token_requests_of('cli_4'), 2, '... it did so then');
is(log_lines($line), 2, '... which is in the log');
is(fetches_in_memory(), '0', '... and nothing is left');
succeeds($session, flow(server => 'feishu_4'), '... the next call works');
is(token_requests_of('cli_4'), 2, '... and does not try again');

run_out($for_malloc);
$failed = '';
wait_until(
	'memory has run out',
	sub {
		my $call = $own->ask(flow());
		$failed ||= $call->{err};
		!-e $scarce;
	});
is($failed, '', '... nor one of a session that refreshes its own token');
is(token_requests_of('cli_5'), 2, '... it did so then');
like(slurp_file($alone->logfile), $line, '... which is in the log');
succeeds($own, flow(), '... and the next call works');

done_testing();
