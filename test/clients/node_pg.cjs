/* node-postgres ("pg"). */

const { Client, Pool, types } = require('pg');

const NS = 'package_7344545d87__c';
const patience = Number(process.env.CLIENT_PATIENCE || 60);
const WAITS = "SELECT count(*) = 1 AS waits FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type = 'Extension'";

function ok(good, name) {
	console.log(`${good ? 'ok' : 'not ok'} - ${name}`);
}

function equal(got, expected, name) {
	ok(Object.is(got, expected), name);
	if (!Object.is(got, expected))
		console.log(`got ${String(got)}, expected ${String(expected)}`);
}

// Polls until it is true, or has taken too long.
async function waitUntil(condition) {
	const deadline = Date.now() + 1000 * patience;
	while (!(await condition())) {
		if (Date.now() > deadline)
			throw new Error('a condition did not come true');
		await new Promise((resolve) => setTimeout(resolve, 10));
	}
}

async function main() {
	const pool = new Pool({ max: 1 });
	const value = async (sql, parameters) => Object.values((await pool.query(sql, parameters)).rows[0])[0];
	let flow;

	// The transaction of the order queues its flow. All of it is said on one client of the pool.
	const client = await pool.connect();
	try {
		await client.query('BEGIN');
		const order = (await client.query('INSERT INTO orders (item) VALUES ($1) RETURNING id', ['desk'])).rows[0].id;
		const queued = await client.query(
			'SELECT feishu.enqueue_flow($1, $2, operator => $3, params => $4) AS id',
			[NS, 'committed', { email: 'li@example.com' }, { order }]);
		flow = queued.rows[0].id;	// a string: a bigint may be beyond 2^53
		await client.query('COMMIT');
	} catch (error) {
		await client.query('ROLLBACK');
		throw error;
	} finally {
		client.release();
	}
	equal(typeof flow, 'string', 'the id of a flow is a string');
	equal((await value('SELECT feishu.wait_flow($1, $2)', [flow, `${patience} s`])).code, 0,
		'a flow that was queued with its order is sent, and its answer is an object');

	// A list is an array of PostgreSQL for the driver, unless it is JSON text.
	equal((await value('SELECT feishu.execute_flow($1, $2, loop_masks => $3)', [NS, 'flow', JSON.stringify(['a'])])).code, 0,
		'a list as JSON text');
	let wrong;
	try {
		await value('SELECT feishu.execute_flow($1, $2, loop_masks => $3)', [NS, 'flow', ['a']]);
	} catch (error) {
		wrong = error.code;
	}
	equal(wrong, '22P02', 'a list as it is is an error');

	// Numbers beyond 2^53 lose digits in JSON.parse(): let PostgreSQL give them as text.
	const big = '9223372036854775807';
	const echo = await value(
		"SELECT feishu.out_params(feishu.execute_flow($1, $2, params => $3)) ->> 'total' AS total",
		[NS, 'echoParams', `{"total": ${big}}`]);
	equal(echo, big, 'an integer of 64 bits keeps its digits as text');
	const lossy = await value('SELECT feishu.out_params(feishu.execute_flow($1, $2, params => $3))', [NS, 'echoParams', `{"total": ${big}}`]);
	equal(lossy.total, 9223372036854775808, '... which it has not as a number of JavaScript');
	const { rows } = await pool.query({
		text: 'SELECT feishu.out_params(feishu.execute_flow($1, $2, params => $3)) AS out',
		values: [NS, 'echoParams', `{"total": ${big}}`],
		types: { getTypeParser: (oid, format) => (oid === types.builtins.JSONB ? (text) => text : types.getTypeParser(oid, format)) },
	});
	equal(/"total": (\d+)/.exec(rows[0].out)[1], big, '... and has as text of the whole answer');

	const out = await value('SELECT feishu.out_params(feishu.execute_flow($1, $2, $3, $4, $5, $6, $7, $8, $9))',
		[NS, 'echoParams', null, { text: '桌子', null: null }, false, null, null, 'feishu', `${patience} s`]);
	equal(out.text, '桌子', 'text is what it was');
	equal(out.null, null, 'null is null');
	equal(await value('SELECT feishu.out_params($1)', [null]), null, 'NULL comes back as null');
	equal((await value('SELECT feishu.execute_flow($1, $2, $3, $4)', [NS, 'flow', undefined, undefined])).code, 0,
		'undefined stands for an argument that is not given');
	const runAt = new Date(Date.now() + 86400000);
	const later = await value('SELECT feishu.enqueue_flow($1, $2, run_at => $3)', [NS, 'later', runAt]);
	equal((await value('SELECT run_at FROM feishu.flows WHERE id = $1', [later])).getTime(), runAt.getTime(), 'a Date is a time');
	equal(await value('SELECT feishu.cancel_flow($1)', [later]), true, 'an id is a parameter again');

	// What went wrong. pool.query() gives up its connection after any error; release() without an argument keeps it.
	const careful = await pool.connect();
	const { pid } = (await careful.query('SELECT pg_backend_pid() AS pid')).rows[0];
	try {
		await careful.query('SELECT feishu.execute_flow($1, $2)', [NS, 'noScope']);
		ok(false, 'a refusal is an error');
	} catch (error) {
		const { code, message, detail, hint } = error;
		equal(code, 'LK403', 'the SQLSTATE');
		ok(detail.includes('code 99991672'), 'DETAIL');
		ok(hint.includes('https://'), 'HINT');
		ok(message.includes('noScope'), 'the message names the flow');
	} finally {
		careful.release();
	}
	equal(await value('SELECT pg_backend_pid()'), pid, 'the pool gives the same connection again');
	await pool.query('SELECT feishu.execute_flow($1, $2)', [NS, 'noScope']).catch(() => null);
	const other = await value('SELECT pg_backend_pid()');
	ok(other !== pid, '... but a new one after an error of pool.query()');

	// The driver has no cancel; query_timeout gives up without telling the server. statement_timeout ends the call.
	const hasty = new Client({ statement_timeout: 1000 });
	await hasty.connect();
	let sqlstate;
	try {
		await hasty.query('SELECT feishu.execute_flow($1, $2)', [NS, 'hangingFlow']);
	} catch (error) {
		sqlstate = error.code;
	}
	equal(sqlstate, '57014', 'statement_timeout ends a call');
	await hasty.end();

	// So does another connection.
	const watch = new Client();
	await watch.connect();
	const hanging = pool.query('SELECT feishu.execute_flow($1, $2)', [NS, 'hangingFlow']).then(() => null, (error) => error);
	await waitUntil(async () => (await watch.query(WAITS, [other])).rows[0].waits);
	await watch.query('SELECT pg_cancel_backend($1)', [other]);
	equal((await hanging).code, '57014', 'so does a cancel from another connection');
	equal(await value('SELECT 1'), 1, '... and the pool works');

	// Rollback.
	await watch.query('BEGIN');
	await watch.query('SELECT feishu.enqueue_flow($1, $2)', [NS, 'rolledBack']);
	await watch.query('ROLLBACK');
	await watch.query('BEGIN');
	await watch.query('SELECT feishu.enqueue_flow($1, $2)', [NS, 'committed']);
	await watch.query('SAVEPOINT s');
	await watch.query('SELECT feishu.enqueue_flow($1, $2)', [NS, 'rolledBack']);
	await watch.query('ROLLBACK TO SAVEPOINT s');
	await watch.query('COMMIT');
	await watch.end();
	await pool.end();
}

main().catch((error) => {
	console.log(`not ok - ${error.stack}`);
	process.exit(1);
});
