
# Drivers and frameworks: the programs of test/clients/ find that calls and the queue work from applications. Those of
# docs/applications.md are parts of these programs.
#
# CLIENTS: the programs to run, or "all" (default: three of them; script/clients runs all).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuPages;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::RealBin/../..";
my $programs = "$root/test/clients";

# Debian's python3 has Debian's packages, whatever stands first in PATH; so for Go.
my $python = $ENV{CLIENTS_PYTHON} // '/usr/bin/python3';
my $node_path = join(':',
	grep { defined && length } $ENV{NODE_PATH},
	map { "/usr/$_" } qw(share/nodejs lib/node_modules local/lib/node_modules));
my $jar = $ENV{CLIENTS_JDBC} // '/usr/share/java/postgresql.jar';
my $go = PostgreSQL::Test::Utils::tempdir();
my %environment_of_go = (
	GO111MODULE => 'off',
	GOPATH => $ENV{CLIENTS_GOPATH} // '/usr/share/gocode',
	GOCACHE => "$go/cache",
	GOFLAGS => '');

sub python
{
	my ($file, $module) = @_;
	return { try => [ $python, '-c', "import $module" ], run => [ $python, '-B', "$programs/$file.py" ] };
}

# A program and what all share; change: what is to be done to its source.
sub go_program
{
	my ($name, $package, $source, $change) = @_;
	my $dir = "$go/source_of_$name";
	mkdir($dir) or die "$dir: $!";
	foreach my $file ("$source.go", 'check.go')
	{
		local $_ = slurp_file("$programs/go/$file");
		$change->() if $change;
		append_to_file("$dir/$file", $_);
	}
	return {
		try => [ 'go', 'list', $package ],
		build => [ 'go', 'build', '-o', "$go/$name", "$dir/$source.go", "$dir/check.go" ],
		run => ["$go/$name"],
		env => \%environment_of_go
	};
}

# Changes $_, a program of pgx 5, into one of pgx 4: the same but for some names.
sub as_pgx_4
{
	s!jackc/pgx/v5/pgconn!jackc/pgconn!;
	s!jackc/pgx/v5!jackc/pgx/v4!g;
	s!pgxpool\.New\(!pgxpool.Connect(!;
	s!pgx\.BeginFunc\(ctx, (\w+), !$1.BeginFunc(ctx, !g;
	return;
}

my %clients = (
	psycopg_3 => python('psycopg_3', 'psycopg'),
	sqlalchemy_session => python('sqlalchemy_session', 'sqlalchemy, psycopg2'),
	django_orm => python('django_orm', 'django, psycopg2'),
	asyncpg_pool => python('asyncpg_pool', 'asyncpg'),
	alembic_compare => python('alembic_compare', 'alembic, psycopg2'),
	php_pdo => {
		try => [ 'php', '-r', 'exit(extension_loaded("pdo_pgsql") ? 0 : 1);' ],
		run => [ 'php', "$programs/php_pdo.php" ]
	},
	ruby_pg => { try => [ 'ruby', '-rpg', '-e', '0' ], run => [ 'ruby', "$programs/ruby_pg.rb" ] },
	node_pg => {
		try => [ 'node', '-e', 'require("pg")' ],
		run => [ 'node', "$programs/node_pg.cjs" ],
		env => { NODE_PATH => $node_path }
	},
	jdbc => {
		try => [ 'sh', '-c', 'command -v javac && test -e "$0"', $jar ],
		run => [ 'java', '-Dfile.encoding=UTF-8', '-Dstdout.encoding=UTF-8', '-cp', $jar, "$programs/Jdbc.java" ]
	},
	go_pgx => go_program('go_pgx', 'github.com/jackc/pgx/v4/pgxpool', 'pgx', \&as_pgx_4),
	go_pgx5 => go_program('go_pgx5', 'github.com/jackc/pgx/v5/pgxpool', 'pgx'),
	go_pq => go_program('go_pq', 'github.com/lib/pq', 'pq'));

my @wanted = split ' ', $ENV{CLIENTS} // 'psycopg_3 sqlalchemy_session php_pdo';
@wanted = sort keys %clients if "@wanted" eq 'all';

# ---- what the page shows ----

foreach my $page ("$root/docs/applications.md", "$root/docs/zh-CN/applications.md")
{
	examples_are_tested($page, 10, glob("$programs/*.* $programs/*/*.*"));
}

# ---- the server ----

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "listen_addresses = '127.0.0.1'\n");
$node->safe_psql('template1', 'CREATE EXTENSION feishu_flow');
create_server($node, 'feishu', { base_url => $mock->url, operator => '{"_id": 1111}' });
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE app LOGIN CREATEDB;
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item text NOT NULL, status text DEFAULT 'draft');
CREATE TRIGGER order_flow AFTER INSERT ON orders FOR EACH ROW
    EXECUTE FUNCTION feishu.flow_trigger('package_7344545d87__c', 'fromTrigger', '{"_id": 1}',
        '{"order": "$.new.id"}', '{"server": "feishu"}');
SQL
$mock->rules([ { kind => 'execute', flow_id => 'hangingFlow' }, { type => 'hang' } ]);

local %ENV = (
	%ENV,
	PGHOST => '127.0.0.1',
	PGPORT => $node->port,
	PGUSER => 'app',
	PGDATABASE => 'postgres',
	PGSSLMODE => 'disable',
	PYTHONPATH => $programs,
	CLIENT_PATIENCE => $FeishuFlow::PATIENCE);

# Runs a command; returns its exit status and what it said.
sub run_quietly
{
	my ($command, %environment) = @_;
	local %ENV = (%ENV, %environment);
	my $said = '';
	my $good =
	  eval { IPC::Run::run($command, '<', \undef, '>&', \$said, IPC::Run::timeout(3 * $FeishuFlow::PATIENCE)) };
	$said .= $@ if $@;
	return ($good, $said);
}

my $ran = 0;
foreach my $name (@wanted)
{
	my $client = $clients{$name} or die "no such program: $name";
	my %environment = %{ $client->{env} // {} };
	my ($there) = run_quietly($client->{try}, %environment);
	if (!$there)
	{
	  SKIP: { skip "$name: not installed", 1; }
		next;
	}
	if ($client->{build})
	{
		my ($built, $said) = run_quietly($client->{build}, %environment);
		ok($built, "$name is built") or diag($said);
	}
	$mock->mark;
	my ($ended, $said) = run_quietly($client->{run}, %environment);
	my $assertions = 0;
	foreach my $line (split /\n/, $said)
	{
		if ($line =~ /^((?:not )?ok) - (.*)/)
		{
			ok($1 eq 'ok', "$name: $2");
			$assertions++;
		}
		else
		{
			note($line);
		}
	}
	$ran++;
	ok($ended && $assertions, "$name ran to its end") or diag($said);
	next if $name =~ /^alembic/;
	$mock->wait_for(2, kind => 'execute', flow_id => 'committed');
	$mock->wait_for(1, kind => 'execute', flow_id => 'fromTrigger');
	is($mock->count(kind => 'execute', flow_id => 'committed'), 2, "$name: what was committed is sent once");
	is($mock->count(kind => 'execute', flow_id => 'fromTrigger'), 1, "$name: so is what a trigger queued");
	is($mock->count(kind => 'execute', flow_id => 'rolledBack'), 0, "$name: what was rolled back is not");
	my $hanging = $mock->count(kind => 'execute', flow_id => 'hangingFlow');
	is($mock->wait_for($hanging, kind => 'execute', flow_id => 'hangingFlow', state => 'aborted'),
		$hanging, "$name: no call lives on");
}
note("ran $ran programs");

# ---- a client that is gone ----

$node->safe_psql('postgres', "ALTER ROLE app SET client_connection_check_interval = '1s'");
$mock->mark;
my $leaver = FeishuFlow::Session->new($node, user => 'app');
$leaver->send(flow(flow_id => 'hangingFlow'));
$mock->wait_for(1, kind => 'execute', flow_id => 'hangingFlow');
$leaver->{run}->kill_kill;
$mock->wait_for(1, kind => 'execute', flow_id => 'hangingFlow', state => 'aborted');
pass('client_connection_check_interval ends the call of a client that is gone');

my ($bad) = slurp_file($node->logfile) =~ /^(.*(?:PANIC|Segmentation|signal 11|signal 6|TRAP).*)$/m;
is($bad, undef, 'no process failed by itself');

done_testing();
