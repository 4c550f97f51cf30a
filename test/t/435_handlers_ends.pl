
# How ends of flows with a handler are numbered, whoever ends them, and what a handler may leave behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url });
my $session = FeishuFlow::Session->new($node);
my $other = FeishuFlow::Session->new($node);
$session->value(<<'SQL');
CREATE TABLE public.journal (n serial, id bigint, what text);
CREATE FUNCTION public.note(f feishu.flows) RETURNS void LANGUAGE sql
AS $$INSERT INTO public.journal (id, what) VALUES ((f).id, (f).state)$$;
SQL
my $later = \"now() + interval '1 hour'";
my $id;

sub handled
{
	my ($flow) = @_;
	until_true($session, "the handler of flow $flow was called",
		"SELECT on_end_state IN ('succeeded', 'failed') FROM feishu.flows WHERE id = $flow");
	return look($session, $flow, 'on_end_state, on_end_attempts');
}

# ---- numbers ----

# What rewrites the table of the last number would lose one that is drawn meanwhile.
$id = enqueue($session, run_at => $later, on_end => 'public.note');
$other->value('BEGIN; LOCK TABLE feishu_internal.last_end');
is($session->ask("SET lock_timeout = '100ms'; SELECT feishu.cancel_flow($id)")->{sqlstate}, '55P03', 'no number is drawn of a table that is being rewritten');
$other->value('COMMIT');
is($session->value("RESET lock_timeout; SELECT feishu.cancel_flow($id)"), 't', '... but afterwards');
is(handled($id), 'succeeded|1', '... and the handler is called');

# ---- an upgrade ----

$session->value("ALTER SYSTEM SET feishu_flow.dispatch = off; SELECT pg_reload_conf()");
wait_until('there is no dispatcher', sub { dispatcher($session) eq '' });
my $waits = enqueue($session, on_end => 'public.note');
$id = enqueue($session, run_at => $later, on_end => 'public.note');
my $system = $session->value('SELECT system_identifier FROM pg_control_system()');
$session->value("UPDATE feishu_internal.outbox SET system_identifier = 1; UPDATE feishu_internal.claim SET system_identifier = 1, major_version = 14");
is($session->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow is cancelled after an upgrade, before there is a dispatcher');
$session->value("ALTER SYSTEM SET feishu_flow.dispatch = on; SELECT pg_reload_conf()");
until_dispatcher($session);
is(handled($id), 'succeeded|1', '... and its handler is called');
is(handled($waits), 'succeeded|1', '... as that of one that was waiting');
is($session->value("SELECT count(*) FROM feishu_internal.claim WHERE system_identifier = $system"), 1, '... here');
$id = enqueue($session, run_at => $later, on_end => 'public.note');
$session->value("UPDATE feishu_internal.outbox SET system_identifier = 1 WHERE id = $id");
is($session->value("SELECT feishu.cancel_flow($id)"), 't', 'a flow of another cluster is cancelled');
is(look($session, $id, 'on_end_state IS NULL'), 't', '... and its handler is called there, if anywhere');

done_testing;
