
# Sessions that wait for a token request of another one: they share an end that they would meet themselves, and ask by
# themselves, at once, after any other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;

my $AT_ONCE = 2 * $FeishuFlow::SLOW;
my $node = new_cluster('main');
my @sessions = map { FeishuFlow::Session->new($node) } 1 .. 3;
my $watch = FeishuFlow::Session->new($node);

# ---- a platform ----

my $test = $$;

sub answer
{
	my ($body, $status) = @_;
	return
		'HTTP/1.1 '
	  . ($status // '200 OK')
	  . "\r\nContent-Type: application/json\r\nContent-Length: "
	  . length($body)
	  . "\r\n\r\n$body";
}

# Its first token request is answered like this (undef: not at all) when the file "go" is there, all others are at once.
sub serve
{
	my ($client, $dir, $first) = @_;
	my $bytes = '';
	while (sysread($client, $bytes, 65536, length $bytes))
	{
		my ($head, $length) = $bytes =~ /^(.*?Content-Length: (\d+).*?\r\n\r\n)/si or next;
		next if length($bytes) < length($head) + $length;
		substr($bytes, 0, length($head) + $length) = '';
		if ($head !~ /tenant_access_token/)
		{
			syswrite($client, answer('{"code": 0, "msg": "success", "data": {}}'));
			next;
		}
		append_to_file("$dir/asked", 'x');
		if (-s "$dir/asked" == 1)
		{
			next if !defined $first;
			wait_until('it may answer', sub { -e "$dir/go" || !kill(0, $test) });
			return if $first eq '';
			syswrite($client, $first);
			next;
		}
		syswrite($client, answer('{"code": 0, "msg": "ok", "tenant_access_token": "t-x", "expire": 7200}'));
	}
	return;
}

my $platforms = 0;

# Sessions call at once, the first of them makes the request. Returns their results, and how many requests there were.
sub call_together
{
	my ($first, $deed, %arguments) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $name = 'platform_' . ++$platforms;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "socket: $!";
	append_to_file("$dir/asked", '');
	my $pid = forked(
		$name,
		sub {
			while (my $client = $listener->accept)
			{
				next if fork();
				serve($client, $dir, $first);
				POSIX::_exit(0);
			}
		});
	create_server($node, $name, { base_url => 'http://127.0.0.1:' . $listener->sockport });
	$sessions[0]->send(flow(server => $name, %arguments));
	wait_until('there is a request', sub { (-s "$dir/asked" // 0) == 1 });
	$_->send(flow(server => $name)) foreach @sessions[ 1, 2 ];
	wait_until(
		'all wait',
		sub {
			$watch->value("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'execute_flow' "
				  . "AND wait_event_type = 'Extension'") == 3;
		});
	$deed->($sessions[0]) if $deed;
	append_to_file("$dir/go", '') if !$deed && !$arguments{timeout};
	my @results = map { $_->result } @sessions;
	my $requests = -s "$dir/asked";
	stop_process($pid);
	return ($requests, @results);
}

sub shared
{
	my ($name, $sqlstate, $detail, $first) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($requests, @results) = call_together($first);
	is(join(' ', map { $_->{sqlstate} } @results), "$sqlstate $sqlstate $sqlstate", "$name: all have that");
	is($requests, 1, '... and nobody asks again');
	like($results[0]{detail}, $detail, '... with its reason');
	$results[0]{detail} =~ s/ ended while [^:]*:/ failed:/;    # where it was when it ended, its own session alone knows
	foreach my $part (qw(message detail hint))
	{
		is($results[$_]{$part}, $results[0]{$part}, "... the same for all: $part") foreach 1, 2;
	}
	return;
}

sub not_shared
{
	my ($name, $sqlstate, @how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($requests, @results) = call_together(@how);
	is(join(' ', map { $_->{sqlstate} } @results), "$sqlstate 00000 00000", "$name: the others go on")
	  or diag(map { $_->{err} } @results);
	is($requests, 2, '... by one request of their own');
	cmp_ok($results[1]{seconds} - $results[0]{seconds}, '<', $AT_ONCE, '... at once');
	return;
}

my $refusal = '{"code": 10014, "msg": "app secret invalid"';

shared('no answer', 'LK503', qr/the (?:connection|peer|platform)/, '');
shared('a refusal', 'LK401', qr/^HTTP status 400, code 10014/, answer("$refusal}", '400 Bad Request'));
not_shared('a refusal that is long',
	'LK401', answer($refusal . ', "padding": "' . ('x' x 5000) . '"}', '400 Bad Request'));
not_shared('an answer of a gateway', 'LK500', answer('<html>no</html>', '502 Bad Gateway'));
not_shared('an answer without a token', 'LK502', answer('{"code": 0, "msg": "ok"}'));
not_shared('no answer in the time of the one that asked', 'LK504', undef, undef, timeout => '500ms');
not_shared('the one that asked is cancelled',
	'57014', undef, sub { $watch->value('SELECT pg_cancel_backend(' . $_[0]->pid . ')'); });

# ---- a connection that ends when it is used again ----

# A second token does no harm.
my $mock = FeishuFlow::Mock->start;
create_server($node, 'feishu', { base_url => $mock->url });
succeeds($sessions[0], flow(), 'a call');
$mock->revoke;
$mock->mark;
$mock->rules([ { kind => 'token' }, { type => 'close_after' }, times => 1 ]);
succeeds($sessions[0], flow(), 'a token request over a kept connection that ends without an answer is made again');
is($mock->token_requests . ' ' . $mock->executes, '2 2', '... once');

done_testing();
