
# A front of the mock that speaks HTTP/2 over TLS, with the faults that only a peer of HTTP/2 can have: see
# test/http2_front.py for them.
#
#   my $front = FeishuFront->start($mock, 'rst_http11', 'early_413:cancel');
#   create_server($node, 'old', $front->options('rst_http11'));
#   is($front->hits('rst_http11', 'refused'), 1, 'it was refused once');

package FeishuFront;

use strict;
use warnings;

use Carp;
use FeishuFlow;
use IPC::Run;
use PostgreSQL::Test::Utils;

sub start
{
	my ($class, $mock, @faults) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my @certificate = ('-keyout', "$dir/key", '-out', "$dir/crt");
	my $log = '';
	IPC::Run::run(
		[
			qw(openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=front -addext subjectAltName=IP:127.0.0.1),
			@certificate
		],
		'>&',
		\$log) or die "openssl: $log";
	# the servers of the test may be another user's
	chmod 0755, $dir;
	my ($pid, $out) = FeishuFlow::start_process('front', 'python3', $ENV{FEISHU_MOCK} =~ s/feishu_mock/http2_front/r,
		'--upstream', $mock->url, '--certificate', "$dir/crt", '--key', "$dir/key", '--log', "$dir/log", @faults);
	my $self = bless { pid => $pid, dir => $dir, out => $out }, $class;
	foreach my $fault (@faults)
	{
		my $line = <$out> // croak 'the front did not start';
		$line =~ /^\Q$fault\E (\d+)$/ or croak "the front said $line";
		$self->{port}{$fault} = $1;
	}
	return $self;
}

# Options of a server that leads to it.
sub options
{
	my ($self, $fault, %more) = @_;
	return { base_url => "https://127.0.0.1:$self->{port}{$fault}", ca_file => "$self->{dir}/crt", %more };
}

# From now on, the port of a fault has another one.
sub change
{
	my ($self, $fault, $other) = @_;
	tell_process($self->{pid}, "$self->{port}{$fault} $other");
	return;
}

# How often a fault's port has served or refused a request, or answered 413.
sub hits
{
	my ($self, $fault, $what) = @_;
	return scalar(() = slurp_file("$self->{dir}/log") =~ /^\Q$fault\E .* \Q$what\E$/mg);
}

# Over which versions of HTTP have requests come to the mock, in what order?
sub versions
{
	my ($self, $mock) = @_;
	return join(' ', map { (split ' ', $_->{headers}{'x-front'})[0] } $mock->log(kind => 'execute'));
}

1;
