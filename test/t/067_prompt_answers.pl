
# A peer so near that no answer is ever waited for: a connection whose answers came at once is watched like any other
# while it is idle, so that what the peer says unasked is no answer to the next request.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

# Waiting for the answer is in a shared library, put before the C library's send().
my $library = PostgreSQL::Test::Utils::tempdir() . '/prompt_answer.so';
system('cc', '-shared', '-fPIC', '-o', $library, "$FindBin::RealBin/../lib/prompt_answer.c", '-ldl') == 0
  or plan skip_all => 'no C compiler for answers that come at once';

my $mock = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	$node = queue_cluster('main');
}

# With a fixed token the first request of a connection is the call itself.
create_server($node, 'feishu', { base_url => $mock->url }, { tenant_access_token => $mock->token });

# Two requests one after the other on one connection; the first is answered once more when it has been answered.
sub has_its_own_answer
{
	my ($who, $ask) = @_;
	$mock->mark;
	$mock->rules([ { kind => 'execute' }, { type => 'unasked' }, times => 1 ]);
	unlike($ask->("the first request of $who"), qr/unasked/, '... has its answer');
	wait_until('it was said', sub { grep { $_->{unasked} } $mock->log });
	unlike($ask->("the next request of $who"), qr/unasked/, '... has an answer of its own');
	return;
}

my $session = FeishuFlow::Session->new($node);
has_its_own_answer('a session', sub { succeeds($session, flow(), $_[0]) });
has_its_own_answer('a dispatcher',
	sub {
		my $id = enqueue($session);
		succeeds($session, "SELECT feishu.wait_flow($id)", $_[0]);
	});
is($mock->executes, 2, 'none was sent twice');
$mock->well;

done_testing();
