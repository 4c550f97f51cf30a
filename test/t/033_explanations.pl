
# What the platform says of a failure, besides its code: where to read on. And what counts as a code.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";

use FeishuFlow;
use MIME::Base64 qw(encode_base64);
use Test::More;

my $mock = FeishuFlow::Mock->start;
my $node = new_cluster('main');
create_server($node, 'feishu', { base_url => $mock->url }, { tenant_access_token => 't-x' });
my $session = FeishuFlow::Session->new($node);

sub answers
{
	my ($status, $body) = @_;
	$mock->fault(
		type => 'raw',
		bytes_b64 => encode_base64(
				"HTTP/1.1 $status Here\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: "
			  . length($body)
			  . "\r\n\r\n$body"));
	return;
}

# ---- where to read on ----

my ($one, $two, $three) = map { "https://open.feishu.cn/$_" } qw(one two three);
my $long = 'https://open.feishu.cn/' . 'x' x 3000;
foreach my $case (
	[ qq("helps": [{"url": "$one"}]), $one, 'a URL' ],
	[ qq("helps": [{"url": "$one"}, {"url": "$two"}], "troubleshooter": "see $three"), $one, 'the first of several' ],
	[
		qq("helps": [{"url": "ftp://open.feishu.cn"}, {"text": 1}, 5, {"url": 7}, {"url": "$two"}]),
		$two, '... that is one'
	],
	[ qq("helps": [{"url": "$one or $two"}]), undef, 'a text is no URL' ],
	[ qq("helps": [{"url": "see $one"}]), undef, '... wherever one is in it' ],
	[ qq("helps": [{"url": "$long"}]), undef, '... nor is what nobody can read' ],
	[ qq("helps": [{"url": "HTTP://open.feishu.cn"}]), 'HTTP://open.feishu.cn', 'in whatever case' ],
	[
		qq("helps": {"url": "$one"}, "troubleshooter": "see $three"),
		$three,
		'helps of another sort: the troubleshooter'
	],
	[ qq("helps": [], "troubleshooter": "$three"), $three, '... or none' ],
	[
		qq("troubleshooter": "look at ($three?a=1&b=2)."),
		"$three?a=1&b=2",
		'a URL in a sentence, without what is the sentence\'s'
	],
	[ qq("troubleshooter": "\\u6392\\u67e5: $three\\uff0c\\u8c22\\u8c22"), $three, '... of any language' ],
	[ qq("troubleshooter": "\\"$three\\" and \\"$two\\""), $three, '... in quotes' ],
	[ qq("troubleshooter": "$three!"), $three, '... loudly' ],
	[ qq("troubleshooter": "nowhere"), undef, '... without one' ],
	[ qq("troubleshooter": ["$three"]), undef, 'a troubleshooter of another sort' ],
	[ qq("log_id": "x"), undef, 'nothing' ])
{
	my ($members, $url, $name) = @$case;
	answers(400, qq({"code": 2320001, "msg": "no", "error": {$members}}));
	my $result = fails_with($session, flow(), 'LK400', $name);
	is($result->{hint} =~ /\bSee (\S+)$/ ? $1 : undef, $url, '... is in the hint');
}

# ---- what is shown of its words ----

# Nothing that breaks a line, or changes how the rest is shown.
foreach my $case (
	(map { [ $_, 0 ] } 0x7f, 0x80, 0x9f, 0x200e, 0x200f, 0x2028, 0x202e, 0x2066, 0x2069, 0xfeff),
	(map { [ $_, 1 ] } 0x7e, 0xa0, 0x200d, 0x2010, 0x2027, 0x202f, 0x2065, 0x206a, 0xfefe, 0x4f60, 0x1f600))
{
	my ($character, $shown) = @$case;
	my $bytes = chr($character);
	utf8::encode($bytes);
	answers(400, qq({"code": 2320001, "msg": "a${bytes}b"}));
	my $name = sprintf('U+%04X', $character);
	fails_with($session, flow(), 'LK400', $name, detail => $shown ? qr/"a\Q$bytes\Eb"/ : qr/"a b"/);
}

answers(400, qq(\n  {"code": 2320001,\r\n\t"msg": "no"}  \n \n));
my $result = fails_with($session, flow(), 'LK400', 'an answer of several lines');
is($result->{detail} =~ /answer: (.*)/s ? $1 : undef, '{"code": 2320001, "msg": "no"}', '... is shown as one');

# ---- codes ----

foreach my $case (
	[ '2320001', 'LK400' ],
	[ '"2320001"', 'LK400' ],
	[ '2320001.00', 'LK400' ],
	[ '2.320001e6', 'LK400' ],
	[ '"2320001.00"', 'LK502' ],
	[ '2320001.5', 'LK502' ],
	[ '" 2320001"', 'LK502' ],
	[ '"2320001 "', 'LK502' ],
	[ '"+2320001"', 'LK502' ],
	[ '""', 'LK502' ],
	[ 'null', 'LK502' ],
	[ 'true', 'LK502' ],
	[ '[2320001]', 'LK502' ],
	[ '99999999999999999999', 'LK502' ],
	[ '0', '00000' ],
	[ '"0"', '00000' ],
	[ '0.0', '00000' ],
	[ '-0', '00000' ])
{
	my ($code, $sqlstate) = @$case;
	answers(200, qq({"code": $code, "msg": "?", "data": {}}));
	my $result = $session->ask(flow());
	is($result->{sqlstate}, $sqlstate, "code $code") or diag($result->{err});
}
foreach my $case (
	[ '""', '00000' ],
	[ '0', '00000' ],
	[ '"0"', '00000' ],
	[ '0.0', '00000' ],
	[ 'null', '00000' ],
	[ '"k_wf_ec_200036"', 'LK404' ],
	[ '"no code that anybody knows"', 'LK400' ],
	[ '1', 'LK400' ],
	[ '"00x"', 'LK400' ])
{
	my ($code, $sqlstate) = @$case;
	answers(200, qq({"code": 0, "msg": "?", "data": {"code": $code}}));
	my $result = $session->ask(flow());
	is($result->{sqlstate}, $sqlstate, "code 0, and in its data $code") or diag($result->{err});
}

done_testing();
