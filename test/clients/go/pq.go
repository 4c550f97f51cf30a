// database/sql with lib/pq.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lib/pq"
)

func main() {
	ctx := context.Background()
	limit := fmt.Sprintf("%g s", patience.Seconds())
	db, err := sql.Open("postgres", "sslmode=disable")
	must(err)
	db.SetMaxOpenConns(1)
	watch, err := sql.Open("postgres", "sslmode=disable")
	must(err)

	// The transaction of the order queues its flow.
	tx, err := db.BeginTx(ctx, nil)
	must(err)
	defer tx.Rollback()
	var order, flow int64
	must(tx.QueryRowContext(ctx, "INSERT INTO orders (item) VALUES ($1) RETURNING id", "desk").Scan(&order))
	params, err := json.Marshal(map[string]any{"order": order})
	must(err)
	must(tx.QueryRowContext(ctx, "SELECT feishu.enqueue_flow($1, $2, params => $3)", ns, "committed", params).Scan(&flow))
	must(tx.Commit())

	var answer []byte
	must(db.QueryRow("SELECT feishu.wait_flow($1, $2)", flow, limit).Scan(&answer))
	var body struct {
		Code int `json:"code"`
	}
	body.Code = -1
	must(json.Unmarshal(answer, &body))
	equal(body.Code, 0, "a flow that was queued with its order is sent")

	// Integers beyond 2^53, and NULLs.
	var total int64
	var none sql.NullString
	must(db.QueryRow("SELECT (p ->> 'total')::bigint, p ->> 'none' FROM feishu.out_params(feishu.execute_flow($1, $2, $3, $4, $5, $6, $7, $8, $9)) AS p",
		ns, "echoParams", nil, `{"total": 9223372036854775807}`, false, nil, `["a"]`, "feishu", limit).Scan(&total, &none))
	equal(total, 1<<63-1, "an integer of 64 bits keeps its digits")
	ok(!none.Valid, "NULL comes back")

	// What went wrong.
	var pid, same int
	must(db.QueryRow("SELECT pg_backend_pid()").Scan(&pid))
	_, err = db.Exec("SELECT feishu.execute_flow($1, $2)", ns, "noScope")
	var pqErr *pq.Error
	if errors.As(err, &pqErr) {
		equal(string(pqErr.Code), "LK403", "the SQLSTATE")
		ok(len(pqErr.Detail) > 0, "DETAIL")
		ok(len(pqErr.Hint) > 0, "HINT")
	} else {
		ok(false, "a refusal is an error")
	}
	must(db.QueryRow("SELECT pg_backend_pid()").Scan(&same))
	equal(same, pid, "the pool gives the same connection again")

	// A context that ends sends a cancel request.
	short, cancel := context.WithCancel(ctx)
	go func() {
		waitUntil(func() (found bool) {
			must(watch.QueryRow(waits, pid).Scan(&found))
			return
		})
		cancel()
	}()
	_, err = db.ExecContext(short, "SELECT feishu.execute_flow($1, $2)", ns, "hangingFlow")
	pqErr = nil
	errors.As(err, &pqErr)
	ok(errors.Is(err, context.Canceled) || pqErr != nil && pqErr.Code == "57014", "a context that is cancelled ends a call")
	must(db.QueryRow("SELECT 1").Scan(&same))
	equal(same, 1, "... and the pool works")

	// Rollback.
	tx, err = db.Begin()
	must(err)
	_, err = tx.Exec("SELECT feishu.enqueue_flow($1, $2)", ns, "rolledBack")
	must(err)
	must(tx.Rollback())
	tx, err = db.Begin()
	must(err)
	for _, statement := range []string{"committed", "SAVEPOINT s", "rolledBack", "ROLLBACK TO SAVEPOINT s"} {
		if statement == "committed" || statement == "rolledBack" {
			_, err = tx.Exec("SELECT feishu.enqueue_flow($1, $2)", ns, statement)
		} else {
			_, err = tx.Exec(statement)
		}
		must(err)
	}
	must(tx.Commit())
}
