
# What holds flows back ends at once when it is mended, or somebody resumes the server, and not by itself: nothing here
# would end within the hour, nor does the slow poll look. And what is held expires.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use Test::More;

my $AT_ONCE = 10 * $FeishuFlow::SLOW;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main', conf => "feishu_flow.retry_base_delay = '1d'\nfeishu_flow.retry_max_delay = '1d'\n");
$node->safe_psql('postgres', 'CREATE EXTENSION feishu_flow');
my $session = FeishuFlow::Session->new($node);
$session->value(
	'CREATE ROLE weak LOGIN; CREATE ROLE former LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER feishu_flow TO former');
my $weak = FeishuFlow::Session->new($node, user => 'weak');
my $nobody = 'http://127.0.0.1:' . closed_port();
my $apps = 0;
my (%id, $server);
until_dispatcher($session);

sub sql     { my ($sql) = @_; $session->value(sprintf($sql =~ s/SERVER/SERVER $server/gr)); return; }
sub resume  { $session->value("SELECT feishu.resume_server('$server')"); return; }
sub set_url { alter_server($session, $server, 'SET', base_url => $_[0]); return; }
sub answer  { my ($fault) = @_; $mock->rules([ { kind => 'execute', app_id => "cli_$apps" }, $fault ]); return; }

# Each has a server that is held for a reason: what makes it so, how it is mended, who queues for it.
my @holds = (
	[
		'paused by its owner',
		{ hold => sub { sql("SELECT feishu.pause_server('$server')") }, mend => \&resume, reason => qr/paused by \w/ }
	],
	[
		'nothing answers: another base_url',
		{
			tried => 8,
			fixed => 1,
			options => { base_url => $nobody },
			mend => sub { set_url($mock->url) },
			reason => qr/does not answer/
		}
	],
	[
		'nothing answers: resumed',
		{
			tried => 8,
			options => { base_url => $mock->url },
			fault => { type => 'status', status => 502 },
			mend => \&resume,
			reason => qr/does not answer/
		}
	],
	[
		'nothing answers: a call is answered',
		{
			tried => 8,
			options => { base_url => $mock->url },
			fault => { type => 'status', status => 502 },
			reason => qr/does not answer/,
			mend => sub { $session->value(flow(server => $server)) }
		}
	],
	[
		'a wrong secret: another one',
		{
			secret => 'wrong',
			mend => sub { sql("ALTER USER MAPPING FOR PUBLIC SERVER OPTIONS (SET app_secret 'secret-$apps')") },
			reason => qr/credentials/
		}
	],
	[
		'a wrong secret: it becomes the right one, and the server is resumed',
		{
			secret => 'wrong',
			reason => qr/credentials/,
			mend => sub { $mock->config(apps => { "cli_$apps" => 'wrong' }); resume() }
		}
	],
	[
		'the quota is used up: resumed',
		{ fault => { type => 'code', code => 99991403 }, mend => \&resume, reason => qr/quota/ }
	],
	[
		'the rate is limited: resumed',
		{ fault => { type => 'code', code => 99991400, reset => 250 }, mend => \&resume, reason => qr/rate/ }
	],
	[
		'without a user mapping: there is one',
		{
			hold => sub { sql('DROP USER MAPPING FOR PUBLIC SERVER') },
			reason => qr/user mapping/,
			mend => sub {
				sql("CREATE USER MAPPING FOR PUBLIC SERVER OPTIONS (app_id 'cli_$apps', app_secret 'secret-$apps')");
			}
		}
	],
	[
		'without a server: there is one',
		{
			hold => sub { sql('DROP SERVER CASCADE') },
			reason => qr/does not exist/,
			mend => sub {
				create_server(
					$node, $server,
					{ base_url => $mock->url },
					{ app_id => "cli_$apps", app_secret => "secret-$apps" });
			}
		}
	],
	[
		'without USAGE: resumed with it',
		{
			as => $weak,
			hold => sub { sql('REVOKE USAGE ON FOREIGN SERVER FROM PUBLIC') },
			reason => qr/permission denied/,
			mend => sub { sql('GRANT USAGE ON FOREIGN SERVER TO PUBLIC'); resume() }
		}
	],
	[
		'of another owner: resumed',
		{
			hold => sub { sql('ALTER SERVER OWNER TO former') },
			mend => \&resume,
			reason => qr/belonged to another role/
		}
	]);

# Makes it so, with a flow that waits; and one that is to expire, if it is said when.
sub hold
{
	my ($case, %expiring) = @_;
	my ($name, $how) = @$case;
	$apps++;
	$server = "s$apps";
	$mock->config(apps => { "cli_$apps" => "secret-$apps" });
	create_server($node, $server, { base_url => $mock->url, %{ $how->{options} // {} } },
		$how->{fixed}
		? { tenant_access_token => $mock->token("cli_$apps", "secret-$apps") }
		: { app_id => "cli_$apps", app_secret => $how->{secret} // "secret-$apps" });
	answer($how->{fault}) if defined $how->{fault};
	my $as = $how->{as} // $session;
	# what must wait until then
	$session->value("SELECT feishu.pause_server('$server')") if defined $how->{hold};
	if (defined $how->{tried})
	{
		enqueue_many($as, 1, $how->{tried}, server => $server, flow_id => 'tried');
		# those that were not tried, if any, are held already
		until_true(
			$session,
			'they were tried',
			"SELECT sending = 0 AND (paused OR attempts = 1) "
			  . "FROM feishu.dispatch_status, (SELECT min(attempts) AS attempts FROM feishu.flows "
			  . "WHERE server = '$server') AS f WHERE server = '$server'");
	}
	my $id = enqueue($as, server => $server);
	my $expires = %expiring ? enqueue($as, server => $server, %expiring) : undef;
	if (defined $how->{hold} && $name !~ /paused/)
	{
		# a server that is not there cannot be resumed
		$session->value("BEGIN; SELECT feishu.resume_server('$server')");
		$how->{hold}->();
		$session->value('COMMIT');
	}
	until_true(
		$session,
		"it is held: $name",
		"SELECT paused AND sending = 0 FROM feishu.dispatch_status WHERE server = '$server'");
	return ($id, $expires);
}

# A flow of the server that waits for its time has its status shown.
sub not_held
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $later = enqueue($session, server => $server, run_at => \"now() + interval '1 hour'");
	is( $session->value("SELECT paused, pause_reason, resume_at FROM feishu.dispatch_status WHERE server = '$server'"),
		'f||', $name);
	$session->value("SELECT feishu.cancel_flow($later)");
	return;
}

# ---- it ends at once ----

foreach my $case (@holds)
{
	my ($name, $how) = @$case;
	my ($id) = hold($case);
	like($session->value("SELECT pause_reason FROM feishu.dispatch_status WHERE server = '$server'"),
		$how->{reason}, "$name: dispatch_status says so");
	fails_with(
		$session, "SELECT feishu.wait_flow($id, '0')",
		'LK504',
		'... and wait_flow',
		hint => qr/is held back: .*$how->{reason}/);
	is(look($session, $id, 'state, attempts'), 'queued|0', '... and the flow waits');
	$mock->well;
	$how->{mend}->();
	succeeds($session, "SELECT feishu.wait_flow($id, '$AT_ONCE s')", '... which is sent at once then');
	not_held('... and nothing is held any more');
}

# Nor does a hold outlive the dispatcher that knew of it.
my ($without) = grep { $_->[0] =~ /without a user mapping/ } @holds;
my ($outlived) = hold($without);
$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = off');
$node->reload;
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
$without->[1]{mend}->();
$node->safe_psql('postgres', 'ALTER SYSTEM SET feishu_flow.dispatch = on');
$node->reload;
succeeds(
	$session,
	"SELECT feishu.wait_flow($outlived)",
	'what was held is mended while there is no dispatcher: the next one sends');
not_held('... and nothing is held any more');

# ---- another owner ----

# The owner is told that what was queued before is held still, be it to be sent at once or later.
my $former = FeishuFlow::Session->new($node, user => 'former');
$server = 'owned0';
foreach my $case (
	[ 'nothing', qr/^$/ ],
	[ 'a flow', qr/WARNING:.* still held/ ],
	[ 'a flow of later', qr/WARNING:.* still held/, run_at => \"now() + interval '1 hour'" ])
{
	my ($what, $told, @arguments) = @$case;
	create_server($node, ++$server, { base_url => $mock->url });
	$session->value("SELECT feishu.pause_server('$server')");
	my $id = $what ne 'nothing' ? enqueue($session, server => $server, @arguments) : undef;
	$session->value("ALTER SERVER $server OWNER TO former");
	like($former->ask("SELECT feishu.resume_server('$server')")->{err},
		$told, "$what waits when a server gets another owner, who resumes it");
	$session->value("SELECT feishu.cancel_flow($id)") if defined $id;
}

# What is under way is not in the way of who resumes, nor the other way round.
$mock->rules([ { kind => 'execute', flow_id => 'flying' }, { type => 'hold' } ]);
create_server($node, ++$server, { base_url => $mock->url });
$mock->mark;
my $flying = enqueue($session, server => $server, flow_id => 'flying');
$mock->wait_for(1, kind => 'execute');
my $resumer = FeishuFlow::Session->new($node);
$resumer->value("ALTER SERVER $server OWNER TO former; BEGIN; SELECT feishu.resume_server('$server')");
$mock->well;
succeeds(
	$session,
	"SELECT feishu.wait_flow($flying, '$AT_ONCE s')",
	'a flow that is under way ends while a server of another owner is resumed');
$resumer->value('COMMIT');

# ---- what would be tried again too late ----

$mock->fault(type => 'status', status => 502);
my $short = enqueue($session, server => $server, expires_at => \"clock_timestamp() + interval '30 s'");
until_ended($session, "id = $short");
is(look($session, $short, 'state, sqlstate, attempts, finished_at < expires_at'),
	'failed|LK500|1|t', 'a flow that cannot be tried again before it expires has its end at once');
like(look($session, $short, 'error'), qr/502.*; given up because it expires$/, '... and says so');
$mock->well;

# ---- what is held expires ----

$node->append_conf('postgresql.conf', "feishu_flow.poll_interval = '100ms'");
$node->reload;
my @waiting;
foreach my $case (@holds)
{
	push @waiting, [ $case->[0], hold($case, expires_at => \"clock_timestamp() + interval '3 s'") ];
}
my $tried = $session->value("SELECT max(id) FROM feishu.flows WHERE flow_id = 'tried' AND state = 'retrying'");
$session->value("UPDATE feishu_internal.outbox SET expires_at = clock_timestamp() + interval '1 s' WHERE id = $tried");
until_ended($session, "id = $tried");
like(
	look($session, $tried, 'state, sqlstate, attempts, error'),
	qr/^failed\|LK504\|1\|.*502.*; expired before it could be sent$/,
	'what waits to be tried again expires, and says what went wrong before');
foreach my $waiting (@waiting)
{
	my ($name, $id, $expires) = @$waiting;
	until_ended($session, "id = $expires");
	like(
		look($session, $expires, 'state, sqlstate, error'),
		qr/^failed\|LK504\|expired before it could be sent$/,
		"$name: what waits expires");
	is(look($session, $expires, "finished_at BETWEEN expires_at AND expires_at + interval '$AT_ONCE s'"),
		't', '... at its time');
	# one of a lane may be sent as a trial meanwhile
	is(look($session, $id, 'finished_at IS NULL'), 't', '... and no other');
}

done_testing();
