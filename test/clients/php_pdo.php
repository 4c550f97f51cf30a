<?php
/* PDO. */

const NS = 'package_7344545d87__c';

function ok(bool $good, string $name): void
{
	echo $good ? 'ok' : 'not ok', " - $name\n";
}

function equal($got, $expected, string $name): void
{
	ok($got === $expected, $name);
	if ($got !== $expected) {
		echo 'got ', var_export($got, true), ', expected ', var_export($expected, true), "\n";
	}
}

$patience = (int) (getenv('CLIENT_PATIENCE') ?: 60);
$pdo = new PDO('pgsql:');
$pdo->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION);

function value(PDO $pdo, string $sql, array $parameters = [])
{
	$statement = $pdo->prepare($sql);
	$statement->execute($parameters);
	return $statement->fetchColumn();
}

/* The transaction of the order queues its flow. The trigger of orders queues another. */
$pdo->beginTransaction();
$pdo->prepare('INSERT INTO orders (item) VALUES (?)')->execute(['desk']);
$order = (int) $pdo->lastInsertId();
$enqueue = $pdo->prepare('SELECT feishu.enqueue_flow(?, ?, operator => ?, params => ?)');
$enqueue->execute([NS, 'committed', json_encode(['email' => 'li@example.com']), json_encode(['order' => $order])]);
$flow = $enqueue->fetchColumn();
$pdo->commit();
equal(value($pdo, 'SELECT max(id) FROM orders'), $order, 'lastInsertId() is the id of the order');
equal(is_int($flow), true, 'the id of a flow is an int');
$answer = json_decode(value($pdo, 'SELECT feishu.wait_flow(?, make_interval(secs => ?))', [$flow, $patience]), true);
equal($answer['code'], 0, 'a flow that was queued with its order is sent');

/* json_encode() makes [] of an empty array: an object is wanted. */
try {
	value($pdo, 'SELECT feishu.execute_flow(?, ?, params => ?)', [NS, 'flow', json_encode([])]);
	ok(false, 'params that are no object are an error');
} catch (PDOException $e) {
	equal($e->getCode(), '22023', 'params that are no object are an error');
}
$answer = json_decode(value($pdo, 'SELECT feishu.execute_flow(?, ?, params => ?)', [NS, 'flow', json_encode((object) [])]), true);
equal($answer['code'], 0, '... and an empty object is none');

/* execute() makes an empty string of false. */
try {
	value($pdo, 'SELECT feishu.execute_flow(?, ?, is_async => ?)', [NS, 'flow', false]);
	ok(false, 'false in the array of execute() is an error');
} catch (PDOException $e) {
	equal($e->getCode(), '22P02', 'false in the array of execute() is an error');
}

/* Numbers beyond 2^53 are integers of PHP; longer ones need a flag. */
$sql = 'SELECT feishu.out_params(feishu.execute_flow(?, ?, params => ?, idempotent_key => ?, is_async => ?))';
$statement = $pdo->prepare($sql);
$statement->bindValue(1, NS);
$statement->bindValue(2, 'echoParams');
$statement->bindValue(3, json_encode(['total' => PHP_INT_MAX, 'text' => '桌子', 'null' => null]));
$statement->bindValue(4, null, PDO::PARAM_NULL);
$statement->bindValue(5, false, PDO::PARAM_BOOL);
$statement->execute();
$out = json_decode($statement->fetchColumn(), true, 512, JSON_BIGINT_AS_STRING);
equal($out['total'] ?? 0, PHP_INT_MAX, 'an integer of 64 bits keeps its digits');
equal($out['text'] ?? '', '桌子', 'text is what it was');
equal(array_key_exists('null', $out) ? $out['null'] : 'none', null, 'null is null');
equal(value($pdo, 'SELECT feishu.out_params(?)', [null]), null, 'NULL comes back as null');
$bound = value($pdo, "SELECT feishu.execute_flow(?, ?, operator => ?, params => ?, loop_masks => ?, server => ?, timeout => ?)",
	[NS, 'flow', null, null, json_encode(['a']), 'feishu', "$patience s"]);
equal(json_decode($bound, true)['code'], 0, 'parameters for all types of arguments, null for none');

/* What went wrong. DETAIL and HINT are in the third part of errorInfo. */
$pid = value($pdo, 'SELECT pg_backend_pid()');
try {
	value($pdo, 'SELECT feishu.execute_flow(?, ?)', [NS, 'noScope']);
	ok(false, 'a refusal is an error');
} catch (PDOException $e) {
	[$sqlstate, , $text] = $e->errorInfo;
	$detail = preg_match('/^DETAIL:  (.*)$/m', $text, $found) ? $found[1] : null;
	$hint = preg_match('/^HINT:  (.*)$/m', $text, $found) ? $found[1] : null;
	equal($sqlstate, 'LK403', 'the SQLSTATE');
	ok(str_contains($detail ?? '', 'code 99991672'), 'DETAIL');
	ok(str_contains($hint ?? '', 'https://'), 'HINT');
}
equal(value($pdo, 'SELECT pg_backend_pid()'), $pid, 'the connection lives');

/* Values that PHP itself puts into the statement. */
$emulated = new PDO('pgsql:', null, null, [PDO::ATTR_EMULATE_PREPARES => true, PDO::ATTR_PERSISTENT => true]);
$answer = value($emulated, 'SELECT feishu.execute_flow(:ns, :flow, params => :params, is_async => :async)',
	['ns' => NS, 'flow' => 'flow', 'params' => '{"a": "it\'s ?"}', 'async' => 'false']);
equal(json_decode($answer, true)['code'], 0, 'a statement that is prepared by PDO');

/* PDO cannot cancel: statement_timeout can. */
$pdo->exec("SET statement_timeout = '1s'");
try {
	value($pdo, 'SELECT feishu.execute_flow(?, ?)', [NS, 'hangingFlow']);
	ok(false, 'statement_timeout ends a call');
} catch (PDOException $e) {
	equal($e->getCode(), '57014', 'statement_timeout ends a call');
}
$pdo->exec('RESET statement_timeout');
equal(value($pdo, 'SELECT pg_backend_pid()'), $pid, '... and the connection lives');

/* Rollback. */
$pdo->beginTransaction();
$enqueue->execute([NS, 'rolledBack', null, null]);
$pdo->rollBack();
$pdo->beginTransaction();
$enqueue->execute([NS, 'committed', null, null]);
$pdo->exec('SAVEPOINT s');
$enqueue->execute([NS, 'rolledBack', null, null]);
$pdo->exec('ROLLBACK TO SAVEPOINT s');
$pdo->commit();
