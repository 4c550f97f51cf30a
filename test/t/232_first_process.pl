
# In a container the postmaster is the first process: children that others leave behind become its own.  It copes with
# their ends, and where PostgreSQL takes one for a crash of its own and starts anew, the queue goes on, each flow once.

use strict;
use warnings;

use Fcntl qw(O_NONBLOCK O_WRONLY);
use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use POSIX qw(mkfifo);
use PostgreSQL::Test::Cluster;
use Test::More;

# A process namespace, without being root.
my @namespace = qw(unshare --user --map-current-user --pid --fork --kill-child --mount-proc);
plan skip_all => 'no process namespaces here' if system("@namespace true 2>/dev/null") != 0;

my $mock = FeishuFlow::Mock->start;
my $node = PostgreSQL::Test::Cluster->new('main');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'feishu_flow'
restart_after_crash = on
feishu_flow.retry_base_delay = '20ms'
feishu_flow.retry_max_delay = '200ms'
CONF
my ($outer) = start_process('first', @namespace, 'postgres', '-D', $node->data_dir);
my $log = "$PostgreSQL::Test::Utils::log_path/232_first_process_first.log";
sub connects { return $node->psql('postgres', 'SELECT 1', connstr => $node->connstr('postgres')) == 0; }
wait_until('it starts', \&connects);
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
is((split /\n/, PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid'))[0],
	1, 'the postmaster is the first process');
my $dispatcher = until_dispatcher($session);

# Leaves a child behind that ends so, when who has left it is gone.
my $left = 0;

sub leave
{
	my ($end) = @_;
	my $gate = $node->data_dir . '/left_' . ++$left;
	mkfifo($gate, 0600) or die "$gate: $!";
	# who copies wants it read
	$session->value("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null;"
		  . " (read -r line < $gate; $end) < /dev/null > /dev/null 2>&1 &'");
	# only where somebody reads it can be opened
	wait_until('it runs', sub { sysopen(my $opened, $gate, O_WRONLY | O_NONBLOCK) });
	return;
}

# Children of a process, as the machine numbers them: number => [name, state].
sub children
{
	my ($parent) = @_;
	my %children;
	foreach my $file (glob '/proc/[0-9]*/stat')
	{
		open(my $stat, '<', $file) or next;
		my $line = <$stat> // next;
		$children{$1} = [ $2, $3 ] if $line =~ /^(\d+) \((.*)\) (\S) $parent /s;
	}
	return %children;
}
my ($postmaster) = children($outer);

# What is left behind, running or ended.
sub left_behind
{
	my %children = children($postmaster);
	return scalar grep { $_->[0] !~ /^postgres/ || $_->[1] eq 'Z' } values %children;
}

foreach my $end ('exit 0', 'exit 1')
{
	leave($end);
	wait_until('it has ended and is collected', sub { !left_behind() });
	pass("a child that was left behind is collected: $end");
	enqueue($session);
	until_ended($session);
	is(dispatcher($session), $dispatcher, '... the dispatcher stays');
}

$mock->fault(type => 'hold');
$mock->mark;
enqueue_many($session, 1, 20);
$mock->wait_for(20);
leave('kill -9 $$');
leave('exit 3');
wait_until('they have ended', sub { !left_behind() });
$mock->well;
wait_until('it can be asked', \&connects);
$session = FeishuFlow::Session->new($node);
until_ended($session);
is( $session->value(
		"SELECT count(*) FROM feishu.flows WHERE params IS NOT NULL AND state IN ('succeeded', 'unconfirmed')"),
	20,
	'after the ends of others that look like crashes, all is sent') or diag(ends($session));
is(join(',', sort { $a <=> $b } grep { defined } started_numbers($mock)), join(',', 1 .. 20), '... each once');
note('it was started anew')
  if PostgreSQL::Test::Utils::slurp_file($log) =~ /terminating any other active server processes/;

done_testing();
