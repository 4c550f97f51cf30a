// What the programs in Go share.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

const ns = "package_7344545d87__c"

// Of a backend: does it wait for the platform?
const waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type = 'Extension'"

// What anything may take.
var patience = readPatience()

func readPatience() time.Duration {
	seconds, err := strconv.ParseFloat(os.Getenv("CLIENT_PATIENCE"), 64)
	if err != nil {
		seconds = 60
	}
	return time.Duration(seconds * float64(time.Second))
}

func ok(good bool, name string) {
	if good {
		fmt.Println("ok - " + name)
	} else {
		fmt.Println("not ok - " + name)
	}
}

func equal[T comparable](got, expected T, name string) {
	ok(got == expected, name)
	if got != expected {
		fmt.Println("got", got, "expected", expected)
	}
}

func must(err error) {
	if err != nil {
		ok(false, err.Error())
		os.Exit(1)
	}
}

// Polls until it is true, or has taken too long.
func waitUntil(condition func() bool) {
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			must(errors.New("a condition did not come true"))
		}
		time.Sleep(10 * time.Millisecond)
	}
}
