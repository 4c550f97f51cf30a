
# Masking tells nobody whether a guess is a part of a secret: who may use a server with a secret that is not his, on a
# platform that echoes what it is sent, sees of his guess what he sent, and of the secret nothing, wherever text is cut.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use FeishuQueue;
use PostgreSQL::Test::Utils;
use Test::More;

my $token = 't-g104FixedTokenOfThePublicMapping';
my $wrong = 't-g104FixedXokenOfThePublicMapping';
my $mock = FeishuFlow::Mock->start;
my $node = queue_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url }, { tenant_access_token => $token });
my $session = FeishuFlow::Session->new($node);
$session->value('CREATE ROLE eve LOGIN');
my $eve = FeishuFlow::Session->new($node, user => 'eve');

# What is shown of an answer that echoes this at the end of so much text, in one of its texts.
my %text = (
	excerpt => [ 512, sub { (status => 400, content_type => 'text/html', body => $_[0]) } ],
	message => [ 1024, sub { (status => 400, body => qq({"code": 2320001, "msg": "$_[0]"})) } ],
	inner_message =>
	  [ 1024, sub { (status => 200, body => qq({"code": 0, "data": {"code": "k_ec_000014", "error_msg": "$_[0]"}})) } ],
	inner_code => [ 256, sub { (status => 200, body => qq({"code": 0, "data": {"code": "$_[0]"}})) } ],
	log_id => [ 255, sub { (status => 400, body => { code => 2320001 }, headers => { 'X-Tt-Logid' => $_[0] }) } ],
	location =>
	  [ 255, sub { (status => 302, body => '', headers => { Location => $_[0] =~ s{^xxxxxxxxxxx}{http://a/?x}r }) } ]);

sub shown
{
	my ($text, $echo, $before, $after) = @_;
	$mock->fault(type => 'status', $text{$text}->[1]->(('x' x $before) . $echo . $after));
	my $answer = $eve->ask(flow());
	return $answer->{err} =~ s/\bid [\w-]+|\d+ ms//gr;
}

# Also of a queued flow, whose text is kept.
sub kept
{
	my ($text, $echo, $before, $after) = @_;
	$mock->fault(type => 'status', $text{$text}->[1]->(('x' x $before) . $echo . $after));
	my $id = enqueue($eve, max_attempts => \1);
	until_ended($session, "id = $id");
	return $session->value("SELECT f.error FROM feishu.flows f WHERE id = $id");
}

foreach my $text (sort keys %text)
{
	my $most = $text{$text}->[0];
	my %differs;
	my %shows;
	foreach my $left (1, 2, 5, 6, 7, 8, 11, 12, 13, 20, length($token) - 1)
	{
		# a guess that ends where the text is cut, or is cut, with more behind it or not
		foreach my $after ('', 'z', 'z' x 40)
		{
			my ($right_one, $wrong_one) = map { substr($_, 0, 13) } $token, $wrong;
			my $right = shown($text, $right_one, $most - $left, $after);
			my $other = shown($text, $wrong_one, $most - $left, $after);
			$differs{$left} = "$right\n$other" if $right ne $other =~ s/FixedX/FixedT/gr;
		}
		# the secret itself
		my $echo = shown($text, $token, $most - $left, 'z' x 40);
		$shows{$left} = $echo if $echo =~ /xt-|x=t-|104F/;
	}
	is(join(' ', sort keys %differs), '', "$text: a right guess is shown as a wrong one is")
	  or diag((values %differs)[0] =~ s/x{20,}/x.../gr);
	is(join(' ', sort keys %shows), '', "$text: nothing of a secret that is cut is shown")
	  or diag((values %shows)[0] =~ s/x{20,}/x.../gr);
}
is( kept('inner_message', substr($token, 0, 13), 1024 - 12, 'z'),
	kept('inner_message', substr($wrong, 0, 13), 1024 - 12, 'z') =~ s/FixedX/FixedT/r,
	'a right guess is kept as a wrong one is');
unlike(kept('inner_message', $token, 1024 - 12, 'z' x 40), qr/t-g104/, 'nothing of a secret that is cut is kept');

# Escaped, the secret is one all the same.
foreach my $form ('\\u%04x', '%%%02X', '&#%d;')
{
	my $echoed = $token =~ s/([^\w])/sprintf($form, ord $1)/ger;
	foreach my $left (1, 8, 20)
	{
		unlike(shown('excerpt', $echoed, 512 - $left, 'z' x 40),
			qr/xt|g104/, "nothing of a secret as $form is shown, $left characters before the cut");
	}
}
my $odd = 'secret<of>the"odd&kind';
my %name = ('<' => 'lt', '>' => 'gt', '"' => 'quot', '&' => 'amp');
create_server($node, 'odd', { base_url => $mock->url }, { tenant_access_token => $odd });
foreach my $form (
	sub { "&$name{$_[0]};" },
	map {
		my $format = $_;
		sub { sprintf($format, ord $_[0]) }
	} '&#x%x;',
	'&#%d;', '%%%02x',
	'\\u%04X')
{
	my $echoed = $odd =~ s/([<>"&])/$form->($1)/ger;
	$mock->fault(type => 'status', status => 400, content_type => 'text/html', body => "<p>$echoed</p>");
	my $answer = $session->ask(flow(server => 'odd'))->{err};
	unlike($answer, qr/secret.*odd/, "a secret as $echoed is not shown");
	like($answer, qr/<p>\*+/, '... but asterisks');
}
unlike(shown('excerpt', $token, 10, ''), qr/t-g104/, 'a whole secret is not shown');
like(shown('excerpt', $token, 10, ''), qr/x\*+/, '... but asterisks');

done_testing();
