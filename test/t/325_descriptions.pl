
# What psql shows of the schema reads well: everything has a description, and views
# fit into 120 columns.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use Test::More;

my $node = new_cluster('described');
$node->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');

# What a meta-command of psql shows.
sub shown
{
	my ($command) = @_;
	my $out = '';
	IPC::Run::run([ 'psql', '-X', '-h', $node->host, '-p', $node->port, '-d', 'postgres', '-c', $command ], '>', \$out);
	return $out;
}

sub rows { my ($sql) = @_; return split /\n/, $node->safe_psql('postgres', $sql); }

# ---- everything is described ----

my $ours = "= 'feishu'::regnamespace";
is_deeply(
	[
		rows(
				"SELECT attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
			  . " WHERE relnamespace $ours AND relkind = 'v' AND attnum > 0 "
			  . "AND col_description(attrelid, attnum) IS NULL")
	],
	[],
	'every column of every view has a description');
is_deeply(
	[
		rows(
				"SELECT oid::regclass::text FROM pg_class WHERE relnamespace $ours AND relkind = 'v' "
			  . "AND obj_description(oid, 'pg_class') IS NULL"
			  . " UNION ALL SELECT oid::regprocedure::text FROM pg_proc "
			  . "WHERE pronamespace $ours AND obj_description(oid, 'pg_proc') IS NULL")
	],
	[],
	'... and so have views and functions');

# ---- 120 columns ----

my @views = rows("SELECT relname FROM pg_class WHERE relnamespace $ours AND relkind = 'v' ORDER BY 1");
cmp_ok(scalar @views, '>', 2, 'there are views');
foreach my $view (@views)
{
	my $shown = shown("\\d+ feishu.$view");
	$shown =~ s/^View definition:.*//ms if $view ne 'flows';
	like($shown, qr/Description/, "\\d+ $view");
	is_deeply([ grep { length > 120 } split /\n/, $shown ], [], '... fits into 120 columns');
}

# All but the arguments, which are as long as they are.
my @functions = rows("SELECT proname || pg_get_function_result(oid) FROM pg_proc WHERE pronamespace $ours");
is_deeply([ grep { length > 60 } @functions ], [], '\df is no wider than the arguments');
like(shown('\df feishu.enqueue_flow'), qr/enqueue_flow +\| bigint +\| namespace text/, '... and shows them');

done_testing();
