package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"posthorn/pkg/contract"
	"posthorn/pkg/embeddednats"
)

// store starts an embedded server in its own directory.
func store(t testing.TB) *embeddednats.Server {
	t.Helper()
	server, err := embeddednats.Start(t.Context(), embeddednats.Config{Dir: t.TempDir(), MaxStore: 4 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	return server
}

func connected(t testing.TB, server *embeddednats.Server) *Conn {
	t.Helper()
	conn, err := Connect(t.Context(), Options{Embedded: server, Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// provisioned is a connection to a new store that is set up.
func provisioned(t testing.TB) *Conn {
	t.Helper()
	conn := connected(t, store(t))
	if _, err := conn.Provision(t.Context(), ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

func publish(t testing.TB, conn *Conn, subject, body string) Ack {
	t.Helper()
	ack, err := conn.Publisher().Publish(t.Context(), Outgoing{Subject: subject, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

func count(t testing.TB, conn *Conn, stream contract.Stream, filters ...string) uint64 {
	t.Helper()
	n, err := conn.Count(t.Context(), stream, filters...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func isAlreadyStored(err error) bool {
	_, ok := errors.AsType[*AlreadyStored](err)
	return ok
}
