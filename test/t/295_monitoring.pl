
# What is in monitoring/ works: every query runs as the monitoring role and gives
# the columns that its metrics name, and rules and dashboard use these metrics
# and their labels alone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use File::Copy ();
use File::Temp ();
use JSON::PP   ();
use Test::More;
use YAML::XS ();

my $folder = "$FindBin::RealBin/../../monitoring";

my $collector = YAML::XS::LoadFile("$folder/feishu_flow.collector.yml");
my $rules = YAML::XS::LoadFile("$folder/feishu_flow.rules.yml");
my $dashboard = JSON::PP->new->utf8->decode(PostgreSQL::Test::Utils::slurp_file("$folder/feishu_flow.dashboard.json"));

# ---- a database in which there is something to see ----

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('monitored');
create_server($node, 'feishu', { base_url => $mock->url });
create_server($node, 'down', { base_url => 'http://127.0.0.1:' . closed_port() });
create_server($node, 'wrong', { base_url => $mock->url }, { app_id => 'cli_mock', app_secret => 'no' });
create_server($node, 'stopped', { base_url => $mock->url });
create_server($node, 'used_up', { base_url => $mock->url },
	{ app_id => 'cli_used_up', app_secret => 'used-up-secret' });
create_server($node, 'limited', { base_url => $mock->url },
	{ app_id => 'cli_limited', app_secret => 'limited-secret' });
create_server($node, 'lonely', { base_url => $mock->url });
$mock->config(apps => { cli_used_up => 'used-up-secret', cli_limited => 'limited-secret' });
$mock->rules(
	[ { kind => 'execute', app_id => 'cli_used_up' }, { type => 'code', code => 99991403 } ],
	[ { kind => 'execute', app_id => 'cli_limited' }, { type => 'code', code => 99991400, reset => 300 } ]);
my $session = FeishuFlow::Session->new($node);
$session->value("SELECT feishu.pause_server('stopped')");

foreach my $server (qw(feishu down wrong stopped used_up limited))
{
	$session->value("SELECT count(feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => '$server')) "
		  . "FROM generate_series(1, 8)");
}
$session->value("BEGIN; SELECT feishu.enqueue_flow('app', 'flow', '{\"_id\": 1}', server => 'lonely'); "
	  . "DROP USER MAPPING FOR PUBLIC SERVER lonely; COMMIT");
$session->value("SELECT feishu.enqueue_flow('app', 'refusedFlow', '{\"_id\": 1}')");
$session->value("SELECT feishu.enqueue_flow('app', 'later', '{\"_id\": 1}', run_at => now() + interval '1 day')");
$node->psql('postgres', PostgreSQL::Test::Utils::slurp_file("$folder/role.sql"), on_error_die => 1);

# ---- the queries ----

my %rows;       # query => [ { column => value } ]
my %columns;    # query => { column => 1 }
foreach my $query (@{ $collector->{queries} })
{
	my $name = $query->{query_name};
	my $out = '';
	my $ok = wait_until(
		"$name has something to show",
		sub {
			$node->psql(
				'postgres',
				"SET ROLE feishu_flow_monitor; SELECT row_to_json(q) FROM ($query->{query}) q",
				stdout => \$out) == 0 or return 'failed';
			return $name ne 'pauses' || $out =~ tr/\n// >= 5;    # and a line without an end
		});
	isnt($ok, 'failed', "query $name runs as the monitoring role");
	$rows{$name} = [ map { JSON::PP::decode_json($_) } split /\n/, $out ];
	cmp_ok(scalar @{ $rows{$name} }, '>', 0, "query $name has rows");
	$columns{$name} = { map { $_ => 1 } keys %{ $rows{$name}[0] } };
}

my %labels;    # metric => { label => 1 }
foreach my $metric (@{ $collector->{metrics} })
{
	my $name = $metric->{metric_name};
	my $query = $metric->{query_ref};
	my @missing = grep { !$columns{$query}{$_} } @{ $metric->{key_labels} }, @{ $metric->{values} };
	is("@missing", '', "$name: query $query has its columns");
	my @odd =
	  grep { !defined || !/^-?[0-9.]+(?:e[-+]?[0-9]+)?$/ } map { @{$_}{ @{ $metric->{values} } } } @{ $rows{$query} };
	is(scalar @odd, 0, "$name: values are numbers");
	my %seen;
	is(scalar(grep { $seen{ join '|', @{$_}{ @{ $metric->{key_labels} } } }++ } @{ $rows{$query} }),
		0, "$name: labels tell the rows apart");
	$labels{$name} = { map { $_ => 1 } @{ $metric->{key_labels} }, $metric->{value_label} // () };
	is(scalar @{ $metric->{values} } == 1 || defined $metric->{value_label}, 1, "$name: several values have a label");
	is($name =~ /_total$/ ? 'counter' : 'gauge', $metric->{type}, "$name: type");
}

my ($paused) = grep { $_->{server} eq 'stopped' } @{ $rows{dispatch} };
is($paused->{due}, 8, 'flows that are due');
is_deeply(
	{ map { $_->{server} => $_->{reason} } @{ $rows{pauses} } },
	{
		down => 'no_answer',
		wrong => 'credentials',
		stopped => 'by_hand',
		used_up => 'quota',
		limited => 'rate',
		lonely => 'setup'
	},
	'pauses are told apart');
my ($well) = grep { $_->{server} eq 'feishu' } @{ $rows{dispatch} };
is("$well->{due} $well->{queued}", '0 1', 'flows for later are queued and not due');
is($rows{workers}[0]{dispatchers}, 1, 'the dispatcher is seen');

# Without preload there are no statistics, but it is seen that nothing sends.
my $unloaded = new_cluster('unloaded', preload => 0);
$unloaded->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
my ($workers) = grep { $_->{query_name} eq 'workers' } @{ $collector->{queries} };
is($unloaded->safe_psql('postgres', "SELECT dispatchers FROM ($workers->{query}) q"),
	'0', 'no dispatcher without preload');

# ---- rules and dashboard ----

# Dies of nothing: names what an expression uses that is not there.
sub uses_what_is_there
{
	my ($expression, $what) = @_;
	my @wrong;
	my @lists = $expression =~ /\b(?:by|on) \(([^)]*)\)/g;
	my @without = map { split /,\s*/ } $expression =~ /\b(?:without|ignoring) \(([^)]*)\)/g;
	my @uses = $expression =~ /\b(feishu_flow_\w+)(?:\{([^}]*)\})?/g;
	while (my ($metric, $matchers) = splice @uses, 0, 2)
	{
		push @wrong, $metric if !$labels{$metric};
		push @wrong, grep { !$labels{$metric}{$_} } ($matchers // '') =~ /(\w+)\s*(?:=~|!~|!=|=)/g;
		push @wrong, grep { !$labels{$metric}{$_} } map { split /,\s*/ } @lists;
	}
	foreach my $label (@without)
	{
		push @wrong, $label if !grep { $labels{$_}{$label} } keys %labels;
	}
	is("@wrong", '', "$what uses metrics and labels that there are");
	return;
}

my @expressions;
foreach my $rule (map { @{ $_->{rules} } } @{ $rules->{groups} })
{
	uses_what_is_there($rule->{expr}, "alert $rule->{alert}");
	my %known = map { $_ => 1 } map { keys %{ $labels{$_} // {} } } $rule->{expr} =~ /\b(feishu_flow_\w+)/g;
	my @unknown = grep { !$known{$_} } map { /\$labels\.(\w+)/g } values %{ $rule->{annotations} };
	is("@unknown", '', "alert $rule->{alert}: its text names labels that there are");
}
foreach my $panel (@{ $dashboard->{panels} })
{
	foreach my $target (@{ $panel->{targets} })
	{
		uses_what_is_there($target->{expr}, "panel $panel->{title}");
		push @expressions, $target->{expr};
	}
}
foreach my $variable (grep { $_->{type} eq 'query' } @{ $dashboard->{templating}{list} })
{
	my ($expression, $label) = $variable->{definition} =~ /^label_values\((.*), (\w+)\)$/;
	uses_what_is_there($expression, "variable $variable->{name}");
	my ($metric) = $expression =~ /^(\w+)/;
	ok($labels{$metric}{$label}, "variable $variable->{name} asks for a label that there is");
}

# ---- Prometheus' own opinion ----

# promtool: installed, or from Debian's package without installing that.
sub promtool
{
	my ($installed) = grep { -x $_ } map { "$_/promtool" } split /:/, $ENV{PATH};
	return $installed if defined $installed;
	my $dir = File::Temp::tempdir(CLEANUP => 1);
	IPC::Run::run([ 'sh', '-c', 'cd "$0" && apt-get -qq download prometheus && dpkg -x prometheus_*.deb .', $dir ],
		'>', '/dev/null', '2>', '/dev/null');
	return -x "$dir/usr/bin/promtool" ? "$dir/usr/bin/promtool" : undef;
}

SKIP:
{
	my $promtool = promtool();
	skip 'no promtool, and no package prometheus to take it from', 2 if !defined $promtool;
	my $dir = File::Temp::tempdir(CLEANUP => 1);
	File::Copy::copy($_, $dir) foreach glob "$folder/*.yml";

	# The expressions of the dashboard as rules, so that promtool parses them.
	my $n = 0;
	my @records = map { { record => 'panel:' . $n++, expr => s/\$__rate_interval/5m/gr } } @expressions;
	YAML::XS::DumpFile("$dir/panels.yml", { groups => [ { name => 'panels', rules => \@records } ] });

	my $out = '';
	my $run = sub {
		my @arguments = @_;
		return IPC::Run::run([ 'sh', '-c', 'cd "$0" && exec "$@"', $dir, $promtool, @arguments ], '>', \$out, '2>&1');
	};
	ok($run->('check', 'rules', 'feishu_flow.rules.yml', 'panels.yml'), 'promtool can read rules and panels')
	  or diag($out);
	ok($run->('test', 'rules', 'feishu_flow.rules.test.yml'), 'promtool: the alerts come when they should')
	  or diag($out);
}

done_testing();
