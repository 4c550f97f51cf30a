// pgx, with its pool: version 5, which the test changes into 4.
package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

func main() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "pool_max_conns=1")
	must(err)
	defer pool.Close()

	// The transaction of the order queues its flow.
	var order, flow int64
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "INSERT INTO orders (item) VALUES ($1) RETURNING id", "desk").Scan(&order); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT feishu.enqueue_flow($1, $2, operator => $3, params => $4)",
			ns, "committed", map[string]any{"email": "li@example.com"}, map[string]any{"order": order}).Scan(&flow)
	})
	must(err)
	var answer struct {
		Code int `json:"code"`
	}
	answer.Code = -1
	must(pool.QueryRow(ctx, "SELECT feishu.wait_flow($1, $2)", flow, patience).Scan(&answer))
	equal(answer.Code, 0, "a flow that was queued with its order is sent, and its answer is a struct")

	// Numbers beyond 2^53 are exact in a struct; in a map they would be float64.
	type outParams struct {
		Total int64   `json:"total"`
		Text  string  `json:"text"`
		None  *string `json:"none"`
	}
	given := outParams{Total: 1<<63 - 1, Text: "桌子"}
	var out outParams
	must(pool.QueryRow(ctx, "SELECT feishu.out_params(feishu.execute_flow($1, $2, $3, $4, $5, $6, $7, $8, $9))",
		ns, "echoParams", nil, given, false, nil, []string{"a"}, "feishu", patience).Scan(&out))
	equal(out.Total, given.Total, "an integer of 64 bits keeps its digits")
	equal(out.Text, given.Text, "text is what it was")
	ok(out.None == nil, "null is nil")
	var nothing *string
	must(pool.QueryRow(ctx, "SELECT feishu.out_params($1)::text", nil).Scan(&nothing))
	ok(nothing == nil, "NULL comes back as nil")
	runAt := time.Now().Add(24 * time.Hour).Truncate(time.Microsecond)
	var later int64
	var back time.Time
	must(pool.QueryRow(ctx, "SELECT feishu.enqueue_flow($1, $2, run_at => $3)", ns, "later", runAt).Scan(&later))
	must(pool.QueryRow(ctx, "SELECT run_at FROM feishu.flows WHERE id = $1", later).Scan(&back))
	ok(back.Equal(runAt), "a time is a time")
	var cancelled bool
	must(pool.QueryRow(ctx, "SELECT feishu.cancel_flow($1)", later).Scan(&cancelled))
	ok(cancelled, "an id is an int64")

	// What went wrong.
	var pid, same int32
	must(pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid))
	_, err = pool.Exec(ctx, "SELECT feishu.execute_flow($1, $2)", ns, "noScope")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		equal(pgErr.Code, "LK403", "the SQLSTATE")
		ok(len(pgErr.Detail) > 0, "DETAIL")
		ok(len(pgErr.Hint) > 0, "HINT")
	} else {
		ok(false, "a refusal is an error")
	}
	must(pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&same))
	equal(same, pid, "the pool gives the same connection again")

	// A context that ends closes the connection of pgx; the server ends the call because of that, or of the cancel request.
	short, cancel := context.WithCancel(ctx)
	watch, err := pgx.Connect(ctx, "")
	must(err)
	go func() {
		waitUntil(func() (found bool) {
			must(watch.QueryRow(ctx, waits, pid).Scan(&found))
			return
		})
		cancel()
	}()
	_, err = pool.Exec(short, "SELECT feishu.execute_flow($1, $2)", ns, "hangingFlow")
	ok(err != nil, "a context that is cancelled ends a call")
	must(pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&same))
	ok(same != pid, "... and its connection")
	waitUntil(func() (gone bool) {
		must(watch.QueryRow(ctx, "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1", pid).Scan(&gone))
		return
	})
	ok(true, "... on the server, too")

	// statement_timeout keeps it.
	must(pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid))
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '1s'"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "SELECT feishu.execute_flow($1, $2)", ns, "hangingFlow")
		return err
	})
	pgErr = nil
	errors.As(err, &pgErr)
	ok(pgErr != nil && pgErr.Code == "57014", "statement_timeout ends a call")
	must(pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&same))
	equal(same, pid, "... and the pool keeps the connection")

	// Rollback.
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT feishu.enqueue_flow($1, $2)", ns, "rolledBack"); err != nil {
			return err
		}
		return errors.New("changed my mind")
	})
	ok(err != nil, "a transaction is rolled back")
	must(pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT feishu.enqueue_flow($1, $2)", ns, "committed"); err != nil {
			return err
		}
		_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT feishu.enqueue_flow($1, $2)", ns, "rolledBack")
			must(err)
			return errors.New("changed my mind")
		})
		return nil
	}))
	batch := &pgx.Batch{}
	for i := 0; i < 3; i++ {
		batch.Queue("SELECT feishu.enqueue_flow($1, $2, params => $3)", ns, "batched", map[string]any{"n": i})
	}
	must(pool.SendBatch(ctx, batch).Close())
	ok(true, "a batch queues")
}
