// Package bustest gives a test a broker of its own: embedded, provisioned, gone with the test.
package bustest

import (
	"testing"

	"posthorn/pkg/bus"
	"posthorn/pkg/embeddednats"
)

// Start starts a broker in a temporary directory and returns a connection to it.
func Start(t *testing.T) *bus.Conn {
	t.Helper()
	server, err := embeddednats.Start(t.Context(), embeddednats.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	conn, err := bus.Connect(t.Context(), bus.Options{Embedded: server})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if _, err := conn.Provision(t.Context(), bus.ProvisionConfig{}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Bucket opens one of the broker's buckets.
func Bucket(t *testing.T, conn *bus.Conn, name string) *bus.Bucket {
	t.Helper()
	bucket, err := conn.Bucket(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return bucket
}
