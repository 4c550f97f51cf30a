# ruby-pg.

require 'json'
require 'pg'

NS = 'package_7344545d87__c'
PATIENCE = (ENV['CLIENT_PATIENCE'] || 60).to_f
WAITS = "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type = 'Extension'"
$stdout.sync = true

def ok(good, name)
  puts "#{good ? 'ok' : 'not ok'} - #{name}"
end

def equal(got, expected, name)
  ok(got == expected, name)
  puts "got #{got.inspect}, expected #{expected.inspect}" if got != expected
end

# Polls until the block is true, or has taken too long.
def wait_until
  deadline = Time.now + PATIENCE
  until yield
    raise 'a condition did not come true' if Time.now > deadline

    sleep 0.01
  end
end

# Results as Ruby's types: integers, true, and jsonb as text.
def connect
  conn = PG.connect
  conn.type_map_for_results = PG::BasicTypeMapForResults.new(conn)
  conn
end

conn = connect

# The transaction of the order queues its flow.
flow = conn.transaction do
  order = conn.exec_params('INSERT INTO orders (item) VALUES ($1) RETURNING id', ['desk']).getvalue(0, 0)
  conn.exec_params('SELECT feishu.enqueue_flow($1, $2, operator => $3, params => $4)',
                   [NS, 'committed', { email: 'li@example.com' }.to_json, { order: order }.to_json]).getvalue(0, 0)
end
equal(flow.class, Integer, 'the id of a flow is an Integer')

def json(value)
  value.is_a?(String) ? JSON.parse(value) : value
end

answer = json(conn.exec_params('SELECT feishu.wait_flow($1, $2)', [flow, "#{PATIENCE} s"]).getvalue(0, 0))
equal(answer['code'], 0, 'a flow that was queued with its order is sent')

big = 2**63 - 1
answer = conn.exec_params('SELECT feishu.execute_flow($1, $2, $3, $4, $5, $6, $7, $8, $9)',
                          [NS, 'echoParams', { _id: big }.to_json, { total: big, text: '桌子', null: nil }.to_json,
                           false, nil, ['a'].to_json, 'feishu', "#{PATIENCE} s"]).getvalue(0, 0)
answer = answer.to_json unless answer.is_a?(String)
out = json(conn.exec_params('SELECT feishu.out_params($1)', [answer]).getvalue(0, 0))
equal(out['total'], big, 'an integer of 64 bits keeps its digits')
equal(out['text'], '桌子', 'text is what it was')
equal(out.fetch('null', 'none'), nil, 'null is null')
equal(conn.exec_params('SELECT feishu.out_params($1)', [nil]).getvalue(0, 0), nil, 'NULL comes back as nil')
answer = json(conn.exec_params('SELECT feishu.execute_flow($1, $2, $3, $4)', [NS, 'flow', nil, nil]).getvalue(0, 0))
equal(answer['code'], 0, 'nil stands for an argument that is not given')

# What went wrong.
begin
  conn.exec_params('SELECT feishu.execute_flow($1, $2)', [NS, 'noScope'])
  ok(false, 'a refusal is an error')
rescue PG::ServerError => e
  sqlstate = e.result.error_field(PG::PG_DIAG_SQLSTATE)
  detail = e.result.error_field(PG::PG_DIAG_MESSAGE_DETAIL)
  hint = e.result.error_field(PG::PG_DIAG_MESSAGE_HINT)
  equal(sqlstate, 'LK403', 'the SQLSTATE')
  ok(detail.include?('code 99991672'), 'DETAIL')
  ok(hint.include?('https://'), 'HINT')
end
equal(conn.status, PG::CONNECTION_OK, 'the connection lives')
equal(conn.exec('SELECT 1').getvalue(0, 0), 1, '... and works')

# Cancel.
watch = connect
pid = conn.backend_pid
error = nil
caller = Thread.new do
  conn.exec_params('SELECT feishu.execute_flow($1, $2)', [NS, 'hangingFlow'])
rescue PG::Error => e
  error = e
end
wait_until { watch.exec_params(WAITS, [pid]).getvalue(0, 0) }
started = Time.now
conn.cancel
caller.join
equal(error.class, PG::QueryCanceled, 'a cancel of the driver ends a call')
ok(Time.now - started < PATIENCE / 10, '... at once')
equal(conn.exec('SELECT 1').getvalue(0, 0), 1, '... and the connection works')

# Rollback.
begin
  conn.transaction do
    conn.exec_params('SELECT feishu.enqueue_flow($1, $2)', [NS, 'rolledBack'])
    raise ArgumentError
  end
rescue ArgumentError
  ok(true, 'a transaction is rolled back')
end
conn.transaction do
  conn.exec_params('SELECT feishu.enqueue_flow($1, $2)', [NS, 'committed'])
  conn.exec('SAVEPOINT s')
  conn.exec_params('SELECT feishu.enqueue_flow($1, $2)', [NS, 'rolledBack'])
  conn.exec('ROLLBACK TO SAVEPOINT s')
end
