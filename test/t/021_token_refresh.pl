
# A token is refreshed ahead of its expiry, however seldom its sessions call and however soon they end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my %token = (kind => 'token');
my ($latency, $life) = (400, 4);    # of a token request in ms, of a token in seconds: due after three quarters

# One cluster with a dispatcher, and one without.
my ($mock, $lone_mock) = map { FeishuFlow::Mock->start } 1 .. 2;
my $node = new_cluster('shared');
my $lone = new_cluster('lone', conf => "feishu_flow.dispatch = off\n");
create_server($node, 'feishu', { base_url => $mock->url });
create_server($lone, 'feishu', { base_url => $lone_mock->url });

# An own cache: what a session asked for comes while it is idle. It is looked at below, when that has been so for long.
my $idle_mock = FeishuFlow::Mock->start;
my $plain = new_cluster('plain', preload => 0);
$idle_mock->config(token_expire => $life, apps => { cli_idler => 'idler' });
create_server($plain, 'feishu', { base_url => $idle_mock->url });
create_server($plain, 'idlers', { base_url => $idle_mock->url }, { app_id => 'cli_idler', app_secret => 'idler' });
my ($idle, $idler) = map { FeishuFlow::Session->new($plain) } 1 .. 2;
succeeds($idle, flow(), 'a call of a session that has its own cache');
succeeds($idler, flow(server => 'idlers'), '... and of another app');
my $first = ($idle_mock->log(kind => 'execute'))[-1]{headers}{authorization};
my ($idle_asked) = map { $_->{time} } $idle_mock->log(%token);

sub time_is
{
	my ($time) = @_;
	wait_until('it is time', sub { time() > $time });
	return;
}

# The token is due: these begin to refresh it, and are idle from then on. The next one lives for long.
time_is($idle_asked + 0.8 * $life);
$idle_mock->config(token_expire => 7200);
$idle_mock->rules([ \%token, { type => 'latency', ms => 200 } ]);
$idle_mock->mark;
succeeds($idle, flow(), '... when its token is due');
succeeds($idler, flow(server => 'idlers'), '... and of the other');
is($idle_mock->token_requests, 2, '... which begin to refresh them');
my $idle_since = time();

# The token has expired, the next one has come, unread: there is no request for another.
time_is($idle_asked + $life + 0.2);
succeeds($idle, flow(), 'a session that was idle when its refresh was answered calls');
is($idle_mock->token_requests, 2, '... with the token that came meanwhile');

# ---- one call a session ----

my $watch = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($lone);
wait_until(
	'there is a dispatcher',
	sub {
		$watch->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'feishu_flow dispatcher'") == 1;
	});

# Sessions that make one call each, one after the other, until the token has been refreshed twice.  With a dispatcher
# none waits for a token; without, the one that finds it due makes the request, and waits for it.  The two clusters do
# not wait for each other, and a token is due for as long as a call and a token request take on a busy machine.
my $long_life = 6;
my @cases = (
	{ name => 'sessions of one call', node => $node, mock => $mock, patience => 0 },
	{ name => 'sessions of one call without a dispatcher', node => $lone, mock => $lone_mock, patience => 2 });
my $dir = PostgreSQL::Test::Utils::tempdir();
foreach my $case (@cases)
{
	$case->{mock}->config(token_expire => $long_life);
	succeeds(FeishuFlow::Session->new($case->{node}), flow(), 'a call');
	$case->{mock}->rules([ \%token, { type => 'latency', ms => $latency } ]);
}
my $until = time() + 1.8 * $long_life;
foreach my $case (@cases)
{
	my $number = $case->{patience};
	forked(
		"calls $number",
		sub {
			my ($failed, $calls) = ('', '');
			wait_until(
				'the token was refreshed twice',
				sub {
					my $session = FeishuFlow::Session->new($case->{node});
					my $begun = time();
					my $result = $session->ask(flow());
					$calls .= "$begun-" . time() . ' ';
					$session->quit;
					$failed ||= $result->{err};
					return time() >= $until;
				});
			append_to_file("$dir/$number.part", "$calls\n$failed");
			rename("$dir/$number.part", "$dir/$number") or die "rename: $!";
		});
}
foreach my $case (@cases)
{
	my $file = "$dir/$case->{patience}";
	wait_until("$case->{name} have ended", sub { -e $file });
	my ($calls, $failed) = split(/\n/, slurp_file($file), 2);
	my @calls = map { [ split /-/ ] } split(/ /, $calls);
	my @fetches = $case->{mock}->log(%token);
	# those that have begun before a token was asked for, and ended after it came
	my @waited = grep {
		my ($begun, $ended) = @$_;
		grep { $begun < $_->{time} && $_->{done} < $ended } @fetches
	} @calls;
	is($failed, '', "$case->{name}: no call fails");
	cmp_ok(scalar(@waited), '<=', $case->{patience}, '... so many wait for a token');
	is(scalar(grep { $_->{aborted} } @fetches), 0, '... no token request is given up');
	is(scalar(@fetches), 3, '... the token is refreshed, once in each life')
	  or diag(join(' ', map { sprintf('%.3f-%.3f', @$_{qw(time done)}) } @fetches));
	my @late = grep { $fetches[$_]{time} > $fetches[ $_ - 1 ]{time} + $long_life } 1 .. $#fetches;
	is(scalar(@late), 0, '... ahead of its expiry');
}
$lone_mock->config(token_expire => $life);

# ---- a token whose request took its time ----

# The platform may have made it at once: it lives from the request on, and not from the answer.
$lone_mock->rules;
$lone_mock->config(token_expire => 7200);
$lone_mock->revoke;
succeeds($other, flow(), 'a call with a token that is not due');
$lone_mock->rules([ \%token, { type => 'latency', ms => 1500 } ]);
$lone_mock->config(token_expire => 3);
$lone_mock->revoke;
$lone_mock->mark;
succeeds($other, flow(), '... whose next one, of 3 seconds, comes after half of them');
is($lone_mock->token_requests, 1, '... by one request');
my ($answered) = map { $_->{done} } $lone_mock->log(%token);
$lone_mock->rules;
$lone_mock->config(token_expire => 7200);
$lone_mock->mark;
time_is($answered + 1.6);
succeeds($other, flow(), '... and another call when it was asked for 3 seconds ago');
is($lone_mock->token_requests, 1, '... asks for a new one');
is($lone_mock->executes, 1, '... before the platform refuses the old one');
$lone_mock->config(token_expire => $life);

# ---- an idle session ----

# Its refresh hangs. Nothing of it is left when its call has ended, and others do not wait.
my $lonely = FeishuFlow::Session->new($lone);
$lone_mock->rules;
$lone_mock->revoke;
$lone_mock->mark;
succeeds($lonely, flow(), 'a call that fetches a token');
my ($asked) = map { $_->{time} } $lone_mock->log(%token);
$lone_mock->rules([ \%token, { type => 'hang' }, times => 1 ]);
time_is($asked + 0.8 * $life);
$lone_mock->mark;
my $result = $lonely->ask(flow());
is($result->{sqlstate}, '00000', 'a call whose refresh hangs') or diag($result->{err});
cmp_ok($result->{seconds}, '<', 2 * $FeishuFlow::SLOW, '... waits a little');
is($lone_mock->wait_for(1, %token, state => 'aborted'), 1, '... and has given it up');
time_is($asked + $life);
$result = $other->ask(flow(timeout => '10s'));
is($result->{sqlstate}, '00000', '... another session calls when the token has expired') or diag($result->{err});
cmp_ok($result->{seconds}, '<', 1 * $FeishuFlow::SLOW, '... at once');

# ---- what the dispatcher cannot look up ----

$mock->rules;
$mock->config(token_expire => $life, apps => { cli_clerk => 'clerk', cli_unseen => 'unseen' });
$mock->mark;
$other = FeishuFlow::Session->new($node);
$other->value('BEGIN');
$other->value('CREATE SERVER unseen FOREIGN DATA WRAPPER feishu_flow OPTIONS (base_url ' . quote($mock->url) . ')');
$other->value(q{CREATE USER MAPPING FOR PUBLIC SERVER unseen OPTIONS (app_id 'cli_unseen', app_secret 'unseen')});

# Credentials are those of the role that calls.
$watch->value('CREATE ROLE clerk LOGIN');
$watch->value('GRANT USAGE ON FOREIGN SERVER feishu TO clerk');
$watch->value(q{CREATE USER MAPPING FOR clerk SERVER feishu OPTIONS (app_id 'cli_clerk', app_secret 'clerk')});
my $clerk = FeishuFlow::Session->new($node, user => 'clerk');

succeeds($other, flow(server => 'unseen'), 'a call over a server that nobody else sees');
succeeds($clerk, flow(), 'a call of a role with credentials of its own');
my ($unseen_asked, $clerk_asked) =
  map { ($mock->log(%token, app_id => $_))[0]{time} } 'cli_unseen', 'cli_clerk';
time_is($clerk_asked + 0.78 * $life);
my $failed = '';
wait_until(
	'the token is refreshed',
	sub {
		$failed ||= $other->ask(flow(server => 'unseen'))->{err};
		$mock->count(%token, app_id => 'cli_unseen') == 2;
	});
succeeds($clerk, flow(), '... calls again when its token is due');
is($failed, '', 'the token of the server that nobody else sees is refreshed');
cmp_ok(($mock->log(%token, app_id => 'cli_unseen'))[1]{time}, '<', $unseen_asked + $life, '... ahead of its expiry');
is($mock->wait_for(2, %token, app_id => 'cli_clerk', state => 'done'), 2, '... and that of the role');
is($mock->count(%token), 4, '... and nobody else\'s');
$other->value('ROLLBACK');

# ---- a session that was idle ----

# For longer than the 10 s that a refresh has.
time_is($idle_since + 11);
$idle_mock->mark;
succeeds($idler, flow(server => 'idlers'), 'one that was idle for longer than a refresh may take calls');
is($idle_mock->token_requests, 0, '... with the token that came meanwhile');
isnt(($idle_mock->log(kind => 'execute'))[-1]{headers}{authorization}, $first, '... which is not the first one');

done_testing();
