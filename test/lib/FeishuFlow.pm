
# What the TAP tests of feishu_flow share: the mock platform, clusters with the
# extension, psql sessions that can hang, and a few ways to look at a backend.
#
#   my $mock = FeishuFlow::Mock->start;
#   my $node = new_cluster('main');
#   create_server($node, 'feishu', { base_url => $mock->url });
#   my $session = FeishuFlow::Session->new($node);
#   succeeds($session, flow(params => '{"n": 1}'), 'a call is answered');
#
# Environment: FEISHU_MOCK, the path of feishu_mock.py (default: next to this
# folder); TEST_SLOW, by how much the server is slower than usual (default: 1).
# Strings are bytes (UTF-8), but for what came out of JSON.

package FeishuFlow;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use Cwd 'abs_path';
use File::Basename;
use IO::Socket::INET;
use IPC::Run;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(
  new_cluster create_server alter_server quote flow function_call
  succeeds fails_with lost_connections wait_until
  open_files open_sockets private_kilobytes least_growth count_memory memory_in_use alive wakes
  full_port closed_port start_process tell_process stop_process start_nginx forked
  run_unit
);

# By how much the server is slower than usual.
our $SLOW = $ENV{TEST_SLOW} // 1;

# Seconds that something which ought to happen at once may take on a machine
# that is busy with something else.
our $PATIENCE = 60 * $SLOW;

# Nothing of the machine may come between the test and its mock.
delete @ENV{qw(http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY)};

my $library = dirname(abs_path(__FILE__));
$ENV{FEISHU_MOCK} //= "$library/../feishu_mock.py";

# Cluster.pm wants pg_regress; make sets it, a plain "prove" does not.
if (!defined $ENV{PG_REGRESS})
{
	my $pgxs = `pg_config --pgxs`;
	chomp $pgxs;
	$ENV{PG_REGRESS} = dirname($pgxs) . '/../../src/test/regress/pg_regress';
}

# ---- processes ----

my %processes;    # pid => name, all that were started and not yet stopped

# Runs a command in the background.  Returns its pid and a handle that reads its
# standard output; its standard input is a pipe that ends when the test does.
sub start_process
{
	my ($name, @command) = @_;

	# Perl's own pipes are close-on-exec, so that no server inherits them.
	pipe(my $child_in, my $our_out) or die "pipe: $!";
	pipe(my $our_in, my $child_out) or die "pipe: $!";
	my $log = "$PostgreSQL::Test::Utils::log_path/" . basename($0, '.pl') . "_$name.log";
	my $pid = fork() // die "fork: $!";
	if (!$pid)
	{
		open(STDIN, '<&', $child_in) or POSIX::_exit(1);
		open(STDERR, '>>', $log)     or POSIX::_exit(1);
		POSIX::dup2(fileno($child_in), 0);
		POSIX::dup2(fileno($child_out), 1);
		POSIX::dup2(fileno(STDERR), 2);
		exec(@command) or POSIX::_exit(127);
	}
	$processes{$pid} = { name => $name, in => $our_out };
	return ($pid, $our_in);
}

# Writes a line to the standard input of such a process.
sub tell_process
{
	my ($pid, $line) = @_;
	syswrite($processes{$pid}{in}, "$line\n") // die "$processes{$pid}{name}: $!";
	return;
}

# Starts nginx with these sites (text of its configuration) and waits until it listens on their ports.  It logs port,
# protocol, connection and request in access.log of the folder.
sub start_nginx
{
	my ($dir, $sites, @ports) = @_;
	my ($nginx) = grep { -x $_ } '/usr/sbin/nginx', '/usr/local/sbin/nginx', '/usr/bin/nginx';
	die 'nginx is needed, see script/bootstrap' if !defined $nginx;
	append_to_file("$dir/nginx.conf", <<"CONF");
daemon off;
master_process off;
pid $dir/nginx.pid;
error_log $dir/error.log;
events { worker_connections 1024; }
http {
	log_format protocol '\$server_port \$server_protocol \$connection \$request_uri';
	access_log $dir/access.log protocol;
	client_body_temp_path $dir/body;
	proxy_temp_path $dir/proxy;
	fastcgi_temp_path $dir/fastcgi;
	uwsgi_temp_path $dir/uwsgi;
	scgi_temp_path $dir/scgi;
$sites
}
CONF
	start_process('nginx', $nginx, '-e', "$dir/error.log", '-p', $dir, '-c', "$dir/nginx.conf");
	foreach my $port (@ports)
	{
		wait_until('nginx listens', sub { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) });
	}
	return;
}

# Runs a Perl function in a child of the test.
sub forked
{
	my ($name, $function) = @_;
	my $pid = fork() // die "fork: $!";
	if (!$pid)
	{
		local $SIG{TERM} = 'DEFAULT';
		local $SIG{CHLD} = 'IGNORE';
		eval { $function->() };
		print STDERR $@ if $@;
		POSIX::_exit(0);
	}
	$processes{$pid} = { name => $name };
	return $pid;
}

sub stop_process
{
	my ($pid) = @_;
	my $process = delete $processes{$pid} or return;
	kill 'TERM', $pid;
	for (1 .. 200)
	{
		return if waitpid($pid, POSIX::WNOHANG()) != 0;
		usleep(10_000);
	}
	kill 'KILL', $pid;
	waitpid($pid, 0);
	return;
}

END
{
	my $status = $?;
	stop_process($_) foreach keys %processes;
	$? = $status;
}

# ---- clusters ----

# A running cluster of the extension.  Options: preload (default 1), conf (lines
# of postgresql.conf), connections (default 30), streaming, install_path (of an
# installation other than the one in PATH), extra (arguments of initdb).
sub new_cluster
{
	my ($name, %options) = @_;
	my $node =
	  PostgreSQL::Test::Cluster->new($name, $options{install_path} ? (install_path => $options{install_path}) : ());
	$node->init(
		extra => [ '--encoding=UTF8', '--locale=C', @{ $options{extra} // [] } ],
		allows_streaming => $options{streaming} // 0);
	my $connections = $options{connections} // 30;
	my $preload =
	  $options{preload} // 1
	  ? "shared_preload_libraries = 'feishu_flow'"
	  : '';
	$node->append_conf('postgresql.conf', <<"CONF" . ($options{conf} // ''));
$preload
max_connections = $connections
feishu_flow.timeout = '${PATIENCE}s'
CONF
	$node->start;
	return $node;
}

sub quote
{
	my ($text) = @_;
	return 'NULL' if !defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

sub option_list
{
	my ($options) = @_;
	return '' if !%$options;
	return 'OPTIONS (' . join(', ', map { "$_ " . quote($options->{$_}) } sort keys %$options) . ')';
}

# A server with a mapping for PUBLIC (the mock's app, unless given otherwise).
# Makes the extension, too.
sub create_server
{
	my ($node, $name, $options, $mapping, $database) = @_;
	$mapping //= { app_id => 'cli_mock', app_secret => 'mock-secret' };
	$node->safe_psql(
		$database // 'postgres',
		"SET client_min_messages = warning;"
		  . "CREATE EXTENSION IF NOT EXISTS feishu_flow;"
		  . "CREATE SERVER $name FOREIGN DATA WRAPPER feishu_flow "
		  . option_list($options) . ";"
		  . "CREATE USER MAPPING FOR PUBLIC SERVER $name "
		  . option_list($mapping) . ";"
		  . "GRANT USAGE ON FOREIGN SERVER $name TO PUBLIC;");
	return;
}

# alter_server($session, 'feishu', 'ADD', timeout => '1s')
sub alter_server
{
	my ($session, $name, $how, $option, $value) = @_;
	my $result =
	  $session->ask("ALTER SERVER $name OPTIONS ($how $option " . (defined $value ? quote($value) : '') . ")");
	die "could not alter server: $result->{err}"
	  if $result->{sqlstate} ne '00000';
	return;
}

# ---- calls ----

# function_call('feishu.execute_flow', namespace => 'a', ...), in named notation
sub function_call
{
	my ($function, @arguments) = @_;
	my @list;
	while (my ($name, $value) = splice(@arguments, 0, 2))
	{
		push @list, "$name => " . (ref $value ? $$value : quote($value));
	}
	return "$function(" . join(', ', @list) . ')';
}

# SELECT of a call with these arguments, usual ones for those that must be.
# A reference to a string is an SQL expression.
sub flow
{
	my (%arguments) = @_;
	%arguments = (
		namespace => 'package_7344545d87__c',
		flow_id => 'approveOrder_99c656599f',
		operator => '{"_id": 1111}',
		%arguments);
	return 'SELECT ' . function_call('feishu.execute_flow', map { $_ => $arguments{$_} } sort keys %arguments);
}

# ---- assertions ----

# The statement must succeed; returns its output.
sub succeeds
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = ref $sql ? $sql : $session->ask($sql);
	is($result->{sqlstate}, '00000', $name) or diag($result->{err});
	return $result->{out};
}

# The statement must fail with this SQLSTATE, and its parts (message, detail,
# hint) be like the expressions given.  $sql may be a result already.
sub fails_with
{
	my ($session, $sql, $sqlstate, $name, %parts) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = ref $sql ? $sql : $session->ask($sql);
	is($result->{sqlstate}, $sqlstate, $name)
	  or diag($result->{err} || "it returned: $result->{out}");
	# PostgreSQL's own, when it ends a session, are meant to be recognised
	my @lost = $sqlstate =~ /^57P/ ? () : lost_connections($result->{err});
	fail("$name: nobody takes it for a lost connection to the database: @lost") if @lost;
	foreach my $part (sort keys %parts)
	{
		like($result->{$part}, $parts{$part}, "$name: $part");
	}
	return $result;
}

# The phrases of test/data/lost_connections that are in a text; all without one.
my @phrases;

sub lost_connections
{
	my ($text) = @_;
	if (!@phrases)
	{
		my $file = abs_path(dirname(__FILE__) . '/../data/lost_connections');
		@phrases = map { /^([^#\t][^\t]*)\t/ ? $1 : () } split(/\n/, slurp_file($file));
		die "no phrases in $file" if !@phrases;
	}
	return @phrases if !defined $text;
	return grep { index(lc $text, lc $_) >= 0 } @phrases;
}

# Polls until the function returns true; dies when it takes too long.  Returns
# what the function returned.
sub wait_until
{
	my ($what, $function, $seconds) = @_;
	my $deadline = time() + ($seconds // $PATIENCE);
	while (1)
	{
		my $value = $function->();
		return $value if $value;
		croak "timed out waiting until $what" if time() > $deadline;
		usleep(10_000);
	}
	return;
}

# ---- a process seen from outside ----

# Is it there, and not only waiting for its parent to take note of its end?
sub alive
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return 0;
	my $stat = <$file> // return 0;
	return $stat =~ /^\d+ \(.*\) [ZX]/s ? 0 : 1;
}

# What the descriptors of a process lead to.
sub descriptors
{
	my ($pid) = @_;
	opendir(my $dir, "/proc/$pid/fd") or die "/proc/$pid/fd: $!";
	return grep { defined } map { readlink("/proc/$pid/fd/$_") } readdir($dir);
}

# Descriptors but those of table files, which come and go with caches.
sub open_files
{
	return scalar(grep { !m{^/.*/(?:base|global|pg_\w+)/} } descriptors(@_));
}

sub open_sockets
{
	return scalar(grep { /^socket:/ } descriptors(@_));
}

# Memory that a process has for itself.  Not Private_*: there a page of
# PostgreSQL's shared memory counts as long as no other process has touched it.
sub private_kilobytes
{
	my ($pid) = @_;
	my ($anonymous) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/smaps_rollup") =~ /^Anonymous:\s+(\d+) kB/m;
	return $anonymous;
}

# How often a process has gone to sleep, and so been woken.
sub wakes
{
	my ($pid) = @_;
	my ($wakes) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)$/m;
	return $wakes;
}

# Has servers that are started from now on count what they have from malloc: see memory_in_use. False without a C
# compiler, or where memory is watched otherwise.
my $counted;

sub count_memory
{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	return 0
	  if $SLOW > 1
	  || system('cc', '-shared', '-fPIC', '-O2', '-o', "$dir/memory_in_use.so", "$library/memory_in_use.c") != 0;
	chmod 0755, $dir;
	$counted = "$dir/in_use";
	mkdir $counted;
	chmod 0777, $counted;
	$ENV{LD_PRELOAD} = "$dir/memory_in_use.so";
	$ENV{MEMORY_IN_USE} = $counted;
	return 1;
}

# Bytes that such a process has from malloc, and of those what is in use in PostgreSQL's memory contexts.
sub memory_in_use
{
	my ($node, $pid) = @_;
	my $before = -s $node->logfile;
	my $used;
	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	wait_until(
		'it tells its memory',
		sub { ($used) = PostgreSQL::Test::Utils::slurp_file($node->logfile, $before) =~ /Grand total: .*; (\d+) used/; }
	);
	return (unpack('q', PostgreSQL::Test::Utils::slurp_file("$counted/$pid")), $used);
}

# By how much the process grows while $work is done: in kB, or what $measure tells. A leak adds to each
# round, caches and the allocator to a round now and then: what matters is the
# least of a few rounds, and no more are made once it is below $most.
sub least_growth
{
	my ($pid, $most, $work, $measure, $rounds) = @_;
	my $least;
	$measure //= sub { return private_kilobytes($pid); };
	foreach my $round (1 .. $rounds // 4)
	{
		my $before = $measure->();
		$work->();
		my $after = $measure->();
		note("memory from $before to $after in round $round");
		$least = $after - $before if !defined $least || $after - $before < $least;
		last if $least <= $most;
	}
	return $least;
}

# ---- parts of src/ by themselves ----

# Builds a program of files of test/unit/ and src/, and runs it: each of its lines "ok - NAME" is an assertion.
sub run_unit
{
	my ($name, $tests, $sources) = @_;
	my $top = "$library/../..";
	my $program = PostgreSQL::Test::Utils::tempdir() . "/$name";
	my $config = $ENV{PG_CONFIG} // 'pg_config';
	chomp(my $headers = `$config --includedir-server`);
	my @build = (
		'-w', "-I$headers", "-I$top/src", '-o', $program,
		(map { "$top/test/unit/$_.c" } @$tests),
		(map { "$top/src/$_.c" } @$sources), '-lm');
	local $ENV{ASAN_OPTIONS} = 'detect_leaks=0';

	# what goes beyond an array ends the program, where the compiler has that
	system('cc', '-g', '-fsanitize=address', @build) == 0
	  or system('cc', @build) == 0
	  or die "could not build $name";
	open(my $lines, '-|', $program) or die "$program: $!";
	while (my $line = <$lines>)
	{
		chomp $line;
		$line =~ /^((?:not )?ok) - (.*)/ ? ok($1 eq 'ok', $2) : diag($line);
	}
	close $lines;
	is($?, 0, "$name: all were made");
	return;
}

# ---- ports ----

my @kept;

# A port on which nothing listens, and nothing will as long as the test runs.
sub closed_port
{
	my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Proto => 'tcp')
	  or die "socket: $!";
	push @kept, $socket;
	return $socket->sockport;
}

# A port whose queue is full: connections to it are neither made nor refused.
sub full_port
{
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Proto => 'tcp',
		Listen => 1) or die "socket: $!";
	push @kept, $listener;
	for (1 .. 8)
	{
		my $client = IO::Socket::INET->new(
			PeerAddr => '127.0.0.1',
			PeerPort => $listener->sockport,
			Proto => 'tcp',
			Blocking => 0);
		push @kept, $client if $client;
	}
	return $listener->sockport;
}


# =====================================================================
# The mock platform, through its control API.  Counters begin at mark().
package FeishuFlow::Mock;

use strict;
use warnings;

use Carp;
use IO::Socket::INET;
use JSON::PP ();

# Further arguments are the mock's.
sub start
{
	my ($class, @arguments) = @_;
	my ($pid, $out) =
	  FeishuFlow::start_process('mock', 'python3', $ENV{FEISHU_MOCK}, '--port', '0', '--exit-on-eof', @arguments);
	my $port = <$out>;
	croak "the mock $ENV{FEISHU_MOCK} did not start" if !defined $port;
	chomp $port;
	my ($host) = "@arguments" =~ /--host (\S+)/;
	my $self = bless {
		pid => $pid,
		host => $host // '127.0.0.1',
		port => $port,
		out => $out,
		mark => 0,
		json => JSON::PP->new->utf8->allow_nonref,
	}, $class;
	if (grep { $_ eq '--accept-hang' } @arguments)
	{
		my $silent = <$out>;
		chomp $silent;
		$self->{silent_port} = $silent;
	}
	return $self;
}

sub stop { FeishuFlow::stop_process($_[0]->{pid}); return; }

sub port { return $_[0]->{port}; }
sub url  { return "http://$_[0]->{host}:$_[0]->{port}"; }

# Accepts connections, reads, and never says a word.
sub silent_port { return $_[0]->{silent_port}; }

# One request to the mock, in one write: HTTP::Tiny makes two of it, and waits
# 40 ms for the kernel in between.  Returns status and body.
sub request
{
	my ($self, $method, $path, $content) = @_;
	my $body = defined $content ? $self->{json}->encode($content) : '';
	my $socket = $self->{socket} //= IO::Socket::INET->new(
		PeerAddr => $self->{host},
		PeerPort => $self->{port}) // croak "mock: $!";
	my $request =
		"$method $path HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	  . "Content-Type: application/json\r\nContent-Length: "
	  . length($body)
	  . "\r\n\r\n$body";
	while (length $request)
	{
		my $sent = syswrite($socket, $request);
		next if !defined $sent && $!{EINTR};
		$self->unconnected("mock: $!") if !defined $sent;
		substr($request, 0, $sent) = '';
	}
	my ($answer, $length) = ('', undef);
	until (defined $length && length $answer >= $length)
	{
		my $got = sysread($socket, $answer, 1 << 20, length $answer);
		next if !defined $got && $!{EINTR};
		$self->unconnected("mock: $method $path: no answer") if !$got;
		$length //= $+[0] + $1
		  if $answer =~ /\r\nContent-Length: (\d+)\r\n.*?\r\n\r\n/s;
	}
	my ($status) = $answer =~ m{^HTTP/1.1 (\d+) };
	return ($status, $answer =~ s/^.*?\r\n\r\n//sr);
}

# Dies; no late answer is taken for that of another request.
sub unconnected
{
	my ($self, $why) = @_;
	delete $self->{socket};
	croak $why;
}

sub control
{
	my ($self, $method, $path, $content) = @_;
	my ($status, $body) = $self->request($method, "/_mock/$path", $content);
	croak "mock: $method $path: $status $body" if $status != 200;
	return $self->{json}->decode($body);
}

# Replaces all fault rules: rules([{kind => 'execute'}, {type => 'hang'}, times => 1], ...)
sub rules
{
	my ($self, @rules) = @_;
	my @list;
	foreach my $rule (@rules)
	{
		my ($match, $fault, %rest) = @$rule;
		push @list, { match => $match, fault => $fault, %rest };
	}
	$self->control('POST', 'rules', \@list);
	return;
}

# Replaces them by one for all executes.
sub fault
{
	my ($self, %fault) = @_;
	$self->rules([ { kind => 'execute' }, \%fault ]);
	return;
}

sub well    { my ($self) = @_; $self->rules; $self->release; return; }
sub release { return $_[0]->control('POST', 'release')->{released}; }
sub stats   { return $_[0]->control('GET', 'stats'); }
sub started { return scalar @{ $_[0]->control('GET', 'started') }; }

sub config
{
	my ($self, %changes) = @_;
	return $self->control('POST', 'config', \%changes);
}

sub revoke
{
	my ($self, %how) = @_;
	$self->control('POST', 'tokens/revoke', \%how);
	return;
}

sub reset
{
	my ($self) = @_;
	$self->control('POST', 'reset');
	$self->{mark} = 0;
	return;
}

# From now on log, count and wait_for see only what comes.
sub mark
{
	my ($self) = @_;
	$self->{mark} = $self->stats->{requests};
	return;
}

sub query
{
	my ($self, %filters) = @_;
	$filters{since} //= $self->{mark};
	return 'log?' . join('&', map { "$_=$filters{$_}" } sort keys %filters);
}

# The requests since the mark that match, in order.
sub log
{
	my ($self, %filters) = @_;
	return @{ $self->control('GET', $self->query(%filters)) };
}

sub count
{
	my ($self, %filters) = @_;
	return $self->control('GET', $self->query(%filters, count => 1))->{count};
}

sub executes { return $_[0]->count(kind => 'execute'); }

sub token_requests
{
	my ($self) = @_;
	return $self->count(kind => 'token') + $self->count(kind => 'oauth');
}

# Waits until so many requests since the mark have arrived (or another state).
sub wait_for
{
	my ($self, $count, %filters) = @_;
	return $self->control(
		'POST', 'wait',
		{
			count => $count,
			timeout => $FeishuFlow::PATIENCE,
			since => $self->{mark},
			%filters
		})->{count};
}

# A token, obtained as a client would.
sub token
{
	my ($self, $app_id, $secret) = @_;
	my (undef, $body) = $self->request(
		'POST',
		'/open-apis/auth/v3/tenant_access_token/internal',
		{
			app_id => $app_id // 'cli_mock',
			app_secret => $secret // 'mock-secret'
		});
	return $self->{json}->decode($body)->{tenant_access_token};
}


# =====================================================================
# One psql, so one backend, that is asked one statement after the other and may
# hang meanwhile.
package FeishuFlow::Session;

use strict;
use warnings;

use Carp;
use IPC::Run;
use Time::HiRes qw(time usleep);

# Options: database, user.
sub new
{
	my ($class, $node, %options) = @_;
	my $connstr = $node->connstr($options{database} // 'postgres');
	$connstr .= " user=$options{user}" if defined $options{user};
	my $self = bless {
		in => '',
		out => '',
		err => '',
		count => 0,
		timer => IPC::Run::timeout(2 * $FeishuFlow::PATIENCE),
	}, $class;
	$self->{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $connstr ],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err}, $self->{timer});
	my $result = $self->ask('SELECT pg_backend_pid()');
	croak "could not connect: $result->{err}"
	  if $result->{out} !~ /^(\d+)$/;
	$self->{pid} = $1;
	return $self;
}

# Process id of the backend.
sub pid { return $_[0]->{pid}; }

# Sends SQL (or psql's commands) and does not wait.
sub send
{
	my ($self, $sql) = @_;
	croak 'the session is busy' if defined $self->{started};
	$self->{count}++;
	$self->{started} = time();
	$self->{in} .= "$sql\n;\n\\echo end-$self->{count}\n\\warn end-$self->{count}\n";
	$self->{timer}->start;    # what it counted while the session was idle is no waiting
	$self->{run}->pump_nb while length $self->{in} && $self->{run}->pumpable;
	return;
}

# Waits for the end of what was sent.  The result has out, err, sqlstate
# (00000 when all went well), message, detail, hint, seconds and closed.
sub result
{
	my ($self) = @_;
	my $mark = "end-$self->{count}\n";
	$self->{timer}->start;
	eval {
		while ($self->{run}->pumpable)
		{
			last
			  if $self->{out} =~ /^\Q$mark\E/m && $self->{err} =~ /^\Q$mark\E/m;
			# not pump, which at times waits for more although all has come
			$self->{run}->pump_nb;
			usleep(500);
		}
		1;
	} or do
	{
		# a psql that lost its server does not read the rest
		die $@ if $@ !~ /ended|Broken pipe|process/;
	};
	my $closed = $self->{out} !~ /^\Q$mark\E/m;
	my ($out, $err) = ($self->{out}, $self->{err});
	($self->{out}, $self->{err}) = ('', '');
	s/^\Q$mark\E//m foreach $out, $err;
	chomp $out;
	my %result = (
		out => $out,
		err => $err,
		closed => $closed,
		seconds => time() - delete($self->{started}),
		sqlstate => '00000',
		message => '',
		detail => '',
		hint => '');
	my $end = qr/(?=^(?:DETAIL|HINT|CONTEXT|LOCATION|QUERY|STATEMENT|LINE \d+|ERROR|FATAL|WARNING|NOTICE):|\z)/m;

	if ($err =~ /^(?:ERROR|FATAL|PANIC):  (\w{5}): (.*?)$end/ms)
	{
		@result{qw(sqlstate message)} = ($1, $2);
		$result{detail} = $1 if $err =~ /^DETAIL:  (.*?)$end/ms;
		$result{hint} = $1 if $err =~ /^HINT:  (.*?)$end/ms;
		chomp @result{qw(message detail hint)};
	}
	elsif ($closed)
	{
		$result{sqlstate} = 'closed';
	}
	return \%result;
}

sub ask
{
	my ($self, $sql) = @_;
	$self->send($sql);
	return $self->result;
}

# The output of a statement that must not fail.
sub value
{
	my ($self, $sql) = @_;
	my $result = $self->ask($sql);
	croak "query failed: $sql: $result->{err}" if $result->{sqlstate} ne '00000';
	return $result->{out};
}

sub quit
{
	my ($self) = @_;
	eval {
		$self->{in} .= "\\q\n";
		$self->{timer}->start;
		$self->{run}->finish;
	} or eval { $self->{run}->kill_kill };
	return;
}

1;
