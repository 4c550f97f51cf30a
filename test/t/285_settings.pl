
# No setting of a database, a role or the cluster stops or slows a dispatcher: with other
# values of all settings that a session may have, flows are sent at once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
$node->safe_psql('postgres', q{CREATE DATABASE app ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0; CREATE ROLE bob});
create_server($node, 'feishu', { base_url => $mock->url }, undef, 'app');
create_server($node, 'lonely', { base_url => $mock->url }, undef, 'app');

# These connect before anything is set, and so keep their settings.
my $session = FeishuFlow::Session->new($node, database => 'app');
my $admin = FeishuFlow::Session->new($node);
my $n = 0;

# A flow that waits for a user mapping: each dispatcher comes across an error. Many that wait for another of
# their ordering key: each dispatcher reads them.
$session->value('BEGIN');
enqueue($session, server => 'lonely');
$session->value('DROP USER MAPPING FOR PUBLIC SERVER lonely; COMMIT');
enqueue($session, ordering_key => 'one by one', run_at => \"now() + interval '1 day'");
enqueue_many($session, 1, 3000, ordering_key => 'one by one');

sub dispatch
{
	my ($on) = @_;
	$admin->value("ALTER SYSTEM SET feishu_flow.dispatch = $on");
	$admin->value('SELECT pg_reload_conf()');
	wait_until("dispatch is $on", sub { (dispatcher($session) ne '') == ($on eq 'on') });
	return;
}

# Another dispatcher, which has the settings of now, sends flows at once and does not end.
sub sends
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	dispatch('off');
	my $offset = -s $node->logfile;
	dispatch('on');
	my $first = dispatcher($session);
	my $begun = time();
	enqueue_many($session, $n + 1, $n + 50);
	$n += 50;
	wait_until($name, sub { summary($mock)->{started} >= $n || time() - $begun > 5 * $FeishuFlow::SLOW });
	is(summary($mock)->{started}, $n, sprintf('%s: flows are sent at once (%.1f s)', $name, time() - $begun));
	my $held = sub {
		$session->value("SELECT EXISTS (SELECT FROM feishu.dispatch_status WHERE server = 'lonely' AND paused)") eq 't';
	};
	wait_until($name, sub { $held->() || time() - $begun > 5 * $FeishuFlow::SLOW });
	ok($held->(), '... what lacks a user mapping is held');
	is(dispatcher($session), $first, '... by one dispatcher');
	my ($bad) = slurp_file($node->logfile, $offset) =~ /^(.*(?:ERROR|FATAL|PANIC|WARNING|exited with exit code).*)$/m;
	is($bad, undef, '... without an error');
	$n = summary($mock)->{started};
	return;
}

# Sets what can be set of these (pairs of name and value), by statements that begin so; returns how many.
sub set_all
{
	my ($statement, @settings) = @_;
	my $set = 0;
	while (my ($name, $value) = splice(@settings, 0, 2))
	{
		$set++ if $admin->ask("$statement SET $name = " . FeishuFlow::quote($value))->{sqlstate} eq '00000';
	}
	return $set;
}

sub sends_with
{
	my ($name, $least, @settings) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	cmp_ok(set_all('ALTER DATABASE app', @settings), '>=', $least, "$name: enough are set");
	sends($name);
	$admin->value('ALTER DATABASE app RESET ALL');
	return;
}

# name => [ type, value by default, least, greatest value, values of an enum ], but for what is written to the log
my %settings = map { my ($name, @of) = split /\|/, $_, -1; ($name => \@of) } split /\n/, $admin->value(
	q{SELECT name, vartype, boot_val, min_val, max_val, array_to_string(enumvals, ',') FROM pg_settings
	WHERE context IN ('user', 'superuser') AND name !~ '\.|^log_|^trace_|^debug_p' ORDER BY name});
my %of;
push @{ $of{ $settings{$_}[0] } }, $_ foreach sort keys %settings;

sends('settings as they are');

sends_with('booleans', 50, map { $_ => $settings{$_}[1] eq 'on' ? 'off' : 'on' } @{ $of{bool} });
my %others = map {
	my $name = $_;
	$name => [ grep { $_ ne $settings{$name}[1] } split /,/, $settings{$name}[4] ]
} @{ $of{enum} };
foreach my $k (1 .. max(map { scalar @$_ } values %others))
{
	sends_with(
		"enums, value $k",
		$k == 1 ? 10 : 1,
		map { $_ => $others{$_}[ $k - 1 ] } grep { @{ $others{$_} } >= $k } @{ $of{enum} });
}
my @numbers = map { @{ $of{$_} } } qw(integer real);
sends_with('least numbers', 60, map { $_ => $settings{$_}[2] } @numbers);
sends_with('numbers: 1', 50, map { $_ => 1 } @numbers);
sends_with('greatest numbers', 60, map { $_ => $settings{$_}[3] } @numbers);

sends_with('no room for sorting', 2, work_mem => '64kB', temp_file_limit => 0);
sends_with('exit_on_error', 1, exit_on_error => 'on');
sends_with('a role', 1, role => 'bob');
sends_with('a session authorization', 1, session_authorization => 'bob');
sends_with(
	'names', 6,
	search_path => 'public',
	default_tablespace => 'pg_global',
	TimeZone => 'Asia/Shanghai',
	DateStyle => 'German',
	client_encoding => 'UTF8',
	temp_tablespaces => 'pg_default');

set_all(
	'ALTER ROLE postgres IN DATABASE app',
	exit_on_error => 'on',
	enable_indexscan => 'off',
	default_transaction_read_only => 'on');
sends('settings of a role');
$admin->value('ALTER ROLE postgres IN DATABASE app RESET ALL');

# a session of another client encoding would not even begin
set_all('ALTER SYSTEM', exit_on_error => 'on', client_encoding => 'EUC_JP');
sends('settings of the cluster');

# ---- what is logged ----

# What is logged of statements is meant for those of users: answers, and what was queued, are in the dispatcher's.
my $from = -s $node->logfile;
$admin->value("ALTER SYSTEM SET $_->[0] = '$_->[1]'")
  foreach [ log_statement => 'all' ], [ log_min_duration_statement => 0 ], [ log_duration => 'on' ],
  [ log_parameter_max_length => -1 ];
$admin->value('SELECT pg_reload_conf()');
sends('statements are logged');
my $log = slurp_file($node->logfile, $from);
like($log, qr/LOG:  .*statement: SELECT .*enqueue_flow/, '... those of sessions');
unlike($log, qr/(?:INSERT INTO|UPDATE|DELETE FROM|FROM|JOIN) feishu_internal\.outbox/, '... and none of a dispatcher');
$admin->value("ALTER SYSTEM RESET $_")
  foreach qw(log_statement log_min_duration_statement log_duration log_parameter_max_length);
$admin->value('SELECT pg_reload_conf()');

# ---- the list ----

my $list = slurp_file("$FindBin::RealBin/../../src/base/worker_settings.c");
my @own = $list =~ /^\t\{"(\w+)", ".*?"\},?.*$/mg;
cmp_ok(scalar @own, '>', 50, 'a dispatcher has settings of its own');
my $server = $session->value('SHOW server_version_num');
foreach my $line ($list =~ /^(\t\{"\w+", ".*?"\},?.*)$/mg)
{
	my ($name, $value, $since, $until) = $line =~ m{\{"(\w+)", "(.*?)"\},?(?:\s*/\* (?:since (\d+)|until (\d+)) \*/)?};
	next
	  if $since && $server < $since * 10000
	  || $until && $server >= ($until + 1) * 10000
	  || $name eq 'restrict_nonsystem_relation_kind';
	my $result = $session->ask("SELECT set_config('$name', '$value', false)");
	is($result->{sqlstate}, '00000', "$name can be '$value'") or diag($result->{err});
}

done_testing();
