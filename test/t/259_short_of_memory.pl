
# When memory runs out for a step of a flow that is under way, that flow goes back, without an attempt; its dispatcher
# lives on, and so do all others that it has under way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
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
my $other = FeishuFlow::Mock->start;
my $node;
{
	local $ENV{LD_PRELOAD} = $library;
	local $ENV{SCARCE_MEMORY} = $scarce;
	$node = queue_cluster('main');
}
$mock->config(apps => { map { ("cli_$_" => 'mock-secret') } 1 .. 2 });
create_server($node, "feishu_$_", { base_url => $mock->url }, { app_id => "cli_$_", app_secret => 'mock-secret' })
  for 1 .. 2;
create_server($node, 'other', { base_url => $other->url });
my $session = FeishuFlow::Session->new($node);
my $pid = until_dispatcher($session);

# Memory runs out once: for libcurl when it begins a request, or for a text of an answer that is not small and has to be
# unescaped.
my %modes = (
	'the request that follows a token' => [ 0755, { type => 'latency', ms => 1000 } ],
	'the answer to a token request' => [ 0644, { type => 'wrong_types', set => { padding => "\n" x 25_000 } } ]);

my $n = 0;
foreach my $what (sort keys %modes)
{
	my ($mode, $fault) = @{ $modes{$what} };
	$n++;
	$session->value('SELECT feishu.purge_flows(now())');
	$other->mark;
	$other->rules([ { kind => 'execute' }, { type => 'hold' } ]);
	my $bystander = enqueue($session, server => 'other');
	$other->wait_for(1, kind => 'execute');

	$mock->rules([ { kind => 'token' }, $fault ]);
	$mock->mark;
	$session->value("SELECT feishu.pause_server('feishu_$n')");
	my @ids = map { enqueue($session, server => "feishu_$n") } 1 .. 3;
	if ($fault->{type} eq 'latency')
	{
		$session->value("SELECT feishu.resume_server('feishu_$n')");
		$mock->wait_for(1, kind => 'token');
	}
	append_to_file($scarce, '');
	chmod $mode, $scarce;
	$session->value("SELECT feishu.resume_server('feishu_$n')");
	wait_until("memory has run out for $what", sub { !-e $scarce });
	$mock->well;
	until_ended($session, 'id IN (' . join(', ', @ids) . ')');
	$other->release;
	until_ended($session);
	is(ends($session), 'succeeded 4', "memory runs out for $what: all flows succeed");
	is($session->value('SELECT DISTINCT attempts FROM feishu.flows'), 1, '... at their first attempt');
	is($other->executes, 1, '... and what is under way is not sent again');
	is(dispatcher($session), $pid, '... the dispatcher goes on');
}

done_testing();
